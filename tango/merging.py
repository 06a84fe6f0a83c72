"""Spatio-temporal merging: many tokens become a few, each an anchor blended with the mean of its cluster.

Tango, arXiv 2604.09547, context merging (step 6). Pure functions on sets of tokens that lie one behind the other; sums
are fp32 and in a fixed order, so the same input gives the same tokens on every run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from tango.clustering import assign, density_peaks
from tango.ragged import Doubts, batches, first_places, on_device

PLACEMENTS = ("anchor", "published")


class Merging(NamedTuple):
    """Which of n tokens become which of M merged ones.

    anchors: (M,) int64 in 0 .. n-1, the anchor of each merged token, the sets in order and ascending in each set.
    places: (M,) int64 in 0 .. n-1, the token at whose place each stands: its anchor, but for placement "published".
    clusters: (n,) int64, the merged token that each token becomes part of; M for tokens of a set that keeps none.
    """

    anchors: Tensor
    places: Tensor
    clusters: Tensor


def plan_merging(
    tokens: int,
    sizes: Sequence[int],
    counts: Sequence[int],
    vectors: Callable[[Tensor], Tensor],
    width: int,
    device: torch.device,
    num_neighbors: int = 7,
    placement: str = "anchor",
    memory_limit: float = 256,
    doubts: Doubts | None = None,
) -> Merging:
    """Decide how to merge each set of tokens down to counts[j]; a set of no more keeps them all, unmerged.

    Anchors are density peaks; every token joins its nearest anchor. With placement "published" merged tokens stand
    where the published code puts them: the j-th of a set by place at its j-th anchor by score.

    Args:
        tokens: n, the sum of sizes. The first sizes[0] tokens are the first set, and so on.
        vectors: gives the rotated vectors (g, p, D) of tokens (g, p), when they are needed.
        width: D.
        num_neighbors, memory_limit, doubts: see density_peaks().
    """
    kept = [min(size, count) for size, count in zip(sizes, counts, strict=True)]
    token_starts, starts = list(accumulate(sizes, initial=0)), list(accumulate(kept, initial=0))
    merged = starts[-1]
    # On the host: tokens of sets that are kept whole, or dropped. One more of each, for what pads a batch.
    anchors, clusters = torch.zeros(merged + 1, dtype=torch.int64), torch.full((tokens + 1,), merged)
    for token, slot, size, count in zip(token_starts, starts, sizes, kept, strict=False):
        if size == count:
            anchors[slot : slot + size] = torch.arange(token, token + size)
            clusters[token : token + size] = torch.arange(slot, slot + size)
    anchors, clusters = on_device(anchors, device), on_device(clusters, device)
    places = anchors.clone()

    crowded = [j for j, size in enumerate(sizes) if size > kept[j] > 0]
    for batch in batches([sizes[j] for j in crowded], width, device, memory_limit):
        sets = [crowded[i] for i in batch]
        held, wanted = [sizes[j] for j in sets], [kept[j] for j in sets]
        start = on_device([token_starts[j] for j in sets], device)[:, None]
        first = on_device([starts[j] for j in sets], device)[:, None]
        rows = start + torch.arange(held[0], device=device)
        points = vectors(rows.clamp(max=tokens - 1))
        peaks = density_peaks(points, wanted, num_neighbors, memory_limit, sizes=held, doubts=doubts)
        cluster = assign(points, peaks, memory_limit, doubts=doubts)
        rows.masked_fill_(~first_places(held, held[0], device), tokens)
        clusters[rows] = first + cluster
        most = max(wanted)
        slots = (first + torch.arange(most, device=device)).masked_fill_(~first_places(wanted, most, device), merged)
        found = start + peaks.indices.sort(dim=1).values
        anchors[slots] = found
        if placement == "published":
            by_place = peaks.indices.argsort(dim=1, stable=True).argsort(dim=1)
            found = found.gather(1, by_place)
        places[slots] = found
    return Merging(anchors[:merged], places[:merged], clusters[:tokens])


def merge(
    table: Tensor,
    rows: Tensor,
    anchors: Tensor,
    clusters: Tensor,
    anchor_weight: float = 0.6,
    memory_limit: float = 256,
) -> Tensor:
    """Merged tokens: w * anchor + (1 - w) * mean of the cluster, w = max(1 / cluster size, anchor_weight).

    Args:
        table: (T, D) features, any floating dtype.
        rows: (n,) int64 rows of the table, the tokens.
        anchors: (M,) int64 in 0 .. n-1; clusters: (n,) int64 in 0 .. M, M for tokens that are dropped.

    Returns:
        (M, D) fp32.
    """
    count = len(anchors)
    sums, sizes = _sums(table, rows, clusters, count, memory_limit)
    weight = (1.0 / sizes).clamp(min=anchor_weight)
    return weight * table[rows[anchors]].float() + (1.0 - weight) * (sums / sizes)


def segment_sums(table: Tensor, rows: Tensor, segments: Tensor, count: int, memory_limit: float = 256) -> Tensor:
    """Sums of table rows by segment, in fp32 and in a fixed order (no atomic additions).

    Args:
        table: (T, D).
        rows: (n,) int64 rows of the table.
        segments: (n,) int64 in [0, count], the segment each row is added to; count: none.

    Returns:
        (count, D) fp32; zeros where a segment is empty.
    """
    return _sums(table, rows, segments, count, memory_limit)[0]


def _sums(table: Tensor, rows: Tensor, segments: Tensor, count: int, memory_limit: float) -> tuple[Tensor, Tensor]:
    """segment_sums() and the number of rows in each segment (count, 1)."""
    segments, order = segments.sort(stable=True)
    edges = torch.searchsorted(segments, torch.arange(count + 1, device=table.device))
    rows = rows[order]
    sums = torch.empty(count, table.shape[1], device=table.device)
    # Slices of columns: each column's sum is the same whatever the slice, so the memory limit cannot change a bit.
    step = max(1, int(memory_limit * 2**20) // (4 * max(1, table.shape[0])))
    for start in range(0, table.shape[1], step):
        part = table[:, start : start + step].float().contiguous()
        sums[:, start : start + step] = torch.nn.functional.embedding_bag(
            rows, part, edges, mode="sum", include_last_offset=True
        )
    return sums, edges.diff()[:, None]
