"""Video files that are not as they should be, each asked about between two whole ones, as in a benchmark."""

import logging
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from faults import ROOT, SHIPPED
from PIL import Image

from tango import Tango
from tango.cli import main
from tango.inference.chat import Chat
from tango.inference.checkpoints import load
from tango.inference.video import read_video
from tango.runs.journal import Journal, read_journal
from tango.runs.runner import Record, Runner, Sample

GROUP = "Videos"
Seen = Callable[[str, str], None]


def encode(
    path: Path, size: tuple[int, int] = (32, 32), frames: int = 40, codec: str = "libx264", pixels: str = "yuv420p",
    times: list[int] | None = None, container: dict[str, str] | None = None,
) -> bytes:  # fmt: skip
    """Write a video in which every frame has a shade of its own; at four frames a second, or at `times` of 1/30 s."""
    width, height = size
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream(codec, rate=4 if times is None else 30)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.options = {"g": "4", "threads": "1"}
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 30)
        for i in range(frames if times is None else len(times)):
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 5 * i % 256, np.uint8), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 30)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path.read_bytes()


def sound(path: Path, codec: str, layout: str, sample: type, rate: int = 16000) -> bytes:
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, layout="mono")
        for _ in range(10):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 576), sample), format=layout, layout="mono")
            frame.sample_rate = rate
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path.read_bytes()


def cut(path: Path) -> None:
    whole = SHIPPED.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def cut_with_index(path: Path) -> None:
    whole = encode(path, container={"movflags": "faststart"})
    path.write_bytes(whole[: len(whole) * 6 // 7])


def cut_webm(path: Path) -> None:
    whole = encode(path.with_suffix(".webm"), (64, 64), codec="libvpx")
    path.write_bytes(whole[: len(whole) // 2])


def damaged(path: Path) -> None:
    content = bytearray(SHIPPED.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 1500] = b"\xab" * 1500
    path.write_bytes(content)


def picture(path: Path) -> None:
    Image.new("RGB", (64, 48), "red").save(path, format="jpeg")


def cover(path: Path) -> None:
    picture(path)
    shown = b"\x00image/jpeg\x00\x03\x00" + path.read_bytes()
    tag = b"APIC" + struct.pack(">I", len(shown)) + b"\x00\x00" + shown
    size = bytes(len(tag) >> shift & 127 for shift in (21, 14, 7, 0))
    path.write_bytes(b"ID3\x03\x00\x00" + size + tag + sound(path.with_suffix(".mp3"), "mp3", "fltp", np.float32))


def without_decoder(name: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(SHIPPED.read_bytes().replace(b"avc1", name))


def playlist(path: Path) -> None:
    (path.parent / "other.ts").write_bytes(encode(path.with_suffix(".ts")))
    path.write_text("ffconcat version 1.0\nfile other.ts\n")


def turned(path: Path) -> None:
    """The matrix of the shipped video's track, by a quarter; the last line of a matrix is 0, 0, 1 in 2.30 bits."""
    upright, turn = (struct.pack(">9i", *numbers, 0, 0, 1 << 30) for numbers in (
        (1 << 16, 0, 0, 0, 1 << 16, 0), (0, 1 << 16, 0, -1 << 16, 0, 0)
    ))  # fmt: skip
    content = SHIPPED.read_bytes()
    at = content.index(upright, content.index(b"tkhd"))
    path.write_bytes(content[:at] + turn + content[at + len(turn) :])


def fault(make: Callable[[Path], object], told: str, case: str, injected: str) -> object:
    return pytest.param(make, told, marks=pytest.mark.fault(case, injected), id=case)


REFUSED = [
    fault(lambda path: None, "no video file", "missing", "a path where nothing is"),
    fault(lambda path: path.mkdir(), "no video file", "a folder", "a folder called `clip.mp4`"),
    fault(lambda path: path.touch(), "cannot be read: Invalid data", "empty", "a file of 0 bytes"),
    fault(cut, "cannot be read: Invalid data", "truncated", "half of the shipped video; its index is at its end"),
    fault(cut_with_index, "cut short: it should hold 40 frames and holds", "truncated, index whole",
          "the first six sevenths of an mp4 whose index is at its start"),
    fault(lambda path: path.write_text("<html>Not found</html>" * 99), "Invalid data", "mislabelled: text",
          "an HTML page called `clip.mp4`"),
    fault(lambda path: path.write_bytes(sound(path.with_suffix(".wav"), "pcm_s16le", "s16", np.int16)),
          "holds no video stream; pass", "audio only", "a WAV file called `clip.mp4`"),
    fault(without_decoder(b"encv"), "no decoder for", "encrypted", "the shipped video, its codec said to be encrypted"),
    fault(without_decoder(b"avc\xb1"), "no decoder for", "no decoder", "one byte of its codec's name changed"),
    fault(playlist, "is not a video, but a playlist", "mislabelled: a playlist", "a list that names other.ts"),
    fault(lambda path: path.write_text(";FFMETADATA1\ntitle=a\n"), "is not a video, but a playlist, text",
          "mislabelled: metadata", "a text that FFmpeg has a format for"),
    fault(cover, "no video stream but a cover picture", "audio with a cover picture",
          "an MP3 with an ID3 picture, which FFmpeg shows as a video of one frame"),
]  # fmt: skip
READ = [
    fault(lambda path: encode(path, frames=1), "1 frame: 0.00 s", "one frame", "an mp4 of one frame"),
    fault(lambda path: path.write_bytes(encode(path.with_suffix(".mkv"), (1, 1), 3, "ffv1", "bgr0")), "3 frames",
          "1 x 1 pixel", "a Matroska file of 1 x 1 pixel"),
    fault(lambda path: encode(path, (3840, 2160), 2, "mpeg4"), "2 frames", "4k", "two frames of 3840 x 2160 pixels"),
    fault(lambda path: encode(path, times=[0, 10, 15, 40, 41, 90]), "6 frames: 0.00, 0.33, 0.50, 1.33, 1.37, 3.00 s",
          "variable frame rate", "six frames at uneven times"),
    fault(lambda path: path.write_bytes(encode(path.with_suffix(".webm"), codec="libvpx")), "8 frames: 0.00, 1.25",
          "mislabelled: WebM", "VP8 in WebM called `clip.mp4`"),
    fault(lambda path: path.write_bytes(encode(path.with_suffix(".ts"))), "8 frames: 0.00, 1.25, 2.75",
          "mislabelled: MPEG-TS", "MPEG-TS, which has no index to seek by, called `clip.mp4`"),
    fault(turned, "8 frames: 0.00, 1.12", "turned by a quarter", "a display matrix in the shipped video"),
    fault(picture, "1 frame", "mislabelled: a picture", "a JPEG called `clip.mp4`"),
    fault(cut_webm, "cut short: it should last 10.0 s and ends after", "truncated WebM", "the first half of a WebM"),
    fault(damaged, "of 8 frames, the first at", "damaged in the middle", "1500 bytes of the shipped video overwritten"),
]  # fmt: skip


@pytest.fixture(scope="module")
def chat() -> Iterator[Chat]:
    with Chat(load(str(ROOT / "checkpoints/tango-tiny")), Tango(retention_ratio=0.1), max_frames=8).session() as chat:
        yield chat


def ask(chat: Chat, folder: Path, *videos: Path) -> list[Record]:
    """Ask about each, with a journal in `folder`."""

    def sample(number: int, video: Path) -> Sample:
        content = [{"type": "video", "video": str(video)}, {"type": "text", "text": "What colour is the ring?"}]
        message = {"role": "user", "content": content}
        return Sample("t", number, 0, str(number), lambda: chat.generate([message], {"max_new_tokens": 1}, str(number)))

    with Journal(folder, "run") as journal:
        return list(Runner(journal).run(sample(number, video) for number, video in enumerate(videos)))


@pytest.mark.parametrize("make, told", REFUSED)
def test_what_cannot_be_read_fails_alone(
    make: Callable[[Path], object],
    told: str,
    chat: Chat,
    tmp_path: Path,
    seen: Seen,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = tmp_path / "clip.mp4"
    make(bad)
    first, failed, last = ask(chat, tmp_path, SHIPPED, bad, SHIPPED)
    assert first.failure is None and last.failure is None and first.response == last.response
    assert told in failed.failure and "clip.mp4" in failed.failure and failed.response is None
    kept = read_journal(tmp_path / "run-rank0.jsonl")
    assert [kept[key]["failure"] for key in "012"] == [None, failed.failure, None]
    assert main(["ask", str(bad), "What?"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tango: ") and told in line
    seen(line, "answers before and after it; the failure is recorded, and tried again next time")


@pytest.mark.parametrize("make, told", READ)
def test_what_can_be_read_is_answered(
    make: Callable[[Path], object], told: str, chat: Chat, tmp_path: Path, seen: Seen, caplog: pytest.LogCaptureFixture
) -> None:
    video = tmp_path / "clip.mp4"
    make(video)
    with caplog.at_level(logging.WARNING, "tango.inference.video"):
        clip = read_video(video, 8)
    warned = " ".join(dict.fromkeys(record.getMessage() for record in caplog.records))
    times = ", ".join(f"{time:.2f}" for time in clip.timestamps)
    read = f"(an answer, from {len(clip.frames)} frame{'s' if len(clip.frames) > 1 else ''}: {times} s)"
    assert told in (warned or read)
    first, answered = ask(chat, tmp_path, SHIPPED, video)
    assert first.failure is None and answered.failure is None and answered.videos[0]["frames"] == len(clip.frames)
    assert 0 < answered.tokens["video_tokens_after"] < answered.tokens["video_tokens_before"]
    seen(f"{read}; warning: `{warned}`" if warned else read, "all answers")


ENDLESS = Path("/proc/kmsg")


@pytest.mark.skipif(not ENDLESS.exists(), reason="no files of the kernel here")
@pytest.mark.fault("a file that never ends", "`/proc/kmsg`, which waits for the kernel's next message")
def test_a_file_that_never_ends(seen: Seen) -> None:
    with pytest.raises(ValueError, match="it is empty") as refused:
        read_video(ENDLESS, 2)
    seen(str(refused.value), "all answers")


CHANGED = """
import random, sys
from pathlib import Path
from tango.inference.video import read_video
random.seed(20)
seeds = [path.read_bytes() for path in map(Path, sys.argv[2:])]
for _ in range(300):
    content = bytearray(random.choice(seeds))
    head = content.find(b"moov")  # what an MP4 says of its streams; other formats say it at the start
    part = range(max(head, 0), min(head + 1500, len(content))) if random.random() < 0.7 else range(len(content))
    for _ in range(random.choice([1, 1, 3, 30])):
        content[random.choice(part)] = random.choice([0, 127, 255, random.randrange(256)])
    Path(sys.argv[1]).write_bytes(content)
    try:
        print(len(read_video(sys.argv[1], 8).frames))
    except ValueError as refused:
        print(refused)
"""


@pytest.mark.fault("changed bytes", "1 to 30 bytes of 8 videos in 6 formats changed, 300 times")
def test_changed_bytes_end_no_process(tmp_path: Path, seen: Seen) -> None:
    seeds = [SHIPPED, *sorted((ROOT / "tests/data/video").iterdir())]
    done = subprocess.run(
        [sys.executable, "-c", CHANGED, tmp_path / "clip.mp4", *seeds], capture_output=True, text=True, timeout=120
    )
    said = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(said) == 300 and 50 < sum(line.isdigit() for line in said) < 300
    assert all(line.isdigit() or "clip.mp4" in line for line in said)
    seen("(frames, or a sentence that names the file)", "all answers")


@pytest.mark.fault("a colon in the name", "the shipped video as `http:b.mp4` in the current folder")
def test_a_name_that_looks_like_a_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: Seen) -> None:
    shutil.copy(SHIPPED, tmp_path / "http:b.mp4")
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(read_video("http:b.mp4", 3).frames, read_video(SHIPPED, 3).frames)
    seen("(an answer: it is a file, and no address)", "all answers")
