"""What tango-tiny learns from: its tokenizer, frames with captions, conversations about MotionQA's training videos."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from tokenizers import pre_tokenizers, trainers
from torch import Tensor
from transformers import Qwen2Tokenizer

from tango.motionqa import scenes
from tango.motionqa.questions import KINDS, questions
from tango.motionqa.scenes import Spec, render, sample_spec

# First seed of each split; the test split starts at 0, and they never meet.
TRAIN_SEED, VALIDATION_SEED = 1_000_000, 500_000
PATCH, GRID = 8, scenes.SIZE // 8
IMAGE, VIDEO, TURN, END, PAD = "<image>", "<video>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif part['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DESCRIBE = "Describe the video."
ALL_QUESTIONS = 13  # of a video of which everything is seen


def place(x: float, y: float) -> str:
    """Which ninth of the picture a point lies in, in words."""
    rows, columns = ("top", "middle", "bottom"), ("left", "centre", "right")
    return f"{rows[min(int(3 * y / scenes.SIZE), 2)]} {columns[min(int(3 * x / scenes.SIZE), 2)]}"


def caption(spec: Spec, time: float, rng: np.random.Generator) -> str:
    """What the frame at `time` shows, in words, its parts in random order."""
    shown = [actor for actor in spec.actors if actor.start <= time < actor.end]
    parts = [f"{actor.name} at the {place(*actor.position(time))}" for actor in shown]
    if spec.dots_window[0] <= time < spec.dots_window[1]:
        parts.append(f"{scenes.NUMBERS[len(spec.dots) - 1]} white dots")
    if spec.glyph_window[0] <= time < spec.glyph_window[1]:
        x, y = spec.glyph_at
        parts.append(f"the letter {spec.glyph} at the {place(x + scenes.GLYPH_WIDTH / 2, y + scenes.GLYPH_HEIGHT / 2)}")
    return ", ".join(parts[i] for i in rng.permutation(len(parts))) if parts else "nothing"


def make_tokenizer() -> Qwen2Tokenizer:
    """Qwen2's kind of tokenizer (byte-level BPE), merges learned on MotionQA's words; other text falls to bytes."""
    rng = np.random.default_rng(0)
    corpus = [DESCRIBE, "user assistant system You are a helpful assistant."]
    for seed in range(TRAIN_SEED, TRAIN_SEED + 2000):
        spec = sample_spec(seed)
        for question in questions(spec, scenes.uniform_times(8), rng):
            corpus += [question.prompt(), *(" " + option for option in question.options), *question.options]
        corpus += [caption(spec, t, rng) for t in scenes.uniform_times(8)]
        corpus.append(describe(spec))
    blank = Qwen2Tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=[PAD, TURN, END, IMAGE, VIDEO],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    blank._tokenizer.train_from_iterator(corpus, trainer)
    trained = json.loads(blank._tokenizer.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=trained["vocab"],
        merges=[tuple(m) for m in trained["merges"]],
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[TURN, IMAGE, VIDEO],
        model_max_length=32768,
    )


def describe(spec: Spec) -> str:
    """All a video shows, as one line: the answer to DESCRIBE."""
    actors = ", ".join(f"{a.name} {a.direction}" for a in spec.actors)
    return f"{actors}, {scenes.NUMBERS[len(spec.dots) - 1]} white dots, {spec.glyph}"


def ask(
    spec: Spec, times: np.ndarray, rng: np.random.Generator, options: int, kinds: Sequence[str] = KINDS
) -> list[tuple[str, str]]:
    """(question, answer) pairs about one video: one of each kind openly, `options` with options, and more on motion.

    The answer to multiple choice is the option's text. Direction is the hardest: with all kinds it is asked of all
    three objects, and always with it where the object is first and last seen. Empty where the frames at `times` do not
    answer every question of these kinds, so that all videos of a batch have the same number of pairs.
    """
    found = questions(spec, times, rng)
    by_kind = {kind: [q for q in found if q.kind == kind] for kind in kinds}
    if not all(by_kind.values()) or (kinds == KINDS and len(found) < ALL_QUESTIONS):
        return []
    moving = by_kind.get("direction", [])
    if moving and kinds != KINDS:
        moving = [moving[int(rng.integers(len(moving)))]]
    openly = [of_kind[int(rng.integers(len(of_kind)))] for kind, of_kind in by_kind.items() if kind != "direction"]
    among = rng.choice(kinds, min(options, len(kinds)), replace=False)
    chosen = [by_kind[kind][int(rng.integers(len(by_kind[kind])))] for kind in among]
    pairs = [(q.text, q.options[q.answer]) for q in openly + moving]
    pairs += [(q.prompt(), q.options[q.answer]) for q in chosen]
    for actor in spec.actors:
        if any(actor.name in q.text for q in moving):
            seen = [t for t in times if actor.start <= t < actor.end]
            for when, time in (("first", seen[0]), ("last", seen[-1])):
                pairs.append((f"Where is the {actor.name} {when}?", place(*actor.position(time))))
    return pairs


def as_coded(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The frame after lossy coding with halved chroma, much as a video decoder returns it (JPEG is quicker)."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=int(rng.integers(70, 96)), subsampling=2)
    return np.asarray(Image.open(buffer))


def as_pixels(frames: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) in [-1, 1], what the shipped processor does with mean = std = 0.5."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


def vary(spec: Spec, focus: str, rng: np.random.Generator) -> Spec:
    """A near twin of a video: another glyph, other shapes, other places, or ("all") anything else that has a name."""
    actors, dots, glyph = spec.actors, spec.dots, spec.glyph
    if focus == "place":
        low, high = 14.0, scenes.SIZE - 14.0
        actors = tuple(
            dataclasses.replace(a, x=rng.uniform(low, high), y=rng.uniform(low, high), distance=1.0) for a in actors
        )
    if focus in ("shape", "all"):
        actors = tuple(dataclasses.replace(a, shape=str(rng.choice(scenes.SHAPES))) for a in actors)
    if focus in ("glyph", "all"):
        glyph = str(rng.choice(list(scenes.GLYPHS)))
    if focus == "all":
        actors = tuple(dataclasses.replace(a, colour=str(rng.choice(list(scenes.COLOURS)))) for a in actors)
        dots = dots[: int(rng.integers(1, len(dots) + 1))]
    return dataclasses.replace(spec, actors=actors, dots=dots, glyph=glyph)


@dataclass
class FrameBatch:
    """Frames (B, 3, H, W), their captions, and for each patch what it shows and where its object's centre is."""

    pixels: Tensor
    captions: list[str]
    classes: Tensor  # (B, patches, 4) int64: colour, shape, letter, number of dots; counted from 1, 0 for none
    centres: Tensor  # (B, patches, 2), x and y from -1 to 1; meaningless where there is no object


def patch_truth(spec: Spec, time: float) -> tuple[np.ndarray, np.ndarray]:
    """One frame's `classes` and `centres`. A patch belongs to an object if its centre lies inside it or nearly so."""
    middle = (np.arange(GRID) + 0.5) * PATCH
    ys, xs = (a.ravel() for a in np.meshgrid(middle, middle, indexing="ij"))
    classes = np.zeros((GRID * GRID, 4), np.int64)
    centres = np.zeros((GRID * GRID, 2), np.float32)

    def mark(inside: np.ndarray, x: float, y: float, **labels: int) -> None:
        centres[inside] = 2 * x / scenes.SIZE - 1, 2 * y / scenes.SIZE - 1
        for name, label in labels.items():
            classes[inside, ("colour", "shape", "letter", "dots").index(name)] = label

    if spec.dots_window[0] <= time < spec.dots_window[1]:
        for x, y in spec.dots:
            mark(np.hypot(xs - x, ys - y) < 5, x, y, dots=len(spec.dots))
    for actor in spec.actors:
        if actor.start <= time < actor.end:
            x, y = actor.position(time)
            colour, shape = 1 + list(scenes.COLOURS).index(actor.colour), 1 + scenes.SHAPES.index(actor.shape)
            mark(np.hypot(xs - x, ys - y) < actor.radius + 2, x, y, colour=colour, shape=shape)
    if spec.glyph_window[0] <= time < spec.glyph_window[1]:
        x, y = spec.glyph_at[0] + scenes.GLYPH_WIDTH / 2, spec.glyph_at[1] + scenes.GLYPH_HEIGHT / 2
        inside = (abs(xs - x) < scenes.GLYPH_WIDTH / 2) & (abs(ys - y) < scenes.GLYPH_HEIGHT / 2)
        mark(inside, x, y, letter=1 + list(scenes.GLYPHS).index(spec.glyph))
    return classes, centres


def frame_batch(step: int, seed: int, size: int) -> FrameBatch:
    """Frames in groups of near twins, which make the captions' every word matter."""
    rng = np.random.default_rng([1, seed, step])
    frames: list[np.ndarray] = []
    captions: list[str] = []
    truth: list[tuple[np.ndarray, np.ndarray]] = []
    while len(frames) < size:
        spec = sample_spec(TRAIN_SEED + int(rng.integers(1 << 30)))
        focus = str(rng.choice(["glyph", "shape", "place", "all"], p=[0.3, 0.3, 0.2, 0.2]))
        actor = spec.actors[int(rng.integers(3))]
        windows = [(0.0, scenes.DURATION), spec.dots_window, spec.glyph_window]
        window = {"glyph": spec.glyph_window, "shape": (actor.start, actor.end), "place": (actor.start, actor.end)}.get(
            focus
        ) or windows[int(rng.integers(3))]
        moment = float(rng.uniform(window[0], min(window[1], scenes.DURATION - 0.01)))
        group: set[str] = {"nothing"}  # captions already told, their parts sorted: twins must differ in what is in view
        for twin in [spec, *(vary(spec, focus, rng) for _ in range(12))]:
            text = caption(twin, moment, rng)
            told = ", ".join(sorted(text.split(", ")))
            if told not in group and len(group) < 5:
                group.add(told)
                frames.append(as_coded(render(twin, moment), rng))
                captions.append(text)
                truth.append(patch_truth(twin, moment))
    classes, centres = (torch.from_numpy(np.stack(column[:size])) for column in zip(*truth, strict=True))
    return FrameBatch(as_pixels(np.stack(frames[:size])), captions[:size], classes, centres)
