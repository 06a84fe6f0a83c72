"""Videos of a benchmark that are not on this machine, and where they belong: their questions fail, and no other."""

import json
import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from tango.runs.provenance import hub_snapshot
from tango.sweeps.frameworks import LMMS_EVAL, Framework

# MVBench's tasks, and where their clips are: below video/ in its branch main, and in its branch video.
MVBENCH = {
    "action_sequence": ("star/Charades_v1_480", "star/Charades_segment"),
    "action_prediction": ("star/Charades_v1_480", "star/Charades_segment"),
    "action_antonym": ("ssv2_video", "ssv2_video_mp4"),
    "fine_grained_action": ("Moments_in_Time_Raw/videos", "Moments_in_Time_Raw/videos"),
    "unexpected_action": ("FunQA_test/test", "FunQA_test/test"),
    "object_existence": ("clevrer/video_validation", "clevrer/video_validation"),
    "object_interaction": ("star/Charades_v1_480", "star/Charades_segment"),
    "object_shuffle": ("perception/videos", "perception/videos"),
    "moving_direction": ("clevrer/video_validation", "clevrer/video_validation"),
    "action_localization": ("sta/sta_video", "sta/sta_video_segment"),
    "scene_transition": ("scene_qa/video", "scene_qa/video"),
    "action_count": ("perception/videos", "perception/videos"),
    "moving_count": ("clevrer/video_validation", "clevrer/video_validation"),
    "moving_attribute": ("clevrer/video_validation", "clevrer/video_validation"),
    "state_change": ("perception/videos", "perception/videos"),
    "fine_grained_pose": ("nturgbd", "nturgbd_convert"),
    "character_order": ("perception/videos", "perception/videos"),
    "egocentric_navigation": ("vlnqa", "vlnqa"),
    "episodic_reasoning": ("tvqa/frames_fps3_hq", "tvqa/video_fps3_hq_segment"),
    "counterfactual_inference": ("clevrer/video_validation", "clevrer/video_validation"),
}
# Folders that lmms-eval unpacks archives into, below HF_HOME.
UNPACKED = {"Video-MME": "videomme/data", "LongVideoBench": "datasets/longvideobench/videos", "MLVU": "mlvu"}


def absent_videos(framework: Framework, name: str) -> str | None:
    """Which videos of a benchmark, by its own name, are neither there nor in an archive.

    None if all are, if the data set is not here, or if its archives cannot be looked into before they are unpacked.
    """
    benchmark = framework.benchmarks[name]
    repository = benchmark.repository
    snapshot = None if repository is None else hub_snapshot(repository, benchmark.branch, "dataset")
    if snapshot is None:
        return None
    where = snapshot
    if framework is LMMS_EVAL and name != "MVBench":
        where = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / UNPACKED[name]  # as it does
    elif name == "LongVideoBench":
        where = snapshot / "videos"
    if not where.is_dir() and any(snapshot.rglob("*.tar*")):
        return None
    wanted = Counter(_wanted(framework, name, snapshot))
    parts = 2 if name == "MVBench" else 1  # whose tasks have clips of the same name
    there = {PurePosixPath(path).parts[-parts:] for path in _there(snapshot, where)}
    lost = [path for path in wanted if PurePosixPath(path).parts[-parts:] not in there]
    if not lost:
        return None
    folders = sorted({str(PurePosixPath(path).parent) for path in lost})
    places = ", ".join(str(where / folder) for folder in folders)
    return (
        f"{repository}: {len(lost)} videos are missing ({', '.join(PurePosixPath(p).name for p in lost[:3])}"
        f"{', ..' if len(lost) > 3 else ''}); they belong into {places}. Their {sum(wanted[path] for path in lost)} "
        "questions will fail, and no others"
    )


def _wanted(framework: Framework, name: str, snapshot: Path) -> Iterator[str]:
    """The file of each question, below the folder of absent_videos()."""
    ours = framework is LMMS_EVAL
    if name == "MVBench":
        for task, folders in MVBENCH.items():
            folder = folders[1] if ours else f"video/{folders[0]}"
            yield from (f"{folder}/{row['video']}" for row in _rows(snapshot / f"json/{task}.json"))
    elif name == "Video-MME":
        rows = _rows(*sorted(snapshot.glob("videomme/*.parquet")))
        yield from (f"{row['videoID']}.mp4" if ours else f"video/{row['videoID']}.mp4" for row in rows)
    elif name == "LongVideoBench":
        yield from (row["video_path"] for row in _rows(snapshot / "lvb_val.json"))
    elif ours:
        yield from (row["video_name"] for row in _rows(*sorted(snapshot.glob("mlvu/*.parquet"))))
    else:
        for file in sorted(snapshot.glob("MLVU/json/[1-7]_*.json")):
            yield from (f"MLVU/video/{file.stem}/{row['video']}" for row in _rows(file))


def _rows(*files: Path) -> list[Any]:
    if files and files[0].suffix == ".parquet":
        return [row for file in files for row in pd.read_parquet(file).to_dict("records")]
    return [row for file in files if file.is_file() for row in json.loads(file.read_text(encoding="utf-8"))]


def _there(*folders: Path) -> Iterator[str]:
    """The names of all files and folders, those in zip archives too."""
    for folder in dict.fromkeys(folders):
        for root, names, files in os.walk(folder, followlinks=True):
            for name in (*names, *files):
                yield os.path.join(root, name)
                if name.endswith(".zip"):
                    with zipfile.ZipFile(os.path.join(root, name)) as archive:
                        for member in archive.namelist():
                            yield from (member, str(PurePosixPath(member).parent))
