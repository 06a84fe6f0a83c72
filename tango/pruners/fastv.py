"""FastV: no pruning before the language model; inside it, the tokens that the last prompt token attends to least go."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from tango.pruners.base import Pruner
from tango.pruners.in_llm import LayerPruning, check_layer
from tango.pruners.settings import Count
from tango.pruners.unmerged import keep
from tango.pruners.video import Pruned, VideoTokens


@dataclass
class FastV(Pruner):
    """FastV, arXiv 2403.06764: a whole video enters; layers K and later see the share p that layer K-1 attends to most.

    Args:
        retention_ratio: the mean over all N layers; p = (N r - K) / (N - K) makes it so, and r must be above K / N. The
            paper's K = 2 and p = 0.5 is a ratio of 0.536 for 28 layers. 1 keeps every token.
        saliency, saliency_weights, exact_budget: change nothing; every token enters.
        pruned_layer: K, counted from 0; the paper's demo has 2 or 3.

    Ranked once, at prefill, by the attention row of the last prompt token, as the authors' later code does (the paper's
    text has the attention of all tokens; their first code ranks anew for every generated token). Nothing is merged.

    Raises:
        ValueError: a field is out of its range; or, on a model, the ratio cannot be met with its number of layers.
    """

    name: ClassVar[str] = "fastv"

    pruned_layer: Count = 2

    def in_llm(self, layers: int) -> LayerPruning | None:
        """See Pruner.in_llm."""
        check_layer("FastV.pruned_layer", self.pruned_layer, layers)
        if self.retention_ratio == 1:
            return None
        least = self.pruned_layer / layers
        if self.retention_ratio <= least:
            raise ValueError(
                f"FastV.retention_ratio = {self.retention_ratio}: with pruned_layer = {self.pruned_layer} that many of "
                f"{layers} layers see every token, so only ratios above {least:.3f} can be met; raise the ratio"
                + (" or lower pruned_layer" if self.pruned_layer > 1 else "")
            )
        share = (layers * self.retention_ratio - self.pruned_layer) / (layers - self.pruned_layer)
        return LayerPruning(self.pruned_layer, share)

    def budget(self, frames: int, tokens: int) -> int:
        """See Pruner.budget: all tokens, for none is pruned before the language model."""
        return frames * tokens

    def _prune(self, video: VideoTokens) -> Pruned:
        """The whole video: what FastV prunes, it prunes inside the language model."""
        frames, tokens, _ = video.features.shape
        return keep(video.features, torch.arange(frames * tokens))
