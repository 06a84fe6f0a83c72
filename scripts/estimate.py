"""Estimates, from token counts, of what the paper's tables take on 8 GPUs: operations, memory, hours.

    python scripts/estimate.py          # the tables of docs/reproduce.md

Nothing here is measured. The speed of a GPU and of reading videos is worked out from the published efficiency table
(8 x A800, LLaVA-OneVision-7B, Video-MME, 32 frames, Tango at 0.1; arXiv 2604.09547). docs/reproduce.md explains the
rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

GPUS = 8
# Questions of each benchmark, and the share of a long video's reading time that its videos take.
BENCHMARKS = {"Video-MME": (2700, 1.0), "MVBench": (4000, 0.1), "LongVideoBench": (1337, 1.0), "MLVU": (2174, 1.0)}
RATIOS = (None, 0.2, 0.15, 0.1)
TEXT, ANSWER = 150, 4  # tokens of a question with its options, and of a reply
LOADING = 120.0  # seconds until a run has its model and data

# Published (frameworks' own units, in seconds here).
VISION_S, OTHER_S, PREFILL_S, DECODING = 0.33557, 0.14659, 0.08064, 83.66
TOTAL_S, GPU_S, QUESTIONS = 1315.02, 198.31, 2700

# Qwen2-7B, the language model of all three: layers, width, inner width, width of keys and values, vocabulary.
LAYERS, WIDTH, INNER, KEYS, VOCABULARY = 28, 3584, 18944, 512, 152064


def weights(width: int, inner: int, matrices: int, keys: int | None = None) -> int:
    """Numbers in the matrices of a layer: queries and output, keys and values, and the two or three of its MLP."""
    return 2 * width**2 + 2 * width * (keys or width) + matrices * width * inner


def operations(tokens: float, layers: int, width: int, matrices: int, seen: float) -> float:
    """Of a transformer: two for each weight and token, four for each number of a token and each token that it sees."""
    return layers * tokens * (2 * matrices + 4 * seen * width)


@dataclass(frozen=True)
class Model:
    """frames: as the vision tower counts them; sampled: as they are read. tokens, patches: of a frame. rows: newline
    tokens of a video, which stay. vision: operations of tower and projector for a frame. layer: numbers that are in
    memory at once for a patch.
    """

    name: str
    frames: int
    sampled: int
    tokens: int
    patches: int
    rows: int
    vision: float
    vision_weights: int
    layer: int

    def prompt(self, ratio: float | None) -> float:
        """Tokens of the prompt, with pruning inside the language model in the mean over its layers."""
        return self.frames * self.tokens * (ratio or 1.0) + self.rows + TEXT

    def prefill(self, ratio: float | None) -> float:
        count = self.prompt(ratio)
        return operations(count, LAYERS, WIDTH, weights(WIDTH, INNER, 3, KEYS), count / 2)

    def gpu_seconds(self, ratio: float | None) -> float:
        """Of one generate()."""
        vision = self.frames * self.vision / VISION_RATE
        other = OTHER_S * self.frames * self.tokens / (ONEVISION.frames * ONEVISION.tokens) if ratio else 0.0
        return vision + other + self.prefill(ratio) / PREFILL_RATE + ANSWER / DECODING

    def reading(self, benchmark: str) -> float:
        """Hours of reading videos in one run."""
        questions, share = BENCHMARKS[benchmark]
        return questions / GPUS * READING_S * share * self.sampled / ONEVISION.sampled / 3600

    def hours(self, benchmark: str, ratio: float | None) -> float:
        questions, _ = BENCHMARKS[benchmark]
        return (LOADING + questions / GPUS * self.gpu_seconds(ratio)) / 3600 + self.reading(benchmark)

    def memory(self) -> tuple[float, float, float]:
        """GB (10**9) on each GPU, unpruned: weights, keys and values, and the widest layer's activations."""
        language = LAYERS * weights(WIDTH, INNER, 3, KEYS) + 2 * VOCABULARY * WIDTH
        count = self.prompt(None)
        widest = max(count * (2 * INNER + 6 * WIDTH), self.frames * self.patches * self.layer)
        return 2e-9 * (language + self.vision_weights), 2e-9 * LAYERS * 2 * KEYS * count, 2e-9 * widest


def siglip(frames: int, tokens: int, rows: int, name: str) -> Model:
    """SigLIP-so400m at 384, 26 of its layers, 27 x 27 patches; a projector of two layers before pooling."""
    patches, layers, width, inner = 27 * 27, 26, 1152, 4304
    layer, projector = weights(width, inner, 2), width * WIDTH + WIDTH**2
    vision = operations(patches, layers, width, layer, patches) + 2 * patches * projector
    return Model(name, frames, frames, tokens, patches, rows, vision, layers * layer + projector, 2 * inner + 6 * width)


def qwen(frames: int, tokens: int) -> Model:
    """32 layers, four of which see a whole frame and the others 8 x 8 patches; a merger of 2 x 2 patches."""
    patches, layers, full, width, inner = 4 * tokens, 32, 4, 1280, 3420
    layer, merger = weights(width, inner, 3), (4 * width) ** 2 + 4 * width * WIDTH
    vision = operations(patches, layers - full, width, layer, 64) + operations(patches, full, width, layer, patches)
    vision += 2 * tokens * merger
    held = 2 * inner + 6 * width
    return Model("Qwen2.5-VL-7B", frames // 2, frames, tokens, patches, 0, vision, layers * layer + merger, held)


ONEVISION = siglip(32, 14 * 14, 1, "LLaVA-OneVision-7B")
VIDEO = siglip(64, 13 * 13, 13 * 64, "LLaVA-Video-7B")
QWEN = qwen(64, 768)  # the most that a pair of frames may have
MODELS = (ONEVISION, VIDEO, QWEN)

VISION_RATE = ONEVISION.frames * ONEVISION.vision / VISION_S
PREFILL_RATE = ONEVISION.prefill(0.1) / PREFILL_S
READING_S = (TOTAL_S - GPU_S) * GPUS / QUESTIONS


def lines() -> Iterator[str]:
    yield "| per GPU, worked out from the published table | |"
    yield "|---|---|"
    yield f"| vision tower | {VISION_RATE / 1e12:.0f} TFLOP/s |"
    yield f"| prefill of the language model | {PREFILL_RATE / 1e12:.0f} TFLOP/s |"
    yield f"| reading and preparing 32 frames of a long video | {READING_S:.1f} s |"
    yield ""
    yield "| | kept | tokens of the prompt | vision, TFLOP | prefill, TFLOP | GPU, s a question | hours: " + (
        " | ".join(BENCHMARKS) + " | all four |"
    )
    yield "|---" * (7 + len(BENCHMARKS)) + "|"
    total = 0.0
    for model in MODELS:
        for ratio in RATIOS:
            hours = [model.hours(benchmark, ratio) for benchmark in BENCHMARKS]
            total += sum(hours)
            cells = [model.name, "all" if ratio is None else f"{100 * ratio:g} %", f"{model.prompt(ratio):,.0f}"]
            cells += [f"{model.frames * model.vision / 1e12:.0f}", f"{model.prefill(ratio) / 1e12:.0f}"]
            cells += [f"{model.gpu_seconds(ratio):.1f}", *(f"{value:.1f}" for value in (*hours, sum(hours)))]
            yield f"| {' | '.join(cells)} |"
    profile = sum(ONEVISION.hours("Video-MME", ratio) for ratio in RATIOS)
    yield ""
    yield f"All accuracy runs: {total:.0f} hours on {GPUS} GPUs. The efficiency table: {profile:.1f} hours more."
    reading = {name: len(RATIOS) * sum(model.reading(name) for model in MODELS) for name in BENCHMARKS}
    clips = reading["MVBench"] * (1 / BENCHMARKS["MVBench"][1] - 1)
    yield ""
    yield (
        f"Of the accuracy runs, {sum(reading.values()):.0f} hours are reading videos: were it twice as slow, that much "
        f"more; were MVBench's clips as slow as long videos, {clips:.0f} hours more."
    )
    yield ""
    yield "| GPU memory, unpruned, GB | weights | keys and values | widest layer | together |"
    yield "|---|---|---|---|---|"
    for model in MODELS:
        parts = model.memory()
        yield f"| {model.name} | " + " | ".join(f"{part:.1f}" for part in (*parts, sum(parts))) + " |"


if __name__ == "__main__":
    print("\n".join(lines()))
