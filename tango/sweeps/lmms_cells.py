"""Cells of a sweep that run lmms-eval with the plugin in lmms-eval/, and what is read back from its files."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tango.inference.files import check_regular, regular
from tango.runs import provenance
from tango.runs.summary import efficiency
from tango.sweeps.cells import (
    EFFICIENCY,
    Evaluation,
    framework_cell,
    read_summary,
    read_summary_file,
    result_of,
    run_by_hand,
    sample_row,
)  # fmt: skip
from tango.sweeps.frameworks import LMMS_EVAL
from tango.sweeps.sweep import Cell, CellError

# What lmms-eval calls the number of frames, by how a model's name begins; of LLaVA's it is max_frames_num.
FRAMES = {"qwen": "max_num_frames", "internvl": "num_frames", "videollama": "max_num_frames"}
TASKS = (".py", ".yaml", ".yml", ".json", ".jsonl", "")  # files of tasks


@dataclass(frozen=True)
class Metric:
    """Fields of what a task's process_results() gives for one sample, which lmms-eval logs under the metric's name.

    prediction, answer: the choice and the right one; a sample without a field `score` is right if they are the same,
    as in upstream's own aggregation. id: of the question; None: it has none, so its task and place stand for it. kind:
    of question; None: each kind is a task. percent: whether the aggregated score is in percent or a share.
    """

    prediction: str
    answer: str
    id: str | None
    kind: str | None
    percent: bool


METRICS = {
    "accuracy": Metric("prediction", "answer", "id", "kind", percent=False),  # MotionQA
    "videomme_perception_score": Metric("pred_answer", "answer", "question_id", "task_category", percent=True),
    "mvbench_accuracy": Metric("pred_answer", "gt_answer", None, None, percent=True),
    "lvb_acc": Metric("parsed_pred", "answer", "id", "question_category", percent=False),
    "mlvu_percetion_score": Metric("pred_answer", "answer", None, "task_type", percent=True),  # upstream's spelling
}


def lmms_cell(
    folder: Path,
    evaluation: Evaluation,
    *,
    task: str,
    max_frames: int = 8,
    model: str = "llava_onevision",
    include_path: str | None = None,
    tasks: int = 1,
    wandb_args: str | None = None,
) -> Cell:
    """One run of lmms-eval in `folder`/cells/<name>/run.

    Args:
        task: a task or a group of `tasks`, whose metrics are in METRICS. model: lmms-eval's name of the kind of model.
        include_path: a folder of tasks that are not the plugin's own.
        wandb_args: lmms-eval's own, to which the cell's name is added where they give none; a result does not follow
            from them.
    """
    frames = next((name for start, name in FRAMES.items() if model.startswith(start)), "max_frames_num")
    how = {"pretrained": evaluation.source, frames: max_frames, **evaluation.options}
    own = Path(include_path) if include_path is not None else None
    found = [] if own is None else [file for file in own.rglob("*") if file.is_file() and file.suffix in TASKS]
    more = ["--include_path", os.path.abspath(own)] if own is not None else []
    if wandb_args is not None:
        more += ["--wandb_args", wandb_args if "name=" in wandb_args else f"{wandb_args},name={task}-{evaluation.name}"]
    return framework_cell(
        folder,
        LMMS_EVAL,
        evaluation,
        benchmark=task,
        prefix=task,
        arguments=[
            *("--model", model, "--model_args", ",".join(f"{name}={value}" for name, value in how.items())),
            *("--tasks", task, "--batch_size", "1", "--log_samples"),
        ],
        asked=[model, max_frames, task, provenance.files_fingerprint(found, own)],
        more=more,
        collect=collect,
        tasks=tasks,
    )


def collect(run: Path) -> dict[str, Any]:
    """Read what one run of lmms-eval wrote: provenance, efficiency, tokens, one row a sample, and as `reported` the
    score in percent that lmms-eval itself came to, in the mean over tasks.

    Raises:
        CellError: files are missing, all samples failed, not all answers were scored, or in a way that is not known.
    """
    return _collect(*read_summary(run))


def collect_by_hand(file: Path) -> list[dict[str, Any]]:
    """The same for each benchmark of a run of lmms-eval's own command line, from its *_efficiency.json.

    Raises:
        CellError: see collect().
    """
    summary = read_summary_file(file)
    tasks: dict[str, list[Any]] = {}
    for record in summary["samples"]:
        known = (
            b.name for b in LMMS_EVAL.benchmarks.values() if b.tasks > 1 and record["task"].startswith(f"{b.name}_")
        )
        group = next(known, record["task"])
        tasks.setdefault(group, []).append(record)
    found = []
    for task, records in tasks.items():
        failed = [failure for failure in summary["failed"] if failure["task"] in {r["task"] for r in records}]
        one = summary | {"samples": records, "failed": failed, "n_failed": len(failed), "n_samples": len(records)}
        if len(tasks) > 1:
            one |= {"efficiency": efficiency(records)}
        found.append({"cell": run_by_hand(LMMS_EVAL, one, task), **_collect(one, file)})
    return found


def _collect(summary: Mapping[str, Any], file: Path) -> dict[str, Any]:
    start = file.name.removesuffix(EFFICIENCY)
    names = {record["task"] for record in summary["samples"]}
    logged = [one for one in regular(file.parent, f"{start}_samples_*.jsonl") if _task(one, start) in names]
    if not logged:
        raise CellError(
            f"{start}_samples_*.jsonl is missing: the run did not log its samples, as --log_samples makes it"
        )
    records = {(record["task"], record["doc_id"]): record for record in summary["samples"]}
    own = json.loads(check_regular(file.with_name(f"{start}_results.json")).read_text(encoding="utf-8"))["results"]
    rows, reported = [], []
    for samples in logged:
        task = _task(samples, start)
        name = ""
        for line in filter(None, samples.read_bytes().split(b"\n")):
            sample = json.loads(line)
            name = next((name for name in METRICS if isinstance(sample.get(name), dict)), "")
            if not name:
                raise CellError(
                    f"{samples.name}: its samples have none of the metrics {', '.join(METRICS)}; see "
                    "docs/extending.md#a-benchmark for another"
                )
            rows.append(_row(task, sample["doc_id"], sample[name], METRICS[name], records[task, sample["doc_id"]]))
        if not name:  # all samples of this task failed
            continue
        score = own[task][f"{name},none"]
        reported.append(score if METRICS[name].percent else 100 * score)
    return result_of(summary, rows, reported=sum(reported) / len(reported))


def _task(samples: Path, start: str) -> str:
    return samples.stem.removeprefix(f"{start}_samples_")


def _row(task: str, place: int, scored: Mapping[str, Any], metric: Metric, record: Mapping[str, Any]) -> dict[str, Any]:
    prediction, answer = scored[metric.prediction], scored[metric.answer]
    return sample_row(
        record,
        id=f"{task}/{place}" if metric.id is None else str(scored[metric.id]),
        kind=task if metric.kind is None else str(scored[metric.kind]),
        score=float(scored.get("score", prediction == answer)),
        prediction=prediction or None,
        answer=answer,
    )
