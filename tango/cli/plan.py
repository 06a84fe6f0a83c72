"""The cells of a grid of `tango sweep`, and what is missing for them on this machine, before anything is started."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tango.cli.common import DATA, MODEL, InputError, shipped
from tango.cli.grid import Grid
from tango.cli.inference import choose_pruners
from tango.evaluation.frameworks import FRAMEWORKS, LMMS_EVAL, QUESTIONS, Benchmark, Framework, benchmark_name

if TYPE_CHECKING:
    from tango.evaluation.sweep import Cell
    from tango.pruners.base import Pruner

# lmms-eval's names of the models in its plugin: by the class of a checkpoint and, where it is not on this machine, by
# what the names of published ones contain.
LMMS_MODELS = {
    "LlavaOnevisionForConditionalGeneration": "llava_onevision",
    "LlavaVideoForConditionalGeneration": "llava_vid",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl",
    "Qwen3VLForConditionalGeneration": "qwen3_vl",
    "Qwen3VLMoeForConditionalGeneration": "qwen3_vl",
}
PUBLISHED = {
    "llava-onevision": "llava_onevision",
    "llava-video": "llava_vid",
    "qwen2.5-vl": "qwen2_5_vl",
    "qwen3-vl": "qwen3_vl",
}
NO_GPU = "there is no GPU on this machine: the CPU is used, which takes days with a model of 7B"


@dataclass
class Plan:
    """The cells of a grid, each model's in a sweep of its own; what is missing for them; what cannot be; what is to be
    known.
    """

    cells: dict[str, list[Cell]]
    missing: list[str]
    left_out: list[str]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a model without loading it: a folder or hub id, lmms-eval's name of its kind, the layers of its
    language model; None where it is not here to be looked at, and `missing` says so.
    """

    source: str
    kind: str | None
    layers: int | None
    missing: str | None = None


def make_plan(grid: Grid) -> Plan:
    """All cells, what they lack on this machine, and what no method can do.

    Raises:
        InputError: an unknown method, benchmark or setting, or a combination that no framework has.
    """
    from tango.evaluation.preflight import has_gpu
    from tango.evaluation.settings import VANILLA
    from tango.pruners import REGISTRY

    methods = list(REGISTRY) if "all" in grid.methods else [name for name in grid.methods if name != VANILLA]
    pruners = [pruner for ratio in grid.ratios for pruner in choose_pruners(methods, ratio, grid.config, [])]
    pruners.sort(key=lambda one: methods.index(one.name))
    plan = Plan({}, [], [])
    count = processes_of(grid, plan.missing)
    for given in grid.models:
        checkpoint = look_at(shipped(MODEL) if given == MODEL else given)
        name = Path(checkpoint.source).name
        if name in plan.cells:
            raise InputError(f"two models are called {name!r}; they would share a folder, so sweep them one by one")
        if checkpoint.missing is not None:
            plan.missing.append(checkpoint.missing)
        choices: list[tuple[str, float | None]] = [(VANILLA, None)]
        for pruner in pruners:
            if (reason := impossible(pruner, checkpoint.layers)) is None:
                choices.append((pruner.name, pruner.retention_ratio))
            else:
                plan.left_out.append(f"{name}: {reason}")
        folder = Path(os.path.abspath(grid.output)) / name
        plan.cells[name] = []
        for framework in dict.fromkeys(grid.frameworks):
            plan.cells[name] += cells_of(grid, FRAMEWORKS[framework], checkpoint, folder, choices, count, plan.missing)
    plan.missing = list(dict.fromkeys(plan.missing))
    if grid.ray is None and not has_gpu() and set(grid.models) != {MODEL}:
        plan.notes.append(NO_GPU)
    return plan


def processes_of(grid: Grid, missing: list[str]) -> int:
    """How many processes a cell has: NPROC or one a GPU, on Ray one for each of its GPUs. Why not goes to `missing`."""
    from tango.evaluation.preflight import processes

    if grid.ray is not None:
        return max(1, 1 if grid.gpus is None else grid.gpus)
    try:
        return processes()
    except ValueError as error:
        missing.append(str(error))
        return 1


def look_at(model: str) -> Checkpoint:
    """What a checkpoint is, or what its name says where it cannot be loaded.

    Raises:
        InputError: it is there, and no checkpoint that this project can use.
    """
    from tango.evaluation.checkpoints import CheckpointError, class_name
    from tango.evaluation.preflight import missing_checkpoint
    from tango.models.original import read_config

    problem = missing_checkpoint(model)
    if problem is not None:
        kinds = (kind for part, kind in PUBLISHED.items() if part in model.lower())
        return Checkpoint(model, next(kinds, None), None, problem)
    config = read_config(model)
    try:
        kind = LMMS_MODELS[class_name(model)]
    except CheckpointError as error:
        raise InputError(str(error)) from error
    return Checkpoint(model, kind, config.get("text_config", config).get("num_hidden_layers"))


def impossible(pruner: Pruner, layers: int | None) -> str | None:
    """Why a method cannot keep its share of the tokens in a language model of so many layers; None if it can."""
    if layers is not None:
        try:
            pruner.in_llm(layers)
        except ValueError as error:
            return str(error)
    return None


def cells_of(
    grid: Grid,
    framework: Framework,
    checkpoint: Checkpoint,
    folder: Path,
    choices: Sequence[tuple[str, float | None]],
    processes: int,
    missing: list[str],
) -> Iterator[Cell]:
    """One framework's cells of one model, with each choice of a method and ratio; what they lack goes to `missing`.

    Raises:
        InputError: a benchmark, or a number of frames, that the framework does not have.
    """
    from tango.evaluation.cells import Evaluation
    from tango.evaluation.lmms_cells import lmms_cell
    from tango.evaluation.preflight import missing_pooling_head
    from tango.evaluation.vlmeval_cells import vlmeval_cell

    if framework.frames is not None and grid.frames not in framework.frames:
        numbers = ", ".join(map(str, framework.frames))
        raise InputError(f"frames = {grid.frames}: {framework.name} has data sets of {numbers}")
    if find_spec(framework.plugin) is None:
        advice = f"in a checkout: make setup, or pip install --no-deps -e ./{framework.name}"
        missing.append(f"{framework.name}'s plugin is not installed; {advice}")
    hub = not Path(checkpoint.source).is_dir()
    if hub and (checkpoint.kind or "").startswith("llava") and (lost := missing_pooling_head(checkpoint.source)):
        missing.append(lost)
    for name in dict.fromkeys(map(benchmark_name, grid.benchmarks)):
        if name not in framework.benchmarks:
            raise InputError(f"benchmark {name!r}: {framework.name} has {', '.join(framework.benchmarks)}")
        benchmark = framework.benchmarks[name]
        count, data = questions_of(name, benchmark, missing)
        for method, ratio in choices:
            evaluation = Evaluation(
                checkpoint.source, count, data, method, ratio, grid.config, limit=grid.limit, processes=processes
            )
            if framework is not LMMS_EVAL:
                yield vlmeval_cell(folder, evaluation, dataset=f"{benchmark.name}_{grid.frames}frame")
            elif checkpoint.kind is not None:  # else it is missing, and lmms-eval's name for it is not known
                yield lmms_cell(
                    folder,
                    evaluation,
                    task=benchmark.name,
                    max_frames=grid.frames,
                    model=checkpoint.kind,
                    tasks=benchmark.tasks,
                )


def questions_of(name: str, benchmark: Benchmark, missing: list[str]) -> tuple[int, list[Path]]:
    """How many questions a benchmark has, and its files if it is shipped; a data set that is not here goes to
    `missing`.
    """
    from tango.evaluation.preflight import missing_dataset

    if benchmark.repository is None:
        file = Path(shipped(f"{DATA}/test.json"))
        questions = json.loads(file.read_text(encoding="utf-8"))
        return len(questions), [file, *sorted((file.parent / "videos").iterdir())]
    if lost := missing_dataset(benchmark.repository, benchmark.pattern):
        missing.append(lost)
    return QUESTIONS[name], []
