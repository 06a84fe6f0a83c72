"""Frames of a video file, sampled evenly over its length, as a player shows them, with the true time of each.

The reference is what `ffmpeg -i FILE -fps_mode passthrough` writes. PyAV brings FFmpeg's own demuxers, decoders and
filters with it, and from them the graph is built that the program builds: so turns, colours and sizes are FFmpeg's
answer. torchcodec needs FFmpeg to be installed apart, as the program itself would be.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import av
import av.error
import av.filter
import numpy as np
from av.format import Flags
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from numpy.typing import NDArray

log = logging.getLogger(__name__)

# Chooses frames of a video, ascending indices, from how many it has and how many seconds they last.
Sampling = Callable[[int, float], Sequence[int]]
Picture = NDArray[np.uint8]
# What FFmpeg may take a file for: videos and single pictures that are one file. Not playlists, patterns of names, lists
# of files and text, which it opens as well, and which make it read other files or draw letters.
FORMATS = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h261,h263,h264,hevc,vvc,av1,obu,ivf,vc1,vc1test,dirac,cavsvideo,"
    "flv,live_flv,asf,ogg,nut,mxf,gxf,rm,dv,wtv,nsv,yuv4mpegpipe,mjpeg,gif,apng,"
    "jpeg_pipe,png_pipe,webp_pipe,bmp_pipe,tiff_pipe,jpegxl_pipe,jpegxl_anim,"
    "mp3,wav,aac,flac"  # hold sound alone, and are refused by that name
)
# Colour matrices that swscale knows, by their numbers in the standard (H.273); it takes BT.601 for any other.
COLOURS = (0, 1, 4, 5, 6, 7, 9, 10)
UNSPECIFIED = 2
JUMP = 10  # seconds between two frames from which on the clock of a transport stream was set anew, as ffmpeg has it


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
    resize: Callable[[Picture, int], Picture] | None = None,
) -> Clip:
    """Read `num_frames` frames of a video file, or of its part between `start` and `end` seconds.

    Frames are turned upright, in the colours that the file says, and all as large as its first. A file with fewer
    frames gives all it has. Times come from the container, so variable frame rates are right; a clock that is set back
    midway goes on from where it was.

    Args:
        num_frames: how many, or a function that chooses the frames of that part.
        resize: makes a frame (height, width, 3) smaller, from it and the number of frames that there will be. It is
            called as soon as a frame is decoded, so that one frame at a time is held in full size.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no video, one that no decoder knows or that is cut short, or nothing in the asked-for part.
    """
    name = repr(str(path))
    if not Path(path).is_file():
        raise FileNotFoundError(f"no video file {name}")
    for seeking in (True, False):
        with _opened(path) as (container, stream):
            base = float(stream.time_base)
            times, keys = _index(container, stream, path) if seeking else (_times(container, stream, path), [])
            if not times:
                continue
            low = times[0] if start is None else times[0] + start / base
            high = times[-1] if end is None else times[0] + end / base
            part = [i for i, time in enumerate(times) if low <= time <= high]
            if not part:
                raise ValueError(
                    f"{name} has no frame from {start} s to {end} s; it lasts {(times[-1] - times[0]) * base:.2f} s"
                )
            duration = (times[part[-1]] - times[part[0]]) * base
            duration = duration * len(part) / (len(part) - 1) if len(part) > 1 else 0.0
            chosen = num_frames(len(part), duration) if callable(num_frames) else uniform_indices(len(part), num_frames)
            wanted = [part[i] for i in chosen]
        with _opened(path) as (container, stream):
            shown = _Shown(resize, len(wanted))
            if seeking:
                pictures = _by_index(container, stream, times, keys, wanted, shown)
            else:
                pictures = _in_order(container, stream, wanted, shown, path)
        if pictures is not None:
            break
    if len(missing := set(wanted) - set(pictures)):
        raise ValueError(f"{name} changed while it was read: frame {min(missing)} is gone")
    seconds = tuple((times[i] - times[0]) * base for i in wanted)
    return Clip(np.stack([pictures[i] for i in wanted]), seconds, len(part), duration)


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """A file and the video stream that ffmpeg chooses; what FFmpeg says against it becomes a ValueError."""
    try:
        with open(path, "rb", buffering=0) as file, contextlib.ExitStack() as stack:
            if os.fstat(file.fileno()).st_size == 0:  # so say files of /proc, too, which may block
                raise ValueError(f"video {str(path)!r} cannot be read: Invalid data, it is empty; pass a video file")
            # FFmpeg does not see the name, which it may take for an address or a pattern of names.
            nameless = stack.enter_context(open(file.fileno(), "rb", buffering=0, closefd=False))
            options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
            try:
                container = stack.enter_context(av.open(nameless, options=options, metadata_errors="replace"))
            except av.error.ArgumentError as error:
                raise ValueError(
                    f"{str(path)!r} is not a video, but text, a playlist or another kind of file that FFmpeg would read "
                    "more from; pass a video file"
                ) from error
            yield container, _stream(container, str(path))
    except (av.FFmpegError, OSError) as error:
        raise ValueError(
            f"video {str(path)!r} cannot be read: {error.strerror}; pass a video file that is whole, in a format that "
            "FFmpeg knows"
        ) from error


def _stream(container: Any, path: str) -> Any:
    """The stream that ffmpeg chooses of several: the one that is marked as the default, else the largest picture."""
    streams = [s for s in container.streams if s.type == "video"]
    shown = [s for s in streams if not s.disposition & Disposition.attached_pic]
    if not shown:
        raise ValueError(
            f"{path!r} holds no video stream{' but a cover picture' if streams else ''}; pass a video file"
        )
    # A stream without a decoder has no context, and PyAV crashes where it is asked for more than that.
    known = [s for s in shown if s.codec_context is not None]
    if not known:
        raise ValueError(f"{path!r} is encrypted or in a codec that FFmpeg has no decoder for; convert it, to H.264 say")
    stream = max(
        known, key=lambda s: s.width * s.height + 5_000_000 * bool(s.disposition & Disposition.default)
    )
    if not stream.time_base:
        raise ValueError(f"{path!r}: its video stream has no time base")
    return stream


def _index(container: Any, stream: Any, path: str | Path) -> tuple[list[int], list[int]]:
    """Presentation times of all frames, ascending, and of the key frames, read from the packets alone.

    Both are empty where packets do not tell: some have no time, two have the same, or the first is no key frame.
    """
    times: list[int] = []
    keys: list[int] = []
    read, end, told = 0, 0.0, True  # packets of this stream, and the second at which the last packet of any ends
    matroska = "matroska" in container.format.name  # promises a duration, of its longest stream
    for packet in _packets(container, None if matroska else stream):
        if packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index != stream.index:
            continue
        told &= packet.pts is not None and (read > 0 or packet.is_keyframe)
        read += 1
        if not packet.is_discard:
            times.append(packet.pts)
        if packet.is_keyframe:
            keys.append(packet.pts)
    if "mp4" in container.format.name and read < stream.frames and _is_cut(path):  # others only guess the number
        raise ValueError(
            f"{str(path)!r} is cut short: it should hold {stream.frames} frames and holds {read}; get it anew"
        )
    late, promised = max((container.start_time or 0) / av.time_base, 0), (container.duration or 0) / av.time_base
    if matroska and end - late < 0.9 * (promised - late) - 1:
        _warn(f"{path} is cut short: it should last {promised - late:.1f} s and ends after {end - late:.1f} s")
    if not told or not times or len(set(times)) < len(times) or min(keys) > min(times):
        return [], []
    return sorted(times), sorted(keys)


def _is_cut(path: str | Path) -> bool:
    """Whether the last box of an MP4 goes on behind the end of the file."""
    size, at = Path(path).stat().st_size, 0
    with open(path, "rb") as file:
        while at < size:
            file.seek(at)
            head = file.read(16).ljust(16, b"\0")
            length = int.from_bytes(head[:4], "big")
            if length == 1:
                length = int.from_bytes(head[8:], "big")
            if length == 0:  # up to the end, however far that is
                return False
            at += max(length, 8)
    return at > size


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """Packets with something in them, up to the end of the file or the first that cannot be read."""
    with contextlib.suppress(av.FFmpegError):
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
    stamps = [(frame.pts, frame.dts) for frame, _ in _decoded(container, stream)]
    if not stamps:
        raise ValueError(f"{str(path)!r} holds no video frame that could be decoded; get it anew, or convert it")
    # AVI stores the order of decoding alone, from which FFmpeg may guess presentation times that jump to and fro.
    said = min(zip(*stamps, strict=True), key=lambda column: sum(not _rises(*pair) for pair in pairwise(column)))
    step = max(round(1 / (stream.guessed_rate or 25) / stream.time_base), 1)
    anew = JUMP / stream.time_base if container.format.flags & Flags.ts_discont.value else math.inf
    times: list[int] = []
    offset = -(said[0] or 0)
    for time in said:
        expected = times[-1] + step if times else 0
        if time is None or not -step < time + offset - expected < anew:
            offset += 0 if time is None else expected - time - offset
            times.append(expected)
        else:
            times.append(time + offset)
        step = times[-1] - times[-2] if len(times) > 1 else step
    return times


def _rises(before: int | None, after: int | None) -> bool:
    return before is not None and after is not None and before < after


def _by_index(
    container: Any, stream: Any, times: Sequence[int], keys: Sequence[int], wanted: Sequence[int], shown: _Shown
) -> dict[int, Picture] | None:
    """Pictures of the wanted frames, each decoded from the key frame before it.

    None where anything else comes out of the decoder than the packets promised: files without an index (MPEG-TS) seek
    past what was asked for, some packets have no frame of their own, and some frames need more than their key frame.
    """
    pictures: dict[int, Picture] = {}
    decoder: Any = None
    first, reached = 0, -1  # the frames with which decoding began, and that came out last
    for number in sorted({0, *wanted}):  # the first says how large all are
        key = keys[bisect_right(keys, times[number]) - 1]
        if decoder is None or (reached < number and bisect_left(times, key) > reached + 1):
            try:
                container.seek(key, stream=stream)
            except av.FFmpegError:
                return None
            decoder, first = _decoded(container, stream), bisect_left(times, key)
            reached = first - 1
        while reached < number:
            frame, hurt = next(decoder, (None, True))
            if frame is not None and frame.pts is not None and frame.pts < key and reached < first:
                continue  # stored after the key frame and shown before it
            reached += 1
            if hurt or frame.pts != times[reached]:
                return None
        pictures[number] = shown.picture(frame)
    return pictures


def _in_order(container: Any, stream: Any, wanted: Sequence[int], shown: _Shown, path: str | Path) -> dict[int, Picture]:
    """Pictures of the wanted frames, decoded from the start of the file."""
    pictures: dict[int, Picture] = {}
    damaged: list[int] = []
    for number, (frame, hurt) in enumerate(_decoded(container, stream)):
        if number == 0 or number in wanted:
            pictures[number] = shown.picture(frame)
            damaged += [number] * (hurt and number in wanted)
        if number == max(wanted):
            break
    if damaged:
        _warn(
            f"{path} is damaged: {len(damaged)} of {len(wanted)} frames, the first of them number {damaged[0]}, may not "
            "show what they should"
        )
    return pictures


class _Shown:
    """Pictures of decoded frames, through the filters that ffmpeg's program puts behind a decoder."""

    def __init__(self, resize: Callable[[Picture, int], Picture] | None, count: int) -> None:
        self._resize, self._count = resize, count
        self._size: tuple[int, int] | None = None  # width and height of the first frame, upright
        self._made_for: tuple[Any, ...] | None = None
        self._graph: Any = None

    def picture(self, frame: Any) -> Picture:
        """(height, width, 3) RGB."""
        matrix = frame.side_data.get(SideData.DISPLAYMATRIX)
        matrix = None if matrix is None else struct.unpack("=9i", bytes(matrix))
        space = int(frame.colorspace) if int(frame.colorspace) in COLOURS else UNSPECIFIED
        frame.colorspace = space
        wanted = (frame.width, frame.height, frame.format.name, space, int(frame.color_range), matrix)
        if wanted != self._made_for:
            self._graph, self._made_for = self._filters(*wanted), wanted
        self._graph.vpush(frame)
        out = self._graph.vpull()
        self._size = self._size or (out.width, out.height)
        picture: Picture = out.to_ndarray()
        return picture if self._resize is None else self._resize(picture, self._count)

    def _filters(
        self, width: int, height: int, pixels: str, space: int, levels: int, matrix: tuple[int, ...] | None
    ) -> Any:
        graph = av.filter.Graph()
        nodes = [
            graph.add(
                "buffer",
                f"video_size={width}x{height}:pix_fmt={pixels}:time_base=1/1000:colorspace={space}:range={levels}",
            )
        ]
        nodes += [graph.add(name, arguments) for name, arguments in _turns(matrix)]
        if self._size is not None:
            nodes.append(graph.add("scale", f"{self._size[0]}:{self._size[1]}:flags=bicubic"))
        nodes += [graph.add("format", "rgb24"), graph.add("buffersink")]
        graph.link_nodes(*nodes).configure()
        return graph


def _turns(matrix: tuple[int, ...] | None) -> list[tuple[str, str | None]]:
    """Filters, with their arguments, that show a frame as its display matrix says (fftools' autorotation)."""
    if matrix is None:
        return []
    a, b, _, c, d = matrix[:5]
    if not math.hypot(a, c) or not math.hypot(b, d):
        return []
    turn = round(math.degrees(math.atan2(b / math.hypot(b, d), a / math.hypot(a, c)))) % 360
    if turn == 90:
        return [("transpose", "cclock_flip" if c > 0 else "clock")]
    if turn == 180:
        return [("hflip", None)] * (a < 0) + [("vflip", None)] * (d < 0)
    if turn == 270:
        return [("transpose", "clock_flip" if c < 0 else "cclock")]
    if turn:
        return [("rotate", f"{turn}*PI/180")]
    return [("vflip", None)] * (d < 0)


@functools.lru_cache(maxsize=1024)
def _warn(message: str) -> None:
    """Say it once, however often a file is read."""
    log.warning("%s", message)
