"""Asking a model: what reaches it, what comes back, with a pruner and without."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from original_layout import small_model, write_original
from PIL import Image
from transformers import LlavaOnevisionForConditionalGeneration

from tango.inference.chat import Chat, metadata_of
from tango.inference.checkpoints import Checkpoint, CheckpointError, class_name, load
from tango.inference.generation import generation_settings
from tango.inference.video import Clip, read_video
from tango.models.llava_video import LlavaVideoForConditionalGeneration
from tango.pruners import REGISTRY

TOKENS = 16  # a frame
SETTINGS = {"max_new_tokens": 5}


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> Checkpoint:
    return load(str(checkpoint))


@pytest.fixture(scope="module")
def vanilla(loaded: Checkpoint) -> Iterator[Chat]:
    with Chat(loaded, max_frames=8).session() as chat:
        yield chat


def about(*videos: Path, text: str = "What?", **part: Any) -> list[dict[str, Any]]:
    content = [{"type": "video", "video": str(video), **part} for video in videos]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


@pytest.fixture(scope="module")
def video(benchmark: Path) -> Path:
    return benchmark / "videos" / "0.mp4"


def test_an_answer_says_what_it_took(vanilla: Chat, video: Path) -> None:
    answer = vanilla.generate(about(video), SETTINGS, "x")
    assert answer.tokens["video_tokens_before"] == answer.tokens["video_tokens_after"] == 8 * TOKENS
    assert answer.videos == [{"frames": 8, "tokens_before": 8 * TOKENS, "tokens_after": 8 * TOKENS}]
    assert answer.tokens["output_tokens"] == answer.timing["new_tokens"] == 5
    assert answer.timing["vit_s"] > 0
    again = vanilla.generate(about(video), SETTINGS, "y")
    assert again.response == answer.response


def test_frames_are_resized_as_the_processor_would(
    vanilla: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames of 128 x 96, resized as they are read, become the same pixels as the processor makes of the whole."""
    video = Path(__file__).parents[1] / "data/video/reschange.webm"
    early, _, _ = vanilla._prepare(about(video))
    assert vanilla._clip is not None and vanilla._clip[1].frames.shape == (8, 32, 32, 3)
    monkeypatch.setattr(vanilla, "_clip", None)
    monkeypatch.setattr(Chat, "_resized", lambda self, frames, frame: frame)
    late, _, _ = vanilla._prepare(about(video))
    assert vanilla._clip[1].frames.shape == (8, 96, 128, 3)
    assert torch.equal(early["pixel_values_videos"], late["pixel_values_videos"])
    monkeypatch.setattr(vanilla, "_clip", None)


# Not DyCoke, which keeps what its own rule says, nor FastV, which lets every token in.
@pytest.mark.parametrize("method", sorted(set(REGISTRY) - {"dycoke", "fastv"}))
def test_every_method_prunes_and_is_recorded(loaded: Checkpoint, video: Path, method: str) -> None:
    with Chat(loaded, REGISTRY[method](retention_ratio=0.25), max_frames=8).session() as chat:
        answer = chat.generate(about(video), SETTINGS, "x")
        (record,) = answer.videos
        assert record["tokens_before"] == 8 * TOKENS
        # ceil for each frame of each segment may keep a few more than a quarter
        assert 2 * TOKENS <= record["tokens_after"] == answer.tokens["video_tokens_after"] <= 3 * TOKENS
        assert record["grid"] == [4, 4] and sum(record["segment_sizes"]) == 8 and len(record["kept"]) == 16
        assert chat.generate(about(video), SETTINGS, "x").videos == answer.videos
        text = chat.generate(about(text="Hello"), SETTINGS, "x")
        assert text.videos == [] and text.tokens["video_tokens_before"] == 0


def test_everything_kept_is_the_unpruned_model(loaded: Checkpoint, vanilla: Chat, video: Path) -> None:
    expected = vanilla.generate(about(video), SETTINGS, "x").response
    with Chat(loaded, REGISTRY["tango"](retention_ratio=1.0), max_frames=8).session() as chat:
        assert chat.generate(about(video), SETTINGS, "x").response == expected


def test_true_times_and_names_reach_the_pruner(loaded: Checkpoint, benchmark: Path, monkeypatch: Any) -> None:
    seen: dict[str, Any] = {}
    method = REGISTRY["tango"](retention_ratio=0.5)
    with Chat(loaded, method, max_frames=3).session() as chat:
        original = loaded.model.generate
        monkeypatch.setattr(loaded.model, "generate", lambda **given: seen.update(given) or original(**given))
        chat.generate(about(benchmark / "videos/0.mp4", benchmark / "videos/1.mp4"), SETTINGS, "x")
        monkeypatch.undo()
    assert seen["video_keys"] == ["0", "1"]
    assert [t.tolist() for t in seen["video_timestamps"]] == [[0.0, 1.25, 2.75]] * 2


def test_images_and_parts_of_videos(vanilla: Chat, video: Path) -> None:
    image = [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (40, 30), "red")}]}]
    assert vanilla.generate(image, SETTINGS, "x").tokens["video_tokens_before"] == 0
    part = vanilla.generate(about(video, start=0.5, end=1.0), SETTINGS, "x")
    assert part.videos[0]["frames"] == 3
    with pytest.raises(ValueError, match="'audio'"):
        vanilla.generate([{"role": "user", "content": [{"type": "audio"}]}], SETTINGS, "x")


def test_until_ends_an_answer(vanilla: Chat, video: Path) -> None:
    full = vanilla.generate(about(video), {"max_new_tokens": 12}, "x")
    mark = vanilla.checkpoint.processor.tokenizer.decode(
        vanilla.checkpoint.processor.tokenizer(full.response, add_special_tokens=False).input_ids[2:4]
    )
    cut = vanilla.generate(about(video), {"max_new_tokens": 12, "until": mark}, "x")
    assert cut.response == full.response[: full.response.find(mark)].strip()
    assert cut.tokens["output_tokens"] <= full.tokens["output_tokens"]


def test_sampling_depends_on_the_sample_not_on_what_came_before(vanilla: Chat, video: Path) -> None:
    settings = {"max_new_tokens": 6, "temperature": 1.5}
    first = [vanilla.generate(about(video), settings, name).response for name in ("a", "b")]
    torch.rand(7)
    second = [vanilla.generate(about(video), settings, name).response for name in ("b", "a")]
    assert first == second[::-1] and first[0] != first[1]


@pytest.mark.parametrize("ratio", [None, 0.5])
def test_likelihood_agrees_with_greedy_decoding(loaded: Checkpoint, video: Path, ratio: float | None) -> None:
    pruner = None if ratio is None else REGISTRY["tango"](retention_ratio=ratio)
    with Chat(loaded, pruner, max_frames=4).session() as chat:
        ids = chat.checkpoint.processor.tokenizer
        told = [chat.loglikelihood(about(video), letter).response for letter in "ABCD\x00"]
        scores = [score for score, _ in told]
        assert all(score < 0 for score in scores)
        greedy = chat.generate(about(video), {"max_new_tokens": 1}, "x")
        if len(ids(greedy.response, add_special_tokens=False).input_ids) == 1:
            score, first = chat.loglikelihood(about(video), greedy.response).response
            assert first and score >= max(scores)
        with pytest.raises(ValueError, match="no tokens"):
            chat.loglikelihood(about(video), "")


def test_only_inside_a_session(loaded: Checkpoint, video: Path) -> None:
    with pytest.raises(RuntimeError, match=r"chat\.session"):
        Chat(loaded).generate(about(video), SETTINGS, "x")


def test_generation_settings() -> None:
    greedy, until = generation_settings({"until": "\n", "temperature": 0, "top_p": 1.0, "image_aspect_ratio": "pad"})
    assert (greedy["do_sample"], greedy["temperature"], greedy["max_new_tokens"], until) == (False, None, 1024, ["\n"])
    warm, until = generation_settings({"temperature": 0.7, "max_new_tokens": 3, "until": None})
    assert (warm["do_sample"], warm["temperature"], until) == (True, 0.7, [])
    assert not generation_settings({"temperature": 0.7, "do_sample": False})[0]["do_sample"]
    assert generation_settings({"do_sample": True})[0]["do_sample"]
    assert not generation_settings({"do_sample": True, "temperature": 0})[0]["do_sample"]
    with pytest.raises(ValueError, match=r"unknown generation settings num_bean; known are .*num_beams"):
        generation_settings({"num_bean": 2})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pretrained": "./nowhere"}, "no such folder"),
        ({"pretrained": ""}, "for example lmms-lab/"),
        ({"dtype": "float8"}, "use auto, float32, float16, bfloat16"),
        ({"device": "cuda"}, "use device=cpu"),
    ],
)
def test_checkpoints_that_cannot_be(checkpoint: Path, options: dict[str, str], said: str) -> None:
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(CheckpointError, match=said):
        load(**{"pretrained": str(checkpoint), **options})


@pytest.mark.parametrize("kind", [LlavaOnevisionForConditionalGeneration, LlavaVideoForConditionalGeneration])
def test_original_checkpoints(tmp_path: Path, video: Path, kind: Any) -> None:
    """From a folder in the format of the `llava` package to the same answer as its weights give when made by hand."""
    source = small_model(kind)
    write_original(tmp_path / "it", source, shards=2)
    assert class_name(str(tmp_path / "it")) == kind.__name__
    loaded = load(str(tmp_path / "it"))
    assert loaded.described["class"] == kind.__name__ and loaded.described["dtype"] == "float32"
    told, side, placeholders = "", 3, 3 * 9 + 1
    if kind is LlavaVideoForConditionalGeneration:
        side, placeholders = 2, 3 * 2 * 3
        told = (
            "The video lasts for 3.00 seconds, and 3 frames are uniformly sampled from it. These frames are located at "
            "0.00s,1.25s,2.75s.Please answer the following questions related to this video.\n"
        )
    with Chat(loaded, max_frames=3).session() as chat:
        answer = chat.generate(about(video), SETTINGS, "x")
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        + "<video>" * placeholders
        + f"\n{told}What?<|im_end|>\n<|im_start|>assistant\n"
    )
    clip = read_video(video, 3)
    pixels = loaded.processor.video_processor(torch.from_numpy(clip.frames).permute(0, 3, 1, 2), return_tensors="pt")
    ids = loaded.processor.tokenizer(text, return_tensors="pt").input_ids
    assert answer.tokens["input_tokens"] == ids.shape[1]
    out = source.generate(ids, **pixels, max_new_tokens=5, do_sample=False, eos_token_id=[2, 0], pad_token_id=0)
    new = loaded.processor.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
    assert answer.response == new
    assert answer.videos == [{"frames": 3, "tokens_before": 3 * side**2, "tokens_after": 3 * side**2}]

    with Chat(loaded, REGISTRY["uniform"](retention_ratio=0.5), max_frames=3, time_instruction=False).session() as chat:
        pruned = chat.generate(about(video), SETTINGS, "x")
    assert pruned.tokens["input_tokens"] == ids.shape[1] - len(loaded.processor.tokenizer(told).input_ids)
    assert pruned.videos[0]["tokens_before"] == 3 * side**2 and pruned.videos[0]["tokens_after"] < 3 * side**2


def test_the_times_told_are_those_of_the_part_that_is_shown(tmp_path: Path, video: Path) -> None:
    write_original(tmp_path / "it", small_model(LlavaVideoForConditionalGeneration))
    with Chat(load(str(tmp_path / "it")), max_frames=2).session() as chat:
        inputs, _, _ = chat._prepare(about(video, start=1.0, end=2.0))
    said = chat.checkpoint.processor.decode(inputs["input_ids"][0])
    assert "lasts for 1.25 seconds, and 2 frames" in said and "located at 0.00s,1.00s.Please" in said


def test_an_original_checkpoint_that_does_not_fit(tmp_path: Path) -> None:
    source = small_model(LlavaOnevisionForConditionalGeneration)
    write_original(tmp_path / "a", source, mm_projector_type="linear")
    write_original(tmp_path / "b", source, tensors={"model.norm.weight": torch.ones(24)})
    with pytest.raises(CheckpointError, match="mm_projector_type='linear'"):
        load(str(tmp_path / "a"))
    with pytest.raises(CheckpointError, match=r"missing: lm_head\.weight"):
        load(str(tmp_path / "b"))


def test_llava_video_in_transformers_format(tmp_path: Path, video: Path) -> None:
    source = small_model(LlavaVideoForConditionalGeneration)
    write_original(tmp_path / "it", source)
    first = load(str(tmp_path / "it"))
    first.model.save_pretrained(tmp_path / "new")
    first.processor.save_pretrained(tmp_path / "new")
    again = load(str(tmp_path / "new"))
    answers = []
    for checkpoint in (first, again):
        with Chat(checkpoint, max_frames=3).session() as chat:
            answers.append(chat.generate(about(video), SETTINGS, "x"))
    assert answers[0].response == answers[1].response and answers[0].tokens == answers[1].tokens


def test_a_checkpoint_of_another_class(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}')
    with pytest.raises(CheckpointError, match=r"Qwen2ForCausalLM.*LlavaOnevisionForConditionalGeneration"):
        load(str(tmp_path))


def test_how_a_checkpoint_is_loaded(checkpoint: Path) -> None:
    loaded = load(str(checkpoint), dtype="bf16", attn_implementation="flash_attention_2")
    assert loaded.described["dtype"] == "bfloat16" and loaded.described["attn_implementation"] == "sdpa"


@pytest.mark.parametrize("start", [0.0, 7.5])
def test_frames_are_counted_from_the_first_that_is_shown(start: float) -> None:
    """As a processor wants to know of times: of a part of a video it is told as of a video of its own."""
    clip = Clip(np.zeros((3, 2, 2, 3), np.uint8), tuple(start + time for time in (0.0, 1.5, 4.75)), 20, 5.0)
    told = {"total_num_frames": 20, "fps": 4.0, "duration": 5.0, "frames_indices": [0, 6, 19]}
    assert metadata_of(clip) == told
    assert metadata_of(Clip(clip.frames[:1], (start,), 1, 0.0)) == {
        "total_num_frames": 1, "fps": 1.0, "duration": 0.0, "frames_indices": [0],
    }  # fmt: skip
