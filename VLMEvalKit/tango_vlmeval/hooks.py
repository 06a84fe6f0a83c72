"""Where vlmeval.run has no extension point and this plugin needs one. Nothing on disk is touched.

- Inference with one of our models: finished samples come from a journal that knows the method and its settings, which
  upstream's own intermediate files do not; a summary is written beside the predictions; failed samples are left out of
  scoring and are an error.
- `<name>_<N>frame` data sets are built without the command line's arguments, which upstream passes and none of them
  takes; --limit holds for video data sets too.
- Several processes without a GPU are connected by gloo.
- Data sets look for the hub's files where huggingface_hub has them, whatever variable says where that is.
- Data sets that log in to the hub before they look whether they are there do so only with a token to log in with.
- VLMEvalKit reports errors and exits with status 0: they are kept here for the exit status.
"""

from __future__ import annotations

import glob
import json
import os
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import torch.distributed as dist
import vlmeval.run as upstream
import vlmeval.smp.file
from huggingface_hub.constants import HF_HUB_CACHE
from vlmeval.config import supported_VLM
from vlmeval.dataset.video_dataset_config import supported_video_datasets
from vlmeval.smp import dump, get_intermediate_file_path, load
from vlmeval.smp.file import fetch_aux_files

from tango.inference.checkpoints import CheckpointError
from tango.runs.hooks import give_up, wrap
from tango.runs.journal import write_json
from tango.runs.run import ArgumentError
from tango.runs.settings import VANILLA, SettingsError, from_environment
from tango.runs.summary import report
from tango_vlmeval.models import Prompt, TangoModel

SUMMARY = "_efficiency.json"
HARMLESS = ("mode_infer",)  # reasons to skip a data set that are no problem


class SamplesFailed(RuntimeError):
    """Samples of a data set have no answer. Every process of a run raises it at the same place."""


@dataclass
class Run:
    """What this process's run of vlmeval is to do beyond upstream, and what makes its exit status 1; 2 if all of it are
    mistakes in settings, or checkpoints that cannot be.
    """

    limit: int | None = None
    problems: list[str] = field(default_factory=list)
    mistakes: int = 0

    def status(self) -> int:
        """The exit status."""
        return 0 if not self.problems else 2 if self.mistakes == len(self.problems) else 1


RUN = Run()


def install(limit: int | None = None) -> None:
    """Put the wrappers in place, once for a process; `limit` as --limit."""
    RUN.limit, RUN.mistakes = limit, 0
    RUN.problems.clear()
    for name, wrapper in (
        ("infer_data_job_video", _infer_video),
        ("infer_data_job", _infer_other),
        ("infer_data_job_mt", _infer_other),
        ("build_dataset", _build_dataset),
        ("build_dataset_from_config", lambda original, *args: _limited(original(*args))),
        ("upsert_dataset_status", _status),
    ):
        wrap(upstream, name, wrapper)
    wrap(dist, "init_process_group", _connect)
    wrap(huggingface_hub, "login", _login)
    wrap(vlmeval.smp.file, "HFCacheRoot", lambda original: HF_HUB_CACHE)


def _connect(original: Any, backend: str | None = None, **kwargs: Any) -> None:
    original(backend=backend if torch.cuda.is_available() else "gloo", **kwargs)


def _login(original: Any, token: str | None = None, **kwargs: Any) -> None:
    if token is not None:
        original(token, **kwargs)


def _build_dataset(original: Any, name: str, **kwargs: Any) -> Any:
    return _limited(supported_video_datasets[name]() if name in supported_video_datasets else original(name, **kwargs))


def _limited(dataset: Any) -> Any:
    if RUN.limit is not None and dataset is not None and dataset.MODALITY == "VIDEO":
        dataset.data = dataset.data.iloc[: RUN.limit].copy()
    return dataset


def _status(original: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(*args, **kwargs)
    reason = kwargs.get("error_message") or kwargs.get("skip_reason")
    if reason and reason not in HARMLESS:
        RUN.problems.append(f"{kwargs['model_name']} x {kwargs['dataset_name']}: {reason}")
        error = sys.exc_info()[1]
        RUN.mistakes += isinstance(error, SettingsError | ArgumentError | CheckpointError)
        if dist.is_initialized() and error is not None and not isinstance(error, SamplesFailed):
            give_up("tango_vlmeval", RUN.problems)  # or the others, who do not know of it, would wait for this process
    return result


def _ours(model: Any, name: str) -> Any:
    """The model, made from its name if it is one.

    Raises:
        SettingsError: a pruning method was named and the model is none that it could be attached to.
    """
    if isinstance(model, str):
        world = os.environ.pop("WORLD_SIZE", None)  # as upstream: transformers would shard the model
        try:
            model = supported_VLM[name]()
        finally:
            if world is not None:
                os.environ["WORLD_SIZE"] = world
    if not isinstance(model, TangoModel) and (method := from_environment().method) != VANILLA:
        raise SettingsError(f"WRAPPER={method!r}, but the model {name!r} is upstream's own and would not be pruned")
    return model


def _infer_other(original: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    """Inference on data sets without videos: nothing is pruned in them, so that upstream's way serves."""
    return original(_ours(model, kwargs["model_name"]), *args, **kwargs)


def _infer_video(original: Any, model: Any, *, work_dir: str, model_name: str, dataset: Any, **others: Any) -> Any:
    try:
        model = _ours(model, model_name)
        if not isinstance(model, TangoModel):
            return original(model, work_dir=work_dir, model_name=model_name, dataset=dataset, **others)
        return _infer(original, model, work_dir=work_dir, model_name=model_name, dataset=dataset, **others)
    except SamplesFailed:
        raise
    except Exception:
        if not dist.is_initialized():
            raise
        traceback.print_exc()
        give_up("tango_vlmeval", RUN.problems)  # so that its launcher ends the others


def _infer(
    original: Any, model: TangoModel, *, work_dir: str, model_name: str, dataset: Any, result_file: str, **others: Any
) -> Any:
    name = dataset.dataset_name
    if dataset.fps > 0:
        raise ValueError(f"{name} with fps={dataset.fps}: these models sample a number of frames; use nframe")
    frames = dataset.nframe if dataset.nframe > 0 else model.frames
    world = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    build = dataset.build_prompt

    def deferred(line: Any, video_llm: bool = True) -> Prompt:
        index = (dataset.data.iloc[line] if isinstance(line, int) else line)["index"]
        return Prompt(index, lambda: build(line, video_llm=True))

    dataset.build_prompt = deferred
    try:
        journal = Path(work_dir).parent / "journal"
        with model.evaluating(name, frames, getattr(dataset, "GENERATION", {}), journal, rank, world) as run:
            before = _set_aside(Path(result_file), f"{model_name}_{name}", run.digest) if rank == 0 else None
            if world > 1:
                dist.barrier()
            original(
                model, work_dir=work_dir, model_name=model_name, dataset=dataset, result_file=result_file, **others
            )
    finally:
        del dataset.build_prompt
    order = {str(index): place for place, index in enumerate(dataset.data["index"])}
    summary = run.finish(lambda record: order[str(record.doc_id)])
    if rank == 0:
        file = Path(result_file)
        write_json(file.with_name(file.stem + SUMMARY), summary)
        if before != _predictions(file):
            for scores in map(Path, fetch_aux_files(str(file))):  # of other predictions: upstream would take them again
                if scores != file and not scores.name.endswith(SUMMARY):
                    scores.unlink()
        report(summary)
    if summary["n_failed"]:
        first = summary["failed"][0]
        told = f"{summary['n_failed']} of {summary['n_samples']} samples failed"
        why = f"the first: {first['doc_id']}: {first['reason']}. The same command tries them again"
        if summary["n_failed"] == summary["n_samples"]:
            raise SamplesFailed(f"{told}, so the data set was not scored; {why}")
        lost = {str(failure["doc_id"]) for failure in summary["failed"]}
        evaluate = dataset.evaluate
        dataset.evaluate = lambda eval_file, **judge: _evaluate_answered(evaluate, Path(eval_file), lost, **judge)
        if rank == 0:  # which scores; that of another would end its launcher before
            called = Path(result_file).stem.removeprefix(f"{model_name}_")
            RUN.problems.append(f"{model_name} x {called}: {told} and were not scored; {why}")
    return model


def _evaluate_answered(original: Any, file: Path, lost: set[str], **judge: Any) -> Any:
    """Score the questions that were answered alone: failed ones are neither right nor wrong, in any data set.

    Upstream takes the number of a question for its row, so that those that are left are numbered anew meanwhile.
    """
    whole = load(str(file))
    kept = whole[[str(index) not in lost for index in whole["index"]]].reset_index(drop=True)
    scored = Path(get_intermediate_file_path(str(file), "_score"))
    dump(kept.assign(index=range(len(kept))), str(file))
    try:
        result = original(str(file), **judge)
        if scored.is_file():
            dump(load(str(scored)).assign(index=kept["index"]), str(scored))
        return result
    finally:
        dump(whole, str(file))


def _set_aside(file: Path, unfinished: str, run: str) -> list[tuple[str, str]] | None:
    """Take away upstream's predictions, finished and half-finished ones; what the finished ones were.

    Those of another method, or of other settings, are kept in earlier/<their run>, with their scores.
    """
    summary = file.with_name(file.stem + SUMMARY)
    earlier = json.loads(summary.read_text(encoding="utf-8"))["run"] if summary.is_file() else run
    if earlier != run:
        shelf = file.parent / "earlier" / earlier
        shelf.mkdir(parents=True, exist_ok=True)
        for finished in {file, summary, *map(Path, fetch_aux_files(str(file)))}:
            if finished.is_file():
                os.replace(finished, shelf / finished.name)
    before = _predictions(file)
    ranks = file.parent.glob(f"[0-9]*_{glob.escape(file.stem)}.pkl")
    for stale in (file, file.parent / f"{unfinished}_PREV.pkl", *ranks):
        stale.unlink(missing_ok=True)
    return before


def _predictions(file: Path) -> list[tuple[str, str]] | None:
    if not file.is_file():
        return None
    data = load(str(file))
    return [(str(index), str(said)) for index, said in zip(data["index"], data["prediction"], strict=True)]
