"""Random: the trivial baseline that keeps tokens by the draw."""

import zlib
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from tango.pruners.base import Pruner
from tango.pruners.budget import token_budget
from tango.pruners.settings import Integer
from tango.pruners.unmerged import keep
from tango.pruners.video import Pruned, VideoTokens


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
    needs = frozenset({"key"})

    seed: Annotated[int, Integer(0, 2**63 - 1)] = 0

    def _prune(self, video: VideoTokens) -> Pruned:
        frames, tokens, _ = video.features.shape
        count = frames * tokens
        budget = self.budget(frames, tokens) if self.exact_budget else token_budget(count, self.retention_ratio)
        generator = torch.Generator().manual_seed((self.seed + zlib.crc32(video.key.encode())) % 2**63)
        drawn = torch.randperm(count, generator=generator)[:budget]
        return keep(video.features, drawn.sort().values)
