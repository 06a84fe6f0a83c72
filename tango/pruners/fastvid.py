"""FastVID: each frame's most salient tokens, and the rest of a segment merged around anchors in some of its frames."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tango.ops.cuts import fastvid
from tango.ops.merging import segment_sums
from tango.pruners import trace
from tango.pruners.base import Pruner, full_precision
from tango.pruners.peaks import ChoosePeaks, plain_peaks
from tango.pruners.settings import Cosine, Count, Share
from tango.pruners.similarity import most_similar
from tango.pruners.video import Pruned, VideoTokens

NEIGHBORS = 4  # for the density of anchors, the token itself among them


@dataclass
class FastVID(Pruner):
    """FastVID, arXiv 2503.11187, as published for LLaVA-OneVision.

    The video is cut between frames at the min_segments - 1 least similar places and wherever the similarity is below
    the threshold. Each frame has a budget of R = int(L * r) tokens, here at least 1: C = int(R * context_ratio)
    merged ones, and the R - C of highest saliency as they are. Every anchor_interval-th frame of a segment, counted
    back from its last, is an anchor frame; the segment's merged tokens stand in these, floor(C n / number of them) in
    each, at density peaks of what is not salient. For each anchor frame, every token of the segment that is not
    salient joins the most similar of its anchors (where an anchor frame has just C, only its own tokens do), and a
    merged token is w * anchor + (1 - w) * mean of the q that joined, w = max(1 / (q + 1), anchor_weight).

    Published code fails for fewer frames than min_segments, and where there are fewer tokens to choose anchors from
    than anchors; here the cuts are then everywhere, and all of those tokens are anchors.

    Args:
        retention_ratio, saliency, saliency_weights: see Pruner. 1 keeps every token as it is.
        exact_budget: see Pruner. The least salient of the kept tokens go, or the most salient of the others come back,
            unmerged, until the number is right.
        keep_positions: see Pruner; True as published.
        min_segments: segments to cut the video into at least, where it has as many frames.
        similarity_threshold: neighbouring frames less similar than that are cut apart; 0.9 for LLaVA-OneVision (0.84
            was published for Qwen2.5-VL).
        context_ratio: share of a frame's budget for merged tokens.
        anchor_interval: frames from one anchor frame to the next.
        anchor_weight: least weight of the anchor in a merged token.

    Raises:
        ValueError: a field is out of its range.
    """

    name: ClassVar[str] = "fastvid"
    needs = frozenset({"saliency", "frame_vectors"})

    keep_positions: bool = True
    min_segments: Count = 8
    similarity_threshold: Cosine = 0.9
    context_ratio: Share = 0.4
    anchor_interval: Count = 4
    anchor_weight: Share = 0.6

    def _prune(self, video: VideoTokens) -> Pruned:
        return self._kept(video, video.required("saliency"))

    def _kept(self, video: VideoTokens, saliency: Tensor, peaks: ChoosePeaks = plain_peaks) -> Pruned:
        """The method with a saliency (F, L) of any floating dtype, and anchors at the peaks that are asked for."""
        features = video.features
        vectors = video.segment_features if video.frame_vectors is None else video.frame_vectors
        with full_precision(features.device, gradients=True):
            if vectors is None:
                vectors = features.detach().mean(1, dtype=torch.float32)
            sizes = fastvid(vectors, self.similarity_threshold, self.min_segments - 1)
            return self.exactly(self._merged(features, saliency, sizes, peaks), features, saliency)

    def _shares(self, tokens: int) -> tuple[int, int]:
        """Salient and merged tokens of a frame of so many."""
        budget = max(1, int(tokens * self.retention_ratio))
        context = int(budget * self.context_ratio)
        return budget - context, context

    def _merged(self, features: Tensor, saliency: Tensor, sizes: Tensor, peaks: ChoosePeaks) -> Pruned:
        frames, tokens, dim = features.shape
        salient, context = self._shares(tokens)
        ranked = saliency.sort(dim=1, descending=True, stable=True).indices
        starts = tokens * torch.arange(frames, device=features.device)[:, None]
        table = features.reshape(-1, dim)
        chosen = (ranked[:, :salient] + starts).flatten()
        kept, values = [chosen], [table[chosen]]
        trace.salient(chosen)
        others = ranked[:, salient:].sort(dim=1).values + starts  # (F, M)
        if context and others.shape[1]:
            for start, size in zip((sizes.cumsum(0) - sizes).tolist(), sizes.tolist(), strict=True):
                anchors, merged = self._merge(table, others[start : start + size], context, peaks)
                kept.append(anchors)
                values.append(merged.to(features.dtype))
        indices, order = torch.cat(kept).sort()
        return Pruned(indices, torch.cat(values)[order], sizes)

    def _merge(self, table: Tensor, others: Tensor, context: int, choose: ChoosePeaks) -> tuple[Tensor, Tensor]:
        """Indices (K,) and features (K, D) fp32 of a segment's merged tokens; others (n, M) are what is not salient."""
        size, left = others.shape
        dim = table.shape[1]
        frames = torch.arange((size - 1) % self.anchor_interval, size, self.anchor_interval, device=others.device)
        share = context * size // len(frames)
        count = min(share, left)
        own = others[frames]  # (a, M)
        peaks = choose(table[own].detach().float() / math.sqrt(dim), count, NEIGHBORS, own)
        anchors = own.gather(1, peaks.indices.sort(dim=1).values)
        centres = table[anchors]
        pools = own if share == context else others.view(1, -1).expand(len(frames), -1)
        joined = torch.stack(
            [
                most_similar(table[pool][None].detach(), centre[None].detach()).indices[0]
                for pool, centre in zip(pools, centres, strict=True)
            ]
        )
        trace.merged(anchors, anchors)
        trace.merged(pools, anchors.gather(1, joined))
        clusters = (joined + count * torch.arange(len(frames), device=others.device)[:, None]).flatten()
        sums = segment_sums(table, pools.flatten(), clusters, anchors.numel())
        sizes = torch.bincount(clusters, minlength=anchors.numel())[:, None]
        weight = (1 / (sizes + 1).float()).clamp(min=self.anchor_weight)
        anchor = centres.view(-1, dim).float()
        merged = weight * anchor + (1 - weight) * sums / sizes.clamp(min=1)
        return anchors.flatten(), torch.where(sizes > 0, merged, anchor)
