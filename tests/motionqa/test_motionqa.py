"""MotionQA: the stored files say what their seeds say, and the text alone doesn't give the answers away."""

import json
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tango.motionqa import scenes
from tango.motionqa.questions import KINDS, LETTERS, Question, build, questions
from tango.motionqa.scenes import render, sample_spec, uniform_times

DATA = Path(__file__).parents[2] / "data" / "motionqa"
ROWS = json.loads((DATA / "test.json").read_text())


def seed_of(row):
    return int(Path(row["video"]).stem)


def test_answers_are_what_the_video_shows():
    assert len(ROWS) == 720
    for row in ROWS:
        spec = sample_spec(seed_of(row))
        said = row["options"][LETTERS.index(row["answer"])]
        by_shape = {a.shape: a for a in spec.actors}
        by_colour = {a.colour: a for a in spec.actors}
        words = row["question"].rstrip("?").split()
        match row["kind"]:
            case "colour":
                truth = by_shape[words[-1]].colour
            case "shape":
                truth = by_colour[words[-2]].shape
            case "direction":
                truth = by_shape[words[-2]].direction
            case "order":
                truth = spec.actors[0 if words[-1] == "first" else -1].name
            case "count":
                truth = ("one", "two", "three", "four")[len(spec.dots) - 1]
            case "glyph":
                truth = spec.glyph
        assert said == truth, row
        assert len(set(row["options"])) == 4


def test_every_sampled_set_of_eight_frames_shows_the_evidence():
    times = uniform_times(8)
    for row in ROWS[::6]:
        spec = sample_spec(seed_of(row))
        for actor in spec.actors:
            assert sum(actor.start <= t < actor.end for t in times) >= 2
        assert any(spec.glyph_window[0] <= t < spec.glyph_window[1] for t in times)
        assert any(spec.dots_window[0] <= t < spec.dots_window[1] for t in times)


def test_letters_and_kinds_are_balanced():
    videos = len(ROWS) // len(KINDS)
    assert Counter(row["kind"] for row in ROWS) == dict.fromkeys(KINDS, videos)
    for kind in KINDS:
        letters = Counter(row["answer"] for row in ROWS if row["kind"] == kind)
        assert max(letters.values()) - min(letters.values()) <= 1


def test_videos_are_h264_and_show_what_was_drawn():
    for row in ROWS[:: len(ROWS) // 5]:
        with av.open(str(DATA / row["video"])) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        assert len(frames) == scenes.NUM_FRAMES
        spec = sample_spec(seed_of(row))
        for i in (0, 21, 63):
            drawn = render(spec, i / scenes.FPS).astype(float)
            assert np.mean((frames[i] - drawn) ** 2) < 65  # 30 dB


def test_same_seed_same_files(tmp_path):
    first = build(tmp_path / "a", 2, 77)
    second = build(tmp_path / "b", 2, 77)
    assert first == second
    for row in first:
        assert (tmp_path / "a" / row["video"]).read_bytes() == (tmp_path / "b" / row["video"]).read_bytes()


def test_training_and_test_videos_differ():
    assert {seed_of(row) for row in ROWS}.isdisjoint(range(500_000, 2_000_000_000))
    shown = {str(sample_spec(seed_of(row))).split("cuts")[1] for row in ROWS}
    assert shown.isdisjoint(str(sample_spec(s)).split("cuts")[1] for s in range(1_000_000, 1_000_500))


def guesser_features(asked: list[tuple[str, list[str]]]) -> torch.Tensor:
    """(questions, 4, hashed features): letters, words of the option, pairs of a question's and an option's word."""
    x = torch.zeros(len(asked), 4, 1024)
    for i, (text, options) in enumerate(asked):
        for j, option in enumerate(options):
            for word in option.split():
                for key in (f"letter{j}", word, f"{j}{word}", *(f"{w}|{word}" for w in text.split())):
                    x[i, j, sum(ord(c) * 31**n for n, c in enumerate(key)) % 1024] = 1
    return x


def test_text_alone_scores_chance():
    rng = np.random.default_rng(0)
    asked: list[Question] = []
    for seed in range(1_000_000, 1_000_300):
        asked += questions(sample_spec(seed), uniform_times(8), rng)
    x = guesser_features([(q.text, list(q.options)) for q in asked])
    y = torch.tensor([q.answer for q in asked])
    weight = torch.zeros(x.shape[-1], requires_grad=True)
    optimiser = torch.optim.Adam([weight], lr=0.02)
    for _ in range(60):
        optimiser.zero_grad()
        (torch.nn.functional.cross_entropy(x @ weight, y) + 1e-3 * weight.square().sum()).backward()
        optimiser.step()
    guesses = (guesser_features([(r["question"], r["options"]) for r in ROWS]) @ weight).argmax(1)
    right = np.mean([LETTERS[int(g)] == r["answer"] for g, r in zip(guesses, ROWS, strict=True)])
    # Chance is 25 %; three standard errors of 720 questions are 4.8 points.
    assert right == pytest.approx(0.25, abs=0.048)
