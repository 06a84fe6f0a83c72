"""The nearest others of each of many points, from products in blocks: for sets too large for all products at once."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# Directions of the screening product, and from how many blocks on it is worth it: a segment of 256 frames of 196
# tokens of width 896 took 15.5 s with it, 19.0 s without, on two cores when added (benchmarks/pruning.py's long video).
HEAD, SCREEN_BLOCKS = 128, 4


def nearest_in_blocks(
    points: Tensor, half: Tensor, count: int, edge: int, slack: Tensor, own_products: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Closeness and index (n, count), closest first, of the nearest others of each of n points.

    own_products: gives the products (1, p, p) of points (1, p, D) with themselves, for the blocks on the diagonal.

    Each block above the diagonal serves its rows and its columns. Those nearest to it come first: tokens close in time
    are close in angle, so that a product of heads alone tells of later blocks which rows and columns can be left out.
    """
    size = len(points)
    best = points.new_full((size, count), -torch.inf)
    index = torch.zeros(size, count, dtype=torch.int64, device=points.device)
    everyone = torch.arange(size, device=points.device)
    blocks = [slice(start, min(start + edge, size)) for start in range(0, size, edge)]
    heads = _heads(points, half, slack) if len(blocks) >= SCREEN_BLOCKS and points.shape[1] >= 4 * HEAD else None

    for offset in range(len(blocks)):
        screening = offset > 0
        for first, second in zip(blocks, blocks[offset:], strict=False):
            rows, columns = everyone[first], everyone[second]
            if offset == 0:
                close = own_products(points[None, first])[0].sub_(half[first, None]).sub_(half[first])
                _offer(best, index, rows, close.fill_diagonal_(-torch.inf), rows)
                continue
            if heads is not None and screening:
                bound = _closeness(heads, half, first, second)
                few_rows = rows[bound.amax(1) > best[first, -1]]
                few_columns = columns[bound.amax(0) > best[second, -1]]
                # Where too little can be left out, the other blocks as far from the diagonal are not tried.
                screening = 2 * (len(few_rows) + len(few_columns)) < len(rows) + len(columns)
                if screening:
                    _offer(best, index, few_rows, _closeness(points, half, few_rows, second), columns)
                    _offer(best, index, few_columns, _closeness(points, half, few_columns, first), rows)
                    continue
            close = _closeness(points, half, first, second)
            _offer(best, index, columns, close.T, rows)
            _offer(best, index, rows, close, columns)
    return best, index


def denser_in_blocks(
    points: Tensor, half: Tensor, rank: Tensor, asked: Tensor, edge: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """In blocks: points asked for (q,), others (p,) of which some are denser, and their closeness (q, p).

    rank: (n,) how many points are denser than each. Each point meets each denser one once.
    """
    order, asked = rank.argsort(), asked[rank[asked].argsort()]
    for start in range(0, len(asked), edge):
        some = asked[start : start + edge]
        for others in torch.split(order[: int(rank[some[-1]])], edge):
            rows = some[rank[some] > rank[others[0]]]
            yield rows, others, _closeness(points, half, rows, others)


def _closeness(table: Tensor, half: Tensor, rows: slice | Tensor, columns: slice | Tensor) -> Tensor:
    """Closeness (rows, columns) of some points of a table to others."""
    return (table[rows] @ table[columns].T).sub_(half[rows, None]).sub_(half[columns])


def _heads(points: Tensor, half: Tensor, slack: Tensor) -> Tensor:
    """(n, HEAD + 1) vectors whose inner products are upper bounds of those of n points.

    A head is a point's share in a few directions, with the length of the rest behind it: x . y = head . head +
    rest . rest, and the latter is at most the product of the lengths. Power iteration on a sample finds directions in
    which the points differ most, which make good bounds.
    """
    generator = torch.Generator().manual_seed(0)
    sample = points[torch.randint(len(points), (8 * HEAD,), generator=generator).to(points.device)]
    basis = torch.randn(points.shape[1], HEAD, generator=generator, dtype=torch.float32).to(points.device)
    for _ in range(3):
        basis = torch.linalg.qr(sample.T @ (sample @ basis)).Q
    heads = points.new_empty(len(points), HEAD + 1)
    shares = torch.mm(points, basis, out=heads[:, :HEAD])
    # Rounding must not make a bound too low: lengthen the rests by more than the products can be off.
    rest = 2 * half - torch.linalg.vector_norm(shares, dim=1).square_() + 8 * slack
    heads[:, HEAD] = rest.clamp_(min=0).sqrt_()
    return heads


def _offer(best: Tensor, index: Tensor, rows: Tensor, close: Tensor, columns: Tensor) -> None:
    """Update the lists of points `rows` with a block of closenesses (rows, columns)."""
    hit = (close.amax(1) > best[rows, -1]).nonzero()[:, 0] if len(rows) else rows
    if len(hit) == 0:
        return
    values, places = close.index_select(0, hit).topk(min(best.shape[1], close.shape[1]), dim=1, sorted=False)
    rows = rows[hit]
    values, found = torch.cat([best[rows], values], 1), torch.cat([index[rows], columns[places]], 1)
    best[rows], places = values.topk(best.shape[1], dim=1)
    index[rows] = found.gather(1, places)
