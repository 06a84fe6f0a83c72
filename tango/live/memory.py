"""What is held of a stream, in ever fewer tokens: segments that the method has pruned at several ratios as they closed.

The first level of a segment is what the method keeps of it. Each next one is the same method's choice, at half the
tokens, of the whole segment; where one token is left, neighbours are joined. So nothing is forgotten silently: `Held`
says of every second of the stream how many tokens are left of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tango.live.cuts import Cuts
from tango.live.encoder import Unit
from tango.ops.segmentation import holitom_threshold, neighbour_similarity
from tango.pruners.base import Pruner
from tango.pruners.tango import Tango
from tango.pruners.video import VideoTokens

PARTS = ("features", "saliency", "segment_features", "frame_vectors", "keys")


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


Cost = Callable[[Segment], int]  # entries of the language model that a segment takes


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


def thin(segments: list[Segment], room: float, policy: str, cost: Cost) -> list[Segment]:
    """Segments of at most `room` entries in all, by halving, or joining neighbours of one token, one after another.

    What is joined last is one segment.
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


class Holding:
    """Open frames, and closed segments within their room: takes in one unit after another.

    seam: of the method's attachment. samples, cost: of the layout. budget, window, policy: see Live. say: called with a
    sentence about each problem.
    """

    def __init__(
        self, seam: Any, samples: int, cost: Cost, budget: int, window: int, policy: str, say: Callable[[str], None]
    ) -> None:
        self.seam, self.samples, self.cost, self.policy, self.say = seam, samples, cost, policy, say
        self.budget, self.window, self.tail = budget, window, budget // 4  # the tail: of the open segment
        self.open: list[Unit] = []
        self.segments: list[Segment] = []
        self.grid: Any = None  # of every unit, once there is one
        self._number = 0  # of the first open frame
        self._cuts = Cuts(own_threshold(seam.pruner), window)

    def begin(self, unit: Unit) -> None:
        """How many frames may be open, from how many tokens the first one has."""
        if self.grid is not None:
            return
        self.grid = unit.grid
        pruner, budget = self.seam.pruner, self.budget
        each = max(1, math.ceil(pruner.retention_ratio * math.prod(unit.grid)))
        if each > self.tail:
            self.say(
                f"budget {budget} leaves {self.tail} tokens for the newest segment, and one frame keeps {each} "
                f"at ratio {pruner.retention_ratio:g}: it is pruned to fit; {4 * each} would do, or a lower ratio"
            )
        self._cuts.window = max(1, min(self.window, self.tail // each))

    def add(self, unit: Unit) -> None:
        """Take in a unit: close what it closes, and thin what is held."""
        self.begin(unit)
        similarity = None
        if self.open:
            pair = torch.cat([self.open[-1].parts["features"], unit.parts["features"]])
            similarity = neighbour_similarity(pair)[0].cpu()
        self.open.append(unit)
        for size, final in self._cuts.add(similarity):
            closed, self.open = self.open[:size], self.open[size:]
            kept = levels(self._pruner(), *self._video(closed))
            self.segments.append(self._segment(closed, kept, final=final))
            self._number += size
        room = self.budget - self.tail
        if sum(map(self.cost, self.segments)) > room:
            self.segments = thin(self.segments, 0.75 * room, self.policy, self.cost)

    def failed(self) -> None:
        """A unit failed: begin a new segment if that left the open one torn."""
        if self._cuts.frames != len(self.open):
            self._number += len(self.open)
            self.open, self._cuts = [], Cuts(self._cuts.threshold, self._cuts.window)
            self.say("the open segment was lost with a frame that failed")

    def newest(self, rest: Sequence[Unit] = ()) -> Segment | None:
        """The open frames and those after them, pruned for one question; None if there are none."""
        units = [*self.open, *rest]
        if not units:
            return None
        self.begin(units[0])
        pruner, (video, extra) = self._pruner(), self._video(units)
        found = self._segment(units, (prune(pruner, video, extra),))
        if (over := self.cost(found) - self.tail) > 0:
            count = max(1, len(found.kept.frames) - over)
            found = self._segment(units, (prune(pruner, video, extra, count),))
            while self.cost(found) > self.tail and count > 1:  # times as text
                count //= 2
                found = self._segment(units, (prune(pruner, video, extra, count),), level=1)
        return found

    def held(self) -> tuple[Held, ...]:
        """What is held, oldest first."""
        held = [
            Held(s.start, s.end, s.frames * self.samples, self.cost(s), s.level, s.joined, s.final)
            for s in self.segments
        ]
        if self.open:
            count = len(self.open) * self.samples
            held.append(Held(self.open[0].begin, self.open[-1].end, count, 0, 0, 1, None))
        return tuple(held)

    def _pruner(self) -> Pruner:
        pruner: Pruner = self.seam.pruner_for(self.grid)
        return pruner

    def _video(self, units: Sequence[Unit]) -> tuple[VideoTokens, Tensor | None]:
        """Frames as the method sees them, and their extra (F, L, X)."""
        there = [name for name in (*PARTS, "extra") if units[0].parts.get(name) is not None]
        parts = {name: torch.cat([unit.parts[name] for unit in units]) for name in there}
        extra = parts.pop("extra", None)
        times = torch.tensor([unit.time for unit in units], dtype=torch.float64)
        video = VideoTokens(**parts, grid=self.grid, timestamps=times, key=str(self._number))
        return video, None if extra is None or not extra.shape[-1] else extra

    def _segment(self, units: Sequence[Unit], kept: tuple[Kept, ...], final: bool = True, level: int = 0) -> Segment:
        times = torch.tensor([[unit.begin, unit.time] for unit in units], dtype=torch.float64)
        span = units[0].begin, units[-1].end
        return Segment(self._number, *span, len(units), times, kept, level=level, final=final)


def own_threshold(pruner: Pruner) -> float | None:
    """The similarity at which a method cuts whose segments are pruned each by itself; None for all other methods."""
    if not isinstance(pruner, Tango) or pruner.segmentation != "holitom" or pruner.exact_budget:
        return None
    return holitom_threshold(pruner.retention_ratio, pruner.similarity_threshold)
