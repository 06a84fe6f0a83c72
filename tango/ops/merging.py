"""Spatio-temporal merging: many tokens become a few, each an anchor blended with the mean of its cluster.

Tango, arXiv 2604.09547, context tokens (step 5 of docs/method.md). Sums are fp32 and in a fixed order, so that the same
input gives the same tokens on every run.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def merge(
    tables: Sequence[Tensor],
    rows: Tensor,
    anchors: Tensor,
    labels: Tensor,
    anchor_weight: float = 0.6,
    memory_limit: float = 256,
) -> Tensor:
    """Merged tokens: w * anchor + (1 - w) * mean of the cluster, w = max(1 / cluster size, anchor_weight).

    Args:
        tables, rows: (n,) tokens, as in segment_sums().
        anchors: (M,) int64 in 0 .. n-1, the anchor of each cluster; labels: (n,) int64, the cluster of each token, M
            for tokens that are dropped.

    Returns:
        (M, D) fp32.
    """
    sums = segment_sums(tables, rows, labels, len(anchors), memory_limit)
    sizes = torch.bincount(labels, minlength=len(anchors))[: len(anchors), None]
    weight = (1.0 / sizes.float()).clamp(min=anchor_weight)
    return take(tables, rows[anchors]).mul_(weight).add_(sums.div_(sizes).mul_(1.0 - weight))


def take(tables: Sequence[Tensor], rows: Tensor) -> Tensor:
    """Rows (n,) of tables (T, D) that are thought of as lying one behind the other: (n, D) fp32."""
    values, start = torch.empty(len(rows), tables[0].shape[1], dtype=torch.float32, device=rows.device), 0
    for table in tables:
        here = (rows >= start) & (rows < start + len(table))
        values[here] = table[rows[here] - start].float()
        start += len(table)
    return values


def segment_sums(
    tables: Tensor | Sequence[Tensor], rows: Tensor, segments: Tensor, count: int, memory_limit: float = 256
) -> Tensor:
    """Sums of table rows by segment, in fp32 and in a fixed order (no atomic additions).

    Args:
        tables: (T, D), or several that are thought of as lying one behind the other; rows: (n,) int64 rows of it.
        segments: (n,) int64 in [0, count], the segment each row is added to; count: none.

    Returns:
        (count, D) fp32; zeros where a segment is empty.
    """
    tables = [tables] if isinstance(tables, Tensor) else tables
    width, device = tables[0].shape[1], rows.device
    segments, order = segments.sort(stable=True)
    edges = torch.searchsorted(segments, torch.arange(count + 1, device=device))
    rows = rows[order]
    sums = torch.empty(count, width, dtype=torch.float32, device=device)
    # Slices of columns: each column's sum is the same whatever the slice, so the memory limit cannot change a bit.
    block = int(min(memory_limit, 2 if device.type == "cpu" else math.inf) * 2**20)  # larger ones only leave the cache
    step = max(1, block // (4 * max(1, sum(map(len, tables)))))
    for start in range(0, width, step):
        part = torch.cat([table[:, start : start + step].float() for table in tables])
        sums[:, start : start + step] = torch.nn.functional.embedding_bag(
            rows, part, edges, mode="sum", include_last_offset=True
        )
    return sums
