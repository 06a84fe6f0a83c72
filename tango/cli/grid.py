"""The grid of `tango sweep`: its keys, and reading them from a YAML file and from options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tango.cli.common import MODEL, SHIPPED_FRAMES, InputError
from tango.evaluation.frameworks import FRAMEWORKS, LMMS_EVAL, MOTIONQA


@dataclass
class Grid:
    """What to run: all combinations, and the unpruned model with each. Keys of the YAML file.

    models: folders or hub ids. benchmarks: any name that a framework has for them. config: a settings file for
    TANGO_CONFIG. limit: only the first so many questions. jobs: cells at a time. ray: address of a cluster to run them
    on instead, each on `gpus` GPUs (default 1). output: gets a folder for each model.
    """

    models: list[str] = field(default_factory=lambda: [MODEL])
    frameworks: list[str] = field(default_factory=lambda: [LMMS_EVAL.name])
    benchmarks: list[str] = field(default_factory=lambda: [MOTIONQA])
    methods: list[str] = field(default_factory=lambda: ["tango"])
    ratios: list[float] = field(default_factory=lambda: [0.1, 0.15, 0.2])
    frames: int = SHIPPED_FRAMES
    config: str | None = None
    limit: int | None = None
    jobs: int = 1
    ray: str | None = None
    gpus: int | None = None
    output: str = "build/sweeps/grid"


# Key of a grid: the type of its value or of its values, and whether there may be several.
KINDS: dict[str, tuple[Any, bool]] = {
    one.name: (
        {"list[str]": str, "list[float]": (int, float), "str": str, "str | None": str}.get(str(one.type), int),
        str(one.type).startswith("list"),
    )
    for one in dataclasses.fields(Grid)
}
LEAST = {"frames": 1, "limit": 1, "jobs": 1, "gpus": 0}


def read_grid(file: Path | None, given: Mapping[str, Any]) -> Grid:
    """The grid of a YAML file, of whose keys those that were given as options are replaced.

    Raises:
        InputError: no such file, not YAML, an unknown key, or a value of the wrong kind or out of range.
    """
    chosen = Grid(**((read_file(file) if file is not None else {}) | dict(given)))
    for ratio in chosen.ratios:
        if not 0 < ratio <= 1:
            raise InputError(f"ratio {ratio!r}: give a share of the tokens to keep in (0, 1], as 0.1")
    for name, least in LEAST.items():
        value = getattr(chosen, name)
        if value is not None and value < least:
            raise InputError(f"{name} = {value}: give an integer of at least {least}")
    for framework in chosen.frameworks:
        if framework not in FRAMEWORKS:
            raise InputError(f"framework {framework!r}: there are {' and '.join(FRAMEWORKS)}")
    if chosen.gpus is not None and chosen.ray is None:
        raise InputError(f"gpus = {chosen.gpus} goes with --ray; without it NPROC processes share this machine's GPUs")
    if chosen.jobs > 1 and chosen.ray is not None:
        raise InputError(f"jobs = {chosen.jobs}: Ray runs as many cells at a time as it has GPUs for; leave it out")
    return chosen


def read_file(file: Path) -> dict[str, Any]:
    """The keys of a grid in a YAML file, each value of its kind, single ones of lists put into one.

    Raises:
        InputError: as read_grid().
    """
    from tango.evaluation.settings import read_yaml

    try:
        content = read_yaml(file) or {}
    except OSError as error:
        raise InputError(f"{file} is no grid: {error}") from error
    except ValueError as error:
        raise InputError(f"{file} {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} holds {type(content).__name__}; it must map {', '.join(KINDS)} to values")
    found = {}
    for name, value in content.items():
        if name not in KINDS:
            raise InputError(f"{file}: unknown key {name!r}; a grid has {', '.join(KINDS)}")
        if value is None:  # null: as if it were not there
            continue
        kind, listed = KINDS[name]
        values = value if listed and isinstance(value, list) else [value]
        if not values or any(isinstance(one, bool) or not isinstance(one, kind) for one in values):
            expected = {str: "text", int: "an integer"}.get(kind, "a number")
            raise InputError(
                f"{file}: {name} = {value!r}: expected {expected}{', or a list of that' if listed else ''}"
            )
        found[name] = values if listed else value
    return found
