"""One evaluation, as the plugins make it: what its answers depend on, samples that fail, journals of other versions."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tango.inference.chat import Answer, Chat
from tango.inference.checkpoints import Checkpoint, load
from tango.inference.prompt import Message
from tango.runs import provenance
from tango.runs.run import ArgumentError, EvaluationRun, check_model
from tango.runs.settings import from_environment

SETTINGS = {"max_new_tokens": 3}


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> Checkpoint:
    return load(str(checkpoint))


def begin(loaded: Checkpoint, folder: Path | None, args: str = "", **how: Any) -> EvaluationRun:
    settings = from_environment({"WRAPPER": "tango", "TANGO_ARGS": args})
    return EvaluationRun(settings, Chat(loaded, settings.pruner, max_frames=4), journal=folder, **how)


def answer(run: EvaluationRun, *videos: Path) -> dict[str, Any]:
    """The summary of a run that asks about videos."""

    def messages(video: Path) -> list[Message]:
        if video.name == "none":
            raise LookupError("no such question")
        content = [{"type": "video", "video": str(video)}, {"type": "text", "text": "What?"}]
        return [{"role": "user", "content": content}]

    def ask(messages: Sequence[Message]) -> Answer:
        return run.chat.generate(messages, SETTINGS, "x")

    with run.chat.session():
        samples = (run.sample("t", i, str(i), lambda v=v: messages(v), ask) for i, v in enumerate(videos))
        records = list(run.runner.run(samples))
    assert len(records) == len(videos)
    return run.finish(lambda record: -record.doc_id)


def test_a_run_is_recorded_and_taken_up_again(loaded: Checkpoint, benchmark: Path, tmp_path: Path) -> None:
    videos = [benchmark / "videos" / "0.mp4", Path("none"), benchmark / "videos" / "1.mp4"]
    first = answer(begin(loaded, tmp_path), *videos)
    assert [entry["doc_id"] for entry in first["samples"]] == [2, 1, 0]  # in the order that was asked for
    assert first["failed"] == [{"task": "t", "doc_id": 1, "reason": "LookupError: no such question", "tries": 2}]
    assert first["method"] == "tango" and first["model"]["max_frames_num"] == 4 and first["model"]["use_cache"] is True
    again = answer(begin(loaded, tmp_path), *videos)
    assert (again["n_resumed"], again["n_failed"]) == (2, 1)
    assert [entry["response"] for entry in again["samples"]] == [entry["response"] for entry in first["samples"]]
    assert [entry["tokens"] for entry in again["samples"]] == [entry["tokens"] for entry in first["samples"]]
    assert answer(begin(loaded, tmp_path, resume=False), *videos)["n_resumed"] == 0


def test_answers_of_other_runs_are_not_taken(loaded: Checkpoint, tmp_path: Path) -> None:
    plain = begin(loaded, None)
    others = [
        begin(loaded, None, "retention_ratio=0.2"),
        begin(loaded, None, asked={"fps": 2}),
        begin(loaded, None, depends_on=["0.2.0"]),
        EvaluationRun(plain.settings, replace(plain.chat, max_frames=5), journal=None),
        EvaluationRun(plain.settings, replace(plain.chat, seed=5), journal=None),
        EvaluationRun(from_environment({}), Chat(loaded, max_frames=4), journal=None),
    ]
    assert plain.described["weights"] == provenance.model_fingerprint(loaded.described["pretrained"])
    assert plain.digest == begin(loaded, None).digest
    assert len({plain.digest, *(other.digest for other in others)}) == 7


@pytest.mark.parametrize("library", ["torch", "transformers", "av", "torchvision", "pillow"])
def test_answers_of_another_version_of_what_makes_them_are_not_taken(
    loaded: Checkpoint, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    """torchvision's transforms resize frames, pillow reads images: they change pixels, so answers."""
    plain, found = begin(loaded, None).digest, provenance.versions()
    monkeypatch.setattr(provenance, "versions", lambda: found | {library: "0"})
    assert library in found and begin(loaded, None).digest != plain


def test_a_changed_video_is_asked_about_anew(loaded: Checkpoint, benchmark: Path, tmp_path: Path) -> None:
    video = tmp_path / "v.mp4"
    video.write_bytes((benchmark / "videos" / "0.mp4").read_bytes())
    answer(begin(loaded, tmp_path), video)
    assert answer(begin(loaded, tmp_path), video)["n_resumed"] == 1
    video.write_bytes((benchmark / "videos" / "1.mp4").read_bytes())
    assert answer(begin(loaded, tmp_path), video)["n_resumed"] == 0


def test_entries_of_another_form_are_computed_anew(
    loaded: Checkpoint, benchmark: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    video = benchmark / "videos" / "0.mp4"
    answer(begin(loaded, tmp_path), video)
    (file,) = tmp_path.glob("*.jsonl")
    whole = json.loads(file.read_text())
    lacking = {name: value for name, value in whole.items() if name != "peak_mem_gb"}
    for entry, said in (
        (whole | {"wall_s": "long"}, "wall_s = 'long': expected a number"),
        (whole | {"tokens": None}, "tokens = None: expected a mapping"),
        (whole | {"timing": whole["timing"] | {"decode_s": "x"}}, "timing.decode_s = 'x': expected a number"),
        (lacking, "peak_mem_gb is missing"),
    ):
        file.write_text(json.dumps(entry) + "\n")
        assert answer(begin(loaded, tmp_path), video)["n_resumed"] == 0
        assert f"t 0 is computed anew: its entry in the journal has {said}" in caplog.text
        assert answer(begin(loaded, tmp_path), video)["n_resumed"] == 1


def test_a_model_of_another_class(checkpoint: Path) -> None:
    check_model(str(checkpoint), "main", ["LlavaOnevisionForConditionalGeneration"], "this model")
    with pytest.raises(ArgumentError, match=r"holds a LlavaOnevisionFor.*, and mine is for One and Two; use ours"):
        check_model(str(checkpoint), "main", ["One", "Two"], "mine", "; use ours")
