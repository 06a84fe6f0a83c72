"""Two runs on the same questions: which they answered differently, and the interval of their difference."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from tango.results.cells import ResultsError, answers, benchmark, label
from tango.results.escaping import plain
from tango.results.samples import finished
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


def compare_runs(folders: Iterable[str | Path], one: str, other: str) -> Comparison:
    """Compare two runs in some folders question by question, by their names, see find_run().

    Raises:
        ResultsError: a folder is not there, there is no such run, or the two answered different questions.
    """
    with finished(folders) as (runs, _):
        places = [place for place, _, _ in runs]
        first, second = (runs[find_run(places, name)][2] for name in (one, other))
    names = tuple(f"{label(cell)} in {cell['cell']['framework']}" for cell in (first, second))
    if benchmark(first) != benchmark(second):
        raise ResultsError(
            f"{names[0]} is on {benchmark(first)}, {names[1]} on {benchmark(second)}: compare runs of one"
        )
    scores = paired_scores(first, second)
    mine, theirs = answers(first), answers(second)
    ids = sorted(mine)
    return Comparison(
        names=(names[0], names[1]),
        questions=len(ids),
        gained=[name for name, a, b in zip(ids, *scores, strict=True) if a > b],
        lost=[name for name, a, b in zip(ids, *scores, strict=True) if a < b],
        changed=sum(mine[name]["prediction"] != theirs[name]["prediction"] for name in ids),
        difference=bootstrap([scores])[0],
    )


def find_run(places: Sequence[str], name: str) -> int:
    """The number of the run with a name: its folder's in cells/, with as much of the path before it as tells it from
    others, or a folder in which it is the only one.

    Args:
        places: the runs' names, see tango.results.samples.finished().

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
