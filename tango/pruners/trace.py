"""What became of every token of a video, for pictures and for looking a method over.

    with traced() as traces:
        Tango().prune(features, saliency, grid, timestamps)  # or generate() of a model that a pruner is attached to
    traces[0].joined

Methods say on their way what they do, by static(), salient() and merged(). While nobody asks, these do nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tango.pruners.video import Pruned, VideoTokens

GONE, KEPT, SALIENT, CONTEXT = range(4)  # roles; KEPT: as it is, by a method, or for a reason, that names no other


@dataclass(frozen=True)
class Trace:
    """One call of prune(), on a video of F frames of L tokens with flat indices frame * L + place.

    pruner: the method as it ran: on a model, with the family's sink tokens and the ratio before the language model.
    video, pruned: what went in and what came out.
    roles: (F * L,) uint8, one of the roles above.
    joined: (F * L, c) int64, the flat indices of the kept tokens that a token is part of, the nearest index first, -1
        where there are no more. c is 1 but for methods that merge a token into several (FastVID, one in each anchor
        frame; FlashVID, salient tokens of segments of one frame). A dropped token is part of none; a kept one is part
        of itself, but for Tango's published placement.
    static: (F * L,) bool, the places that the method found static in their segment.
    """

    pruner: Any
    video: VideoTokens
    pruned: Pruned
    roles: Tensor
    joined: Tensor
    static: Tensor


@dataclass
class Recorder:
    """What a method has said so far: roles (n,), static places (n,), and pairs (p, 2) of a token and what it is in."""

    roles: Tensor
    static: Tensor
    pairs: list[Tensor] = field(default_factory=list)

    def join(self, rows: Tensor, into: Tensor, tokens: Tensor | None) -> Tensor:
        """Note that rows are part of the rows `into`; returns the tokens where the latter stand."""
        rows, into = rows.flatten(), into.flatten()
        if tokens is None:
            members, stands = rows[:, None], into
        else:
            tokens = tokens.view(len(tokens), -1)
            members, stands = tokens[rows], tokens[into, 0]
        self.pairs.append(torch.stack([members, stands[:, None].expand_as(members)], -1).view(-1, 2))
        return stands


# Set while somebody asks: the list of the open traced() block, and what notes one call of prune().
TRACES: ContextVar[list[Trace] | None] = ContextVar("traces of prune()", default=None)
RECORDER: ContextVar[Recorder | None] = ContextVar("recorder of this prune()", default=None)


@contextmanager
def traced() -> Iterator[list[Trace]]:
    """A list that gets one Trace for every call of prune() made in the `with` block, in this thread."""
    traces: list[Trace] = []
    token = TRACES.set(traces)
    try:
        yield traces
    finally:
        TRACES.reset(token)


def static(places: Tensor) -> None:
    """Say which places are static, (F, L) bool."""
    if (recorder := RECORDER.get()) is not None:
        recorder.static.copy_(places.flatten())


def salient(rows: Tensor, tokens: Tensor | None = None) -> None:
    """Say that these rows are kept by themselves; `tokens` as in merged()."""
    if (recorder := RECORDER.get()) is not None:
        recorder.roles[recorder.join(rows, rows, tokens)] = SALIENT


def merged(rows: Tensor, into: Tensor, tokens: Tensor | None = None) -> None:
    """Say that these rows become part of the kept rows `into`, one for each and of the same shape.

    tokens: (T,) or (T, c), the flat indices of the tokens in each row of the table that the method works on, the first
        of which is where the row stands; None: rows are flat indices.
    """
    if (recorder := RECORDER.get()) is not None:
        stands, roles = recorder.join(rows, into, tokens), recorder.roles
        # A token kept twice, by itself and for others, is salient.
        roles[stands] = torch.where(roles[stands] == SALIENT, SALIENT, CONTEXT).to(torch.uint8)


def sets(places: Tensor, tokens: Any, salient_places: Tensor, rest: Tensor, stand: Tensor, labels: Tensor) -> None:
    """Say what becomes of the places of Tango's Sets: those of `rest` go to stand[labels], salient ones stay.

    places: (F, L), as in static().
    A static token goes where the mean that it is part of goes; what has a label of len(stand) goes nowhere.
    """
    static(places)
    total = len(tokens.rows) - tokens.static.numel()
    went = torch.full_like(tokens.rows, -1)
    went[salient_places] = salient_places
    went[rest[labels < len(stand)]] = stand[labels[labels < len(stand)]]
    place = torch.arange(total, device=went.device)
    place[tokens.averaged] = (total + tokens.static.flatten().nonzero()[:, 0])[tokens.mean_of]
    there = (went[place] >= 0).nonzero()[:, 0]
    salient(tokens.home(salient_places))
    merged(there, tokens.home(went[place[there]]))


def recorded(traces: list[Trace], pruner: Any, video: VideoTokens, prune: Callable[[VideoTokens], Pruned]) -> Pruned:
    """What prune(video) returns; a Trace of the call is added to the list."""
    roles = torch.zeros(video.features[..., 0].numel(), dtype=torch.uint8, device=video.features.device)
    recorder = Recorder(roles, roles.bool())
    token = RECORDER.set(recorder)
    try:
        pruned = prune(video)
    finally:
        RECORDER.reset(token)
    kept = torch.zeros_like(recorder.static).index_fill_(0, pruned.indices, True)
    # An exact budget drops kept tokens at the end, and with them what was merged into them, or adds some as they are.
    roles = torch.where(kept, roles.clamp(min=KEPT), GONE)
    pairs = torch.cat([(roles == KEPT).nonzero().expand(-1, 2), *recorder.pairs])
    joined = _by_token(pairs[kept[pairs[:, 1]]], len(kept))
    traces.append(Trace(pruner, video, pruned, roles, joined, recorder.static))
    return pruned


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
