"""Frames of video files: which, when, and what of files that are not as they should be."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from tiny import SIZE, write_video

from tango.evaluation import motionqa
from tango.inference.video import read_video, uniform_indices


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "12.mp4"
    write_video(path, frames=12, rate=4)
    return path


def every_frame(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


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
    times = [i / motionqa.FPS for i in uniform_indices(motionqa.NUM_FRAMES, 8)]
    assert times == list(motionqa.uniform_times(8))


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


def test_files_that_cannot_be_read(tmp_path: Path, video: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.mp4"):
        read_video(tmp_path / "none.mp4", 2)
    (torn := tmp_path / "torn.mp4").write_bytes(video.read_bytes()[:300])
    with pytest.raises((ValueError, av.FFmpegError)):
        read_video(torn, 2)
    with pytest.raises(ValueError, match="cannot sample 0"):
        read_video(video, 0)
