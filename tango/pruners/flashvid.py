"""FlashVID: diverse salient tokens in each frame, trees of similar tokens over time, and clusters in each frame."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from tango.ops.cuts import fastvid
from tango.ops.density import assign, density_peaks
from tango.ops.merging import segment_sums
from tango.pruners import trace
from tango.pruners.base import Pruner, full_precision
from tango.pruners.in_llm import LayerPruning, before_layer, prefill_ratio
from tango.pruners.settings import Cosine, Count, OneOf, Positive, PositiveShare, Saliency, Share, reject
from tango.pruners.similarity import most_similar
from tango.pruners.unmerged import keep
from tango.pruners.video import Pruned, VideoTokens

EXPANSION = 1.25  # of the published settings, 28 / (20 + 8 * 0.3) = 36 / (28 + 8 * 0.1)
SELECTIONS = ("v1", "v2")
TREE_MEANS = ("published", "exact")
NEIGHBORS = 7  # for the density of clusters, the token itself among them
SALIENCY_SCALE = 1e6
ROUNDING = 1e-12  # a distance 1 - cosine below this, in fp64, is that of equal directions
BLOCK_BYTES = 64 << 20


@dataclass
class FlashVID(Pruner):
    """FlashVID, arXiv 2602.08024.

    1. Cut the video after frames whose mean token is less similar to the next frame's than segment_threshold, and, if
       that gives fewer than min_segments, at the least similar other places.
    2. Each frame of L tokens has a budget of B = ceil(L * r * expansion): A = ceil(B * alpha) salient tokens, and
       C = B - A merged ones. Salient ones are picked one by one, each the token farthest from those picked, where the
       distance 1 - cosine is weighted by the token's saliency (v2: and by its inner product with its segment's mean).
    3. Over time: a token that is not salient is absorbed by the most similar one of the frame before if their cosine is
       above temporal_threshold, or above a higher one that leaves the segment's budget standing. What absorbs becomes
       the mean of its tree.
    4. In each frame, what is left is merged around density peaks to its share of C tokens a frame: plain means that
       stand at their peaks.

    Published quirks that are kept: a tree's sum is divided by 1 + the number of its root's own children, too little
    for long chains (tree_mean "exact" divides by the tree's size); in a segment of one frame the merged tokens are
    clusters of all of its tokens, salient ones included, so an index may occur twice, the salient token first (indices
    ascend otherwise). Not kept: v2's selection may pick a token again, and a budget of all tokens fails; here every
    token is picked once, and a full budget keeps all.

    Args:
        retention_ratio, saliency_weights: see Pruner. 1 keeps every token as it is. The ratio is the mean over the
            layers of the language model.
        saliency: see Pruner; the paper's is the attention that a patch receives in the last vision layer in use.
        exact_budget: see Pruner. The least salient of the kept tokens go, or the most salient of the others come back,
            unmerged, until the number is right. Then expansion is 1 in prune(), and pruning inside the language model
            raises the ratio before it instead.
        segment_threshold, min_segments: see step 1; min_segments is 8 for LLaVA, 4 was published for Qwen.
        expansion: what enters the language model over what its layers see on average. None: on a model, the number
            that keeps the ratio, 1 where nothing is pruned inside; in prune() called directly, the published 1.25.
        alpha: share of a frame's budget for salient tokens.
        temporal_threshold: see step 3.
        selection: "v2" for LLaVA; "v1" was published for Qwen.
        tree_mean: "published" or "exact".
        pruning_layer, llm_retention_ratio: before that layer of the language model, counted from 0, each video keeps
            that share of its tokens, by the attention of the last prompt token; None: no such step. The full method has
            20 and 0.3 for 28 layers (LLaVA and Qwen2.5-VL of 7B), 28 and 0.1 for the 36 of Qwen3-VL: with both, what
            enters is 1.25 times the ratio.

    Raises:
        ValueError: a field is out of its range; or, on a model, the language model has no such layer.
    """

    name: ClassVar[str] = "flashvid"
    needs = frozenset({"saliency"})

    saliency: Saliency | None = "received_attention"
    segment_threshold: Cosine = 0.9
    min_segments: Count = 8
    expansion: Positive | None = None
    alpha: Share = 0.7
    temporal_threshold: Cosine = 0.8
    selection: Annotated[str, OneOf(*SELECTIONS)] = "v2"
    tree_mean: Annotated[str, OneOf(*TREE_MEANS)] = "published"
    pruning_layer: Count | None = None
    llm_retention_ratio: PositiveShare = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.expansion is not None and self.exact_budget:
            reject(self, "expansion", "None with exact_budget, which keeps the ratio")

    def in_llm(self, layers: int) -> LayerPruning | None:
        """See Pruner.in_llm; nothing is merged there, the count is rounded up, and newline embeddings stay."""
        at = "FlashVID.pruning_layer", self.pruning_layer, layers
        return before_layer(*at, self.retention_ratio, self.llm_retention_ratio, rounding="up", newlines=False)

    def before_llm(self, layers: int) -> Pruner:
        """See Pruner.before_llm."""
        if self.expansion is not None:
            return self
        inside = self.in_llm(layers)
        if self.exact_budget and inside is not None:
            return replace(
                self, retention_ratio=prefill_ratio(self.retention_ratio, layers, inside.layer, inside.retention)
            )
        if self.exact_budget:
            return self
        factor = 1.0 if inside is None else layers / (inside.layer + (layers - inside.layer) * inside.retention)
        return replace(self, expansion=factor)

    def _prune(self, video: VideoTokens) -> Pruned:
        features = video.features
        saliency = video.required("saliency")
        frames, tokens, _ = features.shape
        expansion = self.expansion or (1.0 if self.exact_budget else EXPANSION)
        budget = math.ceil(tokens * self.retention_ratio * expansion)
        if budget >= tokens and not self.exact_budget:
            return keep(features, torch.arange(frames * tokens))
        budget = min(budget, tokens - 1)
        with full_precision(features.device, gradients=True):
            return self._merged(features, saliency, budget)

    def _merged(self, features: Tensor, saliency: Tensor, budget: int) -> Pruned:
        frames, tokens, dim = features.shape
        fixed = features.detach()  # what decides has no gradient, what is merged has
        sizes = fastvid(fixed.mean(1, dtype=torch.float32), self.segment_threshold, self.min_segments - 1)
        places = torch.arange(frames * tokens, device=features.device).view(frames, tokens)
        count = math.ceil(budget * self.alpha)
        chosen = self._salient(fixed, saliency, sizes, count)
        kept, values = [places.gather(1, chosen).flatten()], []
        values.append(features.reshape(-1, dim)[kept[0]])
        salient = torch.zeros_like(saliency, dtype=torch.bool).scatter_(1, chosen, True)
        joins: list[tuple[Tensor, Tensor]] = []
        if context := budget - count:
            near = most_similar(fixed[1:], fixed[:-1], ~salient[:-1])
            for start, size in zip((sizes.cumsum(0) - sizes).tolist(), sizes.tolist(), strict=True):
                part, pairs = slice(start, start + size), slice(start, start + size - 1)
                standing, pool = torch.ones_like(salient[part]), features[part].reshape(-1, dim).float()
                trees, flat = torch.arange(len(pool), device=pool.device), places[part].flatten()
                if size > 1:
                    standing, pool, trees = self._absorb(
                        features[part], salient[part], near.indices[pairs], near.cosines[pairs], budget * size
                    )
                own, merged, centres = _cluster(standing, pool, context)
                kept.append(flat[own])
                values.append(merged.to(features.dtype))
                joins.append((flat[trees >= 0], flat[centres[trees[trees >= 0]]]))
        indices, order = torch.cat(kept).sort(stable=True)
        pruned = self.exactly(Pruned(indices, torch.cat(values)[order], sizes), features, saliency)
        trace.salient(kept[0])
        # Of a token that is kept twice an exact budget may leave the first, salient one alone.
        alone = salient.flatten() & (torch.bincount(pruned.indices, minlength=frames * tokens) == 1)
        for members, into in joins:
            left = ~alone[into]
            trace.merged(members[left], into[left])
        return pruned

    def _salient(self, features: Tensor, saliency: Tensor, sizes: Tensor, count: int) -> Tensor:
        """The salient tokens of each frame (F, A), ascending places: step 2."""
        frames, tokens, dim = features.shape
        if count == 0:
            return torch.empty(frames, 0, dtype=torch.int64, device=features.device)
        weights = SALIENCY_SCALE * saliency.double()
        if self.selection == "v2":
            means = torch.stack(
                [part.mean((0, 1), dtype=torch.float64) for part in torch.split(features, sizes.tolist())]
            )
            means = means.repeat_interleave(sizes.to(features.device), 0)
        chosen = torch.empty(frames, count, dtype=torch.int64, device=features.device)
        for first in range(0, frames, step := max(1, BLOCK_BYTES // (8 * tokens * (dim + tokens)))):
            part = slice(first, first + step)
            x, weight = features[part].double(), weights[part]
            if self.selection == "v2":
                weight = weight * (x @ means[part, :, None])[..., 0]
            x = torch.nn.functional.normalize(x, dim=-1)
            distance = 1 - x @ x.mT
            distance = distance.masked_fill_(distance < ROUNDING, 0)
            distance.diagonal(dim1=1, dim2=2).zero_()
            distance *= weight[:, None]
            # From i to j at [i, j]: the first is the token whose second smallest distance from any is the largest.
            picked = distance.topk(2, dim=1, largest=False).values[:, 1].argmax(1)
            nearest = torch.full_like(weight, torch.inf)
            picks, rows = [picked], torch.arange(len(x), device=x.device)
            for _ in range(count - 1):
                nearest = torch.minimum(nearest, distance[rows, picked])
                nearest[rows, picked] = -torch.inf
                picked = nearest.argmax(1)
                picks.append(picked)
            chosen[part] = torch.stack(picks, 1).sort(1).values
        return chosen

    def _absorb(
        self, features: Tensor, salient: Tensor, parents: Tensor, cosines: Tensor, least: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Trees over time of a segment of N > 1 frames: step 3.

        Args:
            features: (N, L, D); salient: (N, L) bool.
            parents, cosines: (N - 1, L) place of the most similar token of the frame before, of frames 1 and on.
            least: tokens of the segment that must stay unabsorbed.

        Returns:
            standing (N, L) bool: neither absorbed nor salient; the features (P, D) fp32 of these in order; and which of
            these each token is a part of, (N * L,), -1 for salient ones.
        """
        frames, tokens, dim = features.shape
        similar = torch.full((frames, tokens), -1.0, dtype=torch.float32, device=features.device)
        similar[1:] = cosines
        similar[salient] = -1.0
        absorbed = similar > self.temporal_threshold
        if frames * tokens - int(absorbed.sum()) < least:
            theta = float(similar.flatten().sort(descending=True).values[frames * tokens - least - 1])
            absorbed = similar > max(theta, -1 + 1e-6)
        places = torch.arange(frames * tokens, device=features.device)
        parent = torch.cat(
            [places[:tokens], (parents + tokens * torch.arange(frames - 1)[:, None].to(parents)).flatten()]
        )
        roots = torch.where(absorbed.flatten(), parent, places)
        while not torch.equal(further := roots[roots], roots):
            roots = further
        standing = ~absorbed & ~salient
        trees = (standing.flatten().cumsum(0) - 1)[roots].masked_fill(salient.flatten(), -1)
        members = (trees >= 0).nonzero()[:, 0]
        count = int(standing.sum())
        sums = segment_sums(features.reshape(-1, dim), members, trees[members], count)
        if self.tree_mean == "exact":
            divisors = torch.bincount(trees[members], minlength=count)
        else:
            children = torch.bincount(parent[absorbed.flatten()], minlength=frames * tokens)
            divisors = 1 + children[standing.flatten()]
        return standing, sums / divisors[:, None], trees


def _cluster(standing: Tensor, pool: Tensor, context: int) -> tuple[Tensor, Tensor, Tensor]:
    """Merge what stands in each frame of a segment: step 4.

    Args:
        standing: (N, L) bool; pool: (P, D) fp32 features of these P tokens in order.
        context: C, merged tokens for each frame.

    Returns:
        flat places (K,), ascending; features (K, D) fp32; and of each of the P tokens the place that it is merged into.
    """
    frames, dim = standing.shape[0], pool.shape[1]
    sizes = standing.sum(1).tolist()
    places = standing.flatten().nonzero()[:, 0]
    share = context * frames / max(1, sum(sizes))
    kept, values, into = [], [], []
    for own, tokens in zip(torch.split(places, sizes), torch.split(pool, sizes), strict=True):
        count = math.ceil(len(own) * share)
        if share < 1 and count:
            points = tokens[None].detach() / math.sqrt(dim)
            peaks = density_peaks(points, count, min(count, NEIGHBORS), itself=True, strict=True)
            clusters = assign(points, peaks)[0]
            sums = segment_sums(tokens, torch.arange(len(own), device=own.device), clusters, count)
            tokens = sums / torch.bincount(clusters, minlength=count)[:, None]
            own = own[peaks.indices[0].sort().values]
            into.append(own[clusters])
        else:
            into.append(own)
        kept.append(own)
        values.append(tokens)
    return torch.cat(kept), torch.cat(values), torch.cat(into)
