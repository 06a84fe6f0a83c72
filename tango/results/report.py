"""Files of tables and plots from finished cells: one folder a model, each with a README.md that shows them all."""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table as RichTable

from tango.inference.files import write_whole
from tango.results import layout, tables
from tango.results.cells import Cell, Rows, arrange, grouped, machine, setting, setting_text
from tango.results.escaping import markdown_items, markdown_text, plain
from tango.results.plots import plot_all
from tango.results.samples import read_folders
from tango.results.statistics import Interval
from tango.runs.load import busy, load_text
from tango.runs.provenance import digest
from tango.runs.summary import TITLES

LONGEST = 200  # bytes of a folder's name
APART = 1.5  # times, of the same on the same machine, that are told to be far apart


@dataclass
class Report:
    """What was written. remarks: what was left out of it, or is to be known. summaries: its tables for a terminal."""

    remarks: list[str] = field(default_factory=list)
    summaries: list[RichTable] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    def show(self, console: Console) -> None:
        """Print the summaries, the remarks and the files."""
        for table in self.summaries:
            console.print(table)
        written = f"written: {', '.join(map(str, self.files))}"
        for line in (*(f"note: {remark}" for remark in self.remarks), written):
            console.print(plain(line), soft_wrap=True, markup=False, highlight=False)


def report(folders: Iterable[str | Path], output: str | Path) -> Report:
    """Make the tables and plots of all finished cells in some folders, whichever framework ran them.

    Args:
        folders: of sweeps, or folders of such folders.
        output: gets a folder for each model, number of frames and number format, with the files of write_results(), and
            one accuracy table over them if they are several: README.md, accuracy.csv and accuracy.tex.

    Raises:
        ResultsError: a folder is not there or has no finished cell.
    """
    names = [str(folder) for folder in folders]
    cells, unread = read_folders(names)
    command = shlex.join(["tango", "results", *names, "--output", str(output)])
    made = Report(remarks=list(unread))
    models: list[tuple[str, Rows, pd.DataFrame]] = []
    for found, group in sorted(grouped(cells, setting).items()):
        model, frames, dtype, times = found
        name = f"{model}_{frames}frame_{dtype}" + ("" if times == "processor" else f"_{times}_times")
        title = setting_text(found)
        folder = Path(output) / folder_name(name)
        if folder in {file.parent for file in made.files}:  # of another model, called alike but for odd letters
            folder = Path(output) / f"{folder.name}-{digest(name)}"
        one = write_results(group, folder, command, unread, title)
        made.files += one.files
        made.remarks += [remark for remark in one.remarks if remark not in made.remarks]
        made.summaries += one.summaries
        rows, _ = arrange(group)
        models.append((title, rows, tables.accuracy_table(rows)))
    if len(models) > 1:
        shown = layout.shown_models(models)
        lines = layout.origin(cells, command)
        parts = ["# All models", "\n".join(f"- {line}" for line in lines), layout.markdown(shown)]
        texts = {"README.md": "\n\n".join([*parts, ""]), "accuracy.csv": layout.csv(shown, lines)}
        made.files += _write(Path(output), texts | {"accuracy.tex": layout.latex(shown, lines)})
        named = shown.assign(**{"": shown["model"] + ": " + shown[""]})
        made.summaries.append(layout.accuracy_summary(named.drop(columns=["model", layout.SHARE])))
    return made


def folder_name(name: str) -> str:
    """A name as that of a folder: of letters, digits, dots and hyphens, and no longer than file systems let it be."""
    short = re.sub(r"[^\w.-]+", "-", name)
    return short if len(short.encode()) <= LONGEST else f"{short[: LONGEST // 4]}-{digest(name)}"


def write_results(
    cells: Sequence[Cell], output: str | Path, command: str, missing: Sequence[str] = (), title: str = "Results"
) -> Report:
    """Write the tables and plots of one model into a folder.

    README.md with all of it; accuracy, efficiency and published as .csv and .tex; benchmarks, kinds, comparisons and
    agreement as .csv; accuracy, time and parts as .png. Tables that would be empty are not written.

    Args:
        cells: finished cells of one model, number of frames and dtype. command: what makes these files again.
        missing: what has no result, for the remarks.

    Raises:
        ResultsError: no cells, or cells of several models, numbers of frames or dtypes.
    """
    rows, remarks = arrange(cells)
    remarks = [*missing, *remarks, *_busy(rows), *_apart(rows)]
    lines = layout.origin(rows.cells, command)
    frames = {
        "accuracy": tables.accuracy_table(rows),
        "benchmarks": tables.benchmark_table(rows),
        "kinds": tables.kind_table(rows),
        "comparisons": tables.comparison_table(rows),
        "agreement": tables.agreement_table(rows),
        "efficiency": tables.efficiency_table(rows),
        "published": tables.published_table(rows),
    }
    shown = {
        "accuracy": layout.shown_accuracy(rows, frames["accuracy"]),
        "efficiency": layout.shown_efficiency(rows, frames["efficiency"]),
        "published": layout.shown_published(rows, frames["published"]),
    }
    texts = {f"{name}.csv": "" if frame.empty else layout.csv(frame, lines) for name, frame in frames.items()}
    texts |= {f"{name}.tex": "" if frame.empty else layout.latex(frame, lines) for name, frame in shown.items()}
    texts["README.md"] = _readme(rows, frames, shown, lines, remarks, title)
    narrow = layout.shown_accuracy(rows, frames["accuracy"], narrow=True)
    made = Report(remarks, [layout.accuracy_summary(narrow), layout.efficiency_summary(rows)])
    made.files = [*_write(Path(output), texts), *plot_all(rows, frames, Path(output), title, lines)]
    return made


def _write(folder: Path, texts: Mapping[str, str]) -> list[Path]:
    """Write files into a folder; those without a text are removed, of an earlier run that had what this one lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        if text:
            write_whole(folder / name, text)
        else:
            (folder / name).unlink(missing_ok=True)
    return [folder / name for name, text in texts.items() if text]


def _readme(
    rows: Rows,
    frames: Mapping[str, pd.DataFrame],
    shown: Mapping[str, pd.DataFrame],
    lines: Sequence[str],
    remarks: Sequence[str],
    title: str,
) -> str:
    asked = frames["benchmarks"].drop_duplicates("benchmark").set_index("benchmark")["questions"]
    names = rows.benchmarks
    parts = [
        f"# {markdown_text(title)}",
        markdown_items(lines),
        f"Accuracy over {', '.join(f'{asked[name]} questions of {markdown_text(name)}' for name in names)}, with "
        f"Wilson's intervals; share kept and difference are against the unpruned "
        f"{'average' if len(names) > 1 else 'accuracy'} in the same framework, with intervals of the paired bootstrap, "
        "question by question. All intervals are of 95 %; n is the number of questions.",
        layout.markdown(shown["accuracy"]),
        "![accuracy against tokens kept](accuracy.png)",
        "![accuracy against time to first token](time.png)",
    ]
    if remarks:
        parts.append(f"**Left out, or to be noted:**\n\n{markdown_items(remarks)}")
    for name in names:
        by_kind = layout.shown_kinds(rows, frames["benchmarks"], frames["kinds"], name)
        parts += [f"## {markdown_text(name)} by kind of question", layout.markdown(by_kind)]
    parts += _agreement(frames["agreement"]) + _verdicts(frames["comparisons"])
    parts += ["## Efficiency", layout.markdown(shown["efficiency"]), *_efficiency_notes(rows, frames["efficiency"])]
    if not shown["published"].empty:
        sources = dict.fromkeys(frames["published"]["source"])
        parts += [
            "## Beside published figures",
            f"Published by {markdown_text('; '.join(sources))}, on other machines: to be read beside what was measured "
            "here, not reckoned with it.",
            layout.markdown(shown["published"]),
        ]
    return "\n\n".join(parts) + "\n"


def _busy(rows: Rows) -> list[str]:
    """Which cells ran while others took part of their machine; of many the first two, efficiency.csv has all."""
    found = [
        f"{row.name} on {name} in {row.framework} ({load_text(load)})"
        for name, row, cell in rows.by_benchmark()
        if (load := cell["provenance"].get("load")) and busy(load)
    ]
    more = f", and {len(found) - 2} more cells, see load_waited in efficiency.csv" if len(found) > 2 else ""
    return [f"ran on a busy machine, so that times say little: {', '.join(found[:2])}{more}"] if found else []


def _apart(rows: Rows) -> list[str]:
    """Where two frameworks took very different times for the same on the same machine."""
    said = []
    for name, row, cell in rows.by_benchmark():
        for other in rows[rows.index(row) + 1 :]:
            twin = other.cells.get(name) if other.what == row.what else None
            times = [one["efficiency"]["Avg_Total_TTFT"] for one in (cell, twin) if one is not None]
            if twin is None or machine(cell) != machine(twin) or not all(times) or max(times) <= APART * min(times):
                continue
            said.append(
                f"{row.name} on {name}: {row.framework} took {times[0]:.0f} ms to the first token, {other.framework} "
                f"{times[1]:.0f} ms on the same machine, so one of them was disturbed or did something else"
            )
    return said


def _agreement(frame: pd.DataFrame) -> list[str]:
    """Whether frameworks made the same of the same questions, counted."""
    if frame.empty:
        return []
    said = []
    for row in frame.to_dict("records"):
        what = f"{row['name']} on {row['benchmark']}"
        if not row["questions"]:
            said.append(f"{what}: no question has the same id in both, so they are not compared")
            continue
        kept = "unknown" if pd.isna(row["kept_differ"]) else row["kept_differ"]
        said.append(
            f"{what}: of {row['questions']} questions, {row['answers_differ']} answers, {row['scores_differ']} "
            f"scores and the kept tokens of {kept} differ"
            + (f"; {row['only_one']} questions were asked in one of them only" if row["only_one"] else "")
        )
    counts = frame[["answers_differ", "scores_differ", "kept_differ", "only_one"]].fillna(1)
    same = bool((counts == 0).all(axis=None)) and bool((frame["questions"] > 0).all())
    both = markdown_text(frame["frameworks"].iloc[0].replace(",", " and"))
    verdict = (
        f"**{both} gave the same answers and scores and kept the same tokens, sample by sample,** in all {len(frame)} "
        "cells that both ran."
        if same
        else "**Not the same in every sample, or not known to be:**"
    )
    return ["## Both frameworks", verdict, markdown_items(said)]


def _verdicts(frame: pd.DataFrame) -> list[str]:
    """What the comparison with the baselines says, in words, whichever way it went."""
    if frame.empty:
        return []
    said = []
    for row in frame.to_dict("records"):
        interval = Interval(row["difference"], row["difference_low"], row["difference_high"]).text(signed=True)
        kept = f"{row['tokens_kept_tango']:.1f} % of the tokens kept against {row['tokens_kept_baseline']:.1f} %"
        against = row["against"] + (f" in {row['framework']}" if frame["framework"].nunique() > 1 else "")
        n = f"n = {row['questions']}"
        said.append(f"against {against}: {interval} points ({kept}): Tango is {row['Tango is']} ({n})")
    return ["## Tango against baselines at the same retention ratio", markdown_items(said)]


def _efficiency_notes(rows: Rows, frame: pd.DataFrame) -> list[str]:
    cold = sum(int(cell["efficiency"]["cold_samples"]) for cell in rows.cells)
    lacking = frame[frame["Total_runtime speed-up"].isna()]
    named = lacking["name"] + " on " + lacking["benchmark"]
    without = markdown_text(", ".join(named + " in " + lacking["framework"] if len(rows.frameworks) > 1 else named))
    return [
        "![parts of the time to first token](parts.png)",
        markdown_items(f"{name}: {meaning}" for name, (_, meaning) in TITLES.items()),
        f"There is no warm-up run; the first sample of each process ({cold} in all) is not in the averages. Speed-ups "
        "are against the unpruned model in the same framework on the same machine, never across machines"
        + (f"; nothing of that kind for {without}." if without else ".")
        + f" ± is the standard deviation over samples. {_load(rows)}",
    ]


def _load(rows: Rows) -> str:
    """How busy the machines were, over all cells that noted it."""
    noted = [load for _, _, cell in rows.by_benchmark() if (load := cell["provenance"].get("load"))]
    if not noted:
        return "How busy the machine was beside it was not noted."
    ends = [load[end] for load in noted for end in ("start", "end") if load[end] is not None]
    waited = [load["waited"] for load in noted if load["waited"] is not None]
    cores = " or ".join(map(str, sorted({load["cores"] for load in noted})))
    between = f"{min(ends):.1f} to {max(ends):.1f}" if ends else "unknown"
    return f"The system's load at the start and end of cells was {between} on {cores} cores" + (
        f", and they waited for a core for up to {100 * max(waited):.0f} % of their time." if waited else "."
    )
