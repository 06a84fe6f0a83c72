"""How much may be dropped: answers compared with the unpruned model's, what is chosen, and that nothing is lost."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div

from tango.calibrate import Asked, Clip, Way, best, compare, settings_file, smallest, summaries
from tango.calibrate.ask import plain
from tango.cli import main
from tango.inference.chat import Chat
from tango.inference.checkpoints import Checkpoint, load
from tango.pruners import REGISTRY, Pruner
from tango.results.statistics import Interval, by_group
from tango.runs.settings import from_environment

ROOT = Path(__file__).parents[2]
QUESTIONS = ("Which 0?", "Which 1?")


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> Checkpoint:
    return load(str(checkpoint))


@pytest.fixture(scope="module")
def clips(benchmark: Path) -> list[Clip]:
    return [Clip(str(benchmark / "videos" / f"{name}.mp4"), QUESTIONS) for name in (0, 1)]


@pytest.fixture(scope="module")
def pruners() -> list[Pruner]:
    return [REGISTRY["tango"](retention_ratio=0.2), REGISTRY["visionzip"](retention_ratio=0.5)]


def run(loaded: Checkpoint, clips: Sequence[Clip], pruners: Sequence[Pruner], journal: Path) -> list[list[Asked]]:
    return compare(Chat(loaded, max_frames=4), clips, pruners, journal=journal, new_tokens=4)


@pytest.fixture(scope="module")
def found(loaded: Any, clips: Any, pruners: Any, tmp_path_factory: pytest.TempPathFactory) -> list[list[Asked]]:
    return run(loaded, clips, pruners, tmp_path_factory.mktemp("journal"))


def test_answers_and_divergence_are_those_of_separate_runs(
    loaded: Checkpoint, clips: list[Clip], pruners: list[Pruner], found: list[list[Asked]]
) -> None:
    """By forward() on each prompt by itself, and torch's own divergence."""

    def alone(pruner: Pruner | None, clip: Clip, question: str) -> tuple[torch.Tensor, Any]:
        content = [{"type": "video", "video": clip.video}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        with Chat(loaded, pruner, max_frames=4).session() as chat, torch.inference_mode():
            inputs, extra, _ = chat._prepare(messages)
            logs = loaded.model(**inputs, **extra).logits[0, -1].double().log_softmax(-1)
            return logs, chat.generate(messages, {"max_new_tokens": 4}, "x")

    assert any(one.kl > 0.01 for asked in found for one in asked), "nothing differs, so nothing is tested"
    for pruner, asked in zip(pruners, found, strict=True):
        assert [(one.video, one.question) for one in asked] == [(c.video, q) for c in clips for q in c.questions]
        for one in asked:
            clip = Clip(one.video, QUESTIONS)
            (whole, unpruned), (logs, answer) = (alone(which, clip, one.question) for which in (None, pruner))
            assert (one.unpruned, one.answer, one.failure) == (unpruned.response, answer.response, None)
            assert one.kl == pytest.approx(float(kl_div(logs, whole, log_target=True, reduction="sum")), abs=1e-5)
            before = answer.tokens["video_tokens_before"]
            assert one.kept == pytest.approx(answer.tokens["video_tokens_after"] / before)


def test_nothing_computed_is_lost(
    loaded: Checkpoint, clips: list[Clip], pruners: list[Pruner], found: list[list[Asked]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Stopped after each answer in turn: each is asked for once, but for the distributions of unpruned ones."""
    given, real = [], Chat.generate

    def stopping(chat: Chat, messages: Any, settings: Any, name: str) -> Any:
        if settings["max_new_tokens"] > 1:
            if given and given[-1] == "stop":
                given[-1] = "stopped"
                raise KeyboardInterrupt
            given.append("stop")
        return real(chat, messages, settings, name)

    monkeypatch.setattr(Chat, "generate", stopping)
    for _ in range(30):
        try:
            result = run(loaded, clips, pruners, tmp_path)
        except KeyboardInterrupt:
            continue
        break
    assert result == found
    assert len(given) == 3 * 4  # two methods and the unpruned model, four questions
    monkeypatch.setattr(Chat, "generate", lambda *_: pytest.fail("an answer was there already"))
    assert run(loaded, clips, pruners, tmp_path) == found


def test_a_question_without_an_answer_is_left_out(
    loaded: Checkpoint, clips: list[Clip], pruners: list[Pruner], tmp_path: Path
) -> None:
    long = "a" * (loaded.model.config.get_text_config().max_position_embeddings + 1)
    asked = run(loaded, [Clip(clips[0].video, ("Which 0?", long))], pruners[:1], tmp_path)
    (way,) = summaries(pruners[:1], asked)
    assert way.questions == 1 and len(way.failures) == 1 and "PromptTooLong" in way.failures[0]
    (none,) = summaries(pruners[:1], [asked[0][1:]])
    assert none.questions == 0 and not none.within(1.0)


def test_what_counts_as_the_same_answer() -> None:
    assert plain(" Yellow  ring.\n") == plain("yellow ring") != plain("yellow rings")
    assert plain("(B)") == "b" and plain("3.5") == "3.5"


def test_summaries_by_hand(pruners: list[Pruner]) -> None:
    """Three of four the same; with two videos of two questions each, by_group() has the wider ends."""
    answers = [("v", "a", 0.1), ("v", "a", 0.3), ("w", "a", 0.0), ("w", "b", 0.4)]
    asked = [Asked(video, "?", answer, "A.", kl, 0.25) for video, answer, kl in answers]
    (way,) = summaries(pruners[:1], [asked])
    assert (way.kept, way.agreement.value, way.questions) == (25, 75, 4)
    assert way.kl.value == pytest.approx(0.2) and way.agreement.low <= 30.07 and way.agreement.high >= 95.4  # Wilson's
    assert way.within(0.25) and not way.within(0.24) and not way.surely(0.5) and way.surely(0.75)


def made_up(method: str, ratio: float, agreement: float, kept: float | None = None) -> Way:
    value = Interval(agreement, agreement - 3, agreement + 1)
    return Way(REGISTRY[method](retention_ratio=ratio), 100 * (kept or ratio), value, Interval(0.1, 0, 1), 50)


def test_the_smallest_ratio_from_which_on_all_are_within() -> None:
    ways = [made_up("tango", ratio, value) for ratio, value in ((0.1, 96), (0.2, 94), (0.3, 95), (0.5, 99))]
    assert smallest(ways, 0.05) is ways[2]  # 0.1 is within, but by chance: 0.2 is not
    assert smallest(ways, 0.01) is ways[3] and smallest(ways, 0.005) is None
    others = [made_up("dycoke", 0.1, 97, kept=0.56), made_up("divprune", 0.2, 95)]
    assert best([*ways, *others], 0.05) is others[1]  # it is what is kept that counts, not what was asked for
    assert best([*ways, *others], 0.005) is None


@pytest.mark.parametrize("name", REGISTRY)
def test_both_frameworks_take_the_settings_file(name: str, tmp_path: Path) -> None:
    special = {"sink_tokens": (3, 5), "pruned_layer": 2} if name == "tango" else {}
    pruner = REGISTRY[name](retention_ratio=0.15, keep_positions=True, saliency_weights="a: b #", **special)
    way = Way(pruner, 15.0, Interval(96, 93, 98), Interval(0.1, 0, 1), 50)
    file = tmp_path / "calibrate.yaml"
    file.write_text(settings_file(way, 0.05, "tango calibrate 'a\nb'"))
    assert from_environment({"WRAPPER": name, "TANGO_CONFIG": str(file)}).pruner == pruner


def test_by_group() -> None:
    """Its variance by formula: sum of squares over G (G + 1), for groups of one size; copies of a value count once."""
    values = np.random.default_rng(1).normal(size=200).round(3).tolist()
    names = [str(i) for i in range(200)]
    found = by_group(values, names)
    half = 1.959964 * np.sqrt(np.var(values) * 200 / (200 * 201))
    assert found.value == pytest.approx(np.mean(values))
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)
    again = by_group(values * 4, names * 4)
    assert (again.low, again.high) == pytest.approx((found.low, found.high), abs=0.01)
    alone = by_group([1.0, 2.0, 3.0], ["a"] * 3)
    assert 1 < alone.low < alone.value == 2 < alone.high < 3
    with pytest.raises(ValueError, match="no values"):
        by_group([], [])


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On the shipped model: what it prints it writes, and its settings file is taken; with no choice it says so."""
    monkeypatch.chdir(ROOT)
    rows = json.loads((ROOT / "data/motionqa/test.json").read_text())[:6]
    for row in rows:
        row["video"] = str(ROOT / "data/motionqa" / row["video"])
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    words = ["calibrate", "--questions", str(tmp_path / "mine.json"), "--method", "topk", "--output", str(tmp_path)]
    assert main([*words, "--ratio", "0.9", "--ratio", "0.02", "--tolerance", "0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(way["retention_ratio"], way["questions"], way["within"]) for way in told["ways"]] == [
        (0.02, 6, False), (0.9, 6, True)
    ]  # fmt: skip
    assert told["chosen"] == told["ways"][1] and not told["chosen"]["surely"]
    written = json.loads((tmp_path / "calibrate.json").read_text())
    assert written["ways"] == told["ways"]
    assert {one["unpruned"] for one in written["answers"][1]} >= {"yellow ring", "yellow"}
    assert (tmp_path / "calibrate.png").stat().st_size > 10_000
    settings = tmp_path / "calibrate.yaml"
    chosen = from_environment({"WRAPPER": "topk", "TANGO_CONFIG": str(settings)}).pruner
    assert chosen == REGISTRY["topk"](retention_ratio=0.9)

    assert main([*words, "--ratio", "0.02"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "no method at these ratios leaves 95 %" in said and "same answer" in said and not settings.exists()


ROW = '{"video": "videos/0.mp4", "question": "What?"'


@pytest.mark.parametrize("words, told", [
    (["--tolerance", "1"], ["--tolerance 1", "[0, 1)"]),
    (["--ratio", "1"], ["--ratio 1", "below 1"]),
    (["--method", "tangle", "--questions", "{}/test.json"], ["tangle", "tango"]),
    (["m", "{}/videos/0.mp4"], ["no question", "--question"]),
    (["--question", "What?"], ["no video"]),
    (["m"], ["no videos", "--questions FILE"]),
    (["m", "{}/gone.mp4", "--question", "What?"], ["gone.mp4", "no video file"]),
    (["m", "{}/videos/0.mp4", "--question", "a\udcff"], ["not UTF-8"]),
    (["m", "{}/videos/0.mp4", "--question", "What?", "--questions", "{}/test.json"], ["leave VIDEOS and"]),
    (["./gone", "{}/videos/0.mp4", "--question", "What?"], ["./gone", "no such folder"]),
    (["--questions", "{}/gone.json"], ["gone.json", "cannot be read"]),
    (["--questions", "{}/bad.json", "BAD", "{{"], ["cannot be read"]),
    (["--questions", "{}/bad.json", "BAD", "[]"], ["expected a list"]),
    (["--questions", "{}/bad.json", "BAD", '["a"]'], ["entry 0", "video and question"]),
    (["--questions", "{}/bad.json", "BAD", '[{{"video": "videos/0.mp4"}}]'], ["entry 0", "video and question"]),
    (["--questions", "{}/bad.json", "BAD", "[{" + ROW + ', "options": "AB"}}]'], ["entry 0", "a list of"]),
    (["--questions", "{}/bad.json", "BAD", "[{" + ROW + ', "options": ["a", "b"]}}]'], ["2 options", "give 4"]),
    (["--questions", "{}/bad.json", "BAD", '[{{"video": "no.mp4", "question": "?"}}]'], ["no.mp4", "no video file"]),
])  # fmt: skip
def test_bad_input_gets_one_line(
    words: list[str], told: list[str], benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(benchmark) for word in words]
    if "BAD" in words:
        place = words.index("BAD")
        (benchmark / "bad.json").write_text(words[place + 1])
        words = words[:place]
    assert main(["calibrate", *words, "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith("tango: ")]
    assert len(lines) == 1 and not said.out and all(part in lines[0] for part in told), said
    assert not (tmp_path / "out").exists()
