"""Pictures of what was kept of a video: a contact sheet (PNG) and a page with sliders (HTML) that needs no network.

from tango.visualize import visualize
visualize("clip.mp4", "pictures", methods=["tango", "topk"], ratios=[0.1, 0.2])
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tango.inference.checkpoints import Checkpoint, load
from tango.inference.names import check_pretrained
from tango.inference.video import read_video
from tango.pruners import Pruner
from tango.visualize.page import write_page
from tango.visualize.runs import capture, with_ratios
from tango.visualize.sheet import draw_sheets

__all__ = ["Pictures", "visualize"]


@dataclass(frozen=True)
class Pictures:
    """The files that were written: the page, and the contact sheet, in several files only where it is very large."""

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
        video: the file.
        output: a folder, made if it is not there; it gets `index.html` and `sheet.png` (then `sheet_2.png`).
        model: a folder or hub id, or what tango.inference.checkpoints.load() returned.
        methods: names, or pruners where settings matter; their ratio is replaced.
        ratios: retention ratios in (0, 1].
        frames: how many to sample, evenly, from the video.
        question: asked of the model with each method at each ratio, and without any; the answers are shown.
        device, dtype: see load(); not used with a loaded checkpoint.
        command: text to show: what makes the picture again.
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
    read_video(video, 1)  # refuses what is no video before the model is loaded, which takes longer
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = load(model, device=device, dtype=dtype) if isinstance(model, str) else model
    total, done = sum(len(row) for row in pruners) + (question is not None) + 2, 0

    def step(name: str) -> None:
        nonlocal done
        if progress is not None:
            progress(name, done, total)
        done += 1

    picture = capture(checkpoint, video, pruners, frames, question, command, step)
    step("contact sheet")
    sheets = draw_sheets(picture, folder)
    page = folder / "index.html"
    step(page.name)
    write_page(picture, page)
    return Pictures(page, sheets)
