"""A model that answers questions about videos, pruned and not: what the commands that load one share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tango.cli.common import OTHER_FRAMES, InputError, starved
from tango.motionqa.shipped import FRAMES, MODEL, VIDEO, shipped

if TYPE_CHECKING:
    from tango.inference.chat import Chat
    from tango.inference.checkpoints import Checkpoint
    from tango.pruners.base import Pruner

UNPRUNED = "unpruned"


def label(pruner: Pruner | None) -> str:
    """What a way of answering is called in tables: method and retention ratio."""
    return UNPRUNED if pruner is None else f"{pruner.name} {pruner.retention_ratio:g}"


def choose_pruners(
    methods: Sequence[str], ratio: float, config: str | None, fields: Sequence[str] | None
) -> list[Pruner]:
    """The methods to compare with the unpruned model, their settings checked.

    Raises:
        InputError: an unknown method, field or file, or a value that cannot be.
    """
    from tango.pruners import REGISTRY
    from tango.runs.settings import make_pruner, parse_args

    chosen = []
    for name in dict.fromkeys(methods):
        if name not in REGISTRY:
            raise InputError(f"--method {name!r}: there is no such method; use one of {', '.join(REGISTRY)}")
        with input_errors():
            values = parse_args(",".join(fields or []), name, {"retention_ratio": ratio})
            if (pruner := make_pruner(name, config, values)) is not None:
                chosen.append(pruner)
    return chosen


def check_model(model: str | None) -> None:
    """Turn away a model's name that is neither a folder nor a hub id; InputError."""
    from tango.inference.names import check_pretrained

    with input_errors():
        check_pretrained(shipped(MODEL) if model is None else model)


def check_video(video: str | None) -> str:
    """A video that can be opened, by default the shipped one; looked at before a model is loaded.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    path = shipped(VIDEO) if video is None else video
    if not Path(path).is_file():
        raise InputError(f"no video file {path!r}; give the path of one, or none for the shipped {VIDEO}")
    with input_errors():
        from tango.inference.video import read_video

        read_video(path, 1)
    return path


def check_question(question: str | None) -> None:
    """Turn away a question of nothing, and one that a shell passed on as bytes that are no text; InputError."""
    from tango.inference.prompt import check_text

    if question is not None and not question.strip():
        raise InputError(f"the question {question!r} asks nothing; write one")
    with input_errors():
        check_text(question or "")


def check_asked(model: str | None, video: str | None, question: str | None) -> str:
    """All that can be known of these before a model is loaded; returns the video's path. InputError as above."""
    check_model(model)
    path = check_video(video)
    check_question(question)
    return path


@contextlib.contextmanager
def input_errors() -> Iterator[None]:
    """Turn errors of reading a video, and of settings that cannot be or do not fit a model, into an InputError."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from error


def load(model: str | None, device: str | None, dtype: str, pruners: Sequence[Pruner] = ()) -> Checkpoint:
    """The model and its processor. Each method is attached once, so that one that does not fit is found before anything
    is computed.

    Raises:
        InputError: no such checkpoint, one that cannot be used, no such device, or a method that does not fit.
    """
    import accelerate  # noqa: F401 (transformers puts models on devices with it, and is late to say that it is missing)
    import torch
    from transformers.utils import logging

    from tango.inference.checkpoints import load as load_checkpoint

    source = shipped(MODEL) if model is None else model
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise InputError(f"--device {device!r}: use cpu, cuda, or cuda:1 for a certain GPU")
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # there is a bar already
    try:
        checkpoint = load_checkpoint(source, device=device, dtype=dtype)
    except (ValueError, OSError, RuntimeError) as error:
        if starved(error):
            raise
        first = str(error).strip().split("\n")[0]
        raise InputError(first if source in first else f"{source}: {first}") from error
    for pruner in pruners:
        with attached(checkpoint, pruner, 1):
            pass
    return checkpoint


def frames_for(frames: int | None, model: str | None) -> int:
    """How many frames to sample when the user does not say: what the model in question is used with."""
    if frames is not None:
        return frames
    return FRAMES if model is None or Path(model).name == Path(MODEL).name else OTHER_FRAMES


@contextlib.contextmanager
def attached(checkpoint: Checkpoint, pruner: Pruner | None, frames: int) -> Iterator[Chat]:
    """The model with the pruner, ready to be asked.

    Raises:
        InputError: the method does not fit the model, or the video turns out to be damaged.
    """
    from tango.inference.chat import Chat

    with input_errors(), Chat(checkpoint, pruner, max_frames=frames).session() as chat:
        yield chat
