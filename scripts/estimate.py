"""Estimates, from token counts, of what the paper's tables take on 8 GPUs: operations, memory, hours.

    python scripts/estimate.py          # the tables of docs/reproduce.md

The arithmetic is that of `tango sweep --dry-run --estimate` (tango/sweeps/estimate.py); docs/reproduce.md explains it.
"""

from __future__ import annotations

from collections.abc import Iterator

from tango.sweeps.estimate import (
    GPUS,
    LOADING_S,
    PREFILL_RATE,
    PUBLISHED,
    READING,
    READING_S,
    SAMPLE_KB,
    VISION_RATE,
    Model,
    model_of,
)
from tango.sweeps.frameworks import QUESTIONS

RATIOS = (None, 0.2, 0.15, 0.1)
MODELS = {
    "LLaVA-OneVision-7B": model_of(PUBLISHED["llava-onevision-qwen2-7b"], 32),
    "LLaVA-Video-7B": model_of(PUBLISHED["llava-video-7b"], 64),
    "Qwen2.5-VL-7B": model_of(PUBLISHED["qwen2.5-vl-7b"], 64),
}


def reading_hours(model: Model, benchmark: str) -> float:
    """Hours of reading videos in one run on all GPUs."""
    return QUESTIONS[benchmark] / GPUS * model.reading_seconds(benchmark) / 3600


def hours(model: Model, benchmark: str, ratio: float | None) -> float:
    """Hours of one run on all GPUs."""
    generate = QUESTIONS[benchmark] / GPUS * model.gpu_seconds(ratio, PREFILL_RATE)
    return (LOADING_S + generate) / 3600 + reading_hours(model, benchmark)


def lines() -> Iterator[str]:
    yield "| per GPU, worked out from the published table | |"
    yield "|---|---|"
    yield f"| vision tower | {VISION_RATE / 1e12:.0f} TFLOP/s |"
    yield f"| prefill of the language model | {PREFILL_RATE / 1e12:.0f} TFLOP/s |"
    yield f"| reading and preparing 32 frames of a long video | {READING_S:.1f} s |"
    yield ""
    yield "| | kept | tokens of the prompt | vision, TFLOP | prefill, TFLOP | GPU, s a question | hours: " + (
        " | ".join(QUESTIONS) + " | all four |"
    )
    yield "|---" * (7 + len(QUESTIONS)) + "|"
    total = 0.0
    for name, model in MODELS.items():
        for ratio in RATIOS:
            times = [hours(model, benchmark, ratio) for benchmark in QUESTIONS]
            total += sum(times)
            cells = [name, "all" if ratio is None else f"{100 * ratio:g} %", f"{model.prompt(ratio):,.0f}"]
            cells += [f"{model.vision / 1e12:.0f}", f"{model.decoder.prefill(model.prompt(ratio)) / 1e12:.0f}"]
            cells += [f"{model.gpu_seconds(ratio, PREFILL_RATE):.1f}"]
            cells += [f"{value:.1f}" for value in (*times, sum(times))]
            yield f"| {' | '.join(cells)} |"
    profile = sum(hours(MODELS["LLaVA-OneVision-7B"], "Video-MME", ratio) for ratio in RATIOS)
    yield ""
    yield f"All accuracy runs: {total:.0f} hours on {GPUS} GPUs. The efficiency table: {profile:.1f} hours more."
    reading = {name: len(RATIOS) * sum(reading_hours(model, name) for model in MODELS.values()) for name in QUESTIONS}
    clips = reading["MVBench"] * (1 / READING["MVBench"] - 1)
    yield ""
    yield (
        f"Of the accuracy runs, {sum(reading.values()):.0f} hours are reading videos: were it twice as slow, that much "
        f"more; were MVBench's clips as slow as long videos, {clips:.0f} hours more."
    )
    yield ""
    yield "| table | runs | GPU hours | of these in generate() | operations, 10**18 | results, GB |"
    yield "|---|---|---|---|---|---|"
    accuracy = {f"accuracy, {name}": (model, tuple(QUESTIONS)) for name, model in MODELS.items()}
    for name, (model, names) in {**accuracy, "efficiency": (MODELS["LLaVA-OneVision-7B"], ("Video-MME",))}.items():
        count = len(RATIOS) * sum(QUESTIONS[benchmark] for benchmark in names)
        held = GPUS * sum(hours(model, benchmark, ratio) for benchmark in names for ratio in RATIOS)
        asked = sum(QUESTIONS[benchmark] for benchmark in names)
        busy = asked * sum(model.gpu_seconds(ratio, PREFILL_RATE) for ratio in RATIOS) / 3600
        work = asked * sum(model.vision + model.decoder.prefill(model.prompt(ratio)) for ratio in RATIOS) / 1e18
        cells = [name, str(len(RATIOS) * len(names)), f"{held:.0f}", f"{busy:.0f}", f"{work:.1f}"]
        yield f"| {' | '.join(cells)} | {count * SAMPLE_KB / 1e6:.1f} |"
    yield ""
    yield "| GPU memory, unpruned, GB | weights | keys and values | widest layer | together |"
    yield "|---|---|---|---|---|"
    for name, model in MODELS.items():
        parts = model.memory(None)
        yield f"| {name} | " + " | ".join(f"{part:.1f}" for part in (*parts, sum(parts))) + " |"


if __name__ == "__main__":
    print("\n".join(lines()))
