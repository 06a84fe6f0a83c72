"""The cells of a grid, and what is missing for them on this machine, before anything is started."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import torch

from tango.inference.checkpoints import class_name, cpu_has_bfloat16, parse_dtype, slow_bfloat16
from tango.models.original import read_config
from tango.motionqa.questions import data_files, read_questions
from tango.motionqa.shipped import DATA, MODEL, shipped
from tango.pruners import REGISTRY, Pruner
from tango.runs.served import why_not_served
from tango.runs.settings import VANILLA
from tango.sweeps import serve
from tango.sweeps.cells import VLLM, Evaluation
from tango.sweeps.frameworks import FRAMEWORKS, LMMS_EVAL, QUESTIONS, Benchmark, Framework, benchmark_name
from tango.sweeps.grid import Grid
from tango.sweeps.lmms_cells import lmms_cell
from tango.sweeps.preflight import missing_checkpoint, missing_dataset, missing_pooling_head, processes
from tango.sweeps.sweep import Cell
from tango.sweeps.videos import absent_videos
from tango.sweeps.vlmeval_cells import vlmeval_cell

# lmms-eval's names of the models in its plugin: by the class of a checkpoint and, where it is not on this machine, by
# what the names of published ones contain.
LMMS_MODELS = {
    "LlavaOnevisionForConditionalGeneration": "llava_onevision",
    "LlavaVideoForConditionalGeneration": "llava_vid",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl",
    "Qwen3VLForConditionalGeneration": "qwen3_vl",
    "Qwen3VLMoeForConditionalGeneration": "qwen3_vl",
    "InternVLForConditionalGeneration": "internvl_hf",
    "VideoLlama3ForConditionalGeneration": "videollama3",
    "Qwen3_5ForConditionalGeneration": "qwen3_5",
    "Qwen3_5MoeForConditionalGeneration": "qwen3_5",
    "Qwen3OmniMoeThinkerForConditionalGeneration": "qwen3_omni",
}
PUBLISHED = {
    "llava-onevision": "llava_onevision",
    "llava-video": "llava_vid",
    "qwen2.5-vl": "qwen2_5_vl",
    "qwen3-vl": "qwen3_vl",
    "qwen3.5": "qwen3_5",
    "qwen3-omni": "qwen3_omni",
    "internvl3": "internvl_hf",
    "videollama3": "videollama3",
}
TANGO = "tango"  # what ablations are of
NO_GPU = "torch finds no GPU here (tango doctor): the CPU is used, which takes days with a model of 7B"


@dataclass
class Expanded:
    """The cells of a grid, each model's in a sweep of its own; what they lack on this machine (missing); combinations
    that cannot be (left_out); remarks (notes); each model's folder or hub id (sources); and the processes of a cell.
    """

    cells: dict[str, list[Cell]]
    missing: list[str]
    left_out: list[str]
    notes: list[str] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)
    processes: int = 1

    @property
    def every(self) -> list[tuple[str, Cell]]:
        """All cells in the order of the grid, each with the name of its model."""
        return [(model, cell) for model, cells in self.cells.items() for cell in cells]


@dataclass(frozen=True)
class Subject:
    """What is known of a model without loading it: a folder or hub id, lmms-eval's name of its kind, its class, the
    layers of its language model, the dtype it is stored in; None where it is not here to be looked at, and `missing`
    says so.
    """

    source: str
    kind: str | None
    family: str | None = None
    layers: int | None = None
    dtype: str | None = None
    missing: str | None = None


def expand(grid: Grid) -> Expanded:
    """All cells of a grid, what they lack on this machine, and what no method can do.

    Raises:
        ValueError: an unknown method, benchmark or setting, or a combination that no framework has.
    """
    expanded = Expanded({}, [], [])
    on_ray = 1 if grid.gpus is None else max(1, grid.gpus)  # one for each GPU of a cell
    expanded.processes = processes(expanded.missing) if grid.ray is None else on_ray
    unpruned = Evaluation(
        pretrained="",  # which model, and which questions, is filled in below
        samples=0,
        config=grid.config,
        limit=grid.limit,
        processes=expanded.processes,
        dtype=grid.dtype,
        attn_implementation=grid.attn_implementation,
        engine=grid.engine,
        vllm_options=grid.vllm_options,
    )
    methods = list(REGISTRY) if "all" in grid.methods else [name for name in grid.methods if name != VANILLA]
    chosen = [replace(unpruned, method=name, ratio=ratio) for name in dict.fromkeys(methods) for ratio in grid.ratios]
    tango = replace(unpruned, method=TANGO, ratio=min(grid.ratios))
    chosen += [replace(tango, config=str(file), variant=file.stem) for file in ablations(grid)]
    pruners = [evaluation.pruner for evaluation in chosen]  # settings that cannot be are told here
    if grid.engine == VLLM and (lost := serve.missing()):
        expanded.missing.append(lost)
    for model in grid.models:
        subject = look_at(shipped(MODEL) if model == MODEL else model)
        name = Path(subject.source).name
        if name in expanded.cells:
            raise ValueError(f"two models are called {name!r}; they would share a folder, so sweep them one by one")
        if subject.missing is not None:
            expanded.missing.append(subject.missing)
        possible: list[Evaluation] = []
        for evaluation, pruner in zip([unpruned, *chosen], [None, *pruners], strict=True):
            reason = impossible(pruner, subject.layers)
            if reason is None and grid.engine == VLLM:
                reason = why_not_served(pruner, subject.family, subject.layers)
            if reason is None:
                possible.append(replace(evaluation, pretrained=subject.source, family=subject.family))
            elif pruner is None:
                expanded.missing.append(f"{name}: {reason}")
            else:
                expanded.left_out.append(f"{name}: {reason}")
        expanded.sources[name] = subject.source
        folder = Path(os.path.abspath(grid.output)) / name
        expanded.cells[name] = [
            cell
            for framework in dict.fromkeys(grid.frameworks)
            for cell in cells_of(grid, FRAMEWORKS[framework], subject, folder, possible, expanded)
        ]
        if grid.ray is None and not torch.cuda.is_available():
            expanded.notes += [NO_GPU] * (model != MODEL) + slow_here(subject, grid.dtype)
    expanded.missing, expanded.notes = list(dict.fromkeys(expanded.missing)), list(dict.fromkeys(expanded.notes))
    return expanded


def ablations(grid: Grid) -> list[Path]:
    """The settings files of the ablations of Tango that a grid asks for, by name.

    Raises:
        ValueError: a folder without one, or nothing of that name.
    """
    if grid.ablations is None:
        return []
    place = Path(grid.ablations).expanduser()
    files = [place] if place.is_file() else sorted(place.glob("*.yaml"))
    if not files:
        raise ValueError(f"ablations = {grid.ablations!r}: give a settings file of Tango, or a folder of such (*.yaml)")
    return files


def slow_here(subject: Subject, asked: str | None) -> list[str]:
    """What is to be known before a model is run on this machine's processor."""
    name = str(subject.dtype if asked in (None, "auto") else parse_dtype(str(asked))).removeprefix("torch.")
    return [slow_bfloat16(subject.source)] if name == "bfloat16" and not cpu_has_bfloat16() else []


def look_at(model: str) -> Subject:
    """What a checkpoint is, or what its name says where it cannot be loaded.

    Raises:
        CheckpointError: it is there, and no checkpoint that this project can use.
    """
    problem = missing_checkpoint(model)
    if problem is not None:
        kinds = (kind for part, kind in PUBLISHED.items() if part in model.lower())
        return Subject(model, next(kinds, None), missing=problem)
    config = read_config(model)
    family = class_name(model)
    layers = config.get("text_config", config).get("num_hidden_layers")
    return Subject(model, LMMS_MODELS[family], family, layers, config.get("dtype", config.get("torch_dtype")))


def impossible(pruner: Pruner | None, layers: int | None) -> str | None:
    """Why a method cannot keep its share of the tokens in a language model of so many layers; None if it can."""
    if pruner is not None and layers is not None:
        try:
            pruner.in_llm(layers)
        except ValueError as error:
            return str(error)
    return None


def cells_of(
    grid: Grid,
    framework: Framework,
    subject: Subject,
    folder: Path,
    evaluations: Sequence[Evaluation],
    expanded: Expanded,
) -> Iterator[Cell]:
    """One framework's cells of one model, with each of its evaluations on each benchmark; what they lack goes to
    `expanded`.

    Raises:
        ValueError: a benchmark, or a number of frames, that the framework does not have.
    """
    if framework.frames is not None and grid.frames not in framework.frames:
        numbers = ", ".join(map(str, framework.frames))
        raise ValueError(f"frames = {grid.frames}: {framework.name} has data sets of {numbers}")
    missing = expanded.missing
    if find_spec(framework.plugin) is None:
        advice = f"in a checkout: make setup, or pip install --no-deps -e ./{framework.name}"
        missing.append(f"{framework.name}'s plugin is not installed; {advice}")
    hub = not Path(subject.source).is_dir()
    if hub and (subject.kind or "").startswith("llava") and (lost := missing_pooling_head(subject.source)):
        missing.append(lost)
    for name in dict.fromkeys(map(benchmark_name, grid.benchmarks)):
        if name not in framework.benchmarks:
            raise ValueError(f"benchmark {name!r}: {framework.name} has {', '.join(framework.benchmarks)}")
        benchmark = framework.benchmarks[name]
        count, data = questions_of(name, benchmark, missing)
        if lost := absent_videos(framework, name):
            expanded.notes.append(lost)
        for evaluation in evaluations:
            evaluation = replace(
                evaluation, samples=count, data=data, repository=benchmark.repository, branch=benchmark.branch
            )
            if framework is not LMMS_EVAL:
                yield vlmeval_cell(folder, evaluation, dataset=f"{benchmark.name}_{grid.frames}frame")
            elif subject.kind is not None:  # else it is missing, and lmms-eval's name for it is not known
                yield lmms_cell(
                    folder,
                    evaluation,
                    task=benchmark.name,
                    max_frames=grid.frames,
                    model=subject.kind,
                    tasks=benchmark.tasks,
                    wandb_args=grid.wandb_args,
                )


def questions_of(name: str, benchmark: Benchmark, missing: list[str]) -> tuple[int, list[Path]]:
    """How many questions a benchmark has, and its files if it is shipped; a data set that is not here goes to
    `missing`.
    """
    if benchmark.repository is None:
        folder = Path(shipped(DATA))
        return len(read_questions(folder)), data_files(folder)
    if lost := missing_dataset(benchmark.repository, benchmark.pattern, benchmark.branch):
        missing.append(lost)
    return QUESTIONS[name], []
