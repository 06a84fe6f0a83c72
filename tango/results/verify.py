"""Makes the numbers of results again from their samples, and names what does not agree.

From the records of a run and what its framework logged follow the rows, tokens and times of its cell.json; from these
the numbers of tables. Numbers without samples beside them are counted apart: they are neither right nor wrong.
"""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path

from tango.inference.files import DAMAGED, regular
from tango.results import claims, layout
from tango.results.cells import Cell, ResultsError, Rows, arrange, grouped, setting, setting_text
from tango.results.claims import NUMBER, Finding, Lines, Outcome, made_by, read_csv, read_latex, read_markdown
from tango.results.escaping import markdown_items, plain
from tango.results.follow import verify_run
from tango.results.recount import KEYS, Table, recount
from tango.results.samples import named, runs_below, unpacked
from tango.results.tables import published_figures
from tango.runs.summary import TITLES, WITH_UNITS

NO_SAMPLES = "no samples are beside it"


def verify(folders: Iterable[str | Path]) -> Outcome:
    """Check all cells of sweeps, and all tables, in some folders.

    Tables are checked against the samples beside them (tango.results.samples), or the cells of the folders that they
    name as those they were made of, if these are there, else against the cells in `folders`.

    Raises:
        ResultsError: a folder is not there, or holds neither cells nor tables.
    """
    places = list(map(Path, folders))
    for folder in places:
        if not folder.is_dir():
            raise ResultsError(f"there is no folder {str(folder)!r}")
    with unpacked(places) as samples:
        outcome = _Check().all_of(places, samples)
        for found in (outcome.differ, outcome.unchecked):
            found[:] = [Finding(*(named(text, samples) for text in astuple(one))) for one in found]
        outcome.notes[:] = [named(note, samples) for note in outcome.notes]
    return outcome


class _Check:
    """outcome: what was found so far. known: each run that was checked, as its samples have it, None without a cell."""

    def __init__(self) -> None:
        self.outcome = Outcome()
        self.known: dict[Path, Cell | None] = {}

    def all_of(self, places: Sequence[Path], samples: Mapping[Path, Path]) -> Outcome:
        """All cells and tables in some folders. samples: of tango.results.samples.unpacked()."""
        cells = [cell for folder in places for cell in self.cells_below(folder)]
        beside = {home: self.cells_below(folder) for home, folder in samples.items()}
        tables = list(dict.fromkeys(table for folder in places for table in table_folders(folder)))
        others = list(dict.fromkeys(file for folder in places for file in other_tables(folder, tables)))
        if not (self.known or tables or others):
            raise ResultsError(f"there are neither cells nor tables below {', '.join(map(repr, map(str, places)))}")
        for folder in tables:
            try:
                self.tables(folder, cells, beside.get(folder, ()))
            except DAMAGED as error:
                self.outcome.differs(folder, "the tables", "cannot be read", repr(error))
        for file in others:
            texts = [text for _, lines in read_markdown(file) for line in lines for text in line.values()]
            count = sum(len(NUMBER.findall(text)) for text in texts if re.match(r"[-+]?\d", text))  # not those in names
            self.cannot(file, count, made_by(file.read_text(encoding="utf-8", errors="replace")))
        return self.outcome

    def cells_below(self, folder: Path) -> list[Cell]:
        """The finished cells below a folder, as their samples have them; each is checked once."""
        runs = list(runs_below(folder))
        for run in runs:
            if run.where not in self.known:
                self.known[run.where] = verify_run(run, self.outcome)
        return [cell for run in runs if (cell := self.known[run.where]) is not None]

    def cannot(self, file: Path, count: int, command: str) -> None:
        """Note how many numbers of a file, or of a folder's CSV files, cannot be checked, and what makes them again."""
        if count:
            made = f"made by: {command}" if command else "it names no command that makes them"
            self.outcome.unknown(file, f"{count} numbers", "", f"{NO_SAMPLES}; {made}")

    def tables(self, folder: Path, cells: Sequence[Cell], beside: Sequence[Cell]) -> None:
        """A folder of tables against the cells it was made of, or without them against itself."""
        files = [file for name in KEYS if (file := folder / f"{name}.csv").is_file()]
        sheets = {file.stem: read_csv(file) for file in files}
        comment, lines = sheets[files[0].stem]
        named_ones = [cell for source in sources(comment, folder) for cell in self.cells_below(source)]
        own = beside or named_ones or cells
        if lines and "model" in lines[0]:
            self.all_models(folder, comment, own)
            return
        tables = {name: claims.as_numbers(sheets[name][1], KEYS[name]) if name in sheets else {} for name in KEYS}
        if used := [cell for cell in own if belongs(cell, comment)]:
            rows, remarks = arrange(used)
            self.outcome.notes += [f"{folder}: {remark}" for remark in remarks]
            expected = recount(rows)
            expected["published"] = _published(tables["published"], expected)
            self.against_cells(folder, {name: lines for name, (_, lines) in sheets.items()}, comment, rows, expected)
        else:
            self.against_itself(folder, tables, comment)
        if plots := sorted(file.name for file in folder.glob("*.png")):
            self.outcome.notes.append(f"{folder}: {', '.join(plots)} are drawings, and not looked at")

    def all_models(self, folder: Path, comment: str, cells: Sequence[Cell]) -> None:
        """The table over several models, in its three formats."""
        groups = grouped(cells, lambda cell: setting_text(setting(cell)))
        expected = {title: recount(arrange(group)[0]) for title, group in groups.items()}
        every = {key[0] for tables in expected.values() for key in tables["benchmarks"]}
        shown = [(folder / "accuracy.csv", read_csv(folder / "accuracy.csv")[1])]
        shown += [(folder / "README.md", lines) for _, lines in read_markdown(folder / "README.md")]
        shown += [(folder / "accuracy.tex", read_latex(folder / "accuracy.tex"))]
        for file, lines in shown:
            written = claims.WRITTEN[file.suffix]
            left = {(title, *key) for title, tables in expected.items() for key in tables["accuracy"]}
            for line in lines:
                of = next((title for title in expected if written(title) == line["model"]), None)
                if of is None:
                    self.cannot(file, len(line), f"{made_by(comment)} ({line['model']})")
                    continue
                values = dict.fromkeys(every) | claims.shown_line(expected[of], "accuracy", file, line)
                if {key[0] for key in expected[of]["benchmarks"]} != every:
                    values |= {"average": None, layout.SHARE: None}
                claims.hold_line(self.outcome, file, line, values, 0.0)
                within = line.get("framework")  # not named where there is one only
                left -= {
                    (title, framework, name)
                    for title, framework, name in left
                    if (title, written(name)) == (of, line[""]) and within in (None, written(framework))
                }
            for key in sorted(left):
                self.outcome.differs(file, ", ".join(key), "nothing", "a finished cell")

    def against_cells(
        self, folder: Path, sheets: Mapping[str, Lines], comment: str, rows: Rows, expected: Mapping[str, Table]
    ) -> None:
        """Tables against the numbers that cells give, with where they come from."""
        files = {name: folder / f"{name}.csv" for name in sheets}
        origin = layout.origin(rows.cells, made_by(comment))
        for file in [*files.values(), *regular(folder, "*.tex"), *regular(folder, "README.md")]:
            lines = [line[2:] for line in file.read_text(encoding="utf-8").split("\n")[:8]]
            for line in origin[1:]:
                name = line.partition(":")[0]
                should = markdown_items([line])[2:] if file.suffix == ".md" else plain(line)
                says = next((one for one in lines if one.startswith(f"{name}: ")), "nothing")
                what = "where it comes from: " + ("device, and when its cells ran" if name == "device" else name)
                self.outcome.hold(file, what, says, should)
        for name, file in files.items():
            claims.hold_csv(self.outcome, file, sheets[name], expected[name])
        for name, table in expected.items():
            if table and name not in sheets:
                self.outcome.differs(folder / f"{name}.csv", "the file", "is missing", f"{len(table)} lines")
        claims.hold_shown(self.outcome, folder, expected)
        claims.hold_sentences(
            self.outcome, folder, expected, sum(cell["efficiency"]["cold_samples"] for cell in rows.cells)
        )

    def against_itself(self, folder: Path, tables: Mapping[str, Table], comment: str) -> None:
        """Tables without cells, which cannot be checked, but follow in part from one another."""
        numbers = [value for table in tables.values() for line in table.values() for value in line.values()]
        self.cannot(folder, sum(isinstance(value, float) for value in numbers), made_by(comment))
        before = self.outcome.agree + len(self.outcome.differ)
        claims.hold_one_another(self.outcome, folder, tables)
        claims.hold_shown(self.outcome, folder, tables, claims.ROUNDED)
        claims.hold_sentences(self.outcome, folder, tables)
        within = self.outcome.agree + len(self.outcome.differ) - before
        self.outcome.notes.append(
            f"{folder}: {NO_SAMPLES}; {within} of its numbers were held against one another instead"
        )


def table_folders(folder: Path) -> list[Path]:
    """Folders of tables that tango.results.report wrote."""
    found = (file for name in KEYS for file in regular(folder, f"**/{name}.csv") if "cells" not in file.parts)
    return sorted({file.parent for file in found if file.read_bytes().startswith(b"# made by: ")})


def other_tables(folder: Path, tables: Sequence[Path]) -> list[Path]:
    """Markdown files with a table that is not of tango.results.report, whether they say what made them or not."""
    found = (file for file in regular(folder, "**/*.md") if "cells" not in file.parts)
    found = (file for file in found if not (file.name == "README.md" and file.parent in tables))
    return [file for file in found if any(read_markdown(file))]


def sources(comment: str, folder: Path) -> list[Path]:
    """The folders that tables were made of, those that are there: `made by: tango results FOLDER.. --output ..`."""
    words = shlex.split(made_by(comment))
    if words[:2] != ["tango", "results"]:
        return []
    names = words[2 : words.index("--output")] if "--output" in words else words[2:]
    bases = [Path.cwd(), *folder.resolve().parents]
    found = (next((base / name for base in bases if (base / name).is_dir()), None) for name in names)
    return [place for place in found if place is not None]


def belongs(cell: Cell, comment: str) -> bool:
    """Whether a cell is of the model, number format, frames and times that tables are of."""
    name, frames, dtype, times = setting(cell)
    found = re.search(r"^model: (.+) in (\S+), (\d+) frames(?:.*; times: (\w+))?", comment, re.MULTILINE)
    return found is not None and (
        name in [Path(part).name for part in found[1].split("; ")]
        and (found[2], int(found[3]), found[4] or "processor") == (dtype, frames, times)
    )


def _published(stated: Table, expected: Mapping[str, Table]) -> Table:
    """Lines of published.csv as they should be: what was measured, and the figures that this package has."""
    figures = {(entry["benchmark"], entry["label"], quantity): figure for entry in published_figures()
               for quantity, figure in entry["figures"].items()}  # fmt: skip
    found: Table = {}
    for benchmark, name, quantity in stated:
        table, column = ("efficiency", WITH_UNITS[quantity]) if quantity in TITLES else ("benchmarks", quantity)
        found[benchmark, name, quantity] = {"published": figures.get((benchmark, name, quantity))} | {
            framework: expected[table].get((benchmark, framework, name), {}).get(column)
            for framework in {key[0] for key in expected["accuracy"]}
        }
    return found
