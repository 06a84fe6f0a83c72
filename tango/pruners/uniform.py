"""Uniform: the trivial baseline that keeps tokens at equal steps."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from tango.pruners.base import Pruner
from tango.pruners.budget import token_budget
from tango.pruners.unmerged import keep
from tango.pruners.video import Pruned, VideoTokens


@dataclass
class Uniform(Pruner):
    """Keep the tokens floor((2j + 1) n / (2B)), j = 0 .. B-1, of n: B = min(n, max(1, ceil(n * r - 1e-9)))."""

    name: ClassVar[str] = "uniform"

    def _prune(self, video: VideoTokens) -> Pruned:
        frames, tokens, _ = video.features.shape
        count = frames * tokens
        budget = self.budget(frames, tokens) if self.exact_budget else token_budget(count, self.retention_ratio)
        return keep(video.features, (2 * torch.arange(budget) + 1) * count // (2 * budget))
