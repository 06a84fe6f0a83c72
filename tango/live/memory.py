"""What is held of a stream, in ever fewer tokens: segments that the method has pruned at several ratios as they closed.

The first level of a segment is what the method keeps of it. Each next one is the same method's choice, at half the
tokens, of the whole segment; where one token is left, neighbours are joined. So nothing is forgotten silently: `Held`
says of every second of the stream how many tokens are left of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from tango.pruners.base import Pruner
from tango.pruners.video import VideoTokens


@dataclass(frozen=True)
class Held:
    """What is held of a stretch of the stream.

    start, end: seconds of its first and its last frame. frames: how many came in it. tokens: entries of the language
    model that stand for them, times as text included. level: 0 as the method pruned it, k: to the 2^k-th part or less;
    joined: segments that are one now. final: its end is a cut of the finished clip too, False where it was set because
    the window was full; None: it is open, and pruned at each question.
    """

    start: float
    end: float
    frames: int
    tokens: int
    level: int
    joined: int
    final: bool | None


@dataclass(frozen=True)
class Kept:
    """Tokens of a segment: features (K, D), extra (K, X) or None, and of each its frame (K,) and place in it (K,)."""

    features: Tensor
    extra: Tensor | None
    frames: Tensor
    places: Tensor

    def last(self) -> Kept:
        """The last of the tokens alone."""
        extra = None if self.extra is None else self.extra[-1:]
        return Kept(self.features[-1:], extra, self.frames[-1:], self.places[-1:])


@dataclass(frozen=True)
class Segment:
    """A closed segment, or several that were joined.

    number: of its first frame in the stream. times: seconds since the stream's first frame (F, 2) at which its frames
    begin, and that the method saw (they differ where a frame is two sampled ones). levels: what may be kept of it, the
    one in use first.
    """

    number: int
    start: float
    end: float
    frames: int
    times: Tensor
    levels: tuple[Kept, ...]
    level: int = 0
    joined: int = 1
    final: bool = True

    @property
    def kept(self) -> Kept:
        """The tokens in use."""
        return self.levels[0]

    @property
    def shown(self) -> Tensor:
        """The frames of which the language model sees the time: all, after thinning those with a token left."""
        return torch.arange(len(self.times)) if self.level == 0 else torch.unique(self.kept.frames).cpu()


def prune(pruner: Pruner, video: VideoTokens, extra: Tensor | None, count: int | None = None) -> Kept:
    """What a method keeps of a video of F frames of L tokens; with a count, exactly so many tokens."""
    frames, tokens, _ = video.features.shape
    if count is not None:
        pruner = replace(pruner, retention_ratio=count / (frames * tokens), exact_budget=True)
    pruned = pruner.prune_tokens(video)
    indices = pruned.indices
    of_place = None if extra is None else extra.flatten(0, 1)[indices.to(extra.device)]
    # Copies, so that nothing holds the segment's other tokens.
    return Kept(pruned.features.clone(), of_place, indices // tokens, indices % tokens)


def levels(pruner: Pruner, video: VideoTokens, extra: Tensor | None) -> tuple[Kept, ...]:
    """The method's choice of a segment, and its choices at half the tokens, a quarter, .. down to one."""
    found = [prune(pruner, video, extra)]
    while (count := len(found[-1].frames) // 2) >= 1:
        found.append(prune(pruner, video, extra, count))
    return tuple(found)


def halved(segment: Segment) -> Segment:
    """The same at its next level."""
    return replace(segment, levels=segment.levels[1:], level=segment.level + 1)


def join(first: Segment, second: Segment) -> Segment:
    """Two neighbours of one token each as one of one token, the later one's."""
    kept = second.kept.last()
    times = second.times[kept.frames.cpu()]
    return replace(
        second,
        number=first.number,
        start=first.start,
        frames=first.frames + second.frames,
        times=times,
        levels=(replace(kept, frames=torch.zeros_like(kept.frames)),),
        level=max(first.level, second.level, 1),
        joined=first.joined + second.joined,
    )


# What is thinned next: the largest of these, of tokens, frames and seconds since it began.
POLICIES: dict[str, Callable[[int, int, float], float]] = {
    "fade": lambda tokens, frames, age: tokens / frames * age,  # tokens a frame as one over its age
    "oldest": lambda tokens, frames, age: age,  # the recent as it was, of the past a trace
    "even": lambda tokens, frames, age: tokens / frames,  # alike over all of the stream
}


def thin(segments: list[Segment], room: float, policy: str, cost: Callable[[Segment], int]) -> list[Segment]:
    """Segments of at most `room` entries in all, by halving, or joining neighbours of one token, one after another.

    cost: the entries of the language model that a segment takes. What is joined last is one segment.
    """
    rank, found = POLICIES[policy], list(segments)
    costs = [cost(segment) for segment in found]
    now = max(segment.end for segment in found) if found else 0.0
    while sum(costs) > room:
        choices: list[tuple[float, int, int]] = []  # rank, place, how many become one
        for place, segment in enumerate(found):
            if len(segment.levels) > 1:
                choices.append((rank(len(segment.kept.frames), segment.frames, now - segment.start), -place, 1))
        for place, (first, second) in enumerate(pairwise(found)):
            if len(first.levels) == len(second.levels) == 1:
                tokens = len(first.kept.frames) + len(second.kept.frames)
                choices.append((rank(tokens, first.frames + second.frames, now - first.start), -place, 2))
        if not choices:
            break
        _, place, count = max(choices)
        place = -place
        new = halved(found[place]) if count == 1 else join(found[place], found[place + 1])
        found[place : place + count] = [new]
        costs[place : place + count] = [cost(new)]
    return found
