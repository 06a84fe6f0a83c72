"""Pictures of what was kept of a video: contact sheets (PNG) and a page with sliders (HTML) that needs no network.

from tango.visualize import visualize
visualize("clip.mp4", "pictures", methods=["tango", "topk"], ratios=[0.1, 0.2])
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tango.evaluation.checkpoints import Checkpoint, check_pretrained, load
from tango.evaluation.video import read_video
from tango.pruners import Pruner
from tango.visualize.page import write_page
from tango.visualize.runs import capture, with_ratios
from tango.visualize.sheet import draw_sheet

__all__ = ["Pictures", "visualize"]


@dataclass(frozen=True)
class Pictures:
    """The files that were written: one page, and one contact sheet for each method and ratio, in that order."""

    page: Path
    sheets: tuple[Path, ...]


def visualize(
    video: str | Path,
    output: str | Path,
    model: str | Checkpoint = "checkpoints/tango-tiny",
    methods: Sequence[str | Pruner] = ("tango",),
    ratios: Sequence[float] = (0.1, 0.15, 0.2),
    frames: int = 8,
    question: str | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    command: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Pictures:
    """Draw which tokens of a video each method keeps, drops and merges at each ratio, as a model really ran with it.

    Args:
        output: a folder, made if it is not there; the page is `index.html` in it, sheets are `<method>_<ratio>.png`.
        model: a folder or hub id, or what tango.evaluation.checkpoints.load() returned.
        methods: names, or pruners where settings matter; their ratio is replaced.
        ratios: retention ratios in (0, 1].
        frames: sampled evenly from the video.
        question: asked of the model with each method at each ratio, and without any; the answers are shown.
        device, dtype: see load(); not used with a loaded checkpoint.
        command: shown, so that the picture can be made again.
        progress: called before each step with its name, how many are done, and how many there are.

    Raises:
        FileNotFoundError: no such video.
        NotADirectoryError: `output` is a file.
        ValueError: an unknown method, a ratio out of its range, a file without video, a checkpoint that cannot be
            loaded, or a method that does not work with it.
    """
    pruners = with_ratios(methods, ratios)
    if frames < 1:
        raise ValueError(f"frames = {frames}: sample at least one frame of the video")
    if isinstance(model, str):
        check_pretrained(model)
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"output {str(output)!r} is a file; name a folder for the page and the sheets")
    read_video(video, 1)  # a file that is no video is turned away before a model is loaded
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = load(model, device=device, dtype=dtype) if isinstance(model, str) else model
    total, done = 2 * sum(len(row) for row in pruners) + (question is not None) + 1, 0

    def step(name: str) -> None:
        nonlocal done
        if progress is not None:
            progress(name, done, total)
        done += 1

    picture = capture(checkpoint, video, pruners, frames, question, command, step)
    sheets: list[Path] = []
    for row in picture.panels:
        for panel in row:
            path = folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', panel.method)}_{panel.ratio:g}.png"
            while path in sheets:  # settings that differ only in characters left out of names of files
                path = path.with_stem(path.stem + "_")
            step(path.name)
            draw_sheet(picture, panel, path)
            sheets.append(path)
    page = folder / "index.html"
    step(page.name)
    write_page(picture, page)
    return Pictures(page, tuple(sheets))
