"""Exact nearest points of sets too large for all their distances at once, from blocks of matrix products.

For clustering.py, whose docstring says why products only propose neighbours. Closeness below is -distance^2 / 2 as a
product gives it, but for a constant where all points have the same length (see Search).

There are two ways, with the same outcome. The one leaves out what earlier blocks show to be needless, so its shapes
depend on the data. The other, for a GPU, has fixed shapes and never waits for the device (see ragged.Doubts).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tango import fused
from tango.ragged import Doubts
from tango.screening import WIDE, Heads, sampled_products

# Neighbours kept beyond those asked for, so that rounding of products seldom leaves open which are the nearest. With
# fixed shapes nothing can be looked at again where it does, and the products of a GPU are less exact.
SPARE, SPARE_FIXED = 4, 8
SCREEN_BLOCKS = 4  # sets of fewer blocks are not worth screening
MOST_PAIRS = 1 / 12  # share of a block's pairs above which to take all its products is faster
OWN_EDGE = 256  # smaller products are not faster, even if they are half as many
MOST_HITS = 1 / 32  # share of a block's pairs above which to look for the nearest among all of them is faster
QUERIES = 4  # with fixed shapes, the share of points, 1 in so many, whose nearest denser point may be far


def distances(points: Tensor, others: Tensor) -> Tensor:
    """Euclidean distances from differences: symmetric, 0 for equal points, the same bits in every block.

    Args:
        points: (p, D) fp32.
        others: (p, q, D) fp32, q points to compare with each.

    Returns:
        (p, q) fp32.
    """
    return torch.cdist(points[:, None], others, compute_mode="donot_use_mm_for_euclid_dist")[:, 0]


def recheck(points: Tensor, rows: Tensor, others: Tensor) -> Tensor:
    """Distances from differences between points[rows] and points[others]; points (T, D), rows (p,), others (p, q)."""
    module = fused.kernels(points.device)
    if module is None:
        return recheck_plainly(points, rows, others)
    result: Tensor = module.recheck(points, rows, others)
    return result


def recheck_plainly(points: Tensor, rows: Tensor, others: Tensor) -> Tensor:
    """recheck() without a kernel."""
    result = torch.empty(others.shape, device=points.device)
    step = distance_rows(points, others.shape[1])
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        gathered = points.index_select(0, others[part].flatten())
        own = points.index_select(0, rows[part])
        result[part] = distances(own, gathered.view(*others[part].shape, points.shape[1]))
    return result


def distance_rows(points: Tensor, count: int) -> int:
    """How many points to compare at a time with `count` others each: the copies of those stay in a CPU's cache."""
    elements = 1 << 19 if points.device.type == "cpu" else 1 << 24
    return max(1, elements // max(1, count * points.shape[-1]))


def spares(doubts: Doubts | None) -> int:
    return SPARE if doubts is None else SPARE_FIXED


def open_ends(close: Tensor, lengths: Tensor, count: int, slack: Tensor) -> Tensor:
    """Which points (..) may have one of their `count` nearest others outside of their list of neighbours.

    Args:
        close: (.., c) closeness by product of the neighbours in a list, closest first, -inf where there are no more.
        lengths: (.., c) their distances; those to copies are 0, and none outside of the list can be less.
        slack: what two products must differ by to tell.
    """
    if count == 0:
        return torch.zeros(close.shape[:-1], dtype=torch.bool, device=close.device)
    return (close[..., count - 1] - close[..., -1] <= slack) & (lengths.amax(-1) > 0)


def distances_to_all(points: Tensor, asked: Tensor, size: int | None = None) -> Tensor:
    """(p, n) distances from the p points (n, D) asked for, (n,) bool, to all others of the first `size`; else inf."""
    rows, everyone = asked.nonzero()[:, 0], torch.arange(len(points), device=points.device)
    result = recheck(points, rows, everyone.expand(len(rows), -1)).scatter_(1, rows[:, None], torch.inf)
    result[:, len(points) if size is None else size :] = torch.inf
    return result


def distance_to_denser(points: Tensor, asked: Tensor, rank: Tensor) -> Tensor:
    """(p,) distances from the p points (n, D) asked for, (n,) bool, to the nearest of lower rank (n,)."""
    return distances_to_all(points, asked).masked_fill_(rank >= rank[asked][:, None], torch.inf).amin(1)


def half_squares(points: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(points, dim=-1)
    return lengths.square_() / 2


def splits(device: torch.device) -> bool:
    """Whether products are faster from halves of bfloat16: on GPUs with matrix units for it (Ampere and later)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def products(points: Tensor, others: Tensor, out: Tensor | None = None) -> Tensor:
    """Inner products (.., p, q) of fp32 (.., p, D) and (.., q, D), in `out` where one is given and it can be used.

    On a GPU each number is split into the sum of two bfloat16 numbers, and of the four products of those the smallest
    is left out: one product of three times the width on matrix units that are more than ten times as fast as fp32.
    """
    if not splits(points.device):
        return torch.matmul(points, others.mT, out=out)
    module = fused.kernels(points.device)
    split = split_plainly if module is None else module.halves
    left, right = split(points, False), split(others, True)
    multiply = torch.mm if left.dim() == 2 else torch.bmm
    return multiply(left, right.mT, out_dtype=torch.float32)


def own_products(points: Tensor, out: Tensor) -> Tensor:
    """Inner products of points (p, D) with each other in `out` (p, p): of pairs far apart one is taken, one copied."""
    middle = len(points) // 2
    if middle < OWN_EDGE:
        return products(points, points, out)
    own_products(points[:middle], out[:middle, :middle])
    own_products(points[middle:], out[middle:, middle:])
    products(points[:middle], points[middle:], out[:middle, middle:])
    out[middle:, :middle] = out[:middle, middle:].T
    return out


def split_plainly(values: Tensor, low_second: bool) -> Tensor:
    """Numbers (.., D) fp32 as sums of two of bfloat16, side by side (.., 3 * D): high, high, low or high, low, high."""
    high = values.bfloat16()
    low = (values - high).bfloat16()
    return torch.cat([high, low, high] if low_second else [high, high, low], -1)


def product_error(points: Tensor, half: Tensor) -> Tensor:
    """Bound, 0-dimensional, of the rounding error of products() of points (.., D), half (..) of their squares.

    Generous for any order of summation in use.
    """
    width, eps = points.shape[-1], torch.finfo(torch.float32).eps
    relative = 8 * math.sqrt(width) * eps
    if splits(points.device):
        # What the halves leave out, and sums that are cut off, not rounded, after every 16 products.
        relative += 6 * 2.0**-18 + 6 * width / 16 * eps
    return relative * half.amax()


def _rows(matrix: Tensor, rows: Tensor) -> Tensor:
    """matrix[rows], contiguous; from a transposed matrix, too, without gathering along its columns."""
    if matrix.is_contiguous():
        return matrix.index_select(0, rows)
    return matrix.mT.index_select(1, rows).mT.contiguous()


def true_pairs(mask: Tensor, share: float) -> tuple[Tensor, Tensor] | None:
    """Rows and columns (k,) of the true ones of a mask (p, q), in order; None if they are more than a share."""
    flat = mask.flatten()
    most = share * len(flat)
    if len(flat) % 8:
        places = flat.nonzero()[:, 0]
    else:
        words = flat.view(torch.int64).nonzero()  # eight at a time, of which few are not all false
        if len(words) > most:
            return None
        places = (8 * words + torch.arange(8, device=mask.device)).flatten()
        places = places[flat[places]]
    if len(places) > most:
        return None
    return places // mask.shape[1], places % mask.shape[1]


class Search:
    """A large set of points, and which of them are near each other.

    Args:
        points: (n, D) fp32.
        edge: side of a block of closenesses.
        doubts: where given, all shapes are fixed, and doubts go there.
    """

    def __init__(self, points: Tensor, edge: int, doubts: Doubts | None = None) -> None:
        self.points, self.edge, self.doubts = points, edge, doubts
        self.half = half_squares(points)
        self.error = product_error(points, self.half)
        self.fixed = doubts is not None
        # Between points of the same length, as unit vectors are, the product alone tells which is closer: two passes
        # over every block less. What is given up so is within the rounding of products.
        self.same = not self.fixed and bool(self.half.amax() - self.half.amin() <= self.error / 2)
        self.buffer = None if splits(points.device) else points.new_empty(edge * edge)

    def distance(self, close: Tensor) -> Tensor:
        """Lower bounds of distances whose closeness is at most `close`."""
        square = -2 * close if not self.same else 4 * self.half.amin() - 2 * close
        return (square - 6 * self.error).clamp_(min=0).sqrt_()

    def _blocks(self, size: int) -> list[slice]:
        return [slice(start, min(start + self.edge, size)) for start in range(0, size, self.edge)]

    def _closeness(self, rows: slice | Tensor, columns: slice | Tensor, points: Tensor | None = None) -> Tensor:
        """Closenesses (rows, columns), of other vectors where given; valid until the next use where a buffer is."""
        points = self.points if points is None else points
        left, right = points[rows], points[columns]
        shape = len(left), len(right)
        out = None if self.buffer is None else self.buffer[: shape[0] * shape[1]].view(shape)
        if out is not None and isinstance(rows, slice) and rows == columns:
            close = own_products(left, out)
        else:
            close = products(left, right, out)
        if self.same:
            return close
        return close.sub_(self.half[rows, None]).sub_(self.half[columns])

    def nearest(self, count: int) -> tuple[Tensor, Tensor]:
        """Closeness and index (n, count), closest first, of each point's nearest others.

        Each block of the symmetric matrix above the diagonal serves its rows and its columns. Blocks nearest the
        diagonal come first: tokens close in time are close in angle, so that later blocks hold little of interest, and
        upper bounds of their products tell what can be left out (see screening.py). Where too little can, the rest of
        the blocks as far from the diagonal is not tried.
        """
        points = self.points
        size = len(points)
        best = points.new_full((size, count), -torch.inf)
        index = torch.zeros(size, count, dtype=torch.int64, device=points.device)
        blocks = self._blocks(size)
        screened = points.device.type == "cpu" and len(blocks) >= SCREEN_BLOCKS and points.shape[1] >= 2 * WIDE
        heads = Heads.of(points, self.half, self.error) if screened else None
        for offset in range(len(blocks)):
            narrow = wide = heads is not None and offset > 0
            for rows, columns in zip(blocks, blocks[offset:], strict=False):
                if heads is not None:
                    narrow = narrow and self._offer_few(best, index, rows, columns, heads)
                    if narrow:
                        continue
                    wide = wide and self._offer_some(best, index, rows, columns, heads)
                    if wide:
                        continue
                close = self._closeness(rows, columns)
                if offset == 0:
                    close.fill_diagonal_(-torch.inf)
                    self._offer(best, index, rows, close, columns.start)
                elif self.fixed or not self._offer_block(best, index, rows, columns, close):
                    self._offer(best, index, columns, close.T, rows.start)
                    self._offer(best, index, rows, close, columns.start)
        return best, index

    def _offer_block(self, best: Tensor, index: Tensor, rows: slice, columns: slice, close: Tensor) -> bool:
        """Update lists with closenesses of which few get into any; nothing, and False, if it is not so."""
        pairs = true_pairs(self._above(close, best[rows, -1:], best[columns, -1]), MOST_HITS)
        if pairs is None:
            return False
        self._offer_both(best, index, pairs[0] + rows.start, pairs[1] + columns.start, close[pairs])
        return True

    def _offer_few(self, best: Tensor, index: Tensor, rows: slice, columns: slice, heads: Heads) -> bool:
        """Update lists with a block of which few rows and columns matter; nothing, and False, if it is not so."""
        bound = self._closeness(rows, columns, heads.narrow)
        few_rows = rows.start + (bound.amax(1) > best[rows, -1]).nonzero()[:, 0]
        few_columns = columns.start + (bound.amax(0) > best[columns, -1]).nonzero()[:, 0]
        if 2 * (len(few_rows) + len(few_columns)) > sum(bound.shape):
            return False
        for few, others in ((few_rows, columns), (few_columns, rows)):
            if len(few) == 0:
                continue
            pairs = self._closer(few, others, heads, best[few, -1:])
            if pairs is None:
                self._offer(best, index, few, self._closeness(few, others), others.start)
            else:
                place, other, close = pairs
                self._offer_pairs(best, index, few[place], others.start + other, close)
        return True

    def _offer_some(self, best: Tensor, index: Tensor, rows: slice, columns: slice, heads: Heads) -> bool:
        """Update lists with a block of which few pairs matter; nothing, and False, if it is not so."""
        pairs = self._closer(rows, columns, heads, best[rows, -1:], best[columns, -1])
        if pairs is None:
            return False
        row, column, close = pairs
        self._offer_both(best, index, row + rows.start, column + columns.start, close)
        return True

    def _closer(
        self, rows: slice | Tensor, columns: slice, heads: Heads, *least: Tensor
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Places in `rows` and in `columns`, and closeness, (k,) each, of all pairs closer than `least` and some more.

        They are in order of rows. None if there may be so many that a product of all is faster; least: (p, 1) or (q,).
        """
        bound = self._closeness(rows, columns, heads.wide)
        pairs = true_pairs(self._above(bound, *least), MOST_PAIRS)
        if pairs is None:
            return None
        row, column = pairs
        close = sampled_products(self.points[rows], self.points[columns], row, column)
        if not self.same:
            close -= self.half[rows][row] + self.half[columns][column]
        return row, column, close

    def nearest_denser(self, order: Tensor, rank: Tensor, unknown: Tensor, separation: Tensor) -> Tensor:
        """Distances (n,) to the nearest denser point: `separation` with those filled in that are unknown.

        Args:
            order: (n,) points from the densest on; rank: (n,) how many points are denser than each.
            unknown: (n,) bool; none that has no denser point.
        """
        if self.fixed:
            capacity = -(-len(rank) // QUERIES)
            self._doubt(unknown.sum() > capacity)
            queries = unknown.to(torch.uint8).sort(descending=True, stable=True).indices[:capacity]
            found = self._nearest_denser(order, rank, queries)
            return separation.index_copy(0, queries, torch.where(unknown[queries], found, separation[queries]))
        queries = order[unknown[order]]
        separation[queries] = self._nearest_denser(order, rank, queries)
        return separation

    def _nearest_denser(self, order: Tensor, rank: Tensor, queries: Tensor) -> Tensor:
        """Distance of each query to its nearest denser point; unless shapes are fixed, in descending density."""
        points, size = self.points, len(rank)
        result = points.new_empty(len(queries))
        for part in self._blocks(len(queries)):
            asked = queries[part]
            places = rank[asked]
            first, last = (0, size) if self.fixed else (int(places[0]), int(places[-1]))
            best = points.new_full((len(asked), min(spares(self.doubts), last)), -torch.inf)
            index = torch.zeros(best.shape, dtype=torch.int64, device=points.device)
            for keys in self._blocks(last):
                close = self._closeness(asked, order[keys])
                if keys.stop > first:
                    hidden = torch.arange(keys.start, keys.stop, device=points.device) >= places[:, None]
                    close.masked_fill_(hidden, -torch.inf)
                self._offer(best, index, slice(0, len(asked)), close, keys.start)
            lengths = recheck(points, asked, order[index]).masked_fill_(best == -torch.inf, torch.inf)
            result[part] = lengths.amin(1)
            unsure = open_ends(best, lengths, 1, 2 * self.error) & (last > best.shape[1])
            result[part] = self._settled(result[part], asked, unsure, rank)
        return result

    def _settled(self, found: Tensor, asked: Tensor, unsure: Tensor, rank: Tensor) -> Tensor:
        """found (p,) for the points asked (p,), with the unsure ones found among all distances."""
        if self.doubts is not None:
            self.doubts.add(unsure.any())
        elif len(again := asked[unsure]):
            mask = torch.zeros(len(rank), dtype=torch.bool, device=rank.device).index_fill_(0, again, True)
            found[unsure] = distance_to_denser(self.points, mask, rank)[mask.cumsum(0)[again] - 1]
        return found

    def _offer(self, best: Tensor, index: Tensor, rows: slice | Tensor, close: Tensor, first: int) -> None:
        """Update the lists of `rows` with a block of closenesses (rows, columns) whose first column is `first`."""
        count = min(best.shape[1], close.shape[1])
        if not self.fixed:
            hit = (close.amax(1) > best[rows, -1]).nonzero()[:, 0] if len(close) else close.new_empty(0)
            if len(hit) == 0:
                return
            if len(hit) < len(close):
                close = _rows(close, hit)
                rows = rows.start + hit if isinstance(rows, slice) else rows[hit]
        values, columns = close.topk(count, dim=1, sorted=False)
        values = torch.cat([best[rows], values], dim=1)
        columns = torch.cat([index[rows], columns + first], dim=1)
        best[rows], places = values.topk(best.shape[1], dim=1)
        index[rows] = columns.gather(1, places)

    @staticmethod
    def _above(close: Tensor, *least: Tensor) -> Tensor:
        """(p, q) bool: whether a closeness (p, q) is more than any of `least`, (p, 1) or (q,)."""
        above = close > least[0]
        for other in least[1:]:
            above |= close > other
        return above

    def _offer_both(self, best: Tensor, index: Tensor, rows: Tensor, others: Tensor, close: Tensor) -> None:
        """_offer_pairs() to the lists of rows (k,), ascending, and to those of the others (k,)."""
        self._offer_pairs(best, index, rows, others, close)
        hit = (close > best[others, -1]).nonzero()[:, 0]
        hit = hit[others[hit].argsort(stable=True)]
        self._offer_pairs(best, index, others[hit], rows[hit], close[hit])

    def _offer_pairs(self, best: Tensor, index: Tensor, rows: Tensor, others: Tensor, close: Tensor) -> None:
        """Update the lists of rows (k,), ascending, with the closeness (k,) of one other point each time it occurs."""
        hit = close > best[rows, -1]
        rows, places, counts = torch.unique_consecutive(rows[hit], return_inverse=True, return_counts=True)
        if len(rows) == 0:
            return
        nth = torch.arange(len(places), device=rows.device) - (counts.cumsum(0) - counts)[places]
        shape = len(rows), int(counts.max())
        values = close.new_full(shape, -torch.inf).index_put_((places, nth), close[hit])
        found = index.new_zeros(shape).index_put_((places, nth), others[hit])
        values, found = torch.cat([best[rows], values], 1), torch.cat([index[rows], found], 1)
        best[rows], order = values.topk(best.shape[1], dim=1)
        index[rows] = found.gather(1, order)

    def _doubt(self, flag: Tensor) -> None:
        if self.doubts is not None:
            self.doubts.add(flag)
