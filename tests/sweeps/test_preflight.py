"""What is told of checkpoints and data before a sweep starts: branches, and videos that are missing."""

from pathlib import Path

import pytest
import stand_ins

from tango.runs import provenance
from tango.sweeps import preflight, videos
from tango.sweeps.frameworks import LMMS_EVAL, VLMEVALKIT

COMMITS = {"main": "a" * 40, "video": "b" * 40}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache without anything."""
    hub = tmp_path / "hf" / "hub"
    monkeypatch.setattr(provenance, "HF_HUB_CACHE", str(hub))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return hub


def snapshot(cache: Path, repository: str, branch: str = "main") -> Path:
    folder = cache / f"datasets--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / branch).write_text(COMMITS[branch])
    (folder / "snapshots" / COMMITS[branch]).mkdir(parents=True)
    return folder / "snapshots" / COMMITS[branch]


def test_a_data_set_in_another_branch(cache: Path) -> None:
    benchmark = LMMS_EVAL.benchmarks["MVBench"]
    (snapshot(cache, "OpenGVLab/MVBench") / "json").mkdir()
    (cache / "datasets--OpenGVLab--MVBench/snapshots" / COMMITS["main"] / "json/a.json").touch()
    assert preflight.missing_dataset("OpenGVLab/MVBench", benchmark.pattern) is None
    told = preflight.missing_dataset("OpenGVLab/MVBench", benchmark.pattern, benchmark.branch)
    assert told and told.endswith("get it with: hf download --repo-type dataset OpenGVLab/MVBench --revision video")


def test_clips_of_mvbench_that_their_owner_gives(cache: Path) -> None:
    """The clip is missing in both frameworks, each of which looks for it elsewhere; once it is there, none is."""
    stand_ins.mvbench(main := snapshot(cache, "OpenGVLab/MVBench"), b"clip")
    video = snapshot(cache, "OpenGVLab/MVBench", "video")
    video.rmdir()
    (main / "@video").rename(video)
    for framework, place in ((VLMEVALKIT, main / "video/nturgbd"), (LMMS_EVAL, video / "nturgbd_convert")):
        told = videos.absent_videos(framework, "MVBench")
        assert told is not None and f"1 videos are missing (fine_grained_pose.avi); they belong into {place}." in told
        assert "Their 1 questions will fail, and no others" in told
        place.mkdir()
        (place / "fine_grained_pose.avi").touch()
        assert videos.absent_videos(framework, "MVBench") is None
    (main / "video/clevrer.zip").unlink()
    told = videos.absent_videos(VLMEVALKIT, "MVBench")
    assert told is not None and "5 videos are missing" in told and f"{main}/video/clevrer/video_validation" in told


def test_archives_that_were_not_downloaded(cache: Path, tmp_path: Path) -> None:
    for framework, place in ((VLMEVALKIT, None), (LMMS_EVAL, tmp_path / "hf/videomme/data")):
        benchmark = framework.benchmarks["Video-MME"]
        assert benchmark.repository is not None
        folder = snapshot(cache, benchmark.repository)
        stand_ins.video_mme(folder, b"clip")
        assert videos.absent_videos(framework, "Video-MME") is None
        (folder / "videos_chunked_02.zip").unlink()
        told = videos.absent_videos(framework, "Video-MME")
        name = f"{stand_ins.VIDEOS[1]}.mp4"
        assert (
            told is not None and f"1 videos are missing ({name}); they belong into {place or folder / 'video'}." in told
        )
        (place or folder / "video").mkdir(parents=True)
        ((place or folder / "video") / name).touch()  # as if it had been unpacked
        assert videos.absent_videos(framework, "Video-MME") is None


def test_archives_that_cannot_be_looked_into(cache: Path) -> None:
    folder = snapshot(cache, "longvideobench/LongVideoBench")
    stand_ins.long_video_bench(folder, b"clip")
    assert videos.absent_videos(VLMEVALKIT, "LongVideoBench") is None
    (folder / "videos").mkdir()
    told = videos.absent_videos(VLMEVALKIT, "LongVideoBench")
    assert told is not None and "2 videos are missing" in told and str(folder / "videos") in told
    stand_ins.mlvu(folder := snapshot(cache, "MLVU/MVLU"), b"clip")
    assert videos.absent_videos(VLMEVALKIT, "MLVU") is None
    (folder / "MLVU/video/3_ego/ego_0.mp4").unlink()
    told = videos.absent_videos(VLMEVALKIT, "MLVU")
    assert told is not None and f"they belong into {folder / 'MLVU/video/3_ego'}." in told
    assert videos.absent_videos(LMMS_EVAL, "MLVU") is None  # its data set is not here: that is told elsewhere
