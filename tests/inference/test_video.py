"""Frames of video files: which, when, and what of files that are not as they should be."""

import itertools
import os
import weakref
from fractions import Fraction
from pathlib import Path

import av
import av.logging
import numpy as np
import pytest
from PIL import Image
from tiny import SIZE, write_video

from tango.inference.picture import Pictures
from tango.inference.video import _is_cut, read_video, uniform_indices
from tango.motionqa import scenes

ODD = Path(__file__).parents[1] / "data/video"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "12.mp4"
    write_video(path, frames=12, rate=4)
    return path


def every_frame(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def boxes(*sizes: int, long: bool = False) -> bytes:
    """Boxes of an MP4 of these sizes in bytes, their heads included; long: with their sizes in 64 bits."""
    heads = [
        (b"\0\0\0\1free" + size.to_bytes(8, "big")) if long else size.to_bytes(4, "big") + b"free" for size in sizes
    ]
    return b"".join(head.ljust(size, b"x") for head, size in zip(heads, sizes, strict=True))


@pytest.mark.parametrize("content", [boxes(40, 8, 300), boxes(40) + boxes(300, long=True)], ids=["32 bits", "64 bits"])
def test_an_mp4_is_cut_where_a_box_would_go_on(tmp_path: Path, content: bytes) -> None:
    """At each byte, also within the size of a box, which then may read as another size."""
    ends = {len(content), 40, 48} if len(content) == 348 else {len(content), 40}
    for kept in range(1, len(content) + 1):
        (tmp_path / "clip.mp4").write_bytes(content[:kept])
        assert _is_cut(tmp_path / "clip.mp4") is (kept not in ends), kept


def test_a_box_without_a_size_goes_on_to_the_end(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(boxes(40) + b"\0\0\0\0mdat" + 200 * b"x")
    assert not _is_cut(tmp_path / "clip.mp4")


@pytest.mark.parametrize("count", [1, 2, 5, 11, 12, 50])
def test_frames_and_times_are_those_of_a_full_decode(video: Path, count: int) -> None:
    clip = read_video(video, count)
    indices = uniform_indices(12, count)
    assert clip.total_frames == 12 and clip.duration == pytest.approx(3.0)
    assert clip.frames.shape == (len(indices), SIZE, SIZE, 3)
    assert clip.timestamps == pytest.approx([i / 4 for i in indices])
    frames = every_frame(video)
    assert all(np.array_equal(got, frames[i]) for got, i in zip(clip.frames, indices, strict=True))


def test_a_part_of_a_video(video: Path) -> None:
    assert read_video(video, 3, start=1.0, end=2.0).timestamps == pytest.approx([1.0, 1.5, 2.0])
    assert read_video(video, 2, start=1.0, end=2.0).duration == pytest.approx(1.25)
    assert read_video(video, 2, start=1.0, end=1.2).duration == 0
    with pytest.raises(ValueError, match=r"no frame from 9 s to 10 s; it lasts 2\.75 s"):
        read_video(video, 3, start=9, end=10)


def test_sampling_is_the_benchmarks_own() -> None:
    times = [i / scenes.FPS for i in uniform_indices(scenes.NUM_FRAMES, 8)]
    assert times == list(scenes.uniform_times(8))


def test_variable_frame_rates_give_true_times(tmp_path: Path) -> None:
    path, times = tmp_path / "variable.mp4", [0, 10, 15, 40, 41, 90]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 30)
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((SIZE, SIZE, 3), 40 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert read_video(path, 10).timestamps == pytest.approx([t / 30 for t in times])


def number(frame: np.ndarray) -> int:
    """What the left fifth of a picture of tests/data/video says: eight bands, the lowest bit at the top."""
    bands = np.array_split(frame[:, : frame.shape[1] // 5], 8)
    return sum(int(band[1:-1].mean() > 125) << bit for bit, band in enumerate(bands))


EIGHT_OF_60 = [0, 8, 16, 25, 33, 42, 50, 59]


@pytest.mark.parametrize(
    ("name", "size", "total", "eight"),
    [
        ("rot90.mp4", (128, 96), 60, EIGHT_OF_60),  # to be turned by a quarter
        ("bt709.mp4", (96, 128), 60, EIGHT_OF_60),
        ("trim_end.mp4", (96, 128), 20, [0, 2, 5, 8, 10, 13, 16, 19]),  # an edit list ends it before its packets do
        ("h264_bf.avi", (96, 128), 60, EIGHT_OF_60),  # packets in the order of decoding, without times of presentation
        ("restart.ts", (96, 128), 60, EIGHT_OF_60),  # the clock starts anew midway
        ("reschange.webm", (96, 128), 60, EIGHT_OF_60),  # frames of another size midway
        ("offset.mkv", (96, 128), 60, EIGHT_OF_60),  # the first frame is at 100 s
    ],
)
def test_videos_that_are_not_what_they_seem(
    name: str, size: tuple[int, int], total: int, eight: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    every, some = read_video(ODD / name, 1000), read_video(ODD / name, 8)
    assert every.frames.shape == (total, *size, 3) and every.total_frames == some.total_frames == total
    upright = [np.rot90(frames.frames, 3 * (name == "rot90.mp4"), (1, 2)) for frames in (every, some)]
    assert [number(frame) for frame in upright[0]] == list(range(total))
    assert [number(frame) for frame in upright[1]] == eight
    assert every.timestamps == pytest.approx([i / 10 for i in range(total)], abs=1e-3)
    assert every.duration == pytest.approx(total / 10, abs=1e-3)
    assert caplog.records == []


def test_colours_are_those_that_the_file_says() -> None:
    frame = read_video(ODD / "bt709.mp4", 1).frames[0].reshape(-1, 3).astype(int)
    assert (np.abs(frame - (220, 30, 30)).max(1) <= 3).sum() > 400  # a red square; read as BT.601: (201, 8, 30)


def test_filters_are_told_the_colours_that_frames_have() -> None:
    """Else they change with the first frame, which FFmpeg warns of: not all of its filters can do it."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.WARNING)
    try:
        with av.open(str(ODD / "bt709.mp4")) as container, av.logging.Capture() as said:
            frame = next(container.decode(video=0))
            assert int(frame.colorspace) == 1  # BT.709
            Pictures()(frame)
    finally:
        av.logging.set_level(level)
    assert said == []


def test_one_frame_at_a_time_is_held_in_full_size(video: Path) -> None:
    held: list[weakref.ref[np.ndarray]] = []

    def smaller(count: int, frame: np.ndarray) -> np.ndarray:
        held.append(weakref.ref(frame))
        assert count == 5 and sum(full() is not None for full in held) == 1
        return np.ascontiguousarray(frame[::2, ::2])

    clip = read_video(video, 5, resize=smaller)
    assert len(held) == 5 and np.array_equal(clip.frames, read_video(video, 5).frames[:, ::2, ::2])


def test_what_is_no_file_of_a_video(tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for, and no other file is read than the named one."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    Path("link.mp4").symlink_to("fifo")
    for number in range(3):
        Image.new("RGB", (8, 8)).save(f"img{number:03d}.jpg")
    names = ["fifo", "link.mp4", ".", "/dev/zero", "/dev/null", "img%03d.jpg", "img*.jpg", f"file:{video}", "pipe:0"]
    for name in [*names, f"concat:{video}|{video}", "lavfi:testsrc", "http://127.0.0.1:1/a.mp4"]:
        with pytest.raises(FileNotFoundError, match="no video file"):
            read_video(name, 2)
    (tmp_path / "other.mp4").write_bytes(video.read_bytes())
    texts = {
        "playlist": "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nother.mp4\n#EXT-X-ENDLIST\n",
        "list": "ffconcat version 1.0\nfile other.mp4\n", "notes": "Notes of a meeting.\n" * 99,
        "subtitles": "1\n00:00:01,000 --> 00:00:02,000\nHi\n", "stream": "v=0\ns=x\nm=video 5004 RTP/AVP 96\n",
        "drawing": '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "metadata": ";FFMETADATA1\n",
    }  # fmt: skip
    for (name, text), suffix in itertools.product(texts.items(), ("mp4", "txt", "m3u8")):
        (path := Path(f"{name}.{suffix}")).write_text(text)
        with pytest.raises(ValueError, match=r"is not a video|cannot be read"):
            read_video(path, 2)


def test_files_that_cannot_be_read(tmp_path: Path, video: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.mp4"):
        read_video(tmp_path / "none.mp4", 2)
    (torn := tmp_path / "torn.mp4").write_bytes(video.read_bytes()[:300])
    with pytest.raises((ValueError, av.FFmpegError)):
        read_video(torn, 2)
    with pytest.raises(ValueError, match="cannot sample 0"):
        read_video(video, 0)
