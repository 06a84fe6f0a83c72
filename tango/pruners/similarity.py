"""Which of some centres each token is most similar to, by cosine, with ties to the lower index. Pure functions.

What FastVID (arXiv 2503.11187), VisionZip (arXiv 2412.04467) and FlashVID (arXiv 2602.08024) join tokens by. As in
ops/density.py a matrix product finds what is near, and where that is too close to tell, sums of each pair's own
products decide: equal tokens tie exactly, wherever they stand in a block.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK_BYTES = 16 << 20


class Nearest(NamedTuple):
    """For each token (G, p) the place of its most similar centre (int64) and their cosine (fp32)."""

    indices: Tensor
    cosines: Tensor


def most_similar(tokens: Tensor, centres: Tensor, allowed: Tensor | None = None) -> Nearest:
    """The centre of highest cosine similarity of each token; the lower index among equals.

    The cosine with a zero token is 0.

    Args:
        tokens: (G, p, D) any floating dtype.
        centres: (G, c, D), c at least 1, those that the tokens of the same set are compared with.
        allowed: (G, c) bool, which centres may be chosen, at least one of each set; None for all.
    """
    groups, size, dim = tokens.shape
    count = centres.shape[1]
    indices = torch.empty(groups, size, dtype=torch.int64, device=tokens.device)
    cosines = torch.empty(groups, size, dtype=torch.float32, device=tokens.device)
    slack = 8 * math.sqrt(dim) * torch.finfo(torch.float32).eps
    rows = max(1, BLOCK_BYTES // (4 * (dim + count)))
    step = max(1, rows // (size + count))
    for first in range(0, groups, step):
        sets = slice(first, first + step)
        near = unit(centres[sets])
        for start in range(0, size, rows):
            part = slice(start, start + rows)
            indices[sets, part], cosines[sets, part] = _most_similar(
                unit(tokens[sets, part]), near, None if allowed is None else allowed[sets], slack
            )
    return Nearest(indices, cosines)


def unit(vectors: Tensor) -> Tensor:
    """Vectors (.., D) of length 1 in fp32; zeros stay zero."""
    return torch.nn.functional.normalize(vectors.float(), dim=-1)


def _most_similar(tokens: Tensor, near: Tensor, allowed: Tensor | None, slack: float) -> tuple[Tensor, Tensor]:
    """The same for unit vectors that fit into memory together."""
    products = torch.bmm(tokens, near.mT)
    if allowed is not None:
        products.masked_fill_(~allowed[:, None], -torch.inf)
    best, chosen = products.max(dim=2)
    second = products.scatter(2, chosen[..., None], -torch.inf).amax(2)
    unsure = (second > best - slack).nonzero(as_tuple=True)
    if len(unsure[0]):
        doubtful = products[unsure] > (best[unsure] - slack)[:, None]
        row, column = doubtful.nonzero(as_tuple=True)
        exact = torch.full(doubtful.shape, -torch.inf, dtype=torch.float64, device=tokens.device)
        set_of, place = unsure[0][row], unsure[1][row]
        pairs = max(1, BLOCK_BYTES // (32 * tokens.shape[2]))
        for first in range(0, len(row), pairs):
            some = slice(first, first + pairs)
            exact[row[some], column[some]] = _cosine(
                tokens[set_of[some], place[some]], near[set_of[some], column[some]]
            )
        chosen[unsure] = exact.argmax(1)
    matched = near.gather(1, chosen[..., None].expand(-1, -1, near.shape[2]))
    return chosen, _cosine(tokens, matched).float()


def _cosine(units: Tensor, others: Tensor) -> Tensor:
    """fp64 inner products of (.., D) and (.., D): products of fp32 numbers are exact in fp64."""
    return (units.double() * others.double()).sum(-1)
