"""Two runs on the same questions: which they answered differently, and the interval of their difference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from tango.results.cells import Cell, ResultsError, benchmark, find_cells, label
from tango.results.escaping import plain
from tango.results.samples import named, unpacked
from tango.results.statistics import Interval, bootstrap
from tango.results.tables import paired_scores
from tango.runs.summary import terminal_table

SHOWN = 10  # ids in a terminal


@dataclass(frozen=True)
class Comparison:
    """One run beside another.

    names: of the two. questions: how many both answered. gained, lost: ids of those that the first scored higher on,
    and lower. changed: how many answers are not the same, scored alike or not. difference: of accuracies in points, the
    first less the other, with the interval of the paired bootstrap.
    """

    names: tuple[str, str]
    questions: int
    gained: Sequence[str]
    lost: Sequence[str]
    changed: int
    difference: Interval

    def summary(self) -> Table:
        """For a terminal."""
        first, second = map(plain, self.names)
        table = terminal_table(f"{first} against {second}, n = {self.questions}")
        table.add_column("")
        table.add_column("questions", justify="right")
        table.add_column("such as", overflow="fold")
        for what, ids in (("first", self.gained), ("second", self.lost)):
            more = ", .." if len(ids) > SHOWN else ""
            table.add_row(f"right in the {what} alone", str(len(ids)), plain(", ".join(ids[:SHOWN]) + more))
        table.add_row("not the same answer", str(self.changed), "")
        table.add_row("difference (points)", self.difference.text(signed=True), "with 95 %, paired bootstrap")
        return table


def compare(one: Cell, other: Cell, names: tuple[str, str]) -> Comparison:
    """Compare two runs question by question.

    Raises:
        ResultsError: they answered different questions.
    """
    if benchmark(one) != benchmark(other):
        raise ResultsError(f"{names[0]} is on {benchmark(one)}, {names[1]} on {benchmark(other)}: compare runs of one")
    scores = paired_scores(one, other)
    first, second = ({str(row["id"]): row for row in cell["samples"]} for cell in (one, other))
    ids = sorted(first)
    return Comparison(
        names=names,
        questions=len(ids),
        gained=[name for name, a, b in zip(ids, *scores, strict=True) if a > b],
        lost=[name for name, a, b in zip(ids, *scores, strict=True) if a < b],
        changed=sum(first[name]["prediction"] != second[name]["prediction"] for name in ids),
        difference=bootstrap([scores])[0],
    )


def compare_runs(folders: Iterable[str | Path], one: str, other: str) -> Comparison:
    """compare() of two runs in some folders, by their names, see find_run().

    Raises:
        ResultsError: a folder is not there, there is no such run, or the two answered different questions.
    """
    places = [Path(folder) for folder in folders]
    with unpacked(places) as samples:
        found, _ = find_cells(places, samples)
        names = [place_of(file, samples) for file, _ in found]
    first, second = (found[find_run(names, name)][1] for name in (one, other))
    framework = [f"{label(cell)} in {cell['cell']['framework']}" for cell in (first, second)]
    return compare(first, second, (framework[0], framework[1]))


def place_of(file: Path, samples: Mapping[Path, Path]) -> str:
    """What a run is called: the folder of a sweep's cell, or the file of a run by hand.

    Args:
        file: as tango.results.cells.find_cells() gives it. samples: of tango.results.samples.unpacked().
    """
    return named(str(file.parent if file.name == "cell.json" else file), samples)


def find_run(places: Sequence[str], name: str) -> int:
    """The number of the run with a name: its folder's in cells/, with as much of the path before it as tells it from
    others, or a folder in which it is the only one.

    Raises:
        ResultsError: there is none, or more than one.
    """
    wanted = f"/{name.strip('/')}"
    found = [number for number, place in enumerate(places) if f"/{place}".endswith(wanted)]
    found = found or [n for n, place in enumerate(places) if f"/{place.strip('/')}".startswith(f"{wanted}/")]
    if len(found) == 1:
        return found[0]
    shown = [places[number] for number in found] or places
    which = f"names {len(found)} runs" if found else "names no run"
    raise ResultsError(f"{name!r} {which}; there are {', '.join(shown[:12])}{', ..' if len(shown) > 12 else ''}")
