"""`tango sweep --dry-run --estimate`: what the cells will take, as a table or JSON (tango.sweeps.estimate)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tango.cli.common import console, print_json
from tango.runs.summary import terminal_table

if TYPE_CHECKING:
    from tango.sweeps.expand import Expanded
    from tango.sweeps.grid import Grid

COLUMNS = {  # of the table: heading and format
    "questions": ("questions", "{:d}"), "prompt": ("tokens of\nthe prompt", "{:d}"),
    "vision": ("vision\n(TFLOP)", "{:.3g}"), "prefill": ("prefill\n(TFLOP)", "{:.3g}"),
    "decoding": ("decoding\n(TFLOP)", "{:.2g}"), "computing": ("generate()\n(GPU h)", "{:.2f}"),
    "hours": ("wall\n(h)", "{:.2f}"), "gpu_hours": ("GPUs held\n(h)", "{:.2f}"),
    "memory": ("memory of\na GPU (GB)", "{:.2f}"),
}  # fmt: skip


def show_estimates(expanded: Expanded, grid: Grid, tflops: float | None, as_json: bool) -> None:
    """Print what each cell and all of them will take, and for which models too little is known to say."""
    from tango.sweeps import estimate

    models: dict[str, estimate.Model | None] = dict.fromkeys(expanded.sources)
    unknown = {}
    for name, source in expanded.sources.items():
        config = estimate.config_here(source)
        try:
            models[name] = None if config is None else estimate.model_of(config, grid.frames)
        except ValueError as error:
            unknown[name] = str(error)
    count = expanded.processes
    cells = [
        estimate.estimate(cell, name, model, count, tflops)
        for name, cell in expanded.every
        if (model := models[name]) is not None
    ]
    every = [cell for _, cell in expanded.every]
    disk = estimate.disk(every, {expanded.sources[name]: model for name, model in models.items()})
    rate = tflops if tflops is not None else round(estimate.PREFILL_RATE / 1e12)
    total = {
        "hours": sum(one.hours for one in cells) / grid.jobs,
        "gpu_hours": sum(one.gpu_hours for one in cells),
        "memory": max((one.memory for one in cells), default=0.0),
        "disk": sum(size for _, size, _ in disk) + sum(one.disk for one in cells),
    }
    notes = [
        f"An estimate by count of operations, at {rate:g} TFLOP/s sustained in prefill and half of that in the tower "
        f"(--tflops), {count} GPU{'s' * (count > 1)} a cell: nothing was measured. The arithmetic: docs/reproduce.md.",
        *(
            f"no estimate for {name}: {unknown.get(name, 'its config.json is not here')}"
            for name, model in models.items()
            if model is None
        ),
    ]
    if as_json:
        print_json({
            "cells": [asdict(one) for one in cells],
            "disk": [{"name": name, "GB": size, "known": known} for name, size, known in disk],
            "total": total,
            "units": {name: text.rpartition("(")[2].rstrip(")") for name, (text, _) in COLUMNS.items() if "(" in text},
            "notes": notes,
        })  # fmt: skip
        return
    screen = console()
    screen.print(_table([asdict(one) for one in cells], total))
    for name, size, known in [*disk, ("results", sum(one.disk for one in cells), "records, logs and journals")]:
        screen.say(f"disk: {name}: {_gigabytes(size)} ({known})")
    screen.print(f"disk in all: {_gigabytes(total['disk'])}", highlight=False)
    for note in notes:
        screen.say(note)


def _gigabytes(size: float) -> str:
    return f"{size:,.0f} GB" if size >= 10 else f"{size:.2g} GB"


def _table(cells: list[dict[str, Any]], total: Mapping[str, float]) -> Table:
    table = terminal_table("Estimates")
    for heading, _ in COLUMNS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for one in cells:
        numbers = (text.format(one[name]) for name, (_, text) in COLUMNS.items())
        table.add_row(f"{one['model']}: {one['name']}", *numbers)
    table.add_row("all", *(text.format(total[name]) if name in total else "" for name, (_, text) in COLUMNS.items()))
    return table
