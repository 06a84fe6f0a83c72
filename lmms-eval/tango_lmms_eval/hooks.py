"""The six places where lmms-eval has no extension point and this plugin needs one. Nothing on disk is touched.

- TaskManager also indexes this package's tasks, so that `--tasks motionqa` needs no --include_path.
- A task or a model that is not there ends the run with status 2; lmms-eval itself would exit with 0.
- Tasks whose data set asks for a hub token ask for the one that there is, or for none: public data need none.
- EvaluationTracker tells where results go, and its results file gets a "tango" entry: method, settings, versions,
  tokens, failures.
- ResponseCache refuses to serve our models: its keys know nothing of WRAPPER and would mix up methods.
- lmms-eval reports errors and exits with status 0. When one of our models was run, the exit status is 1 if samples
  failed, or if the run ended before its results were saved.

Only the first three apply to other models than ours, and that no secret is printed: lmms-eval logs HF_TOKEN.
"""

from __future__ import annotations

import atexit
import difflib
import fnmatch
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from huggingface_hub import get_token

from tango.runs.hooks import give_up, mask_output, wrap
from tango.runs.journal import write_json
from tango.runs.screen import visible

TASKS = Path(__file__).parent / "tasks"
UNFINISHED = "an evaluation ended before its results were saved; see the error above"


@dataclass
class Run:
    """The evaluation in progress: lmms-eval may do several in one process, one after another.

    output_path: where lmms-eval writes. active: one of our models is being evaluated. summary: its results, once it has
        run.
    problems: what makes the exit status 1.
    """

    output_path: str | None = None
    active: bool = False
    summary: dict[str, Any] | None = None
    problems: list[str] = field(default_factory=list)
    report: Callable[[dict[str, Any]], None] | None = None


RUN = Run()


def install() -> None:
    """Wrap the methods named above, once.

    Raises:
        ImportError, AttributeError: lmms-eval is organised differently from what this was written for.
    """
    import torch
    from lmms_eval.api.task import ConfigurableTask
    from lmms_eval.caching.response_cache import ResponseCache
    from lmms_eval.loggers.evaluation_tracker import EvaluationTracker
    from lmms_eval.models.registry_v2 import ModelRegistryV2
    from lmms_eval.tasks import TaskManager

    mask_output()
    wrap(TaskManager, "initialize_tasks", _initialize_tasks)
    wrap(TaskManager, "match_tasks", _match_tasks)
    wrap(ModelRegistryV2, "resolve", _resolve)
    wrap(ConfigurableTask, "download", _download)
    wrap(EvaluationTracker, "__init__", _remember_output_path)
    wrap(EvaluationTracker, "save_results_aggregated", _save_results)
    wrap(ResponseCache, "create", _refuse_cache)
    if "LOCAL_RANK" in os.environ and not torch.accelerator.is_available():
        # One of several processes without a GPU. accelerate only connects them (by gloo) if it is told to use the CPU;
        # without that each would take itself for the only one. lmms-eval makes its Accelerator after this.
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")


def _initialize_tasks(original: Any, self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    index = original(self, *args, **kwargs)
    return {**self._get_task_and_group(str(TASKS)), **index}  # a task of the same name in --include_path wins


def _match_tasks(original: Any, self: Any, task_list: list[str]) -> list[str]:
    found: list[str] = original(self, task_list)
    for name in task_list:
        matched = fnmatch.filter(found, name) if "*" in name else name in found  # lmms-eval knows no other patterns
        if not matched and not os.path.isfile(name):
            refuse(f"--tasks {name!r}: there is no such task; {_nearest(name, self.all_tasks)}")
    return found


def _resolve(original: Any, self: Any, model_name: str, *args: Any, **kwargs: Any) -> Any:
    try:
        return original(self, model_name, *args, **kwargs)
    except ValueError:
        if model_name in self.list_model_names() or "lmms_eval.__main__" not in sys.modules:
            raise
        refuse(f"--model {model_name!r}: there is no such model; {_nearest(model_name, self.list_model_names())}")


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else "`lmms-eval tasks` and `lmms-eval models` name them all"


def _download(original: Any, self: Any, dataset_kwargs: dict[str, Any] | None = None) -> Any:
    if dataset_kwargs and dataset_kwargs.get("token") is True and get_token() is None:
        dataset_kwargs["token"] = None
    return original(self, dataset_kwargs)


def _remember_output_path(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    original(self, *args, **kwargs)
    RUN.output_path = self.output_path


def _refuse_cache(original: Any, *args: Any, **kwargs: Any) -> Any:
    if RUN.active:
        RUN.active = False
        refuse(
            "--use_cache: lmms-eval's response cache cannot tell which method pruned the model and would mix up their "
            "answers; leave it out. With --output_path an interrupted run goes on where it was."
        )
    return original(*args, **kwargs)


def _save_results(original: Any, self: Any, results: dict[str, Any], *args: Any, **kwargs: Any) -> None:
    """Add our entry to the results file and write the efficiency file beside it."""
    summary = RUN.summary
    if not RUN.active or summary is None:
        original(self, results, *args, **kwargs)
        return
    results["tango"] = {key: value for key, value in summary.items() if key != "samples"}
    original(self, results, *args, **kwargs)
    if self.output_path:
        folder = Path(self.output_path) / self.general_config_tracker.model_name_sanitized
        file = folder / f"{getattr(self, 'date_id', '')}_results.json"
        if not file.is_file():  # upstream logs what went wrong and goes on
            RUN.problems.append(f"lmms-eval could not save {file.name}; its log says why")
            return
        write_json(file.with_name(file.name.replace("_results.json", "_efficiency.json")), summary)
    RUN.active = False
    if summary["n_failed"]:
        RUN.problems.append(f"{summary['n_failed']} of {summary['n_samples']} samples failed and were not scored")
    if RUN.report is not None:
        RUN.report(summary)


def refuse(mistake: str) -> NoReturn:
    """End the process over a mistake in the settings, with status 2, as VLMEvalKit's plugin and `tango` do."""
    print(visible(f"error: {mistake}"), file=sys.stderr)
    raise SystemExit(2)


def begin(report: Callable[[dict[str, Any]], None]) -> None:
    """A model of ours is about to be evaluated; under the command line, watch over the exit status from now on."""
    if RUN.active:  # lmms-eval does the next evaluation of a --config file although one before it broke down
        RUN.problems.append(UNFINISHED)
    RUN.active, RUN.summary, RUN.report = True, None, report
    if "lmms_eval.__main__" in sys.modules and not getattr(begin, "_watching", False):
        begin._watching = True  # type: ignore[attr-defined]
        atexit.register(_exit_status)


def _exit_status() -> None:
    """Runs when the interpreter ends. Nothing else can set the exit status after lmms-eval has called sys.exit(0)."""
    problems = list(RUN.problems)
    if RUN.active:
        problems.append(UNFINISHED)
    if problems:
        give_up("tango_lmms_eval", problems)
