"""The videos of samples as strips of frames, and which tokens a method kept of them.

Runs note a hash of the tokens that they kept. To draw them, the method runs again, on each video once, and what it
keeps now is drawn only where it has that hash.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tango.inference.asking import conversation
from tango.inference.chat import Chat
from tango.inference.checkpoints import Checkpoint, load
from tango.inference.video import read_video
from tango.pruners.trace import traced
from tango.runs.settings import VANILLA, make_pruner
from tango.site.runs import Run

HEIGHT = 112  # pixels of a frame
WIDEST = 16_000  # pixels of a strip; JPEG ends at 65,535


@dataclass
class Strip:
    """A video's frames side by side, and what was kept of it, by the hash in the records: a digit a token, its role
    (tango.pruners.trace), frame by frame.

    file: of the picture. frames: how many are in it, each `each`-th that the model was given.
    """

    file: str
    frames: int
    each: int
    grid: tuple[int, int] | None = None
    kept: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawn:
    """strips by a name of their own; names: of the strip for a run's number and a video's name; what to know of it."""

    strips: dict[str, Strip]
    names: dict[tuple[int, str], str]
    remarks: list[str]

    def name_of(self, number: int, run: Run, row: Mapping[str, Any]) -> str | None:
        """The name of the strip of a sample's video; number: the run's."""
        text = run.texts.get(str(row["id"]))
        return None if text is None else self.names.get((number, text.video))


def kept_hash(row: Mapping[str, Any]) -> str | None:
    """The hash of what was kept of a sample's video; None where it is not told, or there are several."""
    kept = row.get("kept") or []
    return kept[0] if len(kept) == 1 and isinstance(kept[0], str) else None


def draw(runs: Sequence[Run], videos: Path, model: str | None, folder: Path, step: Callable[[str], None]) -> Drawn:
    """Write the strips of all samples' videos that are found in a folder.

    Args:
        model: the checkpoint of the runs whose kept tokens are drawn, those of a model of its name; None: of none.
        folder: where the strips go. step: called with the name of each step before it starts.

    Raises:
        ValueError: `model` is no checkpoint.
    """
    folder.mkdir()
    checkpoint = None if model is None else load(model)
    drawn = Drawn({}, {}, [])
    lost: dict[str, str] = {}
    step("drawing frames")
    for number, run in enumerate(runs):
        frames = run.cell["provenance"]["model"]["max_frames_num"]
        for name in dict.fromkeys(text.video for text in run.texts.values() if text.video):
            if (file := _find(videos, name)) is None:
                lost.setdefault(name, "no such file")
                continue
            key = f"{file}:{frames}"
            try:
                if key not in drawn.strips:
                    drawn.strips[key] = _strip(file, frames, folder / f"{len(drawn.strips)}.jpg")
            except (ValueError, OSError) as error:
                lost.setdefault(name, str(error))
                continue
            drawn.names[number, name] = key
    if lost:
        first = next(iter(lost))
        drawn.remarks.append(f"of {len(lost)} videos no frames are shown: {first} in {videos}: {lost[first]}")
    if checkpoint is not None:
        _keep_again(runs, drawn, checkpoint, Path(str(model)).name, step)
    return drawn


def _find(videos: Path, name: str) -> Path | None:
    """A video by the name that a framework logged, with or without its suffix; never outside the folder."""
    root = videos.resolve()
    try:
        place = (root / name).resolve()
        beside = [place, *sorted(place.parent.glob(f"{place.name}.*"))] if place.is_relative_to(root) else []
        return next((file for file in beside if file.is_file() and file.resolve().is_relative_to(root)), None)
    except (OSError, ValueError):  # a name that can be no file's
        return None


def _strip(file: Path, count: int, picture: Path) -> Strip:
    frames = read_video(file, count).frames
    height, width = frames.shape[1:3]
    wide = max(1, round(width * HEIGHT / height))
    each = -(-len(frames) * wide // WIDEST)
    small = [np.asarray(Image.fromarray(frame).resize((wide, HEIGHT))) for frame in frames[::each]]
    Image.fromarray(np.hstack(small)).save(picture, "JPEG", quality=80)
    return Strip(f"frames/{picture.name}", len(small), each)


def _keep_again(
    runs: Sequence[Run], drawn: Drawn, checkpoint: Checkpoint, model: str, step: Callable[[str], None]
) -> None:
    """Add what each run kept of its videos to their strips, once for runs of the same settings."""
    wanted: dict[str, dict[tuple[str, str], None]] = {}
    for number, run in enumerate(runs):
        if run.cell["cell"]["model"] == model and run.cell["cell"]["method"] != VANILLA:
            model_of = run.cell["provenance"]["model"]
            how = {"max_frames": model_of["max_frames_num"], "times": model_of.get("times", "processor")}  # see Chat
            key = json.dumps([run.cell["cell"]["method"], run.cell["provenance"]["settings"], how])
            for row in run.cell["samples"]:
                name, recorded = drawn.name_of(number, run, row), kept_hash(row)
                if name is not None and recorded is not None:
                    wanted.setdefault(key, {})[name, recorded] = None
    differ = total = 0
    for key, pairs in wanted.items():
        method, settings, how = json.loads(key)
        step(f"drawing kept tokens: {method}")
        kept = {}
        with Chat(checkpoint, make_pruner(method, None, settings), **how).session() as chat:
            for name in dict.fromkeys(name for name, _ in pairs):
                kept[name] = _kept(chat, name.rpartition(":")[0])
        total += len(pairs)
        for name, recorded in pairs:
            hashed, roles, grid = kept[name]
            if hashed != recorded:
                differ += 1
                continue
            strip = drawn.strips[name]
            size, frames = grid[0] * grid[1], len(roles) // (grid[0] * grid[1])
            # Qwen's frames of tokens are pairs of the video's.
            pair = -(-strip.each * strip.frames // frames) if frames else 1
            shown = [f * strip.each // pair for f in range(strip.frames)]
            strip.grid = grid
            strip.kept[recorded] = "".join(roles[f * size : (f + 1) * size] for f in shown)
    if differ:
        drawn.remarks.append(
            f"of {differ} of {total} videos and methods the kept tokens are not drawn: this code and machine keep "
            "others than the runs did"
        )


def _kept(chat: Any, video: str) -> tuple[str, str, tuple[int, int]]:
    with traced() as traces:
        (record,) = chat.generate(conversation(video, "?"), {"max_new_tokens": 1}, video).videos
    roles = bytes(traces[0].roles.cpu().numpy() + ord("0")).decode()
    return record["kept"], roles, (int(record["grid"][0]), int(record["grid"][1]))
