"""Frames of a video file, sampled evenly over its length, with the true time of each (PyAV)."""

from __future__ import annotations

import bisect
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

log = logging.getLogger(__name__)

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
        ValueError: no video, a damaged one, one that is cut short, or nothing in the asked-for part.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no video file {str(path)!r}")
    with _opened(path) as (container, stream):
        base = float(stream.time_base)
        times, keys = _index(container, stream, str(path))
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
        wanted = [part[i] for i in indices]
        frames, shown = _decode(container, stream, wanted, keys)
    if shown != wanted:  # formats without an index (MPEG-TS) seek past what was asked for: read the file from its start
        with _opened(path) as (container, stream):
            frames, shown = _decode(container, stream, wanted, None)
    if len(shown) < len(wanted):
        raise ValueError(
            f"{str(path)!r} is damaged: no frame could be decoded at {wanted[len(shown)] * base:.3f} s; get it anew"
        )
    return Clip(np.stack(frames), tuple((t - first) * base for t in shown), len(part), duration)


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """A file and its first video stream; what FFmpeg says against it becomes a ValueError that names the file."""
    try:
        with av.open(f"file:{path}") as container:  # without `file:`, a colon in the name would start a protocol's
            streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not streams:
                cover = " but a cover picture" if container.streams.video else ""
                raise ValueError(f"{str(path)!r} holds no video stream{cover}; pass a video file")
            if streams[0].time_base is None:
                raise ValueError(f"{str(path)!r}: its video stream has no time base")
            yield container, streams[0]
    except av.FFmpegError as error:
        raise ValueError(
            f"video {str(path)!r} cannot be read: {error.strerror}; pass a video file that is whole, in a format that "
            "FFmpeg knows"
        ) from error


def _index(container: Any, stream: Any, path: str) -> tuple[list[int], list[int]]:
    """Presentation times of all frames and of the key frames among them, ascending, read from the packets alone."""
    times, keys = [], []
    read, end = 0, 0.0  # packets of this stream, and the second at which the last packet of any ends
    # A file that promises no number of frames promises a duration, of its longest stream.
    for packet in container.demux(stream) if stream.frames else container.demux():
        if packet.pts is None or packet.size == 0:
            continue
        end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index != stream.index:
            continue
        read += 1
        if not packet.is_discard:
            times.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
    if not times:
        raise ValueError(f"{path!r} holds no video frames")
    if "mp4" in container.format.name and read < stream.frames:  # other formats only guess the number
        raise ValueError(f"{path!r} is cut short: it should hold {stream.frames} frames and holds {read}; get it anew")
    start, promised = (container.start_time or 0) / av.time_base, (container.duration or 0) / av.time_base
    if not stream.frames and end - start < 0.9 * promised - 1:
        log.warning("%s is cut short: it should last %.1f s and ends after %.1f s", path, promised, end - start)
    return sorted(times), sorted(keys)


def _decode(
    container: Any, stream: Any, wanted: list[int], keys: list[int] | None
) -> tuple[list[NDArray[np.uint8]], list[int]]:
    """The first frame at or after each wanted time, with its own time, as far as there are frames.

    Decodes only from the key frame before each; without `keys` from where the container is, which was just opened.
    """
    frames: list[NDArray[np.uint8]] = []
    shown: list[int] = []
    decoder: Any = None
    reached: int | None = None  # time of the last frame that came out of the decoder
    damaged: list[int] = []
    hurt = False  # whether that frame, or one that it is told apart from, was damaged
    for time in wanted:
        at = bisect.bisect_right(keys or [], time) - 1
        key = keys[at] if keys and at >= 0 else None
        if decoder is None or (key is not None and reached is not None and key > reached):
            if keys is not None:
                container.seek(key if key is not None else wanted[0], stream=stream, backward=True)
            decoder = container.decode(stream)
        for frame in decoder:
            hurt = frame.is_corrupt or (hurt and not frame.key_frame)
            if frame.pts is not None and frame.pts >= time:
                break
        else:
            break
        reached = frame.pts
        if hurt:
            damaged.append(time)
        shown.append(frame.pts)
        frames.append(frame.to_ndarray(format="rgb24"))
    if damaged:
        log.warning(
            "%s is damaged: %d of %d frames, the first at %.3f s, may not show what they should",
            container.name.removeprefix("file:"), len(damaged), len(wanted), damaged[0] * float(stream.time_base),
        )  # fmt: skip
    return frames, shown
