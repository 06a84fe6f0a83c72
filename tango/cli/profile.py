"""`tango profile`: where the time and the memory of a video go, unpruned and pruned, over several repeats."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from tango.cli import common
from tango.cli.answering import attached, frames_for, input_errors, label, start
from tango.cli.common import console, print_json, stdout_for_json, steps
from tango.inference.asking import STAGES, conversation

if TYPE_CHECKING:
    from tango.inference.checkpoints import Checkpoint
    from tango.pruners.base import Pruner

EXAMPLES = (
    "tango profile",
    "tango profile clip.mp4 --frames 64 --model lmms-lab/LLaVA-Video-7B-Qwen2 --config configs/llava_video.yaml",
    "tango profile --method tango --method fastvid --ratio 0.2 --repeats 10 --output profile.md",
)
QUESTION = "What happens in this video?"
MEMORY = "peak_memory_gib"
# Before the model: read_s taken apart.
READING = {"video_s": "reading the file", "resize_s": "resizing", "processor_s": "processor"}
PARTS = {key: text for key, text in STAGES.items() if key != "decode_s"} | {"first_token_s": "time to first token"}


def profile(
    video: common.Video = None,
    model: common.Model = None,
    method: common.Methods = ["tango"],  # noqa: B006 (read by typer, changed by nobody)
    ratio: common.Ratio = 0.1,
    frames: common.Frames = None,
    config: common.Config = None,
    fields: common.Fields = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measured runs of each way, in turn.")] = 5,
    warmup: Annotated[int, typer.Option(min=0, help="Runs of each way before them, not counted.")] = 1,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens to generate, always that many.")] = 16,
    question: Annotated[str, typer.Option(help="What is asked.")] = QUESTION,
    device: common.Device = None,
    dtype: common.Dtype = "auto",
    output: Annotated[
        Path | None, typer.Option(dir_okay=False, writable=True, help="Write the table as Markdown, with its origin.")
    ] = None,
    as_json: common.Json = False,
) -> None:
    """Measure where the time goes for a video: every stage, tokens and memory, with and without pruning.

    The ways take turns, so that a machine that gets slower or faster does so for all of them.
    """
    from tango.inference.files import write_whole
    from tango.runs.provenance import provenance

    if output is not None:
        with input_errors():  # now, not after minutes of measuring
            output.parent.mkdir(parents=True, exist_ok=True)
            output.touch()
    series: dict[str, dict[str, list[float]]] = {}
    tokens: dict[str, dict[str, float]] = {}
    with stdout_for_json(as_json), steps(2 + (1 + len(set(method))) * (warmup + repeats)) as step:
        path, checkpoint, pruners = start(step, video, question, model, method, ratio, config, fields, device, dtype)
        for turn in range(warmup + repeats):
            for pruner in (None, *pruners):
                name = label(pruner)
                step(f"{name}: {'warming up' if turn < warmup else f'run {turn - warmup + 1} of {repeats}'}")
                one, tokens[name] = run(checkpoint, pruner, path, question, frames_for(frames, model), new_tokens)
                for key, value in one.items() if turn >= warmup else ():
                    series.setdefault(name, defaultdict(list))[key].append(value)
    if output is not None:
        whole = next(iter(tokens.values()))["video_tokens_before"]
        origin = f"{path}, {whole:.0f} tokens; each way {repeats} times in turn after {warmup} not counted"
        write_whole(output, page(series, tokens, provenance(checkpoint.device), origin))
    if as_json:
        print_json(
            {"video": path, "model": checkpoint.described, "repeats": repeats, "warmup": warmup}
            | {"ways": [{"name": name, "tokens": tokens[name]} | spread(series[name]) for name in series]}
        )
        return
    screen = console()
    few = len(series) == 2
    title = f"{path}, {repeats} runs: " + ("median (least to most)" if few else "median, in ms")
    screen.print(table(series, tokens, title) if few else comparison(series, tokens, title))
    if output is not None:
        screen.say(f"written: {output}")


def run(
    checkpoint: Checkpoint, pruner: Pruner | None, video: str, question: str, frames: int, new_tokens: int
) -> tuple[dict[str, float], dict[str, float]]:
    """One answer from the file on: seconds of each stage and peak memory in GiB; and its tokens."""
    length = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    with attached(checkpoint, pruner, frames) as chat:
        counted = reset_peak()
        began = time.perf_counter()
        answer = chat.generate(conversation(video, question), length, video)
        whole = time.perf_counter() - began
        timing = answer.timing or {}
        reading, resizing = chat.seconds["read_s"], chat.seconds.get("resize_s", 0.0)
    found = {"read_s": whole - timing["generate_s"], "video_s": reading - resizing, "resize_s": resizing}
    found |= {"processor_s": found["read_s"] - reading} | {key: timing[key] for key in STAGES}
    found |= {"first_token_s": timing["vit_s"] + timing["other_s"] + timing["prefill_s"], "whole_s": whole}
    found |= {"answering_s": found["read_s"] + found["first_token_s"]}
    return found | ({MEMORY: peak_since_reset()} if counted else {}), answer.tokens


def reset_peak() -> bool:
    """Let peak_memory() or, on a CPU, the kernel count from here; False where that cannot be done."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        for gpu in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(gpu)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:  # not Linux, or a sandbox that has no such file
        return False
    return True


def peak_since_reset() -> float:
    """Most memory held since reset_peak(), model included, in GiB: on GPUs, or resident in RAM on a CPU."""
    import torch

    from tango.inference.timing import GIB, peak_memory

    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return peak_memory()
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / GIB


def spread(series: dict[str, list[float]]) -> dict[str, Any]:
    """Median, least and most of each series, and the series itself."""
    return {
        key: {"median": statistics.median(values), "min": min(values), "max": max(values), "all": values}
        for key, values in series.items()
    }


def table(series: dict[str, dict[str, list[float]]], tokens: dict[str, dict[str, float]], title: str) -> Table:
    """Stages as rows, ways as columns, each beside how many times faster than unpruned it is."""
    shown = Table(title=title, title_justify="left")
    first, *others = series
    for heading in ("", first, *(heading for name in others for heading in (name, "times faster"))):
        shown.add_column(heading, justify="right" if heading else "left")

    def add(text: str, values: list[str], key: str | None = None, end: bool = True) -> None:
        beside = ["" if key is None else faster(series, name, key) for name in others]
        pairs = zip(values[1:], beside, strict=True)
        shown.add_row(text, values[0], *(cell for pair in pairs for cell in pair), end_section=end)

    add("video tokens", [f"{tokens[name]['video_tokens_before']:.0f}" for name in series], end=False)
    add("  into the language model", [f"{tokens[name]['video_tokens_after']:.0f}" for name in series])
    rows = READING | STAGES | {"first_token_s": "time to first token", "answering_s": "from the file to it"}
    for key, text in (rows | {"whole_s": "all of it"}).items():
        times = [milliseconds(found[key]) for found in series.values()]
        add(f"{text} (ms)", times, key, end=key in ("decode_s", "whole_s"))
    add("from the file to it, before the model", [f"{share(found, *READING):.0f} %" for found in series.values()])
    if MEMORY in series[first]:
        add("peak memory (GiB)", [f"{max(found[MEMORY]):.2f}" for found in series.values()], end=False)
    return shown


def comparison(series: dict[str, dict[str, list[float]]], tokens: dict[str, dict[str, float]], title: str) -> Table:
    """Ways as rows, the medians of stages as columns, for more ways than have room beside each other."""
    from tango.runs.summary import terminal_table

    shown = terminal_table(title)
    for heading in ("tokens", "tower", "projector,\npruning", "prefill", "first\ntoken", "times\nfaster"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for name, found in series.items():
        texts = [f"{1000 * statistics.median(found[key]):.1f}" for key in PARTS]
        shown.add_row(name, f"{tokens[name]['video_tokens_average']:.0f}", *texts, faster(series, name))
    return shown


def page(
    series: dict[str, dict[str, list[float]]], tokens: dict[str, dict[str, float]], found: dict[str, Any], video: str
) -> str:
    """The same as Markdown, with least and most, below where it comes from (see provenance())."""
    from tango.runs.provenance import commit_text, device_text, versions_text

    lines = [
        "# Time of a video, way by way",
        "",
        f"- made by: {found['command']}",
        f"- device: {device_text(found)}",
        f"- commit: {commit_text(found)}; versions: {versions_text(found)}; {found['time'][:10]}",
        f"- video: {video}; milliseconds, median (least to most)",
        "",
        f"| method | tokens, mean over layers | {' | '.join(PARTS.values())} | times faster |",
        "|---|" + "---:|" * (len(PARTS) + 2),
    ]
    for name, one in series.items():
        texts = [f"{tokens[name]['video_tokens_average']:.0f}", *(milliseconds(one[key]) for key in PARTS)]
        lines.append(f"| {' | '.join([name, *texts, faster(series, name)])} |")
    parts = READING | {key: text for key, text in PARTS.items() if key != "first_token_s"}
    lines += [
        "",
        "From the file to the first token, and the share of each part in percent (of medians):",
        "",
        f"| method | all of it | {' | '.join(parts.values())} |",
        "|---|" + "---:|" * (len(parts) + 1),
    ]
    for name, one in series.items():
        texts = [milliseconds(one["answering_s"]), *(f"{share(one, key):.1f}" for key in parts)]
        lines.append(f"| {' | '.join([name, *texts])} |")
    return "\n".join(lines) + "\n"


def faster(series: dict[str, dict[str, list[float]]], name: str, key: str = "first_token_s") -> str:
    """How many times faster than the first way one is at something; empty for the first itself."""
    first = next(iter(series))
    if name == first:
        return ""
    return f"{statistics.median(series[first][key]) / statistics.median(series[name][key]):.2f}"


def share(one: dict[str, list[float]], *keys: str) -> float:
    """Percent that parts take of what is between the file and the first token, by medians."""
    return 100 * sum(statistics.median(one[key]) for key in keys) / statistics.median(one["answering_s"])


def milliseconds(values: list[float]) -> str:
    """Median and range in ms of times in seconds."""
    low, high = 1000 * min(values), 1000 * max(values)
    return f"{1000 * statistics.median(values):.1f} ({low:.1f} to {high:.1f})"
