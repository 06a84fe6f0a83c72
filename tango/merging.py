"""Spatio-temporal merging: many tokens become a few, each an anchor blended with the mean of its cluster.

Tango, arXiv 2604.09547, context merging (step 6). Pure, batched functions; sums are fp32 and in a fixed order, so the
same input gives the same tokens on every run.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tango.clustering import assign, density_peaks

PLACEMENTS = ("anchor", "published")


def merge(
    table: Tensor,
    tokens: Tensor,
    vectors: Tensor,
    count: int,
    num_neighbors: int = 7,
    anchor_weight: float = 0.6,
    placement: str = "anchor",
    memory_limit: float = 256,
    joined: Callable[[Tensor, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Merge n tokens of each set down to `count`.

    Anchors are density peaks; every token joins its nearest anchor. A merged token is w * anchor + (1 - w) * mean of
    its cluster, w = max(1 / cluster size, anchor_weight), and stands at its anchor's place. With placement
    "published" it stands where the published code puts it: the j-th merged token by place at the j-th anchor by score.

    Args:
        table: (T, D) features, any floating dtype.
        tokens: (G, n) int64 rows of the table, ascending: G independent sets of n tokens.
        vectors: (G, n, D) rotated vectors of those tokens.
        count: tokens to keep of each set; n or more keeps them all, unmerged.
        num_neighbors, memory_limit: see density_peaks().
        joined: called with the tokens (G, n) that are kept or merged, and the kept token (G, n) each is now part of.

    Returns:
        kept tokens (G, C) int64 rows of the table, ascending, and their features (G, C, D) fp32.
    """
    groups, size = tokens.shape
    if size <= count:
        if joined is not None:
            joined(tokens, tokens)
        return tokens, table[tokens].float()
    if count == 0:
        return tokens[:, :0], table.new_empty(groups, 0, table.shape[1], dtype=torch.float32)
    peaks = density_peaks(vectors, count, num_neighbors, memory_limit)
    cluster = assign(vectors, peaks, memory_limit)
    anchors = tokens.gather(1, peaks.indices.sort(dim=1).values)
    # Place of the j-th merged token among the anchors: the j-th by place, or as published the j-th anchor by score.
    rank = peaks.indices.argsort(dim=1).argsort(dim=1) if placement == "published" else None
    if joined is not None:
        joined(tokens, anchors.gather(1, cluster if rank is None else rank.gather(1, cluster)))
    cluster = cluster + count * torch.arange(groups, device=tokens.device)[:, None]
    sums = segment_sums(table, tokens.flatten(), cluster.flatten(), groups * count, memory_limit)
    sizes = torch.bincount(cluster.flatten(), minlength=groups * count)[:, None]
    weight = (1.0 / sizes).clamp(min=anchor_weight)
    merged = weight * table[anchors.flatten()].float() + (1.0 - weight) * (sums / sizes)
    merged = merged.view(groups, count, -1)
    if rank is not None:
        merged = torch.empty_like(merged).scatter_(1, rank[..., None].expand_as(merged), merged)
    return anchors, merged


def segment_sums(table: Tensor, rows: Tensor, segments: Tensor, count: int, memory_limit: float = 256) -> Tensor:
    """Sums of table rows by segment, in fp32 and in a fixed order (no atomic additions).

    Args:
        table: (T, D).
        rows: (n,) int64 rows of the table.
        segments: (n,) int64 in [0, count), the segment each row is added to.

    Returns:
        (count, D) fp32; zeros where a segment is empty.
    """
    order = segments.sort(stable=True).indices
    sizes = torch.bincount(segments, minlength=count)
    offsets = sizes.cumsum(0) - sizes
    rows = rows[order]
    sums = torch.empty(count, table.shape[1], device=table.device)
    # Slices of columns: each column's sum is the same whatever the slice, so the memory limit cannot change a bit.
    step = max(1, int(memory_limit * 2**20) // (4 * max(1, table.shape[0])))
    for start in range(0, table.shape[1], step):
        part = table[:, start : start + step].float().contiguous()
        sums[:, start : start + step] = torch.nn.functional.embedding_bag(rows, part, offsets, mode="sum")
    return sums
