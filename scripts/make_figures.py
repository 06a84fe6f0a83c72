"""Makes the figures of docs/method.md from the shipped model and a shipped video: python scripts/make_figures.py

Needs no GPU and no network, and takes seconds. Run it again when the model, the videos or the method change.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch

from tango import Tango
from tango.inference.chat import Chat
from tango.inference.checkpoints import Checkpoint, load
from tango.inference.video import read_video
from tango.models.reuse import computed, sources
from tango.ops.rope import rotate
from tango.ops.segmentation import neighbour_similarity
from tango.pruners.trace import Trace, traced
from tango.visualize import visualize

matplotlib.use("agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
MODEL, VIDEO = "checkpoints/tango-tiny", "data/motionqa/videos/0.mp4"
FIGURES = ROOT / "docs" / "figures"
RATIO, FRAMES, DENSE = 0.1, 8, 32
COMMAND = "python scripts/make_figures.py"


def trace_of(checkpoint: Checkpoint, frames: int) -> Trace:
    """What Tango was given of the video, and what it made of it."""
    video = {"type": "video", "video": str(ROOT / VIDEO)}
    with traced() as traces, Chat(checkpoint, Tango(retention_ratio=RATIO), max_frames=frames).session() as chat:
        chat.generate([{"role": "user", "content": [video]}], {"max_new_tokens": 1}, "figure")
    return traces[0]


def draw_segments(axes: plt.Axes, trace: Trace) -> None:
    """How many places do not change from a frame to the next, and where that cuts the video into segments."""
    similarity = neighbour_similarity(trace.video.features).numpy()
    times = np.asarray(trace.video.timestamps)
    between = (times[1:] + times[:-1]) / 2
    for threshold, colour in ((0.65, "#3b6cb2"), (0.8, "#d0743c")):
        axes.step(
            between, (similarity > threshold).mean(1), where="mid", color=colour, label=f"similarity > {threshold}"
        )
    for end in np.cumsum(trace.pruned.segment_sizes.numpy())[:-1]:
        axes.axvline(between[end - 1], color="black", linewidth=1.5)
    axes.set(xlabel="seconds", ylabel="share of places", ylim=(0, 1.02), title="Unchanged places, and segments (lines)")
    axes.legend(loc="center right")


def draw_discount(axes: plt.Axes, width: int = 3584) -> None:
    """What ST-RoPE leaves of the similarity of two equal tokens, by how far apart they are; mean of random tokens."""
    tokens = torch.randn(64, width, generator=torch.Generator().manual_seed(0))
    for axis, (name, steps, colour) in enumerate((("seconds", 33, "#3b6cb2"), ("rows", 14, "#d0743c"))):
        here = rotate(tokens, torch.zeros(64, 3), 10000.0, 1000.0)
        means = []
        for step in range(steps):
            place = torch.zeros(64, 3)
            place[:, axis] = step
            means.append(float((here * rotate(tokens, place, 10000.0, 1000.0)).sum(1).mean()))
        axes.plot(range(steps), means, color=colour, label=f"apart in {name}")
    axes.set(
        xlabel="distance (seconds, rows)",
        ylabel="inner product",
        ylim=(0, 1.02),
        title="Two equal tokens after ST-RoPE",
    )
    axes.legend(loc="center right")


def draw_reuse(figure: plt.Figure, frames: Sequence[np.ndarray], threshold: float = 0.05, layers: int = 9) -> None:
    """Which patches of frames (H, W, 3) the vision tower computes with tower_reuse="pixels", and in which layers."""
    size = 8
    pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
    patches = pixels.unfold(2, size, size).unfold(3, size, size)
    grid = patches.shape[2:4]
    source = sources(patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2), threshold, 16)
    shares = computed(source)
    pictures = figure.subplots(2, len(frames), height_ratios=(3, 2), squeeze=False)
    for number, (frame, (above, below)) in enumerate(zip(frames, pictures.T, strict=True)):
        bright = (source[number] == number).view(grid).numpy().repeat(size, 0).repeat(size, 1)
        above.imshow((frame * np.where(bright, 1, 0.3)[..., None]).astype(np.uint8))
        above.set(xticks=[], yticks=[], title=f"{float(shares[number]):.0%}")
        widths = [float(shares[number])] * (layers // 3) + [1.0] * (layers - layers // 3)
        below.barh(range(layers), [1.0] * layers, color="#dddddd", height=0.8)
        below.barh(range(layers), widths, color="#3b6cb2", height=0.8)
        below.set(xticks=[], yticks=[], xlim=(0, 1), ylabel="layers" if number == 0 else None)


def main() -> None:
    torch.set_num_threads(1)
    FIGURES.mkdir(exist_ok=True)
    checkpoint = load(str(ROOT / MODEL))
    checkpoint.described["pretrained"] = MODEL  # shown, and not to tell where this checkout lies
    with tempfile.TemporaryDirectory() as folder:
        made = visualize(ROOT / VIDEO, folder, checkpoint, ["tango"], [RATIO], FRAMES, command=COMMAND)
        (FIGURES / "kept.png").write_bytes(made.sheets[0].read_bytes())
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    draw_segments(left, trace_of(checkpoint, DENSE))
    draw_discount(right)
    figure.savefig(FIGURES / "steps.png", dpi=110, metadata={"Software": None})
    figure = plt.figure(figsize=(11, 2.6), layout="constrained")
    draw_reuse(figure, list(read_video(str(ROOT / VIDEO), FRAMES).frames))
    figure.savefig(FIGURES / "reuse.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
