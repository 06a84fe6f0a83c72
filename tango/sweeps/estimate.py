"""What cells of a sweep will take, worked out before anything is started: operations, GPU hours, memory, disk.

Nothing here is measured. Operations are those of matrix products, two for a multiplication and an addition. How many of
them a GPU does in a second, and how long reading a video takes, are worked out from the published efficiency table (8 x
A800, LLaVA-OneVision-7B, Video-MME, 32 frames, Tango at 0.1; arXiv 2604.09547). docs/reproduce.md has the arithmetic.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, try_to_load_from_cache

from tango.inference.chat import MAX_TOKENS, TOTAL_TOKENS
from tango.models.original import SO400M_CONFIG, is_original, vision_config
from tango.motionqa.shipped import DATA, shipped
from tango.sweeps.frameworks import FRAMEWORKS, MOTIONQA, QUESTIONS, benchmark_name
from tango.sweeps.sweep import Cell

log = logging.getLogger(__name__)

# Published, in seconds: of one generate(), of the whole run and of its generate()s, for so many questions on 8 GPUs.
VISION_S, OTHER_S, PREFILL_S = 0.33557, 0.14659, 0.08064
TOTAL_S, GENERATE_S, GPUS, DECODING = 1315.02, 198.31, 8, 83.66  # tokens a second
TEXT, ANSWER = 150, 4  # tokens of a question with its options, and of a reply
LOADING_S = 120.0  # until a run has its model and data
READING_S = (TOTAL_S - GENERATE_S) * GPUS / QUESTIONS["Video-MME"]  # a question of a process, for 32 frames
READING = {"MVBench": 0.1, MOTIONQA: 0.01}  # of that, for benchmarks of short clips
# Hours of video at 1 Mbit/s, in GB: numbers and lengths of videos from memory of the benchmarks' papers, not checked.
VIDEOS_GB = {"Video-MME": 115, "MVBench": 8, "LongVideoBench": 222, "MLVU": 201}
SAMPLE_KB = 6  # in journal, records and log of a run, and in cell.json: of runs on MotionQA

QWEN2_7B = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
}  # fmt: skip
# What config.json of a Qwen2.5-VL may leave out of its tower.
QWEN2_5_TOWER = {"depth": 32, "patch_size": 14, "window_size": 112, "fullatt_block_indexes": (7, 15, 23, 31)}
# Of checkpoints that are not here, by what their names contain: config.json as far as it is needed.
PUBLISHED: dict[str, dict[str, Any]] = {
    "llava-onevision-qwen2-7b": QWEN2_7B | {"mm_vision_tower": "google/siglip-so400m-patch14-384"},
    "llava-video-7b": QWEN2_7B | {"mm_vision_tower": "google/siglip-so400m-patch14-384", "mm_newline_position": "grid"},
    "qwen2.5-vl-7b": {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "text_config": QWEN2_7B,
                      "vision_config": {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584}},
}  # fmt: skip


def operations(tokens: float, layers: float, matrices: float, width: int, seen: float) -> float:
    """Of layers of a transformer: two for each weight and token, four for each number of a token and each that it sees.

    matrices: weights of a layer that a token meets. width: of all heads. seen: tokens that each one attends to.
    """
    return layers * tokens * (2 * matrices + 4 * seen * width)


@dataclass(frozen=True)
class Decoder:
    """The language model. weights: in the matrices of a layer; used: those that a token meets, fewer with experts."""

    layers: int
    width: int
    heads: int
    keys: int
    inner: int
    weights: int
    used: int
    vocabulary: int
    tied: bool

    def prefill(self, tokens: float) -> float:
        """Operations, each token seeing half of the prompt in the mean, and one vector of logits."""
        return operations(tokens, self.layers, self.used, self.heads, tokens / 2) + 2 * self.vocabulary * self.width

    def decoding(self, tokens: float, new: int) -> float:
        """Operations of so many new tokens after a prompt, the first of which is prefill's."""
        one = operations(1, self.layers, self.used, self.heads, tokens + new / 2) + 2 * self.vocabulary * self.width
        return (new - 1) * one

    @property
    def parameters(self) -> int:
        """Weights of matrices, embeddings included."""
        return self.layers * self.weights + (1 if self.tied else 2) * self.vocabulary * self.width


@dataclass(frozen=True)
class Model:
    """A model that is shown a video of some frames.

    frames: as its tower counts them, with Qwen in pairs; sampled: as they are read. patches, tokens: of a frame.
    newlines: tokens of a video that always stay. tower, projector: operations for a frame. vision_weights: of both.
    held: numbers of a patch that are in memory at once. bytes: of a number.
    """

    decoder: Decoder
    frames: int
    sampled: int
    patches: int
    tokens: int
    newlines: int
    tower: float
    projector: float
    vision_weights: int
    held: int
    bytes: int = 2

    def prompt(self, ratio: float | None, text: int = TEXT) -> float:
        """Tokens of the prompt at a retention ratio, with pruning inside the model in the mean over its layers."""
        return self.frames * self.tokens * (ratio or 1.0) + self.newlines + text

    @property
    def vision(self) -> float:
        """Operations of tower and projector for a video."""
        return self.frames * (self.tower + self.projector)

    def gpu_seconds(self, ratio: float | None, prefill_rate: float) -> float:
        """Of one generate() on a GPU that does so many operations a second in prefill, and all else in proportion."""
        speed = prefill_rate / PREFILL_RATE
        other = OTHER_S * self.frames * self.tokens / (32 * 196) if ratio else 0.0
        decoding = ANSWER / DECODING * self.decoder.parameters / ONEVISION.decoder.parameters
        slow = self.vision / VISION_RATE + other + decoding
        return slow / speed + self.decoder.prefill(self.prompt(ratio)) / prefill_rate

    def reading_seconds(self, benchmark: str) -> float:
        """Of reading and preparing a question's video by a process."""
        return READING_S * READING.get(benchmark, 1.0) * self.sampled / 32

    def memory(self, ratio: float | None) -> tuple[float, float, float]:
        """GB (10**9) on each GPU: weights, keys and values, and the widest layer's numbers."""
        count = self.prompt(ratio)
        keys = 2 * self.decoder.layers * self.decoder.keys * count
        widest = max(count * (2 * self.decoder.inner + 6 * self.decoder.width), self.frames * self.patches * self.held)
        weights = self.decoder.parameters + self.vision_weights
        return 1e-9 * self.bytes * weights, 1e-9 * self.bytes * keys, 1e-9 * self.bytes * widest


def model_of(config: Mapping[str, Any], frames: int) -> Model:
    """A model by its config.json, in transformers' form or that of the `llava` package.

    Raises:
        ValueError: of a class that is not counted here, or a width or a number of layers is missing.
    """
    try:
        return _counted(config, frames)
    except KeyError as error:
        raise ValueError(f"its config.json lacks {error}") from error


def _counted(config: Mapping[str, Any], frames: int) -> Model:
    dtype = str(config.get("dtype", config.get("torch_dtype")))
    size = 4 if dtype == "float32" else 2
    if is_original(config):
        vision = vision_config(config["mm_vision_tower"]).to_dict()
        return _siglip(config, vision, frames, "grid" in config.get("mm_newline_position", ""), size)
    text = {**config, **config.get("text_config", {})}
    kind = (config.get("architectures") or [""])[0]
    if kind.startswith(("Qwen2_5_VL", "Qwen3VL")):
        return _qwen(text, config["vision_config"], frames, kind.startswith("Qwen2_5"), size)
    if not kind.startswith("Llava"):
        raise ValueError(f"operations are counted of LLaVA, Qwen2.5-VL and Qwen3-VL alone, not of {kind or 'no class'}")
    return _siglip(text, {**SO400M_CONFIG, **config["vision_config"]}, frames, kind.startswith("LlavaVideo"), size)


def _decoder(text: Mapping[str, Any]) -> Decoder:
    width, heads = text["hidden_size"], text["num_attention_heads"]
    head = text.get("head_dim") or width // heads
    keys = text["num_key_value_heads"] * head
    experts = text.get("num_experts") or text.get("num_local_experts") or 1
    chosen = text.get("num_experts_per_tok") or 1
    inner = text["moe_intermediate_size"] if experts > 1 else text["intermediate_size"]
    attention, expert = 2 * width * heads * head + 2 * width * keys, 3 * width * inner
    router = experts * width if experts > 1 else 0
    return Decoder(
        layers=text["num_hidden_layers"],
        width=width,
        heads=heads * head,
        keys=keys,
        inner=chosen * inner,
        weights=attention + experts * expert + router,
        used=attention + chosen * expert + router,
        vocabulary=text["vocab_size"],
        tied=bool(text.get("tie_word_embeddings")),
    )


def _siglip(text: Mapping[str, Any], vision: Mapping[str, Any], frames: int, rows: bool, size: int) -> Model:
    """LLaVA: a projector of two layers, then pooling by 2 x 2; rows: a newline ends each row of each frame."""
    decoder = _decoder(text)
    side = vision["image_size"] // vision["patch_size"]
    patches, layers, width, inner = (
        side**2,
        vision["num_hidden_layers"],
        vision["hidden_size"],
        vision["intermediate_size"],
    )
    pooled = side // 2 if rows else -(-side // 2)
    layer = 4 * width**2 + 2 * width * inner
    embedding, projector = 3 * vision["patch_size"] ** 2 * width, width * decoder.width + decoder.width**2
    return Model(
        decoder=decoder,
        frames=frames,
        sampled=frames,
        patches=patches,
        tokens=pooled**2,
        newlines=frames * pooled if rows else 1,
        tower=operations(patches, layers, layer, width, patches) + 2 * patches * embedding,
        projector=2 * patches * projector,
        vision_weights=layers * layer + embedding + projector,
        held=2 * inner + 6 * width,
        bytes=size,
    )


def _qwen(text: Mapping[str, Any], given: Mapping[str, Any], frames: int, windows: bool, size: int) -> Model:
    """Qwen: pairs of frames of the most tokens that one may have; 2.5's tower sees windows in all layers but some."""
    decoder = _decoder(text)
    vision = {**(QWEN2_5_TOWER if windows else {}), **given}
    pairs = -(-frames // vision.get("temporal_patch_size", 2))
    merge = vision.get("spatial_merge_size", 2) ** 2
    tokens = int(min(MAX_TOKENS, TOTAL_TOKENS / pairs))
    patches, layers, width, inner = merge * tokens, vision["depth"], vision["hidden_size"], vision["intermediate_size"]
    layer = 4 * width**2 + (3 if windows else 2) * width * inner
    full = len(vision["fullatt_block_indexes"]) if windows else layers
    window = (vision["window_size"] // vision["patch_size"]) ** 2 if windows else patches
    mergers = 1 + len(vision.get("deepstack_visual_indexes") or [])
    merger = mergers * ((merge * width) ** 2 + merge * width * vision["out_hidden_size"])
    embedding = 2 * 3 * vision.get("patch_size", 16) ** 2 * width
    tower = operations(patches, layers - full, layer, width, window) + operations(patches, full, layer, width, patches)
    return Model(
        decoder=decoder,
        frames=pairs,
        sampled=frames,
        patches=patches,
        tokens=tokens,
        newlines=0,
        tower=tower + 2 * patches * embedding,
        projector=2 * tokens * merger,
        vision_weights=layers * layer + embedding + merger,
        held=2 * inner + 6 * width,
        bytes=size,
    )


ONEVISION = model_of(PUBLISHED["llava-onevision-qwen2-7b"], 32)
VISION_RATE = ONEVISION.vision / VISION_S  # operations a second
PREFILL_RATE = ONEVISION.decoder.prefill(ONEVISION.prompt(0.1)) / PREFILL_S


@dataclass(frozen=True)
class Estimate:
    """Of one cell. prompt: tokens after pruning. vision, prefill, decoding: TFLOP a question. computing: hours of all
    its GPUs together in generate(); hours: of wall time with reading and starting; gpu_hours: of its GPUs, which wait
    for the reading. memory: GB on each GPU. disk: GB that it writes.
    """

    model: str
    name: str
    questions: int
    prompt: int
    vision: float
    prefill: float
    decoding: float
    computing: float
    hours: float
    gpu_hours: float
    memory: float
    disk: float


def estimate(cell: Cell, name: str, model: Model, processes: int, tflops: float | None = None) -> Estimate:
    """What a cell takes.

    Args:
        name: of its model. processes: of the cell, each on a GPU of its own. tflops: that a GPU sustains in prefill, in
            10**12 operations a second; None: those of the published table, PREFILL_RATE.
    """
    ratio = cell.what["ratio"]
    rate = 1e12 * tflops if tflops is not None else PREFILL_RATE
    generate, reading = model.gpu_seconds(ratio, rate), model.reading_seconds(benchmark_name(cell.what["benchmark"]))
    hours = (LOADING_S + cell.samples / processes * (generate + reading)) / 3600
    prompt = model.prompt(ratio)
    return Estimate(
        model=name,
        name=cell.name,
        questions=cell.samples,
        prompt=round(prompt),
        vision=model.vision / 1e12,
        prefill=model.decoder.prefill(prompt) / 1e12,
        decoding=model.decoder.decoding(prompt, ANSWER) / 1e12,
        computing=cell.samples * generate / 3600,
        hours=hours,
        gpu_hours=processes * hours,
        memory=sum(model.memory(ratio)),
        disk=cell.samples * SAMPLE_KB / 1e6,
    )


def config_here(source: str) -> dict[str, Any] | None:
    """The config.json of a folder or of a hub id on this machine, else what is known of a published one; None without.

    Raises:
        ValueError: it is no JSON.
    """
    folder = Path(os.path.expanduser(source))
    found = folder / "config.json" if folder.is_dir() else try_to_load_from_cache(source, "config.json")
    if not isinstance(found, str | Path) or not Path(found).is_file():
        return next((config for part, config in PUBLISHED.items() if part in source.lower()), None)
    config = json.loads(Path(found).read_bytes())
    return config if isinstance(config, dict) else None


def disk(cells: Sequence[Cell], sources: Mapping[str, Model | None]) -> list[tuple[str, float, str]]:
    """What checkpoints and data need, each once: name, GB, and how that is known.

    Args:
        sources: checkpoints, folders or hub ids. The hub is asked for sizes, and waited for a few seconds.
    """
    found: list[tuple[str, float, str]] = []
    sizes: dict[tuple[str, ...], float | None] = {}

    def told(*which: str) -> float | None:
        if None not in sizes.values() and which not in sizes:  # without an answer it is not asked again
            sizes[which] = hub_size(*which)
        return sizes.get(which)

    for source, model in sources.items():
        folder = Path(os.path.expanduser(source))
        if folder.is_dir():
            found.append((source, folder_size(folder), "here"))
        elif (size := told(source, "model")) is not None:
            found.append((source, size, "the hub says so"))
        elif model is not None:
            found.append((source, model.memory(None)[0], "its weights, counted"))
    sets = {(cell.what["framework"], benchmark_name(cell.what["benchmark"])) for cell in cells}
    for framework, name in sorted(sets):
        benchmark = FRAMEWORKS[framework].benchmarks[name]
        repository = benchmark.repository
        if repository is None:
            found.append((name, folder_size(Path(shipped(DATA))), "here"))
        elif (size := told(repository, "dataset", benchmark.branch)) is not None:
            found.append((repository, 2 * size, "the hub says so, and the same again unpacked"))
        else:
            found.append((repository, 2 * VIDEOS_GB[name], "assumed: hours of video at 1 Mbit/s, packed and unpacked"))
    return list(dict.fromkeys(found))


def folder_size(folder: Path) -> float:
    """GB of the files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e9


def hub_size(repository: str, kind: str, branch: str = "main") -> float | None:
    """GB of a hub's repository by its list of files; None where the hub cannot be asked."""
    try:
        info = HfApi().repo_info(repository, repo_type=kind, revision=branch, files_metadata=True, timeout=5)
    except Exception as error:  # of any of its libraries: no network, no right to see it, HF_HUB_OFFLINE
        log.debug("the hub does not tell the size of %s: %s", repository, error)
        return None
    return float(sum(file.size or 0 for file in getattr(info, "siblings", None) or [])) / 1e9
