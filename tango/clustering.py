"""Density peaks (DPC-KNN) and nearest centres.

Tango, arXiv 2604.09547, clustering (step 7). Pure, batched functions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Peaks(NamedTuple):
    """indices: (G, m) int64 by score, highest first. scores: (G, m) fp64, infinite for the densest point."""

    indices: Tensor
    scores: Tensor


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def density_peaks(points: Tensor, count: int, num_neighbors: int = 7, memory_limit: float = 256) -> Peaks:
    groups, size, _ = points.shape
    distance = _distances(points, points).double()
    neighbors = min(num_neighbors, size - 1)
    if neighbors:
        near = distance.sort(dim=2).values[..., 1 : neighbors + 1]
        density = torch.exp(-near.square().mean(2))
    else:
        density = torch.ones(groups, size, dtype=torch.float64, device=points.device)
    order = density.sort(dim=1, descending=True, stable=True).indices
    rank = order.argsort(dim=1)
    denser = rank[:, None, :] < rank[:, :, None]
    delta = distance.masked_fill(~denser, torch.inf).amin(2)
    scores, indices = (density * delta).sort(dim=1, descending=True, stable=True)
    return Peaks(indices[:, :count], scores[:, :count])


def assign(points: Tensor, peaks: Peaks, memory_limit: float = 256) -> Tensor:
    """(G, n) place among the ascending centres of each point's nearest centre."""
    centres = peaks.indices.sort(dim=1).values
    chosen = points.gather(1, centres[..., None].expand(-1, -1, points.shape[2]))
    nearest = _distances(points, chosen).argmin(2)
    own = torch.arange(centres.shape[1], device=points.device).expand_as(centres)
    return nearest.scatter(1, centres, own)
