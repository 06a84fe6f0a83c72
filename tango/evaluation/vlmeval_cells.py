"""Cells of a sweep that run VLMEvalKit with the plugin in VLMEvalKit/, and what is read back from its files."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tango.evaluation import provenance
from tango.evaluation.settings import VANILLA, VARIABLES
from tango.evaluation.sweep import Cell, CellError

FRAMEWORK = "VLMEvalKit"
# Columns of upstream's score files, first one that is there: kind of question, choice, right answer.
KINDS = ("kind", "task_type", "question_category")
CHOICES = ("choice", "prediction")
ANSWERS = ("answer", "correct_choice")


def vlmeval_cell(
    folder: Path,
    *,
    pretrained: str,
    dataset: str,
    data: Sequence[Path] = (),
    samples: int,
    method: str = VANILLA,
    ratio: float | None = None,
    config: str | None = None,
    limit: int | None = None,
    processes: int = 1,
    variant: str | None = None,
) -> Cell:
    """One run of VLMEvalKit in `folder`/cells/<name>/run.

    Args:
        dataset: VLMEvalKit's name, with its number of frames: MotionQA_8frame.
        data: the benchmark's files; a change of any of them makes a finished cell out of date.
        samples: how many questions the data set has, before `limit`.
        ratio: None for the unpruned model. config: a settings file for TANGO_CONFIG.
        processes: how many to run, by torchrun if more than one.
        variant: what `config` makes of the method, where a sweep has several of one method and ratio.
    """
    if (method == VANILLA) != (ratio is None):
        raise ValueError(f"method={method!r} with ratio={ratio}: every method but {VANILLA!r} needs a retention ratio")
    name = f"vlmeval-{dataset}-{method}" + ("" if ratio is None else f"-{ratio:g}") + (f"-{variant}" if variant else "")
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launch, "-m", "tango_vlmeval", "--model", pretrained, "--data", dataset]
    command += ["--work-dir", str(folder / "cells" / name / "run")]
    command += ["--limit", str(limit)] if limit is not None else []
    # All three are set, so that nothing of the caller's own environment reaches a cell.
    environment = dict.fromkeys(VARIABLES, "") | {"WRAPPER": method}
    if ratio is not None:
        environment |= {"TANGO_ARGS": f"retention_ratio={ratio:g}", "TANGO_CONFIG": config or ""}
    if Path(pretrained).is_dir():
        environment |= dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    versions = {
        k: v for k, v in provenance.versions().items() if k in ("python", "torch", "transformers", "ms-vlmeval")
    }
    identity = provenance.digest(
        command[1:],
        environment,
        provenance.model_fingerprint(pretrained),
        provenance.file_stamps([*data, *([Path(config)] if config and ratio is not None else [])]),
        provenance.code_fingerprint(),
        versions,
    )
    what = {
        "framework": FRAMEWORK,
        "model": Path(pretrained).name,
        "benchmark": dataset,
        "method": method,
        "ratio": ratio,
    }
    what |= {"variant": variant}
    expected = samples if limit is None else min(limit, samples)
    return Cell(name, identity, command, environment, expected, lambda run: {"cell": what, **collect(run)})


def collect(run: Path) -> dict[str, Any]:
    """Read what one run of VLMEvalKit wrote: provenance, efficiency, tokens, and one row a sample.

    Raises:
        CellError: files are missing, samples failed, or not all were scored.
    """
    summaries = sorted(run.glob("*/*_efficiency.json"))
    if len(summaries) != 1:
        raise CellError(f"expected one *_efficiency.json below {str(run)!r}, found {len(summaries)}")
    summary = json.loads(summaries[0].read_text(encoding="utf-8"))
    if summary["n_failed"]:
        raise CellError(f"{summary['n_failed']} samples failed, the first: {summary['failed'][0]['reason']}")
    records = {str(entry["doc_id"]): entry for entry in summary.pop("samples")}
    scored = summaries[0].with_name(summaries[0].name.replace("_efficiency.json", "_score.xlsx"))
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
        tokens = records[index]["tokens"]
        rows.append(
            {
                "id": index,
                "kind": str(row[kind]) if kind else "all",
                "score": max(0.0, float(row["score"])),  # upstream marks with -1 what it cannot score
                "prediction": (row[choice] or None) if choice else None,
                "answer": row[answer] if answer else None,
                "tokens_before": tokens["video_tokens_before"],
                "tokens_after": tokens["video_tokens_after"],
                "tokens_average": tokens["video_tokens_average"],
                "kept": [video.get("kept") for video in records[index]["videos"]],  # hashes of the kept indices
            }
        )
    if len(rows) != len(records):
        raise CellError(f"{len(rows)} samples were scored, {len(records)} were answered")
    efficiency, tokens = summary.pop("efficiency"), summary.pop("tokens")
    return {
        "provenance": summary,
        "efficiency": efficiency,
        "tokens": tokens,
        "samples": sorted(rows, key=lambda row: str(row["id"])),
    }
