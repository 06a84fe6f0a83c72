"""EVS: the first frame, and what changed most from each frame to the next.

Efficient Video Sampling, arXiv 2510.14624, as serving engines have it: they compare embeddings, the paper pixels.
Features only; nothing is merged.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from tango.pruners.base import Pruner, full_precision
from tango.pruners.settings import OneOf
from tango.pruners.unmerged import keep
from tango.pruners.video import Pruned, VideoTokens

PRECISIONS = ("full", "features")
FIRST = 255.0  # the change of a token of the first frame, above any other
SHORTEST = 1e-8  # the length that shorter tokens are divided by


@dataclass
class EVS(Pruner):
    """EVS (efficient video sampling), arXiv 2510.14624. Serving engines name the pruning rate q = 1 - r.

    A token's change is 1 - cosine with the token at its place in the frame before, kept or not; the first frame's are
    above all others. Of n tokens the max(L, int(n (1 - q))) of largest change stay, worked out in double precision: of
    200 tokens at r = 0.2 the serving engines, and this, keep 39. So the first frame stays whole, and at r <= 1 / F
    alone; any other may lose all of its tokens. Ties go to the lower index.

    Args:
        retention_ratio: see Pruner. The published ones are 0.2 to 0.3.
        exact_budget: see Pruner; fewer than L tokens are then the first ones of the first frame.
        saliency, saliency_weights: not used.
        precision: "full", or "features": changes in the features' own dtype, as serving engines have them. Those of
            half precision are so coarse that most still tokens tie, and the earliest of a video fill its budget.

    Raises:
        ValueError: a field is out of its range.
    """

    name: ClassVar[str] = "evs"

    precision: Annotated[str, OneOf(*PRECISIONS)] = "full"

    def _prune(self, video: VideoTokens) -> Pruned:
        features = video.features
        frames, tokens, _ = features.shape
        budget = max(tokens, int(frames * tokens * (1 - (1 - self.retention_ratio))))
        if self.exact_budget:
            budget = self.budget(frames, tokens)
        with full_precision(features.device):
            changed = changes(features) if self.precision == "full" else coarse_changes(features)
        ranked = changed.flatten().sort(descending=True, stable=True).indices
        return keep(features, ranked[:budget].sort().values)


def changes(features: Tensor) -> Tensor:
    """How much each token (F, L, D) differs from the one at its place in the frame before: (F, L) fp32.

    1 - cosine, as half the squared distance of unit vectors: exactly 0 where nothing changed. With a zero token it is
    1. The first frame has 255.
    """
    result: list[Tensor] = [torch.full_like(features[0, :, 0], FIRST, dtype=torch.float32)]
    units, short = _unit(features[0])
    for frame in features[1:]:
        before, short_before, (units, short) = units, short, _unit(frame)
        result.append(((units - before).square().sum(-1) + short + short_before) / 2)
    return torch.stack(result)


def _unit(frame: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors of tokens (L, D) in fp32, and what their squares (L,) lack to 1: all of it for zero tokens."""
    values = frame.float()
    lengths = values.norm(dim=-1)
    return values / lengths.clamp(min=SHORTEST)[:, None], 1 - (lengths / SHORTEST).clamp(max=1).square()


def coarse_changes(features: Tensor) -> Tensor:
    """changes() in the features' own dtype."""
    # In fp16 the smallest length is 0, and the cosine with a zero token no number.
    changed = (1 - torch.cosine_similarity(features[1:], features[:-1], dim=-1)).nan_to_num(1.0)
    return torch.cat([torch.full_like(features[:1, :, 0], FIRST), changed])
