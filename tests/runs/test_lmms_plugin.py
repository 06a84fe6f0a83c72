"""The lmms-eval plugin in this process: whose models win, what arguments mean, prompts, failures, and the task."""

import inspect
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import tango_lmms_eval
import yaml
from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager
from original_layout import small_model, write_original
from PIL import Image
from tango_lmms_eval import hooks
from tango_lmms_eval.conversations import chat_messages, simple_messages, visual_part
from tango_lmms_eval.models import FAILED, LlavaOnevision, LlavaOnevisionChat, LlavaVid
from tango_lmms_eval.tasks.motionqa import utils

from tango.models.llava_video import LlavaVideoForConditionalGeneration
from tango.motionqa.questions import Question
from tango.pruners import REGISTRY
from tango.runs.run import ArgumentError, identity
from tango.runs.settings import SettingsError
from tango.runs.summary import report
from tango.sweeps import expand
from tango.sweeps.cells import Evaluation
from tango.sweeps.lmms_cells import lmms_cell

TEXT = {"type": "text", "text": "What?"}


pytestmark = pytest.mark.usefixtures("nothing_left_over")


@pytest.mark.parametrize("force_simple", [False, True])
def test_our_models_win_over_upstreams(force_simple: bool) -> None:
    assert get_model("llava_onevision", force_simple) is LlavaOnevision
    assert get_model("llava_vid", force_simple) is LlavaVid
    assert get_model("llava_hf", force_simple) is (LlavaOnevision if force_simple else LlavaOnevisionChat)


@pytest.mark.parametrize("name", sorted({*expand.LMMS_MODELS.values(), *expand.PUBLISHED.values()}))
def test_a_cell_of_a_sweep_names_the_frames_as_the_model_does(name: str, tmp_path: Path, checkpoint: Path) -> None:
    """A name that the model's class does not take is swallowed by its **others, or given to PrunedModel twice."""
    cell = lmms_cell(tmp_path, Evaluation(str(checkpoint), data=[], samples=1), task="t", max_frames=17, model=name)
    arguments = dict(one.split("=", 1) for one in cell.command[cell.command.index("--model_args") + 1].split(","))
    (frames,) = (argument for argument, value in arguments.items() if value == "17")
    assert frames in inspect.signature(get_model(name, False).__init__).parameters


def test_a_plugin_that_does_not_fit_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ImportError("no TaskManager")

    monkeypatch.setattr(hooks, "install", broken)
    with pytest.raises(SystemExit, match=r"no TaskManager.*pip install -e \./lmms-eval"):
        tango_lmms_eval.manifests()


def test_the_task_is_known_and_reads_the_shipped_data() -> None:
    manager = TaskManager("ERROR", include_defaults=False)
    assert "motionqa" in manager.all_tasks
    config = manager._get_config("motionqa")
    data = Path(__file__).parents[2] / "data" / "motionqa"
    assert Path(config["dataset_kwargs"]["data_files"]["test"]).resolve() == data / "test.json"
    (video,) = utils.doc_to_visual({"video": "videos/0.mp4"}, config["lmms_eval_specific_kwargs"]["default"])
    assert Path(video) == data / "videos" / "0.mp4"


def test_the_task_asks_as_the_model_was_trained() -> None:
    question = Question("colour", "Which?", ("red", "blue", "green", "pink"), 2)
    doc = {"question": question.text, "options": list(question.options)}
    assert utils.doc_to_text(doc, {"video_root": "."}) == question.prompt()


def test_the_task_scores_by_rule_and_by_whatever_kinds_there_are() -> None:
    docs = [
        {"id": str(i), "video": "v", "kind": kind, "answer": "B", "options": ["red", "blue", "green", "pink"]}
        for i, kind in enumerate(["colour", "colour", "smell"])
    ]
    results = [utils.process_results(doc, [reply]) for doc, reply in zip(docs, ["B", "A", "what?"], strict=True)]
    assert utils.accuracy([r["accuracy"] for r in results]) == pytest.approx(1 / 3)
    assert utils.accuracy_by_kind([r["accuracy_by_kind"] for r in results]) == {"colour": 0.5, "smell": 0.0}
    assert utils.unparsed([r["unparsed"] for r in results]) == pytest.approx(1 / 3)
    task = yaml.load((Path(utils.__file__).parent / "motionqa.yaml").read_text().replace("!function ", ""), yaml.Loader)
    assert {metric["metric"] for metric in task["metric_list"]} == set(results[0])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"frames": 8}, "unknown model arguments frames; known are .*max_frames_num"),
        ({"mm_spatial_pool_mode": "max"}, "mm_spatial_pool_mode='max': .* use bilinear"),
        ({"conv_template": "vicuna_v1"}, "chat template.* use qwen_1_5 or qwen_2"),
        ({"batch_size": "many"}, "batch_size='many': give a number of at least 1, or auto"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"customized_config": "x.json"}, "use nothing or leave it out"),
        ({"max_frames_num": 0}, "at least one frame"),
        ({"dtype": "float32", "torch_dtype": "bfloat16"}, "pass one of them"),
    ],
)
def test_arguments_that_cannot_be(checkpoint: Path, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        LlavaOnevision(pretrained=str(checkpoint), **arguments)


def test_mistakes_end_the_process_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WRAPPER", "tengo")
    with pytest.raises(SettingsError, match="'tengo'"):
        LlavaOnevision(pretrained="./nowhere")
    with pytest.raises(SystemExit) as ended:
        LlavaOnevision.create_from_arg_string("pretrained=./nowhere", {"batch_size": 1})
    assert ended.value.code == 2  # as in VLMEvalKit and of `tango`
    said = capsys.readouterr().err
    assert "error: WRAPPER='tengo'" in said and "vanilla, " + ", ".join(sorted(REGISTRY)) in said
    assert not hooks.RUN.active


def test_a_task_that_is_not_there_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """lmms-eval itself would log it and exit with 0."""
    hooks.install()
    manager = TaskManager("ERROR", include_defaults=False)
    (tmp_path / "mine.yaml").touch()
    assert manager.match_tasks(["motionqa", "motion*", str(tmp_path / "mine.yaml")]) == ["motionqa"]
    for name, hint in (
        ("motionq", "did you mean 'motionqa'?"),
        ("x", "`lmms-eval tasks` and `lmms-eval models` name them all"),
        ("nothing*", "`lmms-eval tasks` and `lmms-eval models` name them all"),  # else the others ran without a word
        ("motionq?", "did you mean 'motionqa'?"),
    ):
        with pytest.raises(SystemExit) as ended:
            manager.match_tasks(["motionqa", name])
        assert ended.value.code == 2
        assert capsys.readouterr().err == f"error: --tasks '{name}': there is no such task; {hint}\n"


def test_a_model_that_is_not_there_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="not found in available models"):  # as ever, without the command line
        get_model("llava_onevison")
    monkeypatch.setitem(sys.modules, "lmms_eval.__main__", sys)
    with pytest.raises(SystemExit) as ended:
        get_model("llava_onevison")
    assert ended.value.code == 2 and "did you mean 'llava_onevision'?" in capsys.readouterr().err


def test_the_published_commands_arguments_are_taken(checkpoint: Path) -> None:
    model = LlavaOnevision.create_from_arg_string(
        f"pretrained={checkpoint},conv_template=qwen_1_5,model_name=llava_qwen,attn_implementation=flash_attention_2",
        {"batch_size": "4", "max_batch_size": 8, "device": "cpu"},
    )
    assert model.device.type == "cpu" and model.run.described["attn_implementation"] == "sdpa"


def test_llava_video(tmp_path: Path, benchmark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published command's arguments, on a checkpoint in the published format."""
    source = small_model(LlavaVideoForConditionalGeneration)
    write_original(tmp_path / "it", source)
    model = LlavaVid.create_from_arg_string(
        f"pretrained={tmp_path / 'it'},conv_template=qwen_1_5,max_frames_num=4,mm_spatial_pool_mode=average,"
        "mm_newline_position=grid,mm_resampler_location=after,force_sample=True,add_time_instruction=True,"
        "video_decode_backend=decord,overwrite=True,attn_implementation=flash_attention_2",
        {"batch_size": "4", "max_batch_size": 8, "device": "cpu"},
    )
    assert model.run is not None and model.run.chat.time_instruction and model.run.described["time_instruction"]
    (reply,) = model.generate_until(requests(model, [str(benchmark / "videos" / "0.mp4")]))
    assert reply.text != FAILED
    assert reply.token_counts.to_dict()["video_tokens_before"] == 4 * 4

    other = LlavaVid(pretrained=str(tmp_path / "it"), add_time_instruction=False, device="cpu")
    assert other.run is not None and other.run.chat.max_frames == 64 and not other.run.chat.time_instruction
    assert other.run.digest != LlavaVid(pretrained=str(tmp_path / "it"), device="cpu").run.digest
    with pytest.raises(ArgumentError, match=r"add_time_instruction='x': use True or False"):
        LlavaVid(pretrained=str(tmp_path / "it"), add_time_instruction="x")
    with pytest.raises(ArgumentError, match=r"pools by averages; use average"):
        LlavaVid(pretrained=str(tmp_path / "it"), mm_spatial_pool_mode="bilinear")


def test_a_model_of_the_other_kind(tmp_path: Path, checkpoint: Path) -> None:
    write_original(tmp_path / "it", small_model(LlavaVideoForConditionalGeneration))
    for model, pretrained in ((LlavaOnevision, tmp_path / "it"), (LlavaVid, checkpoint)):
        with pytest.raises(ArgumentError, match="llava_vid for LLaVA-Video"):
            model(pretrained=str(pretrained))
    with pytest.raises(ArgumentError, match="was not trained with it; use False"):
        LlavaOnevision(pretrained=str(checkpoint), add_time_instruction=True)


def test_prompts_of_simple_tasks() -> None:
    image = Image.new("RGB", (2, 2))
    shown = {"type": "image", "image": image}
    video = {"type": "video", "video": "a.mp4", "start": None, "end": None}
    assert simple_messages("What?", []) == [{"role": "user", "content": [TEXT]}]
    assert simple_messages("What?", ["a.mp4", image])[0]["content"] == [video, shown, TEXT]
    between = simple_messages("<image>\nWhat?<image>", [image, "b.png"])[0]["content"]
    assert between == [shown, TEXT, {"type": "image", "image": "b.png"}]
    with pytest.raises(ValueError, match="1 <image> marks for 2"):
        simple_messages("<image> What?", [image, image])


def test_prompts_of_chat_tasks() -> None:
    given = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "video", "url": {"url": "a.mp4", "video_start": 1.0}}, TEXT]},
    ]
    system, user = chat_messages(given)
    assert system["content"] == [{"type": "text", "text": "Be brief."}]
    assert user["content"] == [{"type": "video", "video": "a.mp4", "start": 1.0, "end": None}, TEXT]
    with pytest.raises(ValueError, match="audio"):
        visual_part("a.wav", {"type": "audio"})
    with pytest.raises(ValueError, match="keys \\['frames'\\]"):
        visual_part({"frames": 3})


def test_a_prompt_is_known_by_its_contents(tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    video.write_bytes(b"one")
    before = identity(simple_messages("What?", [str(video), Image.new("RGB", (2, 2), "red")]))
    assert json.dumps(before) == json.dumps(
        identity(simple_messages("What?", [str(video), Image.new("RGB", (2, 2), "red")]))
    )
    assert before != identity(simple_messages("What?", [str(video), Image.new("RGB", (2, 2), "blue")]))
    assert before != identity(simple_messages("Why?", [str(video), Image.new("RGB", (2, 2), "red")]))
    (tmp_path / "moved").mkdir()
    elsewhere = shutil.move(video, tmp_path / "moved")
    assert before == identity(simple_messages("What?", [str(elsewhere), Image.new("RGB", (2, 2), "red")]))
    video.write_bytes(b"another")
    assert before != identity(simple_messages("What?", [str(video), Image.new("RGB", (2, 2), "red")]))


def test_data_that_are_public_need_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(self: Any, kwargs: Any) -> None:
        asked.append(kwargs["token"])

    for found in (None, "hf_something"):
        monkeypatch.setattr(hooks, "get_token", lambda found=found: found)
        hooks._download(download, None, {"token": True})
    assert asked == [None, True]


def test_a_task_that_ends_the_process_fails_its_sample_alone(model: LlavaOnevision, benchmark: Path) -> None:
    """Video-MME's and MLVU's tasks do, over a video that is missing."""
    there = str(benchmark / "videos/0.mp4")
    asked = requests(model, [there, "gone.mp4", there])
    visuals = asked[1].arguments[2]

    def gone(doc: Any) -> Any:
        sys.exit(f"video path:{visuals(doc)[0]} does not exist, please check")

    asked[1].arguments = (*asked[1].arguments[:2], gone, *asked[1].arguments[3:])
    texts = model.generate_until(asked)
    assert [text.text == FAILED for text in texts] == [False, True, False]
    (failed,) = [record for record in model.run.runner.records if record.failure]
    assert "FileNotFoundError: the task gave up: video path:gone.mp4 does not exist" in failed.failure


def requests(model: LlavaOnevision, videos: list[str], **generation: Any) -> list[Instance]:
    """One request for each video, as lmms-eval makes them for a simple task."""
    model.task_dict["t"] = {"test": [{"video": video} for video in videos]}
    made = []
    for i in range(len(videos)):
        arguments = ("What?", {"max_new_tokens": 3, **generation}, lambda doc: [doc["video"]], i, "t", "test")
        metadata = {"task": "t", "doc_id": i, "repeats": 1}
        made.append(Instance("generate_until", arguments, 0, metadata))
    return made


@pytest.fixture
def model(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> LlavaOnevision:
    monkeypatch.setenv("WRAPPER", "topk")
    return LlavaOnevision(pretrained=str(checkpoint), max_frames_num=4, device="cpu")


def test_failed_samples_belong_to_no_document(
    model: LlavaOnevision, benchmark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = str(benchmark / "videos" / "0.mp4")
    asked = requests(model, [good, str(benchmark / "none.mp4"), good])
    padding = Instance("generate_until", asked[2].arguments, 0, {**asked[2].metadata, "__padding_only__": True})
    replies = model.generate_until([*asked, padding])
    assert replies[1].text == FAILED and replies[0].text == replies[2].text != FAILED
    assert [request.doc_id for request in asked] == [0, "failed: 1", 2]
    counts = replies[0].token_counts.to_dict()
    assert counts["video_tokens_before"] == 64 and counts["video_tokens_after"] < 64
    assert len(model.run.runner.records) == 3  # padding is not computed

    model.clean()
    summary = hooks.RUN.summary
    assert summary is not None
    assert (summary["n_samples"], summary["n_failed"]) == (3, 1)
    assert summary["failed"][0]["doc_id"] == 1 and summary["failed"][0]["tries"] == 2
    assert "FileNotFoundError" in summary["failed"][0]["reason"] and "none.mp4" in summary["failed"][0]["reason"]
    assert summary["method"] == "topk" and summary["settings"]["retention_ratio"] == 0.1
    assert {"torch", "transformers", "lmms-eval", "python", "tango"} <= set(summary["versions"])
    assert {"commit", "device", "seed", "command", "time", "code"} <= set(summary)
    assert summary["efficiency"]["samples_timed"] == 2
    json.dumps(summary)
    report(summary)
    said = capsys.readouterr().out
    assert "1 of 3 samples failed" in said and "Avg_Total_TTFT" in said


def test_unknown_generation_settings_are_an_error_of_the_run(model: LlavaOnevision, benchmark: Path) -> None:
    with pytest.raises(ValueError, match="unknown generation settings beams"):
        model.generate_until(requests(model, [str(benchmark / "videos" / "0.mp4")], beams=2))


def test_likelihoods(model: LlavaOnevision, benchmark: Path) -> None:
    video = str(benchmark / "videos" / "0.mp4")
    model.task_dict["t"] = {"test": [{"video": video, "answer": "B"}]}
    common = (lambda doc: [doc["video"]], 0, "t", "test")
    metadata = {"task": "t", "doc_id": 0, "repeats": 1}
    made = [
        Instance("loglikelihood", ("What?", target, *common), i, metadata)
        for i, target in enumerate(["A", "B", lambda doc: doc["answer"]])
    ]
    (a, _), (b, _), (told, _) = model.loglikelihood(made)
    assert a < 0 and b < 0 and a != b and told == b


def test_what_is_not_supported_says_so(model: LlavaOnevision) -> None:
    with pytest.raises(ArgumentError, match="several rounds"):
        model.generate_until_multi_round([])
    with pytest.raises(ArgumentError, match="--apply_chat_template"):
        _ = model.chat_template
    hooks.RUN.active = True
    with pytest.raises(SystemExit, match="2"):
        hooks._refuse_cache(lambda: None)


def test_batches(checkpoint: Path, benchmark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with batch size 1, but for times; a missing video costs its own sample."""
    monkeypatch.setenv("WRAPPER", "topk")
    videos = [str(benchmark / f"videos/{name}.mp4") for name in (0, 1, 0, "none", 1)]
    alone, together = (
        LlavaOnevision(pretrained=str(checkpoint), max_frames_num=4, device="cpu", batch_size=size) for size in (1, 3)
    )
    calls: list[int] = []
    generate = together.run.chat.generate_batch
    monkeypatch.setattr(
        together.run.chat, "generate_batch", lambda asked, *rest: calls.append(len(asked)) or generate(asked, *rest)
    )
    replies = [[one.text for one in model.generate_until(requests(model, videos))] for model in (alone, together)]
    assert replies[0] == replies[1] and [text == FAILED for text in replies[0]] == [False, False, False, True, False]
    assert calls == [3, 2]
    records = together.run.runner.records
    assert [one.videos for one in records] == [one.videos for one in alone.run.runner.records]
    assert [one.tokens for one in records] == [one.tokens for one in alone.run.runner.records]
    assert all(one.timing is None for one in records) and all(one.timing for one in alone.run.runner.records[:3])
    assert together.run.described["batch_size"] == 3 and alone.run.digest != together.run.digest
    together.clean()
    assert hooks.RUN.summary["efficiency"]["samples_timed"] == 0
