"""VisionZip: each frame's most attended tokens, and a few more that gather what is left, by similar keys."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tango.ops.merging import segment_sums
from tango.pruners import trace
from tango.pruners.base import Pruner, full_precision
from tango.pruners.budget import evenly
from tango.pruners.settings import Count, Saliency, Share, reject
from tango.pruners.similarity import most_similar
from tango.pruners.video import Pruned, VideoTokens

ChooseTargets = Callable[[int, int], Tensor]  # numbers (C,) of C contextual tokens among the M others of a frame


def evenly_spaced(count: int, others: int) -> Tensor:
    """0, p, 2 p, .. (count,), p = max(1, floor(others / count))."""
    return torch.arange(count) * max(1, others // count)


@dataclass
class VisionZip(Pruner):
    """VisionZip, arXiv 2412.04467, as the authors of HoliTom (arXiv 2505.21334) carried it over to video.

    Each frame of L tokens on its own keeps T = ceil(L * r): A = int(T * dominant_ratio) dominant tokens, those of
    highest saliency, as they are, and C = T - A contextual ones. Of the M = L - A others in ascending place the
    contextual ones are the first C at steps of max(1, floor(M / C)); every other token joins the one with the most
    similar key, and a contextual token becomes the sum of itself and the mean of those that joined it: a sum, so about
    twice as long as a token, as published. So is the order: frame by frame, the dominant tokens in ascending place,
    then the contextual ones; indices do not ascend.

    Args:
        retention_ratio, saliency_weights: see Pruner. 1 keeps every token as it is.
        exact_budget: see Pruner; frame f of F then has floor((f + 1) B / F) - floor(f B / F) of the B tokens.
        saliency: see Pruner; the paper's is the attention that a patch receives in the last vision layer in use.
        tokens_per_frame: T, where the ratio shall not say it; at most L. The published scripts have 20, 30, 40 and 50
            for ratios of 0.1, 0.15, 0.2 and 0.25 of 196 tokens.
        dominant_ratio: share of dominant tokens, 54 of 64 in the paper.

    Raises:
        ValueError: a field is out of its range, or tokens_per_frame is given beside exact_budget.
    """

    name: ClassVar[str] = "visionzip"
    needs = frozenset({"saliency", "keys"})

    saliency: Saliency | None = "received_attention"
    tokens_per_frame: Count | None = None
    dominant_ratio: Share = 54 / 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens_per_frame is not None and self.exact_budget:
            reject(self, "tokens_per_frame", "None with exact_budget, where retention_ratio says it")

    def _prune(self, video: VideoTokens) -> Pruned:
        return self._zipped(video, video.required("saliency"))

    def _zipped(self, video: VideoTokens, saliency: Tensor, targets: ChooseTargets = evenly_spaced) -> Pruned:
        """The method with a saliency (F, L) of any floating dtype, and the contextual tokens that are asked for."""
        features, keys = video.features, video.required("keys")
        frames, tokens, _ = features.shape
        total = self.tokens_per_frame or math.ceil(tokens * self.retention_ratio)
        if total > tokens:
            raise ValueError(f"VisionZip.tokens_per_frame = {total}: a frame of this video has only {tokens} tokens")
        totals = torch.full((frames,), total)
        if self.exact_budget:
            totals = evenly(self.budget(frames, tokens), frames)
        kept, values = [], []
        with full_precision(features.device, gradients=True):
            for total in set(totals.tolist()):
                own = (totals == total).nonzero()[:, 0].to(features.device)
                flat = tokens * own[:, None] + torch.arange(tokens, device=own.device)
                places, merged = self._merged(features[own], saliency[own], keys[own], total, flat.flatten(), targets)
                kept.append(flat.gather(1, places).flatten())
                values.append(merged.flatten(0, 1).to(features.dtype))
        indices = torch.cat(kept)
        order = (indices // tokens).sort(stable=True).indices
        return Pruned(indices[order], torch.cat(values)[order], torch.tensor([frames]))

    def _merged(
        self,
        features: Tensor,
        saliency: Tensor,
        keys: Tensor,
        total: int,
        indices: Tensor,
        choose: ChooseTargets,
    ) -> tuple[Tensor, Tensor]:
        """Places in its frame (F, T) and features (F, T, D) of what each frame keeps, fp32 or as they came.

        indices: (F * L,) the flat indices of these frames' tokens.
        """
        frames, tokens, dim = features.shape
        dominant = int(total * self.dominant_ratio)
        count, others = total - dominant, tokens - dominant
        ranked = saliency.sort(dim=1, descending=True, stable=True).indices
        chosen, rest = ranked[:, :dominant].sort(dim=1).values, ranked[:, dominant:].sort(dim=1).values
        starts = tokens * torch.arange(frames, device=features.device)[:, None]
        table = features.reshape(-1, dim)
        trace.salient(chosen + starts, indices)
        if count == 0:
            return chosen, table[chosen + starts]

        targets = choose(count, others).to(features.device)
        left = torch.ones(others, dtype=torch.bool, device=features.device).index_fill_(0, targets, False)
        targets, joining = rest[:, targets], rest[:, left]
        rows, every = (joining + starts).flatten(), torch.arange(frames, device=features.device)[:, None]
        joined = most_similar(keys[every, joining], keys[every, targets]).indices if len(rows) else joining
        clusters = (joined + count * every).flatten()
        sums = segment_sums(table, rows, clusters, frames * count)
        sizes = torch.bincount(clusters, minlength=frames * count)[:, None]
        contextual = (targets + starts).flatten()
        context = table[contextual].float() + sums / sizes.clamp(min=1)
        trace.merged(contextual, contextual, indices)
        trace.merged(rows, contextual[clusters], indices)
        values = torch.cat([table[chosen + starts].float(), context.view(frames, count, dim)], dim=1)
        return torch.cat([chosen, targets], dim=1), values
