"""What the cells of both frameworks have in common: the run they stand for, its command, and how its files are read."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tango.pruners import Pruner
from tango.runs import provenance
from tango.runs.settings import VANILLA, VARIABLES, make_pruner
from tango.sweeps.frameworks import Framework
from tango.sweeps.sweep import Cell, CellError

EFFICIENCY = "_efficiency.json"


@dataclass(frozen=True)
class Evaluation:
    """A model to be evaluated with a method, in whichever framework and on whichever benchmark.

    pretrained: a folder or a hub id. samples: how many questions the benchmark has, before `limit`. data: its files; a
    change of any of them makes a finished cell out of date. ratio: None for the unpruned model. config: a settings file
    for TANGO_CONFIG. variant: what it makes of the method, where a sweep has several of one method and ratio. limit:
    only the first so many questions. processes: started by torchrun if more than one.

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

    @property
    def environment(self) -> dict[str, str]:
        """All variables of the settings are set, so that nothing of the caller's own environment reaches a cell; the
        hub is not asked where model and data are here.
        """
        variables = dict.fromkeys(VARIABLES, "") | {"WRAPPER": self.method}
        if self.ratio is not None:
            variables |= {"TANGO_ARGS": f"retention_ratio={self.ratio!r}", "TANGO_CONFIG": self.config or ""}
        if Path(self.pretrained).is_dir() and self.data:
            variables |= dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
        return variables


def framework_cell(
    folder: Path,
    framework: Framework,
    evaluation: Evaluation,
    *,
    benchmark: str,
    prefix: str,
    arguments: Sequence[str],
    collect: Callable[[Path], dict[str, Any]],
    more: Sequence[str] = (),
    tasks: int = 1,
) -> Cell:
    """A cell that runs a framework's command line in `folder`/cells/<name>/run.

    Args:
        benchmark: the framework's name for it. prefix: of the cell's name.
        arguments, more: of the command line, before and after the folder of results and --limit.
        tasks: how many the benchmark consists of; --limit holds for each.
    """
    name = f"{prefix}-{evaluation.name}"
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={evaluation.processes}"]
    command = [sys.executable, *(several if evaluation.processes > 1 else []), "-m", framework.module, *arguments]
    command += [framework.output, str(folder / "cells" / name / "run")]
    command += ["--limit", str(evaluation.limit)] if evaluation.limit is not None else []
    command += more
    settings = [Path(evaluation.config)] if evaluation.config and evaluation.ratio is not None else []
    relevant = ("python", "torch", "transformers", framework.package)
    identity = provenance.digest(
        command[1:],
        evaluation.environment,
        provenance.model_fingerprint(evaluation.pretrained),
        provenance.file_stamps([*evaluation.data, *settings]),
        provenance.code_fingerprint(),
        {package: version for package, version in provenance.versions().items() if package in relevant},
    )
    what: dict[str, Any] = {"framework": framework.name, "model": Path(evaluation.pretrained).name}
    what |= {"benchmark": benchmark}
    what |= {"method": evaluation.method, "ratio": evaluation.ratio, "variant": evaluation.variant}
    samples = evaluation.samples
    if evaluation.limit is not None:
        samples = tasks * min(evaluation.limit, samples // tasks)
    environment = evaluation.environment
    return Cell(name, identity, command, environment, samples, lambda run: {"cell": what, **collect(run)}, what)


def read_summary(run: Path) -> tuple[dict[str, Any], Path]:
    """What a plugin wrote about a run, and the file, beside which the framework's own lie.

    Raises:
        CellError: there is none, there are several, or samples failed.
    """
    found = sorted(run.glob(f"*/*{EFFICIENCY}"))
    if len(found) != 1:
        raise CellError(f"expected one *{EFFICIENCY} below {str(run)!r}, found {len(found)}")
    summary: dict[str, Any] = json.loads(found[0].read_text(encoding="utf-8"))
    if summary["n_failed"]:
        raise CellError(f"{summary['n_failed']} samples failed, the first: {summary['failed'][0]['reason']}")
    return summary, found[0]


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
        "kept": [video.get("kept") for video in record["videos"]],  # hashes of the kept indices
    }


def result_of(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
    """The content of cell.json: provenance, efficiency, tokens, `more`, and one row a sample.

    Raises:
        CellError: not all answers were scored.
    """
    if len(rows) != len(summary["samples"]):
        raise CellError(f"{len(rows)} samples were scored, {len(summary['samples'])} were answered")
    return {
        "provenance": {k: v for k, v in summary.items() if k not in ("efficiency", "tokens", "samples")},
        "efficiency": summary["efficiency"],
        "tokens": summary["tokens"],
        **more,
        "samples": sorted(rows, key=lambda row: str(row["id"])),
    }
