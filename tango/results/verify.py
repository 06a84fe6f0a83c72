"""Makes the numbers of results again from their samples, and names what does not agree.

From the records of a run and what its framework logged follow the rows, tokens and times of its cell.json; from these
the numbers of tables. Numbers without samples beside them are counted apart: they are neither right nor wrong.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from tango.inference.files import DAMAGED, regular
from tango.results import layout, recount
from tango.results.cells import Cell, ResultsError, arrange, cell_folders, label, run_by_hand, setting, setting_text
from tango.results.claims import (
    NUMBER,
    ROUNDED,
    Finding,
    Outcome,
    as_numbers,
    hold_csv,
    hold_line,
    hold_one_another,
    hold_sentences,
    hold_shown,
    read_csv,
    read_latex,
    read_markdown,
    shown_line,
)
from tango.results.escaping import latex_text, markdown_items, markdown_text, plain
from tango.results.follow import verify_cell, verify_run
from tango.results.recount import KEYS, Table
from tango.results.samples import named, unpacked
from tango.runs.summary import TITLES, WITH_UNITS

NO_SAMPLES = "no samples are beside it"


def verify(folders: Iterable[str | Path]) -> Outcome:
    """Check all cells of sweeps, and all tables, in some folders.

    Tables are checked against the samples beside them (tango.results.samples), or the cells of the folders that they
    name as those they were made of, if these are there, else against the cells in `folders`.

    Raises:
        ResultsError: a folder is not there, or holds neither cells nor tables.
    """
    outcome = Outcome()
    known: dict[Path, Cell | None] = {}
    places = [Path(folder) for folder in folders]
    for folder in places:
        if not folder.is_dir():
            raise ResultsError(f"there is no folder {str(folder)!r}")
    with unpacked(places) as samples:
        _verify(places, samples, outcome, known)
        for found in (outcome.differ, outcome.unchecked):
            found[:] = [Finding(*(named(text, samples) for text in astuple(one))) for one in found]
        outcome.notes[:] = [named(note, samples) for note in outcome.notes]
    return outcome


def _verify(
    places: Sequence[Path], samples: Mapping[Path, Path], outcome: Outcome, known: dict[Path, Cell | None]
) -> None:
    cells = [cell for folder in places for cell in cells_below(folder, outcome, known)]
    beside = {home: cells_below(folder, outcome, known) for home, folder in samples.items()}
    tables = list(dict.fromkeys(table for folder in places for table in table_folders(folder)))
    others = list(dict.fromkeys(file for folder in places for file in other_tables(folder, tables)))
    if not (known or tables or others):
        raise ResultsError(f"there are neither cells nor tables below {', '.join(map(repr, map(str, places)))}")
    for folder in tables:
        try:
            verify_tables(folder, outcome, cells, known, beside.get(folder, ()))
        except DAMAGED as error:
            outcome.differs(folder, "the tables", "cannot be read", repr(error))
    for file in others:
        texts = [text for _, rows in read_markdown(file) for row in rows for text in row.values()]
        count = sum(len(NUMBER.findall(text)) for text in texts if re.match(r"[-+]?\d", text))  # not those in names
        cannot(outcome, file, count, made_by(file.read_text(encoding="utf-8", errors="replace")))


def cells_below(folder: Path, outcome: Outcome, known: dict[Path, Cell | None]) -> list[Cell]:
    """The finished cells below a folder, as their samples have them; each is checked once."""
    unread: list[str] = []
    here = []
    for place in cell_folders(folder, unread):
        if (where := place.resolve()) not in known:
            known[where] = verify_cell(place, outcome)
        here.append(where)
    for file, made in run_by_hand(folder, unread):
        where = file.resolve() / made["cell"]["benchmark"]  # of several in one file
        if where not in known:
            known[where] = verify_run(file, made, outcome)
        here.append(where)
    for reason in unread:
        outcome.differs(reason.partition(": ")[0], "it", "cannot be read", reason)
    return [cell for where in here if (cell := known[where]) is not None]


def table_folders(folder: Path) -> list[Path]:
    """Folders of tables that tango.results.report wrote."""
    found = (file for name in KEYS for file in regular(folder, f"**/{name}.csv") if "cells" not in file.parts)
    ours = (file.parent for file in found if file.read_bytes().startswith(b"# made by: "))
    return sorted(set(ours))


def other_tables(folder: Path, tables: Sequence[Path]) -> list[Path]:
    """Markdown files with a table that is not of tango.results.report, whether they say what made them or not."""
    found = (file for file in regular(folder, "**/*.md") if "cells" not in file.parts)
    found = (file for file in found if not (file.name == "README.md" and file.parent in tables))
    return [file for file in found if any(read_markdown(file))]


def made_by(text: str) -> str:
    """The command that a file names as the one that makes it; empty without."""
    found = re.search(r"^(?:[-#%] |.*\. )?made by:? (.+)$", text, re.MULTILINE | re.IGNORECASE)
    return found[1] if found else ""


def cannot(outcome: Outcome, file: Path, count: int, command: str) -> None:
    """Note how many numbers of a file, or of a folder's CSV files, cannot be checked, and what makes them again."""
    if count:
        made = f"made by: {command}" if command else "it names no command that makes them"
        outcome.unknown(file, f"{count} numbers", "", f"{NO_SAMPLES}; {made}")


def verify_tables(
    folder: Path, outcome: Outcome, cells: Sequence[Cell], known: dict[Path, Cell | None], beside: Sequence[Cell] = ()
) -> None:
    """Check a folder of tables against the cells it was made of, or without them against itself."""
    sheets = {name: file for name in KEYS if (file := folder / f"{name}.csv").is_file()}
    comment, lines = read_csv(next(iter(sheets.values())))
    named_ones = [cell for source in sources(comment, folder) for cell in cells_below(source, outcome, known)]
    own = beside or named_ones or cells
    if lines and "model" in lines[0]:
        _all_models(folder, comment, own, outcome)
        return
    used = [cell for cell in own if belongs(cell, comment)]
    tables = {name: as_numbers(read_csv(sheets[name])[1] if name in sheets else [], KEYS[name]) for name in KEYS}
    if used:
        _against_cells(folder, sheets, comment, used, outcome)
    else:
        _against_itself(folder, sheets, comment, tables, outcome)
    plots = sorted(file.name for file in folder.glob("*.png"))
    if plots:
        outcome.notes.append(f"{folder}: {', '.join(plots)} are drawings, and not looked at")


def _all_models(folder: Path, comment: Sequence[str], cells: Sequence[Cell], outcome: Outcome) -> None:
    """The table over several models, in its three formats."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(setting_text(setting(cell)), []).append(cell)
    expected = {title: recount.recount(arrange(group)[0]) for title, group in groups.items()}
    every = {key[0] for tables in expected.values() for key in tables["benchmarks"]}
    shown = [(folder / "accuracy.csv", read_csv(folder / "accuracy.csv")[1], plain)]
    shown += [(folder / "README.md", rows, markdown_text) for _, rows in read_markdown(folder / "README.md")]
    shown += [(folder / "accuracy.tex", read_latex(folder / "accuracy.tex"), latex_text)]
    for file, rows, written in shown:
        left = {(title, *key) for title, tables in expected.items() for key in tables["accuracy"]}
        for row in rows:
            of = next((title for title in expected if written(title) == row["model"]), None)
            if of is None:
                cannot(outcome, file, len(row), f"{made_by(chr(10).join(comment))} ({row['model']})")
                continue
            tables = expected[of]
            values = shown_line(tables, "accuracy", row, "", written)
            if {key[0] for key in tables["benchmarks"]} != every:
                values |= {"average": None, layout.SHARE: None}
            values = dict.fromkeys(every) | values
            hold_line(outcome, file, row, {written(column): value for column, value in values.items()}, 0.0)
            within = row.get("framework")  # not named where there is one only
            left -= {
                key for key in left if (key[0], written(key[2])) == (of, row[""]) and within in (None, written(key[1]))
            }
        for key in sorted(left):
            outcome.differs(file, ", ".join(key), "nothing", "a finished cell")


def sources(comment: Sequence[str], folder: Path) -> list[Path]:
    """The folders that tables were made of, those that are there: `made by: tango results FOLDER.. --output ..`."""
    words = shlex.split(made_by("\n".join(comment)))
    if words[:2] != ["tango", "results"]:
        return []
    names = words[2 : words.index("--output")] if "--output" in words else words[2:]
    bases = [Path.cwd(), *folder.resolve().parents]
    found = (next((base / name for base in bases if (base / name).is_dir()), None) for name in names)
    return [place for place in found if place is not None]


def belongs(cell: Cell, comment: Sequence[str]) -> bool:
    """Whether a cell is of the model, number format, frames and times that tables are of."""
    name, frames, dtype, times = setting(cell)
    line = next((line for line in comment if line.startswith("model: ")), "")
    found = re.match(r"model: (.+) in (\S+), (\d+) frames", line)
    kind = re.search(r"; times: (\w+)", line)
    return found is not None and (
        name in [Path(part).name for part in found[1].split("; ")]
        and (found[2], int(found[3]), kind[1] if kind else "processor") == (dtype, frames, times)
    )


def _against_cells(
    folder: Path, sheets: Mapping[str, Path], comment: Sequence[str], cells: Sequence[Cell], outcome: Outcome
) -> None:
    rows, remarks = arrange(cells)
    outcome.notes += [f"{folder}: {remark}" for remark in remarks]
    used = [cell for row in rows for cell in row.cells.values()]
    expected = recount.recount(rows)
    if "published" in sheets:
        expected["published"] = _published(as_numbers(read_csv(sheets["published"])[1], KEYS["published"]), expected)
    origin = layout.origin(used, made_by("\n".join(comment)))
    for file in [*sheets.values(), *regular(folder, "*.tex"), *regular(folder, "README.md")]:
        lines = [line[2:] for line in file.read_text(encoding="utf-8").split("\n")[:8]]
        for line in origin[1:]:
            name = line.partition(":")[0]
            should: str = markdown_items([line])[2:] if file.suffix == ".md" else plain(line)
            says = next((one for one in lines if one.startswith(f"{name}: ")), "nothing")
            what = "where it comes from: " + ("device, and when its cells ran" if name == "device" else name)
            outcome.hold(file, what, says, should)
    for name, file in sheets.items():
        hold_csv(outcome, file, expected[name])
    for name, table in expected.items():
        if table and name not in sheets:
            outcome.differs(folder / f"{name}.csv", "the file", "is missing", f"{len(table)} lines")
    hold_shown(outcome, folder, expected)
    if (folder / "README.md").is_file():
        cold = sum(int(cell["efficiency"]["cold_samples"]) for cell in used)
        hold_sentences(outcome, folder / "README.md", expected, cold)


def _published(table: Table, expected: Mapping[str, Table]) -> Table:
    """Lines of published.csv as they should be: what was measured, and the figures that this package has."""
    entries = yaml.safe_load(files("tango.results").joinpath("published.yaml").read_text(encoding="utf-8"))
    figures = {
        (
            entry["benchmark"],
            label({"cell": {"method": entry["method"], "ratio": entry["retention_ratio"]}}),
            name,
        ): figure
        for entry in entries
        for name, figure in entry["figures"].items()
    }
    found: Table = {}
    for benchmark, name, quantity in table:
        line: dict[str, Any] = {"published": figures.get((benchmark, name, quantity))}
        for framework in {key[0] for key in expected["accuracy"]}:
            key = (benchmark, framework, name)
            column = WITH_UNITS.get(quantity, quantity)
            line[framework] = expected["efficiency" if quantity in TITLES else "benchmarks"].get(key, {}).get(column)
        found[benchmark, name, quantity] = line
    return found


def _against_itself(
    folder: Path, sheets: Mapping[str, Path], comment: Sequence[str], tables: dict[str, Table], outcome: Outcome
) -> None:
    count = sum(
        isinstance(value, float) for name in sheets for line in tables[name].values() for value in line.values()
    )
    cannot(outcome, folder, count, made_by("\n".join(comment)))
    before = outcome.agree + len(outcome.differ)
    hold_one_another(outcome, folder, tables)
    hold_shown(outcome, folder, tables, ROUNDED)
    if (folder / "README.md").is_file():
        hold_sentences(outcome, folder / "README.md", tables)
    within = outcome.agree + len(outcome.differ) - before
    outcome.notes.append(f"{folder}: {NO_SAMPLES}; {within} of its numbers were held against one another instead")
