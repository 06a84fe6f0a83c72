"""Tango: segments of similar frames, diverse salient tokens, and context tokens merged over space and time.

Yin et al., "Tango: Taming Visual Signals for Efficient Video Large Language Models", arXiv 2604.09547. This file puts
the steps together and owns the budgets; the steps themselves are the pure functions of tango/.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from tango.merging import PLACEMENTS, merge, segment_sums
from tango.pruners.base import (
    Given,
    Pruned,
    Pruner,
    check_saliency,
    check_timestamps,
    check_vectors,
    full_precision,
    zero_sinks,
)
from tango.pruners.budget import apportion
from tango.pruners.in_llm import LayerPruning, check_layer, prefill_ratio
from tango.pruners.trace import Fates
from tango.rope import rope_sections, rotate
from tango.segmentation import fastvid, holitom, neighbour_similarity
from tango.selection import candidates, select

SEGMENTATIONS = ("holitom", "fastvid", "none")
SELECTIONS = ("diversity", "topk")
MERGINGS = ("st_rope", "cosine")
SIMILARITY_BYTES = 32 << 20  # larger blocks are not faster
ROTATE_BYTES = 32 << 20


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
    def signals(self) -> frozenset[str]:
        return frozenset({"saliency", "segment_features"} if self.segmentation == "fastvid" else {"saliency"})

    def _prune(self, video: Given) -> Pruned:
        features, grid, vectors = video.features, video.grid, video.segment_features
        if grid is None:
            raise ValueError("grid is missing: this method needs the rows and columns of a frame's tokens, (H, W)")
        rope_sections(features.shape[2])
        saliency = zero_sinks(check_saliency(video.saliency, features), self.sink_tokens)
        times = check_timestamps(video.timestamps, features)
        if vectors is not None:
            vectors = check_vectors("segment_features", vectors, features)
        with full_precision(features.device):
            return self._merged(features.detach(), saliency, grid, times, vectors, video.fates)

    def _merged(
        self,
        features: Tensor,
        saliency: Tensor,
        grid: tuple[int, int],
        times: Tensor,
        frame_vectors: Tensor | None,
        fates: Fates | None,
    ) -> Pruned:
        frames, tokens, dim = features.shape
        device = features.device
        block = int(self.memory_limit * 2**20)
        similarity = neighbour_similarity(features, min(block, SIMILARITY_BYTES))
        threshold = self._threshold()
        if self.segmentation == "holitom":
            sizes = holitom(similarity, threshold)
        elif self.segmentation == "none":
            sizes = torch.tensor([frames])
        else:
            if frame_vectors is None:
                frame_vectors = features.mean(1, dtype=torch.float32)
            sizes = fastvid(frame_vectors, threshold)
        starts = sizes.cumsum(0) - sizes

        cells = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).to(device, torch.float32)
        positions = torch.cat([times[:, None, None].expand(-1, tokens, 1), cells.expand(frames, -1, -1)], dim=2)

        static = torch.stack([
            (similarity[start : start + size - 1] > self.static_threshold).all(0) & (size > 1)
            for start, size in zip(starts.tolist(), sizes.tolist(), strict=True)
        ])  # fmt: skip
        if fates is not None:
            fates.tell_static(static.repeat_interleave(sizes.to(device), 0))
        budgets = self._budgets(sizes, static.sum(1).cpu(), tokens)

        kept: list[tuple[Tensor, Tensor]] = []
        # Single frames are sets of one size: compressed together, as many as the memory limit lets be copied.
        step = max(1, block // (16 * tokens * dim))
        for budget in sorted(set(budgets[sizes == 1, 1].tolist()) - {0}):
            for chosen in torch.split(starts[(sizes == 1) & (budgets[:, 1] == budget)].to(device), step):
                count = len(chosen)
                table, places = features[chosen].reshape(-1, dim), positions[chosen].reshape(-1, 3)
                rows = torch.arange(count * tokens, device=device).view(count, tokens)
                told = fates and fates.part((chosen[:, None] * tokens + rows[0]).flatten())
                indices, values = self._compress(table, table, rows, places, saliency[chosen], budget, told)
                moved = (chosen - torch.arange(count, device=device)) * tokens
                kept.append(((indices + moved[:, None]).flatten(), values.flatten(0, 1)))
        for start, size, still, shares in zip(starts.tolist(), sizes.tolist(), static, budgets.tolist(), strict=True):
            if size > 1:
                part = slice(start, start + size)
                told = fates and fates.part(torch.arange(start * tokens, (start + size) * tokens, device=device))
                inputs = features[part], saliency[part], positions[part], still, told
                for indices, values in self._segment(*inputs, *shares):
                    kept.append((indices + start * tokens, values))
        indices, order = torch.cat([indices for indices, _ in kept]).sort()
        values = torch.cat([values for _, values in kept])[order]
        return self.exactly(Pruned(indices, values.to(features.dtype), sizes), features, saliency)

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

    def _segment(
        self,
        features: Tensor,
        saliency: Tensor,
        positions: Tensor,
        static: Tensor,
        fates: Fates | None,
        of_static: int,
        of_dynamic: int,
    ) -> list[tuple[Tensor, Tensor]]:
        """Prune a segment of N > 1 frames: (indices, features) of its static, salient and context tokens (step 3).

        of_static, of_dynamic: tokens to keep of its S static places and of the other places in all frames.
        """
        frames, tokens, dim = features.shape
        table, positions = features.reshape(-1, dim), positions.reshape(-1, 3)
        still, moving = static.nonzero()[:, 0], (~static).nonzero()[:, 0]
        offsets = tokens * torch.arange(frames, device=static.device)[:, None]
        count = len(still)
        kept = []
        if of_static:
            places = torch.arange(count, device=still.device)
            copies = (still + offsets).flatten()
            means = segment_sums(table, copies, places.repeat(frames), count, self.memory_limit) / frames
            scores = saliency[:, still].mean(0)[None]
            told = fates and fates.part((still + offsets).T)
            chosen, values = self._compress(
                means, table[still], places[None], positions[still], scores, of_static, told
            )
            kept.append((still[chosen[0]], values[0]))
        if of_dynamic:
            salient = int(of_dynamic / frames * (1 - self.context_ratio))
            context = of_dynamic - frames * salient
            rows = moving + offsets
            scores = saliency[:, moving]
            chosen = self._candidates(scores, salient)
            if chosen.shape[1] > salient:
                vectors = self._rotate(table, positions, rows.gather(1, chosen))
                chosen = chosen.gather(1, self._select(scores.gather(1, chosen), vectors, salient))
            selected = rows.gather(1, chosen).flatten()
            kept.append((selected, table[selected].float()))
            if fates is not None:
                fates.tell_salient(selected)
            if context:
                rest = rows.gather(1, _others(rows, chosen)).view(1, -1)
                vectors = self._rotate(table, self._merging_positions(positions), rest)
                merged, values = self._merge(table, rest, vectors, context, fates)
                kept.append((merged[0], values[0]))
        return kept

    def _compress(
        self,
        table: Tensor,
        origins: Tensor,
        rows: Tensor,
        positions: Tensor,
        saliency: Tensor,
        budget: int,
        fates: Fates | None,
    ) -> tuple[Tensor, Tensor]:
        """Compress G sets of n tokens to `budget` each (step 4).

        Args:
            table: (T, D) what is kept or averaged; origins (T, D) and positions (T, 3): what it is compared by.
            rows: (G, n) rows of the table; saliency: (G, n).

        Returns:
            kept rows of the table (G, K), ascending, and their features (G, K, D).
        """
        salient = int(budget * (1 - self.context_ratio))
        vectors = self._rotate(origins, positions, rows)
        chosen = self._candidates(saliency, salient)
        chosen = chosen.gather(1, self._select(saliency.gather(1, chosen), _gather(vectors, chosen), salient))
        selected, rest = rows.gather(1, chosen), _others(rows, chosen)
        if self.merging == "cosine":
            vectors = self._rotate(origins, self._merging_positions(positions), rows)
        if fates is not None:
            fates.tell_salient(selected)
        merged, values = self._merge(table, rows.gather(1, rest), _gather(vectors, rest), budget - salient, fates)
        indices, order = torch.cat([selected, merged], dim=1).sort(dim=1)
        return indices, _gather(torch.cat([table[selected].float(), values], dim=1), order)

    def _rotate(self, table: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        """ST-RoPE of rows (G, n) of the table (T, D): (G, n, D), by blocks so that nothing else of its size is made."""
        dim = table.shape[1]
        vectors = torch.empty(rows.numel(), dim, device=table.device)
        step = max(1, int(min(self.memory_limit * 2**20, ROTATE_BYTES)) // (16 * dim))
        for start in range(0, len(vectors), step):
            part = rows.flatten()[start : start + step]
            vectors[start : start + step] = rotate(table[part], positions[part], self.time_base, self.space_base)
        return vectors.view(*rows.shape, dim)

    def _merging_positions(self, positions: Tensor) -> Tensor:
        """Positions to merge by; at the origin nothing is rotated."""
        return positions if self.merging == "st_rope" else torch.zeros_like(positions)

    def _candidates(self, saliency: Tensor, count: int) -> Tensor:
        return candidates(saliency, count, self.expansion if self.selection == "diversity" else 1.0)

    def _select(self, saliency: Tensor, vectors: Tensor, count: int) -> Tensor:
        return select(saliency, vectors, count, self.num_neighbors, self.memory_limit)

    def _merge(
        self, table: Tensor, rows: Tensor, vectors: Tensor, count: int, fates: Fates | None
    ) -> tuple[Tensor, Tensor]:
        settings = self.num_neighbors, self.anchor_weight, self.placement, self.memory_limit
        return merge(table, rows, vectors, count, *settings, joined=fates.tell_merged if fates is not None else None)

    def _threshold(self) -> float:
        if self.similarity_threshold is not None:
            return self.similarity_threshold
        return 0.65 if self.retention_ratio <= 0.1 else 0.8


def _gather(values: Tensor, index: Tensor) -> Tensor:
    """values (G, n, D), index (G, k) -> (G, k, D)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))


def _others(rows: Tensor, chosen: Tensor) -> Tensor:
    """Places (G, n - k), ascending, of the rows (G, n) that are not among the k chosen places (G, k) of each set."""
    left = torch.ones_like(rows, dtype=torch.bool).scatter_(1, chosen, False)
    return left.nonzero()[:, 1].view(rows.shape[0], rows.shape[1] - chosen.shape[1])
