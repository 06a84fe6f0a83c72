"""Videos in many containers and codecs with bytes changed, cut out or doubled: read, or refused by their name.

Each is read in a process of its own, so that one that ends the process, or hangs, is seen.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
CODECS = {
    "mp4": ("libx264", "libx265", "mpeg4", "libsvtav1"), "mkv": ("libx264", "ffv1", "mjpeg", "prores_ks"),
    "webm": ("libvpx", "libvpx-vp9", "libaom-av1"), "ts": ("libx264", "mpeg2video", "libx265"), "rm": ("rv20",),
    "avi": ("mpeg4", "msmpeg4v2", "huffyuv", "cinepak"), "mov": ("png", "qtrle", "svq1"), "mpg": ("mpeg1video",),
    "asf": ("wmv2",), "gif": ("gif",), "apng": ("apng",), "y4m": ("rawvideo",), "ivf": ("libvpx-vp9",),
    "mxf": ("mpeg2video",), "nut": ("libx264",), "flv": ("libx264", "flv"), "h264": ("libx264",), "hevc": ("libx265",),
    "m4v": ("mpeg4",), "3gp": ("h263",),
}  # fmt: skip
FORMATS = {"ts": "mpegts", "mpg": "mpeg", "mkv": "matroska", "y4m": "yuv4mpegpipe"}  # named otherwise than files
OPTIONS = {"libsvtav1": {"preset": "10"}, "libaom-av1": {"cpu-used": "8"}, "libx265": {"x265-params": "log-level=none"}}


def encode(path: Path, codec: str) -> bytes:
    """Ten frames of noise that moves, with a key frame each fifth."""
    noise = np.random.default_rng(0).integers(0, 255, (96, 160, 3), np.uint8) // 8 * 4
    with av.open(str(path), "w", format=FORMATS.get(path.suffix[1:])) as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height = 128, 96
        known = stream.codec.video_formats
        stream.pix_fmt = known[0].name if known else "yuv420p"
        stream.options = {"threads": "1", "g": "5"} | OPTIONS.get(codec, {})
        for i in range(10):
            shown = np.ascontiguousarray(noise[:, 3 * i : 3 * i + 128] + 3 * i)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        out.mux(stream.encode())
    return path.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One video of each container and codec, and those of the tests of reading."""
    folder = tmp_path_factory.mktemp("whole")
    odd = [ROOT / "data/motionqa/videos/0.mp4", *sorted((ROOT / "tests/data/video").iterdir())]
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    made = {f"{c}.{k}": encode(folder / f"{c}.{k}", c) for k, codecs in CODECS.items() for c in codecs}
    os.sched_setscheduler(0, policy, priority)  # libsvtav1 gives a process of root the highest there is
    return made | {path.name: path.read_bytes() for path in odd}


@pytest.fixture
def read() -> Iterator[Callable[[Path], list[object]]]:
    """What came of a file, see readers.py."""
    command = [sys.executable, str(Path(__file__).with_name("readers.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:

        def ask(path: Path) -> list[object]:
            reader.stdin.write(f"{path}\n")
            reader.stdin.flush()
            return json.loads(reader.stdout.readline())

        yield ask
        reader.stdin.close()


def changed(content: bytes, seed: int) -> bytes:
    """A video with a few or many changes, more often where its container says what is in it."""
    chance, new = random.Random(seed), bytearray(content)
    head = max(content.find(b"moov"), 0)
    spots = range(head, min(head + 2000, len(new))) if chance.random() < 0.6 else range(len(new))
    for _ in range(chance.choice([1, 1, 2, 5, 30, 300])):
        new[chance.choice(spots)] = chance.choice([0, 127, 128, 255, chance.randrange(256)])
    at, length = chance.choice(spots), chance.choice([1, 4, 16, 1000])
    if (kind := chance.random()) < 0.1:
        del new[at : at + length]
    elif kind < 0.2:
        new[at:at] = new[at : at + length]
    elif kind < 0.25:
        del new[at:]
    return bytes(new)


def test_every_kind_is_read(whole: dict[str, bytes], read: Callable[[Path], list[object]], tmp_path: Path) -> None:
    for name, content in whole.items():
        (path := tmp_path / name).write_bytes(content)
        assert read(path) == [None, 8], name


def test_changed_videos_end_no_process(
    fuzz: Callable[..., None], whole: dict[str, bytes], read: Callable[[Path], list[object]], tmp_path: Path
) -> None:
    def check(name: str, seed: int) -> None:
        (path := tmp_path / name).write_bytes(changed(whole[name], seed))
        error, said = read(path)
        assert error is None or (error == "ValueError" and name in said), (error, said)

    fuzz(check, examples=100, name=st.sampled_from(sorted(whole)), seed=st.integers(0, 10**6))
