"""Exact numbers of tokens: shares that sum to a total, and a last token added or dropped.

A method that spreads a budget over frames or segments makes its own shares whole with apportion() or evenly(). One
whose count is what comes out of its steps has its result brought to the count with fit(), through Pruner.exactly().
Pure functions.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tango.pruners.video import Pruned


def apportion(shares: Tensor, caps: Tensor, total: int) -> Tensor:
    """Whole numbers in proportion to shares that sum to `total`: by largest remainder, none above its cap.

    What a cap cuts off goes to the others in proportion; a share of 0 gets tokens only where all others are full.
    Among equal remainders the first wins.

    Args:
        shares: (n,) at least 0, any scale.
        caps: (n,) integers of at least 0 that sum to `total` or more.
        total: what the numbers sum to.

    Returns:
        (n,) int64 on the CPU.

    Raises:
        ValueError: total is negative or above the sum of the caps.
    """
    shares, caps = shares.detach().cpu().double(), caps.cpu()
    room = int(caps.sum())
    if not 0 <= total <= room:
        raise ValueError(f"total = {total}: expected 0 to {room}, the sum of the caps")
    largest = float(shares.max())
    shares = shares.clamp(min=1e-9 * largest) if largest > 0 else torch.ones_like(shares)
    full = caps == 0
    while True:
        exact = shares * ((total - int(caps[full].sum())) / float(shares[~full].sum().clamp(min=1e-300)))
        over = ~full & (exact >= caps)
        if not bool(over.any()):
            break
        full |= over
    whole = torch.where(full, caps, (exact + 1e-9).floor().long())
    missing = total - int(whole.sum())
    remainder = (exact - whole).masked_fill_(full, -torch.inf)
    whole[remainder.sort(descending=True, stable=True).indices[:missing]] += 1
    return whole


def token_budget(count: int, ratio: float) -> int:
    """Tokens a trivial baseline keeps of `count`: min(count, max(1, ceil(count * ratio - 1e-9)))."""
    return min(count, max(1, math.ceil(count * ratio - 1e-9)))


def evenly(total: int, frames: int) -> Tensor:
    """Shares of frames that differ by 1 at most: frame f of F gets floor((f + 1) B / F) - floor(f B / F) of B; (F,)."""
    return torch.diff(torch.arange(frames + 1) * total // frames)


def fit(pruned: Pruned, features: Tensor, ranking: Tensor, count: int) -> Pruned:
    """Drop the kept tokens that rank lowest, or add the other tokens that rank highest, until `count` are kept.

    Tokens that are added come as they are, unmerged. Ascending indices stay ascending; in any other order a token that
    is added goes to the end of its frame.

    Args:
        pruned: of one video, its rows at least in order of frames.
        features: (F, L, D) that it was pruned from.
        ranking: (F, L), the higher the sooner kept; the lower index among equals.
        count: tokens to keep, 1 to F * L.
    """
    indices, values, ranks = pruned.indices, pruned.features, ranking.to(pruned.indices.device).flatten()
    missing = count - len(indices)
    if missing == 0:
        return pruned
    if missing < 0:
        best = ranks[indices].sort(descending=True, stable=True).indices[:count].sort().values
        return replace(pruned, indices=indices[best], features=values[best])
    ascending = bool((indices.diff() >= 0).all())
    left = torch.ones(ranks.shape, dtype=torch.bool, device=indices.device).index_fill_(0, indices, False).nonzero()
    added = left[ranks[left[:, 0]].sort(descending=True, stable=True).indices[:missing], 0]
    indices = torch.cat([indices, added])
    values = torch.cat([values, features.reshape(-1, features.shape[2])[added].to(values.dtype)])
    order = (indices if ascending else indices // features.shape[1]).sort(stable=True).indices
    return replace(pruned, indices=indices[order], features=values[order])
