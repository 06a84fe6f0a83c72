"""Where a checkout has the benchmark MotionQA and tango-tiny, the small model that was trained for it."""

import os
from pathlib import Path

MODEL, DATA = "checkpoints/tango-tiny", "data/motionqa"
VIDEO = f"{DATA}/videos/0.mp4"
FRAMES = 8  # of each video: what the model was trained on


class NotShipped(ValueError):
    """A file of the repository that is not here; the message says what to do."""


def checkout() -> Path | None:
    """The repository's root: the current folder, or the one this package was installed from; None without either."""
    for folder in (Path.cwd(), Path(__file__).resolve().parents[2]):
        if (folder / MODEL / "config.json").is_file() and (folder / "scripts" / "demo.py").is_file():
            return folder
    return None


def shipped(name: str) -> str:
    """A file or folder of the repository, as a path from the current folder if it is below that.

    Raises:
        NotShipped: this is an installation without a checkout, or the file is not in it.
    """
    root = checkout()
    if root is None or not (root / name).exists():
        raise NotShipped(
            f"{name} comes with the repository and is not here: run this in a checkout, or name what to use instead"
        )
    path = root / name
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
