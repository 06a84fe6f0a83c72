"""What every pruning method shares: its settings, its two public calls, and what it returns.

A method is one dataclass in one file beside this one. Its fields are its settings, `prune()` works on plain tensors,
and `with method(model):` attaches it to a model. Nothing here, or in any method, knows a model class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from tango.pruners import trace
from tango.pruners.budget import fit
from tango.pruners.in_llm import LayerPruning
from tango.pruners.reuse import TowerReuse
from tango.pruners.settings import OneOf, PositiveShare, Saliency, check_settings
from tango.pruners.unmerged import whole
from tango.pruners.video import Pruned, VideoTokens, as_times


@dataclass
class Pruner(TowerReuse, ABC):
    """A method that keeps a share of a video's tokens, and of TowerReuse's settings those that are given.

    Args:
        retention_ratio: share of the tokens to keep, in (0, 1]; 1 keeps every token as it is.
        saliency: which saliency the model side computes: "pooling_head", "global_query", "received_attention" (what
            each patch receives from all of its frame in the last vision layer in use), or None for the choice of the
            model family.
        saliency_weights: where to read the pooling head: a path or a hub id; None looks beside the checkpoint, then
            takes the family's default.
        exact_budget: keep exactly budget() tokens of every video, a number known before it is encoded; False leaves
            each method the rounding, and the dependence on content, that it was published with.
        keep_positions: the language model sees kept tokens, and all text, at the positions they had in the unpruned
            prompt, also in a model family that numbers a pruned prompt without gaps. prune() gives the same either way.
        positions: what those of the unpruned prompt are, where transformers gives others than the model was trained
            with (Qwen2.5-VL's): "trained", or "transformers", those of the installed version.

    Raises:
        ValueError: a field is out of its range; the message names the field, the value and the range.
    """

    name: ClassVar[str]
    reads_times: ClassVar[bool] = False  # whether it matters when frames are

    retention_ratio: PositiveShare = 0.1
    saliency: Saliency | None = None
    saliency_weights: str | None = None
    exact_budget: bool = False
    keep_positions: bool = False
    positions: Annotated[str, OneOf("trained", "transformers")] = "trained"

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def needs(self) -> frozenset[str]:
        """The parts of VideoTokens that the model side must supply beyond features, grid and timestamps."""
        return frozenset()

    def in_llm(self, layers: int) -> LayerPruning | None:
        """What happens inside a language model of so many layers, None: nothing; ValueError if settings do not fit."""
        return None

    def before_llm(self, layers: int) -> Pruner:
        """The pruner to apply before such a language model, where pruning inside it takes part of the budget."""
        return self

    def prune(
        self,
        features: Tensor,
        saliency: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        timestamps: Tensor | Sequence[float] | None = None,
        segment_features: Tensor | None = None,
        *,
        frame_vectors: Tensor | None = None,
        keys: Tensor | None = None,
        key: str = "0",
    ) -> Pruned:
        """Prune one video of F frames of L tokens, given as tensors; a method uses those that it `needs`.

        Args:
            features: (F, L, D) tokens as the language model would receive them, any floating dtype; D even for Tango.
            saliency, grid, timestamps, segment_features, frame_vectors, keys, key: see VideoTokens.

        Returns:
            Pruned. Indices ascend and are unique unless the method says otherwise. A retention ratio of 1 returns
            every token as it came, in one segment.

        Raises:
            ValueError: an input is missing, not finite or beyond 1e16, or of the wrong type or shape.
        """
        parts = {"segment_features": segment_features, "frame_vectors": frame_vectors, "keys": keys}
        return self.prune_tokens(VideoTokens(features, grid, as_times(timestamps), saliency, key=key, **parts))

    def prune_tokens(self, video: VideoTokens) -> Pruned:
        """The same for a video that is a VideoTokens already."""
        prune = whole if self.retention_ratio == 1 else self._prune
        traces = trace.TRACES.get()
        # What is worked out on the host stays there, also under torch.set_default_device("cuda").
        with torch.device("cpu") if torch.get_default_device().type != "cpu" else nullcontext():
            return prune(video) if traces is None else trace.recorded(traces, self, video, prune)

    @abstractmethod
    def _prune(self, video: VideoTokens) -> Pruned:
        """The method itself, at a retention ratio below 1."""

    def budget(self, frames: int, tokens: int) -> int:
        """Tokens that prune() returns with exact_budget: round(r * (frames * tokens)), halves to even; at least 1."""
        return max(1, round(self.retention_ratio * (frames * tokens)))

    def exactly(self, pruned: Pruned, features: Tensor, ranking: Tensor) -> Pruned:
        """What was pruned; with exact_budget, less its tokens of lowest ranking (F, L), or with the highest others.

        For methods whose steps do not give budget() tokens of features (F, L, D). What is added is not merged.
        """
        frames, tokens, _ = features.shape
        return fit(pruned, features, ranking, self.budget(frames, tokens)) if self.exact_budget else pruned

    def __call__(self, model: torch.nn.Module) -> AbstractContextManager[Any]:
        """Attach to a model for the length of a `with` block; gives the session that records what was pruned."""
        from tango.models import attach  # here, so that prune() works without transformers

        return attach(model, self)

    def settings(self) -> dict[str, Any]:
        """All fields as plain JSON values, for the files that hold results."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def zero_sinks(saliency: Tensor, sink_tokens: Sequence[int] | None) -> Tensor:
    """Set the saliency (F, L) of attention sinks to 0 in every frame, in a copy; positions are within a frame."""
    if not sink_tokens:
        return saliency
    if max(sink_tokens) >= saliency.shape[1]:
        raise ValueError(f"sink_tokens {tuple(sink_tokens)}: a frame has positions 0 to {saliency.shape[1] - 1} only")
    return saliency.index_fill(1, torch.tensor(sink_tokens, device=saliency.device), 0.0)


@contextmanager
def full_precision(device: torch.device, gradients: bool = False) -> Iterator[None]:
    """No autocast, no TF32 inside: distances decide which tokens stay, so they are true fp32.

    gradients: where they are recorded, still record them, for merged tokens; else none are.
    """
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.set_grad_enabled(gradients and torch.is_grad_enabled()), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
