"""DyCoke's temporal merging at prefill: of most frames only the tokens that changed since an earlier frame.

Tao et al., arXiv 2411.15024, from the paper's steps; the pruning of the KV cache while decoding is not part of it.
Features only; "merging" drops tokens, and nothing is averaged.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from tango.pruners.base import Pruner, full_precision
from tango.pruners.budget import apportion
from tango.pruners.settings import OneOf, Share
from tango.pruners.unmerged import keep
from tango.pruners.video import Pruned, VideoTokens

ORDERS = ("published", "ascending")
WHOLE, DROPPED = -1, -2  # frames without one to compare with


@dataclass
class DyCoke(Pruner):
    """DyCoke (token temporal merging), arXiv 2411.15024.

    Of each pair of frames the second keeps the int((1 - k) * L) tokens least like those at their places in the first;
    of each four frames (but the last four) the third is cut in the same way against the first. All other frames stay
    whole; an odd last frame is dropped, as the published code does (a video of one frame is kept).

    The method has no retention ratio: k = 0.7 keeps about half of the tokens and k = 1 still over a quarter, whatever
    `retention_ratio` says, unless that is 1 (every token) or `exact_budget` is set. Report what it keeps.

    Args:
        retention_ratio: 1 or, with exact_budget, the share to keep; otherwise not used.
        saliency, saliency_weights: not used.
        exact_budget: see Pruner. Cut frames keep equal numbers of tokens, whatever makes up the budget, which stands
            for a choice of k. A budget that does not even hold the whole frames, where no k would do, is spread over
            these, at equal steps; one too large for all other frames brings the dropped last frame back.
        merging_ratio: k, the share of a cut frame's tokens that is dropped.
        order: of a cut frame's tokens: "published", the least similar first, or "ascending".

    Raises:
        ValueError: a field is out of its range.
    """

    name: ClassVar[str] = "dycoke"

    merging_ratio: Share = 0.7
    order: Annotated[str, OneOf(*ORDERS)] = "published"

    def _prune(self, video: VideoTokens) -> Pruned:
        features = video.features
        frames, tokens, _ = features.shape
        reference = references(frames)
        cut = (reference >= 0).nonzero()[:, 0]
        budgets = self._budgets(reference, tokens)
        steps = 2 * torch.arange(tokens) + 1
        # Frames that are not cut: their tokens at equal steps, which is all of them where the budget is L.
        ranked = steps * tokens // (2 * budgets[:, None].clamp(min=1))
        if len(cut):
            with full_precision(features.device):
                units = torch.nn.functional.normalize(features.float(), dim=-1)
                similarity = (units[cut] * units[reference[cut]]).sum(-1)
            ranked[cut] = similarity.sort(dim=1, stable=True).indices.cpu()
        places = (ranked + tokens * torch.arange(frames)[:, None])[torch.arange(tokens) < budgets[:, None]]
        return keep(features, places if self.order == "published" else places.sort().values)

    def _budgets(self, reference: Tensor, tokens: int) -> Tensor:
        """Tokens that each frame keeps, (F,) int64."""
        kinds = [reference == WHOLE, reference >= 0, reference == DROPPED]
        if not self.exact_budget:
            kept = int((1 - self.merging_ratio) * tokens)
            return torch.where(kinds[0], tokens, torch.where(kinds[1], kept, 0))
        left = self.budget(len(reference), tokens)
        budgets = torch.zeros_like(reference)
        for kind in kinds:
            count = int(kind.sum())
            if count:
                given = min(left, count * tokens)
                budgets[kind] = apportion(torch.ones(count, dtype=torch.float64), torch.full((count,), tokens), given)
                left -= given
        return budgets


def references(frames: int) -> Tensor:
    """For each frame the one it is compared with, or WHOLE, or DROPPED: (F,) int64."""
    reference = torch.full((frames,), WHOLE)
    if frames == 1:
        return reference
    first = torch.arange(0, frames - 1, 2)
    reference[first + 1] = first
    third = torch.arange(0, max(0, frames - 4), 4)
    reference[third + 2] = third
    if frames % 2:
        reference[-1] = DROPPED
    return reference
