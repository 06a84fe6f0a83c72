"""What became of every token of a video, told by prune() to whoever asks: for pictures, and to look a method over.

    with traced() as traces:
        Tango().prune(features, saliency, grid, timestamps)  # or generate() of a model that a pruner is attached to
    traces[0].joined

Nobody asking, nothing is kept and nothing computed for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tango.pruners.base import Given, Pruned, Pruner

GONE, KEPT, SALIENT, CONTEXT = range(4)  # roles; KEPT: as it is, by a method, or for a reason, that names no other


@dataclass(frozen=True)
class Trace:
    """One call of prune(), on a video of F frames of L tokens with flat indices frame * L + place.

    pruner: the method as it ran: on a model, with the family's sink tokens and the ratio before the language model.
    given, pruned: what it was given and what it returned.
    roles: (F * L,) uint8, one of the roles above.
    joined: (F * L, c) int64, the flat indices of the kept tokens that a token is part of, the nearest index first, -1
        where there are no more. c is 1 but for methods that merge a token into several (FastVID, one in each anchor
        frame; FlashVID, salient tokens of segments of one frame). A dropped token is part of none; a kept one is part
        of itself, but for Tango's published placement.
    static: (F * L,) bool, the places that the method found static in their segment.
    """

    pruner: Pruner
    given: Given
    pruned: Pruned
    roles: Tensor
    joined: Tensor
    static: Tensor


class Fates:
    """What a method tells of its tokens on the way. A part of it is told by row of a table that the method works on.

    Tokens that nothing is told of are kept as they are or dropped, as prune() returns them or not.
    """

    def __init__(self, roles: Tensor, static: Tensor, pairs: list[Tensor], flat: Tensor) -> None:
        """roles, static (n,) of all tokens and pairs, of (p, 2) a token and a kept one that it is part of, are shared
        with every part; flat: (T, c) the tokens in each row of the table, the first of which is where the row stands.
        """
        self.roles, self.static, self.pairs, self.flat = roles, static, pairs, flat

    @classmethod
    def of(cls, tokens: int, device: torch.device) -> Fates:
        """Of so many tokens, nothing told yet."""
        roles = torch.zeros(tokens, dtype=torch.uint8, device=device)
        static = torch.zeros(tokens, dtype=torch.bool, device=device)
        return cls(roles, static, [], torch.arange(tokens, device=device)[:, None])

    def part(self, rows: Tensor) -> Fates:
        """The same by another table, whose row i holds rows[i] of this one; rows (T,) or (T, c)."""
        return Fates(self.roles, self.static, self.pairs, self.flat[rows].flatten(1))

    def tell_static(self, static: Tensor) -> None:
        """Which places are static, (F, L) bool."""
        self.static.copy_(static.flatten())

    def tell_salient(self, rows: Tensor) -> None:
        """These rows are kept by themselves."""
        rows = rows.flatten()
        self.roles[self.flat[rows, 0]] = SALIENT
        self._join(rows, rows)

    def tell_merged(self, rows: Tensor, into: Tensor) -> None:
        """These rows become part of the kept rows `into`, one for each and of the same shape."""
        rows, into = rows.flatten(), into.flatten()
        stands = self.flat[into, 0]
        # A token kept twice, by itself and for others, is salient.
        self.roles[stands] = torch.where(self.roles[stands] == SALIENT, SALIENT, CONTEXT).to(torch.uint8)
        self._join(rows, into)

    def _join(self, rows: Tensor, into: Tensor) -> None:
        tokens = self.flat[rows]
        self.pairs.append(torch.stack([tokens, self.flat[into, :1].expand_as(tokens)], -1).view(-1, 2))


_asked: ContextVar[list[Trace] | None] = ContextVar("traces of prune()", default=None)


@contextmanager
def traced() -> Iterator[list[Trace]]:
    """A list that gets one Trace for every call of prune() made in the `with` block, in this thread."""
    traces: list[Trace] = []
    token = _asked.set(traces)
    try:
        yield traces
    finally:
        _asked.reset(token)


def is_asked() -> bool:
    """Whether a traced() block is open."""
    return _asked.get() is not None


def record(pruner: Pruner, given: Given, pruned: Pruned) -> None:
    """Add a call of prune() to the list of the open traced() block; given.fates holds what the method told."""
    traces, fates = _asked.get(), given.fates
    if traces is None or fates is None:
        return
    kept = torch.zeros_like(fates.static).index_fill_(0, pruned.indices, True)
    # An exact budget drops kept tokens at the end, and with them what was merged into them, or adds some as they are.
    roles = torch.where(kept, fates.roles.clamp(min=KEPT), GONE)
    as_it_is = (roles == KEPT).nonzero().expand(-1, 2)
    pairs = torch.cat([as_it_is, *fates.pairs])
    joined = _by_token(pairs[kept[pairs[:, 1]]], len(kept))
    traces.append(Trace(pruner, given, pruned, roles, joined, fates.static))


def _by_token(pairs: Tensor, tokens: int) -> Tensor:
    """The second of pairs (p, 2) for each first one, nearest first: (tokens, c), -1 where there are no more."""
    pairs = torch.unique(pairs, dim=0)
    pairs = pairs[pairs.diff(dim=1).abs()[:, 0].sort(stable=True).indices]
    first, into = pairs[pairs[:, 0].sort(stable=True).indices].T
    counts = torch.bincount(first, minlength=tokens)
    column = torch.arange(len(first), device=first.device) - (counts.cumsum(0) - counts)[first]
    joined = torch.full((tokens, int(counts.max())), -1, device=first.device)
    joined[first, column] = into
    return joined
