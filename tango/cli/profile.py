"""`tango profile`: where the time and the memory of a video go, unpruned and pruned, over several repeats."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from tango.cli import common
from tango.cli.answering import attached, check_asked, choose_pruners, frames_for, input_errors, label, load
from tango.cli.common import console, print_json, stdout_for_json, steps
from tango.inference.asking import STAGES, conversation

if TYPE_CHECKING:
    from tango.inference.chat import Chat
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
FIRST = {"first_token_s": "time to first token"}
BEFORE_FIRST = {key: text for key, text in STAGES.items() if key != "decode_s"}
PARTS = BEFORE_FIRST | FIRST
ALL = READING | STAGES | FIRST | {"answering_s": "from the file to it", "whole_s": "all of it"}


@dataclass
class Way:
    """A way of answering, measured: its tokens, and of every run the seconds of each stage and peak memory in GiB."""

    name: str
    pruner: Pruner | None
    tokens: dict[str, float] = field(default_factory=dict)
    series: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def count(self, which: str) -> str:
        """A number of tokens: the video's `before`, `after` pruning, or in the `average` over layers."""
        return f"{self.tokens[f'video_tokens_{which}']:.0f}"

    def milliseconds(self, key: str) -> str:
        """Median and range of a stage."""
        low, high = 1000 * min(self.series[key]), 1000 * max(self.series[key])
        return f"{1000 * median(self.series[key]):.1f} ({low:.1f} to {high:.1f})"

    def share(self, *keys: str) -> float:
        """Percent that stages take of what is between the file and the first token, by medians."""
        return 100 * sum(median(self.series[key]) for key in keys) / median(self.series["answering_s"])

    def faster(self, first: Way, key: str = "first_token_s") -> str:
        """How many times faster than the first way this one is at something; empty for the first itself."""
        return "" if self is first else f"{median(first.series[key]) / median(self.series[key]):.2f}"

    def spread(self) -> dict[str, Any]:
        """Median, least and most of each series, and the series itself."""
        return {
            key: {"median": median(values), "min": min(values), "max": max(values), "all": values}
            for key, values in self.series.items()
        }


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
    with stdout_for_json(as_json), steps(2 + (1 + len(set(method))) * (warmup + repeats)) as step:
        step("starting up")
        path = check_asked(model, video, question)
        pruners = choose_pruners(method, ratio, config, fields)
        step("loading the model")
        checkpoint = load(model, device, dtype, pruners)
        ways = [Way(label(pruner), pruner) for pruner in (None, *pruners)]
        for turn in range(warmup + repeats):
            for way in ways:
                step(f"{way.name}: {'warming up' if turn < warmup else f'run {turn - warmup + 1} of {repeats}'}")
                with attached(checkpoint, way.pruner, frames_for(frames, model)) as chat:
                    one, way.tokens = run(chat, path, question, new_tokens)
                for key, value in one.items() if turn >= warmup else ():
                    way.series[key].append(value)
    if output is not None:
        tokens = f"{ways[0].count('before')} tokens"
        origin = f"{path}, {tokens}; each way {repeats} times in turn after {warmup} not counted"
        write_whole(output, page(ways, provenance(checkpoint.device), origin))
    if as_json:
        print_json(
            {"video": path, "model": checkpoint.described, "repeats": repeats, "warmup": warmup}
            | {"ways": [{"name": way.name, "tokens": way.tokens} | way.spread() for way in ways]}
        )
        return
    screen = console()
    title = f"{path}, {repeats} runs: "
    if len(ways) == 2:
        screen.print(table(ways[0], ways[1], f"{title}median (least to most)"))
    else:
        screen.print(comparison(ways, f"{title}median, in ms"))
    if output is not None:
        screen.say(f"written: {output}")


def run(chat: Chat, video: str, question: str, new_tokens: int) -> tuple[dict[str, float], dict[str, float]]:
    """One answer from the file on: seconds of each stage and peak memory in GiB; and its tokens."""
    length = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
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


def table(unpruned: Way, pruned: Way, title: str) -> Table:
    """Stages as rows, both ways as columns, and how many times faster the pruned one is."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("")
    for heading in (unpruned.name, pruned.name, "times faster"):
        shown.add_column(heading, justify="right")
    both = (unpruned, pruned)
    shown.add_row("video tokens", *(way.count("before") for way in both))
    shown.add_row("  into the language model", *(way.count("after") for way in both), end_section=True)
    for key, text in ALL.items():
        times = [way.milliseconds(key) for way in both]
        shown.add_row(f"{text} (ms)", *times, pruned.faster(unpruned, key), end_section=key in ("decode_s", "whole_s"))
    shares = [f"{way.share(*READING):.0f} %" for way in both]
    shown.add_row("from the file to it, before the model", *shares, end_section=True)
    if MEMORY in unpruned.series:
        shown.add_row("peak memory (GiB)", *(f"{max(way.series[MEMORY]):.2f}" for way in both))
    return shown


def comparison(ways: Sequence[Way], title: str) -> Table:
    """Ways as rows, the medians of stages as columns, for more ways than have room beside each other."""
    from tango.runs.summary import terminal_table

    shown = terminal_table(title)
    for heading in ("tokens", "tower", "projector,\npruning", "prefill", "first\ntoken", "times\nfaster"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for way in ways:
        times = [f"{1000 * median(way.series[key]):.1f}" for key in PARTS]
        shown.add_row(way.name, way.count("average"), *times, way.faster(ways[0]))
    return shown


def page(ways: Sequence[Way], found: dict[str, Any], video: str) -> str:
    """The same as Markdown, with least and most, below where it comes from (see provenance())."""
    from tango.runs.provenance import commit_text, device_text, versions_text

    def rows(headings: Iterable[str], cells: Iterable[Iterable[str]]) -> list[str]:
        names = list(headings)
        lines = [f"| {' | '.join(row)} |" for row in (["method", *names], *cells)]
        return [lines[0], "|---|" + "---:|" * len(names), *lines[1:]]

    parts = READING | BEFORE_FIRST
    lines = [
        "# Time of a video, way by way",
        "",
        f"- made by: {found['command']}",
        f"- device: {device_text(found)}",
        f"- commit: {commit_text(found)}; versions: {versions_text(found)}; {found['time'][:10]}",
        f"- video: {video}; milliseconds, median (least to most)",
        "",
        *rows(
            ("tokens, mean over layers", *PARTS.values(), "times faster"),
            ([w.name, w.count("average"), *map(w.milliseconds, PARTS), w.faster(ways[0])] for w in ways),
        ),
        "",
        "From the file to the first token, and the share of each part in percent (of medians):",
        "",
        *rows(
            ("all of it", *parts.values()),
            ([w.name, w.milliseconds("answering_s"), *(f"{w.share(key):.1f}" for key in parts)] for w in ways),
        ),
    ]
    return "\n".join(lines) + "\n"
