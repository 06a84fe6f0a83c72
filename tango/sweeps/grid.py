"""A grid of evaluations: its keys, read from a YAML file and from the options of `tango sweep`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tango.motionqa.shipped import FRAMES, MODEL
from tango.runs.reading import read_yaml, sentence
from tango.sweeps.cells import TRANSFORMERS, VLLM
from tango.sweeps.frameworks import FRAMEWORKS, LMMS_EVAL, MOTIONQA


def _ratio(value: float) -> float:
    if not 0 < value <= 1:
        raise ValueError("give a share of the tokens to keep in (0, 1], as 0.1")
    return value


def _one_of(*choices: str, advice: str = "") -> AfterValidator:
    """Only these words; the advice says which."""

    def check(word: str) -> str:
        if word not in choices:
            raise ValueError(advice or f"use {', '.join(choices)}")
        return word

    return AfterValidator(check)


FRAMEWORK = _one_of(*FRAMEWORKS, advice=f"there are {' and '.join(FRAMEWORKS)}")
ENGINE = _one_of(TRANSFORMERS, VLLM, advice=f"use {TRANSFORMERS} or {VLLM}")
OneOrMore = (Field(min_length=1), BeforeValidator(lambda value: value if isinstance(value, list) else [value]))
AtLeastOne = Field(ge=1)


class Grid(BaseModel):
    """What to run: all combinations, and the unpruned model with each. Keys of the YAML file.

    models: folders or hub ids. benchmarks: any name that a framework has for them. config: a settings file for
    TANGO_CONFIG. ablations: a settings file or a folder of such, each Tango once more at the smallest ratio. limit:
    only the first so many questions. jobs: cells at a time. ray: address of a cluster to run them on instead, each on
    `gpus` GPUs (default 1). output: gets a folder for each model. dtype, attn_implementation: of the model, by default
    as it is stored and sdpa. wandb_args: handed to lmms-eval as they are.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    models: Annotated[list[str], *OneOrMore] = [MODEL]
    frameworks: Annotated[list[Annotated[str, FRAMEWORK]], *OneOrMore] = [LMMS_EVAL.name]
    benchmarks: Annotated[list[str], *OneOrMore] = [MOTIONQA]
    methods: Annotated[list[str], *OneOrMore] = ["tango"]
    ratios: Annotated[list[Annotated[float, AfterValidator(_ratio)]], *OneOrMore] = [0.1, 0.15, 0.2]
    frames: Annotated[int, AtLeastOne] = FRAMES
    config: str | None = None
    ablations: str | None = None
    limit: Annotated[int, AtLeastOne] | None = None
    jobs: Annotated[int, AtLeastOne] = 1
    ray: str | None = None
    gpus: Annotated[int, Field(ge=0)] | None = None
    output: str = "build/sweeps/grid"
    dtype: Annotated[str, _one_of("auto", "float32", "float16", "bfloat16")] | None = None
    attn_implementation: Annotated[str, _one_of("sdpa", "eager", "flash_attention_2")] | None = None
    engine: Annotated[str, ENGINE] = TRANSFORMERS
    vllm_options: list[str] = []
    wandb_args: str | None = None


def read_grid(file: Path | None, options: Mapping[str, Any]) -> Grid:
    """The grid of a YAML file; options take the place of keys of the same name.

    Raises:
        ValueError: no such file, not YAML, an unknown key, or a value of the wrong kind or out of range.
    """
    content = {} if file is None else read_file(file)
    try:
        chosen = Grid(**{**content, **options})
    except ValidationError as error:
        source = "" if error.errors()[0]["loc"][0] in options else f"{file}: "
        raise ValueError(source + sentence(error, "")) from error
    if chosen.gpus is not None and chosen.ray is None:
        raise ValueError(f"gpus = {chosen.gpus} goes with --ray; without it NPROC processes share this machine's GPUs")
    if chosen.jobs > 1 and chosen.ray is not None:
        raise ValueError(f"jobs = {chosen.jobs}: Ray runs as many cells at a time as it has GPUs for; leave it out")
    if chosen.vllm_options and chosen.engine != VLLM:
        raise ValueError(f"vllm_options = {chosen.vllm_options} goes with engine: vllm")
    if chosen.wandb_args is not None and LMMS_EVAL.name not in chosen.frameworks:
        raise ValueError(f"wandb_args = {chosen.wandb_args!r}: only {LMMS_EVAL.name} has them; leave them out")
    if chosen.attn_implementation is not None and chosen.engine == VLLM:
        raise ValueError(f"attn_implementation = {chosen.attn_implementation!r}: vLLM has its own; leave it out")
    return chosen


def read_file(file: Path) -> dict[str, Any]:
    """The keys of a YAML file that have a value, paths of settings and models as the file means them."""
    try:
        content = read_yaml(file) or {}
    except OSError as error:
        raise ValueError(f"{file} is no grid: {error}") from error
    except ValueError as error:
        raise ValueError(f"{file} {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds {type(content).__name__}; it must map {', '.join(Grid.model_fields)} to values")
    if unknown := [name for name in content if name not in Grid.model_fields]:
        raise ValueError(f"{file}: unknown key {unknown[0]!r}; a grid has {', '.join(Grid.model_fields)}")
    beside = {
        name: _beside(file, value) for name, value in content.items() if name in ("config", "ablations", "models")
    }
    return {name: value for name, value in (content | beside).items() if value is not None}


def _beside(file: Path, value: Any) -> Any:
    """A path, or several, relative to the grid's file if it is there; else as it is: from where the command is started,
    or a hub id.
    """
    if isinstance(value, list):
        return [_beside(file, one) for one in value]
    there = file.parent / value if isinstance(value, str) and value else None
    return os.path.normpath(there) if there is not None and os.path.exists(there) else value
