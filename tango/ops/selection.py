"""Diversity-driven selection of salient tokens.

Tango, arXiv 2604.09547, step 4 of docs/method.md: the most salient candidates are clustered, and each cluster gives its
most salient member. Every tie goes to the lower index.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tango.ops.density import cluster


def select(
    saliency: Tensor,
    members: Tensor,
    sizes: Sequence[int],
    counts: Sequence[int],
    vectors: Callable[[Tensor], Tensor],
    width: int,
    expansion: float = 1.5,
    num_neighbors: int = 7,
    memory_limit: float = 256,
) -> Tensor:
    """Select counts[g] of the members of each of G sets of tokens.

    Candidates are the min(int(expansion * count), n) most salient of the n members. If these are more than asked for,
    they are clustered around density peaks, and the most salient of each cluster is selected.

    Args:
        saliency: (G, L) finite.
        members: (G, L) bool, the places that belong to a set.
        sizes: members of each set; counts: how many to select, at most as many.
        vectors: gives the rotated vectors (.., width) of flat places (..) in 0 .. G * L - 1, when they are needed.

    Returns:
        (G, L) bool, counts[g] true in each row, all of them members.
    """
    pools = [min(int(expansion * count), size) for count, size in zip(counts, sizes, strict=True)]
    order = saliency.masked_fill(~members, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    first = torch.arange(saliency.shape[1], device=order.device) < torch.tensor(pools, device=order.device)[:, None]
    candidates = torch.zeros_like(members).scatter_(1, order, first).flatten().nonzero()[:, 0]
    settings = width, pools, counts, order.device, num_neighbors, memory_limit
    clusters = cluster(lambda places: vectors(candidates[places]), *settings)
    # Two stable sorts put each cluster's members together, the most salient (then the lowest index) first.
    ranked = saliency.flatten()[candidates].sort(descending=True, stable=True).indices
    labels, order = clusters.labels[ranked].sort(stable=True)
    best = labels.diff(prepend=labels.new_full((1,), -1)) > 0
    chosen = candidates[ranked[order[best]]]
    return torch.zeros_like(members).view(-1).index_fill_(0, chosen, True).view(members.shape)
