"""Density peaks (DPC-KNN) and nearest centres, exact, without an n x n matrix in memory.

Tango, arXiv 2604.09547, clustering (step 7). Pure, batched functions.

Matrix products find which points are near; they are fast but round differently from block to block. The few distances
that decide anything are then taken again from differences, `distances()`, which is symmetric, exactly 0 for equal
points, and the same in every block: so equal points tie, ties go to the lower index, and the memory limit cannot
change a result. Closeness below is -distance^2 / 2 as a product gives it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

SPARE = 4  # neighbours kept beyond those asked for, so that rounding of products cannot hide a true one
CACHE_ELEMENTS = 1 << 22  # on a CPU larger blocks only leave the cache
HEAD = 128  # directions of the screening product
SCREEN_BLOCKS = 4  # sets of fewer blocks are not worth screening


class Peaks(NamedTuple):
    """Density peaks of G sets.

    indices: (G, m) int64 by score, highest first.
    scores: (G, m) fp64, density times separation; infinite for the densest point, 0 only for a copy of a denser one
        (a copy that counts as less dense, for its index).
    """

    indices: Tensor
    scores: Tensor


def distances(points: Tensor, others: Tensor) -> Tensor:
    """Euclidean distances from differences.

    Args:
        points: (p, D) fp32.
        others: (p, q, D) fp32, q points to compare with each.

    Returns:
        (p, q) fp32.
    """
    return torch.cdist(points[:, None], others, compute_mode="donot_use_mm_for_euclid_dist")[:, 0]


def density_peaks(
    points: Tensor,
    count: int,
    num_neighbors: int = 7,
    memory_limit: float = 256,
    itself: bool = False,
    strict: bool = False,
) -> Peaks:
    """The `count` points that are dense and far from any denser point.

    Density is exp(-mean of the squared distances to the k nearest other points), separation the distance to the
    nearest denser point. A point is denser than another if its density is larger, or equal and its index lower. The
    densest point has no denser one; its separation is by definition the largest distance of the set, which always
    makes its score the highest, so that distance is not computed. Equal scores go to the lower index.

    Args:
        points: (G, n, D) fp32, G independent sets, of lengths around 1 (unit vectors, or features / sqrt(D)).
        count: peaks to find, 1 to n.
        num_neighbors: k, at least 1; the n - 1 others if there are fewer.
        memory_limit: MiB that temporary blocks may take (no less than a block of 64 x 64 is used).
        itself: count a point, at distance 0, as the first of its own k neighbours, as FastVID (arXiv 2503.11187),
            HoliTom (arXiv 2505.21334), FlashVID (arXiv 2602.08024) and PruneVid (arXiv 2412.16117) do.
        strict: of points of equal density none counts as denser, as in FlashVID's code without its random noise.

    Raises:
        ValueError: count is not in 1 .. n.
    """
    size = points.shape[1]
    if not 1 <= count <= size:
        raise ValueError(f"count = {count}: expected 1 to {size}, the number of points")
    elements = _block_elements(points, memory_limit)
    if size * size <= elements:
        parts = torch.split(points, max(1, elements // (size * size)))
        scores = torch.cat([_scores_dense(part, num_neighbors, itself, strict) for part in parts])
    else:
        edge = math.isqrt(elements)
        scores = torch.stack([_scores_blocked(part, num_neighbors, edge, itself, strict) for part in points])
    scores, indices = scores.sort(dim=1, descending=True, stable=True)
    return Peaks(indices[:, :count], scores[:, :count])


def assign(points: Tensor, peaks: Peaks, memory_limit: float = 256, by_score: bool = False) -> Tensor:
    """Join every point to its nearest centre; the lower index among equals, and every centre to itself.

    Args:
        points: (G, n, D) fp32.
        peaks: m centres of each set, from density_peaks().
        memory_limit: as in density_peaks().
        by_score: take the centre of higher score among equals, as PruneVid (arXiv 2412.16117) does.

    Returns:
        (G, n) int64 in 0 .. m-1: the centre's place among the set's centres in ascending order of index, or, by_score,
        among peaks.indices.
    """
    groups, size, dim = points.shape
    centres, order = peaks.indices.sort(dim=1)
    if by_score:
        centres, order = peaks.indices, torch.arange(centres.shape[1], device=points.device).expand_as(order)
    count = centres.shape[1]
    near = points.gather(1, centres[..., None].expand(-1, -1, dim))
    # A copy of a denser point has score 0. All points with higher scores are then centres too, the original among
    # them, at a lower index: no point but itself may join it.
    copies = peaks.scores.gather(1, order) == 0
    half = (near.square().sum(2) / 2).masked_fill_(copies, torch.inf)
    slack = 2 * _product_error(points)
    cluster = torch.empty(groups, size, dtype=torch.int64, device=points.device)
    elements = _block_elements(points, memory_limit)
    for group in range(0, groups, step := max(1, elements // (size * count))):
        sets = slice(group, group + step)
        for start in range(0, size, rows := max(1, elements // (count * len(near[sets])))):
            part = points[sets, start : start + rows]
            close = torch.bmm(part, near[sets].mT).sub_(half[sets, None])
            best, chosen = close.max(dim=2)
            second = close.scatter(2, chosen[..., None], -torch.inf).amax(2)
            unsure = (second > best - slack).nonzero(as_tuple=True)
            if len(unsure[0]):
                # Too close for a product to tell: take those distances from differences, argmin finds the first.
                doubtful = close[unsure] > (best[unsure] - slack)[:, None]
                row, column = doubtful.nonzero(as_tuple=True)
                exact = close.new_full(doubtful.shape, torch.inf)
                set_of, place = unsure[0][row], unsure[1][row]
                for first in range(0, len(row), pairs := _distance_rows(points, 1)):
                    chunk = slice(first, first + pairs)
                    a, b = part[set_of[chunk], place[chunk]], near[sets][set_of[chunk], column[chunk]]
                    exact[row[chunk], column[chunk]] = distances(a, b[:, None])[:, 0]
                chosen[unsure] = exact.argmin(1)
            cluster[sets, start : start + rows] = chosen
    return cluster.scatter_(1, centres, torch.arange(count, device=points.device).expand(groups, -1))


def _block_elements(points: Tensor, memory_limit: float) -> int:
    """How many fp32 numbers a block of closenesses may hold; about four blocks' worth is alive at once."""
    elements = max(64 * 64, int(memory_limit * 2**20) // 16)
    return min(elements, CACHE_ELEMENTS) if points.device.type == "cpu" else elements


def _distance_rows(points: Tensor, count: int) -> int:
    """How many points to compare at a time with `count` others each: the copies of those stay in a CPU's cache."""
    elements = 1 << 19 if points.device.type == "cpu" else 1 << 24
    return max(1, elements // max(1, count * points.shape[-1]))


def _product_error(points: Tensor) -> float:
    """Bound of the rounding error of an inner product of points, generous for any order of summation in use."""
    longest = float(points.square().sum(-1).amax())
    return 4 * math.sqrt(points.shape[-1]) * torch.finfo(torch.float32).eps * longest


def _half_squares(points: Tensor) -> Tensor:
    return points.square().sum(-1) / 2


def _recheck(points: Tensor, rows: Tensor, others: Tensor) -> Tensor:
    """Distances from differences between points[rows] and points[others]; points (T, D), rows (p,), others (p, q)."""
    result = torch.empty(others.shape, device=points.device)
    step = _distance_rows(points, others.shape[1])
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        gathered = points.index_select(0, others[part].flatten())
        result[part] = distances(points[rows[part]], gathered.view(*others[part].shape, points.shape[1]))
    return result


def _density(near: Tensor, num_neighbors: int, itself: bool) -> Tensor:
    """(.., n) fp64 densities from distances (.., n, >= k) to the nearest other points, in any order."""
    if itself:
        near = torch.nn.functional.pad(near, (1, 0))
    near = near.double().sort(dim=-1).values[..., :num_neighbors]
    if near.shape[-1] == 0:
        return torch.ones(near.shape[:-1], dtype=torch.float64, device=near.device)
    return torch.exp(-near.square().mean(-1))


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


def _scores_dense(points: Tensor, num_neighbors: int, itself: bool, strict: bool) -> Tensor:
    """Scores (G, n) of G sets small enough for all their closenesses at once."""
    groups, size, dim = points.shape
    flat = points.reshape(-1, dim)
    base = (torch.arange(groups, device=points.device) * size)[:, None, None]
    rows = torch.arange(groups * size, device=points.device)
    half = _half_squares(points)
    close = torch.bmm(points, points.mT).sub_(half[..., None]).sub_(half[:, None])
    close.diagonal(dim1=1, dim2=2).fill_(-torch.inf)

    def exact(neighbors: Tensor) -> Tensor:
        return _recheck(flat, rows, (neighbors + base).flatten(0, 1)).view(neighbors.shape)

    near = close.topk(min(num_neighbors + SPARE, size - 1), dim=2, sorted=False).indices
    density = _density(exact(near), num_neighbors, itself)
    _, rank = _rank(density, strict)
    close.masked_fill_(rank[:, None] >= rank[..., None], -torch.inf)
    denser = close.topk(min(SPARE, size), dim=2, sorted=False)
    separation = exact(denser.indices).masked_fill_(denser.values == -torch.inf, torch.inf).amin(2)
    return _score(density, separation)


def _scores_blocked(points: Tensor, num_neighbors: int, edge: int, itself: bool, strict: bool) -> Tensor:
    """Scores (n,) of one large set (n, D), from blocks of edge x edge closenesses."""
    size = points.shape[0]
    half = _half_squares(points)
    close, near = _nearest(points, half, min(num_neighbors + SPARE, size - 1), edge)
    rows = torch.arange(size, device=points.device)
    exact = _recheck(points, rows, near)
    density = _density(exact, num_neighbors, itself)
    order, rank = _rank(density, strict)
    # The nearest denser point is often among the neighbours known already: any point not among them is at least as
    # far as the last of them, less the error of products.
    separation = exact.masked_fill(rank[near] >= rank[:, None], torch.inf).amin(1)
    beyond = (-2 * close[:, -1] - 4 * _product_error(points)).clamp_(min=0).sqrt_()
    known = (separation <= beyond) | (near.shape[1] == size - 1)
    known |= rank == 0
    queries = order[~known[order]]
    separation[queries] = _nearest_denser(points, half, order, rank, queries, edge)
    return _score(density, separation)


def _nearest(points: Tensor, half: Tensor, count: int, edge: int) -> tuple[Tensor, Tensor]:
    """Closeness and index (n, count), closest first, of each point's nearest others.

    Each block of the symmetric matrix above the diagonal serves its rows and its columns. Blocks nearest the diagonal
    come first: tokens close in time are close in angle, so that later blocks hold little of interest, and a product
    of their heads alone (see _heads) tells which rows and columns can be left out.
    """
    size, dim = points.shape
    best = points.new_full((size, count), -torch.inf)
    index = torch.zeros(size, count, dtype=torch.int64, device=points.device)
    blocks = list(_blocks(size, edge))
    everyone = torch.arange(size, device=points.device)
    buffer = points.new_empty(edge * edge)
    heads = _heads(points, half) if len(blocks) >= SCREEN_BLOCKS and dim >= 4 * HEAD else None
    screen_from = 1
    for offset in range(len(blocks)):
        asked = total = 0
        for rows, columns in zip(blocks, blocks[offset:], strict=False):
            row_ids, column_ids = everyone[rows], everyone[columns]
            if heads is not None and offset >= screen_from:
                bound = _closeness(heads, half, row_ids, column_ids, buffer)
                few_rows = row_ids[bound.amax(1) > best[row_ids, -1]]
                few_columns = column_ids[bound.amax(0) > best[column_ids, -1]]
                asked += len(few_rows) + len(few_columns)
                total += len(row_ids) + len(column_ids)
                if 2 * (len(few_rows) + len(few_columns)) < len(row_ids) + len(column_ids):
                    _offer(best, index, few_rows, _closeness(points, half, few_rows, column_ids, buffer), columns.start)
                    _offer(best, index, few_columns, _closeness(points, half, few_columns, row_ids, buffer), rows.start)
                    continue
            close = _closeness(points, half, row_ids, column_ids, buffer)
            if offset == 0:
                close.fill_diagonal_(-torch.inf)
            else:
                _offer(best, index, column_ids, close.T, rows.start)
            _offer(best, index, row_ids, close, columns.start)
        if 2 * asked > total:
            screen_from = 2 * offset  # nothing gained so near the diagonal: try again farther out
    return best, index


def _closeness(points: Tensor, half: Tensor, rows: Tensor, columns: Tensor, buffer: Tensor) -> Tensor:
    """-distance^2 / 2 (rows, columns) from a product, in the memory of the buffer (valid until its next use)."""
    shape = len(rows), len(columns)
    close = torch.mm(points[rows], points[columns].T, out=buffer[: shape[0] * shape[1]].view(shape))
    return close.sub_(half[rows, None]).sub_(half[columns])


def _heads(points: Tensor, half: Tensor) -> Tensor:
    """(n, HEAD + 1) vectors whose inner products are upper bounds of those of the points.

    A head is a point's share in the few directions in which the points differ most, with the length of the rest
    behind it: x . y = head . head + rest . rest, and rest . rest is at most the product of the lengths. The directions
    only need to be orthonormal for the bound to hold; power iteration on a sample finds good ones.
    """
    size, dim = points.shape
    # Any orthonormal directions will do, so a fixed seed; drawn on the CPU, the same on every device.
    generator = torch.Generator().manual_seed(0)
    sample = points[torch.randint(size, (8 * HEAD,), generator=generator).to(points.device)]
    basis = torch.randn(dim, HEAD, generator=generator).to(points.device)
    for _ in range(3):
        basis = torch.linalg.qr(sample.T @ (sample @ basis)).Q
    heads = points.new_empty(size, HEAD + 1)
    torch.mm(points, basis, out=heads[:, :HEAD])
    # Rounding must not make the bound too low: lengthen the rests by more than the products can be off.
    rest = 2 * half - heads[:, :HEAD].square().sum(1)
    heads[:, HEAD] = rest.clamp_(min=0).add_(8 * _product_error(points)).sqrt_()
    return heads


def _nearest_denser(points: Tensor, half: Tensor, order: Tensor, rank: Tensor, queries: Tensor, edge: int) -> Tensor:
    """Distance of each query to its nearest denser point; queries in descending density, none the densest."""
    result = points.new_empty(len(queries))
    for start in range(0, len(queries), edge):
        asked = queries[start : start + edge]
        places = rank[asked]
        first, last = int(places[0]), int(places[-1])
        best = points.new_full((len(asked), min(SPARE, last)), -torch.inf)
        index = torch.zeros(best.shape, dtype=torch.int64, device=points.device)
        vectors, everyone = points[asked], torch.arange(len(asked), device=points.device)
        for keys in _blocks(last, edge):
            denser = order[keys]
            close = torch.mm(vectors, points[denser].T).sub_(half[asked, None]).sub_(half[denser])
            if keys.stop > first:
                hidden = torch.arange(keys.start, keys.stop, device=points.device) >= places[:, None]
                close.masked_fill_(hidden, -torch.inf)
            _offer(best, index, everyone, close, keys.start)
        exact = _recheck(points, asked, order[index]).masked_fill_(best == -torch.inf, torch.inf)
        result[start : start + edge] = exact.amin(1)
    return result


def _offer(best: Tensor, index: Tensor, rows: Tensor, close: Tensor, first: int) -> None:
    """Update the lists of `rows` with a block of closenesses (rows, columns) whose first column is point `first`."""
    if len(rows) == 0:
        return
    hit = (close.amax(1) > best[rows, -1]).nonzero()[:, 0]
    if len(hit) == 0:
        return
    values, columns = close.index_select(0, hit).topk(min(best.shape[1], close.shape[1]), dim=1, sorted=False)
    hit = rows[hit]
    values = torch.cat([best[hit], values], dim=1)
    columns = torch.cat([index[hit], columns + first], dim=1)
    values, places = values.topk(best.shape[1], dim=1)
    best[hit] = values
    index[hit] = columns.gather(1, places)


def _blocks(size: int, edge: int) -> Iterator[slice]:
    return (slice(start, min(start + edge, size)) for start in range(0, size, edge))
