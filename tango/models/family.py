"""What a model family must say of itself: where its features, saliency, grid, time and positions come from.

`Family` is the base class of the one class in each family file; `Video` is what it hands over for each video.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tango.models.prompt import take

if TYPE_CHECKING:
    from tango.pruners.base import Pruned, Pruner


@dataclass(frozen=True)
class Video:
    """One encoded video of a prompt, as a family hands it over.

    row, columns: its row of the batch and the prompt columns (n,) of its placeholders, ascending.
    features (F, L, D), saliency (F, L) or None, segment_features (F, E) or None, grid (H, W) with H*W = L.
    """

    row: int
    columns: Tensor
    features: Tensor
    grid: tuple[int, int]
    saliency: Tensor | None = None
    segment_features: Tensor | None = None


class Family(ABC):
    """One model family: where its features, saliency, grid, time and positions come from.

    Made once for each attachment, so whatever it loads lives as long as that.
    """

    inputs: tuple[str, ...]  # keyword arguments that videos() and embed() use up; the language model never sees them
    video_inputs: tuple[str, ...]  # those of them whose presence means that the prompt holds a video

    @abstractmethod
    def __init__(self, model: nn.Module, pruner: "Pruner") -> None:
        """Prepare what `pruner.signals` needs; raises if it cannot be had."""

    @abstractmethod
    def videos(self, inputs: Mapping[str, Any]) -> Iterator[Video]:
        """Encode the videos of a prompt, in prompt order."""

    @abstractmethod
    def lay_out(self, video: Video, pruned: "Pruned") -> tuple[Tensor, Tensor]:
        """What stands in the prompt for a pruned video: embeddings (T, D) and the prompt column of each (T,)."""

    @abstractmethod
    def embed(self, ids: Tensor | None, embeds: Tensor | None, real: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Embed a prompt, images included and videos not: (B, W, D). `real` (B, W) is False where it is padded.

        The prompt comes as ids (B, W) or, where the caller gave embeddings, as embeds (B, W, D).
        """

    def sink_tokens(self, grid: tuple[int, int]) -> tuple[int, ...] | None:
        """Attention sinks of this family on a grid; None where none are known."""
        return None

    def timestamps(self, video: Video, given: Sequence[float] | Tensor | None) -> Tensor:
        """Seconds of each frame (F,); without times, frame f is taken to be at second f."""
        frames = video.features.shape[0]
        if given is None:
            return torch.arange(frames, dtype=torch.float32, device=video.features.device)
        times = torch.as_tensor(given, dtype=torch.float32, device=video.features.device).flatten()
        if len(times) != frames:
            raise ValueError(f"{len(times)} timestamps for a video of {frames} frames; one a frame is needed")
        return times

    def positions(self, given: Tensor | None, source: Tensor, attended: Tensor) -> Tensor | None:
        """Position ids (B, W) of a pruned prompt; None leaves the numbering to the model.

        Here: without gaps. Where the caller gave position ids (B, N), each row goes on from its first one.
        """
        if given is None:
            return None
        first = take(given.expand(source.shape[0], -1), source).gather(1, attended.int().argmax(1, keepdim=True))
        return (first + attended.long().cumsum(1) - 1).masked_fill(~attended, 0)
