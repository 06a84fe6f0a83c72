"""A stream's frames as the vision tower sees them: resized, prepared and encoded one at a time."""

import contextlib
import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, resize

from tango.inference.chat import PixelLimits


@dataclass(frozen=True)
class Unit:
    """One frame of the tower: its parts (1, ..), rows and columns, and the seconds at which it begins, is, and ends."""

    parts: dict[str, Any]
    grid: tuple[int, int]
    begin: float
    time: float
    end: float


class Encoder:
    """Makes units of sampled frames, with what is attached to a model.

    seam: of the attachment, whose lock is held while the tower runs. samples: sampled frames that make one unit.
    limits: how large frames are for models that take any size.
    """

    def __init__(self, model: Any, processor: Any, seam: Any, samples: int, limits: PixelLimits) -> None:
        self.model, self.processor, self.seam = model, processor.video_processor, seam
        self.samples, self.limits = samples, limits
        self.pending: list[tuple[Tensor, float]] = []  # sampled frames that are no unit yet
        self.reused = getattr(seam.family, "rule", None)  # with tower_reuse: of the last unit, for the next
        self._size: list[int] | None = None

    def add(self, picture: Tensor, time: float) -> Unit | None:
        """Take in a sampled frame (3, H, W); returns the unit that it completes, if it does."""
        self.pending.append((picture, time))
        if len(self.pending) < self.samples:
            return None
        frames, self.pending = self.pending, []
        unit, self.reused = self._encode(frames)
        return unit

    def rest(self) -> list[Unit]:
        """Sampled frames that are no unit yet as one, the last of them repeated; they stay what they are."""
        return [self._encode(self.pending)[0]] if self.pending else []

    def _encode(self, frames: list[tuple[Tensor, float]]) -> tuple[Unit, Any]:
        """A unit, and what the next one may reuse of it, for the caller to hold where the stream goes on from it."""
        pictures = [self._sized(picture) for picture, _ in frames]
        times = [time for _, time in frames]
        missing = self.samples - len(frames)
        stacked = torch.stack([*pictures, *pictures[-1:] * missing])
        options: dict[str, Any] = {"do_sample_frames": False, "return_tensors": "pt"}
        if self.samples > 1:
            options["do_resize"] = False
        inputs = {
            name: value.to(self.model.device, self.model.dtype if value.is_floating_point() else None)
            for name, value in self.processor(videos=[stacked], **options).items()
            if isinstance(value, Tensor)
        }
        reused, family = copy.copy(self.reused), self.seam.family
        with self.seam.lock, contextlib.nullcontext() if reused is None else family.following(reused):
            (parts,) = family.encode(inputs)
        rows, columns = parts.pop("grid")
        mean = (sum(times) + missing * times[-1]) / self.samples
        return Unit(parts, (rows, columns), times[0], mean, times[-1]), reused

    def _sized(self, picture: Tensor) -> Tensor:
        """A sampled frame as large as the model is to see all of them, by the first one's shape."""
        if self.samples == 1:  # the processor has one size for all
            return picture
        if self._size is None:
            factor = self.processor.patch_size * self.processor.merge_size
            self._size = list(self.limits.frame_size(2, picture.shape[1], picture.shape[2], factor))
        sized: Tensor = resize(picture, self._size, InterpolationMode.BICUBIC, antialias=True)
        return sized


def as_picture(frame: Any) -> Any:
    """A frame as an array (height, width, 3) uint8; ValueError for anything else."""
    try:
        picture = np.asarray(frame.cpu() if isinstance(frame, Tensor) else frame)
    except Exception as error:
        raise ValueError(f"a frame is a picture, not {type(frame).__name__}") from error
    if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape or picture.dtype != np.uint8:
        shape = f"{picture.dtype} {picture.shape}"
        raise ValueError(f"a frame is an array (height, width, 3) of uint8, RGB, got {shape}")
    return picture
