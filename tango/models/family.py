"""What a model family must say of itself: where its features, saliency, grid, time and positions come from.

`Family` is the base class of the one class in each family file; `Video` is what it hands over for each video.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from tango.models.prompt import Prompt
    from tango.pruners.base import Pruned, Pruner


@dataclass(frozen=True)
class Video:
    """One encoded video of a prompt, as a family hands it over.

    row, columns: its row of the batch and the prompt columns (n,) of its placeholders, ascending.
    features (F, L, D), saliency (F, L) or None, segment_features (F, E) or None, grid (H, W) with H*W = L.
    keys (F, L, K) or None: each token's key in the last vision layer, averaged over heads.
    extra (F, L, X) or None: what else of each token the language model receives; pruners do not see it.
    interval: seconds between frames, as far as the prompt tells.
    """

    row: int
    columns: Tensor
    features: Tensor
    grid: tuple[int, int]
    saliency: Tensor | None = None
    segment_features: Tensor | None = None
    keys: Tensor | None = None
    extra: Tensor | None = None
    interval: float = 1.0


class Family(ABC):
    """One model family: where its features, saliency, grid, time and positions come from.

    Made once for each attachment, so whatever it loads lives as long as that.
    """

    inputs: tuple[str, ...]  # keyword arguments that videos() and embed() use up; the language model never sees them
    video_inputs: tuple[str, ...]  # those of them whose presence means that the prompt holds a video
    extra_width = 0  # X: columns of lay_out()'s and embed()'s embeddings (.., D + X) beyond the language model's width

    @abstractmethod
    def __init__(self, model: nn.Module, pruner: "Pruner") -> None:
        """Prepare what `pruner.needs` needs; raises if it cannot be had."""

    @classmethod
    @abstractmethod
    def sizes(cls, config: Any, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
        """Frames and tokens a frame of each video of a prompt, told without encoding it; `config` is the model's."""

    @abstractmethod
    def videos(self, inputs: Mapping[str, Any]) -> Iterator[Video]:
        """Encode the videos of a prompt, in prompt order."""

    @abstractmethod
    def lay_out(self, video: Video, pruned: "Pruned") -> tuple[Tensor, Tensor]:
        """What stands in the prompt for a pruned video: embeddings (T, D + X), prompt column of each (T,)."""

    def token_columns(self, video: Video) -> Tensor:
        """The prompt columns (F*L,) of a video's visual tokens, in flat order; here what follows them is newlines."""
        return video.columns[: video.features.shape[0] * video.features.shape[1]]

    @abstractmethod
    def embed(self, ids: Tensor | None, embeds: Tensor | None, real: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Embed a prompt, images included and videos not: (B, W, D + X). `real` (B, W) is False where it is padded.

        The prompt comes as ids (B, W) or, where the caller gave embeddings, as embeds (B, W, D).
        """

    def sink_tokens(self, grid: tuple[int, int]) -> tuple[int, ...] | None:
        """Attention sinks of this family on a grid; None where none are known."""
        return None

    def timestamps(self, video: Video, given: Sequence[float] | Tensor | None) -> Tensor:
        """Seconds of each frame (F,); without times, frame f is taken to be at second f * video.interval."""
        frames = video.features.shape[0]
        if given is None:
            return torch.arange(frames, dtype=torch.float32, device=video.features.device) * video.interval
        times = torch.as_tensor(given, dtype=torch.float32, device=video.features.device).flatten()
        if len(times) != frames:
            raise ValueError(f"{len(times)} timestamps for a video of {frames} frames; one a frame is needed")
        return times

    def positions(self, inputs: Mapping[str, Any], source: Tensor, attended: Tensor) -> Tensor | None:
        """Position ids (.., B, W) of a pruned prompt whose tokens keep those that the unpruned prompt gives them.

        inputs: the unpruned prompt of width N; source (B, W): its column at each place, -1 for padding; attended
        (B, W): what the pruned prompt's mask shows. None (here): the pruned prompt is numbered without gaps.
        """
        return None

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Open while the pruner is attached, for hooks of the family's own."""
        yield

    def begin(self, prompt: "Prompt | None") -> None:  # noqa: B027
        """Told before the model runs on a pruned prompt; None: nothing of an earlier one is to be used any more."""


def placeholders(core: Any, prompt: Mapping[str, Any], token: int) -> Tensor:
    """Where a placeholder stands (B, N); in a prompt of embeddings it is told by its embedding."""
    embeds = prompt.get("inputs_embeds")
    found: Tensor
    if embeds is None:
        found = prompt["input_ids"] == token
    else:
        embedding = core.get_input_embeddings()(torch.tensor(token, device=embeds.device))
        found = (embeds == embedding.to(embeds.device)).all(-1)
    return found


def joined(parts: Iterable[Mapping[str, Tensor]], length: int) -> dict[str, Tensor]:
    """Tensors (n, ..) by name, given a chunk at a time, as tensors (length, ..): filled in place.

    Collecting the chunks and putting them together at the end would hold everything twice.
    """
    whole: dict[str, Tensor] = {}
    start = 0
    for part in parts:
        count = 0
        for name, tensor in part.items():
            count = len(tensor)
            if count == length:
                return {own: values.contiguous() for own, values in part.items()}
            if name not in whole:
                whole[name] = tensor.new_empty(length, *tensor.shape[1:])
            whole[name][start : start + count] = tensor
        start += count
    return whole
