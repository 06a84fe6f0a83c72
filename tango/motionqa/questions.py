"""The questions of MotionQA: what is asked about a scene, and the files of the benchmark.

Six kinds of question need different evidence: `colour` and `shape` of an object, `direction` of its motion, `order` of
appearance, `count` of dots, and the `glyph`. Answers can't be guessed from the text: the asked-for object, the options
and their order are drawn independently of each other (tests/motionqa trains a text-only guesser and finds chance).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tango.motionqa import scenes
from tango.motionqa.scenes import COLOURS, DIRECTIONS, GLYPHS, NUMBERS, SHAPES, Array, Spec

KINDS = ("colour", "shape", "direction", "order", "count", "glyph")
LETTERS = "ABCD"
INSTRUCTION = "Answer with one of the options."


@dataclass(frozen=True)
class Question:
    """One question; `options` are texts, `answer` indexes the right one."""

    kind: str
    text: str
    options: tuple[str, str, str, str]
    answer: int

    def prompt(self) -> str:
        """The question as a model reads it."""
        return prompt(self.text, self.options)


def prompt(question: str, options: Sequence[str]) -> str:
    """A question as a model reads it, options lettered A to D on lines of their own."""
    lettered = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True)]
    return "\n".join([question, *lettered, INSTRUCTION])


def read_questions(folder: Path) -> list[dict[str, Any]]:
    """The rows of a folder's test.json: id, video, kind, question, options, answer."""
    rows: list[dict[str, Any]] = json.loads((folder / "test.json").read_text(encoding="utf-8"))
    return rows


def data_files(folder: Path) -> list[Path]:
    """All files of the benchmark in a folder."""
    return [folder / "test.json", *sorted((folder / "videos").iterdir())]


def questions(spec: Spec, times: Array, rng: np.random.Generator) -> list[Question]:
    """Every question that frames of a video sampled at `times` (seconds) answer; options freshly drawn."""

    def seen(window: tuple[float, float]) -> int:
        return int(sum(window[0] <= t < window[1] for t in times))

    def ask(kind: str, text: str, right: str, wrong: list[str]) -> Question:
        options = [right, *wrong]
        order = rng.permutation(4)
        a, b, c, d = (options[i] for i in order)
        return Question(kind, text, (a, b, c, d), int(np.flatnonzero(order == 0)[0]))

    def others(pool: Any, shown: list[str], right: str) -> list[str]:
        absent = [name for name in pool if name not in shown]
        return [name for name in shown if name != right] + [str(rng.choice(absent))]

    counts = [seen((a.start, a.end)) for a in spec.actors]
    colours, shapes = [a.colour for a in spec.actors], [a.shape for a in spec.actors]
    found = []
    for actor, count in zip(spec.actors, counts, strict=True):
        if min(counts) >= 1:
            right, wrong = actor.colour, others(COLOURS, colours, actor.colour)
            found.append(ask("colour", f"What colour is the {actor.shape}?", right, wrong))
            right, wrong = actor.shape, others(SHAPES, shapes, actor.shape)
            found.append(ask("shape", f"What shape is the {actor.colour} object?", right, wrong))
        if count >= 2:
            wrong = [d for d in DIRECTIONS if d != actor.direction]
            found.append(ask("direction", f"Which way does the {actor.name} move?", actor.direction, wrong))
    if min(counts) >= 1:
        names = [a.name for a in spec.actors]
        absent = f"{others(COLOURS, colours, '')[-1]} {others(SHAPES, shapes, '')[-1]}"
        for which, index in (("first", 0), ("last", 2)):
            wrong = [n for n in names if n != names[index]] + [absent]
            found.append(ask("order", f"Which object appears {which}?", names[index], wrong))
    if seen(spec.dots_window):
        right = NUMBERS[len(spec.dots) - 1]
        found.append(ask("count", "How many white dots are there?", right, [n for n in NUMBERS if n != right]))
    if seen(spec.glyph_window):
        wrong = [str(g) for g in rng.permutation([g for g in GLYPHS if g != spec.glyph])[:3]]
        found.append(ask("glyph", "Which letter flashes up?", spec.glyph, wrong))
    return found


def build(folder: Path, videos: int, first_seed: int, progress: Any = iter) -> list[dict[str, Any]]:
    """Writes `videos` videos and one question of every kind about each to `folder`; returns the rows of test.json.

    Answer letters are balanced, over all questions and within each kind, by moving the right option; the rows are in
    the format that lmms-eval reads with `dataset_path: json`. `progress` wraps the loop over videos.
    """
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([11, first_seed])
    letters = {kind: rng.permutation(np.arange(videos) % 4) for kind in KINDS}
    rows: list[dict[str, Any]] = []
    for i in progress(range(videos)):
        spec = scenes.sample_spec(first_seed + i)
        name = f"videos/{first_seed + i}.mp4"
        scenes.write_video(folder / name, spec)
        asked = questions(spec, scenes.uniform_times(8), rng)
        for kind in KINDS:
            pool = [q for q in asked if q.kind == kind]
            question = pool[int(rng.integers(len(pool)))]
            target = int(letters[kind][i])
            options = list(question.options)
            options[target], options[question.answer] = options[question.answer], options[target]
            rows.append(
                {
                    "id": f"{first_seed + i}-{kind}",
                    "video": name,
                    "kind": kind,
                    "question": question.text,
                    "options": options,
                    "answer": LETTERS[target],
                }
            )
    (folder / "test.json").write_text(json.dumps(rows, indent=1) + "\n")
    return rows
