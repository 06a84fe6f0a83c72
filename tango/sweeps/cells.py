"""What the cells of both frameworks have in common: the run they stand for, its command, and how its files are read."""

import functools
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tango.inference.files import regular
from tango.pruners import Pruner
from tango.runs import provenance, scoring
from tango.runs.settings import VANILLA, VARIABLES, make_pruner
from tango.sweeps import serve
from tango.sweeps.frameworks import Framework
from tango.sweeps.sweep import Cell, CellError

EFFICIENCY = "_efficiency.json"
TRANSFORMERS, VLLM = "transformers", "vllm"


@dataclass(frozen=True)
class Evaluation:
    """A model to be evaluated with a method, in whichever framework and on whichever benchmark.

    pretrained: a folder or a hub id. samples: how many questions the benchmark has, before `limit`. data: its files, or
    repository and branch: its data set on the hub; a change of either makes a finished cell out of date. ratio: None
    for the unpruned model. config: a settings file for TANGO_CONFIG. variant: what it makes of the method, where a
    sweep has several of one method and ratio. limit: only the first so many questions. processes: started by torchrun
    if more than one. family: the class of the model, where it is known. dtype, attn_implementation: None for the
    model's own. engine: transformers, or vllm for a server that is started beside it with vllm_options.

    Raises:
        ValueError: a method without a retention ratio, or the unpruned model with one.
    """

    pretrained: str
    samples: int
    data: Sequence[Path] = ()
    method: str = VANILLA
    ratio: float | None = None
    config: str | None = None
    variant: str | None = None
    limit: int | None = None
    processes: int = 1
    family: str | None = None
    repository: str | None = None
    branch: str = "main"
    dtype: str | None = None
    attn_implementation: str | None = None
    engine: str = TRANSFORMERS
    vllm_options: Sequence[str] = ()

    def __post_init__(self) -> None:
        if (self.method == VANILLA) != (self.ratio is None):
            raise ValueError(
                f"method={self.method!r} with ratio={self.ratio}: every method but {VANILLA!r} needs a retention ratio"
            )

    @property
    def name(self) -> str:
        """Method, retention ratio and variant, joined by hyphens: the name of the cell's folder."""
        ratio = [] if self.ratio is None else [f"{self.ratio:g}"]
        return "-".join([self.method, *ratio, *([self.variant] if self.variant else [])])

    @functools.cached_property
    def pruner(self) -> Pruner | None:
        """The method with its settings; raises SettingsError if they cannot be."""
        return make_pruner(self.method, self.config, {} if self.ratio is None else {"retention_ratio": self.ratio})

    @functools.cached_property
    def source(self) -> str:
        """The model as any folder's command line can name it."""
        folder = Path(os.path.expanduser(self.pretrained))
        return os.path.abspath(folder) if folder.is_dir() else self.pretrained

    @functools.cached_property
    def options(self) -> dict[str, str]:
        """How the model is loaded, beside its name: what the grid says, and the commit of a hub id that is here."""
        commit = None if Path(self.source).is_dir() else provenance.hub_commit(self.pretrained)
        given = {"revision": commit, "dtype": self.dtype, "attn_implementation": self.attn_implementation}
        given |= {"server": serve.PLACE} if self.engine == VLLM else {}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def environment(self) -> dict[str, str]:
        """All variables of the settings are set, so that nothing of the caller's own environment reaches a cell; the
        hub is not asked where model and data are here.
        """
        variables = dict.fromkeys(VARIABLES, "") | {"WRAPPER": self.method}
        if self.ratio is not None:
            config = os.path.abspath(os.path.expanduser(self.config)) if self.config else ""
            variables |= {"TANGO_ARGS": f"retention_ratio={self.ratio!r}", "TANGO_CONFIG": config}
        if Path(self.source).is_dir() and self.data:
            variables |= dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
        return variables

    def command(self, command: Sequence[str]) -> list[str]:
        """A framework's command as it is started: with engine vllm, beside a server of the model."""
        if self.engine != VLLM:
            return list(command)
        revision = ["--revision", self.options["revision"]] if "revision" in self.options else []
        options = [*revision, *(["--dtype", self.dtype] if self.dtype else []), *self.vllm_options]
        return [sys.executable, "-m", serve.__name__, self.source, *options, "--", *command]

    def identity(self, framework: Framework, asked: Sequence[Any]) -> str:
        """Hash of all that a result follows from, and of nothing else: not of where anything lies, nor of the number of
        processes or the other methods there are. asked: of the framework, beside the model.
        """
        settings = {} if self.pruner is None else self.pruner.settings()
        found = provenance.versions()
        return provenance.digest(
            [framework.name, *asked, self.limit],
            [self.method, {name: value for name, value in settings.items() if name != "saliency_weights"}],
            [self.variant, self.dtype, self.attn_implementation],
            *([self.engine, *self.vllm_options, provenance.served_fingerprint()] if self.engine == VLLM else []),
            provenance.model_fingerprint(self.source),
            provenance.head_fingerprint(settings, self.family or ""),
            provenance.files_fingerprint(self.data),
            self.repository and [self.repository, provenance.hub_commit(self.repository, self.branch, "dataset")],
            provenance.code_fingerprint(self.method, self.family),
            scoring_fingerprint(framework.plugin),
            {name: found.get(name) for name in (*provenance.LIBRARIES, framework.package)},
        )


@functools.cache
def scoring_fingerprint(module: str) -> str:
    """Hash of the code between answers and cell.json: a framework's plugin, and what reads its files here."""
    found = find_spec(module)
    plugin = Path(found.origin).parent if found is not None and found.origin else None
    own = [Path(scoring.__file__), *Path(__file__).parent.glob("*cells.py")]
    files = [] if plugin is None else [file for kind in ("*.py", "*.yaml") for file in plugin.rglob(kind)]
    return provenance.digest(provenance.files_fingerprint(files, plugin), provenance.files_fingerprint(own))


def framework_cell(
    folder: Path,
    framework: Framework,
    evaluation: Evaluation,
    *,
    benchmark: str,
    prefix: str,
    arguments: Sequence[str],
    asked: Sequence[Any],
    collect: Callable[[Path], dict[str, Any]],
    more: Sequence[str] = (),
    tasks: int = 1,
) -> Cell:
    """A cell that runs a framework's command line in `folder`/cells/<name>/run.

    Args:
        benchmark: the framework's name for it. prefix: of the cell's name.
        arguments, more: of the command line, before and after the folder of results and --limit.
        asked: what of them a result follows from, beside the model and --limit.
        tasks: how many the benchmark consists of; --limit holds for each.
    """
    name = f"{prefix}-{evaluation.name}"
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={evaluation.processes}"]
    command = [sys.executable, *(several if evaluation.processes > 1 else []), "-m", framework.module, *arguments]
    command += [framework.output, os.path.abspath(folder / "cells" / name / "run")]
    command += ["--limit", str(evaluation.limit)] if evaluation.limit is not None else []
    command += more
    what: dict[str, Any] = {"framework": framework.name, "model": Path(evaluation.pretrained).name}
    what |= {"benchmark": benchmark}
    if evaluation.repository is not None:
        commit = provenance.hub_commit(evaluation.repository, evaluation.branch, "dataset")
        what["data"] = {"repository": evaluation.repository, "branch": evaluation.branch, "commit": commit}
    what |= {"method": evaluation.method, "ratio": evaluation.ratio, "variant": evaluation.variant}
    samples = evaluation.samples
    if evaluation.limit is not None:
        samples = tasks * min(evaluation.limit, samples // tasks)
    identity, environment = evaluation.identity(framework, asked), evaluation.environment
    if evaluation.engine == VLLM:
        environment |= {serve.LOG: os.path.abspath(folder / "cells" / name)}
        what["engine"] = VLLM
    command = evaluation.command(command)
    return Cell(name, identity, command, environment, samples, lambda run: {"cell": what, **collect(run)}, what)


def read_summary(run: Path) -> tuple[dict[str, Any], Path]:
    """What a plugin wrote about a run, and the file, beside which the framework's own lie.

    Raises:
        CellError: there is none, there are several, or all samples failed.
    """
    found = regular(run, f"*/*{EFFICIENCY}")
    if len(found) != 1:
        raise CellError(f"expected one *{EFFICIENCY} below {str(run)!r}, found {len(found)}")
    return read_summary_file(found[0]), found[0]


def read_summary_file(file: Path) -> dict[str, Any]:
    """What a plugin wrote about a run.

    Raises:
        CellError: all samples failed.
    """
    summary: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if 0 < summary["n_failed"] >= len(summary["samples"]):
        raise CellError(f"all {summary['n_failed']} samples failed, the first: {summary['failed'][0]['reason']}")
    return summary


def run_by_hand(framework: Framework, summary: Mapping[str, Any], benchmark: str) -> dict[str, Any]:
    """What a cell.json says of itself, for a run of a framework's own command line."""
    return {
        "framework": framework.name,
        "model": Path(summary["model"]["pretrained"]).name,
        "benchmark": benchmark,
        "method": summary["method"],
        "ratio": summary["settings"].get("retention_ratio"),
        "variant": None,
    }


def answered(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The records of a summary that have an answer."""
    return [record for record in summary["samples"] if record.get("failure") is None]


def sample_row(
    record: Mapping[str, Any], *, id: str, kind: str, score: float, prediction: Any, answer: Any
) -> dict[str, Any]:
    """One sample of a cell.json: how it was scored, and the tokens of its record (tango.runs.runner.Record)."""
    tokens = record["tokens"]
    return {
        "id": id,
        "kind": kind,
        "score": score,
        "prediction": prediction,
        "answer": answer,
        "tokens_before": tokens["video_tokens_before"],
        "tokens_after": tokens["video_tokens_after"],
        "tokens_average": tokens["video_tokens_average"],
        "kept": [video.get("kept") for video in record["videos"]],  # hashes of the kept indices; None: not told, or all
    }


def result_of(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
    """The content of cell.json: provenance, efficiency, tokens, `more`, and one row a sample that has an answer.

    Raises:
        CellError: not all answers were scored.
    """
    if len(rows) != (count := len(answered(summary))):
        raise CellError(f"{len(rows)} samples were scored, {count} were answered")
    return {
        "provenance": {k: v for k, v in summary.items() if k not in ("efficiency", "tokens", "samples")},
        "efficiency": summary["efficiency"],
        "tokens": summary["tokens"],
        **more,
        "samples": sorted(rows, key=lambda row: str(row["id"])),
    }
