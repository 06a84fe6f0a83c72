"""Density peaks (DPC-KNN) and the clusters around them, exact, for many sets of points at a time.

The clustering of Tango, arXiv 2604.09547, steps 4 and 5 of docs/method.md. Matrix products find which points are near:
they are fast, but round differently from block to block. The few distances that decide anything are then taken again
from differences, which is symmetric, exactly 0 for equal points, and the same in every block. So equal points tie, ties
go to the lower index, and neither the memory limit nor what else is in a batch can change a result. Closeness below is
-distance^2 / 2 as a product gives it.
"""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from tango.ops.blocks import denser_in_blocks, nearest_in_blocks

SPARE = 2  # neighbours listed beyond those asked for, so that rounding seldom leaves open which are the nearest
CACHED = 1 << 21  # numbers: on a CPU larger blocks only leave the cache
STRIP = 256  # rows of own_products() at a time
# Multiplications worth wasting on padding to save a batch. On a GPU batching is what matters (8 times at 32 frames, see
# results/performance/ways_cuda.md); on a CPU only sets of about the same size, or small ones, share a batch.
PADDING = {"cpu": 1 << 23}


class Peaks(NamedTuple):
    """Density peaks of G sets.

    indices: (G, m) int64 by score, highest first; n, the width of the sets, where a set has fewer than m.
    scores: (G, m) fp64, infinite for the densest point, 0 only for a copy of an earlier one, -1 where there is no peak.
    """

    indices: Tensor
    scores: Tensor


class Clusters(NamedTuple):
    """Sets that lie one behind the other, n points in all, as M clusters.

    anchors: (M,) int64 in 0 .. n-1, the centre of each cluster; sets in order, ascending in each set.
    by_score: (M,) the same anchors, but those of a set in order of score, highest first.
    labels: (n,) int64, the cluster of each point; M for points of a set that gets none.
    """

    anchors: Tensor
    by_score: Tensor
    labels: Tensor


def cluster(
    vectors: Callable[[Tensor], Tensor],
    width: int,
    sizes: Sequence[int],
    counts: Sequence[int],
    device: torch.device,
    num_neighbors: int = 7,
    memory_limit: float = 256,
) -> Clusters:
    """Cluster each set around its density peaks. A set of no more points than asked for: each point by itself.

    Args:
        vectors: gives the vectors (g, p, width) of points (g, p) int64, when they are needed.
        sizes: points of each set: the first sizes[0] points are the first set, and so on.
        counts: clusters to make of each set, at most; 0 drops the set.
    """
    total = sum(sizes)
    kept = [min(pair) for pair in zip(sizes, counts, strict=True)]
    starts, firsts = list(accumulate(sizes, initial=0)), list(accumulate(kept, initial=0))
    # One more of each than there are, for what pads a batch.
    anchors, labels = torch.zeros(firsts[-1] + 1, dtype=torch.int64), torch.full((total + 1,), firsts[-1])
    for size, count, start, first in zip(sizes, kept, starts, firsts, strict=False):
        if size == count:
            anchors[first : first + size] = torch.arange(start, start + size)
            labels[start : start + size] = torch.arange(first, first + size)
    anchors, labels = anchors.to(device), labels.to(device)
    by_score = anchors.clone()
    crowded = [number for number, size in enumerate(sizes) if size > kept[number] > 0]
    for batch in _batches([sizes[number] for number in crowded], width, device, memory_limit):
        sets = [crowded[place] for place in batch]
        held, wanted = [sizes[number] for number in sets], [kept[number] for number in sets]
        begin = torch.tensor([starts[number] for number in sets], device=device)[:, None]
        slot = torch.tensor([firsts[number] for number in sets], device=device)[:, None]
        places = begin + torch.arange(max(held), device=device)
        points = vectors(places.clamp(max=total - 1))
        peaks = density_peaks(points, wanted, num_neighbors, memory_limit, sizes=held)
        places.masked_fill_(~_real(held, max(held), device), total)
        labels[places] = slot + assign(points, peaks, memory_limit)
        slots = slot + torch.arange(max(wanted), device=device)
        slots.masked_fill_(~_real(wanted, max(wanted), device), firsts[-1])
        anchors[slots], by_score[slots] = begin + peaks.indices.sort(dim=1).values, begin + peaks.indices
    return Clusters(anchors[:-1], by_score[:-1], labels[:-1])


def density_peaks(
    points: Tensor,
    count: int | Sequence[int],
    num_neighbors: int = 7,
    memory_limit: float = 256,
    itself: bool = False,
    strict: bool = False,
    sizes: Sequence[int] | None = None,
) -> Peaks:
    """The `count` points that are dense and far from any denser point.

    Density is exp(-mean of the squared distances to the k nearest other points), separation the distance to the
    nearest denser point. A point is denser than another if its density is larger, or equal and its index lower. The
    densest point's separation, by definition the largest distance of the set, makes its score the highest in any case,
    so it is not computed. Equal scores go to the lower index.

    Args:
        points: (G, n, D) fp32, G independent sets, of lengths around 1 (unit vectors, or features / sqrt(D)).
        count: peaks to find, 1 to the number of points, of every set or of each.
        num_neighbors: k; the n - 1 others if there are fewer. memory_limit: MiB that temporary blocks may take.
        itself: count a point, at distance 0, as the first of its own k neighbours, as FastVID (arXiv 2503.11187),
            HoliTom (arXiv 2505.21334), FlashVID (arXiv 2602.08024) and PruneVid (arXiv 2412.16117) do.
        strict: of points of equal density none counts as denser, as in FlashVID's code without its random noise.
        sizes: how many points each set has, its first ones; None: all have n.

    Raises:
        ValueError: a count is not in 1 .. the number of points.
    """
    groups, width, _ = points.shape
    counts = [count] * groups if isinstance(count, int) else list(count)
    sizes = [width] * groups if sizes is None else list(sizes)
    for wanted, size in zip(counts, sizes, strict=True):
        if not 1 <= wanted <= size:
            raise ValueError(f"count = {wanted}: expected 1 to {size}, the number of points")
    elements = _block_elements(points.device, memory_limit)
    edge, step = math.isqrt(elements), max(1, elements // (width * width))
    scores = points.new_full((groups, width), -1, dtype=torch.float64)
    for start in range(0, groups, step):
        part, held = slice(start, start + step), max(sizes[start : start + step])
        real = _real(sizes[part], held, points.device)
        scores[part, :held] = _scores(points[part, :held], real, num_neighbors, itself, strict, edge)
    scores, indices = scores.sort(dim=1, descending=True, stable=True)
    missing = ~_real(counts, max(counts), points.device)
    scores, indices = scores[:, : max(counts)], indices[:, : max(counts)]
    return Peaks(indices.masked_fill(missing, width), scores.masked_fill(missing, -1))


def assign(points: Tensor, peaks: Peaks, memory_limit: float = 256, by_score: bool = False) -> Tensor:
    """Join every point to its nearest centre; the lower index among equals, and every centre to itself.

    Args:
        points: (G, n, D) fp32.
        peaks: m centres of each set.
        by_score: take the centre of higher score among equals, as PruneVid (arXiv 2412.16117) does.

    Returns:
        (G, n) int64 in 0 .. m-1: the centre's place among the set's centres in ascending order of index, or, by_score,
        among peaks.indices. Whatever is padding joins some centre, too.
    """
    groups, size, dim = points.shape
    order = peaks.indices.argsort(dim=1)
    centres, scores = peaks if by_score else [x.gather(1, order) for x in peaks]
    padded, count = centres, centres.shape[1]
    centres = centres.clamp(max=size - 1)
    table, base = points.flatten(0, 1), size * torch.arange(groups, device=points.device)[:, None]
    near = points.gather(1, centres[..., None].expand(-1, -1, dim))
    half = torch.linalg.vector_norm(points, dim=-1).square_() / 2
    slack = _slack(half, dim)
    # A copy of an earlier point has score 0. The original is then a centre too: no other point may join the copy.
    half = half.gather(1, centres).masked_fill_(scores <= 0, torch.inf)
    labels = torch.empty(groups, size + 1, dtype=torch.int64, device=points.device)
    for start in range(0, size, rows := max(1, _block_elements(points.device, memory_limit) // (count * groups))):
        part = slice(start, min(start + rows, size))
        close = torch.bmm(points[:, part], near.mT).sub_(half[:, None])
        best, chosen = close.max(dim=2)
        # Where a product cannot tell, distances decide.
        second = close.scatter(2, chosen[..., None], -torch.inf).amax(2)
        of, place = (second > best - slack).nonzero(as_tuple=True)
        own = base[of, 0] + start + place
        chosen[of, place] = _nearest(table, own, (base + centres)[of], close[of, place], slack)[1]
        labels[:, part] = chosen
    # What a set has too few of is at place n, one behind the points.
    return labels.scatter_(1, padded, torch.arange(count, device=points.device).expand(groups, -1))[:, :size]


def own_products(points: Tensor) -> Tensor:
    """Inner products (G, n, n) of points (G, n, D) with themselves. Those below the diagonal are copies.

    Of 1,450 points on a CPU this takes half the time of a whole product.
    """
    groups, size, _ = points.shape
    products = points.new_empty(groups, size, size)
    for start in range(0, size, STRIP):
        stop = start + STRIP
        products[:, start:stop, start:] = points[:, start:stop] @ points[:, start:].mT
        products[:, stop:, start:stop] = products[:, start:stop, stop:].mT
    return products


def distances(points: Tensor, others: Tensor) -> Tensor:
    """Euclidean distances (p, q) fp32 of points (p, D) from others (p, q, D), q to compare with each.

    From differences: symmetric, 0 for equal points, the same bits in every block.
    """
    return torch.cdist(points[:, None], others, compute_mode="donot_use_mm_for_euclid_dist")[:, 0]


def _scores(points: Tensor, real: Tensor, k: int, itself: bool, strict: bool, edge: int) -> Tensor:
    """Scores (G, n) of G sets (G, n, D), -1 where points are not `real`.

    A set of more than `edge` points is alone, and its closenesses are taken in blocks.
    """
    groups, size, dim = points.shape
    table, half = points.reshape(-1, dim), torch.linalg.vector_norm(points, dim=-1).square_() / 2
    slack, half = _slack(half, dim), half.masked_fill(~real, torch.inf)
    needed = min(max(1, k - itself), size)
    listed, rows_at_once = min(needed + SPARE, size), max(1, edge * edge // size)
    everyone = torch.arange(len(table), device=points.device).view(groups, size)
    if size <= edge:
        close = own_products(points).sub_(half[..., None]).sub_(half[:, None])
        close.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        values, near = close.topk(listed, dim=2)
        values, near = values.flatten(0, 1), (near + everyone[:, :1, None]).flatten(0, 1)
    else:
        close = None
        values, near = nearest_in_blocks(table, half[0], listed, edge, slack, own_products)
    lengths = _measure(table, everyone.flatten(), near).masked_fill_(values == -torch.inf, torch.inf)
    density = _density(lengths, k, itself)

    def closeness_of(some: Tensor) -> tuple[Tensor, Tensor]:
        """All points of the sets of some points (p,), (n,) or (p, n), and their closeness (p, n) to these."""
        if close is not None:
            return everyone[some // size], close.flatten(0, 1)[some]
        found = (table[some] @ table.T).sub_(half[0, some, None]).sub_(half[0])
        return everyone[0], found.scatter_(1, some[:, None], -torch.inf)

    # Where a point that is not listed may be among the nearest, look at all; none is nearer than copies, at 0.
    last = values[:, -1]
    unsure = (values[:, needed - 1] - last <= slack) & (last > -torch.inf) & (lengths.amax(1) > 0)
    for some in torch.split(unsure.nonzero()[:, 0], rows_at_once):
        least = values[some, needed - 1, None] - slack
        density[some] = _density(_measure_near(table, some, *closeness_of(some), least), k, itself)
    density = density.view(groups, size).masked_fill(~real, -1)
    rank = _rank(density, strict).flatten()
    # The nearest denser point is often listed already. Where one that is not may be nearer, look at all.
    separation = lengths.masked_fill_(rank[near] >= rank[:, None], torch.inf).amin(1)
    beyond = (-2 * last - 3 * slack).clamp_(min=0).sqrt_()  # infinite where all are listed
    asked = ((separation > beyond) & (rank > 0)).nonzero()[:, 0]
    whole = ((some, *closeness_of(some)) for some in torch.split(asked, rows_at_once))
    for some, others, found in whole if size <= edge else denser_in_blocks(table, half[0], rank, asked, edge):
        found.masked_fill_(rank[others] >= rank[some, None], -torch.inf)
        separation[some] = separation[some].minimum(_nearest(table, some, others, found, slack)[0])
    # A density too small for a number counts as the smallest one.
    scores = density.clamp(min=torch.finfo(torch.float64).tiny) * separation.view(groups, size).double()
    return scores.masked_fill(~real, -1)


def _nearest(table: Tensor, rows: Tensor, others: Tensor, close: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
    """Distance from rows (q,) of a table to the nearest of others (p,) or (q, p), and its place, the first of equals.

    close: (q, p), -inf for those that do not count.
    """
    lengths = _measure_near(table, rows, others, close, close.amax(1, keepdim=True) - slack)
    nearest = lengths.argmin(1)
    return lengths.gather(1, nearest[:, None])[:, 0], nearest


def _measure_near(table: Tensor, rows: Tensor, others: Tensor, close: Tensor, least: Tensor) -> Tensor:
    """Distances (q, p) from rows (q,) of a table to others (p,) or (q, p), of those at least this close, (q, 1)."""
    row, place = (close >= least).nonzero(as_tuple=True)
    lengths = torch.full_like(close, torch.inf)
    lengths[row, place] = _measure(table, rows[row], others.expand(close.shape)[row, place, None])[:, 0]
    return lengths


def _measure(table: Tensor, rows: Tensor, others: Tensor) -> Tensor:
    """Distances (p, q) from differences between rows (p,) and others (p, q) of a table (T, D)."""
    result = torch.empty(others.shape, dtype=torch.float32, device=table.device)
    numbers = CACHED >> 2 if table.device.type == "cpu" else 1 << 24  # copies of points at a time
    for start in range(0, len(rows), step := max(1, numbers // max(1, others.shape[1] * table.shape[1]))):
        part = slice(start, start + step)
        gathered = table.index_select(0, others[part].flatten()).view(*others[part].shape, table.shape[1])
        result[part] = distances(table.index_select(0, rows[part]), gathered)
    return result


def _density(near: Tensor, k: int, itself: bool) -> Tensor:
    """(n,) fp64 densities from distances (n, any) to the nearest others, in any order, infinite where none."""
    if itself:
        near = torch.nn.functional.pad(near, (1, 0))
    near = near.double().sort(dim=-1).values[..., :k]
    known = near < torch.inf
    # Always k terms, so that a point's density does not depend on what its set is batched with.
    near = torch.nn.functional.pad(near.masked_fill(~known, 0), (0, k - near.shape[-1]))
    return torch.exp(-near.square().sum(-1) / known.sum(-1).clamp(min=1))


def _rank(density: Tensor, strict: bool) -> Tensor:
    """How many points are denser than each (G, n); the lower index first among equals, which with strict have one."""
    density, order = density.sort(dim=-1, descending=True, stable=True)
    places = torch.arange(density.shape[-1], device=density.device).expand_as(order)
    if strict:
        equal = torch.nn.functional.pad(density[..., 1:] == density[..., :-1], (1, 0))
        places = places.masked_fill(equal, 0).cummax(-1).values
    return torch.empty_like(order).scatter_(-1, order, places)


def _slack(half: Tensor, width: int) -> Tensor:
    """Twice a generous bound of the rounding of products: closenesses that differ by more tell which is larger."""
    return 16 * math.sqrt(width) * torch.finfo(torch.float32).eps * half.amax()


def _block_elements(device: torch.device, memory_limit: float) -> int:
    """How many closenesses a block may hold; about four blocks' worth is alive at once."""
    elements = max(64 * 64, int(memory_limit * 2**20) // 16)
    return min(elements, CACHED) if device.type == "cpu" else elements


def _real(sizes: Sequence[int], width: int, device: torch.device) -> Tensor:
    """(G, width) bool: true at the first sizes[g] places of row g, which hold its set; the rest is padding."""
    return torch.arange(width, device=device) < torch.tensor(sizes, device=device)[:, None]


def _batches(sizes: Sequence[int], width: int, device: torch.device, memory_limit: float) -> list[list[int]]:
    """Places in `sizes` of the sets to work on together, the largest first; one too large for the limit is alone."""
    elements = _block_elements(device, memory_limit)
    points, padding = max(1, min(int(memory_limit * 2**20) // 8, elements) // width), PADDING.get(device.type, math.inf)
    result: list[list[int]] = []
    for place in sorted(range(len(sizes)), key=lambda place: (-sizes[place], place)):
        largest, count = (sizes[result[-1][0]], len(result[-1]) + 1) if result else (elements, 1)
        wasted = (largest**2 - sizes[place] ** 2) * width
        if max(count * largest**2 / elements, count * largest / points, wasted / padding) <= 1:
            result[-1].append(place)
        else:
            result.append([place])
    return result
