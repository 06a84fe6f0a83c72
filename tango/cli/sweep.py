"""`tango sweep`: a grid of models, frameworks, benchmarks, methods and ratios, run by the sweep engine."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from tango.cli.common import (
    BAD_INPUT,
    DATA,
    FAILED,
    MODEL,
    OK,
    SHIPPED_FRAMES,
    Config,
    InputError,
    Json,
    check_ratio,
    console,
    print_json,
    shipped,
    stdout_for_json,
    steps,
)

if TYPE_CHECKING:
    from tango.evaluation.sweep import Cell

EXAMPLES = (
    "tango sweep --ratio 0.1 --ratio 0.2 --limit 60",
    "tango sweep configs/sweeps/tango_tiny.yaml --dry-run",
    "tango sweep --framework VLMEvalKit --model lmms-lab/llava-onevision-qwen2-7b-ov --frames 32 --benchmark Video-MME "
    "--config configs/llava_onevision.yaml",
)
LMMS, VLMEVAL = "lmms-eval", "VLMEvalKit"
MOTIONQA = "MotionQA"
VLMEVAL_FRAMES = (8, 16, 32, 64)  # of which VLMEvalKit knows data sets
# Models of the lmms-eval plugin that take the number of frames as lmms_cell() gives it, by what they load.
LMMS_MODELS = {
    "LlavaOnevisionForConditionalGeneration": "llava_onevision",
    "LlavaVideoForConditionalGeneration": "llava_vid",
}


@dataclass
class Grid:
    """What to run: all combinations, and the unpruned model with each. Keys of the YAML file."""

    models: list[str] = field(default_factory=lambda: [MODEL])
    frameworks: list[str] = field(default_factory=lambda: [LMMS])
    benchmarks: list[str] = field(default_factory=lambda: [MOTIONQA])
    methods: list[str] = field(default_factory=lambda: ["tango"])
    ratios: list[float] = field(default_factory=lambda: [0.1, 0.15, 0.2])
    frames: int = SHIPPED_FRAMES
    config: str | None = None
    limit: int | None = None
    jobs: int = 1
    output: str = "build/sweeps/grid"


@dataclass
class Plan:
    """The cells of a grid, each model's in a sweep of its own; what is missing for them, and what cannot be."""

    cells: dict[str, list[Cell]]
    missing: list[str]
    left_out: list[str]


def sweep(
    grid: Annotated[Path | None, typer.Argument(help="YAML file of a grid; options win.")] = None,
    models: Annotated[list[str] | None, typer.Option("--model", metavar="NAME", help="Folder or hub id.")] = None,
    frameworks: Annotated[
        list[str] | None, typer.Option("--framework", metavar="NAME", help=f"{LMMS} or {VLMEVAL}.")
    ] = None,
    benchmarks: Annotated[
        list[str] | None,
        typer.Option("--benchmark", metavar="NAME", help=f"{MOTIONQA}; in {VLMEVAL} Video-MME .. too."),
    ] = None,
    methods: Annotated[list[str] | None, typer.Option("--method", metavar="NAME", help="Method, or 'all'.")] = None,
    ratios: Annotated[
        list[float] | None,
        typer.Option("--ratio", callback=check_ratio, help="Share of the tokens to keep."),
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames of each video.")] = None,
    config: Config = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many questions.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Cells at a time.")] = None,
    output: Annotated[str | None, typer.Option(help="Folder; each model has its own in it.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print each command and what is missing.")] = False,
    as_json: Json = False,
) -> int:
    """Evaluate a grid of (model, framework, benchmark, method, ratio), each with the unpruned model beside it.

    --model, --framework, --benchmark, --method and --ratio may be repeated. What is missing is named before anything
    starts. Stopped and started again it goes on where it was; what failed is told apart from what is finished.
    """
    given = {
        "models": models, "frameworks": frameworks, "benchmarks": benchmarks, "methods": methods, "ratios": ratios,
        "frames": frames, "config": config, "limit": limit, "jobs": jobs, "output": output,
    }  # fmt: skip
    chosen = read_grid(grid, {name: value for name, value in given.items() if value not in (None, [])})
    with stdout_for_json(as_json), steps(1) as step:
        step("looking at what is there")
        plan = make_plan(chosen)
    for line in plan.left_out:
        print(f"tango: left out: {line}", file=sys.stderr)
    if dry_run:
        for line in plan.missing:
            print(f"tango: missing: {line}", file=sys.stderr)
        show_commands(plan, as_json)
        return BAD_INPUT if plan.missing else OK
    if plan.missing:
        raise InputError(f"nothing was started: {'; '.join(plan.missing)}")
    return run(plan, chosen, as_json)


def read_grid(file: Path | None, given: Mapping[str, Any]) -> Grid:
    """The grid of a YAML file, of whose keys those that were given as options are replaced.

    Raises:
        InputError: no such file, not YAML, an unknown key, or a value of the wrong kind or out of range.
    """
    content: Any = {}
    if file is not None:
        from tango.evaluation.settings import read_yaml

        try:
            content = read_yaml(file) or {}
        except OSError as error:
            raise InputError(f"{file} is no grid: {error}") from error
        except ValueError as error:
            raise InputError(f"{file} {error}") from error
        if not isinstance(content, dict):
            raise InputError(f"{file} holds {type(content).__name__}; it must map {', '.join(KINDS)} to values")
    for name in content:
        if name not in KINDS:
            raise InputError(f"{file}: unknown key {name!r}; a grid has {', '.join(KINDS)}")
    content = {name: value for name, value in content.items() if value is not None}  # null: as if it were not there
    for name, value in content.items():
        kind, listed = KINDS[name]
        values = value if listed and isinstance(value, list) else [value]
        if not values or any(isinstance(one, bool) or not isinstance(one, kind) for one in values):
            expected = {str: "text", int: "an integer"}.get(kind, "a number")
            raise InputError(
                f"{file}: {name} = {value!r}: expected {expected}{', or a list of that' if listed else ''}"
            )
        content[name] = values if listed else value
    chosen = Grid(**(content | given))
    for ratio in chosen.ratios:
        if not 0 < ratio <= 1:
            raise InputError(f"ratio {ratio!r}: give a share of the tokens to keep in (0, 1], as 0.1")
    for name in ("frames", "limit", "jobs"):
        value = getattr(chosen, name)
        if value is not None and value < 1:
            raise InputError(f"{name} = {value}: give an integer of at least 1")
    for framework in chosen.frameworks:
        if framework not in (LMMS, VLMEVAL):
            raise InputError(f"framework {framework!r}: there are {LMMS} and {VLMEVAL}")
    return chosen


# Key of a grid: the type of its value or of its values, and whether there may be several.
KINDS: dict[str, tuple[Any, bool]] = {
    one.name: (
        {"list[str]": str, "list[float]": (int, float), "str": str, "str | None": str}.get(str(one.type), int),
        str(one.type).startswith("list"),
    )
    for one in dataclasses.fields(Grid)
}


def make_plan(grid: Grid) -> Plan:
    """All cells, what they lack on this machine, and what no method can do.

    Raises:
        InputError: an unknown method, benchmark or setting, or a combination that no framework has.
    """
    from tango.cli.inference import choose_pruners
    from tango.evaluation.settings import VANILLA
    from tango.pruners import REGISTRY

    methods = list(REGISTRY) if "all" in grid.methods else [name for name in grid.methods if name != VANILLA]
    pruners = [pruner for ratio in grid.ratios for pruner in choose_pruners(methods, ratio, grid.config, [])]
    plan = Plan({}, [], [])
    for given in grid.models:
        model = shipped(MODEL) if given == MODEL else given
        name = Path(model).name
        if name in plan.cells:
            raise InputError(f"two models are called {name!r}; they would share a folder, so sweep them one by one")
        problem, layers, cls = look_at(model)
        plan.missing += [problem] if problem else []
        choices: list[tuple[str, float | None]] = [(VANILLA, None)]
        for pruner in sorted(pruners, key=lambda one: methods.index(one.name)):
            try:
                if layers is not None:
                    pruner.in_llm(layers)
            except ValueError as error:
                plan.left_out.append(f"{name}: {error}")
                continue
            choices.append((pruner.name, pruner.retention_ratio))
        folder = Path(os.path.abspath(grid.output)) / name
        plan.cells[name] = []
        for framework in dict.fromkeys(grid.frameworks):
            make = lmms_cells if framework == LMMS else vlmeval_cells
            plan.cells[name] += make(grid, model, cls, folder, choices, plan.missing)
    plan.missing = list(dict.fromkeys(plan.missing))
    return plan


def look_at(model: str) -> tuple[str | None, int | None, str | None]:
    """Why a checkpoint cannot be loaded, if it cannot; else the layers of its language model, and its class.

    Raises:
        InputError: it is there, and no checkpoint that this project can use.
    """
    from tango.evaluation.checkpoints import CheckpointError, class_name
    from tango.evaluation.preflight import missing_checkpoint
    from tango.models.original import read_config

    problem = missing_checkpoint(model)
    if problem is not None:
        return problem, None, None
    config = read_config(model)
    try:
        return None, config.get("text_config", config).get("num_hidden_layers"), class_name(model)
    except CheckpointError as error:
        raise InputError(str(error)) from error


def lmms_cells(
    grid: Grid,
    model: str,
    cls: str | None,
    folder: Path,
    choices: Sequence[tuple[str, float | None]],
    missing: list[str],
) -> Iterator[Cell]:
    """Cells that run lmms-eval, none for a model that is not there; what they lack is added to `missing`."""
    from tango.evaluation.cells import Evaluation
    from tango.evaluation.lmms_cells import lmms_cell

    if others := [name for name in grid.benchmarks if name != MOTIONQA]:
        raise InputError(
            f"benchmark {others[0]!r} in {LMMS}: only {MOTIONQA} can be swept there; use --framework {VLMEVAL}, "
            f"or lmms-eval/run_profile.sh"
        )
    if problem := missing_package("tango_lmms_eval", LMMS, "lmms-eval"):
        missing.append(problem)
    questions = Path(shipped(f"{DATA}/test.json"))
    if cls is None:
        return
    if cls not in LMMS_MODELS:
        raise InputError(f"{model} is a {cls}, which can be swept in {VLMEVAL} only; use --framework {VLMEVAL}")
    for method, ratio in choices:
        evaluation = Evaluation(
            model,
            len(json.loads(questions.read_text(encoding="utf-8"))),
            [questions, *sorted((questions.parent / "videos").iterdir())],
            method,
            ratio,
            grid.config,
            limit=grid.limit,
        )
        yield lmms_cell(folder, evaluation, task="motionqa", max_frames=grid.frames, model=LMMS_MODELS[cls])


def vlmeval_cells(
    grid: Grid,
    model: str,
    cls: str | None,
    folder: Path,
    choices: Sequence[tuple[str, float | None]],
    missing: list[str],
) -> Iterator[Cell]:
    """Cells that run VLMEvalKit, made by its plugin; what they lack is added to `missing`."""
    if problem := missing_package("tango_vlmeval", VLMEVAL, "VLMEvalKit"):
        missing.append(problem)
        return
    from tango_vlmeval import benchmarks

    from tango.evaluation.preflight import processes

    known = [*benchmarks.BENCHMARKS, MOTIONQA]
    if unknown := [name for name in grid.benchmarks if name not in known]:
        raise InputError(f"benchmark {unknown[0]!r}: {VLMEVAL} has {', '.join(known)}")
    if grid.frames not in VLMEVAL_FRAMES:
        raise InputError(f"frames = {grid.frames}: {VLMEVAL} has data sets of {', '.join(map(str, VLMEVAL_FRAMES))}")
    try:
        count = processes()
    except ValueError as error:
        raise InputError(str(error)) from error
    for_plugin = argparse.Namespace(
        model=model,
        pooling_head=cls is not None and cls.startswith("Llava"),  # whose saliency is read from SigLIP's checkpoint
        benchmarks=grid.benchmarks,
        methods=[],
        ratios=[],
        config=grid.config,
        output=folder,
        frames=grid.frames,
        limit=grid.limit,
    )
    missing += benchmarks.missing(for_plugin)
    for benchmark in grid.benchmarks:
        for method, ratio in choices:
            yield benchmarks.cell(for_plugin, benchmark, method, ratio, count)


def missing_package(module: str, name: str, folder: str) -> str | None:
    """Why a framework cannot be used, if its plugin is not installed."""
    from importlib.util import find_spec

    if find_spec(module) is not None:
        return None
    return f"{name}'s plugin is not installed; in a checkout: make setup, or pip install --no-deps -e ./{folder}"


def shell_line(cell: Cell) -> str:
    """A cell's command as one would type it."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in cell.environment.items() if value]
    return " ".join([*variables, shlex.join(cell.command)])


def show_commands(plan: Plan, as_json: bool) -> None:
    cells = [(model, cell) for model, cells in plan.cells.items() for cell in cells]
    if as_json:
        told = [
            {"model": model, "name": cell.name, "environment": cell.environment, "command": list(cell.command)}
            for model, cell in cells
        ]
        print_json({"cells": told, "missing": plan.missing, "left_out": plan.left_out})
        return
    for _, cell in cells:
        print(shell_line(cell))


def run(plan: Plan, grid: Grid, as_json: bool) -> int:
    """Run each model's sweep, then print tables; 1 if a cell failed."""
    from tango.evaluation.sweep import Sweep, SweepError
    from tango.results import summary

    screen, told = console(), []
    failures: dict[str, str] = {}
    for model, cells in plan.cells.items():
        one = Sweep(Path(grid.output) / model, cells, grid.jobs, Console(stderr=True))
        try:
            failures |= {f"{model}/{name}": reason for name, reason in one.run().items()}
        except SweepError as error:
            raise InputError(str(error)) from error
        results = one.results()
        told += [short(result) for result in results]
        if results and not as_json:
            screen.rule(model)
            screen.print(summary(results))
    for name, reason in failures.items():
        print(f"tango: {name} failed: {reason}", file=sys.stderr)
    if told and not as_json:
        screen.print(f"Tables, times and plots: tango results {shlex.quote(grid.output)}", highlight=False)
    if as_json:
        print_json({"folder": grid.output, "cells": told, "failed": failures, "left_out": plan.left_out})
    return FAILED if failures else OK


def short(result: Mapping[str, Any]) -> dict[str, Any]:
    """A cell's result without its samples."""
    scores = [sample["score"] for sample in result["samples"]]
    return {
        **result["cell"],
        "questions": len(scores),
        "accuracy": sum(scores) / len(scores) if scores else None,
        "tokens": result["tokens"],
        "efficiency": {k: v for k, v in result["efficiency"].items() if k not in ("units", "meaning")},
    }
