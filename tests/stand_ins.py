"""Small stand-ins for the checkpoints and benchmarks of docs/reproduce.md, in the layouts they are published in, as
repositories of a hub (hub.py): <store>/{models,datasets}/<owner>/<name>/[@branch/].
"""

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from original_layout import LAYERS, small_model, write_original
from safetensors.torch import save_file
from tiny import save_qwen, write_video
from transformers import LlavaOnevisionForConditionalGeneration, SiglipVisionConfig, SiglipVisionModel

from tango.models.llava_video import LlavaVideoForConditionalGeneration
from tango.sweeps.videos import MVBENCH

SIGLIP, TOWER = "google/siglip-so400m-patch14-384", "google/siglip-small-patch8-40"  # the latter's size is read
VIDEOS = ("fFjv93ACGo8", "N1cdUjctpG8")
OPTIONS = ["It moves left.", "It moves right.", "It vanishes.", "It stays."]
OWN_TO_OWNERS = "nturgbd"  # whose clips the published MVBench is without


def build(store: Path) -> None:
    """Everything that the page downloads, and what lmms-eval takes besides."""
    store.mkdir(parents=True)
    write_video(store / "clip.mp4")
    clip = (store / "clip.mp4").read_bytes()
    models(store / "models")
    for owner in ("lmms-lab", "lmms-eval"):
        video_mme(store / "datasets" / owner / "Video-MME", clip)
    mvbench(store / "datasets/OpenGVLab/MVBench", clip)
    long_video_bench(store / "datasets/longvideobench/LongVideoBench", clip)
    mlvu(store / "datasets/MLVU/MVLU", clip)


def models(folder: Path) -> None:
    """The two LLaVA in the `llava` package's layout, each with its pooling head; Qwen2.5-VL; SigLIP."""
    kinds = {
        "lmms-lab/llava-onevision-qwen2-7b-ov": LlavaOnevisionForConditionalGeneration,
        "lmms-lab/LLaVA-Video-7B-Qwen2": LlavaVideoForConditionalGeneration,
    }
    torch.manual_seed(1)
    for name, kind in kinds.items():
        model = small_model(kind)
        write_original(folder / name, model, shards=2, mm_vision_tower=TOWER)
        vision = model.config.vision_config.to_dict() | {"vision_use_head": True, "num_hidden_layers": LAYERS}
        tower = SiglipVisionModel(SiglipVisionConfig.from_dict(vision)).state_dict()
        parts = {"vision_model." + name.removeprefix("vision_model."): value for name, value in tower.items()}
        head = {name: value for name, value in parts.items() if ".head." in name or ".post_layernorm." in name}
        save_file(head, folder / name / "pooling_head.safetensors")
    save_qwen(folder / "Qwen/Qwen2.5-VL-7B-Instruct")
    for siglip in (folder / SIGLIP, folder / TOWER):
        siglip.mkdir(parents=True)
        save_file(parts, siglip / "model.safetensors")
        config = {"architectures": ["SiglipModel"], "model_type": "siglip", "vision_config": vision}
        (siglip / "config.json").write_text(json.dumps(config))


def put(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def zipped(file: Path, members: dict[str, bytes]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def tarred(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def card(folder: Path, configs: dict[str, dict[str, str]]) -> None:
    """A README.md that tells datasets which files are which split of which configuration."""
    lines = ["---", "configs:"]
    for name, files in configs.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        lines += [f"  - split: {split}\n    path: {path}" for split, path in files.items()]
    put(folder / "README.md", "\n".join([*lines, "---", ""]).encode())


def video_mme(folder: Path, clip: bytes) -> None:
    rows = [
        {
            "video_id": f"{v + 1:03}", "duration": "short", "domain": "Knowledge", "sub_category": "Law",
            "url": f"https://www.youtube.com/watch?v={video}", "videoID": video, "question_id": f"{v + 1:03}-{k + 1}",
            "task_type": ("Counting Problem", "Object Reasoning")[k], "question": f"What happens to {k} in {v}?",
            "options": [f"{letter}. {text}" for letter, text in zip("ABCD", OPTIONS, strict=True)],
            "answer": "ABCD"[v + k],
        }
        for v, video in enumerate(VIDEOS)
        for k in range(2)
    ]  # fmt: skip
    card(folder, {"videomme": {"test": "videomme/test-*"}})
    (folder / "videomme").mkdir()
    pd.DataFrame(rows).to_parquet(folder / "videomme/test-00000-of-00001.parquet")
    for part, video in enumerate(VIDEOS, 1):
        zipped(folder / f"videos_chunked_{part:02}.zip", {f"data/{video}.mp4": clip})
    zipped(folder / "subtitle.zip", {f"subtitle/{video}.srt": b"" for video in VIDEOS})


def mvbench(folder: Path, clip: bytes) -> None:
    """A question for each of the twenty tasks: archives in main, plain files in the branch video."""
    archives: dict[str, dict[str, bytes]] = {}
    for n, (task, (packed, plain)) in enumerate(MVBENCH.items()):
        name = task + (".avi" if packed == OWN_TO_OWNERS else "" if packed.startswith("tvqa") else ".mp4")
        question = {"video": name, "question": f"What is done in {task}?", "candidates": OPTIONS}
        question |= {"answer": OPTIONS[n % 4]} | ({"start": 0.5, "end": 2.0} if packed.startswith(("st", "tv")) else {})
        top = packed.partition("/")[0]
        if packed.startswith("tvqa"):
            members = {f"{packed}/{name}/{i:05}.jpg": picture() for i in range(1, 5)}
        else:
            second = "data0613/" if task == "state_change" else ""  # part of perception comes in an archive of its own
            members = {f"{second}{packed}/{name}": clip}
        if top != OWN_TO_OWNERS:
            archives.setdefault("data0613" if task == "state_change" else top, {}).update(members)
            put(folder / "@video" / plain / name, clip)
        put(folder / f"json/{task}.json", [question])
        put(folder / f"@video/json/{task}.json", [question])
    for top, members in archives.items():
        zipped(folder / f"video/{top}.zip", members)
    for root in (folder, folder / "@video"):
        card(root, {task: {"train": f"json/{task}.json"} for task in MVBENCH})


def picture() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 30, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


def long_video_bench(folder: Path, clip: bytes) -> None:
    rows = [
        {
            "video_id": video, "question": f"At scene {k}, what is shown?", "question_wo_referring_query": "What?",
            "candidates": OPTIONS, "correct_choice": k, "position": [0], "topic_category": "NP-News",
            "question_category": ("S2E", "T3O")[k], "level": "L1-Perception", "id": f"{video}_{k}",
            "video_path": f"{video}.mp4", "subtitle_path": f"{video}_en.json", "duration_group": 15,
            "starting_timestamp_for_subtitles": 0, "duration": 3.0, "view_count": 10,
        }
        for k, video in enumerate(VIDEOS)
    ]  # fmt: skip
    put(folder / "lvb_val.json", rows)
    packed = tarred({f"videos/{video}.mp4": clip for video in VIDEOS})
    put(folder / "videos.tar.part.aa", packed[: len(packed) // 2])
    put(folder / "videos.tar.part.ab", packed[len(packed) // 2 :])
    put(folder / "subtitles.tar", tarred({f"subtitles/{video}_en.json": b"[]" for video in VIDEOS}))


def mlvu(folder: Path, clip: bytes) -> None:
    tasks = ("1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning")
    for n, task in enumerate(tasks):
        name = f"{task[2:]}_0.mp4"
        row = {"video": name, "duration": 3.0, "question": f"What of {task}?", "candidates": OPTIONS}
        put(folder / f"MLVU/json/{task}.json", [row | {"answer": OPTIONS[n % 4], "question_type": task[2:]}])
        put(folder / f"MLVU/video/{task}/{name}", clip)
