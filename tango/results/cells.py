"""Finished cells of sweeps: reading them, what they are called, and which of them may stand in one table."""

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import ConfigDict, Field, ValidationError, create_model

from tango.runs.reading import missing, read_json, sentence
from tango.runs.settings import VANILLA
from tango.runs.summary import TITLES
from tango.sweeps.frameworks import MOTIONQA, QUESTIONS, benchmark_name

LABELS = {
    VANILLA: "unpruned", "tango": "Tango", "topk": "top-k saliency", "visionzip": "VisionZip", "fastvid": "FastVID",
    "holitom": "HoliTom", "vidcom2": "VidCom2", "flashvid": "FlashVID", "dycoke": "DyCoke", "divprune": "DivPrune",
    "prunevid": "PruneVid", "fastv": "FastV", "evs": "EVS", "vcast": "V-CAST", "earlytom": "EarlyTom",
    "stop_visionzip": "SToP on VisionZip", "stop_fastvid": "SToP on FastVID", "stop_holitom": "SToP on HoliTom",
}  # fmt: skip

# What tables need of a cell.json (tango/sweeps/cells.py writes more). Fields are values here, not types to mypy.
_of: Any = functools.partial(create_model, __config__=ConfigDict(allow_inf_nan=False))
SHARE: Any = Annotated[float, Field(ge=0, le=1)]
AMOUNT: Any = Annotated[float, Field(ge=0, le=1e12)]  # of tokens, and of units of the efficiency table
COUNT: Any = Annotated[int, Field(ge=0, le=1_000_000_000)]
PLACES: Any = Annotated[int, Field(ge=1, le=1_000_000)]  # frames, processes, threads
ROW: Any = _of(
    "Row", id=str, kind=str, score=SHARE, prediction=Any, tokens_before=AMOUNT, tokens_after=AMOUNT,
    tokens_average=(AMOUNT, 0),
)  # fmt: skip
MODEL: Any = _of("Model", pretrained=str, dtype=str, max_frames_num=PLACES, times=(str, ""))
ORIGIN: Any = _of(
    "Origin", model=MODEL, versions=dict[str, str], commit=_of("Commit", hash=str, dirty=bool) | None,
    device=_of("Device", name=str, type=str, threads=PLACES, count=(PLACES, 1)), processes=PLACES, seed=int, time=str,
    load=(_of("Load", start=AMOUNT | None, end=AMOUNT | None, cores=PLACES, waited=SHARE | None) | None, None),
    settings=(dict[str, Any], {}), sources=(dict[str, str], {}),
)  # fmt: skip
CELL_FILE: Any = _of(
    "CellFile",
    cell=_of(
        "Cell", framework=str, model=str, benchmark=str, method=str, ratio=Annotated[float, Field(gt=0, le=1)] | None,
        variant=(str | None, None),
    ),
    provenance=ORIGIN,
    efficiency=_of("Efficiency", cold_samples=(COUNT, 0), spread=(dict[str, AMOUNT | None], {}),
                   **dict.fromkeys(TITLES, AMOUNT | None)),
    reported=(float | None, None),
    samples=Annotated[list[ROW], Field(min_length=1)],
)  # fmt: skip

COLUMNS = {"", "framework", "name", "method", "variant", "retention_ratio", "tokens_kept", "average", "share_kept",
           "difference", "questions", "n", "share kept (%)", "difference (points)", "tokens kept (%)"}  # fmt: skip

Cell = Mapping[str, Any]
Key = TypeVar("Key")


class ResultsError(ValueError):
    """No tables can be made of some folders or cells; the message says why."""


def read_cell(file: Path) -> Cell:
    """One cell.json: the mapping that it holds, of which all that tables need is there and can be.

    Raises:
        ResultsError: it is damaged, or something else; names the file and what is wrong.
    """
    try:
        cell = read_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ResultsError(f"{file}: damaged ({error}); delete it and run its sweep again") from error
    return check_cell(cell, file)


def check_cell(cell: Any, file: Path) -> Cell:
    """What a file says of a cell, if it is one.

    Raises:
        ResultsError: it is something else.
    """
    try:
        CELL_FILE.model_validate(cell, strict=True)
    except ValidationError as error:
        wrong = f"it lacks {', '.join(lost)}" if (lost := missing(error)) else sentence(error, "")
        raise ResultsError(f"{file}: not a finished cell: {wrong}; run its sweep again") from error
    if len({row["id"] for row in cell["samples"]}) < len(cell["samples"]):
        raise ResultsError(f"{file}: it answers a question twice; run its sweep again")
    for row in cell["samples"]:
        if max(row["tokens_after"], row.get("tokens_average", 0)) > row["tokens_before"]:
            raise ResultsError(
                f"{file}: it kept {row['tokens_after']} of {row['tokens_before']} tokens; run its sweep again"
            )
    read: Cell = _whole_characters(cell)
    return read


def _whole_characters(value: Any) -> Any:
    """The same with halves of characters, which replies may end in, as their escapes: data frames take none."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_whole_characters(key): _whole_characters(inner) for key, inner in value.items()}
    return [_whole_characters(inner) for inner in value] if isinstance(value, list) else value


def label(cell: Cell) -> str:
    """How a cell is called in tables; its framework and benchmark are named elsewhere."""
    what = cell["cell"]
    name = LABELS.get(what["method"], what["method"])
    name = name if what["ratio"] is None else f"{name} {100 * what['ratio']:g} %"
    return f"{name}, {what['variant']}" if what.get("variant") else name


def benchmark(cell: Cell) -> str:
    """The benchmark's own name, whatever the framework calls it; the number of frames is named elsewhere. One that is
    called like another column of the tables is marked.
    """
    name = benchmark_name(cell["cell"]["benchmark"])
    return f"benchmark {name}" if name in COLUMNS or name.endswith(("_low", "_high")) else name


def setting(cell: Cell) -> tuple[str, int, str, str]:
    """What cells of one table have in common: model, frames of a video, number format of the weights, kind of times."""
    model = cell["provenance"]["model"]
    return cell["cell"]["model"], model["max_frames_num"], model["dtype"], model.get("times", "processor")


def setting_text(found: tuple[str, int, str, str]) -> str:
    """A setting(), for people."""
    model, frames, dtype, times = found
    return f"{model}, {frames} frames, {dtype}" + ("" if times == "processor" else f", {times} times")


def machine(cell: Cell) -> str:
    """Where a cell ran, as text that is equal only for cells whose times may be compared."""
    return json.dumps([cell["provenance"]["device"], cell["provenance"]["processes"]], sort_keys=True)


def device(cell: Cell) -> str:
    """Where a cell ran, for people."""
    found, processes = cell["provenance"]["device"], cell["provenance"]["processes"]
    what = f"{found['count']} x {found['name']}" if found.get("count", 1) > 1 else str(found["name"])
    details = [found["type"], f"{found['threads']} threads"] if found["type"] == "cpu" else [found["type"]]
    return f"{what} ({', '.join([*details, *([f'{processes} processes'] if processes > 1 else [])])})"


def tokens_kept(cell: Cell) -> float:
    """Percent of all video tokens that a cell kept, in the mean over the language model's layers; NaN without any."""
    before = sum(row["tokens_before"] for row in cell["samples"])
    kept = sum(row.get("tokens_average", row["tokens_after"]) for row in cell["samples"])
    return 100 * kept / before if before else float("nan")


def accuracy(cell: Cell) -> float:
    """Percent of a cell's questions that it got right."""
    return 100 * sum(float(row["score"]) for row in cell["samples"]) / len(cell["samples"])


def answers(cell: Cell) -> dict[str, Mapping[str, Any]]:
    """A cell's samples by the ids of its questions."""
    return {str(row["id"]): row for row in cell["samples"]}


@dataclass(frozen=True)
class Row:
    """A line of the tables: a method with one retention ratio and variant in one framework, and its cells by
    benchmark. retention_ratio is 1 for the unpruned model.
    """

    framework: str
    method: str
    retention_ratio: float
    variant: str
    name: str
    cells: dict[str, Cell] = field(default_factory=dict)

    @property
    def unpruned(self) -> bool:
        """Whether this is the model as it is."""
        return self.method == VANILLA

    @property
    def what(self) -> tuple[str, float, str]:
        """The same in both frameworks."""
        return self.method, self.retention_ratio, self.variant

    @property
    def tokens_kept(self) -> float:
        """Percent of video tokens, in the mean over its cells."""
        return float(np.mean([tokens_kept(cell) for cell in self.cells.values()]))

    @property
    def questions(self) -> int:
        """How many it answered, of all benchmarks together."""
        return sum(len(cell["samples"]) for cell in self.cells.values())


class Rows(list[Row]):
    """The lines of the tables of one model, in their order."""

    @property
    def frameworks(self) -> list[str]:
        """In order of appearance."""
        return list(dict.fromkeys(row.framework for row in self))

    @property
    def benchmarks(self) -> list[str]:
        """In the paper's order."""
        found = {name for row in self for name in row.cells}
        known = [*QUESTIONS, MOTIONQA]
        return sorted(found, key=lambda name: (known.index(name) if name in known else len(known), name))

    @property
    def cells(self) -> list[Cell]:
        """Line by line."""
        return [cell for row in self for cell in row.cells.values()]

    def by_benchmark(self) -> Iterator[tuple[str, Row, Cell]]:
        """All cells with their benchmark and line, benchmark by benchmark."""
        return ((name, row, row.cells[name]) for name in self.benchmarks for row in self if name in row.cells)

    def find(self, framework: str, method: str, retention_ratio: float) -> Row | None:
        """The line of a method as it is, no variant of it."""
        wanted = (framework, (method, retention_ratio, ""))
        return next((row for row in self if (row.framework, row.what) == wanted), None)

    def reference(self, row: Row) -> Row | None:
        """The unpruned model in the same framework."""
        return next((other for other in self if other.unpruned and other.framework == row.framework), None)


def arrange(cells: Sequence[Cell]) -> tuple[Rows, list[str]]:
    """The lines of the tables of one model, in their order: by framework, the unpruned model first, then Tango, then
    the others, then variants. Cells that did not answer the unpruned model's questions are left out; of several runs
    of the same the one with most questions is taken, and the latest of these.

    Returns:
        The lines, and what was left out or is to be known, for people.

    Raises:
        ResultsError: no cells, or cells of several models, numbers of frames, dtypes or kinds of times.
    """
    if not cells:
        raise ResultsError("no finished cells, so there is nothing to put into tables")
    if len(settings := dict.fromkeys(map(setting, cells))) > 1:
        raise ResultsError(f"one table holds one model, frames and dtype; got {', '.join(map(str, settings))}")
    remarks: list[str] = []
    used = _same_questions(_without_repeats(cells, remarks), remarks)
    rows: dict[tuple[str, str, float, str], Row] = {}
    for cell in used:
        line = _line(cell)
        rows.setdefault(line, Row(*line, label(cell))).cells[benchmark(cell)] = cell
    methods = list(dict.fromkeys([VANILLA, "tango", *(row.method for row in rows.values())]))

    def place(row: Row) -> tuple[Any, ...]:
        return row.framework.casefold(), row.variant != "", methods.index(row.method), row.retention_ratio, row.variant

    arranged = Rows(rows.values())
    remarks += _different_settings(arranged) + _different_scores(arranged)
    return Rows(sorted(arranged, key=place)), remarks


def grouped(cells: Iterable[Cell], by: Callable[[Cell], Key]) -> dict[Key, list[Cell]]:
    """Cells by what they have in common, in their order."""
    groups: dict[Key, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(by(cell), []).append(cell)
    return groups


def _line(cell: Cell) -> tuple[str, str, float, str]:
    """Framework, method, retention ratio and variant."""
    what = cell["cell"]
    ratio = 1.0 if what["ratio"] is None else float(what["ratio"])
    return what["framework"], what["method"], ratio, what.get("variant") or ""


def _without_repeats(cells: Sequence[Cell], remarks: list[str]) -> list[Cell]:
    chosen = []
    for (line, name), group in grouped(cells, lambda cell: (_line(cell), benchmark(cell))).items():
        chosen.append(max(group, key=lambda cell: (len(cell["samples"]), cell["provenance"]["time"])))
        if len(group) > 1:
            others = {json.dumps(cell["provenance"].get("settings"), sort_keys=True) for cell in group}
            remarks.append(
                f"{label(group[0])} on {name} in {line[0]} was run {len(group)} times"
                + (" with different settings" if len(others) > 1 else "")
                + f"; shown is the run of {chosen[-1]['provenance']['time']}"
            )
    return chosen


def _same_questions(cells: Sequence[Cell], remarks: list[str]) -> list[Cell]:
    """Without the cells that answered other questions than the unpruned model, or, without one, than most questions."""
    alike = []
    for (framework, name), group in grouped(cells, lambda cell: (_line(cell)[0], benchmark(cell))).items():
        reference = max(group, key=lambda cell: (cell["cell"]["method"] == VANILLA, len(cell["samples"])))
        asked = answers(reference).keys()
        for cell in group:
            found = answers(cell).keys()
            if found == asked:
                alike.append(cell)
                continue
            differ = sorted(found ^ asked)
            remarks.append(
                f"{label(cell)} on {name} in {framework} answered {len(found)} questions, {label(reference)} "
                f"{len(asked)} and not the same ({', '.join(differ[:3])}{', ..' if len(differ) > 3 else ''})"
            )
    return alike


def _different_settings(rows: Rows) -> list[str]:
    """Lines of one name whose cells were not run with the same settings."""
    remarks = []
    for group in grouped(rows.cells, lambda cell: _line(cell)[1:]).values():
        first, *others = [cell["provenance"].get("settings", {}) for cell in group]
        names = sorted(set(first).union(*others))
        differ = [name for name in names if any(other.get(name) != first.get(name) for other in others)]
        if differ:
            remarks.append(f"{label(group[0])} was not run with the same {', '.join(differ)} everywhere")
    return remarks


def _different_scores(rows: Rows) -> list[str]:
    """Cells whose framework came to another score than the share of right answers, which is what tables hold."""
    return [
        f"{row.name} on {name}: {row.framework} itself reports {cell['reported']:.1f} %, since it weighs questions "
        f"otherwise; {accuracy(cell):.1f} % of the answers are right"
        for name, row, cell in rows.by_benchmark()
        if cell.get("reported") is not None and abs(cell["reported"] - accuracy(cell)) >= 0.05
    ]
