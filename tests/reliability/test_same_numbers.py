"""What leaves kept tokens as they are: threads, batches, order, default dtypes, other instructions of a processor."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import ROOT

from tango.inference.checkpoints import Checkpoint, load
from tango.inference.video import read_video
from tango.pruners import REGISTRY

GROUP = "The same numbers twice"
fault = pytest.mark.fault
Seen = Callable[[str, str], None]
Kept = dict[str, list[Any]]

VIDEOS = ("0", "1", "2", "3")
QUESTION = "Which object appears first?"
FRAMES = 4


@lru_cache(maxsize=1)
def shipped() -> Checkpoint:
    return load(str(ROOT / "checkpoints/tango-tiny"), device="cpu")


def kept(videos: Sequence[str] = VIDEOS, batch: int = 1) -> Kept:
    """Of each method on each video, asked in this order in batches of so many: kept tokens, and the answer's ids."""
    model, processor = shipped().model, shipped().processor
    content = [{"type": "video"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    prompts = []
    for start in range(0, len(videos), batch):
        clips = [
            read_video(ROOT / f"data/motionqa/videos/{name}.mp4", FRAMES) for name in videos[start : start + batch]
        ]
        asked = processor(
            text=[text] * len(clips), videos=[clip.frames for clip in clips], return_tensors="pt", padding=True,
            padding_side="left",
        )  # fmt: skip
        prompts.append((videos[start : start + batch], asked, [clip.timestamps for clip in clips]))
    found: Kept = {}
    for name, method in sorted(REGISTRY.items()):
        ratio = 0.6 if name == "fastv" else 0.2  # FastV lets every token into half of this model's layers
        with method(retention_ratio=ratio)(model) as session, torch.inference_mode():
            for called, asked, times in prompts:
                ids = model.generate(**asked, video_timestamps=times, max_new_tokens=3, do_sample=False)
                for video, record, row in zip(called, session.videos, ids, strict=True):
                    answer = row[asked["input_ids"].shape[1] :].tolist()
                    found[f"{name} {video}"] = [
                        record.indices.tolist(),
                        record.segment_sizes,
                        record.tokens_in_llm,
                        answer,
                    ]
    return dict(sorted(found.items()))


@lru_cache(maxsize=1)
def usual() -> str:
    return json.dumps(kept())


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def compare(found: Kept, seen: Seen) -> None:
    """All keeps the same tokens; says so, and how many answers are the same, which follow from sums in other orders."""
    want: Kept = json.loads(usual())
    assert len(want) == len(REGISTRY) * len(VIDEOS) and all(len(one[0]) > 0 for one in want.values())
    differ = [name for name in want if found[name][:3] != want[name][:3]]
    assert not differ
    same = sum(found[name][3] == want[name][3] for name in want)
    seen(
        f"(equal kept tokens: {len(want)} of {len(want)} videos and methods)",
        f"kept tokens and segments; {same} of {len(want)} answers",
    )


@fault("asked twice", "the same again in the same process")
def test_twice(seen: Seen) -> None:
    compare(kept(), seen)


@fault("another number of threads", "`torch.set_num_threads(2)` after 1")
def test_threads(seen: Seen) -> None:
    with threads(2):
        compare(kept(), seen)


@fault("another batch size", "4 prompts in a batch, padded, after one by one")
def test_batches(seen: Seen) -> None:
    compare(kept(batch=4), seen)


@fault("another order of videos", "the last first, in batches of 3 and 1")
def test_order(seen: Seen) -> None:
    compare(kept(VIDEOS[::-1], batch=3), seen)


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float64, marks=fault("another default dtype: float64", "`torch.set_default_dtype`")),
        pytest.param(torch.bfloat16, marks=fault("another default dtype: bfloat16", "`torch.set_default_dtype`")),
    ],
)
def test_default_dtypes(dtype: torch.dtype, seen: Seen) -> None:
    with default_dtype(dtype):
        compare(kept(), seen)


@fault("another processor", "a process of its own without AVX: `ATEN_CPU_CAPABILITY=default`, oneDNN at SSE 4.1")
def test_other_instructions(seen: Seen) -> None:
    code = (
        "import json, torch, test_same_numbers as same; print(torch.backends.cpu.get_cpu_capability()); "
        "print(json.dumps(same.kept()))"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    plain = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | plain | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    *_, capability, found, _ = done.stdout.split("\n")
    assert capability in ("DEFAULT", "NO AVX")
    compare(json.loads(found), seen)
