"""Tango: segments of similar frames, diverse salient tokens, and context tokens merged over space and time.

Yin et al., "Tango: Taming Visual Signals for Efficient Video Large Language Models", arXiv 2604.09547. This file puts
the steps together and owns the budgets; the steps themselves are the pure functions of tango/.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tango.merging import PLACEMENTS, merge
from tango.pruners.base import (
    Pruned,
    Pruner,
    check_features,
    check_finite,
    check_saliency,
    check_timestamps,
    full_precision,
    zero_sinks,
)
from tango.rope import rope_sections, rotate
from tango.segmentation import fastvid, holitom, neighbour_similarity
from tango.selection import candidates, select

SEGMENTATIONS = ("holitom", "fastvid")


@dataclass
class Tango(Pruner):
    """Tango, arXiv 2604.09547. Training-free pruning of one video's tokens, with diversity and ST-RoPE.

    Args:
        retention_ratio, saliency, saliency_weights: see Pruner.
        context_ratio: share of a budget that goes to merged tokens, the rest to salient ones.
        similarity_threshold: similarity that counts as the same when cutting into segments; None means 0.65 up to a
            retention ratio of 0.1 and 0.8 above.
        static_threshold: similarity that counts as static inside a segment.
        expansion: salient candidates for each salient token to select.
        num_neighbors: neighbours for the density.
        anchor_weight: least weight of the anchor in a merged token.
        time_base, space_base: frequency bases of ST-RoPE.
        segmentation: "holitom" or "fastvid".
        placement: "anchor" puts a merged token at its anchor; "published" permutes them as the published code does.
        memory_limit: MiB of temporary memory for distances and conversions.
        sink_tokens: positions of a frame whose saliency is set to 0; None leaves them to the model family (no sinks
            when prune() is called directly).

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
    placement: str = "anchor"
    memory_limit: float = 256
    sink_tokens: tuple[int, ...] | None = None

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
        self._choice("placement", PLACEMENTS)
        self._number("memory_limit", above=0)
        self._positions("sink_tokens")

    @property
    def signals(self) -> frozenset[str]:
        return frozenset({"saliency", "segment_features"} if self.segmentation == "fastvid" else {"saliency"})

    def prune(
        self,
        features: Tensor,
        saliency: Tensor | None,
        grid: tuple[int, int],
        timestamps: Tensor | Sequence[float] | None,
        segment_features: Tensor | None = None,
    ) -> Pruned:
        """Prune one video of F frames of L = H * W tokens of even width D.

        Args:
            features: (F, L, D) tokens as the language model would receive them, any floating dtype.
            saliency: (F, L) the vision encoder's attention to each token.
            grid: (H, W).
            timestamps: (F,) seconds.
            segment_features: (F, E) one vector a frame, used by segmentation "fastvid"; None: the mean of its tokens.

        Returns:
            Pruned with ascending indices. A retention ratio of 1 returns every token as it came, in one segment.

        Raises:
            ValueError: an input is missing, not finite, or of the wrong shape.
        """
        check_features(features, grid)
        rope_sections(features.shape[2])
        saliency = zero_sinks(check_saliency(saliency, features), self.sink_tokens)
        times = check_timestamps(timestamps, features)
        frames, tokens, dim = features.shape
        if segment_features is not None:
            if segment_features.dim() != 2 or segment_features.shape[0] != frames:
                raise ValueError(
                    f"segment_features must have shape ({frames}, width), got {tuple(segment_features.shape)}"
                )
            check_finite("segment_features", segment_features)
        if self.retention_ratio == 1:
            indices = torch.arange(frames * tokens, device=features.device)
            return Pruned(indices, features.reshape(-1, dim), torch.tensor([frames]))
        with full_precision(features.device):
            return self._prune(features.detach(), saliency, grid, times, segment_features)

    def _prune(
        self, features: Tensor, saliency: Tensor, grid: tuple[int, int], times: Tensor, frame_vectors: Tensor | None
    ) -> Pruned:
        frames, tokens, dim = features.shape
        block = int(self.memory_limit * 2**20)
        similarity = neighbour_similarity(features, block)
        threshold = self.similarity_threshold
        if threshold is None:
            threshold = 0.65 if self.retention_ratio <= 0.1 else 0.8
        if self.segmentation == "holitom":
            sizes = holitom(similarity, threshold)
        else:
            sizes = fastvid(_frame_means(features) if frame_vectors is None else frame_vectors, threshold)
        starts = sizes.cumsum(0) - sizes

        # A position (seconds, row, column) for each token, frame by frame.
        cells = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).view(tokens, 2)
        cells = cells.to(features.device, torch.float32)
        positions = torch.cat(
            [times[:, None, None].expand(-1, tokens, 1), cells.expand(frames, -1, -1)], dim=2
        )

        kept: list[tuple[Tensor, Tensor]] = []
        singles = starts[sizes == 1].to(features.device)
        step = max(1, block // (4 * tokens * dim))
        for chosen in singles.split(step) if len(singles) else ():
            rows = torch.arange(tokens, device=features.device) + tokens * torch.arange(len(chosen), device=chosen.device)[:, None]
            indices, values = self._compress(
                features[chosen].reshape(-1, dim),
                rows,
                saliency[chosen],
                self._rotate(features[chosen], positions[chosen]),
                self.retention_ratio,
            )
            frame_offset = (chosen - torch.arange(len(chosen), device=chosen.device)) * tokens
            kept.append(((indices + frame_offset[:, None]).flatten(), values.flatten(0, 1)))
        for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
            if size > 1:
                part = slice(start, start + size)
                static = (similarity[start : start + size - 1] > self.static_threshold).all(0)
                for indices, values in self._segment(features[part], saliency[part], positions[part], static):
                    kept.append((indices + start * tokens, values))
        indices = torch.cat([indices for indices, _ in kept])
        indices, order = indices.sort()
        values = torch.cat([values for _, values in kept])[order]
        return Pruned(indices, values.to(features.dtype), sizes)

    def _segment(
        self, features: Tensor, saliency: Tensor, positions: Tensor, static: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Prune a segment of N > 1 frames: (indices, features) of its static, salient and context tokens."""
        frames, tokens, dim = features.shape
        still = static.nonzero()[:, 0]
        moving = (~static).nonzero()[:, 0]
        count = len(still)
        ratio = min(1.0, self.retention_ratio / ((frames * tokens - (frames - 1) * count) / (frames * tokens)))
        kept = []
        if count:
            means = features[:, still].mean(0, dtype=torch.float32)
            vectors = self._rotate(features[0, still], positions[0, still])
            rows = torch.arange(count, device=still.device)[None]
            places, values = self._compress(means, rows, saliency[:, still].mean(0)[None], vectors[None], ratio)
            kept.append((still[places[0]], values[0]))
        if len(moving):
            budget, salient, context = self._budget(len(moving), ratio, least=0)
            table, flat_positions = features.reshape(-1, dim), positions.reshape(-1, 3)
            rows = tokens * torch.arange(frames, device=moving.device)[:, None] + moving
            scores = saliency[:, moving]
            pool = candidates(scores, salient, self.expansion)
            places = pool
            if pool.shape[1] > salient:
                pool_rows = rows.gather(1, pool)
                vectors = self._rotate(table[pool_rows], flat_positions[pool_rows])
                chosen = select(scores.gather(1, pool), vectors, salient, self.num_neighbors, self.memory_limit)
                places = pool.gather(1, chosen)
            selected = rows.gather(1, places).flatten()
            kept.append((selected, table[selected].float()))
            if context:
                left = torch.ones_like(rows, dtype=torch.bool).scatter_(1, places, False)
                rest = rows[left][None]
                kept.append(self._merge(table, rest, self._rotate(table[rest], flat_positions[rest]), frames * context))
        return kept

    def _compress(
        self, table: Tensor, rows: Tensor, saliency: Tensor, vectors: Tensor, ratio: float
    ) -> tuple[Tensor, Tensor]:
        """Compress G sets of n tokens at a ratio: indices (G, K) into the table and features (G, K, D), ascending."""
        size = rows.shape[1]
        _, salient, context = self._budget(size, ratio, least=1)
        pool = candidates(saliency, salient, self.expansion)
        chosen = select(saliency.gather(1, pool), _gather(vectors, pool), salient, self.num_neighbors, self.memory_limit)
        places = pool.gather(1, chosen)
        selected = rows.gather(1, places)
        left = torch.ones_like(rows, dtype=torch.bool).scatter_(1, places, False)
        rest = left.nonzero()[:, 1].view(len(rows), size - places.shape[1])
        merged, values = merge(
            table, rows.gather(1, rest), _gather(vectors, rest), context,
            self.num_neighbors, self.anchor_weight, self.placement, self.memory_limit,
        )
        indices, order = torch.cat([selected, merged], dim=1).sort(dim=1)
        return indices, _gather(torch.cat([table[selected].float(), values], dim=1), order)

    def _merge(self, table: Tensor, rows: Tensor, vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
        indices, values = merge(
            table, rows, vectors, count, self.num_neighbors, self.anchor_weight, self.placement, self.memory_limit
        )
        return indices[0], values[0]

    def _rotate(self, features: Tensor, positions: Tensor) -> Tensor:
        return rotate(features, positions, self.time_base, self.space_base)

    def _budget(self, size: int, ratio: float, least: int) -> tuple[int, int, int]:
        """Tokens to keep of `size`: (all, salient, context), in double precision, in the order the paper's code has."""
        budget = max(least, math.ceil(size * ratio))
        salient = int(budget * (1 - self.context_ratio))
        return budget, salient, budget - salient


def _gather(values: Tensor, index: Tensor) -> Tensor:
    """values (G, n, D), index (G, k) -> (G, k, D)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))


def _frame_means(features: Tensor) -> Tensor:
    """(F, L, D) -> (F, D) fp32."""
    return features.mean(1, dtype=torch.float32)
