"""MotionQA as a video data set of VLMEvalKit, and upstream's benchmarks for models that read video files themselves."""

from __future__ import annotations

import ast
import difflib
import json
import os
import os.path as osp
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import av
import numpy as np
import pandas as pd
from PIL import Image
from vlmeval.dataset import MVBench, VideoMME, build_judge, mvbench
from vlmeval.dataset.longvideobench import LongVideoBench
from vlmeval.dataset.mlvu import MLVU_MCQ
from vlmeval.dataset.utils.multiple_choice import extract_answer_from_item
from vlmeval.dataset.video_base import VideoBaseDataset
from vlmeval.smp import LMUDataRoot, dump, get_intermediate_file_path, load
from vlmeval.smp.file import INFER_FAIL_MSG

from tango.inference.files import write_whole
from tango.motionqa.questions import LETTERS, prompt
from tango.runs.scoring import parse_choice
from tango.runs.settings import SettingsError
from tango.sweeps.frameworks import VLMEVALKIT

MOTIONQA = Path(__file__).resolve().parents[2] / "data" / "motionqa"
BY_RULE = "exact_matching"  # upstream's name of the judge that is none

Message = list[dict[str, Any]]


class MotionQA(VideoBaseDataset):  # type: ignore[misc]
    """MotionQA (tango/motionqa): made-up videos, multiple choice, scored by rule.

    Args:
        root: folder with test.json and videos/; this repository's data/motionqa by default.
        nframe: frames of each video; fps: cannot be set.

    Raises:
        FileNotFoundError: there is no test.json.
    """

    TYPE = "Video-MCQ"
    # What the model was trained to write is one letter; tasks/motionqa.yaml of the lmms-eval plugin says the same.
    GENERATION: ClassVar[Mapping[str, Any]] = {"max_new_tokens": 8, "do_sample": False, "until": ["\n"]}

    def __init__(
        self, dataset: str = "MotionQA", root: str | None = None, nframe: int = 8, fps: float = -1, pack: bool = False
    ) -> None:
        if fps > 0 or pack:
            raise ValueError(f"{dataset} with fps={fps}, pack={pack}: it only takes nframe")
        self.dataset_name, self.nframe, self.fps, self.pack, self.split_frame = dataset, nframe, -1, False, True
        self.frame_tmpl = "frame-{}-of-{}.jpg"
        found = self.prepare_dataset(dataset, root)
        self.data_root, self.data_file = found["root"], found["data_file"]
        rows = []
        for row in load(self.data_file):
            lettered = dict(zip(LETTERS, row["options"], strict=True))
            rows.append(
                {"index": row["id"], "video": osp.splitext(row["video"])[0], "kind": row["kind"]}
                | {"question": row["question"], **lettered, "answer": row["answer"]}
            )
        self.data = pd.DataFrame(rows)
        self.videos = sorted(set(self.data["video"]))

    @property
    def frame_root(self) -> str:
        """Where frames are stored for models that take images."""
        return osp.join(LMUDataRoot(), "images", self.dataset_name)

    @classmethod
    def supported_datasets(cls) -> list[str]:
        return ["MotionQA"]

    def prepare_dataset(self, dataset: str, root: str | None = None) -> dict[str, str]:
        folder = Path(root) if root is not None else MOTIONQA
        questions = folder / "test.json"
        if not questions.is_file():
            raise FileNotFoundError(f"{dataset}: no file {str(questions)!r}; name the folder of the data as `root`")
        return {"root": str(folder.resolve()), "data_file": str(questions)}

    def build_prompt(self, line: Any, video_llm: bool) -> Message:
        """The video, and the question with lettered options."""
        line = self.data.iloc[line] if isinstance(line, int) else line
        text = {"type": "text", "value": prompt(line["question"], [line[letter] for letter in LETTERS])}
        if video_llm:
            return [{"type": "video", "value": osp.join(self.data_root, line["video"] + ".mp4")}, text]
        return [*({"type": "image", "value": path} for path in self.save_video_frames(line["video"])), text]

    @classmethod
    def evaluate(cls, eval_file: str, **judge_kwargs: Any) -> dict[str, float]:
        """Score by rule; a named judge is asked about the replies in which the rule finds no choice.

        A failed sample is wrong. Writes each choice and its score to *_score, and accuracy in percent, overall and by
        kind, to *_rating.json.
        """
        data = load(eval_file)
        judge = None
        if judge_kwargs.get("model", BY_RULE) != BY_RULE:
            judge = build_judge(**judge_kwargs)
            if not judge.working():
                raise ValueError(f"the judge {judge_kwargs['model']!r} does not answer; leave it out to score by rule")
        choices = []
        for row in data.to_dict("records"):
            reply = "" if pd.isna(row["prediction"]) else str(row["prediction"])
            reply = "" if INFER_FAIL_MSG in reply else reply
            choice = parse_choice(reply, [str(row[letter]) for letter in LETTERS])
            if choice is None and judge is not None:
                found = extract_answer_from_item(judge, {**row, "prediction": reply}, "MotionQA")["opt"]
                choice = found if found in LETTERS else None
            choices.append(choice)
        data["choice"] = choices
        data["score"] = [int(choice == answer) for choice, answer in zip(choices, data["answer"], strict=True)]
        dump(data, get_intermediate_file_path(eval_file, "_score"))
        rating = {"Overall": 100 * float(data["score"].mean())}
        rating |= {str(kind): 100 * float(share) for kind, share in data.groupby("kind")["score"].mean().items()}
        rating["unparsed"] = 100 * sum(choice is None for choice in choices) / len(choices)
        dump(rating, get_intermediate_file_path(eval_file, "_rating"))
        return rating

    @classmethod
    def report_primary_metric(cls, metrics: dict[str, Any] | None) -> dict[str, Any]:
        return {"Overall": metrics["Overall"]} if metrics else {}


class MVBenchFiles(MVBench):  # type: ignore[misc]
    """Upstream's MVBench, but a part of a video is named by its ends in seconds instead of being cut out by MoviePy,
    the one task that comes as frames (three a second) is put into a video file beside them, and questions whose clip is
    missing are asked all the same, so that they fail alone.
    """

    def prepare_dataset(self, dataset_name: str = "MVBench", repo_id: str = "OpenGVLab/MVBench") -> dict[str, str]:
        """The questions of all tasks in upstream's order, from the snapshot that is here or else from the hub."""
        if mvbench.modelscope_flag_set():
            return dict(super().prepare_dataset(dataset_name, repo_id))
        found = mvbench.get_cache_path(repo_id, branch="main")
        folder = Path(found or mvbench.snapshot_download(repo_id=repo_id, repo_type="dataset"))
        for archive in sorted((folder / "video").glob("*.zip")):
            unpack(archive, folder / "video")
        rows = []
        for task, (name, place, kind, bound) in self.type_data_list.items():
            prefix = place.replace("your_data_path", "video")
            for question in json.loads((folder / "json" / name).read_text(encoding="utf-8")):
                told = {key: question[key] for key in ("video", "question", "answer", "candidates")}
                ends = {key: question.get(key) for key in ("start", "end")}
                rows.append({"task_type": task, "prefix": prefix, "data_type": kind, "bound": bound, **ends, **told})
        table = pd.DataFrame(rows)
        file = folder / f"{dataset_name}.tsv"
        write_whole(file, table.assign(index=range(len(table))).to_csv(sep="\t", index=False))
        self.decord_method = {"video": self.read_video, "gif": self.read_gif, "frame": self.read_frame}
        self.frame_fps = 3
        self.transform = mvbench.T.Compose([mvbench.Stack(), mvbench.ToTorchFormatTensor()])
        return {"root": str(folder), "data_file": str(file)}

    def build_prompt(self, line: Any, video_llm: bool) -> Message:
        line = self.data.iloc[line] if isinstance(line, int) else line
        if not video_llm:
            return list(super().build_prompt(line, video_llm))
        path = osp.join(self.data_root, line["prefix"], line["video"])
        if line["data_type"] == "frame":
            path = video_of_frames(Path(path), self.frame_fps)
        video = {"type": "video", "value": path}
        if line["bound"]:
            video |= {"start": float(line["start"]), "end": float(line["end"])}
        question, _ = self.qa_template(line)
        return [
            {"type": "text", "value": self.SYS, "role": "system"},
            video,
            {"type": "text", "value": question},
            {"type": "text", "value": "\nOnly give the best option."},
            {"type": "text", "value": "Best option:(", "role": "assistant"},
        ]


class LongVideoBenchFiles(LongVideoBench):  # type: ignore[misc]
    """Upstream's LongVideoBench without decoding frames that a model which reads the file itself never sees."""

    def build_prompt(self, line: Any, video_llm: bool) -> Message:
        line = (self.data.iloc[line] if isinstance(line, int) else line).copy()
        if not video_llm:
            return list(super().build_prompt(line, video_llm))
        options = [f"{chr(ord('A') + i)}. {text}" for i, text in enumerate(ast.literal_eval(line["candidates"]))]
        ask = "Answer with the option's letter from the given choices directly."
        return [
            {"type": "video", "value": osp.join(self.data_root, line["video_path"])},
            {"type": "text", "value": "\n".join([line["question"], *options, ask])},
        ]


def unpack(archive: Path, folder: Path) -> None:
    """Extract what of a zip of MVBench is not there yet; its second part, data0613/, belongs beside the first."""
    with zipfile.ZipFile(archive) as zipped:
        for member in zipped.infolist():
            target = folder / member.filename.removeprefix("data0613/")
            if member.is_dir() or not target.resolve().is_relative_to(folder.resolve()):
                continue
            if target.is_file() and target.stat().st_size == member.file_size:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            partial_file = target.with_name(f"{target.name}.{os.getpid()}.partial")
            with zipped.open(member) as source, partial_file.open("wb") as copy:
                shutil.copyfileobj(source, copy)
            os.replace(partial_file, target)


def video_of_frames(folder: Path, rate: int) -> str:
    """A video file of a folder's .jpg files in the order of their names, made once; its path.

    Raises:
        FileNotFoundError: the folder holds none.
    """
    target = folder.with_name(folder.name + ".mp4")
    if target.is_file():
        return str(target)
    files = sorted(folder.glob("*.jpg"))
    if not files:
        raise FileNotFoundError(f"no .jpg files in {str(folder)!r}")
    partial_file = target.with_name(f"{folder.name}.{os.getpid()}.partial.mp4")
    with Image.open(files[0]) as first:
        width, height = (length - length % 2 for length in first.size)
    with av.open(str(partial_file), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate))
        stream.width, stream.height, stream.pix_fmt, stream.options = width, height, "yuv420p", {"crf": "12"}
        for file in files:
            with Image.open(file) as image:
                frame = np.asarray(image.convert("RGB"))[:height, :width]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    os.replace(partial_file, target)
    return str(target)


CLASSES: dict[str, tuple[type[VideoBaseDataset], str]] = {  # what it is called here: class, name upstream knows it by
    "MotionQA": (MotionQA, "MotionQA"),
    "Video-MME": (VideoMME, "Video-MME"),
    "MVBench": (MVBenchFiles, "MVBench"),
    "LongVideoBench": (LongVideoBenchFiles, "LongVideoBench"),
    "MLVU_MCQ": (MLVU_MCQ, "MLVU_MCQ"),
}


def register() -> None:
    """Make the classes and `<name>_<N>frame` known to VLMEvalKit: by --data, and in a --config file."""
    import vlmeval.dataset
    from vlmeval.dataset.video_dataset_config import supported_video_datasets

    for cls, _ in CLASSES.values():
        setattr(vlmeval.dataset, cls.__name__, cls)
    if MotionQA not in vlmeval.dataset.DATASET_CLASSES:
        vlmeval.dataset.DATASET_CLASSES.append(MotionQA)
    supported_video_datasets["MotionQA"] = partial(MotionQA, nframe=8)
    for name, (cls, upstream) in CLASSES.items():
        for frames in VLMEVALKIT.frames or ():
            supported_video_datasets[f"{name}_{frames}frame"] = partial(cls, dataset=upstream, nframe=frames)
    # By these upstream tells the files of one data set from those of another whose name starts alike.
    known = vlmeval.dataset.SUPPORTED_DATASETS
    known.extend(name for name in ("MotionQA", *supported_video_datasets) if name not in known)


def check(names: Sequence[str]) -> None:
    """Turn away names of --data that VLMEvalKit would pass over, before a model is loaded; SettingsError."""
    from vlmeval.dataset import DATASET_CLASSES
    from vlmeval.dataset.video_dataset_config import supported_video_datasets

    known = {*supported_video_datasets, *(name for cls in DATASET_CLASSES for name in cls.supported_datasets())}
    for name in names:
        if name not in known and not osp.exists(osp.join(LMUDataRoot(), f"{name}.tsv")):  # a table of one's own
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SettingsError(f"--data {name!r}: there is no such data set{hint}")
