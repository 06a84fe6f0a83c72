"""Qwen2.5-VL and Qwen3-VL in lmms-eval: upstream's arguments, its frames and sizes, and its command line once."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model
from PIL import Image
from qwen_vl_utils import vision_process
from tango_lmms_eval.models import FAILED, LlavaOnevision
from tango_lmms_eval.qwen import Qwen3VL, Qwen3VLChat, Qwen25VL, Qwen25VLChat, frame_indices
from tiny import REPOSITORY, save_qwen, write_video

from tango.inference.chat import PixelLimits
from tango.inference.video import read_video
from tango.runs.run import ArgumentError

SIZE = {"min_pixels": 24 * 24, "max_pixels": 24 * 24}  # of the tiny checkpoints: 3 x 3 tokens


pytestmark = pytest.mark.usefixtures("nothing_left_over")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen") / "random-qwen"
    save_qwen(folder)
    return folder


def test_our_models_win_over_upstreams() -> None:
    assert (get_model("qwen2_5_vl"), get_model("qwen2_5_vl", True)) == (Qwen25VLChat, Qwen25VL)
    assert (get_model("qwen3_vl"), get_model("qwen3_vl", True)) == (Qwen3VLChat, Qwen3VL)


@pytest.mark.parametrize("total", [2, 3, 5, 31, 32, 33, 250, 2000])
@pytest.mark.parametrize(
    "asked", [{"nframes": 32}, {"nframes": 6}, {"fps": 1.0}, {"fps": 3.5}, {"fps": 8.0, "max_frames": 32}]
)
def test_frames_are_those_of_qwen_vl_utils(total: int, asked: dict[str, Any]) -> None:
    """Upstream hands these settings to qwen-vl-utils, after capping nframes at what the video has."""
    rate = 29.97
    capped = {"nframes": min(asked["nframes"], total) // 2 * 2} if "nframes" in asked else asked
    count = vision_process.smart_nframes(capped, total_frames=total, video_fps=rate)
    expected = torch.linspace(0, total - 1, count).round().long().tolist()
    most = asked.get("max_frames", 768)
    ours = frame_indices(total, total / rate, count=asked.get("nframes", 32), rate=asked.get("fps"), most=most)
    assert ours == expected


def test_a_video_of_one_frame_is_shown() -> None:
    assert frame_indices(1, 0.0, count=32, rate=None, most=768) == [0]
    assert frame_indices(1, 0.0, count=32, rate=2.0, most=768) == [0]


@pytest.mark.parametrize(
    "limits",
    [
        {"min_pixels": 256 * 28 * 28, "max_pixels": 1605632},
        {"min_pixels": 3136, "max_pixels": 50000},
        {"min_pixels": 1280 * 28 * 28, "max_pixels": 16384 * 28 * 28},
        {"min_pixels": 128 * 28 * 28, "total_pixels": 1000 * 28 * 28},
    ],
)
@pytest.mark.parametrize(("patch", "shape"), [(14, (720, 1280)), (16, (1280, 720)), (14, (36, 90)), (14, (100, 6000))])
def test_sizes_are_those_of_qwen_vl_utils(
    limits: dict[str, int], patch: int, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it makes of a video, read by a reader that gives empty frames."""
    monkeypatch.setattr(vision_process, "get_video_reader_backend", lambda: "empty")
    frames = torch.zeros(1, 1, *shape, dtype=torch.uint8).expand(6, 3, -1, -1)
    monkeypatch.setitem(vision_process.VIDEO_READER_BACKENDS, "empty", lambda ele: (frames, {}, 1.0))
    resized = []
    monkeypatch.setattr(
        vision_process.transforms.functional, "resize", lambda video, size, **_: resized.append(size) or video
    )
    vision_process.fetch_video({"video": "v.mp4", **limits}, image_patch_size=patch)
    assert [list(PixelLimits(**limits).frame_size(6, *shape, 2 * patch))] == resized


def test_pixels_are_those_of_qwen_vl_utils(qwen: Path, tmp_path: Path) -> None:
    """A real video through both: the same frames at the same size, to the decoders' rounding of colours."""
    write_video(tmp_path / "v.mp4")
    given = {"min_pixels": 8 * 28 * 28, "max_pixels": 20 * 28 * 28}
    theirs = vision_process.fetch_video({"video": str(tmp_path / "v.mp4"), "nframes": 6, **given})
    model = Qwen25VL(pretrained=str(qwen), max_num_frames=6, device="cpu", **given)
    assert model.run is not None and model.sampling is not None
    video_processor = model.run.chat.checkpoint.processor.video_processor
    video_processor.patch_size = 14
    clip = read_video(tmp_path / "v.mp4", model.sampling, resize=model.run.chat._resized)
    ours = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)
    difference = (ours.float() - theirs).abs()  # another frame, or a shift by a pixel, differs by 10 and more
    assert ours.shape == theirs.shape and difference.mean() < 1 and difference.max() < 16


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"max_frames_num": 8}, "unknown model arguments max_frames_num; known are .*max_num_frames"),
        ({"max_num_frames": 1}, "max_num_frames=1: frames are seen in pairs"),
        ({"fps": 0}, "fps=0: give frames a second above 0"),
        ({"min_pixels": 0}, "min_pixels=0: give a whole number of pixels"),
        ({"min_pixels": 10**7}, "min_pixels=10000000 is above max_pixels=1605632"),
        ({"interleave_visuals": True}, "interleave_visuals=True: images and videos come before the text.* use False"),
        ({"use_custom_video_loader": True}, "use_custom_video_loader=True: .*use False"),
        ({"enable_thinking": True}, "enable_thinking=True: replies are scored whole"),
        ({"batch_size": 0}, "batch_size=0: give a number of at least 1"),
    ],
)
def test_arguments_that_cannot_be(qwen: Path, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        Qwen25VL(pretrained=str(qwen), **arguments)


def test_a_model_of_the_other_kind_names_them_all(qwen: Path) -> None:
    for model in (LlavaOnevision, Qwen3VL):
        with pytest.raises(ArgumentError, match=r"Qwen2_5_VLFor.*llava_vid .*qwen2_5_vl for Qwen2\.5-VL and qwen3_vl"):
            model(pretrained=str(qwen))


def test_limits_by_rate_and_by_the_whole_video(qwen: Path, tmp_path: Path) -> None:
    save_qwen(tmp_path / "new", new=True)
    given = {"max_num_frames": 8, "device": "cpu"}
    assert len(Qwen25VL(str(qwen), fps=2.0, **given).sampling(600, 20.0)) == 40  # as upstream: up to 768
    assert len(Qwen25VL(str(qwen), total_pixels=10**6, **given).sampling(600, 20.0)) == 8
    new = Qwen3VLChat(str(tmp_path / "new"), total_pixels=10**6, **given)
    assert len(new.sampling(600, 1.0)) == 4 and len(new.sampling(600, 20.0)) == 8
    # Answers of one are not taken for the other's.
    assert new.run.digest != Qwen3VLChat(str(tmp_path / "new"), **given).run.digest


def ask(model: Any, video: str, text: str, messages: list[dict[str, Any]] | None = None) -> Instance:
    """A request as lmms-eval makes it for the interface that the model is of."""
    model.task_dict["t"] = {"test": [{"video": video}]}
    generation = {"max_new_tokens": 3, "until": ["\n\n", "<stop>"]}
    arguments: tuple[Any, ...] = (text, generation, lambda doc: [doc["video"]], 0, "t", "test")
    if not model.is_simple:
        arguments = (text, lambda doc: messages, generation, 0, "t", "test")
    return Instance("generate_until", arguments, 0, {"task": "t", "doc_id": 0, "repeats": 1})


def test_prompts(qwen: Path) -> None:
    model = Qwen25VL(str(qwen), device="cpu", reasoning_prompt="\\nThink.", system_prompt="Be brief.", **SIZE)
    request = ask(model, "v.mp4", "<image> What? ")
    system, user = model._messages(request)
    assert system == {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert [part["type"] for part in user["content"]] == ["video", "text"]
    assert user["content"][1]["text"] == "What?\nThink."
    assert model._generation(request)["until"] == ["<stop>"]
    plain = Qwen25VL(str(qwen), device="cpu", system_prompt="none", **SIZE)
    assert [message["role"] for message in plain._messages(ask(plain, "v.mp4", "What?"))] == ["user"]
    chat = Qwen25VLChat(str(qwen), device="cpu", **SIZE)
    own = [{"role": "system", "content": [{"type": "text", "text": "The task's."}]}]
    own += [{"role": "user", "content": [{"type": "text", "text": "What?"}]}]
    assert chat._messages(ask(chat, "v.mp4", "What?", own))[0]["content"][0]["text"] == "The task's."
    assert chat._messages(ask(chat, "v.mp4", "What?", own[1:]))[0]["content"][0]["text"].startswith("You are a helpful")


@pytest.mark.parametrize("new", [False, True])
def test_answers_failures_and_images(new: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRAPPER", "tango")
    monkeypatch.setenv("TANGO_ARGS", "retention_ratio=0.3")
    save_qwen(tmp_path / "it", new)
    write_video(tmp_path / "v.mp4")
    model = (Qwen3VL if new else Qwen25VL)(str(tmp_path / "it"), max_num_frames=7, device="cpu", **SIZE)
    (reply,) = model.generate_until([ask(model, str(tmp_path / "v.mp4"), "What?")])
    counts = reply.token_counts.to_dict()
    assert counts["video_tokens_before"] == 3 * 9 > counts["video_tokens_after"] > 0  # six frames in pairs
    (lost,) = model.generate_until([ask(model, str(tmp_path / "none.mp4"), "What?")])
    assert lost.text == FAILED and "none.mp4" in str(model.run.runner.records[-1].failure)
    Image.new("RGB", (90, 90)).save(tmp_path / "i.png")
    (told,) = model.generate_until([ask(model, str(tmp_path / "i.png"), "What?")])
    assert told.text != FAILED
    (words,) = model.generate_until([ask(model, str(tmp_path / "v.mp4"), "What?")])
    assert words.text == reply.text


def test_the_command_line(qwen: Path, benchmark: Path, environment: dict[str, str], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "lmms_eval", "--model", "qwen2_5_vl", "--tasks", "motionqa_tiny"]
    words += [
        "--model_args",
        f"pretrained={qwen},max_num_frames=6,min_pixels=576,max_pixels=576,interleave_visuals=False",
    ]
    words += ["--include_path", str(benchmark / "tasks"), "--batch_size", "1", "--device", "cpu", "--limit", "2"]
    words += ["--log_samples", "--output_path", str(tmp_path)]
    tango = environment | {"WRAPPER": "tango", "TANGO_ARGS": "retention_ratio=0.3"}
    run = subprocess.run(words, env=tango, cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    (results,) = tmp_path.glob("*/*_results.json")
    origin = json.loads(results.read_text())["tango"]
    assert origin["method"] == "tango" and origin["n_samples"] == 2 and origin["n_failed"] == 0
    assert origin["model"]["class"] == "Qwen2_5_VLForConditionalGeneration" and origin["model"]["max_pixels"] == 576
    assert origin["tokens"]["video_tokens_before"] == 2 * 3 * 9
    assert 0.2 < origin["tokens"]["share_kept"] < 0.5
    (journal,) = tmp_path.glob("journal/*.jsonl")
    assert len(journal.read_text().splitlines()) == 2


def test_times_of_the_published_run(qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interval of 1 s and times spread evenly; by default the processor's, which are the video's own."""
    monkeypatch.setenv("WRAPPER", "tango")
    write_video(tmp_path / "v.mp4")
    prepared, digests = {}, set()
    for times in ("processor", "published"):
        model = Qwen25VL(str(qwen), max_num_frames=4, device="cpu", times=times, **SIZE)
        chat = model.run.chat
        request = ask(model, str(tmp_path / "v.mp4"), "What?")
        prepared[times] = chat._prepare(model._messages(request))
        stored = torch.tensor(chat._clip[1].timestamps, dtype=torch.float64)
        digests.add(model.run.digest)
        assert model.run.described["times"] == times
    inputs, extra, _ = prepared["published"]
    assert inputs["second_per_grid_ts"].tolist() == [1.0] and len(digests) == 2
    spread = torch.linspace(float(stored[0]), float(stored[-1]), 2, dtype=torch.float64)
    torch.testing.assert_close(extra["video_timestamps"][0], spread)
    inputs, extra, _ = prepared["processor"]
    torch.testing.assert_close(extra["video_timestamps"][0], stored)
    assert inputs["second_per_grid_ts"][0] != 1
    with pytest.raises(ArgumentError, match="times='real': use one of processor, published"):
        Qwen25VL(str(qwen), device="cpu", times="real", **SIZE)
