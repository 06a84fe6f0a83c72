"""Scored answers as the two frameworks log them, read for tango.results.follow apart from what makes cells of them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tango.inference.files import check_regular, regular
from tango.results.cells import Cell
from tango.runs.scoring import LETTERS
from tango.sweeps.cells import EFFICIENCY
from tango.sweeps.lmms_cells import METRICS
from tango.sweeps.vlmeval_cells import ANSWERS, CHOICES, KINDS


@dataclass(frozen=True)
class Logged:
    """One scored answer in a framework's own files: its file, the record's task and doc_id, and the row of it; the
    question with its options, and the video's name there, empty where they are not logged.
    """

    file: Path
    task: str | None
    doc_id: str
    reply: Any
    tokens: Mapping[str, Any]
    row: dict[str, Any]
    question: str
    video: str
    metric: str = ""


def records_of(file: Path) -> list[Path]:
    """The files of a run's records, by that of its cell; of a whole run it is one."""
    return regular(file.parent / "run", f"*/*{EFFICIENCY}") if file.name == "cell.json" else [file]


def logged_rows(records: Path, cell: Cell) -> Iterator[Logged]:
    """What a cell's framework logged beside a file of records."""
    return _lmms_rows(records) if cell["cell"]["framework"] == "lmms-eval" else _vlmeval_rows(records)


def _lmms_rows(file: Path) -> Iterator[Logged]:
    start = file.name.removesuffix(EFFICIENCY)
    for log in regular(file.parent, f"{start}_samples_*.jsonl"):
        task = log.stem.removeprefix(f"{start}_samples_")
        for line in filter(None, log.read_bytes().split(b"\n")):
            sample = json.loads(line)
            name = next((name for name in METRICS if isinstance(sample.get(name), dict)), "")
            if not name:
                raise ValueError(f"{log.name}: its samples have none of the metrics {', '.join(METRICS)}")
            metric, scored = METRICS[name], sample[name]
            choice, answer = scored[metric.prediction], scored[metric.answer]
            row = {
                "id": str(scored[metric.id]) if metric.id else f"{task}/{sample['doc_id']}",
                "kind": str(scored[metric.kind]) if metric.kind else task,
                "score": float(scored.get("score", choice == answer)),
                "prediction": choice or None,
                "answer": answer,
            }
            counts = sample.get("token_counts") or [{}]
            asked, video = str(sample.get("input") or ""), str(scored.get("video") or "")
            reply = sample.get("filtered_resps")
            yield Logged(log, task, str(sample["doc_id"]), reply, counts[0] or {}, row, asked, video, name)


def _vlmeval_rows(file: Path) -> Iterator[Logged]:
    scores = file.with_name(file.name.replace(EFFICIENCY, "_score.xlsx"))
    table = pd.read_excel(check_regular(scores), keep_default_na=False)
    kind, choice, answer = (next((name for name in names if name in table), "") for names in (KINDS, CHOICES, ANSWERS))
    for line in table.to_dict("records"):
        name = str(line["index"])
        row = {
            "id": name,
            "kind": str(line[kind]) if kind else "all",
            "score": max(0.0, float(line["score"])),
            "prediction": (line[choice] or None) if choice else None,
            "answer": line[answer] if answer else None,
        }
        options = [f"{letter}. {line[letter]}" for letter in LETTERS if line.get(letter, "") != ""]
        asked, video = "\n".join([str(line.get("question", "")), *options]), str(line.get("video", ""))
        yield Logged(scores, None, name, line.get("prediction"), {}, row, asked, video)
