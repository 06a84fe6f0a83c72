"""The VLMEvalKit plugin in this process: settings, prompts, data sets, scores, what is taken again and what is not."""

import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import stand_ins
import vlmeval.dataset.mvbench
import vlmeval.run
from huggingface_hub.constants import HF_HUB_CACHE
from PIL import Image
from tango_lmms_eval.models import LlavaOnevision
from tango_lmms_eval.tasks.motionqa import utils
from tango_vlmeval import command, datasets, hooks, models
from tango_vlmeval.datasets import LongVideoBenchFiles, MotionQA, MVBenchFiles, unpack, video_of_frames
from tango_vlmeval.models import Prompt, TangoLlavaOnevision, TangoLlavaVideo, TangoQwenVL, conversation
from tiny import save_qwen, write_benchmark, write_video
from vlmeval.smp import file as vlmeval_files
from vlmeval.smp import modelscope_flag_set

from tango.inference.video import read_video
from tango.pruners import Tango
from tango.runs.run import ArgumentError
from tango.runs.settings import SettingsError, field_types
from tango.sweeps.cells import Evaluation
from tango.sweeps.sweep import CellError
from tango.sweeps.vlmeval_cells import collect, vlmeval_cell

TEXT = {"type": "text", "value": "What?"}


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LMUData", str(tmp_path))
    for name in ("WRAPPER", "TANGO_CONFIG", "TANGO_ARGS"):
        monkeypatch.setenv(name, "")


# -- settings


def test_flags_are_fields_of_the_method_and_win() -> None:
    fields = {field for field, _ in command.FIELDS.values()}
    assert fields <= set(field_types(Tango))
    own, rest = command.own_parser().parse_known_args(
        ["--retain-ratio", "0.2", "--alpha=2", "--data", "MotionQA", "--segment-type", "fastvid"]
    )
    assert rest == ["--data", "MotionQA"]
    merged = command.merge(vars(own), {"WRAPPER": "tango", "TANGO_ARGS": "retention_ratio=0.1, context_ratio=0.3"})
    assert merged == " context_ratio=0.3,retention_ratio=0.2,expansion=2,segmentation=fastvid"
    assert command.merge({}, {"TANGO_ARGS": "a=1"}) == "a=1"
    with pytest.raises(SettingsError, match=r"--alpha with WRAPPER='': no method"):
        command.merge({"expansion": "2"}, {})


@pytest.mark.parametrize(
    ("wrapper", "words", "said"),
    [
        ("tengo", [], "'tengo'.*vanilla.*tango"),
        ("random", ["--alpha", "2"], "error: --alpha: 'random' has no field 'expansion'; its fields are"),
        ("tango", ["--alpha", "much"], "error: --alpha = 'much': expected a number$"),
        ("tango", ["--retain-ratio", "10%"], "error: --retain-ratio = '10%': expected a number; 10 % is 0.1$"),
        ("tango", ["--retain-ratio", "2"], "'tango' --retain-ratio 2: Tango.retention_ratio = 2.0: expected"),
        ("tango", ["--retain-ratio", "0,1"], "error: --retain-ratio = '0,1': a value has no comma in it$"),
        ("tango", ["--segment-type", "pretrained="], "Tango.segmentation = 'pretrained=': expected one of"),
        ("tango", ["--pre-retain-ratio", "0.2"], "pre_retention_ratio = 0.2.*without pruned_layer"),
        ("vanilla", ["--retain-ratio", "0.1"], "no method is attached"),
    ],
)
def test_mistakes_are_told_before_vlmevalkit_starts(
    wrapper: str, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WRAPPER", wrapper)
    monkeypatch.setattr(command, "hand_over", lambda words: pytest.fail("started"))
    assert command.main([*words, "--data", "MotionQA"]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error, re.MULTILINE), error
    assert "TANGO_ARGS" not in error


def test_flags_and_variables_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WRAPPER", "tango")
    for args, told in (("context_ratio=7", "--retain-ratio 0.2 TANGO_ARGS='context_ratio=7': Tango.context_ratio = 7"),
                       ("context_ratio=x", "error: TANGO_ARGS: context_ratio = 'x': expected a number")):  # fmt: skip
        monkeypatch.setenv("TANGO_ARGS", args)
        assert command.main(["--retain-ratio", "0.2", "--data", "MotionQA"]) == 2
        assert told in capsys.readouterr().err
    monkeypatch.setenv("TANGO_CONFIG", "/runs/pretrained=a/TANGO_ARGS: b.yaml")  # a name, not a setting
    monkeypatch.setenv("TANGO_ARGS", "")
    assert command.main(["--retain-ratio", "0.2", "--data", "MotionQA"]) == 2
    assert "TANGO_CONFIG='/runs/pretrained=a/TANGO_ARGS: b.yaml': no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrapper", "model", "data", "told"),
    [
        ("tango", "./nowhere", "MotionQA_8frame", "error: --model './nowhere': no such folder"),
        ("tango", "checkpoints/tango-tny", "MotionQA", "error: --model 'checkpoints/tango-tny': no such folder in"),
        ("", "checkpoints/tango-tiny", "MotionQ_8frame", "error: --data 'MotionQ_8frame': there is no such data set; "
         "did you mean 'MotionQA_8frame'?"),
        ("tango", "llava_onevision_qwen2_7b_si", "MotionQA", "upstream's own model and would not be pruned"),
    ],
)  # fmt: skip
def test_names_that_are_not_known_are_mistakes_as_well(
    wrapper: str, model: str, data: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in lmms-eval, whose plugin ends with the same status."""
    monkeypatch.setenv("WRAPPER", wrapper)
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setattr(vlmeval.run, "main", lambda: pytest.fail("started"))
    assert command.main(["--data", data, "--model", model]) == 2
    assert told in capsys.readouterr().err


def test_the_share_before_the_language_model_given_directly() -> None:
    derived = Tango(retention_ratio=0.1, pruned_layer=18)
    assert derived.before_llm(28).retention_ratio == pytest.approx(0.1 * 28 / 23)
    given = Tango(retention_ratio=0.1, pruned_layer=18, pre_retention_ratio=0.2)
    assert given.before_llm(28).retention_ratio == 0.2
    assert given.in_llm(28) == derived.in_llm(28)
    assert Tango(pruned_layer=1, llm_retention=1, pre_retention_ratio=0.3).before_llm(2).retention_ratio == 0.3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "give one of them"),
        ({"nframe": 0}, "at least one frame"),
        ({"use_vllm": True}, "leave out --use-vllm"),
        ({"device_map": "cpu"}, "use auto"),
    ],
)
def test_arguments_that_cannot_be(checkpoint: Path, arguments: dict[str, Any], said: str) -> None:
    given = {"pretrained": str(checkpoint)} if arguments else {}
    with pytest.raises(ArgumentError, match=said):
        TangoLlavaOnevision(**given, **arguments)


def test_a_model_of_the_other_kind(checkpoint: Path) -> None:
    with pytest.raises(ArgumentError, match="LlavaOnevisionForConditionalGeneration, and TangoLlavaVideo is for"):
        TangoLlavaVideo(model_path=str(checkpoint))


def test_names_of_models(checkpoint: Path) -> None:
    from vlmeval.config import supported_VLM

    assert models.register([str(checkpoint), "llava_video_qwen2_7b"]) == {
        str(checkpoint): checkpoint.name,
        "llava_video_qwen2_7b": "llava_video_qwen2_7b",
    }
    assert supported_VLM[checkpoint.name].func is TangoLlavaOnevision
    assert supported_VLM["llava_video_qwen2_7b"].func is TangoLlavaVideo
    with pytest.raises(ValueError, match="no such folder"):
        models.register(["./nowhere"])


def test_a_method_is_not_lost_on_a_model_of_upstreams(monkeypatch: pytest.MonkeyPatch) -> None:
    upstreams = object()
    assert hooks._ours(upstreams, "theirs") is upstreams
    monkeypatch.setenv("WRAPPER", "topk")
    with pytest.raises(ValueError, match="'theirs' is upstream's own and would not be pruned"):
        hooks._ours(upstreams, "theirs")


# -- prompts


def test_messages_become_one_user_message() -> None:
    given = [
        {"type": "text", "value": "Watch.", "role": "system"},
        {"type": "video", "value": "a.mp4", "start": 1.0, "end": 2.0},
        {"type": "text", "value": ""},
        {"type": "text", "value": "What?"},
        {"type": "text", "value": "\nBe brief."},
    ]
    (message,) = conversation(given)
    assert message["content"] == [
        {"type": "video", "video": "a.mp4", "start": 1.0, "end": 2.0},
        {"type": "text", "text": "Watch.\nWhat?\nBe brief."},
    ]
    image = {"type": "image", "value": "a.png"}
    (message,) = conversation([TEXT, image, TEXT])
    assert [part["type"] for part in message["content"]] == ["text", "image", "text"]
    with pytest.raises(ValueError, match="'audio'"):
        conversation([{"type": "audio", "value": "a.wav"}])


def test_motionqa_asks_as_in_lmms_eval(benchmark: Path) -> None:
    dataset = MotionQA(root=str(benchmark))
    docs = json.loads((benchmark / "test.json").read_text())
    assert list(dataset.data["index"]) == [doc["id"] for doc in docs]
    for place, doc in enumerate(docs):
        video, text = dataset.build_prompt(place, video_llm=True)
        assert text["value"] == utils.doc_to_text(doc)
        assert Path(video["value"]) == (benchmark / doc["video"]).resolve() and Path(video["value"]).is_file()
    task = (Path(utils.__file__).parent / "motionqa.yaml").read_text()
    assert "max_new_tokens: 8" in task and 'until: ["\\n"]' in task
    assert MotionQA.GENERATION == {"max_new_tokens": 8, "do_sample": False, "until": ["\n"]}
    with pytest.raises(FileNotFoundError, match=r"test\.json"):
        MotionQA(root=str(benchmark / "none"))
    with pytest.raises(ValueError, match="only takes nframe"):
        MotionQA(fps=1.0)


def test_parts_of_videos_and_frames_of_mvbench(tmp_path: Path) -> None:
    dataset = MVBenchFiles.__new__(MVBenchFiles)
    dataset.data_root, dataset.frame_fps = str(tmp_path), 3
    folder = tmp_path / "tv" / "clip"
    folder.mkdir(parents=True)
    for number in range(7):
        Image.new("RGB", (33, 20), (30 * number, 0, 0)).save(folder / f"{number:05d}.jpg")
    line = {"prefix": "tv", "video": "clip", "question": "Who?", "candidates": "['he', 'she']", "answer": "she"}
    line |= {"data_type": "frame", "bound": True, "start": 0.5, "end": 1.4}
    _, video, question, _, prefix = dataset.build_prompt(line, video_llm=True)
    assert question["value"] == "Question: Who?\nOptions:\n(A) he\n(B) she" and prefix["role"] == "assistant"
    assert Path(video["value"]) == tmp_path / "tv" / "clip.mp4" and (video["start"], video["end"]) == (0.5, 1.4)
    whole = read_video(video["value"], 100)
    assert whole.frames.shape == (7, 20, 32, 3)
    assert whole.timestamps == pytest.approx([i / 3 for i in range(7)], abs=1e-3)
    assert read_video(video["value"], 100, 0.5, 1.4).total_frames == 3
    _, video, *_ = dataset.build_prompt(line | {"data_type": "video", "bound": False}, video_llm=True)
    assert video == {"type": "video", "value": str(tmp_path / "tv" / "clip")}
    with pytest.raises(FileNotFoundError, match=r"no \.jpg"):
        video_of_frames(tmp_path / "tv" / "none", 3)


def test_longvideobench_reads_no_frames(tmp_path: Path) -> None:
    dataset = LongVideoBenchFiles.__new__(LongVideoBenchFiles)
    dataset.data_root = str(tmp_path)
    line = pd.Series({"video_path": "./videos/a.mp4", "question": "Who?", "candidates": "['he', 'she']"})
    video, text = dataset.build_prompt(line, video_llm=True)
    assert video["value"] == f"{tmp_path}/./videos/a.mp4"
    assert text["value"].startswith("Who?\nA. he\nB. she\nAnswer with") and line["question"] == "Who?"


# -- scores


def test_both_frameworks_score_the_same_replies_alike(benchmark: Path, tmp_path: Path) -> None:
    doc = json.loads((benchmark / "test.json").read_text())[0]
    replies = [
        "A",
        "B.",
        "(C)",
        "red",
        "The answer is D",
        "no idea",
        "",
        "red or blue",
        "42",
        "Two dots",
        "A or B",
        "D",
    ]
    dataset = MotionQA(root=str(benchmark))
    data = pd.concat([dataset.data.iloc[[0]]] * len(replies)).assign(
        index=[f"q{i}" for i in range(len(replies))], prediction=replies
    )
    file = tmp_path / "m_MotionQA.xlsx"
    vlmeval.smp.dump(data, str(file))
    rating = MotionQA.evaluate(str(file), model="exact_matching")
    table = pd.read_excel(tmp_path / "m_MotionQA_score.xlsx", keep_default_na=False)
    theirs = [utils.process_results(doc, [reply]) for reply in replies]
    assert [choice or None for choice in table["choice"]] == [entry["accuracy"]["prediction"] for entry in theirs]
    assert list(table["score"]) == [entry["accuracy"]["score"] for entry in theirs]
    assert 0 < sum(table["score"]) < len(replies)
    assert rating["Overall"] == pytest.approx(100 * utils.accuracy([entry["accuracy"] for entry in theirs]))
    assert rating["unparsed"] == pytest.approx(100 * utils.unparsed([entry["unparsed"] for entry in theirs]))
    assert rating[doc["kind"]] == rating["Overall"]


# -- runs


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_benchmark(tmp_path / "data", videos=2, each=2)
    return tmp_path / "data"


def run(checkpoint: Path, data: Path, work: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """Exit status of a run of main() on the questions in `data`, and its summary."""
    model = {"class": "TangoLlavaOnevision", "pretrained": str(checkpoint), "device": "cpu"}
    dataset = {"class": "MotionQA", "dataset": "MotionQA", "root": str(data), "nframe": 6}
    config = data / "config.json"
    config.write_text(json.dumps({"model": {"tiny": model}, "data": {"Mine": dataset}}))
    status = command.main(["--config", str(config), "--work-dir", str(work), *words])
    return status, json.loads((work / "tiny" / "tiny_Mine_efficiency.json").read_text())


@pytest.fixture(autouse=True)
def nothing_left_over() -> Iterator[None]:
    yield
    hooks.RUN.limit = None
    hooks.RUN.problems.clear()


def test_runs_take_again_what_is_theirs_and_nothing_else(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "out"
    monkeypatch.setenv("WRAPPER", "tango")
    status, first = run(checkpoint, data, work, "--retain-ratio", "0.2")
    assert status == 0 and first["method"] == "tango" and first["settings"]["retention_ratio"] == 0.2
    assert first["sources"] == {"WRAPPER": "tango", "TANGO_ARGS": "retention_ratio=0.2"}
    assert first["versions"]["ms-vlmeval"] == "0.0.20" and first["n_samples"] == 4 and first["n_resumed"] == 0
    assert [entry["doc_id"] for entry in first["samples"]] == ["0-0", "0-1", "1-0", "1-1"]
    assert first["model"]["max_frames_num"] == 6 and first["tokens"]["video_tokens_before"] == 4 * 6 * 16
    said = {entry["doc_id"]: entry["response"] for entry in first["samples"]}
    table = pd.read_excel(work / "tiny" / "tiny_Mine.xlsx")
    assert list(table["index"]) == list(said) and "prediction" in table
    assert "Avg_Total_TTFT" in capsys.readouterr().out

    # The same folder, another method: upstream would hand out the first run's answers and scores again.
    monkeypatch.setenv("WRAPPER", "vanilla")
    monkeypatch.setenv("TANGO_ARGS", "")
    stale = work / "tiny" / "tiny_Mine_score.xlsx"
    stale.write_text("scores of other answers")
    status, second = run(checkpoint, data, work)
    assert status == 0 and second["method"] == "vanilla" and second["n_resumed"] == 0
    assert second["tokens"]["share_kept"] == 1.0
    assert len(pd.read_excel(stale)) == 4
    (kept,) = (work / "tiny" / "earlier").glob("*/tiny_Mine_efficiency.json")  # the first run's, with its scores
    assert json.loads(kept.read_text())["run"] == first["run"] == kept.parent.name
    assert (kept.parent / "tiny_Mine_score.xlsx").read_text() == "scores of other answers"

    monkeypatch.setenv("WRAPPER", "tango")
    status, third = run(checkpoint, data, work, "--retain-ratio", "0.2", "--limit", "3")
    assert status == 0 and third["n_resumed"] == third["n_samples"] == 3
    assert [entry["response"] for entry in third["samples"]] == list(said.values())[:3]

    cell = collect(work)
    assert [row["id"] for row in cell["samples"]] == ["0-0", "0-1", "1-0"]
    assert {row["kind"] for row in cell["samples"]} == {"colour", "count"}
    assert all(row["tokens_before"] == 96 > row["tokens_after"] > 0 for row in cell["samples"])
    assert cell["provenance"]["method"] == "tango" and cell["efficiency"]["samples_timed"] == 3
    stale.unlink()
    with pytest.raises(CellError, match="did not score"):
        collect(work)
    with pytest.raises(CellError, match=r"found 0"):
        collect(work / "nowhere")


def test_a_failed_sample_is_told_not_scored_and_tried_again(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = data / "videos" / "1.mp4"
    whole = video.read_bytes()
    video.write_bytes(whole[:300])
    status, summary = run(checkpoint, data, tmp_path / "out")
    assert status == 1 and summary["n_failed"] == 2
    assert [(entry["doc_id"], entry["tries"]) for entry in summary["failed"]] == [("1-0", 2), ("1-1", 2)]
    error = capsys.readouterr().err
    assert "tiny x Mine: 2 of 4 samples failed" in error and "1.mp4" in error
    scored = pd.read_excel(tmp_path / "out" / "tiny" / "tiny_Mine_score.xlsx")
    assert list(scored["index"]) == ["0-0", "0-1"]  # neither right nor wrong
    assert list(pd.read_excel(tmp_path / "out" / "tiny" / "tiny_Mine.xlsx")["index"]) == ["0-0", "0-1", "1-0", "1-1"]
    cell = collect(tmp_path / "out")
    assert [row["id"] for row in cell["samples"]] == ["0-0", "0-1"] and len(cell["provenance"]["failed"]) == 2
    again = ["--config", str(data / "config.json"), "--work-dir", str(tmp_path / "out")]
    assert command.main([*again, "--mode", "eval", "--keep-failed"]) == 0
    table = pd.read_excel(tmp_path / "out" / "tiny" / "tiny_Mine_score.xlsx")
    assert list(table["score"][2:]) == [0, 0] and table["choice"][2:].isna().all()
    write_video(video, seed=1)
    status, summary = run(checkpoint, data, tmp_path / "out")
    assert status == 0 and summary["n_failed"] == 0 and summary["n_resumed"] == 2


def test_all_samples_failed(checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for video in (data / "videos").glob("*.mp4"):
        video.unlink()
    status, _ = run(checkpoint, data, tmp_path / "out")
    assert status == 1 and "4 of 4 samples failed, so the data set was not scored" in capsys.readouterr().err
    with pytest.raises(CellError, match="all 4 samples failed, the first: "):
        collect(tmp_path / "out")


def test_data_sets_come_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLMEVALKIT_USE_MODELSCOPE", raising=False)
    assert command.main(["--data", "MotionQA", "--limit", "0"]) == 2
    assert os.environ["VLMEVALKIT_USE_MODELSCOPE"] == "0" and not modelscope_flag_set()
    monkeypatch.setenv("VLMEVALKIT_USE_MODELSCOPE", "1")
    command.main(["--data", "MotionQA", "--limit", "0"])
    assert modelscope_flag_set()
    hooks.install()
    monkeypatch.setenv("HF_HUB_CACHE", "/somewhere/cache")
    assert vlmeval_files.HFCacheRoot() == HF_HUB_CACHE


def test_mvbench_asks_about_missing_clips_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From archives as they are published; unpacked once, and the second archive beside the first."""
    (tmp_path / "clip.mp4").write_bytes(b"a clip")
    stand_ins.mvbench(tmp_path / "hub", b"a clip")
    monkeypatch.setenv("VLMEVALKIT_USE_MODELSCOPE", "0")
    monkeypatch.setattr(vlmeval.dataset.mvbench, "get_cache_path", lambda *_, **__: str(tmp_path / "hub"))
    for _ in range(2):
        found = MVBenchFiles(nframe=8)
        assert len(found.data) == 20 and found.data["index"].tolist() == list(range(20))
    paths = [Path(found.data_root, row["prefix"], row["video"]) for _, row in found.data.iterrows()]
    assert [path.name for path in paths if not path.exists()] == ["fine_grained_pose.avi"]
    assert (tmp_path / "hub/video/perception/videos/state_change.mp4").read_bytes() == b"a clip"
    assert not (tmp_path / "hub/video/data0613").exists()
    one = found.data.iloc[1]
    assert one["start"] == 0.5 and one["end"] == 2.0 and one["task_type"] == "Action Prediction"
    hostile = tmp_path / "x.zip"
    with zipfile.ZipFile(hostile, "w") as archive:
        archive.writestr("../outside.mp4", b"x")
    unpack(hostile, tmp_path / "hub")
    assert not (tmp_path / "outside.mp4").exists()


def test_what_upstream_only_logs_is_an_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMUData", str(tmp_path))
    (tmp_path / "Mine.tsv").write_text("index\n1\n")  # a table of one's own, without questions
    words = ["--data", "Mine", "--model", "llava_video_qwen2_7b", "--work-dir", str(tmp_path)]
    assert command.main(words) == 1
    assert "llava_video_qwen2_7b x Mine: invalid_dataset" in capsys.readouterr().err
    assert command.main(["--data", "MotionQA", "--limit", "0"]) == 2
    assert "ask at least one question" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_a_mistake_as_in_lmms_eval(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(checkpoint, tmp_path / "torn")
    (tmp_path / "torn/model.safetensors").write_bytes(b"\xff" * 100)
    words = ["--model", str(tmp_path / "torn"), "--data", "MotionQA_8frame", "--limit", "1"]
    assert command.main([*words, "--work-dir", str(tmp_path / "out")]) == 2
    assert "its weights: Error while deserializing header" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        LlavaOnevision.create_from_arg_string(f"pretrained={tmp_path / 'torn'}", {"device": "cpu"})
    assert ended.value.code == 2


def test_a_model_can_be_asked_alone(checkpoint: Path, data: Path) -> None:
    model = TangoLlavaOnevision(pretrained=str(checkpoint), device="cpu", max_new_tokens=3)
    reply = model.generate([{"type": "video", "value": str(data / "videos" / "0.mp4")}, TEXT])
    assert reply == model.generate([{"type": "video", "value": str(data / "videos" / "0.mp4")}, TEXT])
    with pytest.raises(FileNotFoundError, match=r"none\.mp4"):
        model.generate([{"type": "video", "value": str(data / "none.mp4")}, TEXT])
    with pytest.raises(RuntimeError, match="within evaluating"):
        model.generate(Prompt("0", list))


@pytest.mark.parametrize("wrapper", ["vanilla", "tango"])
def test_qwen(wrapper: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen2.5-VL pairs frames and is told the seconds between the pairs."""
    monkeypatch.setenv("WRAPPER", wrapper)
    save_qwen(tmp_path / "qwen")
    with pytest.raises(ArgumentError, match="min_pixels=9 is above max_pixels=1"):
        TangoQwenVL(pretrained=str(tmp_path / "qwen"), min_pixels=9, max_pixels=1)
    model = TangoQwenVL(pretrained=str(tmp_path / "qwen"), device="cpu", min_pixels=24 * 24, max_pixels=24 * 24)
    assert model.frames == 64
    seen: dict[str, Any] = {}
    generate = model.chat.checkpoint.model.generate
    monkeypatch.setattr(
        model.chat.checkpoint.model, "generate", lambda **given: seen.update(given) or generate(**given)
    )
    prompt = MotionQA(root=str(data)).build_prompt(0, video_llm=True)
    with model.evaluating("MotionQA", 6, MotionQA.GENERATION, tmp_path / "journal") as run:
        model.generate(Prompt("0-0", lambda: prompt))
    assert run.described["max_pixels"] == 24 * 24 and run.described["max_frames_num"] == 6
    (record,) = run.runner.records
    assert record.failure is None and record.tokens["video_tokens_before"] == 3 * 9
    assert record.tokens["video_tokens_after"] == (3 * 9 if wrapper == "vanilla" else record.videos[0]["tokens_after"])
    assert record.tokens["video_tokens_after"] < 3 * 9 or wrapper == "vanilla"
    if wrapper == "vanilla":  # 12 frames in 3 s: six of them, two by two
        assert seen["second_per_grid_ts"].tolist() == pytest.approx([1.0])


def test_names_of_data_sets() -> None:
    from vlmeval.dataset.video_dataset_config import supported_video_datasets

    datasets.register()
    for name in (
        "MotionQA_8frame",
        "Video-MME_32frame",
        "MVBench_64frame",
        "LongVideoBench_32frame",
        "MLVU_MCQ_64frame",
    ):
        assert supported_video_datasets[name].keywords["nframe"] == int(name.rsplit("_", 1)[1].removesuffix("frame"))
    assert supported_video_datasets["MVBench_64frame"].func is MVBenchFiles
    assert len(hooks._build_dataset(None, "MotionQA")) == 720


def test_cells(checkpoint: Path, tmp_path: Path) -> None:
    common = {"pretrained": str(checkpoint), "samples": 9}
    alone = vlmeval_cell(tmp_path, Evaluation(**common), dataset="MotionQA_8frame")
    assert alone.environment["WRAPPER"] == "vanilla" and alone.samples == 9
    pruned = Evaluation(method="tango", ratio=0.1, limit=4, processes=2, **common)
    several = vlmeval_cell(tmp_path, pruned, dataset="MotionQA_8frame")
    assert several.name == "vlmeval-MotionQA_8frame-tango-0.1" and several.samples == 4
    assert several.environment["TANGO_ARGS"] == "retention_ratio=0.1"
    assert "--nproc-per-node=2" in several.command and several.identity != alone.identity
    with pytest.raises(ValueError, match="needs a retention ratio"):
        Evaluation(method="tango", **common)
