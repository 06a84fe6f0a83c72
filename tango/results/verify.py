"""Makes the numbers of results again from their samples, and names what does not agree.

From the records of a run and what its framework logged follow the rows, tokens and times of its cell.json; from these
the numbers of tables. Numbers without samples beside them are counted apart: they are neither right nor wrong.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from tango.results import layout, recount
from tango.results.cells import Cell, ResultsError, arrange, label, read_cell, setting
from tango.results.claims import (
    NUMBER,
    ROUNDED,
    Finding,
    Outcome,
    as_numbers,
    hold_csv,
    hold_one_another,
    hold_sentences,
    hold_shown,
    read_csv,
    read_markdown,
)
from tango.results.logged import Logged, lmms_rows, vlmeval_rows
from tango.results.recount import KEYS, Table
from tango.runs.journal import JournalError, read_journal
from tango.runs.provenance import code_fingerprint
from tango.runs.runner import Record
from tango.runs.summary import TITLES
from tango.sweeps.cells import EFFICIENCY
from tango.sweeps.lmms_cells import METRICS

LETTER = re.compile(r"[A-J]")
NO_SAMPLES = "no samples are beside it"


def verify(folders: Iterable[str | Path]) -> Outcome:
    """Check all cells of sweeps, and all tables, in some folders.

    Tables are checked against the cells of the folders that they name as those they were made of, if these are there,
    else against the cells in `folders`.

    Raises:
        ResultsError: a folder is not there, or holds neither cells nor tables.
    """
    outcome = Outcome()
    known: dict[Path, Cell | None] = {}
    places = [Path(folder) for folder in folders]
    for folder in places:
        if not folder.is_dir():
            raise ResultsError(f"there is no folder {str(folder)!r}")
    cells = [cell for folder in places for cell in cells_below(folder, outcome, known)]
    tables = list(dict.fromkeys(table for folder in places for table in table_folders(folder)))
    others = list(dict.fromkeys(file for folder in places for file in other_tables(folder, tables)))
    if not (known or tables or others):
        raise ResultsError(f"there are neither cells nor tables below {', '.join(map(repr, map(str, places)))}")
    for folder in tables:
        verify_tables(folder, outcome, cells, known)
    for file in others:
        texts = [text for _, rows in read_markdown(file) for row in rows for text in row.values()]
        count = sum(len(NUMBER.findall(text)) for text in texts)
        cannot(outcome, file, count, made_by(file.read_text(encoding="utf-8")))
    return outcome


def cells_below(folder: Path, outcome: Outcome, known: dict[Path, Cell | None]) -> list[Cell]:
    """The finished cells below a folder, as their samples have them; each is checked once."""
    for place in sorted(place for place in folder.glob("**/cells/*") if place.is_dir()):
        if (where := place.resolve()) not in known:
            known[where] = verify_cell(place, outcome)
    inside = folder.resolve()
    return [cell for place, cell in known.items() if cell is not None and place.is_relative_to(inside)]


def verify_cell(place: Path, outcome: Outcome) -> Cell | None:
    """Check a cell against its run's files; returns it with the rows and times that these give."""
    file = place / "cell.json"
    if not file.is_file():
        outcome.notes.append(f"{place}: not finished, or failed")
        return None
    try:
        cell = read_cell(file)
        identity = place / "identity"
        if identity.is_file():
            outcome.hold(identity, "fingerprint", identity.read_text(encoding="utf-8").strip(), cell.get("identity"))
        else:
            outcome.unchecked.append(Finding(str(file), "fingerprint", str(cell.get("identity")), "no file `identity`"))
        return _followed(file, cell, outcome)
    except ResultsError as error:
        outcome.differ.append(Finding(str(file), "the cell", "cannot be read", str(error)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, JournalError) as error:
        outcome.differ.append(Finding(str(file), "the cell", "its run's files cannot be read", repr(error)))
    return None


def _followed(file: Path, cell: Cell, outcome: Outcome) -> Cell:
    what, origin = cell["cell"], cell["provenance"]
    for name, says, gives in (
        ("method", what["method"], origin.get("method", what["method"])),
        ("ratio", what["ratio"], origin.get("settings", {}).get("retention_ratio", what["ratio"])),
    ):
        outcome.hold(file, f"{name}, against its own provenance", says, gives)
    if origin.get("code") != code_fingerprint():
        of = origin["versions"].get("tango", "?")
        outcome.notes.append(f"{file}: made by another code than this one (tango {of}), which is not run again here")
    found = sorted((file.parent / "run").glob(f"*/*{EFFICIENCY}"))
    if len(found) != 1:
        count = len(cell["samples"]) * len(cell["samples"][0]) + len(TITLES)
        why = "no records of a run" if not found else f"{len(found)} runs"
        outcome.unchecked.append(Finding(str(file), f"{count} values of rows and times", "", f"{why} beside them"))
        return cell
    summary = json.loads(found[0].read_text(encoding="utf-8"))
    records = summary["samples"]
    twice = [key for key, number in Counter(map(_who, records)).items() if number > 1]
    outcome.differ += [Finding(str(found[0]), f"sample {' '.join(map(str, key))}", "twice", "once") for key in twice]
    for name, gives in (("n_samples", len(records)), ("n_failed", sum(one["failure"] is not None for one in records))):
        outcome.hold(found[0], name, summary[name], gives)
    _journal(file.parent / "run" / "journal", found[0], origin["run"], records, outcome)
    for name, counted in (("tokens", recount.tokens(records)), ("efficiency", recount.times(records))):
        for key, value in counted.items():
            outcome.hold(found[0], f"{name}: {key}", summary[name].get(key), value)
            outcome.hold(file, f"{name}: {key}", cell[name].get(key), value)
    for key, value in summary.items():
        if key not in ("samples", "efficiency", "tokens"):
            outcome.hold(file, f"provenance: {key}", origin.get(key), value)
    logged = list(lmms_rows(found[0]) if what["framework"] == "lmms-eval" else vlmeval_rows(found[0], records))
    rows = _rows(file, cell, found[0], records, logged, outcome)
    if what["framework"] == "lmms-eval" and "reported" in cell:
        _reported(file, cell, found[0], logged, outcome)
    return {**cell, "samples": rows or cell["samples"], "efficiency": {**cell["efficiency"], **recount.times(records)}}


def _who(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return record["task"], record["doc_id"], record["repeat"]


def _journal(folder: Path, file: Path, run: str, records: Sequence[Mapping[str, Any]], outcome: Outcome) -> None:
    """Records are those that the journal holds, field by field."""
    if not folder.is_dir():
        outcome.unchecked.append(Finding(str(file), f"{len(records)} records", "", "no journal is beside them"))
        return
    written: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for journal in sorted(folder.glob(f"{run}-rank*.jsonl")):
        for entry in read_journal(journal).values():
            written.setdefault(_who(entry), []).append(entry)
    if not written:
        there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        outcome.differ.append(Finding(str(folder), "journal of the run", there, f"{run}-rank0.jsonl"))
        return
    names = sorted(Record.__dataclass_fields__.keys() - {"resumed"})
    for record in records:
        entries = written.get(_who(record), [])
        where = f"sample {record['task']} {record['doc_id']}"
        if not entries:
            outcome.differ.append(Finding(str(folder), where, "missing", f"a record in {file.name}"))
            continue
        # Of several (a prompt that changed, a failure before) it is the one that is most like it.
        entry = max(entries, key=lambda one: sum(one.get(name) == record.get(name) for name in names))
        for name in names:
            outcome.hold(file, f"{where}: {name}, against the journal", record.get(name), entry.get(name))


def _rows(
    file: Path, cell: Cell, records_file: Path, records: Sequence[Any], logged: Sequence[Logged], outcome: Outcome
) -> list[dict[str, Any]]:
    """The rows that a run's files give, with which those of the cell are compared."""
    made: dict[str, dict[str, Any]] = {}
    left = {(record["task"], record["doc_id"]): record for record in records if record["failure"] is None}
    tasks = {record["task"] for record in records}
    for one in logged:
        row = one.row
        keys = [(task, one.doc_id) for task in tasks if one.task in (None, task)]
        key = next((key for key in keys if key in left), None)
        where = f"sample {row['id']}"
        if row["id"] in made:
            outcome.differ.append(Finding(str(one.file), where, "twice", "once"))
            continue
        if key is None:
            outcome.differ.append(Finding(str(one.file), where, "a score", f"no record in {records_file.name}"))
            continue
        record = left.pop(key)
        if all(isinstance(row[side], str) and LETTER.fullmatch(row[side]) for side in ("prediction", "answer")):
            outcome.hold(one.file, f"{where}: score", row["score"], float(row["prediction"] == row["answer"]))
        if isinstance(one.reply, str) and isinstance(record["response"], str):
            outcome.hold(one.file, f"{where}: reply", *map(_plain, (one.reply, record["response"])))
        for name, count in one.tokens.items():
            outcome.hold(one.file, f"{where}: {name}", count, record["tokens"].get(name, count))
        for when in ("before", "after"):
            videos = sum(video[f"tokens_{when}"] for video in record["videos"])
            outcome.hold(records_file, f"{where}: tokens {when}", record["tokens"][f"video_tokens_{when}"], videos)
        tokens = {
            f"tokens_{which}": record["tokens"][f"video_tokens_{which}"] for which in ("before", "after", "average")
        }
        made[row["id"]] = row | tokens | {"kept": [video.get("kept") for video in record["videos"]]}
    for task, doc_id in left:
        name = logged[0].file.name if logged else "the framework's log"
        outcome.differ.append(Finding(str(records_file), f"sample {task} {doc_id}", "a record", f"none in {name}"))
    there = {str(row["id"]): row for row in cell["samples"]}
    for name in sorted(there.keys() ^ made.keys()):
        says, gives = ("nothing", "a row") if name in made else ("a row", "no such sample")
        outcome.differ.append(Finding(str(file), f"sample {name}", says, gives))
    for name in sorted(there.keys() & made.keys()):
        for column, value in made[name].items():
            outcome.hold(file, f"sample {name}: {column}", there[name].get(column), value)
    return sorted(made.values(), key=lambda row: str(row["id"]))


def _plain(text: str) -> str:
    """Without what sheets cannot hold, and white space at the ends."""
    return re.sub(r"[\x00-\x08\x0b-\x1f]|_x000[0-9A-F]_", "", text).strip()


def _reported(file: Path, cell: Cell, records: Path, logged: Sequence[Logged], outcome: Outcome) -> None:
    """The score that lmms-eval itself came to: that of its file, and the share of right answers where it is one."""
    results = records.with_name(records.name.replace(EFFICIENCY, "_results.json"))
    own = json.loads(results.read_text(encoding="utf-8"))["results"]
    shares = []
    for task in dict.fromkeys(one.task for one in logged):
        of_task = [one for one in logged if one.task == task]
        name, percent = of_task[0].metric, METRICS[of_task[0].metric].percent
        shares.append(own[task][f"{name},none"] * (1 if percent else 100))
        counted = recount.percent_right([one.row for one in of_task])
        if name == "accuracy":
            outcome.hold(results, f"{task}: {name}", shares[-1], counted)
        elif abs(shares[-1] - counted) > 1e-6:
            outcome.notes.append(f"{results}: {task}: lmms-eval weighs questions otherwise ({shares[-1]:.2f} %)")
    outcome.hold(file, "reported, against lmms-eval's results", cell["reported"], sum(shares) / len(shares))


def table_folders(folder: Path) -> list[Path]:
    """Folders of tables that tango.results.report wrote."""
    found = (file for name in KEYS for file in folder.rglob(f"{name}.csv") if "cells" not in file.parts)
    ours = (file.parent for file in found if file.read_bytes().startswith(b"# made by: "))
    return sorted(set(ours))


def other_tables(folder: Path, tables: Sequence[Path]) -> list[Path]:
    """Markdown files that say by which command they were made, and are not of tango.results.report."""
    found = (file for file in sorted(folder.rglob("*.md")) if "cells" not in file.parts and file.parent not in tables)
    return [file for file in found if made_by(file.read_text(encoding="utf-8", errors="replace"))]


def made_by(text: str) -> str:
    """The command that a file names as the one that makes it; empty without."""
    found = re.search(r"^(?:[-#%] )?made by:? (.+)$", text, re.MULTILINE | re.IGNORECASE)
    return found[1] if found else ""


def cannot(outcome: Outcome, file: Path, count: int, command: str) -> None:
    """Note how many numbers of a file, or of a folder's CSV files, cannot be checked, and what makes them again."""
    if count:
        outcome.unchecked.append(Finding(str(file), f"{count} numbers", "", f"{NO_SAMPLES}; made by: {command}"))


def verify_tables(folder: Path, outcome: Outcome, cells: Sequence[Cell], known: dict[Path, Cell | None]) -> None:
    """Check a folder of tables against the cells it was made of, or without them against itself."""
    sheets = {name: file for name in KEYS if (file := folder / f"{name}.csv").is_file()}
    try:
        comment = read_csv(next(iter(sheets.values())))[0]
        own = [cell for source in sources(comment, folder) for cell in cells_below(source, outcome, known)]
        used = [cell for cell in own or cells if belongs(cell, comment)]
        tables = {name: as_numbers(read_csv(sheets[name])[1] if name in sheets else [], KEYS[name]) for name in KEYS}
        if used:
            _against_cells(folder, sheets, comment, used, outcome)
        else:
            _against_itself(folder, sheets, comment, tables, outcome)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        outcome.differ.append(Finding(str(folder), "the tables", "cannot be read", repr(error)))
    plots = sorted(file.name for file in folder.glob("*.png"))
    if plots:
        outcome.notes.append(f"{folder}: {', '.join(plots)} are drawings, and not looked at")


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
    texts = {file: read_csv(file)[0] for file in sheets.values()}
    shown = [*folder.glob("*.tex"), *folder.glob("README.md")]
    texts |= {file: [line[2:] for line in file.read_text(encoding="utf-8").splitlines()[:8]] for file in shown}
    for file, lines in texts.items():
        for should in origin[1:]:
            name = should.partition(":")[0]
            says = next((line for line in lines if line.startswith(f"{name}: ")), "nothing")
            what = "where it comes from: " + ("device, and when its cells ran" if name == "device" else name)
            outcome.hold(file, what, says, should)
    for name, file in sheets.items():
        hold_csv(outcome, file, expected[name])
    for name, table in expected.items():
        if table and name not in sheets:
            outcome.differ.append(Finding(str(folder / f"{name}.csv"), "the file", "is missing", f"{len(table)} lines"))
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
            column = f"{quantity} ({TITLES[quantity][0]})" if quantity in TITLES else quantity
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
