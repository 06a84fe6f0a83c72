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

GONE, KEPT, SALIENT, CONTEXT = range(4)  # roles; KEPT: by a method, or for a reason, that does not tell which


@dataclass(frozen=True)
class Trace:
    """One call of prune(), on a video of F frames of L tokens with flat indices frame * L + place.

    pruner: the method as it ran: on a model, with the family's sink tokens and the ratio before the language model.
    given, pruned: what it was given and what it returned.
    roles: (F * L,) uint8, one of the roles above.
    joined: (F * L,) int64, the flat index of the kept token that a token is part of, -1 for one that is part of none. A
        kept token is part of itself, but for Tango's published placement. None from methods that do not tell.
    static: (F * L,) bool, the places that were found static in their segment. None from methods that do not tell.
    """

    pruner: Pruner
    given: Given
    pruned: Pruned
    roles: Tensor
    joined: Tensor | None = None
    static: Tensor | None = None


class Fates:
    """What a method tells of its tokens on the way. A part of it is told by row of a table that the method works on."""

    def __init__(self, roles: Tensor, joined: Tensor, static: Tensor, flat: Tensor) -> None:
        """roles, joined, static: (n,) of all tokens, shared with every part; flat: (T, c) the tokens in each row of the
        table, the first of which is where the row stands.
        """
        self.roles, self.joined, self.static, self.flat = roles, joined, static, flat

    @classmethod
    def of(cls, tokens: int, device: torch.device) -> Fates:
        """Of so many tokens, all of them gone as long as nothing else is told."""
        places = torch.arange(tokens, device=device)
        roles = torch.zeros(tokens, dtype=torch.uint8, device=device)
        return cls(roles, torch.full_like(places, -1), torch.zeros_like(roles, dtype=torch.bool), places[:, None])

    def part(self, rows: Tensor) -> Fates:
        """The same by another table, whose row i holds rows[i] of this one; rows (T,) or (T, c)."""
        return Fates(self.roles, self.joined, self.static, self.flat[rows].flatten(1))

    def tell_static(self, static: Tensor) -> None:
        """Which places are static, (F, L) bool."""
        self.static.copy_(static.flatten())

    def tell_salient(self, rows: Tensor) -> None:
        """These rows are kept by themselves."""
        rows = rows.flatten()
        self.roles[self.flat[rows, 0]] = SALIENT
        self.joined[self.flat[rows]] = self.flat[rows, :1]

    def tell_merged(self, rows: Tensor, into: Tensor) -> None:
        """These rows become part of the kept rows `into`, one for each and of the same shape."""
        rows, into = rows.flatten(), into.flatten()
        self.roles[self.flat[into, 0]] = CONTEXT
        self.joined[self.flat[rows]] = self.flat[into, :1]


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
    # An exact budget drops kept tokens at the end, and with them what was merged into them, or adds some by themselves.
    roles = torch.where(kept, fates.roles.clamp(min=KEPT), GONE)
    if not bool(fates.roles.any()):
        traces.append(Trace(pruner, given, pruned, roles))
        return
    joined = fates.joined.masked_fill(~kept[fates.joined] | (fates.joined < 0), -1)
    joined = torch.where(kept & (joined < 0), torch.arange(len(joined), device=joined.device), joined)
    traces.append(Trace(pruner, given, pruned, roles, joined, fates.static))
