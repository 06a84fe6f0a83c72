"""From a cell back to its samples: its rows, tokens and times made again from what its run left, which are records,
their journal and the framework's own logs. For tango.results.verify.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tango.inference.files import DAMAGED, check_regular
from tango.results import recount
from tango.results.cells import Cell, answers
from tango.results.claims import Outcome
from tango.results.logged import Logged, logged_rows, records_of
from tango.results.samples import Found, Unfinished
from tango.runs.journal import read_journal
from tango.runs.provenance import code_fingerprint
from tango.runs.reading import read_json
from tango.runs.runner import Record
from tango.runs.summary import TITLES
from tango.sweeps.cells import EFFICIENCY
from tango.sweeps.lmms_cells import METRICS

LETTER = re.compile(r"[A-J]")
Records = Sequence[Mapping[str, Any]]  # of tango.runs.runner.Record, as JSON


def verify_run(found: Found, outcome: Outcome) -> Cell | None:
    """Check a cell against its run's files; returns it with the rows and times that these give, None without a cell."""
    file, _, cell = found
    if isinstance(cell, Unfinished):
        outcome.notes.append(str(cell))
        return None
    if isinstance(cell, Exception):
        what = "the cell" if file.name == "cell.json" else "it"
        outcome.differs(file, what, "cannot be read", str(cell))
        return None
    try:
        return _followed(file, cell, outcome)
    except DAMAGED as error:
        outcome.differs(file, "the cell", "its run's files cannot be read", repr(error))
        return None


def _followed(file: Path, cell: Cell, outcome: Outcome) -> Cell:
    """Check a cell, which stands in a file, against the records of its run, in the same file if it was run by hand."""
    what, origin = cell["cell"], cell["provenance"]
    if file.name == "cell.json":
        identity = file.with_name("identity")
        if identity.is_file():
            outcome.hold(identity, "fingerprint", identity.read_text(encoding="utf-8").strip(), cell.get("identity"))
        else:
            outcome.unknown(file, "fingerprint", str(cell.get("identity")), "no file `identity`")
    sources = records_of(file)
    if len(sources) != 1:
        count = len(cell["samples"]) * len(cell["samples"][0]) + len(TITLES)
        why = f"{len(sources)} runs are" if sources else "no records of a run are"
        outcome.unknown(file, f"{count} values of rows and times", "", f"{why} beside them")
        return cell
    (source,) = sources
    for name, says, gives in (
        ("method", what["method"], origin.get("method", what["method"])),
        ("ratio", what["ratio"], origin.get("settings", {}).get("retention_ratio", what["ratio"])),
    ):
        outcome.hold(file, f"{name}, against its own provenance", says, gives)
    if origin.get("code") != code_fingerprint():
        of = origin["versions"].get("tango", "?")
        outcome.notes.append(f"{file}: made by another code than this one (tango {of}), which is not run again here")
    summary = read_json(source.read_bytes())
    records: Records = summary["samples"]
    for key, number in Counter(map(_who, records)).items():
        if number > 1:
            outcome.differs(source, f"sample {' '.join(map(str, key))}", "twice", "once")
    outcome.hold(source, "n_samples", summary["n_samples"], len(records))
    outcome.hold(source, "n_failed", summary["n_failed"], sum(one["failure"] is not None for one in records))
    _journal(source, origin["run"], records, outcome)
    _numbers(source, summary, records, outcome)
    own = [one for one in records if file != source or f"{one['task']}_".startswith(f"{what['benchmark']}_")]
    _numbers(file, cell, own, outcome)
    if file != source:
        for key, value in summary.items():
            if key not in ("samples", "efficiency", "tokens"):
                outcome.hold(file, f"provenance: {key}", origin.get(key), value)
    tasks = {record["task"] for record in own}
    logged = [one for one in logged_rows(source, cell) if one.task is None or one.task in tasks]
    rows = _rows(file, cell, source, own, logged, outcome)
    if what["framework"] == "lmms-eval" and "reported" in cell:
        _reported(file, cell, source, logged, outcome)
    return {**cell, "samples": rows or cell["samples"], "efficiency": {**cell["efficiency"], **recount.times(own)}}


def _numbers(file: Path, content: Mapping[str, Any], records: Records, outcome: Outcome) -> None:
    """Tokens and times that a file says are those of its records; older files lack some."""
    for name, counted in (("tokens", recount.tokens(records)), ("efficiency", recount.times(records))):
        said = content[name]
        for key, value in counted.items():
            if isinstance(value, dict):
                for part in value.keys() & said.get(key, {}).keys():
                    outcome.hold(file, f"{name}: {key} of {part}", said[key][part], value[part])
            elif key in said or key in TITLES:
                outcome.hold(file, f"{name}: {key}", said.get(key), value)


def _who(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return record["task"], record["doc_id"], record["repeat"]


def _journal(file: Path, run: str, records: Records, outcome: Outcome) -> None:
    """Records are those that the journal holds, field by field; it lies above the file of records."""
    folder = next((place / "journal" for place in file.parents[:3] if (place / "journal").is_dir()), None)
    if folder is None:
        outcome.unknown(file, f"{len(records)} records", "", "no journal is beside them")
        return
    written: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for journal in sorted(folder.glob(f"{run}-rank*.jsonl")):
        for entry in read_journal(journal).values():
            written.setdefault(_who(entry), []).append(entry)
    if not written:
        there = sorted(f"{path.name} ({path.stat().st_size} bytes)" for path in folder.iterdir())
        outcome.differs(folder, "journal of the run", ", ".join(there) or "nothing", f"samples in {run}-rank0.jsonl")
        return
    names = sorted(Record.__dataclass_fields__.keys() - {"resumed"})
    for record in records:
        entries = written.get(_who(record), [])
        where = f"sample {record['task']} {record['doc_id']}"
        if not entries:
            outcome.differs(folder, where, "missing", f"a record in {file.name}")
            continue
        # Of several (a prompt that changed, a failure before) it is the one that is most like it.
        entry = max(entries, key=lambda one: sum(one.get(name) == record.get(name) for name in names))
        for name in names:
            outcome.hold(file, f"{where}: {name}, against the journal", record.get(name), entry.get(name))


def _rows(
    file: Path, cell: Cell, source: Path, records: Records, logged: Sequence[Logged], outcome: Outcome
) -> list[dict[str, Any]]:
    """The rows that a run's files give, with which those of the cell are compared."""
    made: dict[str, dict[str, Any]] = {}
    tasks = dict.fromkeys(record["task"] for record in records)
    left = {(record["task"], str(record["doc_id"])): record for record in records if record["failure"] is None}
    for one in logged:
        row, where = one.row, f"sample {one.row['id']}"
        if row["id"] in made:
            outcome.differs(one.file, where, "twice", "once")
            continue
        keys = [(task, one.doc_id) for task in tasks if one.task in (None, task)]
        record = next((left.pop(key) for key in keys if key in left), None)
        if record is None:
            outcome.differs(one.file, where, "a score", f"no record in {source.name}")
            continue
        if all(isinstance(row[side], str) and LETTER.fullmatch(row[side]) for side in ("prediction", "answer")):
            outcome.hold(one.file, f"{where}: score", row["score"], float(row["prediction"] == row["answer"]))
        if isinstance(one.reply, str) and isinstance(record["response"], str):
            outcome.hold(one.file, f"{where}: reply", *map(_plain, (one.reply, record["response"])))
        tokens, videos = record["tokens"], record["videos"]
        for name, count in one.tokens.items():
            outcome.hold(one.file, f"{where}: {name}", count, tokens.get(name, count))
        for when in ("before", "after"):
            of_videos = sum(video[f"tokens_{when}"] for video in videos)
            outcome.hold(source, f"{where}: tokens {when}", tokens[f"video_tokens_{when}"], of_videos)
        counts = {f"tokens_{which}": tokens[f"video_tokens_{which}"] for which in ("before", "after", "average")}
        made[row["id"]] = row | counts | {"kept": [video.get("kept") for video in videos]}
    for task, doc_id in left:
        name = logged[0].file.name if logged else "the framework's log"
        outcome.differs(source, f"sample {task} {doc_id}", "a record", f"none in {name}")
    there = answers(cell)
    for name in sorted(there.keys() ^ made.keys()):
        says, gives = ("nothing", "a row") if name in made else ("a row", "no such sample")
        outcome.differs(file, f"sample {name}", says, gives)
    for name in sorted(there.keys() & made.keys()):
        for column, value in made[name].items():
            outcome.hold(file, f"sample {name}: {column}", there[name].get(column), value)
    return [made[name] for name in sorted(made)]


def _plain(text: str) -> str:
    """Without what sheets cannot hold, and white space at the ends."""
    return re.sub(r"[\x00-\x08\x0b-\x1f]|_x000[0-9A-F]_", "", text).strip()


def _reported(file: Path, cell: Cell, source: Path, logged: Sequence[Logged], outcome: Outcome) -> None:
    """The score that lmms-eval itself came to: that of its file, and the share of right answers where it is one."""
    results = source.with_name(source.name.replace(EFFICIENCY, "_results.json"))
    own = read_json(check_regular(results).read_bytes())["results"]
    shares = []
    for task in dict.fromkeys(one.task for one in logged):
        of_task = [one for one in logged if one.task == task]
        name = of_task[0].metric
        shares.append(own[task][f"{name},none"] * (1 if METRICS[name].percent else 100))
        counted = recount.percent_right([one.row for one in of_task])
        if name == "accuracy":
            outcome.hold(results, f"{task}: {name}", shares[-1], counted)
        elif abs(shares[-1] - counted) > 1e-6:
            outcome.notes.append(f"{results}: {task}: lmms-eval weighs questions otherwise ({shares[-1]:.2f} %)")
    outcome.hold(file, "reported, against lmms-eval's results", cell["reported"], sum(shares) / len(shares))
