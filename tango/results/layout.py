"""Tables as people read them: numbers rounded, intervals in brackets, in Markdown, LaTeX and for a terminal; CSV with
where it comes from on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table as RichTable
from rich.text import Text
from tabulate import tabulate

from tango.results.cells import Cell, Rows, arrange
from tango.results.escaping import csv_text, latex_text, markdown_text, plain
from tango.results.statistics import Interval
from tango.results.tables import SPEED_UPS, accuracy_table
from tango.runs.provenance import commit_text, device_text, versions_text
from tango.runs.settings import VANILLA
from tango.runs.summary import WITH_UNITS, terminal_table
from tango.runs.summary import efficiency_table as efficiency_of

SHARE, DIFFERENCE = "share kept (%)", "difference (points)"


def origin(cells: Sequence[Cell], command: str) -> list[str]:
    """Where tables come from, line by line: the command that makes them, and what was run on what."""

    def all_of(pick: Any) -> str:
        return "; ".join(dict.fromkeys(str(pick(cell["provenance"])) for cell in cells))

    configs = dict.fromkeys(_place(cell["provenance"].get("sources", {}).get("TANGO_CONFIG", "")) for cell in cells)
    times = sorted(cell["provenance"]["time"] for cell in cells)
    return [
        f"made by: {command}",
        f"model: {all_of(lambda o: _place(o['model']['pretrained']))} in {all_of(lambda o: o['model']['dtype'])}, "
        f"{all_of(lambda o: o['model']['max_frames_num'])} frames; seed {all_of(lambda o: o['seed'])}"
        + (f"; times: {times_of}" if (times_of := all_of(lambda o: o["model"].get("times", ""))) else "")
        + (f"; settings: {', '.join(filter(None, configs))}" if any(configs) else ""),
        f"commit: {all_of(commit_text)}; versions: {all_of(versions_text)}",
        f"device: {all_of(device_text)}; processes: {all_of(lambda o: o['processes'])}; "
        f"run from {times[0]} to {times[-1]}",
    ]


def _place(path: str) -> str:
    """A path for readers elsewhere: of an absolute one the name, since its folders are of this machine alone."""
    return Path(path).name if Path(path).is_absolute() else path


def csv(frame: pd.DataFrame, lines: Sequence[str]) -> str:
    """A data frame as CSV below lines of comment."""

    def field(value: Any) -> str:
        if isinstance(value, str):
            return csv_text(value)
        return "" if pd.isna(value) else f"{value:.4f}" if isinstance(value, float) else str(value)

    head = [*lines, 'read with pandas.read_csv(.., comment="#")']
    rows = [frame.columns.tolist(), *frame.itertuples(index=False)]
    return "\n".join([*(f"# {plain(line)}" for line in head), *(",".join(map(field, row)) for row in rows), ""])


def markdown(frame: pd.DataFrame) -> str:
    """A table of text, the first column and that of the framework to the left."""
    columns = {markdown_text(name): frame[name].map(markdown_text).tolist() for name in frame.columns}
    text: str = tabulate(columns, headers="keys", tablefmt="pipe", disable_numparse=True, colalign=_alignment(frame))
    return text


def latex(frame: pd.DataFrame, lines: Sequence[str]) -> str:
    """The same as a tabular of LaTeX, with the rules of booktabs."""
    head, *body = [
        " & ".join(map(latex_text, row)) + r" \\" for row in (frame.columns.tolist(), *frame.itertuples(index=False))
    ]
    return "\n".join(
        [
            *(f"% {plain(line)}" for line in [*lines, "needs \\usepackage{booktabs}"]),
            r"\begin{tabular}{" + "".join(side[0] for side in _alignment(frame)) + "}",
            *(r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""),
        ]
    )


def _alignment(frame: pd.DataFrame) -> list[str]:
    return [
        "left" if name in ("", "model", "framework", "benchmark", "kind", "quantity") else "right"
        for name in frame.columns
    ]


def shown_accuracy(rows: Rows, frame: pd.DataFrame, narrow: bool = False) -> pd.DataFrame:
    """accuracy_table() of some lines as text; narrow: without the intervals of the accuracies themselves."""
    names = rows.benchmarks
    shown = _lines(frame, rows) | {"tokens kept (%)": _rounded(frame["tokens_kept"])}
    n = [str(count) for count in frame["questions"]]
    same = f" n={n[0]}" if narrow and len(set(n)) == 1 else ""
    shown |= {} if same else {"n": n}
    for name in names if len(names) == 1 else [*names, "average"]:
        title = "accuracy (%)" + same if len(names) == 1 else name
        shown[title] = _rounded(frame[name]) if narrow else _intervals(frame, name)
    if "share_kept" in frame:
        shown |= {SHARE: _intervals(frame, "share_kept"), DIFFERENCE: _intervals(frame, "difference")}
    return pd.DataFrame(shown)


def shown_models(models: Sequence[tuple[str, Rows, pd.DataFrame]]) -> pd.DataFrame:
    """accuracy_table() of several models as one table of text, as the paper has it.

    Args:
        models: of each its title, its lines and their accuracy_table().
    """
    everything = Rows(row for _, rows, _ in models for row in rows)
    names = everything.benchmarks
    tables = []
    for title, rows, frame in models:
        shown = {"model": [title] * len(frame)} | _lines(frame, everything)
        shown |= {"tokens kept (%)": _rounded(frame["tokens_kept"]), "n": [str(count) for count in frame["questions"]]}
        whole = len(rows.benchmarks) == len(names)
        there = [*rows.benchmarks, *(["average"] if whole else [])]
        shown |= {name: _rounded(frame[name]) if name in there else ["-"] * len(frame) for name in [*names, "average"]}
        compared = whole and "share_kept" in frame
        shown[SHARE] = _intervals(frame, "share_kept") if compared else [""] * len(frame)
        tables.append(pd.DataFrame(shown))
    return pd.concat(tables, ignore_index=True)


def shown_kinds(rows: Rows, scores: pd.DataFrame, kinds: pd.DataFrame, name: str) -> pd.DataFrame:
    """One benchmark by kind of question, as text.

    Args:
        scores, kinds: benchmark_table() and kind_table() of the lines. name: the benchmark.
    """
    frame = scores[scores["benchmark"] == name]
    kinds = kinds[kinds["benchmark"] == name]
    asked = kinds.groupby("kind")["questions"].max()
    kinds = kinds.pivot_table(index=["framework", "name"], columns="kind", values="accuracy", sort=False)
    kinds = kinds.loc[list(zip(frame["framework"], frame["name"], strict=True))]
    shown = _lines(frame, rows)
    if len(rows.benchmarks) > 1:  # with one, the main table says this
        shown["accuracy (%)"] = _intervals(frame, "accuracy")
        if "difference" in frame:
            shown[DIFFERENCE] = _intervals(frame, "difference")
    shown |= {f"{kind} (n = {asked[kind]})": _rounded(kinds[kind]) for kind in sorted(kinds.columns)}
    if frame["unparsed"].any():
        shown["unparsed replies"] = [str(count) for count in frame["unparsed"]]
    return pd.DataFrame(shown)


def shown_efficiency(rows: Rows, frame: pd.DataFrame) -> pd.DataFrame:
    """efficiency_table() of some lines as text; where it ran is named if that is more than one machine."""
    shown = _lines(frame, rows)
    if frame["benchmark"].nunique() > 1:
        shown["benchmark"] = list(frame["benchmark"])
    if frame["machine"].nunique() > 1:
        numbers = {machine: i for i, machine in enumerate(dict.fromkeys(frame["machine"]), 1)}
        shown["ran on"] = [f"{numbers[m]}: {d}" for m, d in zip(frame["machine"], frame["device"], strict=True)]
    for name, column in WITH_UNITS.items():
        spread = frame.get(f"{name} sd", pd.Series(float("nan"), frame.index))
        shown[column] = [
            text if pd.isna(sd) else f"{text} ± {sd:.2f}"
            for text, sd in zip(_rounded(frame[column], 2), spread, strict=True)
        ]
    for name in (f"{key} speed-up" for key in SPEED_UPS):
        shown[name] = [f"{text}x" if text != "-" else text for text in _rounded(frame[name], 2)]
    return pd.DataFrame(shown)


def shown_published(rows: Rows, frame: pd.DataFrame) -> pd.DataFrame:
    """published_table() of some lines as text, the published figures in the last column; empty if there are none."""
    if frame.empty:
        return frame
    units = WITH_UNITS | {
        "share_kept": "share of the unpruned accuracy kept (%)",
        "speed_up": "speed-up over the unpruned model, of which time is not said",
    }
    shown = {"": list(frame["name"]), "benchmark": list(frame["benchmark"])}
    shown["quantity"] = [units.get(name, name) for name in frame["quantity"]]
    shown |= {f"measured, {framework}": _rounded(frame[framework], 2) for framework in rows.frameworks}
    shown["published"] = [
        f"{figure:.2f} ({where})" for figure, where in zip(frame["published"], frame["published_on"], strict=True)
    ]
    return pd.DataFrame(shown)


def summaries(cells: Sequence[Cell]) -> list[RichTable]:
    """The accuracy table and the frameworks' efficiency table of one model, for a terminal.

    Raises:
        ResultsError: no cells, or cells of several models, numbers of frames or dtypes.
    """
    rows, _ = arrange(cells)
    return [accuracy_summary(shown_accuracy(rows, accuracy_table(rows), narrow=True)), efficiency_summary(rows)]


def efficiency_summary(rows: Rows) -> RichTable:
    """The frameworks' efficiency table with a line a cell, for a terminal."""
    several = [len(rows.benchmarks) > 1, len(rows.frameworks) > 1]
    times = {}
    for name, row, cell in rows.by_benchmark():
        where = [text for text, needed in zip((name, f"in {row.framework}"), several, strict=True) if needed]
        times[plain(", ".join([row.name, *where]))] = cell["efficiency"]
    return efficiency_of(times)


def accuracy_summary(shown: pd.DataFrame) -> RichTable:
    """shown_accuracy() for a terminal."""
    table = terminal_table("Accuracy, with 95 % intervals of the paired bootstrap")
    for column in shown.columns[1:]:
        text = column == "framework"
        heading = plain(column) if text else plain(column).replace(" ", "\n")
        table.add_column(Text(heading), justify="left" if text else "right", no_wrap=True)
    for line in shown.itertuples(index=False):
        table.add_row(*(Text(plain(text)) for text in line))
    return table


def _lines(frame: pd.DataFrame, rows: Rows) -> dict[str, list[str]]:
    """The columns that say which line this is."""
    named = {"": list(frame["name"])}
    return named | ({"framework": list(frame["framework"])} if len(rows.frameworks) > 1 else {})


def _rounded(numbers: pd.Series[float], digits: int = 1) -> list[str]:
    return ["-" if pd.isna(number) else f"{number:.{digits}f}" for number in numbers]


def _intervals(frame: pd.DataFrame, name: str) -> list[str]:
    """A value and its interval; empty where the unpruned model would be compared with itself."""
    alone = (frame["method"] == VANILLA) & (name in ("share_kept", "difference"))
    ends = (frame[name + end] for end in ("", "_low", "_high"))
    return [
        "" if itself else Interval(*values).text(signed=name == "difference")
        for itself, *values in zip(alone, *ends, strict=True)
    ]
