"""The nearest others of each of many points, from products in blocks: for sets too large for all products at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Directions of the screening product, and from how many blocks on it is worth it: a segment of 256 frames of 196
# tokens of width 896 takes 15.5 s with it and 19.0 s without, on two cores (benchmarks/pruning.py's long video).
HEAD, SCREEN_BLOCKS = 128, 4


def nearest_in_blocks(
    points: Tensor,
    half: Tensor,
    count: int,
    edge: int,
    slack: Tensor,
    own_products: Callable[[Tensor], Tensor] = lambda points: points @ points.mT,
) -> tuple[Tensor, Tensor]:
    """Closeness and index (n, count), closest first, of the nearest others of each of n points.

    own_products: gives the products (1, p, p) of points (1, p, D) with themselves, for the blocks on the diagonal.

    Each block above the diagonal serves its rows and its columns. Those nearest to it come first: tokens close in time
    are close in angle, so that a product of heads alone tells of later blocks which rows and columns can be left out.
    """
    size = len(points)
    best = points.new_full((size, count), -torch.inf)
    index = torch.zeros(size, count, dtype=torch.int64, device=points.device)
    blocks = torch.split(torch.arange(size, device=points.device), edge)
    heads = _heads(points, half, slack) if len(blocks) >= SCREEN_BLOCKS and points.shape[1] >= 4 * HEAD else None

    def closeness(table: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        products = own_products(table[None, rows])[0] if rows is columns else table[rows] @ table[columns].T
        return products.sub_(half[rows, None]).sub_(half[columns])

    for offset in range(len(blocks)):
        screening = offset > 0
        for rows, columns in zip(blocks, blocks[offset:], strict=False):
            if heads is not None and screening:
                bound = closeness(heads, rows, columns)
                few_rows = rows[bound.amax(1) > best[rows, -1]]
                few_columns = columns[bound.amax(0) > best[columns, -1]]
                # Where too little can be left out, the other blocks as far from the diagonal are not tried.
                screening = 2 * (len(few_rows) + len(few_columns)) < len(rows) + len(columns)
                if screening:
                    _offer(best, index, few_rows, closeness(points, few_rows, columns), columns)
                    _offer(best, index, few_columns, closeness(points, few_columns, rows), rows)
                    continue
            close = closeness(points, rows, columns)
            if offset == 0:
                close.fill_diagonal_(-torch.inf)
            else:
                _offer(best, index, columns, close.T, rows)
            _offer(best, index, rows, close, columns)
    return best, index


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
