"""Streams made of MotionQA's scenes, and sessions that have seen them."""

from functools import cache
from pathlib import Path

import numpy as np

from tango import Tango
from tango.inference.checkpoints import load
from tango.inference.video import read_video
from tango.live import Live
from tango.motionqa.questions import prompt, read_questions

ROOT = Path(__file__).parents[2]
DATA = ROOT / "data" / "motionqa"
ROWS = read_questions(DATA)
QUESTION = "What colour is the ring?"


@cache
def shipped():
    """tango-tiny."""
    return load(str(ROOT / "checkpoints" / "tango-tiny"))


@cache
def clip(number, frames=8):
    return read_video(DATA / f"videos/{number}.mp4", frames)


def scenes(*numbers, frames=8, gap=1.0):
    """Frames (F, H, W, 3) and times of several clips, one after another."""
    pictures, times, start = [], [], 0.0
    for number in numbers:
        own = clip(number, frames)
        pictures.append(own.frames)
        times += [start + time for time in own.timestamps]
        start = times[-1] + gap
    return np.concatenate(pictures), times


def asked(row):
    return prompt(row["question"], row["options"])


def live(checkpoint=None, pruner=None, **settings):
    checkpoint = checkpoint or shipped()
    return Live(
        checkpoint.model, checkpoint.processor, pruner or Tango(retention_ratio=0.1), **{"fps": None, **settings}
    )


def watch(video, pictures, times):
    for picture, time in zip(pictures, times, strict=True):
        assert video.add(picture, time, wait=True)
    video.wait()
