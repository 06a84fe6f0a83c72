"""Density peaks as FastVID (arXiv 2503.11187) and HoliTom (arXiv 2505.21334) choose them, and SToP's with penalties."""

from collections.abc import Callable

import torch
from torch import Tensor

from tango.ops.density import Peaks, density_peaks, distances

BLOCK_BYTES = 64 << 20

# From points (G, n, D) fp32 of length about 1, the number of peaks, that of neighbours, and the flat indices (G, n) of
# the tokens that the points are.
ChoosePeaks = Callable[[Tensor, int, int, Tensor], Peaks]


def plain_peaks(points: Tensor, count: int, num_neighbors: int, indices: Tensor) -> Peaks:
    """The points of highest score, each its own nearest neighbour."""
    return density_peaks(points, count, num_neighbors, itself=True)


def lowered_peaks(points: Tensor, count: int, num_neighbors: int, penalties: Tensor) -> Peaks:
    """The points whose score less a penalty (G, n) is highest; the lower index among equals.

    The densest point, which is first in any case where there are no penalties, has its density times the largest
    distance of the set for its score.
    """
    size = points.shape[1]
    peaks = density_peaks(points, size, num_neighbors, itself=True)
    densest, scores = peaks.indices[:, :1], peaks.scores.clone()
    lengths = distances(points.gather(1, densest[..., None].expand(-1, -1, points.shape[2]))[:, 0], points).double()
    density = lengths.sort(dim=1).values[:, : min(num_neighbors, size)].square().mean(1).neg().exp()
    scores[:, 0] = density * torch.stack([_diameter(own) for own in points])
    scores = torch.empty_like(scores).scatter_(1, peaks.indices, scores) - penalties
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :count]
    # assign() takes a score of 0 for a copy whose original is a peak too, which penalties do not promise.
    return Peaks(order, torch.ones_like(scores[:, :count]))


def _diameter(points: Tensor) -> Tensor:
    """The largest distance of points (n, D), fp64: found by products, then measured, so that it is 0 for copies."""
    centred = points - points.mean(0)
    rows = max(1, BLOCK_BYTES // (4 * len(points)))
    found = [torch.cdist(part, centred).max(1) for part in torch.split(centred, rows)]
    end = torch.cat([part.values for part in found]).argmax()
    other = torch.cat([part.indices for part in found])[end]
    diameter: Tensor = (points[end].double() - points[other].double()).norm()
    return diameter
