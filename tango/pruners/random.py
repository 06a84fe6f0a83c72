"""Random: the trivial baseline that keeps tokens by the draw."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tango.pruners.base import Pruned, Pruner, check_features, keep, token_budget


@dataclass
class Random(Pruner):
    """Keep B of n tokens, drawn without replacement: B = min(n, max(1, ceil(n * r - 1e-9))).

    Args:
        retention_ratio, saliency, saliency_weights, exact_budget: see Pruner.
        seed: with the video's key it seeds the draw, which is made on the CPU: the same on every device and run.

    Raises:
        ValueError: a field is out of its range.
    """

    name: ClassVar[str] = "random"

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._integer("seed", least=0)

    @property
    def signals(self) -> frozenset[str]:
        return frozenset({"key"})

    def prune(
        self,
        features: Tensor,
        saliency: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        timestamps: Tensor | Sequence[float] | None = None,
        segment_features: Tensor | None = None,
        key: str = "0",
    ) -> Pruned:
        """Prune one video.

        Args:
            features: (F, L, D) tokens, any floating dtype.
            grid: (H, W), checked where given.
            key: the video's id, or its ordinal in its prompt, as text.
            saliency, timestamps, segment_features: not used.

        Raises:
            ValueError: features are not finite or of the wrong shape.
        """
        check_features(features, grid)
        frames, tokens, _ = features.shape
        count = frames * tokens
        budget = self.budget(frames, tokens) if self.exact_budget else token_budget(count, self.retention_ratio)
        generator = torch.Generator().manual_seed((self.seed + zlib.crc32(key.encode())) % 2**63)
        drawn = torch.randperm(count, generator=generator)[:budget]
        return keep(features, drawn.sort().values)
