"""Diversity-driven selection of salient tokens.

Tango, arXiv 2604.09547, salient selection (step 5): the most salient candidates are clustered, and each cluster gives
its most salient member. Pure, batched functions; every tie goes to the lower index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tango.clustering import assign, density_peaks
from tango.ragged import Doubts, batches, first_places, on_device


def select(
    saliency: Tensor,
    members: Tensor,
    sizes: Sequence[int],
    counts: Sequence[int],
    vectors: Callable[[Tensor, Tensor], Tensor],
    width: int,
    expansion: float = 1.5,
    num_neighbors: int = 7,
    memory_limit: float = 256,
    doubts: Doubts | None = None,
) -> Tensor:
    """Select counts[g] of the members of each of G sets.

    Candidates are the min(int(expansion * count), n) most salient of the n members. If these are more than asked for,
    they are clustered around density peaks, and the most salient of each cluster is selected.

    Args:
        saliency: (G, L) finite.
        members: (G, L) bool, the places that belong to a set.
        sizes: members of each set; counts: how many to select, at most as many.
        vectors: gives the rotated vectors (g, p, D) of places (g, p) of sets (g,), when they are needed.
        width: D.
        num_neighbors: neighbours for the density.
        memory_limit: MiB of temporary memory.
        doubts: see density_peaks().

    Returns:
        (G, L) bool, counts[g] true in each row, all of them members.
    """
    tokens, device = saliency.shape[1], saliency.device
    pools = [min(int(expansion * count), size) for count, size in zip(counts, sizes, strict=True)]
    order = saliency.masked_fill(~members, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    # One place more than there is, for what pads a batch.
    chosen = torch.zeros(len(pools), tokens + 1, dtype=torch.bool, device=device)
    chosen.scatter_(1, order, first_places(pools, tokens, device))
    crowded = [g for g, pool in enumerate(pools) if pool > counts[g]]
    for batch in batches([pools[g] for g in crowded], width, device, memory_limit):
        sets = [crowded[i] for i in batch]
        held, wanted = [pools[g] for g in sets], [counts[g] for g in sets]
        rows, there = on_device(sets, device), first_places(held, held[0], device)
        places = order[rows, : held[0]].masked_fill_(~there, tokens).sort(dim=1).values
        near = places.clamp(max=tokens - 1)
        points, scores = vectors(rows, near), saliency[rows].gather(1, near)
        peaks = density_peaks(points, wanted, num_neighbors, memory_limit, sizes=held, doubts=doubts)
        cluster = assign(points, peaks, memory_limit, doubts=doubts).masked_fill_(~there, held[0])
        first = _most_salient(scores, cluster, held[0])
        chosen[rows] = torch.zeros_like(chosen[: len(sets)]).scatter_(1, places, first)
    return chosen[:, :tokens]


def _most_salient(saliency: Tensor, cluster: Tensor, count: int) -> Tensor:
    """Which of p candidates (G, p) are the most salient, then first, of a cluster, one of 0 .. count - 1."""
    # Two stable sorts put each cluster's members together, the most salient (then the lowest index) first.
    by_saliency = saliency.sort(dim=1, descending=True, stable=True).indices
    by_cluster, order = cluster.gather(1, by_saliency).sort(dim=1, stable=True)
    first = by_cluster < count
    first[:, 1:] &= by_cluster[:, 1:] != by_cluster[:, :-1]
    return torch.zeros_like(first).scatter_(1, by_saliency.gather(1, order), first)
