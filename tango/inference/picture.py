"""Decoded frames as a player shows them: upright, in the colours that the file says, all as large as the first.

These are the filters that ffmpeg's program puts behind a decoder, so the pictures are FFmpeg's own.
"""

import math
import struct
from collections.abc import Callable
from typing import Any

import av.filter
import numpy as np
from av.sidedata.sidedata import Type as SideData
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
# Colour matrices that swscale knows, by their numbers in H.273, as it takes them. Without one, or with another: BT.601.
MATRICES = {0: 0, 1: 1, 4: 4, 5: 5, 6: 6, 7: 7, 9: 9, 10: 9}
UNSPECIFIED = 2


class Pictures:
    """Makes pictures of the frames of one video, of which the first comes first.

    resize: applied to each.
    """

    def __init__(self, resize: Callable[[Picture], Picture] | None = None) -> None:
        self._resize = resize
        self._size: tuple[int, int] | None = None  # width and height of the first, upright
        self._made_for: tuple[Any, ...] | None = None
        self._graph: Any = None

    def __call__(self, frame: Any) -> Picture:
        """(height, width, 3) RGB."""
        stored = frame.side_data.get(SideData.DISPLAYMATRIX)
        turns = [] if stored is None else filters(struct.unpack("=9i", bytes(stored)))
        frame.colorspace = MATRICES.get(int(frame.colorspace), UNSPECIFIED)
        source = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1000"
        source += f":colorspace={int(frame.colorspace)}:range={int(frame.color_range)}"
        if self._made_for != (source, turns):
            self._made_for, self._graph = (source, turns), av.filter.Graph()
            if self._size is not None:
                turns = [*turns, ("scale", f"{self._size[0]}:{self._size[1]}:flags=bicubic")]
            chain: list[tuple[str, str | None]] = [
                ("buffer", source),
                *turns,
                ("format", "rgb24"),
                ("buffersink", None),
            ]
            self._graph.link_nodes(*(self._graph.add(name, arguments) for name, arguments in chain)).configure()
        self._graph.vpush(frame)
        shown = self._graph.vpull()
        self._size = self._size or (shown.width, shown.height)
        picture: Picture = shown.to_ndarray()
        return picture if self._resize is None else self._resize(picture)


def filters(matrix: tuple[int, ...]) -> list[tuple[str, str | None]]:
    """Filters, with their arguments, that turn a frame as its display matrix says, chosen as ffmpeg chooses them."""
    a, b, _, c, d = matrix[:5]
    across, down = math.hypot(a, c), math.hypot(b, d)
    if not across or not down:
        return []
    turn = round(math.degrees(math.atan2(b / down, a / across))) % 360
    if turn == 90:
        return [("transpose", "cclock_flip" if c > 0 else "clock")]
    if turn == 270:
        return [("transpose", "clock_flip" if c < 0 else "cclock")]
    if turn not in (0, 180):
        return [("rotate", f"{turn}*PI/180")]
    flips: list[tuple[str, str | None]] = [("vflip", None)] if d < 0 else []
    return [("hflip", None), *flips] if turn == 180 and a < 0 else flips
