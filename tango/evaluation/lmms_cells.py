"""Cells of a sweep that run lmms-eval with the plugin in lmms-eval/, and what is read back from its files."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tango.evaluation import provenance
from tango.evaluation.settings import VANILLA, VARIABLES
from tango.evaluation.sweep import Cell, CellError

FRAMEWORK = "lmms-eval"
SCORE = "accuracy"  # the metric whose per-sample entries hold id, kind, prediction and score


def lmms_cell(
    folder: Path,
    *,
    pretrained: str,
    task: str,
    data: Sequence[Path],
    samples: int,
    method: str = VANILLA,
    ratio: float | None = None,
    config: str | None = None,
    max_frames: int = 8,
    model: str = "llava_onevision",
    limit: int | None = None,
    include_path: str | None = None,
    variant: str | None = None,
) -> Cell:
    """One run of lmms-eval in `folder`/cells/<name>/run.

    Args:
        data: the benchmark's files; a change of any of them makes a finished cell out of date.
        samples: how many questions the task has, before `limit`.
        ratio: None for the unpruned model. config: a settings file for TANGO_CONFIG.
        include_path: a folder of tasks that are not the plugin's own.
        variant: what `config` makes of the method, where a sweep has several of one method and ratio.
    """
    if (method == VANILLA) != (ratio is None):
        raise ValueError(f"method={method!r} with ratio={ratio}: every method but {VANILLA!r} needs a retention ratio")
    name = f"{task}-{method}" + ("" if ratio is None else f"-{ratio:g}") + (f"-{variant}" if variant else "")
    command = [sys.executable, "-m", "lmms_eval", "--model", model]
    frames = "max_num_frames" if model.startswith("qwen") else "max_frames_num"
    command += ["--model_args", f"pretrained={pretrained},{frames}={max_frames}", "--tasks", task]
    command += ["--batch_size", "1", "--log_samples", "--output_path", str(folder / "cells" / name / "run")]
    command += ["--limit", str(limit)] if limit is not None else []
    command += ["--include_path", include_path] if include_path is not None else []
    # All three are set, so that nothing of the caller's own environment reaches a cell.
    environment = dict.fromkeys(VARIABLES, "") | {"WRAPPER": method}
    if ratio is not None:
        environment |= {"TANGO_ARGS": f"retention_ratio={ratio:g}", "TANGO_CONFIG": config or ""}
    if Path(pretrained).is_dir():
        environment |= dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    versions = {k: v for k, v in provenance.versions().items() if k in ("python", "torch", "transformers", "lmms-eval")}
    identity = provenance.digest(
        command[1:],
        environment,
        provenance.model_fingerprint(pretrained),
        provenance.file_stamps([*data, *([Path(config)] if config and ratio is not None else [])]),
        provenance.code_fingerprint(),
        versions,
    )
    what = {"framework": FRAMEWORK, "model": Path(pretrained).name, "benchmark": task, "method": method, "ratio": ratio}
    what |= {"variant": variant}
    expected = samples if limit is None else min(limit, samples)
    return Cell(
        name, identity, command, environment, expected, lambda run: {"cell": what, **collect(run, task, expected)}
    )


def collect(run: Path, task: str, expected: int) -> dict[str, Any]:
    """Read what one run of lmms-eval wrote: provenance, efficiency, tokens, and one row a sample.

    Raises:
        CellError: files are missing, samples failed, or there are more or fewer than expected.
    """
    summaries = sorted(run.glob("*/*_efficiency.json"))
    if len(summaries) != 1:
        raise CellError(f"expected one *_efficiency.json below {str(run)!r}, found {len(summaries)}")
    summary = json.loads(summaries[0].read_text(encoding="utf-8"))
    records = {entry["doc_id"]: entry for entry in summary.pop("samples") if entry["task"] == task}
    logged = summaries[0].with_name(summaries[0].name.replace("_efficiency.json", f"_samples_{task}.jsonl"))
    if not logged.is_file():
        raise CellError(f"{logged.name} is missing: the run did not log its samples")
    if summary["n_failed"]:
        raise CellError(f"{summary['n_failed']} samples failed, the first: {summary['failed'][0]['reason']}")
    rows = []
    for line in logged.read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        score, record = sample[SCORE], records[sample["doc_id"]]
        rows.append(
            {
                "id": score["id"],
                "kind": score["kind"],
                "score": score["score"],
                "prediction": score["prediction"],
                "answer": score["answer"],
                "tokens_before": record["tokens"]["video_tokens_before"],
                "tokens_after": record["tokens"]["video_tokens_after"],
                "tokens_average": record["tokens"]["video_tokens_average"],
                "kept": [video.get("kept") for video in record["videos"]],  # hashes of the kept indices
            }
        )
    if len(rows) != expected:
        raise CellError(f"{len(rows)} samples were scored, {expected} were expected")
    efficiency, tokens = summary.pop("efficiency"), summary.pop("tokens")
    return {
        "provenance": summary,
        "efficiency": efficiency,
        "tokens": tokens,
        "samples": sorted(rows, key=lambda row: str(row["id"])),
    }
