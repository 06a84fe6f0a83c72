"""Frames of a video file, sampled evenly over its length, with the true time of each (PyAV)."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

# Chooses frames of a video, ascending indices, from how many it has and how many seconds they last.
Sampling = Callable[[int, float], Sequence[int]]


@dataclass(frozen=True)
class Clip:
    """Sampled frames of a video.

    frames: (F, height, width, 3) uint8 RGB.
    timestamps: (F,) seconds since the video's first frame, as stored in the file.
    total_frames: how many frames the file (or the asked-for part of it) holds.
    duration: seconds that those last, taking the last one to last as long as the others do on average.
    """

    frames: NDArray[np.uint8]
    timestamps: tuple[float, ...]
    total_frames: int
    duration: float


def uniform_indices(total: int, count: int) -> list[int]:
    """Indices of `count` frames of `total`, evenly spread, with the first and the last; all if there are no more."""
    if count < 1 or total < 1:
        raise ValueError(f"cannot sample {count} of {total} frames; both must be at least 1")
    if total <= count:
        return list(range(total))
    return [int(index) for index in np.linspace(0, total - 1, count).astype(int)]


def read_video(
    path: str | Path, num_frames: int | Sampling, start: float | None = None, end: float | None = None
) -> Clip:
    """Read `num_frames` frames of a video file, or of its part between `start` and `end` seconds.

    A file with fewer frames gives all it has. Frame times come from the container, so variable frame rates are right.
    A function in place of `num_frames` chooses the frames of that part.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no video in it, nothing in the asked-for part, or it ends before a frame that its index promises.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no video file {str(path)!r}")
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError(f"{str(path)!r} holds no video stream")
        stream = container.streams.video[0]
        if stream.time_base is None:
            raise ValueError(f"{str(path)!r}: its video stream has no time base")
        base = float(stream.time_base)
        times, keys = _index(container, stream)
        if not times:
            raise ValueError(f"{str(path)!r} holds no video frames")
        first = times[0]
        low = first if start is None else first + start / base
        high = times[-1] if end is None else first + end / base
        part = [t for t in times if low <= t <= high]
        if not part:
            raise ValueError(
                f"{str(path)!r} has no frame from {start} s to {end} s; it lasts {(times[-1] - first) * base:.2f} s"
            )
        duration = (part[-1] - part[0]) * base * len(part) / (len(part) - 1) if len(part) > 1 else 0.0
        indices = num_frames(len(part), duration) if callable(num_frames) else uniform_indices(len(part), num_frames)
        frames, shown = _decode(container, stream, [part[i] for i in indices], keys, str(path))
    return Clip(np.stack(frames), tuple((t - first) * base for t in shown), len(part), duration)


def _index(container: Any, stream: Any) -> tuple[list[int], list[int]]:
    """Presentation times of all frames and of the key frames among them, ascending, read from the packets alone."""
    times, keys = [], []
    for packet in container.demux(stream):
        if packet.pts is not None and packet.size > 0 and not packet.is_discard:
            times.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
    return sorted(times), sorted(keys)


def _decode(
    container: Any, stream: Any, wanted: list[int], keys: list[int], path: str
) -> tuple[list[NDArray[np.uint8]], list[int]]:
    """The first frame at or after each wanted time, with its own time, decoding only from the key frame before each."""
    frames: list[NDArray[np.uint8]] = []
    shown: list[int] = []
    decoder: Any = None
    reached: int | None = None  # time of the last frame that came out of the decoder
    for time in wanted:
        at = bisect.bisect_right(keys, time) - 1
        key = keys[at] if at >= 0 else None
        if decoder is None or (key is not None and reached is not None and key > reached):
            container.seek(key if key is not None else wanted[0], stream=stream, backward=True)
            decoder = container.decode(stream)
        frame = next((f for f in decoder if f.pts is not None and f.pts >= time), None)
        if frame is None:
            raise ValueError(
                f"{path!r} is damaged: no frame could be decoded at {time * float(stream.time_base):.3f} s"
            )
        reached = frame.pts
        shown.append(frame.pts)
        frames.append(frame.to_ndarray(format="rgb24"))
    return frames, shown
