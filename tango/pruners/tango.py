"""Tango: segments of similar frames, diverse salient tokens, and context tokens merged over space and time.

Yin et al., "Tango: Taming Visual Signals for Efficient Video Large Language Models", arXiv 2604.09547. `_prune` is the
method, step by step as docs/method.md numbers them; each is a pure function of tango/ops. The budgets are made here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from tango.ops.cuts import fastvid
from tango.ops.density import cluster
from tango.ops.merging import merge, segment_sums, take
from tango.ops.rope import rope_sections, rotate_rows
from tango.ops.segmentation import holitom, holitom_threshold, neighbour_similarity, static_places
from tango.ops.selection import select
from tango.pruners import trace
from tango.pruners.base import Pruner, full_precision, zero_sinks
from tango.pruners.budget import apportion
from tango.pruners.in_llm import LayerPruning, before_layer, prefill_ratio
from tango.pruners.settings import Cosine, Count, Number, OneOf, Positive, PositiveShare, Share, TokenPositions, reject
from tango.pruners.video import Pruned, VideoTokens


@dataclass(frozen=True)
class Sets:
    """The sets of tokens that salient ones are selected from: F frames' dynamic tokens, then T segments' static ones.

    A set has L places, so that set * L + place names a token in it; for frames that is its flat index in the video.
    What is not selected goes to a pool: one for all frames of a segment (S), one for its static tokens (T).

    members: (F + T, L) bool, which places a set holds. static: (T, L), those of the static sets.
    origin: (F + T,) the frame where a set's tokens stand: its own, or its segment's first.
    rows: ((F + T) * L,) where the features of a place are: in the video, or behind it in the means of static tokens.
    averaged: (A,) flat indices of all static tokens of the video, and mean_of: (A,) the mean that each is part of.
    sizes, salient: members of each set, and how many to select. pools, context: tokens in each pool, and how many to
        merge them to. These are known on the host, the others lie on the device.
    """

    members: Tensor
    static: Tensor
    origin: Tensor
    rows: Tensor
    averaged: Tensor
    mean_of: Tensor
    sizes: list[int]
    salient: list[int]
    pools: list[int]
    context: list[int]

    def home(self, places: Tensor) -> Tensor:
        """Flat indices in the video of places set * L + place."""
        length = self.members.shape[1]
        return self.origin[places // length] * length + places % length


@dataclass
class Tango(Pruner):
    """Tango, arXiv 2604.09547. Training-free pruning of one video's tokens, with diversity and ST-RoPE.

    Args:
        retention_ratio, saliency, saliency_weights: see Pruner.
        exact_budget: see Pruner. Single frames, and the static and the dynamic part of each other segment, share the
            budget in proportion to their tokens times their ratio, by largest remainder instead of rounding up. Where
            all parts kept whole do not use it up, the most salient other tokens come back.
        context_ratio: share of a budget that goes to merged tokens, the rest to salient ones.
        similarity_threshold: what counts as the same when cutting; None: 0.65 up to a retention ratio of 0.1, else 0.8.
        static_threshold: what counts as static inside a segment.
        expansion: salient candidates for each salient token to select.
        num_neighbors: neighbours for the density. anchor_weight: least weight of the anchor in a merged token.
        time_base, space_base: frequency bases of ST-RoPE. memory_limit: MiB of temporary memory.
        segmentation: "holitom", "fastvid", or "none", which cuts nowhere: the video is one segment.
        selection: of salient tokens: "diversity" clusters candidates (step 4); "topk" takes the most salient ones.
        merging: what context tokens are clustered on (step 5): "st_rope", or "cosine", the unrotated unit vectors.
        placement: "anchor" puts a merged token at its anchor; "published" permutes them as the published code does.
        sink_tokens: positions of a frame whose saliency is set to 0; None leaves them to the model family (no sinks
            when prune() is called directly).
        pruned_layer: prune again inside the language model, before this layer (the paper's LLaVA-Video: 18 of 28); None
            does not. retention_ratio is then the mean over the layers, so that more stays before them (on a model:
            prune() called directly knows no layers). Nothing is pruned at a ratio of 1.
        llm_retention: share of a video's tokens that stays at that layer; each dropped one merges into a kept one.
        pre_retention_ratio: the share that stays before the language model, in place of what follows from the others.
        causal: False, with pruned_layer: no causal mask in the layer before, as published; to reproduce its table.
    """

    name: ClassVar[str] = "tango"
    reads_times: ClassVar[bool] = True

    context_ratio: Share = 0.4
    similarity_threshold: Cosine | None = None
    static_threshold: Cosine = 0.8
    expansion: Annotated[float, Number(least=1)] = 1.5
    num_neighbors: Count = 7
    anchor_weight: Share = 0.6
    time_base: Positive = 10000.0
    space_base: Positive = 1000.0
    segmentation: Annotated[str, OneOf("holitom", "fastvid", "none")] = "holitom"
    selection: Annotated[str, OneOf("diversity", "topk")] = "diversity"
    merging: Annotated[str, OneOf("st_rope", "cosine")] = "st_rope"
    placement: Annotated[str, OneOf("anchor", "published")] = "anchor"
    memory_limit: Positive = 256
    sink_tokens: TokenPositions | None = None
    pruned_layer: Count | None = None
    llm_retention: PositiveShare = 0.5
    pre_retention_ratio: PositiveShare | None = None
    causal: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pre_retention_ratio is not None and self.pruned_layer is None:
            reject(self, "pre_retention_ratio", "None without pruned_layer, where retention_ratio says it")

    def in_llm(self, layers: int) -> LayerPruning | None:
        """See Pruner.in_llm; merges by the mean, as the paper's code does."""
        at, ratios = ("Tango.pruned_layer", self.pruned_layer, layers), (self.retention_ratio, self.llm_retention)
        return before_layer(*at, *ratios, merging="mean", causal=self.causal)

    def before_llm(self, layers: int) -> Pruner:
        """See Pruner.before_llm; the similarity threshold stays that of the ratio that was asked for."""
        inside, ratio = self.in_llm(layers), self.pre_retention_ratio
        if ratio is None:
            if inside is None:
                return self
            ratio = prefill_ratio(self.retention_ratio, layers, inside.layer, inside.retention)
        threshold = holitom_threshold(self.retention_ratio, self.similarity_threshold)
        return replace(self, retention_ratio=ratio, similarity_threshold=threshold)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"saliency", "segment_features"} if self.segmentation == "fastvid" else {"saliency"})

    def _prune(self, video: VideoTokens) -> Pruned:
        """The method, step by step as in the paper."""
        saliency, grid = zero_sinks(video.required("saliency"), self.sink_tokens), video.required("grid")
        features, device = video.features, video.features.device
        rope_sections(width := features.shape[2])  # refuses an odd width
        times = video.required("timestamps")
        lines = (torch.arange(length, dtype=torch.float32, device=device) for length in grid)
        axes = (times - times[0]).float(), *lines  # before rounding, so that a clock's zero changes nothing
        settings = self.num_neighbors, self.memory_limit
        with full_precision(device, gradients=True):
            # Segmentation. From here on the host knows every shape, and need not ask a GPU for one.
            similarity = neighbour_similarity(features.detach()).cpu()
            sizes = self._segments(similarity, features, video.segment_features)
            static = static_places(similarity, sizes, self.static_threshold)

            # Static positions are stored once: the mean of their tokens, where the first of them is.
            sets, table = self._sets(sizes, static, device), features.flatten(0, 1)
            means, scores = self._static_means(table, sets), self._static_means(saliency.reshape(-1, 1), sets)
            scores = torch.cat([saliency, saliency.new_zeros(sets.static.shape).masked_scatter(sets.static, scores)])

            # ST-RoPE, of the places that it is asked for; at the origin nothing is rotated.
            positions = torch.cartesian_prod(*axes)
            rotated = self._rotated(table.detach(), positions, sets)
            to_merge = rotated if self.merging == "st_rope" else self._rotated(table.detach(), 0 * positions, sets)

            # Diversity-driven selection of salient tokens, in each frame and among the static ones of each segment.
            expansion = self.expansion if self.selection == "diversity" else 1.0
            chosen = select(scores, sets.members, sets.sizes, sets.salient, rotated, width, expansion, *settings)
            salient, rest = (mask.flatten().nonzero()[:, 0] for mask in (chosen, sets.members & ~chosen))

            # Spatio-temporal merging of what is left of all frames of a segment, or of its static tokens.
            clusters = cluster(lambda i: to_merge(rest[i]), width, sets.pools, sets.context, device, *settings)
            features_of, anchors, labels = (table, means), clusters.anchors, clusters.labels
            context = merge(features_of, sets.rows[rest], anchors, labels, self.anchor_weight, self.memory_limit)
            stand = rest[anchors if self.placement == "anchor" else clusters.by_score]

        if trace.RECORDER.get() is not None:
            trace.sets(static.repeat_interleave(sizes, 0), sets, salient, rest, stand, labels)
        indices, order = sets.home(torch.cat([salient, stand])).sort()
        behind = len(table) + len(means) + torch.arange(len(context), device=device)
        values = take((table, means, context), torch.cat([sets.rows[salient], behind])[order])
        return self.exactly(Pruned(indices, values.to(features.dtype), sizes), features, saliency)

    def _segments(self, similarity: Tensor, features: Tensor, frame_vectors: Tensor | None) -> Tensor:
        """Frames in each segment (S,); similarity (F - 1, L) of neighbouring frames."""
        if self.segmentation == "none":
            return torch.tensor([len(features)])
        threshold = holitom_threshold(self.retention_ratio, self.similarity_threshold)
        if self.segmentation == "holitom":
            return holitom(similarity, threshold)
        vectors = features.detach().mean(1, dtype=torch.float32) if frame_vectors is None else frame_vectors
        return fastvid(vectors, threshold)

    def _sets(self, sizes: Tensor, static: Tensor, device: torch.device) -> Sets:
        """The sets and their budgets, for segments of sizes (S,) frames with static places (S, L), both on the host."""
        frames, (count, tokens) = int(sizes.sum()), static.shape
        budgets = self._budgets(sizes, static.sum(1), tokens)
        segment_of = torch.arange(count).repeat_interleave(sizes)
        still = static.any(1).nonzero()[:, 0]
        members = torch.cat([~static[segment_of], static[still]])
        # A frame's share of the salient budget, in double precision and rounded down as int() does.
        dynamic = (budgets[:, 1].double() / sizes * (1 - self.context_ratio)).long()
        of_static = (budgets[still, 0].double() * (1 - self.context_ratio)).long()
        salient = torch.cat([dynamic[segment_of], of_static]).minimum(members.sum(1))
        left = members.sum(1) - salient
        pools = torch.zeros(count, dtype=torch.int64).index_add_(0, segment_of, left[:frames])
        means = static[still].flatten().cumsum(0) - 1
        averaged = static[segment_of].flatten().nonzero()[:, 0]
        number = torch.zeros(count, dtype=torch.int64).index_copy_(0, still, torch.arange(len(still)))
        return Sets(
            members=members.to(device),
            static=static[still].to(device),
            origin=torch.cat([torch.arange(frames), (sizes.cumsum(0) - sizes)[still]]).to(device),
            rows=torch.cat([torch.arange(frames * tokens), frames * tokens + means]).to(device),
            averaged=averaged.to(device),
            mean_of=means[number[segment_of[averaged // tokens]] * tokens + averaged % tokens].to(device),
            sizes=members.sum(1).tolist(),
            salient=salient.tolist(),
            pools=torch.cat([pools, left[frames:]]).tolist(),
            context=torch.cat([budgets[:, 1] - sizes * dynamic, budgets[still, 0] - of_static]).tolist(),
        )

    def _budgets(self, sizes: Tensor, static: Tensor, tokens: int) -> Tensor:
        """Tokens to keep of each segment's static and dynamic part, (S, 2) int64; a single frame is all dynamic.

        In double precision, in the order in which the paper's code evaluates it, of segments of sizes (S,) frames with
        static (S,) of their `tokens` places static.
        """
        whole = (sizes * tokens).double()
        asked = whole.new_tensor(self.retention_ratio)  # for a float over a tensor is not the rounded quotient
        ratio = (asked / ((whole - (sizes - 1) * static) / whole)).clamp(max=1.0)
        parts = torch.stack([static, tokens - static], 1)
        frames = torch.stack([torch.ones_like(sizes), sizes], 1)  # the dynamic part has a share of every frame
        shares = parts * ratio[:, None]
        if self.exact_budget:
            total = min(self.budget(int(sizes.sum()), tokens), int((parts * frames).sum()))
            return apportion((shares * frames).flatten(), (parts * frames).flatten(), total).view(-1, 2)
        least = torch.stack([static.clamp(max=1), (sizes == 1).long()], 1)
        return shares.ceil().long().maximum(least) * frames

    def _static_means(self, table: Tensor, sets: Sets) -> Tensor:
        """Means (M, X) fp32 over their segments' frames of rows (F * L, X) of static tokens."""
        sizes = torch.bincount(sets.mean_of)[:, None]
        return segment_sums(table, sets.averaged, sets.mean_of, len(sizes), self.memory_limit).div_(sizes)

    def _rotated(self, table: Tensor, positions: Tensor, sets: Sets) -> Callable[[Tensor], Tensor]:
        """A function that gives the ST-RoPE vectors of places (..), of tokens (F * L, D) at positions (F * L, 3)."""
        block = int(min(self.memory_limit, 8 if table.device.type == "cpu" else math.inf) * 2**20)  # 8: of a cache
        return lambda places: rotate_rows(table, positions, sets.home(places), self.time_base, self.space_base, block)
