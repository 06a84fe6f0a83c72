"""Frames of a video file, sampled evenly over its length, as a player shows them, with the true time of each.

The reference is what `ffmpeg -i FILE -fps_mode passthrough` writes. PyAV brings FFmpeg's own demuxers, decoders and
filters with it, and the filters of the program are built from them (picture.py), so the answer is FFmpeg's. torchcodec
needs FFmpeg to be installed apart, as the program itself does.
"""

import contextlib
import errno
import functools
import logging
import math
import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import av
import av.logging
import numpy as np
from av.format import Flags
from av.stream import Disposition

from tango.inference.picture import Picture, Pictures

log = logging.getLogger(__name__)

# Chooses frames of a video, ascending indices, from how many it has and how many seconds they last.
Sampling = Callable[[int, float], Sequence[int]]
# What FFmpeg may take a file for: videos and single pictures that are one file. Not playlists, patterns of names, lists
# of files and text, which it opens as well, and which make it read other files or draw letters.
FORMATS = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h261,h263,h264,hevc,vvc,av1,obu,ivf,vc1,vc1test,dirac,cavsvideo,"
    "flv,live_flv,asf,ogg,nut,mxf,gxf,rm,dv,wtv,nsv,yuv4mpegpipe,mjpeg,gif,apng,"
    "jpeg_pipe,png_pipe,webp_pipe,bmp_pipe,tiff_pipe,jpegxl_pipe,jpegxl_anim,"
    "mp3,wav,aac,flac"  # hold sound alone, and are refused by that name
)
# Decoders whose threads take a frame each, 1.5 to 2.1 times as fast on two cores (results/performance/reading_cpu.md).
# What cannot be decoded is an error then and never made up for, which would be by what other threads have done so far.
# Not while PyAV logs: threads that have something to say wait for the GIL.
TOGETHER = ("h264", "hevc")
JUMP = 10  # seconds between two frames from which on the clock of a transport stream was set anew, as ffmpeg has it
_warned: set[tuple[str, str]] = set()  # files and what is wrong with them


@dataclass(frozen=True)
class Clip:
    """Sampled frames of a video.

    frames: (F, height, width, 3) uint8 RGB.
    timestamps: (F,) seconds since the video's first frame, as stored in the file.
    total_frames: how many frames the file (or the asked-for part of it) holds.
    duration: seconds that those last, taking the last one to last as long as the others do on average.
    """

    frames: Picture
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
    path: str | Path,
    num_frames: int | Sampling,
    start: float | None = None,
    end: float | None = None,
    resize: Callable[[int, Picture], Picture] | None = None,
) -> Clip:
    """Read `num_frames` frames of a video file, or of its part between `start` and `end` seconds.

    Frames are turned upright, in the colours that the file says, and all as large as its first. A file with fewer
    frames gives all it has. Times come from the container, so variable frame rates are right; a clock that is set back
    midway goes on from where it was.

    Args:
        num_frames: how many, or a function that chooses the frames of that part.
        resize: makes a frame (height, width, 3) smaller, from how many there will be and the frame. It is called as
            soon as a frame is decoded, so that one at a time is held in full size.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no video, one that no decoder knows or that is cut short, or nothing in the asked-for part.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no video file {str(path)!r}")
    clip = _read(path, num_frames, start, end, resize, seeking=True)
    clip = clip or _read(path, num_frames, start, end, resize, seeking=False)
    if clip is None:
        raise ValueError(f"video {str(path)!r} changed while it was read; read it again")
    return clip


def _read(
    path: str | Path, num_frames: Any, start: float | None, end: float | None, resize: Any, seeking: bool
) -> Clip | None:
    """read_video(), by the index that packets make or by decoding the file twice; None where that does not work."""
    with _opened(path) as (container, stream):
        base = float(stream.time_base)
        times, keys = _index(container, stream, path) if seeking else (_times(container, stream, path), [])
    if not times:
        return None
    first = times[0]
    low = first if start is None else first + start / base
    high = times[-1] if end is None else first + end / base
    part = [i for i, time in enumerate(times) if low <= time <= high]
    if not part:
        raise ValueError(
            f"{str(path)!r} has no frame from {start} s to {end} s; it lasts {(times[-1] - first) * base:.2f} s"
        )
    duration = (times[part[-1]] - times[part[0]]) * base * len(part) / (len(part) - 1) if len(part) > 1 else 0.0
    chosen = num_frames(len(part), duration) if callable(num_frames) else uniform_indices(len(part), num_frames)
    wanted = [part[i] for i in chosen]
    show = Pictures(None if resize is None else functools.partial(resize, len(wanted)))
    with _opened(path) as (container, stream):
        if seeking:
            if stream.codec_context.name in TOGETHER and av.logging.get_level() is None:
                stream.thread_type, stream.codec_context.options = "AUTO", {"err_detect": "explode"}
            pictures = _by_index(container, stream, times, keys, wanted, show)
        else:
            pictures, damaged = _in_order(container, stream, wanted, show)
            if damaged:
                at = (times[damaged[0]] - first) * base
                of = f"{len(damaged)} of {len(wanted)} frames, the first at {at:.3f} s, may not show what they should"
                _warn(path, "damaged", of)
    if len(pictures) < len({0, *wanted}):
        return None
    return Clip(
        np.stack([pictures[i] for i in wanted]), tuple((times[i] - first) * base for i in wanted), len(part), duration
    )


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """A file and the video stream that ffmpeg chooses; what FFmpeg says against it becomes a ValueError."""
    container = None
    try:
        with open(path, "rb", buffering=0) as file, contextlib.ExitStack() as stack:
            if os.fstat(file.fileno()).st_size == 0:  # so say files of /proc, too, which may block
                raise ValueError(f"video {str(path)!r} cannot be read: Invalid data, it is empty; pass a video file")
            # FFmpeg does not see the name, which it may take for an address or a pattern of names.
            nameless = stack.enter_context(open(file.fileno(), "rb", buffering=0, closefd=False))
            # As `options`, PyAV would hand them to streams that turn up later, too, and crash.
            only = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
            container = stack.enter_context(av.open(nameless, container_options=only, metadata_errors="replace"))
            yield container, shown_stream(container, str(path))
    except (av.FFmpegError, OSError) as error:
        if container is None and error.errno == errno.EINVAL:  # what the list of formats refuses
            raise ValueError(
                f"{str(path)!r} is not a video, but a playlist, text or another kind of file that FFmpeg would open or "
                "draw; pass a video file"
            ) from error
        raise ValueError(
            f"video {str(path)!r} cannot be read: {error.strerror}; pass a video file that is whole, in a format that "
            "FFmpeg knows"
        ) from error


def shown_stream(container: Any, path: str) -> Any:
    """The stream that ffmpeg chooses of several: the one that is marked as the default, else the largest picture."""
    streams = container.streams.video
    shown = [s for s in streams if not s.disposition & Disposition.attached_pic]
    if not shown:
        raise ValueError(
            f"{path!r} holds no video stream{' but a cover picture' if streams else ''}; pass a video file"
        )
    # A stream without a decoder has no context, and PyAV crashes where it is asked for more than that.
    known = [s for s in shown if s.codec_context is not None]
    if not known:
        raise ValueError(
            f"{path!r} is encrypted or in a codec that FFmpeg has no decoder for; convert it, to H.264 say"
        )
    stream = max(known, key=lambda s: s.width * s.height + 5_000_000 * bool(s.disposition & Disposition.default))
    if not stream.time_base:
        raise ValueError(f"{path!r}: its video stream has no time base")
    if stream.codec_context.name == "vp9":  # whose threads write past their memory where a file is damaged
        stream.thread_count = 1
    return stream


def _index(container: Any, stream: Any, path: str | Path) -> tuple[list[int], list[int]]:
    """Presentation times of all frames, ascending, and of the key frames, read from the packets alone.

    Both are empty where packets are no index: some have no time, two have the same, the clock is set anew, or the first
    is no key frame. A stream without an index to seek by (MPEG-TS) has its first key frame alone.
    """
    times: list[int] = []
    keys: list[int] = []
    read, end, trusted = 0, 0.0, True  # packets of this stream, and the second at which the last packet of any ends
    # A file that promises no number of frames may promise a duration, of its longest stream.
    streamed = bool(container.format.flags & Flags.ts_discont.value)
    lasts = not stream.frames and not streamed
    for packet in _packets(container, None if lasts else stream):
        if packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index != stream.index:
            continue
        read += 1
        trusted = trusted and packet.pts is not None and (bool(keys) or packet.is_keyframe)
        if trusted and packet.is_keyframe:
            trusted = not keys or packet.pts > keys[-1]
            keys.append(packet.pts)
        if trusted and not packet.is_discard:
            times.append(packet.pts)
    if "mp4" in container.format.name and read < stream.frames and _is_cut(path):  # others only guess the number
        raise ValueError(
            f"{str(path)!r} is cut short: it should hold {stream.frames} frames and holds {read}; get it anew"
        )
    late, promised = max((container.start_time or 0) / av.time_base, 0), (container.duration or 0) / av.time_base
    if lasts and end - late < 0.9 * (promised - late) - 1:
        _warn(path, "cut short", f"it should last {promised - late:.1f} s and ends after {end - late:.1f} s")
    if not trusted or not times or len(set(times)) < len(times) or keys[0] > min(times):
        return [], []
    times.sort()
    if streamed and any(after - before > JUMP / stream.time_base for before, after in pairwise(times)):
        return [], []
    return times, keys[:1] if streamed else keys


def _is_cut(path: str | Path) -> bool:
    """Whether the last box of an MP4 goes on behind the end of the file."""
    size, at = Path(path).stat().st_size, 0
    with open(path, "rb") as file:
        while at < size:
            file.seek(at)
            head = file.read(16)
            length = int.from_bytes(head[:4], "big")
            if len(head) < (16 if length == 1 else 8):  # within a head, which may look like a size of 0
                return True
            if length == 1:
                length = int.from_bytes(head[8:], "big")
            if length == 0:  # up to the end, however far that is
                return False
            at += max(length, 8)
    return at > size


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """Packets with something in them, up to the end of the file or the first that cannot be read."""
    with contextlib.suppress(av.FFmpegError, IndexError):  # the latter at the end, where a stream turned up midway
        for packet in container.demux() if stream is None else container.demux(stream):
            if packet.size:
                yield packet


def _decoded(container: Any, stream: Any) -> Iterator[tuple[Any, bool]]:
    """Frames from where the container is, each with whether it may not show what it should, for damage before it.

    Packets that cannot be decoded are passed over.
    """
    hurt = False
    for packet in chain(_packets(container, stream), [None]):  # None makes the decoder give up what it holds
        try:
            frames = stream.decode(packet)
        except av.FFmpegError:
            hurt = True
            continue
        for frame in frames:
            hurt = frame.is_corrupt or (hurt and not frame.key_frame)
            yield frame, hurt


def _times(container: Any, stream: Any, path: str | Path) -> list[int]:
    """Times of all frames in the order in which they are shown, from decoding them; rising, whatever the file says."""
    stream.thread_count = 1  # see _in_order()
    stamps = [(frame.pts, frame.dts) for frame, _ in _decoded(container, stream)]
    if not stamps:
        raise ValueError(f"{str(path)!r} holds no video frame that could be decoded; get it anew, or convert it")
    # AVI stores the order of decoding alone, from which FFmpeg may guess presentation times that jump to and fro.
    pts, dts = zip(*stamps, strict=True)
    clock = dts if _faults(dts) < _faults(pts) else pts
    step = max(round(1 / (stream.guessed_rate or 25) / stream.time_base), 1)
    anew = JUMP / stream.time_base if container.format.flags & Flags.ts_discont.value else math.inf
    times: list[int] = []
    offset = -(clock[0] or 0)
    for time in clock:
        expected = times[-1] + step if times else 0
        if time is None or not -step < time + offset - expected < anew:
            offset += 0 if time is None else expected - time - offset
            times.append(expected)
        else:
            times.append(time + offset)
        step = times[-1] - times[-2] if len(times) > 1 else step
    return times


def _faults(times: Sequence[int | None]) -> int:
    return sum(a is None or b is None or a >= b for a, b in pairwise(times))


def _by_index(
    container: Any, stream: Any, times: Sequence[int], keys: Sequence[int], wanted: Sequence[int], show: Pictures
) -> dict[int, Picture]:
    """Pictures of the wanted frames, each decoded from the key frame before it.

    They end where anything else comes out of the decoder than the packets promised: some have no frame of their own,
    some frames need more than their key frame, and some files seek past what was asked for.
    """
    pictures: dict[int, Picture] = {}
    decoder: Any = None
    begun, reached = 0, -1  # the frames that decoding began at, and that came out last
    for number in sorted({0, *wanted}):  # the first says how large all are
        key = keys[bisect_right(keys, times[number]) - 1]
        at = bisect_left(times, key)
        if decoder is None or at > reached + 1:
            if decoder is not None:  # not at the start, where some formats hand over what holds for the whole file
                try:
                    container.seek(key, stream=stream)
                except av.FFmpegError:
                    return pictures
            decoder, begun, reached = _decoded(container, stream), at, at - 1
        frame: Any = None
        while reached < number:
            frame, hurt = next(decoder, (None, True))
            if frame is not None and frame.pts is not None and frame.pts < key and reached < begun:
                continue  # stored after the key frame and shown before it
            reached += 1
            if hurt or frame.pts != times[reached]:
                return pictures
        pictures[number] = show(frame)
    return pictures


def _in_order(
    container: Any, stream: Any, wanted: Sequence[int], show: Pictures
) -> tuple[dict[int, Picture], list[int]]:
    """Pictures of the wanted frames, decoded from the start of the file, and which of them may be damaged."""
    stream.thread_count = 1  # with more, what shows in place of damage is another picture each time
    pictures: dict[int, Picture] = {}
    damaged: list[int] = []
    chosen, last = frozenset(wanted), max(wanted)
    for number, (frame, hurt) in enumerate(_decoded(container, stream)):
        if number == 0 or number in chosen:
            pictures[number] = show(frame)
            damaged += [number] * (hurt and number in chosen)
        if number == last:
            break
    return pictures, damaged


def _warn(path: str | Path, what: str, how: str) -> None:
    """Say what is wrong with a file, once however often it is read."""
    if (str(path), what) not in _warned:
        _warned.add((str(path), what))
        log.warning("%s is %s: %s", path, what, how)
