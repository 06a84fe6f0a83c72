"""What a session holds of its stream within its budget: the open frames, and the segments that have closed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tango.live.cuts import Cuts
from tango.live.encoder import Unit
from tango.live.layout import Layout
from tango.live.memory import Held, Kept, Segment, levels, prune, thin
from tango.ops.segmentation import holitom_threshold, neighbour_similarity
from tango.pruners.base import Pruner
from tango.pruners.tango import Tango
from tango.pruners.video import VideoTokens

PARTS = ("features", "saliency", "segment_features", "frame_vectors", "keys")


class Holding:
    """Takes in one unit after another, closes segments and thins them.

    seam: of the method's attachment. budget, window, policy: see Live. say: called with a sentence about each problem.
    """

    def __init__(
        self, seam: Any, layout: Layout, budget: int, window: int, policy: str, say: Callable[[str], None]
    ) -> None:
        self.seam, self.layout, self.policy, self.say = seam, layout, policy, say
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
        room, cost = self.budget - self.tail, self.layout.cost
        if sum(map(cost, self.segments)) > room:
            self.segments = thin(self.segments, 0.75 * room, self.policy, cost)

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
        if (over := self.layout.cost(found) - self.tail) > 0:
            count = max(1, len(found.kept.frames) - over)
            found = self._segment(units, (prune(pruner, video, extra, count),))
            while self.layout.cost(found) > self.tail and count > 1:  # times as text
                count //= 2
                found = self._segment(units, (prune(pruner, video, extra, count),), level=1)
        return found

    def held(self) -> tuple[Held, ...]:
        """What is held, oldest first."""
        samples = self.layout.samples
        held = [
            Held(s.start, s.end, s.frames * samples, self.layout.cost(s), s.level, s.joined, s.final)
            for s in self.segments
        ]
        if self.open:
            count = len(self.open) * samples
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
