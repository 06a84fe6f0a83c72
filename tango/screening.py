"""Upper bounds of inner products at a fraction of their cost, and the products of only those pairs that matter then.

For neighbors.py, on a CPU: most pairs of a large set are far apart, and it takes little to see that. All pure.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

NARROW, WIDE = 128, 384  # directions of the two screens
SAMPLE = 3072  # points to find good directions with


@dataclass(frozen=True)
class Heads:
    """Vectors whose inner products are upper bounds of those of n points, from a few directions and from more.

    A head is a point's share in the directions in which the points differ most, with the length of the rest beside it:
    x . y = head . head + rest . rest, and rest . rest is at most the product of the lengths.

    table: (n, 1 + WIDE + 1): length without NARROW directions, shares in all, length without these.
    """

    table: Tensor

    @property
    def narrow(self) -> Tensor:
        """(n, NARROW + 1)"""
        return self.table[:, : NARROW + 1]

    @property
    def wide(self) -> Tensor:
        """(n, WIDE + 1)"""
        return self.table[:, 1:]

    @classmethod
    def of(cls, points: Tensor, half: Tensor, error: Tensor) -> Heads:
        """For points (n, D) fp32; half (n,) of their squares, error: bound of the rounding error of a product.

        Any orthonormal directions will do; those of a sample's largest eigenvalues, nearly, are good ones.
        """
        size, dim = points.shape
        generator = torch.Generator().manual_seed(0)  # the same directions every time
        sample = points[torch.randint(size, (SAMPLE,), generator=generator)]
        basis = torch.randn(dim, WIDE, generator=generator)
        for _ in range(2):
            basis = torch.linalg.qr(sample.T @ (sample @ basis)).Q
        shares = sample @ basis
        basis = basis @ torch.linalg.eigh(shares.T @ shares).eigenvectors.flip(1)
        table = points.new_empty(size, WIDE + 2)
        torch.mm(points, basis, out=table[:, 1:-1])
        square = 2 * half
        # Rounding must not make a bound too low: lengthen the rests by more than the products can be off.
        for column, share in ((0, table[:, 1 : NARROW + 1]), (-1, table[:, 1:-1])):
            rest = square - torch.linalg.vector_norm(share, dim=1).square()
            table[:, column] = rest.clamp_(min=0).add_(8 * error).sqrt_()
        return cls(table)


def sampled_products(points: Tensor, others: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Inner products (k,) of points (p, D) and others (q, D) at pairs (k,) of them, in ascending order of rows."""
    starts = torch.searchsorted(rows, torch.arange(len(points) + 1))
    zeros = points.new_zeros(len(rows))
    with warnings.catch_warnings():
        # Of sparse tensors torch says that they are in beta, and that it does not check what is right by construction.
        warnings.simplefilter("ignore", UserWarning)
        pairs = torch.sparse_csr_tensor(starts, columns, zeros, (len(points), len(others)), check_invariants=False)
        result: Tensor = torch.sparse.sampled_addmm(pairs, points, others.T, beta=0.0)
    return result.values()
