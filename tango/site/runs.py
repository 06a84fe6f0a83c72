"""Runs for the site: cells with the questions and replies that the frameworks logged beside them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tango.inference.files import DAMAGED
from tango.results.cells import Cell, answers, benchmark, setting
from tango.results.logged import logged_rows, records_of
from tango.results.samples import finished
from tango.runs.settings import VANILLA


@dataclass(frozen=True)
class Text:
    """What a framework logged of one sample: the question with its options, the model's reply, the video's name."""

    question: str
    reply: str
    video: str


@dataclass(frozen=True, eq=False)
class Run:
    """A finished cell. place: its name, see tango.results.samples.finished(). texts: by the question's id, empty where
    its run's files are not beside it.
    """

    place: str
    cell: Cell
    texts: Mapping[str, Text]

    @property
    def benchmark(self) -> str:
        """Its benchmark's name in all frameworks."""
        return benchmark(self.cell)


def read_runs(folders: Iterable[str | Path]) -> tuple[list[Run], list[str]]:
    """All finished cells in some folders, the unpruned model first, and what was left out there, with its reason.

    Raises:
        ResultsError: a folder is not there, or holds no finished cell.
    """
    runs = []
    with finished(folders) as (found, remarks):
        for place, file, cell in found:
            try:
                texts = _texts(file, cell)
            except DAMAGED as error:
                texts = {}
                remarks.append(f"{place}: its questions and replies cannot be read ({error!r})")
            runs.append(Run(place, cell, texts))
    return sorted(runs, key=_order), remarks


def _order(run: Run) -> tuple[Any, ...]:
    what = run.cell["cell"]
    rank = (VANILLA, "tango").index(what["method"]) if what["method"] in (VANILLA, "tango") else 2
    line = (what["framework"].casefold(), what.get("variant") or "", rank, what["method"], what["ratio"] or 1)
    return (*map(str, setting(run.cell)), run.benchmark, *line, run.place)


def _texts(file: Path, cell: Cell) -> dict[str, Text]:
    sources = records_of(file)
    if len(sources) != 1:
        return {}
    asked = answers(cell)
    return {
        one.row["id"]: Text(one.question, one.reply if isinstance(one.reply, str) else json.dumps(one.reply), one.video)
        for one in logged_rows(sources[0], cell)
        if one.row["id"] in asked
    }


def reference(runs: Sequence[Run], run: Run) -> int | None:
    """The number of the unpruned run that another is compared with: of the same model and framework, on the same
    questions.
    """
    for number, other in enumerate(runs):
        same = other.cell["cell"]["framework"] == run.cell["cell"]["framework"] and other.benchmark == run.benchmark
        if other.cell["cell"]["method"] == VANILLA and same and setting(other.cell) == setting(run.cell):
            return number if answers(other.cell).keys() == answers(run.cell).keys() else None
    return None
