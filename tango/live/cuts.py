"""Segments of a stream, closed as frames come: HoliTom's dynamic program, with the cuts that no later frame can move.

`ops.segmentation.holitom` cuts a finished clip. Its last segment starts at one of the frames that still share a static
place with the newest one, at the newest one, or after it: a window that has no static place gains nothing, and a cut
before its last frame is tried first. What the best partitions before all of these starts have in common is therefore
part of the partition of the finished clip, however it goes on, as the surviving paths of a Viterbi decoder agree on
what is long past. Where no place stays static across a cut, that is so at once.
"""

from itertools import pairwise

import torch
from torch import Tensor


class Cuts:
    """The segments of a stream's frames, of which the newest are open: at most `window` of them.

    threshold: similarity above which a place is static. None, for methods that cut a video in other ways: no cut is
    final, and a segment ends where the window is full.
    """

    def __init__(self, threshold: float | None, window: int) -> None:
        self.threshold, self.window = threshold, window
        self.static: list[Tensor] = []  # (L,) bool, of each pair of neighbours among the open frames
        self._begin()

    def _begin(self) -> None:
        self.frames = 0
        self._run: Tensor | None = None  # (L,) pairs in a row, up to the last one, in which a place is static
        self._best, self._length = [0], [0]  # of the first j open frames: the gain, and frames in the last segment
        self._starts: list[int] = []  # open frames before which later segments may start

    def add(self, similarity: Tensor | None) -> list[tuple[int, bool]]:
        """Take in a frame whose places have this similarity (L,) to those of the frame before; None for the first.

        Returns what is closed by it, oldest first: frames in each segment, and whether its end is that of the finished
        clip, or was set since the window was full.
        """
        if similarity is not None and self.frames:
            level = torch.inf if self.threshold is None else self.threshold
            self.static.append(similarity > level)
        self._step()
        paths = [set(self._path(start)) for start in self._starts]
        end, final = max(set.intersection(*paths)), True
        if self.threshold is None:
            end = 0
        if end == 0 and self.frames > self.window:
            within = [cut for cut in self._path(self.frames) if 0 < cut < self.frames]
            end, final = self.frames - 1 if self.threshold is None or not within else within[0], False
        return self._close(end, final) if end else []

    def _step(self) -> None:
        """The recurrence for one more open frame."""
        self.frames += 1
        count = self.frames
        places = [0]  # static places of the windows of 1, 2, .. frames that end here
        if count > 1:
            static = self.static[count - 2]
            self._run = torch.where(static, (0 if self._run is None else self._run) + 1, 0)
            # As holitom() does: as many places are static over g pairs as runs are at least g long.
            places = torch.bincount(self._run, minlength=count).flip(0).cumsum(0).flip(0)[:count].tolist()
        totals = [self._best[count - 1 - pairs] + pairs * places[pairs] for pairs in range(count)]
        best = max(totals)
        self._best.append(best)
        self._length.append(totals.index(best) + 1)  # the first of equals
        self._starts = [count, *(count - 1 - pairs for pairs in range(count) if pairs == 0 or places[pairs])]

    def _path(self, end: int) -> list[int]:
        """Where segments of the best partition of the first `end` open frames end, from the last to 0."""
        cuts = [end]
        while end:
            end -= self._length[end]
            cuts.append(end)
        return cuts

    def _close(self, end: int, final: bool) -> list[tuple[int, bool]]:
        """The segments of the first `end` open frames; begin anew after them."""
        cuts = self._path(end)[::-1] if self.threshold is not None else [0, end]
        sizes = [after - before for before, after in pairwise(cuts)]
        count = self.frames - end
        self.static = self.static[end:]
        self._begin()
        for _ in range(count):
            self._step()
        return [(size, final) for size in sizes]
