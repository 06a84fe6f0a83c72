"""InternVL, VideoLLaMA3, Qwen3.5 and Qwen3-Omni as people come to them: `tango ask`, and both frameworks' models, in
processes' own words. The models themselves are tested in tests/models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import write_video
from tiny_families import TOKENS, save

from tango.cli import main
from tango.inference.chat import Chat
from tango.inference.checkpoints import CheckpointError, class_name, load
from tango.inference.video import read_video
from tango.models.original import read_config
from tango.pruners import Uniform

KINDS = ("internvl", "video_llama_3", "qwen3_5", "qwen3_omni")
FRAMES = {"internvl": 8, "video_llama_3": 8, "qwen3_5": 4, "qwen3_omni": 4}  # of 8 sampled ones, as the tower sees them
SETTINGS = {"max_new_tokens": 4}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp(kind)
    save(kind, made / kind)
    write_video(made / "v.mp4")
    write_video(made / "w.mp4", seed=1)
    Image.new("RGB", (40, 90), "teal").save(made / "i.png")
    return made


def about(folder: Path, *files: str) -> list[dict[str, Any]]:
    parts = [{"type": "image" if file == "i.png" else "video"} for file in files]
    content = [part | {part["type"]: str(folder / file)} for part, file in zip(parts, files, strict=True)]
    return [{"role": "user", "content": [*content, {"type": "text", "text": "What?"}]}]


def test_chat(kind: str, folder: Path) -> None:
    """Videos and an image among them: the images whole, and a third of what the processor left of videos."""
    checkpoint, answers = load(str(folder / kind)), []
    asked = [
        about(folder, *files) for files in (("v.mp4",), ("i.png", "v.mp4"), ("v.mp4", "i.png", "w.mp4"), ("i.png",))
    ]
    for pruner in (None, Uniform(retention_ratio=1), Uniform(retention_ratio=1 / 3)):
        with Chat(checkpoint, pruner, max_frames=8).session() as chat:
            answers.append([chat.generate(messages, SETTINGS, "x") for messages in asked])
    plain, whole, pruned = answers
    assert [answer.response for answer in whole] == [answer.response for answer in plain]
    for count, before, kept, after in zip((1, 1, 2, 0), plain, whole, pruned, strict=True):
        assert before.tokens["input_tokens"] == kept.tokens["input_tokens"] == after.tokens["input_tokens"]
        assert len(after.videos) == count and before.tokens["output_tokens"] > 0
        for one, two, three in zip(before.videos, kept.videos, after.videos, strict=True):
            assert one["frames"] == three["frames"] == FRAMES[kind]
            assert one["tokens_before"] == two["tokens_after"] == three["tokens_before"] <= FRAMES[kind] * TOKENS
            assert three["tokens_after"] == pytest.approx(three["tokens_before"] / 3, abs=FRAMES[kind])
        if kind == "video_llama_3" and count:  # the ground behind the square stands still
            assert after.videos[0]["tokens_before"] < FRAMES[kind] * TOKENS


def test_ask(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ask", str(folder / "v.mp4"), "What?", "--model", str(folder / kind), "--ratio", "0.3", "--frames", "8"]
    assert main([*words, "--max-new-tokens", "3", "--json"]) == 0
    plain, tango = json.loads(capsys.readouterr().out)["answers"]
    assert plain["tokens"]["video_tokens_before"] == tango["tokens"]["video_tokens_before"]
    assert 0 < tango["tokens"]["video_tokens_after"] < 0.6 * tango["tokens"]["video_tokens_before"]


def test_in_lmms_eval(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch, nothing_left_over: None) -> None:
    from lmms_eval.api.instance import Instance
    from lmms_eval.models import get_model

    monkeypatch.setenv("WRAPPER", "uniform")
    monkeypatch.setenv("TANGO_ARGS", "retention_ratio=0.3")
    name = {
        "internvl": "internvl_hf",
        "video_llama_3": "videollama3",
        "qwen3_5": "qwen3_5",
        "qwen3_omni": "qwen3_omni",
    }[kind]
    frames = {"num_frames": 8} if kind == "internvl" else {"max_num_frames": 8}
    sizes = {"min_pixels": 576, "max_pixels": 576, "enable_thinking": True} if kind == "qwen3_5" else {}
    if kind == "qwen3_omni":
        sizes = {"min_pixels": 384**2, "max_pixels": 384**2}
    cls = get_model(name, True)
    assert cls.__module__.startswith("tango_lmms_eval")
    assert kind == "video_llama_3" or get_model(name).__module__.startswith("tango_lmms_eval")
    model = cls(str(folder / kind), device="cpu", **frames, **sizes)
    model.task_dict["t"] = {"test": [{"video": str(folder / "v.mp4")}]}
    arguments = ("What?", {"max_new_tokens": 3}, lambda doc: [doc["video"]], 0, "t", "test")
    request = Instance("generate_until", arguments, 0, {"task": "t", "doc_id": 0, "repeats": 1})
    (reply,) = model.generate_until([request])
    counts = reply.token_counts.to_dict()
    assert 0 < counts["video_tokens_after"] < 0.5 * counts["video_tokens_before"]


def test_in_vlmevalkit(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tango_vlmeval import models
    from vlmeval.config import supported_VLM

    monkeypatch.setenv("WRAPPER", "uniform")
    monkeypatch.setenv("TANGO_ARGS", "retention_ratio=0.3")
    (name,) = models.register([str(folder / kind)]).values()
    model = supported_VLM[name](nframe=8, device="cpu", max_new_tokens=3)
    message = [{"type": "video", "value": str(folder / "v.mp4")}, {"type": "text", "value": "What?"}]
    assert isinstance(model.generate(message), str)
    assert {"InternVLForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration"} <= {
        name for cls in models.MODELS for name in cls.model_classes
    }


def test_a_published_omni_is_its_thinker(tmp_path: Path) -> None:
    """Qwen3-Omni's checkpoints hold a talker too: the thinker alone is loaded, at the frames' own interval."""
    save("qwen3_omni", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architectures"]
    whole = {"architectures": ["Qwen3OmniMoeForConditionalGeneration"], "model_type": "qwen3_omni_moe"}
    weights = load_file(tmp_path / "model.safetensors")
    plain = load(str(tmp_path)).model.state_dict()
    (tmp_path / "config.json").write_text(json.dumps(whole | {"thinker_config": config, "dtype": "float32"}))
    renamed = {f"thinker.{name}": weight for name, weight in weights.items()} | {"talker.a": torch.zeros(2)}
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    checkpoint = load(str(tmp_path))
    assert checkpoint.described["class"] == "Qwen3OmniMoeThinkerForConditionalGeneration"
    for name, weight in checkpoint.model.state_dict().items():
        assert torch.equal(weight, plain[name])
    assert read_config(str(tmp_path))["text_config"]["num_hidden_layers"] == 2


def test_omni_is_told_when_frames_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processor says 2 s from pair to pair of frames, whatever the video."""
    save("qwen3_omni", tmp_path / "model")
    write_video(tmp_path / "v.mp4")
    checkpoint, told = load(str(tmp_path / "model")), []
    real = type(checkpoint.model).generate
    monkeypatch.setattr(type(checkpoint.model), "generate", lambda *a, **call: told.append(call) or real(*a, **call))
    for times in ("processor", "published"):
        with Chat(checkpoint, None, max_frames=4, times=times).session() as chat:
            chat.generate(about(tmp_path, "v.mp4"), SETTINGS, "x")
    clip = read_video(tmp_path / "v.mp4", 4)
    assert told[0]["video_second_per_grid"].tolist() == pytest.approx([2 * clip.duration / 4])
    assert told[1]["video_second_per_grid"].tolist() == [1]


def test_an_unknown_class_is_told_the_nearest(tmp_path: Path) -> None:
    for held, near in (("Qwen3_6VLForConditionalGeneration", "Qwen3VLForConditionalGeneration"),
                       ("InternVLChatModel", None), ("Videollama3Qwen2ForCausalLM", None)):  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps({"architectures": [held], "model_type": "new"}))
        with pytest.raises(CheckpointError) as caught:
            class_name(str(tmp_path))
        assert held in str(caught.value) and "docs/models.md#adding-a-family" in str(caught.value)
        assert near is None or f"the nearest of these is {near}" in str(caught.value)
