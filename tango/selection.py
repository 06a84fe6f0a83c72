"""Diversity-driven selection of salient tokens.

Tango, arXiv 2604.09547, salient selection (step 5): the most salient candidates are clustered, and each cluster gives
its most salient member. Pure, batched functions; every set is in ascending order and every tie goes to the lower index.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tango.clustering import assign, density_peaks


def candidates(saliency: Tensor, count: int, expansion: float = 1.5) -> Tensor:
    """The min(int(expansion * count), n) most salient of n tokens, the pool from which `count` are selected.

    Args:
        saliency: (G, n), G independent sets.

    Returns:
        (G, P) int64, ascending.
    """
    size = min(int(expansion * count), saliency.shape[1])
    return saliency.sort(dim=1, descending=True, stable=True).indices[:, :size].sort(dim=1).values


def select(saliency: Tensor, vectors: Tensor, count: int, num_neighbors: int = 7, memory_limit: float = 256) -> Tensor:
    """Select `count` of P candidates: cluster them around density peaks, keep the most salient of each cluster.

    Args:
        saliency: (G, P) of the candidates.
        vectors: (G, P, D) rotated vectors of the candidates.
        count: how many to select; P or more keeps every candidate.
        num_neighbors: neighbours for the density.
        memory_limit: MiB of temporary memory.

    Returns:
        (G, min(count, P)) int64 places among the candidates, ascending.
    """
    groups, size = saliency.shape
    if size <= count:
        return torch.arange(size, device=saliency.device).expand(groups, size)
    if count == 0:
        return torch.empty(groups, 0, dtype=torch.int64, device=saliency.device)
    cluster = assign(vectors, density_peaks(vectors, count, num_neighbors, memory_limit), memory_limit)
    # Two stable sorts put each cluster's members together, the most salient (then the lowest index) first.
    by_saliency = saliency.sort(dim=1, descending=True, stable=True).indices
    by_cluster, order = cluster.gather(1, by_saliency).sort(dim=1, stable=True)
    first = torch.ones_like(by_cluster, dtype=torch.bool)
    first[:, 1:] = by_cluster[:, 1:] != by_cluster[:, :-1]
    # No cluster is empty, for a centre belongs to its own, so each group has `count` firsts.
    return by_saliency.gather(1, order)[first].view(groups, count).sort(dim=1).values
