"""Where frames come from: a video file, a folder of images, a camera, an HTTP, HLS or RTSP address, standard input.

Addresses and playlists are opened here alone, by what the user typed: a file is read as inference/video.py reads it, so
it cannot name another, and what comes from the network cannot name a file of this machine.
"""

import contextlib
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import SplitResult, urlsplit

import av
import numpy as np
from PIL import Image, UnidentifiedImageError

from tango.inference.files import check_regular
from tango.inference.picture import Picture, Pictures
from tango.inference.video import FORMATS, shown_stream

FILES = "file,pipe,fd"
PROTOCOLS = {
    "http": "http,https,tcp,tls,crypto,data,httpproxy",
    "rtsp": "rtp,srtp,udp,tcp,tls,rtsp,rtsps,http,https",
}
SCHEMES = {"http": "http", "https": "http", "rtsp": "rtsp", "rtsps": "rtsp"}
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
JUMP = 10.0  # seconds between frames from which on a clock was set anew
LONGEST_PAUSE = 8.0  # seconds between two tries to connect
Timed = tuple[Picture, float]


def address(name: str) -> SplitResult:
    """The parts of an address; empty ones of a name that is none, as `http:b.mp4` of a file.

    Raises:
        ValueError: the host or the port of it cannot be.
    """
    try:
        parts = urlsplit(name if "://" in name else "")
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"the address cannot be: {error}; give one as rtsp://camera.local:554/stream") from error
    return parts


class Clock:
    """Seconds since a stream's first frame, rising whatever its time stamps do, and running on while it is away."""

    def __init__(self) -> None:
        self.last: float | None = None
        self._offset: float | None = None
        self._step, self._seen = 0.04, 0.0

    def __call__(self, stamp: float | None) -> float:
        """The time of a frame with this time stamp; None: it has none."""
        if self._offset is None:  # the first, also after a pause
            start = 0.0 if self.last is None else self.last + max(self._step, time.monotonic() - self._seen)
            self._offset = start - (stamp or 0.0)
        now = None if stamp is None else stamp + self._offset
        if self.last is not None and (now is None or not 0 < now - self.last < JUMP):
            now = self.last + self._step
            self._offset += 0.0 if stamp is None else now - (stamp + self._offset)
        elif self.last is not None and now is not None:
            self._step = now - self.last
        self.last, self._seen = now or 0.0, time.monotonic()
        return self.last

    def known(self, stamp: float | None) -> bool:
        """Whether the frame of this time stamp, on the same clock as before, came before the last one."""
        known = stamp is not None and self._offset is not None and self.last is not None
        return known and (stamp or 0.0) + (self._offset or 0.0) <= (self.last or 0.0)

    def again(self) -> None:
        """Another connection follows, with time stamps of its own."""
        self._offset = None


class Source:
    """Frames of a source at their own pace: iterate for pictures (height, width, 3) uint8 RGB and their seconds.

    Args:
        name: a file, a folder of images, /dev/video0, an http(s) or rtsp(s) address, or - for standard input.
        fps: no more frames a second than that are turned into pictures; of a folder, how many images make a second.
        pace: wait until a frame is due; False gives them as fast as they are read.
        say: called with a sentence about each thing that goes wrong and is got over.
        timeout: seconds after which a connection that gives nothing is taken for lost.
        patience: seconds of trying to connect again after which the source has ended.

    Raises:
        ValueError: there is no such source, or nothing in it that can be shown.
    """

    def __init__(
        self,
        name: str,
        fps: float | None = 1.0,
        pace: bool = True,
        say: Callable[[str], None] = lambda _: None,
        timeout: float = 10.0,
        patience: float = 60.0,
    ) -> None:
        parts = address(name)
        # What is told goes into logs, where a password does not belong.
        self.shown = name.replace(f"{parts.netloc.rpartition('@')[0]}@", "") if "@" in parts.netloc else name
        self.name, self.fps, self.pace, self.say = name, fps, pace, say
        self.timeout, self.patience = timeout, patience
        self.connections = self.damaged = 0
        self.stopped = threading.Event()
        self.scheme = SCHEMES.get(parts.scheme.lower(), "")
        camera = name.startswith("/dev/video")
        if "://" in name and not self.scheme:
            raise ValueError(f"{self.shown!r}: streams are read from {', '.join(SCHEMES)} addresses")
        if self.scheme and not parts.hostname:
            raise ValueError(f"{self.shown!r} names no host: give one, as in {parts.scheme}://camera.local/stream")
        if not (self.scheme or camera or name == "-" or (name and Path(name).exists())):
            raise ValueError(f"no source {name!r}: give a video file, a folder of images, an address, a camera or -")
        self.live = bool(self.scheme) or camera

    def stop(self) -> None:
        """End the iteration, from any thread."""
        self.stopped.set()

    def __iter__(self) -> Iterator[Timed]:
        begun: float | None = None
        for picture, seconds in self._folder() if Path(self.name).is_dir() else self._connected():
            begun = time.monotonic() - seconds if begun is None else begun
            if self.pace and self.stopped.wait(max(0.0, begun + seconds - time.monotonic())):
                return
            yield picture, seconds
            if self.stopped.is_set():
                return

    def _folder(self) -> Iterator[Timed]:
        files = sorted(path for path in Path(self.name).iterdir() if path.suffix.lower() in PICTURES)
        if not files:
            raise ValueError(f"no images in the folder {self.name!r}: it needs {', '.join(PICTURES)}")
        for number, file in enumerate(files):
            try:
                with Image.open(check_regular(file)) as image:
                    yield np.asarray(image.convert("RGB")), number / (self.fps or 1.0)
            except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
                self.damaged += 1
                self.say(f"the image {str(file)!r} was left out: {error}")

    def _connected(self) -> Iterator[Timed]:
        """Frames of a file, or of one connection after another."""
        clock, show = Clock(), Pictures()
        pause, since = 0.5, time.monotonic()
        while not self.stopped.is_set():
            why = "it ended"
            try:
                with self._opened() as (container, stream):
                    self.connections += 1
                    length = float(container.duration or 0) / av.time_base
                    file = not self.live or (self.scheme == "http" and length > 0)
                    if self.connections > 1 and file:  # go on where it was cut
                        with contextlib.suppress(av.FFmpegError):
                            container.seek(int((clock.last or 0) * av.time_base))
                    elif self.connections > 1:
                        clock.again()
                    for picture, seconds in self._decoded(container, stream, clock, show):
                        pause, since = 0.5, time.monotonic()
                        yield picture, seconds
                    if not self.live or (file and (clock.last or 0) > 0.9 * length - 1):
                        if clock.last is None:
                            raise ValueError(f"{self.shown!r} holds no video frame that could be decoded")
                        return
            except (av.FFmpegError, OSError) as error:
                if self.stopped.is_set():
                    return
                why = error.strerror or str(error)
                if not self.live:
                    raise ValueError(f"{self.shown!r} cannot be read: {why}") from error
            if time.monotonic() - since > self.patience:
                raise ValueError(f"{self.shown!r} gave nothing for {self.patience:g} s: {why}")
            self.say(f"{self.shown!r} was lost ({why}): trying again in {pause:g} s")
            self.stopped.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        options: dict[str, str] = {"format_whitelist": FORMATS, "protocol_whitelist": FILES}
        settings: dict[str, Any] = {"metadata_errors": "replace"}
        with contextlib.ExitStack() as stack:
            file: Any = self.name
            if self.scheme:
                options["protocol_whitelist"] = PROTOCOLS[self.scheme]
                options["format_whitelist"] = FORMATS + ",hls,rtsp,rtp,sdp"
                if self.scheme == "rtsp":
                    options["rtsp_transport"] = "tcp"
                settings["timeout"] = (self.timeout, self.timeout)
            elif self.live:
                options, settings["format"] = {}, "v4l2"
                settings["timeout"] = (self.timeout, self.timeout)
            elif self.name == "-":
                pipe: Any = sys.stdin.buffer
                file = SimpleNamespace(read=pipe.read1)  # and nothing else, so that FFmpeg does not seek in it
            else:  # FFmpeg does not see the name, which it may take for an address or a pattern of names
                opener = self._pipe if Path(self.name).is_fifo() else None
                real = stack.enter_context(open(self.name, "rb", buffering=0, opener=opener))
                file = stack.enter_context(open(real.fileno(), "rb", buffering=0, closefd=False))
            container = stack.enter_context(av.open(file, container_options=options, **settings))
            yield container, shown_stream(container, self.shown)

    def _pipe(self, name: str, flags: int) -> int:
        """Opens a named pipe once something is written to it, for which open() would wait for ever, without a word."""
        pipe, late, told = os.open(name, flags | os.O_NONBLOCK), time.monotonic() + self.patience, False
        awaited = select.poll()
        awaited.register(pipe, select.POLLIN)
        while not (awaited.poll(1000 * min(1.0, self.patience)) or self.stopped.is_set()):
            if not told:
                self.say(f"{self.shown!r} is a pipe that nobody writes to yet: waiting for {self.patience:g} s")
            told = True
            if time.monotonic() > late:
                os.close(pipe)
                raise ValueError(f"{self.shown!r} gave nothing for {self.patience:g} s: a pipe that nobody writes to")
        os.set_blocking(pipe, True)
        return pipe

    def _decoded(self, container: Any, stream: Any, clock: Clock, show: Pictures) -> Iterator[Timed]:
        """Pictures and times of one connection, at most `fps` a second; packets that cannot be decoded are left out."""
        stream.thread_count = 1 if self.live else stream.thread_count  # threads hold frames back
        packets = container.demux(stream)
        last = clock.last
        while not self.stopped.is_set():
            packet = next(packets, None)
            if packet is None:
                return
            try:
                frames = stream.decode(packet)
            except av.EOFError:
                continue
            except av.FFmpegError as error:
                self.damaged += 1
                if self.damaged == 1:
                    self.say(f"{self.shown!r}: a part could not be decoded and was left out: {error.strerror}")
                continue
            for frame in frames:
                if clock.known(frame.time):  # behind a place that was sought for
                    continue
                seconds = clock(frame.time)
                if last is None or (seconds > last and (self.fps is None or seconds - last > (1 - 1e-3) / self.fps)):
                    last = seconds
                    yield show(frame), seconds
