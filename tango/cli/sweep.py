"""`tango sweep`: a grid of models, frameworks, benchmarks, methods and ratios, run by the sweep engine."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tango.cli import common
from tango.cli.answering import input_errors
from tango.cli.common import BAD_INPUT, FAILED, OK, RATIO, InputError, console, print_json, stdout_for_json, steps
from tango.runs.screen import Screen, note, visible
from tango.sweeps.frameworks import FRAMEWORKS, MOTIONQA, QUESTIONS

if TYPE_CHECKING:
    from tango.sweeps.expand import Expanded
    from tango.sweeps.grid import Grid
    from tango.sweeps.sweep import Cell

EXAMPLES = (
    "tango sweep --ratio 0.1 --ratio 0.2 --limit 60",
    "tango sweep configs/sweeps/tango_tiny.yaml --dry-run",
    "tango sweep --framework VLMEvalKit --model lmms-lab/llava-onevision-qwen2-7b-ov --frames 32 --benchmark Video-MME "
    "--config configs/llava_onevision.yaml",
    "tango sweep configs/sweeps/llava_video.yaml --ray auto --gpus 2",
    "tango sweep configs/sweeps/llava_onevision.yaml --dry-run --estimate --tflops 300",
)


def sweep(
    grid: Annotated[Path | None, typer.Argument(help="YAML file of a grid; options win.")] = None,
    models: Annotated[list[str] | None, typer.Option("--model", metavar="NAME", help="Folder or hub id.")] = None,
    frameworks: Annotated[
        list[str] | None, typer.Option("--framework", metavar="NAME", help=f"{' or '.join(FRAMEWORKS)}.")
    ] = None,
    benchmarks: Annotated[
        list[str] | None, typer.Option("--benchmark", metavar="NAME", help=f"{MOTIONQA}, {', '.join(QUESTIONS)}.")
    ] = None,
    methods: Annotated[list[str] | None, typer.Option("--method", metavar="NAME", help="Method, or 'all'.")] = None,
    ratios: Annotated[list[float] | None, typer.Option("--ratio", help="Share of the tokens to keep.", **RATIO)] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames of each video.")] = None,
    config: common.Config = None,
    ablations: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Settings files, each Tango once more at the smallest ratio."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="auto (as stored), float32, float16 or bfloat16.")] = None,
    attn_implementation: Annotated[
        str | None, typer.Option(metavar="NAME", help="sdpa, eager or flash_attention_2.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(metavar="NAME", help="transformers, or vllm: a server beside each cell.")
    ] = None,
    wandb_args: Annotated[
        str | None, typer.Option(metavar="ARGS", help="lmms-eval's --wandb_args, as project=tango.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many questions.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Cells at a time.")] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Run on this Ray cluster (auto: the one here; local: start one)."),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=0, help="With --ray: GPUs, and so processes, of each cell.", show_default="1")
    ] = None,
    output: Annotated[str | None, typer.Option(help="Folder; each model has its own in it.")] = None,
    cell: Annotated[
        int | None, typer.Option(min=1, help="Only the cell of this number, counted as --dry-run lists them.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print each command and what is missing.")] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="With --dry-run: GPU hours, memory and disk in place of the commands.")
    ] = False,
    tflops: Annotated[
        float | None,
        typer.Option(min=0.001, help="For --estimate: what a GPU sustains in prefill.", show_default="127, of an A800"),
    ] = None,
    as_json: common.Json = False,
) -> int:
    """Evaluate a grid of (model, framework, benchmark, method, ratio), each with the unpruned model beside it.

    --model, --framework, --benchmark, --method and --ratio may be repeated. What is missing is named before anything
    starts. Stopped and started again it goes on where it was; what failed is kept apart from what is finished. A cell
    has NPROC processes, by default one a GPU; with --ray, cells run side by side on the nodes of a cluster. With
    --cell, several of these may work in one folder, each at a cell of its own: the tasks of a job array.
    """
    if (estimate and not dry_run) or (tflops is not None and not estimate):
        raise InputError("--estimate goes with --dry-run, which starts nothing, and --tflops with --estimate")
    options = {
        "models": models, "frameworks": frameworks, "benchmarks": benchmarks, "methods": methods, "ratios": ratios,
        "frames": frames, "config": config, "ablations": ablations, "limit": limit, "jobs": jobs, "ray": ray,
        "gpus": gpus, "output": output, "dtype": dtype, "attn_implementation": attn_implementation, "engine": engine,
        "wandb_args": wandb_args,
    }  # fmt: skip
    with stdout_for_json(as_json), steps(1) as step, input_errors():
        step("looking at what is there")
        from tango.sweeps import expand
        from tango.sweeps.grid import read_grid

        chosen = read_grid(grid, {name: value for name, value in options.items() if value not in (None, [])})
        expanded = expand.expand(chosen)
        if cell is not None:
            expanded.cells = one_cell(expanded, cell)
    for line in expanded.left_out:
        note(f"tango: left out: {line}")
    for line in expanded.notes:
        note(f"note: {line}")
    if dry_run:
        for line in expanded.missing:
            note(f"missing: {line}")
        if estimate:
            from tango.cli.estimates import show_estimates

            show_estimates(expanded, chosen, tflops, as_json)
        else:
            show_commands(expanded, as_json)
        return BAD_INPUT if expanded.missing else OK
    if expanded.missing:
        raise InputError(f"nothing was started: {'; '.join(expanded.missing)}")
    return run(expanded, chosen, as_json, part=cell is not None)


def one_cell(expanded: Expanded, number: int) -> dict[str, list[Cell]]:
    """The cell of a number from 1 on, in the order of the grid, below its model."""
    every = expanded.every
    if number > len(every):
        raise InputError(f"--cell {number}: this grid has cells 1 to {len(every)}; --dry-run lists them, one a line")
    model, cell = every[number - 1]
    return {model: [cell]}


def show_commands(expanded: Expanded, as_json: bool) -> None:
    """Print the command of each cell as one would type it in any folder; as JSON with what is missing and left out."""
    if as_json:
        commands = [
            {"model": model, "name": cell.name, "environment": cell.environment, "command": list(cell.command)}
            for model, cell in expanded.every
        ]
        print_json({"cells": commands, "missing": expanded.missing, "left_out": expanded.left_out})
        return
    for _, cell in expanded.every:
        variables = [f"{name}={shlex.quote(value) if value else ''}" for name, value in cell.environment.items()]
        print(visible(" ".join([*variables, shlex.join(cell.command)])))


def run(expanded: Expanded, grid: Grid, as_json: bool, part: bool = False) -> int:
    """Run each model's sweep, or a part of it beside others, then print tables; 1 if a cell failed."""
    from tango.results import summaries
    from tango.sweeps.machines import RayCluster
    from tango.sweeps.sweep import Sweep, SweepError

    screen, finished = console(), []
    failures: dict[str, str] = {}
    try:
        with contextlib.ExitStack() as stack:
            machine = None
            if grid.ray is not None:
                machine = stack.enter_context(RayCluster(grid.ray, 1 if grid.gpus is None else grid.gpus))
            for model, cells in expanded.cells.items():
                progress = Screen(stderr=True)
                one = Sweep(Path(grid.output) / model, cells, grid.jobs, progress, machine, part)
                failures |= {f"{model}/{name}": reason for name, reason in one.run().items()}
                results = one.results()
                finished += [short(result) for result in results]
                if results and not as_json:
                    screen.rule(model)
                    screen.print(*summaries(results))
    except SweepError as error:
        raise InputError(str(error)) from error
    for name, reason in failures.items():
        note(f"tango: {name} failed: {reason}")
    if finished and not as_json:
        screen.print(f"All tables and plots: tango results {shlex.quote(grid.output)}", highlight=False)
    if as_json:
        print_json({"folder": grid.output, "cells": finished, "failed": failures, "left_out": expanded.left_out})
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
