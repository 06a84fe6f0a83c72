"""Several questions in one call of generate(): the same kept tokens and answers as one by one, in fp32."""

from pathlib import Path
from typing import Any

import pytest
import torch
from original_layout import small_model, write_original
from PIL import Image
from tiny import save_qwen

from tango.inference.batch import Prepared, batches, reply, together
from tango.inference.chat import Answer, Chat, PixelLimits
from tango.inference.checkpoints import Checkpoint, load
from tango.inference.timing import StopAt
from tango.models.llava_video import LlavaVideoForConditionalGeneration
from tango.motionqa.questions import prompt, read_questions
from tango.pruners import REGISTRY

ROOT = Path(__file__).parents[2]
DATA = ROOT / "data" / "motionqa"
SETTINGS = {"max_new_tokens": 6}
Messages = list[dict[str, Any]]


def asked(count: int, step: int = 7) -> list[Messages]:
    """Questions of MotionQA about several videos, of prompts of unequal length."""
    rows = read_questions(DATA)[::step][:count]
    texts = [prompt(row["question"], row["options"]) for row in rows]
    return [
        [{"role": "user", "content": [{"type": "video", "video": str(DATA / row["video"])}, said(text)]}]
        for row, text in zip(rows, texts, strict=True)
    ]


def said(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


@pytest.fixture(scope="module")
def shipped() -> Checkpoint:
    return load(str(ROOT / "checkpoints/tango-tiny"), dtype="float32")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("qwen") / "random-qwen"
    save_qwen(folder)
    return load(str(folder), dtype="float32")


@pytest.fixture(scope="module")
def video_model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("video") / "it"
    write_original(folder, small_model(LlavaVideoForConditionalGeneration))
    return load(str(folder), dtype="float32")


def same(one: Answer, other: Answer) -> bool:
    return (one.response, one.tokens, one.videos) == (other.response, other.tokens, other.videos)


def compare(chat: Chat, conversations: list[Messages], size: int, settings: dict[str, Any] = SETTINGS) -> list[Answer]:
    """All that is said of a sample but its times, in batches of `size` and one by one."""
    with chat.session():
        names = [str(i) for i in range(len(conversations))]
        alone = [chat.generate(one, settings, name) for one, name in zip(conversations, names, strict=True)]
        made: list[Answer] = []
        for at in range(0, len(conversations), size):
            made += chat.generate_batch(conversations[at : at + size], settings, names[at : at + size])
    assert len(made) == len(alone)
    assert [i for i, pair in enumerate(zip(alone, made, strict=True)) if not same(*pair)] == []
    return alone


@pytest.mark.parametrize("method", [None, "tango", "fastv"])
def test_tango_tiny_on_motionqa(shipped: Checkpoint, method: str | None) -> None:
    pruner = None if method is None else REGISTRY[method](retention_ratio=0.6 if method == "fastv" else 0.1)
    alone = compare(Chat(shipped, pruner, max_frames=8), asked(9, 41), 4)
    assert len({answer.tokens["input_tokens"] for answer in alone}) > 3
    assert len({answer.response for answer in alone}) > 3


@pytest.mark.parametrize("method", [None, "tango", "topk"])
def test_qwen(qwen: Checkpoint, method: str | None) -> None:
    pruner = None if method is None else REGISTRY[method](retention_ratio=0.3)
    size = PixelLimits(min_pixels=24 * 24, max_pixels=24 * 24)
    alone = compare(Chat(qwen, pruner, max_frames=8, limits=size), asked(6, 41), 3)
    assert len({answer.tokens["input_tokens"] for answer in alone}) > 2


@pytest.mark.parametrize("method", [None, "tango"])
def test_llava_video(video_model: Checkpoint, method: str | None) -> None:
    pruner = None if method is None else REGISTRY[method](retention_ratio=0.3, saliency="global_query")
    compare(Chat(video_model, pruner, max_frames=8), asked(4, 41), 4)


@pytest.mark.parametrize("method", [None, "tango"])
def test_what_does_not_fit_into_one_tensor_goes_side_by_side(shipped: Checkpoint, method: str | None) -> None:
    """Videos of other lengths, texts and images among them, two videos in a prompt, and a text like a special token."""
    video = {"type": "video", "video": str(DATA / "videos/0.mp4")}
    image = {"type": "image", "image": Image.new("RGB", (40, 30), "red")}
    parts = [
        [video, said("What?")],
        [said("Hello")],
        [video | {"start": 0.5, "end": 1.0}, said("Which object is first in it?")],
        [image, said("What colour?")],
        [video, video | {"video": str(DATA / "videos/1.mp4")}, said("Which?")],
        [video, said("Is <video> a word, or <|im_end|>?")],
        [said("Is there anything to see at all?")],
    ]
    pruner = None if method is None else REGISTRY[method](retention_ratio=0.2)
    alone = compare(Chat(shipped, pruner, max_frames=8), [[{"role": "user", "content": one}] for one in parts], 7)
    assert [len(answer.videos) for answer in alone] == [1, 0, 1, 0, 2, 1, 0]


def test_ends_of_their_own(shipped: Checkpoint) -> None:
    """Rows that end sooner, by a text or a length, are as long as alone; sampling and beams go one by one."""
    questions = asked(5, 41)
    free = compare(Chat(shipped, max_frames=8), questions, 5)
    letter = free[0].response[0]
    assert {answer.response[0] for answer in free} > {letter}
    compare(Chat(shipped, max_frames=8), questions, 5, SETTINGS | {"until": letter, "min_new_tokens": 4})
    compare(Chat(shipped, max_frames=8), questions, 3, SETTINGS | {"temperature": 1.5})
    compare(Chat(shipped, max_frames=8), questions[:2], 2, SETTINGS | {"num_beams": 2})


def test_replies_without_their_filling() -> None:
    stop = StopAt(str, ["x"])
    new = torch.tensor([5, 6, 2, 0, 0])
    assert reply(new, 0, 2, stop).tolist() == reply(new, 0, [9, 2], stop).tolist() == [5, 6, 2]
    assert reply(new, 0, None, stop).tolist() == new.tolist()
    stop.ended = {1: 2}
    assert reply(new, 1, 2, stop).tolist() == [5, 6] and reply(new, 0, 2, stop).tolist() == [5, 6, 2]


def test_which_prompts_share_a_call() -> None:
    def made(tokens: int, frames: int | None) -> Prepared:
        inputs = {"input_ids": torch.zeros(1, tokens, dtype=torch.long)}
        videos = {} if frames is None else {"pixel_values_videos": torch.zeros(1, frames, 3, 2, 2)}
        return Prepared(inputs | videos, {}, [])

    assert batches([made(3, 8), made(4, None), made(9, 8), made(3, 4), made(5, None)]) == [[0, 2], [1, 4], [3]]


@pytest.mark.parametrize("lengths", [[4], [4, 2], [1, 4, 3]])
def test_prompts_of_one_call_end_in_one_column(lengths: list[int]) -> None:
    prepared = [
        Prepared(
            {
                "input_ids": torch.arange(1, length + 1)[None],
                "attention_mask": torch.ones(1, length, dtype=torch.long),
                "pixel_values_videos": torch.full((1, 8, 3, 2, 2), row),
            },
            {"video_timestamps": [row]},
            [],
        )
        for row, length in enumerate(lengths)
    ]
    inputs, extra = together(prepared, 9)
    assert inputs["input_ids"].tolist() == [[9] * (4 - length) + [*range(1, length + 1)] for length in lengths]
    assert inputs["attention_mask"].tolist() == [[0] * (4 - length) + [1] * length for length in lengths]
    assert inputs["pixel_values_videos"][:, 0, 0, 0, 0].tolist() == [*range(len(lengths))]
    assert extra == {"video_timestamps": [*range(len(lengths))]}
