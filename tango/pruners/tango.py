"""Tango: segments of similar frames, diverse salient tokens, and context tokens merged over space and time.

Yin et al., "Tango: Taming Visual Signals for Efficient Video Large Language Models", arXiv 2604.09547. This file puts
the steps together and owns the budgets; the steps themselves are the pure functions of tango/.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from tango.merging import PLACEMENTS, merge, plan_merging, segment_sums
from tango.pruners import trace
from tango.pruners.base import Pruner, full_precision, zero_sinks
from tango.pruners.budget import apportion
from tango.pruners.in_llm import LayerPruning, check_layer, prefill_ratio
from tango.pruners.plan import Kept, Plan
from tango.pruners.video import Pruned, VideoTokens
from tango.ragged import Doubts, on_device, true_places
from tango.rope import Axes, Rotated, rope_sections
from tango.segmentation import fastvid, holitom, holitom_threshold, neighbour_similarity, static_places
from tango.selection import select

SEGMENTATIONS = ("holitom", "fastvid", "none")
SELECTIONS = ("diversity", "topk")
MERGINGS = ("st_rope", "cosine")
BLOCK_BYTES = 32 << 20  # on a CPU larger blocks for similarities and rotations are not faster
FIXED_SHAPES = ("cuda",)  # devices that are not asked for a number on the way, see tango.ragged


@dataclass
class Tango(Pruner):
    """Tango, arXiv 2604.09547. Training-free pruning of one video's tokens, with diversity and ST-RoPE.

    Args:
        retention_ratio, saliency, saliency_weights: see Pruner.
        exact_budget: see Pruner. Frames by themselves, and the static and the dynamic part of each segment, share the
            budget in proportion to their tokens times their ratio, by largest remainder instead of rounding up. Where
            static tokens are so many that all parts kept whole do not use it up, the most salient others come back.
        context_ratio: share of a budget that goes to merged tokens, the rest to salient ones.
        similarity_threshold: similarity that counts as the same when cutting into segments; None means 0.65 up to a
            retention ratio of 0.1 and 0.8 above.
        static_threshold: similarity that counts as static inside a segment.
        expansion: salient candidates for each salient token to select.
        num_neighbors: neighbours for the density.
        anchor_weight: least weight of the anchor in a merged token.
        time_base, space_base: frequency bases of ST-RoPE.
        segmentation: "holitom", "fastvid", or "none", which cuts nowhere: the video is one segment.
        selection: of salient tokens: "diversity" clusters candidates (step 5); "topk" takes the most salient ones.
        merging: what context tokens are clustered on (step 6): "st_rope", or "cosine", the unrotated unit vectors.
        placement: "anchor" puts a merged token at its anchor; "published" permutes them as the published code does.
        memory_limit: MiB of temporary memory for distances and conversions.
        sink_tokens: positions of a frame whose saliency is set to 0; None leaves them to the model family (no sinks
            when prune() is called directly).
        pruned_layer: prune again inside the language model, before this layer (the paper's LLaVA-Video: 18 of 28); None
            does not. On a model, retention_ratio is then the mean over the layers, so that more stays before them.
            prune() called directly knows no layers and keeps retention_ratio. Nothing is pruned at a ratio of 1.
        llm_retention: share of a video's tokens that stays at that layer; each dropped one merges into a kept one.
        pre_retention_ratio: share of the tokens that stays before the language model, given directly instead of derived
            from retention_ratio; only with pruned_layer.

    Raises:
        ValueError: a field is out of its range.
    """

    name: ClassVar[str] = "tango"

    context_ratio: float = 0.4
    similarity_threshold: float | None = None
    static_threshold: float = 0.8
    expansion: float = 1.5
    num_neighbors: int = 7
    anchor_weight: float = 0.6
    time_base: float = 10000.0
    space_base: float = 1000.0
    segmentation: str = "holitom"
    selection: str = "diversity"
    merging: str = "st_rope"
    placement: str = "anchor"
    memory_limit: float = 256
    sink_tokens: tuple[int, ...] | None = None
    pruned_layer: int | None = None
    llm_retention: float = 0.5
    pre_retention_ratio: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("context_ratio", least=0, most=1)
        if self.similarity_threshold is not None:
            self._number("similarity_threshold", least=-1, most=1)
        self._number("static_threshold", least=-1, most=1)
        self._number("expansion", least=1)
        self._integer("num_neighbors", least=1)
        self._number("anchor_weight", least=0, most=1)
        self._number("time_base", above=0)
        self._number("space_base", above=0)
        self._choice("segmentation", SEGMENTATIONS)
        self._choice("selection", SELECTIONS)
        self._choice("merging", MERGINGS)
        self._choice("placement", PLACEMENTS)
        self._number("memory_limit", above=0)
        self._positions("sink_tokens")
        if self.pruned_layer is not None:
            self._integer("pruned_layer", least=1)
        self._number("llm_retention", above=0, most=1)
        if self.pre_retention_ratio is not None:
            self._number("pre_retention_ratio", above=0, most=1)
            if self.pruned_layer is None:
                self._reject("pre_retention_ratio", "None without pruned_layer, where retention_ratio says it")

    def in_llm(self, layers: int) -> LayerPruning | None:
        """See Pruner.in_llm; merges by the mean, as the paper's code does."""
        if self.pruned_layer is None:
            return None
        check_layer("Tango.pruned_layer", self.pruned_layer, layers)
        if self.retention_ratio == 1 or self.llm_retention == 1:
            return None
        return LayerPruning(self.pruned_layer, self.llm_retention, merging="mean")

    def before_llm(self, layers: int) -> Pruner:
        """See Pruner.before_llm; the similarity threshold stays that of the ratio that was asked for."""
        inside, ratio = self.in_llm(layers), self.pre_retention_ratio
        if ratio is None:
            if inside is None:
                return self
            ratio = prefill_ratio(self.retention_ratio, layers, inside.layer, inside.retention)
        return replace(self, retention_ratio=ratio, similarity_threshold=self._threshold())

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"saliency", "segment_features"} if self.segmentation == "fastvid" else {"saliency"})

    def _prune(self, video: VideoTokens) -> Pruned:
        features, vectors = video.features, video.segment_features
        saliency, times = video.required("saliency"), video.required("timestamps")
        if video.grid is None:
            raise ValueError("grid is missing: this method needs the rows and columns of a frame's tokens, (H, W)")
        rope_sections(features.shape[2])
        with full_precision(features.device):
            return self._merged(features.detach(), saliency, video.grid, times, vectors)

    def _merged(
        self,
        features: Tensor,
        saliency: Tensor,
        grid: tuple[int, int],
        times: Tensor,
        frame_vectors: Tensor | None,
    ) -> Pruned:
        frames, tokens, _ = features.shape
        device, block = features.device, self._block_bytes(features.device)
        weights = zero_sinks(saliency, self.sink_tokens)
        similarity = neighbour_similarity(features, block)
        similar = similarity.cpu()  # from here on the host knows every shape, and need not ask the device for one
        threshold = self._threshold()
        if self.segmentation == "holitom":
            sizes = holitom(similar, threshold)
        elif self.segmentation == "none":
            sizes = torch.tensor([frames])
        else:
            if frame_vectors is None:
                frame_vectors = features.mean(1, dtype=torch.float32)
            sizes = fastvid(frame_vectors, threshold)
        static = static_places(similar, sizes, self.static_threshold)
        plan = Plan.of(sizes, static, self._budgets(sizes, static.sum(1), tokens), self.context_ratio)

        axes = times, torch.arange(float(grid[0]), device=device), torch.arange(float(grid[1]), device=device)
        doubts = Doubts() if device.type in FIXED_SHAPES else None
        kept = self._keep(features, weights, axes, plan, doubts)
        if doubts is not None and doubts.any():
            kept = self._keep(features, weights, axes, plan, None)
        trace.static(static.repeat_interleave(sizes, 0))
        kept.tell(plan)
        indices, order = kept.indices.sort()
        pruned = Pruned(indices, kept.values[order].to(features.dtype), sizes)
        return self.exactly(pruned, features, weights)

    def _budgets(self, sizes: Tensor, static: Tensor, tokens: int) -> Tensor:
        """Tokens to keep of each segment's static and dynamic part, (S, 2) int64; a single frame is all dynamic.

        In double precision, and in the order in which the paper's code evaluates it.

        Args:
            sizes: (S,) frames in each segment; static: (S,) static places in each, 0 for a single frame.
            tokens: L.
        """
        whole = (sizes * tokens).double()
        ratio = (self.retention_ratio / ((whole - (sizes - 1) * static) / whole)).clamp(max=1.0)
        parts = torch.stack([static, tokens - static], 1)
        frames = torch.stack([torch.ones_like(sizes), sizes], 1)  # the dynamic part has a share of every frame
        shares = parts * ratio[:, None]
        if self.exact_budget:
            total = min(self.budget(int(sizes.sum()), tokens), int((parts * frames).sum()))
            return apportion((shares * frames).flatten(), (parts * frames).flatten(), total).view(-1, 2)
        least = torch.stack([static.clamp(max=1), (sizes == 1).long()], 1)
        return shares.ceil().long().maximum(least) * frames

    def _keep(self, features: Tensor, saliency: Tensor, axes: Axes, plan: Plan, doubts: Doubts | None) -> Kept:
        """Steps 3 to 6: select in every set of the plan, merge what is left of every pool of it.

        Args:
            features: (F, L, D); saliency: (F, L); axes: F seconds, H rows, W columns.
            doubts: see density_peaks().
        """
        frames, tokens, dim = features.shape
        device, table = features.device, features.reshape(-1, dim)
        bases = self.time_base, self.space_base, self._block_bytes(device)
        rotated = unrotated = Rotated(table, axes, *bases)
        if self.merging == "cosine":
            origin = torch.zeros_like(axes[0]), torch.zeros_like(axes[1]), torch.zeros_like(axes[2])
            unrotated = Rotated(table, origin, *bases)  # at the origin nothing is rotated
        members, first = on_device(plan.members, device), on_device(plan.first, device)
        scores, means = saliency, table[:0].float()
        if len(plan.frames):
            scores = torch.cat([scores, self._means(saliency, plan.frame_rows, plan.frame_of, plan.frames)])
            means = self._means(table, plan.rows, plan.mean_of, plan.mean_frames)

        chosen = select(
            scores,
            members,
            plan.sizes,
            plan.salient,
            lambda sets, places: rotated(first[sets][:, None] + places),
            dim,
            self.expansion if self.selection == "diversity" else 1.0,
            self.num_neighbors,
            self.memory_limit,
            doubts,
        )
        # Places in all sets, one set behind the other: those of frames are also flat indices of the video.
        selected = true_places(chosen.flatten(), sum(plan.salient))
        rest = true_places((members & ~chosen).flatten(), sum(plan.pools))
        merging = plan_merging(
            len(rest),
            plan.pools,
            plan.context,
            lambda places: unrotated(first[rest[places] // tokens] + rest[places] % tokens),
            dim,
            device,
            self.num_neighbors,
            self.placement,
            self.memory_limit,
            doubts,
        )
        # Of frames come rows of the video, of still places behind them rows of their means.
        mean = on_device(plan.mean, device)
        split, cut, merged = plan.of_frames()
        settings = self.anchor_weight, self.memory_limit
        values = [
            table[selected[:split]].float(),
            means[mean[selected[split:] - frames * tokens]],
            merge(table, rest[:cut], merging.anchors[:merged], merging.clusters[:cut], *settings),
        ]
        if len(plan.frames):
            rows, anchors = mean[rest[cut:] - frames * tokens], merging.anchors[merged:] - cut
            values.append(merge(means, rows, anchors, merging.clusters[cut:] - merged, *settings))
        places = torch.cat([selected, rest[merging.places]])
        return Kept(first[places // tokens] + places % tokens, torch.cat(values), selected, rest, merging)

    def _means(self, table: Tensor, rows: Tensor, means: Tensor, counts: Tensor) -> Tensor:
        """Means of table rows: rows[i] counts towards mean means[i] of counts[j] rows each; indices on the host."""
        rows, means = on_device(rows, table.device), on_device(means, table.device)
        divisors = on_device(counts, table.device)[:, None]
        return segment_sums(table, rows, means, len(divisors), self.memory_limit) / divisors

    def _block_bytes(self, device: torch.device) -> int:
        block = int(self.memory_limit * 2**20)
        return min(block, BLOCK_BYTES) if device.type == "cpu" else block

    def _threshold(self) -> float:
        if self.similarity_threshold is not None:
            return self.similarity_threshold
        return holitom_threshold(self.retention_ratio)
