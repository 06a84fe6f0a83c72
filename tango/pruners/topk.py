"""Top-k: the trivial baseline that keeps the most salient tokens."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from tango.pruners import trace
from tango.pruners.base import Pruner, zero_sinks
from tango.pruners.budget import evenly, token_budget
from tango.pruners.settings import OneOf, TokenPositions
from tango.pruners.unmerged import keep
from tango.pruners.video import Pruned, VideoTokens

SCOPES = ("frame", "video")


@dataclass
class TopK(Pruner):
    """Keep the B most salient of n tokens: B = min(n, max(1, ceil(n * r - 1e-9))); ties go to the lower index.

    Args:
        retention_ratio, saliency, saliency_weights, exact_budget: see Pruner.
        scope: "frame" gives frame f floor((f + 1) B / F) - floor(f B / F) tokens; "video" takes the B largest of all.
        sink_tokens: positions of a frame whose saliency is set to 0; None leaves them to the model family (no sinks
            when prune() is called directly).

    Raises:
        ValueError: a field is out of its range.
    """

    name: ClassVar[str] = "topk"
    needs = frozenset({"saliency"})

    scope: Annotated[str, OneOf(*SCOPES)] = "frame"
    sink_tokens: TokenPositions | None = None

    def _prune(self, video: VideoTokens) -> Pruned:
        features = video.features
        saliency = zero_sinks(video.required("saliency"), self.sink_tokens)
        frames, tokens = saliency.shape
        count = frames * tokens
        budget = self.budget(frames, tokens) if self.exact_budget else token_budget(count, self.retention_ratio)
        if self.scope == "video":
            ranked = saliency.flatten().sort(descending=True, stable=True).indices
            indices = ranked[:budget].sort().values
        else:
            shares = evenly(budget, frames).to(saliency.device)
            ranked = saliency.sort(dim=1, descending=True, stable=True).indices
            kept = torch.zeros_like(ranked, dtype=torch.bool)
            kept.scatter_(1, ranked, torch.arange(tokens, device=saliency.device) < shares[:, None])
            indices = kept.flatten().nonzero()[:, 0]
        trace.salient(indices)
        return keep(features, indices)
