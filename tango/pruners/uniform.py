"""Uniform: the trivial baseline that keeps tokens at equal steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tango.pruners.base import Pruned, Pruner, check_features, keep, token_budget


@dataclass
class Uniform(Pruner):
    """Keep the tokens floor((2j + 1) n / (2B)), j = 0 .. B-1, of n: B = min(n, max(1, ceil(n * r - 1e-9)))."""

    name: ClassVar[str] = "uniform"

    def prune(
        self,
        features: Tensor,
        saliency: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        timestamps: Tensor | Sequence[float] | None = None,
        segment_features: Tensor | None = None,
    ) -> Pruned:
        """Prune one video.

        Args:
            features: (F, L, D) tokens, any floating dtype.
            grid: (H, W), checked where given.
            saliency, timestamps, segment_features: not used.

        Raises:
            ValueError: features are not finite or of the wrong shape.
        """
        check_features(features, grid)
        frames, tokens, _ = features.shape
        count = frames * tokens
        budget = self.budget(frames, tokens) if self.exact_budget else token_budget(count, self.retention_ratio)
        return keep(features, (2 * torch.arange(budget) + 1) * count // (2 * budget))
