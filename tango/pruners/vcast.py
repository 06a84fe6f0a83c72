"""V-CAST: frames where the video turns keep more tokens, and each frame keeps its longest and most unusual ones.

arXiv 2603.27650, from the paper's steps. Features only; nothing is merged.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from tango.pruners.base import Pruner, full_precision
from tango.pruners.settings import Count, OneOf, Positive
from tango.pruners.unmerged import keep
from tango.pruners.video import Pruned, VideoTokens

REMAINDERS = ("published", "one_each")
SHORTEST = 1e-6  # the length that shorter vectors are divided by


@dataclass
class VCast(Pruner):
    """V-CAST, arXiv 2603.27650. The published retention ratio is 0.25.

    1. A frame's curvature is 1 - cosine of the steps to it and from it, between the frames' mean tokens, which are
       scaled to unit length; 1 in the first and last frame. A softmax over frames makes weights of it.
    2. B = max(round(n r), F * min_tokens) tokens: min_tokens in each frame, the others by weight, rounded down, no
       frame above its L tokens; then what is left over, by the fractions that rounding cut off.
    3. Each frame keeps its tokens of highest score: 1 - cosine with the frame's mean token, and the token's length,
       scaled to 0 .. 1 in the frame. Ties go to the lower index.

    A video of one frame keeps all of its tokens, as published.

    Args:
        retention_ratio: see Pruner.
        exact_budget: see Pruner. One frame is pruned too, and frames keep fewer than min_tokens, as even as can be,
            where the budget does not hold these.
        saliency, saliency_weights: not used.
        budget_temperature: what curvature is divided by; the higher, the more alike are the frames' budgets.
        min_tokens: tokens that each frame keeps at least, if it has them.
        remainder: "published" gives all that is left over to the frame of largest fraction until it is full, then to
            the next; "one_each" gives one to each frame in that order, and begins again.

    Raises:
        ValueError: a field is out of its range.
    """

    name: ClassVar[str] = "vcast"

    budget_temperature: Positive = 0.7
    min_tokens: Count = 1
    remainder: Annotated[str, OneOf(*REMAINDERS)] = "published"

    def _prune(self, video: VideoTokens) -> Pruned:
        features = video.features
        frames, tokens, _ = features.shape
        if frames == 1 and not self.exact_budget:
            return keep(features, torch.arange(tokens))
        with full_precision(features.device):
            # A frame at a time in fp64: lengths that are equal but for rounding would be stretched to 0 .. 1.
            means = torch.stack([_unit(frame.mean(0, dtype=torch.float64)) for frame in features])
            scores = torch.stack([token_scores(frame, mean) for frame, mean in zip(features, means, strict=True)])
            counts = self._counts(curvature(means), tokens)
        ranked = scores.sort(dim=1, descending=True, stable=True).indices
        first = torch.arange(tokens, device=features.device) < counts.to(features.device)[:, None]
        kept = torch.zeros_like(first).scatter_(1, ranked, first)
        return keep(features, kept.flatten().nonzero()[:, 0])

    def _counts(self, curvatures: Tensor, tokens: int) -> Tensor:
        """Tokens that each frame keeps, (F,) int64 on the CPU, of `tokens` each: step 2."""
        frames = len(curvatures)
        budget, least = self.budget(frames, tokens), min(self.min_tokens, tokens)
        if self.exact_budget:
            least = min(least, budget // frames)
        budget = max(budget, frames * least)
        # In fp32, as published: where rounding shares down cuts depends on it.
        weights = torch.softmax(((curvatures - curvatures.max()) / self.budget_temperature).float().cpu(), dim=0)
        shares = weights * (budget - frames * least)
        counts = least + shares.long().clamp(max=tokens - least)
        left, most = budget - int(counts.sum()), tokens if self.remainder == "published" else 1
        order = (shares - shares.floor()).sort(descending=True, stable=True).indices.tolist()
        while left > 0:
            for frame in order:
                more = min(left, most, tokens - int(counts[frame]))
                counts[frame] += more
                left -= more
        return counts


def curvature(means: Tensor) -> Tensor:
    """How sharply the video turns at each frame, (F,) in 0 .. 2, from the frames' mean tokens (F, D): step 1."""
    result = means.new_ones(len(means))
    steps = _unit(means.diff(dim=0))
    result[1:-1] -= (steps[:-1] * steps[1:]).sum(-1)
    return result


def token_scores(frame: Tensor, mean: Tensor) -> Tensor:
    """Scores (L,) fp64 of a frame's tokens (L, D) from its mean token (D,) of unit length: step 3."""
    frame = frame.double()
    lengths = frame.norm(dim=-1)
    least, most = lengths.aminmax()
    scores: Tensor = 1 - (_unit(frame) * mean).sum(-1) + (lengths - least) / (most - least + SHORTEST)
    return scores


def _unit(vectors: Tensor) -> Tensor:
    """Vectors (.., D) divided by their lengths, or by 1e-6 where these are less."""
    return torch.nn.functional.normalize(vectors, dim=-1, eps=SHORTEST)
