"""Density peaks (DPC-KNN) and nearest centres, exact, without an n x n matrix in memory.

Tango, arXiv 2604.09547, clustering (step 7). Pure, batched functions.

Matrix products find which points are near; they are fast but round differently from block to block. The few distances
that decide anything are then taken again from differences, `distances()`, which is symmetric, exactly 0 for equal
points, and the same in every block: so equal points tie, ties go to the lower index, and neither the memory limit nor
what else is in a batch can change a result. Closeness below is -distance^2 / 2 as a product gives it.

Sets of a batch may differ in size and in peaks to find: `sizes` and a list of counts, known to the host. With `doubts`
nothing here waits for a GPU (see ragged.Doubts).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tango.neighbors import (
    Search,
    distance_rows,
    distance_to_denser,
    distances,
    distances_to_all,
    half_squares,
    open_ends,
    product_error,
    products,
    recheck,
    spares,
)
from tango.ragged import Doubts, first_places, pairs_at_once

__all__ = ["Peaks", "assign", "density_peaks", "distances"]

RIVALS = 8  # with fixed shapes, how many centres may be nearest by a product before there is a doubt


class Peaks(NamedTuple):
    """Density peaks of G sets.

    indices: (G, m) int64 by score, highest first; n, the width of the sets, where a set has fewer than m.
    scores: (G, m) fp64, density times separation; infinite for the densest point, 0 only for a copy of a denser one
        (a copy that counts as less dense, for its index); -1 where there is no peak.
    """

    indices: Tensor
    scores: Tensor


def density_peaks(
    points: Tensor,
    count: int | Sequence[int],
    num_neighbors: int = 7,
    memory_limit: float = 256,
    itself: bool = False,
    strict: bool = False,
    sizes: Sequence[int] | None = None,
    doubts: Doubts | None = None,
) -> Peaks:
    """The `count` points that are dense and far from any denser point.

    Density is exp(-mean of the squared distances to the k nearest other points), separation the distance to the
    nearest denser point. A point is denser than another if its density is larger, or equal and its index lower. The
    densest point has no denser one; its separation is by definition the largest distance of the set, which always
    makes its score the highest, so that distance is not computed. Equal scores go to the lower index.

    Args:
        points: (G, n, D) fp32, G independent sets, of lengths around 1 (unit vectors, or features / sqrt(D)).
        count: peaks to find, 1 to the number of points, of every set or of each.
        num_neighbors: k, at least 1; the n - 1 others if there are fewer.
        memory_limit: MiB that temporary blocks may take (no less than a block of 64 x 64 is used).
        itself: count a point, at distance 0, as the first of its own k neighbours, as FastVID (arXiv 2503.11187),
            HoliTom (arXiv 2505.21334), FlashVID (arXiv 2602.08024) and PruneVid (arXiv 2412.16117) do.
        strict: of points of equal density none counts as denser, as in FlashVID's code without its random noise.
        sizes: how many points each set has, its first ones; None: all have n.
        doubts: where given, all shapes are fixed, and doubts about the result go there.

    Raises:
        ValueError: a count is not in 1 .. the number of points.
    """
    groups, width, _ = points.shape
    counts = [count] * groups if isinstance(count, int) else list(count)
    for wanted, size in zip(counts, sizes or [width] * groups, strict=True):
        if not 1 <= wanted <= size:
            raise ValueError(f"count = {wanted}: expected 1 to {size}, the number of points")
    if sizes is not None and min(sizes) == width:
        sizes = None
    elements = pairs_at_once(points.device, memory_limit)
    if width * width <= elements:
        step = max(1, elements // (width * width))
        scores = torch.cat([
            _scores_dense(points[g : g + step], num_neighbors, itself, strict, sizes and sizes[g : g + step], doubts)
            for g in range(0, groups, step)
        ])  # fmt: skip
    else:
        edge = math.isqrt(elements)
        scores = points.new_full((groups, width), -1, dtype=torch.float64)
        for group, size in enumerate(sizes or [width] * groups):
            part = points[group, :size]
            if size * size <= elements:
                scores[group, :size] = _scores_dense(part[None], num_neighbors, itself, strict, None, doubts)[0]
            else:
                scores[group, :size] = _scores_blocked(Search(part, edge, doubts), num_neighbors, itself, strict)
    most = max(counts)
    scores, indices = (x[:, :most] for x in scores.sort(dim=1, descending=True, stable=True))
    if min(counts) < most:
        missing = ~first_places(counts, most, points.device)
        scores, indices = scores.masked_fill(missing, -1), indices.masked_fill(missing, width)
    return Peaks(indices, scores)


def assign(
    points: Tensor, peaks: Peaks, memory_limit: float = 256, by_score: bool = False, doubts: Doubts | None = None
) -> Tensor:
    """Join every point to its nearest centre; the lower index among equals, and every centre to itself.

    Args:
        points: (G, n, D) fp32.
        peaks: m centres of each set, from density_peaks().
        memory_limit, doubts: as in density_peaks().
        by_score: take the centre of higher score among equals, as PruneVid (arXiv 2412.16117) does.

    Returns:
        (G, n) int64 in 0 .. m-1: the centre's place among the set's centres in ascending order of index, or, by_score,
        among peaks.indices. Whatever is padding joins some centre, too.
    """
    groups, size, dim = points.shape
    centres, order = peaks.indices.sort(dim=1)
    if by_score:
        centres, order = peaks.indices, torch.arange(centres.shape[1], device=points.device).expand_as(order)
    count = centres.shape[1]
    near = points.gather(1, centres.clamp(max=size - 1)[..., None].expand(-1, -1, dim))
    # A copy of a denser point has score 0. All points with higher scores are then centres too, the original among
    # them, at a lower index: no point but itself may join it.
    closed = peaks.scores.gather(1, order) <= 0
    half = half_squares(points)
    slack = 2 * product_error(points, half)
    half = half.gather(1, centres.clamp(max=size - 1)).masked_fill_(closed, torch.inf)
    cluster = torch.empty(groups, size + 1, dtype=torch.int64, device=points.device)
    elements = pairs_at_once(points.device, memory_limit)
    for group in range(0, groups, step := max(1, elements // (size * count))):
        sets = slice(group, group + step)
        for start in range(0, size, rows := max(1, elements // (count * len(near[sets])))):
            part = points[sets, start : start + rows]
            close = products(part, near[sets]).sub_(half[sets, None])
            if doubts is None:
                chosen = _nearest_centres(part, near[sets], close, slack)
            else:
                chosen = _nearest_rivals(points[sets], start, centres[sets], close, slack, doubts)
            cluster[sets, start : start + part.shape[1]] = chosen
    # What a set has too few of is at place n, one behind the points.
    return cluster.scatter_(1, centres, torch.arange(count, device=points.device).expand(groups, -1))[:, :size]


def _nearest_centres(points: Tensor, near: Tensor, close: Tensor, slack: Tensor) -> Tensor:
    """Places (G, p) of the nearest of the centres near (G, m, D), the first of equals, for points (G, p, D).

    Where a product cannot tell, distances are taken from differences, and argmin finds the first.

    Args:
        close: (G, p, m) closenesses, less the points' own share.
        slack: what two of them must differ by to tell.
    """
    best, chosen = close.max(dim=2)
    second = close.scatter(2, chosen[..., None], -torch.inf).amax(2)
    unsure = (second > best - slack).nonzero(as_tuple=True)
    if len(unsure[0]) == 0:
        return chosen
    doubtful = close[unsure] > (best[unsure] - slack)[:, None]
    row, column = doubtful.nonzero(as_tuple=True)
    exact = close.new_full(doubtful.shape, torch.inf)
    set_of, place = unsure[0][row], unsure[1][row]
    for first in range(0, len(row), pairs := distance_rows(points, 1)):
        chunk = slice(first, first + pairs)
        a, b = points[set_of[chunk], place[chunk]], near[set_of[chunk], column[chunk]]
        exact[row[chunk], column[chunk]] = distances(a, b[:, None])[:, 0]
    chosen[unsure] = exact.argmin(1)
    return chosen


def _nearest_rivals(
    points: Tensor, start: int, centres: Tensor, close: Tensor, slack: Tensor, doubts: Doubts
) -> Tensor:
    """The same with fixed shapes: the distances to the few closest centres of every point are taken again.

    Args:
        points: (G, n, D), of which close (G, p, m) are those from `start` on; centres: (G, m), n for padding.
    """
    groups, rows, count = close.shape
    size = points.shape[1]
    values, rivals = close.topk(min(RIVALS + 1, count), dim=2)
    if count > RIVALS:
        doubts.add((values[..., -1] > values[..., 0] - slack).any())
    rivals, order = rivals[..., :RIVALS].sort(dim=2)  # by index, so that argmin finds the lowest of equals
    within = values.gather(2, order) > values[..., :1] - slack
    others = centres.clamp(max=size - 1).gather(1, rivals.flatten(1)).view(rivals.shape)
    base = size * torch.arange(groups, device=close.device)[:, None]
    own = base + torch.arange(start, start + rows, device=close.device)
    exact = recheck(points.flatten(0, 1), own.flatten(), (others + base[..., None]).flatten(0, 1))
    exact = exact.view(rivals.shape).masked_fill_(~within, torch.inf)
    return rivals.gather(2, exact.argmin(2, keepdim=True))[..., 0]


def _density(near: Tensor, num_neighbors: int, itself: bool) -> Tensor:
    """(.., n) fp64 densities from distances (.., n, any) to the nearest others, in any order, infinite where none."""
    if itself:
        near = torch.nn.functional.pad(near, (1, 0))
    near = near.double().sort(dim=-1).values[..., :num_neighbors]
    there = near < torch.inf
    # Always k terms, so that a point's density does not depend on what its set is batched with.
    near = torch.nn.functional.pad(near.masked_fill(~there, 0), (0, num_neighbors - near.shape[-1]))
    return torch.exp(-near.square().sum(-1) / there.sum(-1).clamp(min=1))


def _rank(density: Tensor, strict: bool) -> tuple[Tensor, Tensor]:
    """Points from the densest on, the lower index first among equals, and how many points are denser than each."""
    density, order = density.sort(dim=-1, descending=True, stable=True)
    places = torch.arange(density.shape[-1], device=density.device).expand_as(order)
    if strict:
        equal = torch.nn.functional.pad(density[..., 1:] == density[..., :-1], (1, 0))
        places = places.masked_fill(equal, 0).cummax(-1).values
    return order, torch.empty_like(order).scatter_(-1, order, places)


def _score(density: Tensor, separation: Tensor) -> Tensor:
    """Density times separation, where a density too small for a number counts as the smallest one."""
    return density.clamp(min=torch.finfo(torch.float64).tiny) * separation.double()


def _scores_dense(
    points: Tensor,
    num_neighbors: int,
    itself: bool,
    strict: bool,
    sizes: Sequence[int] | None,
    doubts: Doubts | None,
) -> Tensor:
    """Scores (G, n) of G sets small enough for all their closenesses at once; -1 for padding."""
    groups, width, dim = points.shape
    flat = points.reshape(-1, dim)
    base = (torch.arange(groups, device=points.device) * width)[:, None, None]
    rows = torch.arange(groups * width, device=points.device)
    half, spare = half_squares(points), spares(doubts)
    slack = 2 * product_error(points, half)
    there = None if sizes is None else first_places(sizes, width, points.device)
    if there is not None:
        half = half.masked_fill_(~there, torch.inf)
    close = products(points, points).sub_(half[..., None]).sub_(half[:, None])
    close.diagonal(dim1=1, dim2=2).fill_(-torch.inf)

    def exact(neighbors: Tensor, known: Tensor) -> Tensor:
        result = recheck(flat, rows, (neighbors + base).flatten(0, 1)).view(neighbors.shape)
        return result.masked_fill_(known == -torch.inf, torch.inf)

    needed = num_neighbors - itself
    near = close.topk(min(needed + spare, width - 1), dim=2)
    lengths = exact(near.indices, near.values)
    density = _density(lengths, num_neighbors, itself)
    if near.values.shape[2] < width - 1:
        unsure = open_ends(near.values, lengths, needed, slack)
        for group in _those(unsure, doubts):
            far = distances_to_all(points[group], unsure[group], None if sizes is None else sizes[group])
            density[group, unsure[group]] = _density(far, num_neighbors, itself)
    if there is not None:
        density = density.masked_fill(~there, -1)
    _, rank = _rank(density, strict)
    close.masked_fill_(rank[:, None] >= rank[..., None], -torch.inf)
    denser = close.topk(min(spare, width), dim=2)
    lengths = exact(denser.indices, denser.values)
    separation = lengths.amin(2)
    unsure = open_ends(denser.values, lengths, 1, slack)
    for group in _those(unsure, doubts):
        separation[group, unsure[group]] = distance_to_denser(points[group], unsure[group], rank[group])
    scores = _score(density, separation)
    return scores if there is None else scores.masked_fill(~there, -1)


def _those(unsure: Tensor, doubts: Doubts | None) -> list[int]:
    """The sets (G, n) with points that need another look; none, but a doubt, with fixed shapes."""
    if doubts is None:
        groups: list[int] = unsure.any(1).nonzero()[:, 0].tolist()
        return groups
    doubts.add(unsure.any())
    return []


def _scores_blocked(search: Search, num_neighbors: int, itself: bool, strict: bool) -> Tensor:
    """Scores (n,) of one large set."""
    points, size = search.points, len(search.points)
    needed = num_neighbors - itself
    close, near = search.nearest(min(needed + spares(search.doubts), size - 1))
    lengths = close.new_full(close.shape, torch.inf)

    def measure(asked: Tensor, columns: slice) -> None:
        lengths[asked, columns] = recheck(points, asked, near[asked, columns])

    # Spare neighbours are measured where they may matter; with fixed shapes nobody knows where, so all are.
    first = close.shape[1] if search.fixed else max(1, min(needed, close.shape[1]))
    measure(torch.arange(size, device=points.device), slice(0, first))
    complete = near.shape[1] == size - 1
    spare = slice(first, None)
    if first < close.shape[1]:
        close_call = close[:, first - 1] - close[:, first] <= 2 * search.error
        measure(close_call.nonzero()[:, 0], spare)
    density = _density(lengths, num_neighbors, itself)
    if not complete:
        unsure = open_ends(close, lengths, needed, 2 * search.error)
        if _those(unsure[None], search.doubts):
            density[unsure] = _density(distances_to_all(points, unsure), num_neighbors, itself)
    order, rank = _rank(density, strict)
    # The nearest denser point is often among the neighbours known already: any point not among them is at least as
    # far as the last of them, less the error of products.
    denser = rank[near] < rank[:, None]
    separation = lengths.masked_fill(~denser, torch.inf).amin(1)
    if first < close.shape[1]:
        nearer = denser[:, spare].any(1) & (separation > search.distance(close[:, first]))
        measure(nearer.nonzero()[:, 0], spare)
        separation = lengths.masked_fill(~denser, torch.inf).amin(1)
    known = (separation <= search.distance(close[:, -1])) | complete | (rank == 0)
    return _score(density, search.nearest_denser(order, rank, ~known, separation))
