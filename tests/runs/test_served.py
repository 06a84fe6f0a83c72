"""A server in the place of a model: what it is asked, what is made of its replies, and what is refused."""

import base64
import dataclasses
import json
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from stub_vllm import make_server
from tiny import save_qwen, write_video

from tango.inference.chat import PixelLimits
from tango.inference.video import read_video, uniform_indices
from tango.models import FAMILIES
from tango.motionqa.shipped import DATA, MODEL, checkout
from tango.pruners import REGISTRY, FastVID, Tango, Uniform
from tango.runs.run import ArgumentError
from tango.runs.served import GAPLESS, ServedChat, outline, why_not_served
from tango.runs.settings import MethodSettings, fingerprint, served

ROOT = checkout()
VIDEO = ROOT / DATA / "videos" / "0.mp4"
SETTINGS = MethodSettings("tango", Tango(retention_ratio=0.1))
LLAVA = "LlavaOnevisionForConditionalGeneration"


def question(*parts: dict[str, Any], text: str = "What colour is the ring?\nA. orange\nB. red") -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    pruner = served(SETTINGS.pruner)
    with make_server(0, pruner.name, fingerprint(pruner), tmp_path) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def chat(url: str) -> ServedChat:
    checkpoint, settings = outline(str(ROOT / MODEL), url, SETTINGS)
    return ServedChat(checkpoint, settings.pruner, 8, server=url)


def last(folder: Path) -> dict[str, Any]:
    asked: dict[str, Any] = json.loads((folder / "requests.jsonl").read_text().splitlines()[-1])
    return asked


def test_what_a_server_is_asked_and_what_it_answers(chat: ServedChat, tmp_path: Path) -> None:
    settings = {"max_new_tokens": 8, "temperature": 0, "do_sample": False, "until": ["\n"]}
    with chat.session():
        answer = chat.generate(question({"type": "video", "video": str(VIDEO)}), settings, "a")
    assert answer.response == "orange" and answer.timing is None
    assert answer.tokens["video_tokens_before"] == 512 and answer.tokens["video_tokens_after"] == 51
    assert answer.videos == [{"tokens_before": 512, "tokens_after": 51}]
    asked = last(tmp_path)
    assert asked["media_io_kwargs"] == {"video": {"num_frames": 8, "video_backend": "tango"}}
    assert asked["max_tokens"] == 8 and asked["temperature"] == 0 and asked["stop"] == ["\n"] and "seed" not in asked
    shown, text = asked["messages"][0]["content"]
    sent = base64.b64decode(shown["video_url"]["url"].removeprefix("data:video/mp4;base64,"))
    assert sent == VIDEO.read_bytes() and text["text"].startswith("What colour")


def test_parts_of_videos_images_and_sampling(chat: ServedChat, tmp_path: Path) -> None:
    image = Image.new("RGB", (5, 3), (9, 8, 7))
    parts = [{"type": "image", "image": image}, {"type": "video", "video": str(VIDEO), "start": 0.5, "end": 1.5}]
    chat.generate(question(*parts), {"temperature": 0.7, "top_p": 0.9}, "a")
    asked = last(tmp_path)
    assert asked["media_io_kwargs"]["video"] == {"num_frames": 8, "video_backend": "tango", "start": 0.5, "end": 1.5}
    assert asked["temperature"] == 0.7 and asked["top_p"] == 0.9 and asked["seed"] >= 0
    sent = base64.b64decode(asked["messages"][0]["content"][0]["image_url"]["url"].partition(",")[2])
    assert list(Image.open(BytesIO(sent)).getdata()) == list(image.getdata())
    chat.generate(question(), {}, "a")
    assert "media_io_kwargs" not in last(tmp_path)


def test_frames_and_sizes_that_the_client_chooses(url: str, tmp_path: Path) -> None:
    """Qwen's: a server is told which frames of a video to show, and how large."""
    save_qwen(tmp_path / "qwen", head=32)  # a token of 8 x 8 pixels
    checkpoint, settings = outline(str(tmp_path / "qwen"), url, SETTINGS)
    chat = ServedChat(checkpoint, settings.pruner, 4, server=url, limits=PixelLimits(64, 1700))
    video, image = {"type": "video", "video": str(VIDEO)}, {"type": "image", "image": Image.new("RGB", (9, 9))}
    (frames, height, width), total = read_video(VIDEO, 4).frames.shape[:3], read_video(VIDEO, 1).total_frames
    assert height == width and 40 * 40 < 1700 < 48 * 48
    for sampling, start, indices in [
        (None, None, uniform_indices(total, frames)),
        (lambda total, seconds: [0, 1, total - 1], None, [0, 1, total - 1]),
        (None, 1.0, uniform_indices(read_video(VIDEO, 1, 1.0).total_frames, frames)),
    ]:
        chat.sampling, chat._seen = sampling, None
        chat.generate(question(video | {"start": start}, image), {}, "a")
        asked = last(tmp_path)
        told = {"indices": indices, "size": [40, 40], "num_frames": 4, "video_backend": "tango"}
        assert asked["media_io_kwargs"]["video"] == told | ({} if start is None else {"start": start})
        assert asked["mm_processor_kwargs"] == {
            "videos_kwargs": {"do_resize": False},
            "images_kwargs": {"min_pixels": 64, "max_pixels": 1700},
        }
    write_video(tmp_path / "short.mp4", frames=3)
    with pytest.raises(ValueError, match="a server takes one size for all of a prompt"):
        chat.generate(question(video, {"type": "video", "video": str(tmp_path / "short.mp4")}), {}, "a")
    with pytest.raises(ArgumentError, match="has the real times"):
        dataclasses.replace(chat, times="published")


def test_what_cannot_be_asked(chat: ServedChat, tmp_path: Path) -> None:
    video = {"type": "video", "video": str(VIDEO)}
    for messages, settings, said in [
        (question(video, video | {"start": 1.0}), {}, "one start and end"),
        (question(text="a <video>?"), {}, "special token"),
        (question(), {"num_beams": 2}, "num_beams"),
        (question({"type": "audio"}), {}, "'audio'"),
    ]:
        with pytest.raises(ValueError, match=said):
            chat.generate(messages, settings, "a")
    with pytest.raises(ValueError, match="asked for text"):
        chat.loglikelihood(question(), "A")
    assert not (tmp_path / "requests.jsonl").exists()
    (tmp_path / "broken").touch()
    with pytest.raises(ValueError, match="answered 500: the engine is dead"):
        chat.generate(question(text="What shape?"), {}, "a")


@pytest.mark.parametrize("pruner", [Tango(retention_ratio=0.2), Uniform(retention_ratio=0.1), None])
def test_a_server_with_another_method(chat: ServedChat, pruner: Any) -> None:
    chat.pruner = pruner
    with pytest.raises(ArgumentError, match=r"has tango \(\w{16}\); this run is of (tango|uniform)"), chat.session():
        pass


def test_no_server(url: str) -> None:
    with pytest.raises(ArgumentError, match="no server of vLLM answers there"):
        outline(str(ROOT / MODEL), "http://127.0.0.1:9", SETTINGS)
    with pytest.raises(ArgumentError, match="prunes inside the language model"):
        outline(str(ROOT / MODEL), url, MethodSettings("fastv", REGISTRY["fastv"]()))


def test_which_models_and_methods_are_served() -> None:
    refused = {name for name, cls in REGISTRY.items() if why_not_served(cls(keep_positions=False), LLAVA, 4)}
    assert refused == {"random", "fastv", "earlytom"}
    assert "keep_positions" in str(why_not_served(FastVID(), LLAVA, 4))
    assert why_not_served(None, LLAVA, 4) is None and why_not_served(None, None, None) is None
    reasons = {name: why_not_served(None, name, 4) for name in FAMILIES}
    assert {name for name, reason in reasons.items() if reason is None} == {*GAPLESS}
    assert all("is not served; these are" in reason for reason in reasons.values() if reason)
