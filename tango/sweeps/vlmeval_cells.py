"""Cells of a sweep that run VLMEvalKit with the plugin in VLMEvalKit/, and what is read back from its files."""

from pathlib import Path
from typing import Any

import pandas as pd

from tango.sweeps.cells import (
    EFFICIENCY,
    Evaluation,
    answered,
    framework_cell,
    read_summary,
    read_summary_file,
    result_of,
    run_by_hand,
    sample_row,
)  # fmt: skip
from tango.sweeps.frameworks import VLMEVALKIT
from tango.sweeps.sweep import Cell, CellError

# Columns of upstream's score files, first one that is there: kind of question, choice, right answer.
KINDS = ("kind", "task_type", "question_category")
CHOICES = ("choice", "prediction")
ANSWERS = ("answer", "correct_choice")


def vlmeval_cell(folder: Path, evaluation: Evaluation, *, dataset: str) -> Cell:
    """One run of VLMEvalKit in `folder`/cells/<name>/run.

    Args:
        dataset: VLMEvalKit's name, with its number of frames: MotionQA_8frame.
    """
    options = [word for k, v in evaluation.options.items() for word in (f"--{k.replace('_', '-')}", v)]
    return framework_cell(
        folder,
        VLMEVALKIT,
        evaluation,
        benchmark=dataset,
        prefix=f"vlmeval-{dataset}",
        arguments=["--model", evaluation.source, *options, "--data", dataset],
        asked=[dataset],
        collect=collect,
    )


def collect(run: Path) -> dict[str, Any]:
    """Read what one run of VLMEvalKit wrote: provenance, efficiency, tokens, and one row a sample.

    Raises:
        CellError: files are missing, all samples failed, or not all answers were scored.
    """
    return _collect(*read_summary(run))


def collect_by_hand(file: Path) -> list[dict[str, Any]]:
    """The same of a run of run.py, from its *_efficiency.json.

    Raises:
        CellError: see collect().
    """
    summary = read_summary_file(file)
    benchmark = summary["samples"][0]["task"]
    return [{"cell": run_by_hand(VLMEVALKIT, summary, benchmark), **_collect(summary, file)}]


def _collect(summary: dict[str, Any], file: Path) -> dict[str, Any]:
    records = {str(entry["doc_id"]): entry for entry in answered(summary)}
    scored = file.with_name(file.name.replace(EFFICIENCY, "_score.xlsx"))
    if not scored.is_file():
        raise CellError(f"{scored.name} is missing: the run did not score its samples")
    table = pd.read_excel(scored, keep_default_na=False)
    kind, choice, answer = (
        next((name for name in names if name in table), None) for names in (KINDS, CHOICES, ANSWERS)
    )
    rows = []
    for row in table.to_dict("records"):
        index = str(row["index"])
        if index not in records or row["score"] == "":
            raise CellError(
                f"sample {index} of {scored.name} has {'no answer' if index not in records else 'no score'}"
            )
        rows.append(
            sample_row(
                records[index],
                id=index,
                kind=str(row[kind]) if kind else "all",
                score=max(0.0, float(row["score"])),  # upstream marks with -1 what it cannot score
                prediction=(row[choice] or None) if choice else None,
                answer=row[answer] if answer else None,
            )
        )
    return result_of(summary, rows)
