"""Runs a model on a video with each method at each ratio, and collects what became of every token."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from tango.inference.asking import conversation
from tango.inference.chat import Chat
from tango.inference.checkpoints import Checkpoint
from tango.inference.video import Clip, read_video
from tango.pruners import REGISTRY, Pruner
from tango.pruners.base import zero_sinks
from tango.pruners.trace import Trace, traced
from tango.visualize.picture import Array, Panel, Picture, heat_of

ANSWER_TOKENS = 64


def with_ratios(methods: Sequence[str | Pruner], ratios: Sequence[float]) -> list[list[Pruner]]:
    """One list a method, with that method at each ratio; methods are names, or pruners where settings matter.

    Raises:
        ValueError: no method or no ratio, one that is unknown or out of its range, or one that is there twice.
    """
    if not methods or not ratios:
        raise ValueError("nothing to draw: give at least one method and one retention ratio")
    if len(set(ratios)) < len(ratios):
        raise ValueError(f"ratios {', '.join(f'{ratio:g}' for ratio in ratios)}: one of them is there twice")
    rows = []
    for method in methods:
        if isinstance(method, str):
            if method not in REGISTRY:
                raise ValueError(f"there is no method {method!r}; use one of {', '.join(sorted(REGISTRY))}")
            method = REGISTRY[method]()
        rows.append([replace(method, retention_ratio=ratio) for ratio in ratios])
    labels = [label(row[0]) for row in rows]
    for name in labels:
        if labels.count(name) > 1:
            raise ValueError(f"the method {name!r} is there twice with the same settings")
    return rows


def label(pruner: Pruner) -> str:
    """A method's name and the settings in which it differs from its defaults, but for the ratio."""
    changed = [
        f"{field.name}={getattr(pruner, field.name)}"
        for field in fields(pruner)
        if field.name != "retention_ratio" and getattr(pruner, field.name) != field.default
    ]
    return " ".join([pruner.name, *changed])


def capture(
    checkpoint: Checkpoint,
    video: str | Path,
    pruners: Sequence[Sequence[Pruner]],
    frames: int,
    question: str | None = None,
    command: str | None = None,
    step: Callable[[str], None] = lambda name: None,
) -> Picture:
    """Run a model once with each method at each ratio; returns what a contact sheet and a page show.

    Args:
        checkpoint, video, frames, question, command: see tango.visualize.visualize().
        pruners: one list a method, with the method at each ratio, as with_ratios() makes them.
        step: called with the name of each run before it starts.

    Raises:
        ValueError: a method does not work on this model or at this ratio; the message names both.
    """
    clip = read_video(video, frames)
    messages = conversation(str(video), question if question is not None else "Describe the video.")
    # Without a question the answer is not shown: one token is enough for the prompt to be pruned.
    settings = {"max_new_tokens": ANSWER_TOKENS if question is not None else 1}
    unpruned = None
    if question is not None:
        step("unpruned")
        with Chat(checkpoint, max_frames=frames).session() as chat:
            unpruned = str(chat.generate(messages, settings, "unpruned").response)
    panels: list[tuple[Panel, ...]] = []
    for row in pruners:
        drawn = []
        for pruner in row:
            name = label(pruner)
            step(f"{name} at {pruner.retention_ratio:g}")
            try:
                with traced() as traces, Chat(checkpoint, pruner, max_frames=frames).session() as chat:
                    answer = chat.generate(messages, settings, name)
            except ValueError as error:
                raise ValueError(f"{name} at a ratio of {pruner.retention_ratio:g}: {error}") from error
            (trace,), (record,) = traces, answer.videos
            response = str(answer.response) if question is not None else None
            drawn.append(panel_of(name, pruner.retention_ratio, trace, record, response))
        panels.append(tuple(drawn))
    shown, times, grid = stills(checkpoint, clip, trace, record)
    ratios = tuple(panel.ratio for panel in panels[0])
    return Picture(
        Path(video).name, checkpoint.described["pretrained"], shown, times, grid, ratios, tuple(panels), command,
        question, unpruned,
    )  # fmt: skip


def stills(
    checkpoint: Checkpoint, clip: Clip, trace: Trace, record: dict[str, Any]
) -> tuple[Array, tuple[float, ...], tuple[int, int]]:
    """The frames that tokens stand for, as far as they do, with their times and grid; see Picture.

    Args:
        clip: the frames that the model was shown.
        trace, record: of one run with a pruner: what it noted, and its entry in Answer.videos.
    """
    grid = (int(record["grid"][0]), int(record["grid"][1]))
    count = len(trace.roles) // (grid[0] * grid[1])
    # Qwen's frames are pairs of sampled ones: the first of each is shown.
    each = -(-len(clip.frames) // count)
    shown = seen(clip.frames[::each], grid[0], checkpoint.model.config.vision_config)
    times = clip.timestamps if trace.video.timestamps is None else tuple(float(t) for t in trace.video.timestamps)
    return shown, times if len(times) == count else clip.timestamps[::each], grid


def seen(frames: Array, rows: int, vision: Any) -> Array:
    """The part of frames (F, height, width, 3) that `rows` x `rows` tokens cover, from the upper left corner.

    A tower for images of one size drops the pixels that don't fill a patch, and pooling by 2 x 2 drops an odd last row
    and column of patches: with LLaVA-Video 13 x 13 tokens cover 364 of 384 pixels. Towers for frames of any size cover
    all of them.

    Args:
        vision: the vision tower's configuration, with image_size and patch_size if its images are of one size.
    """
    size, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    if size is None or patch is None:
        return frames
    patches = size // patch
    covered = min(patches, rows * round(patches / rows)) * patch / size
    height, width = (round(pixels * covered) for pixels in frames.shape[1:3])
    return frames[:, :height, :width]


def panel_of(name: str, ratio: float, trace: Trace, record: dict[str, Any], answer: str | None) -> Panel:
    """One run with a pruner as it is drawn; trace, record: see stills()."""
    heat: Array | None = None
    if trace.video.saliency is not None:
        saliency = trace.video.saliency.detach().float().cpu()
        heat = heat_of(zero_sinks(saliency, getattr(trace.pruner, "sink_tokens", None)).flatten().numpy())
    return Panel(
        method=name,
        ratio=ratio,
        roles=trace.roles.cpu().numpy(),
        joined=trace.joined.cpu().numpy(),
        static=trace.static.cpu().numpy(),
        heat=heat,
        segments=tuple(int(size) for size in trace.pruned.segment_sizes),
        before=record["tokens_before"],
        after=record["tokens_after"],
        in_llm=record["tokens_in_llm"],
        answer=answer,
    )
