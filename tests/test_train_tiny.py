"""The training of the shipped model, for a few steps: it runs, makes a checkpoint, and goes on where it was stopped."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, AutoTokenizer, LlavaOnevisionForConditionalGeneration

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import tiny_data
import tiny_language
import tiny_sheet
import tiny_tower
import train_tiny

from tango import Tango
from tango.motionqa.scenes import SIZE, sample_spec

FEW = [
    "--tower-steps", "4", "--tower-batch", "8", "--symbol-steps", "4", "--fit-steps", "2", "--videos", "8",
    "--validation-videos", "1", "--language-steps", "4", "--language-batch", "2", "--options", "1", "--save-every", "2",
    "--threads", "1", "--device", "cpu",
]  # fmt: skip


class Stopped(Exception):
    pass


@pytest.fixture(scope="module", autouse=True)
def tokenizer():
    """Learned once; that takes longer than all else here."""
    learned = tiny_data.make_tokenizer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_tiny, "make_tokenizer", lambda: learned)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("whole")
    train_tiny.main([*FEW, "--work", str(folder / "work"), "--output", str(folder / "out")])
    return folder / "out"


def stop_after(calls, function):
    """The function, which raises from its `calls`-th call on."""
    made = 0

    def wrapped(*args, **kwargs):
        nonlocal made
        made += 1
        if made > calls:
            raise Stopped
        return function(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize("stage", ["tower", "symbols", "language"])
def test_a_stopped_training_ends_with_the_same_weights(whole, tmp_path, monkeypatch, stage):
    arguments = [*FEW, "--work", str(tmp_path / "work"), "--output", str(tmp_path / "out")]
    where, name = {
        "tower": (tiny_tower, "frame_batch"),
        "symbols": (tiny_language, "sheet"),  # of two steps and of one validation
        "language": (tiny_language, "pick_frames"),
    }[stage]
    with monkeypatch.context() as patched:
        patched.setattr(where, name, stop_after(3, getattr(where, name)))
        with pytest.raises(Stopped):
            train_tiny.main(arguments)
    saved = torch.load(tmp_path / "work" / f"{stage}.pt", weights_only=False)
    assert saved["step"] == 2  # what came after was lost, and is made again
    train_tiny.main(arguments)
    for name in ("model.safetensors", "pooling_head.safetensors"):
        ours, theirs = load_file(tmp_path / "out" / name), load_file(whole / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


def test_the_checkpoint_loads_and_is_pruned(whole):
    record = json.loads((whole / "training.json").read_text())
    assert record["arguments"]["tower_steps"] == 4 and 0 <= record["validation_accuracy"]["overall"] <= 1
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(whole).eval()
    processor = AutoProcessor.from_pretrained(whole)
    content = [{"type": "video"}, {"type": "text", "text": "Which letter flashes up?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    clip = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
    inputs = processor(text=text, videos=[clip], return_tensors="pt")
    with Tango(retention_ratio=0.25)(model) as session:
        model.generate(**inputs, max_new_tokens=2)
    (video,) = session.videos
    assert video.tokens_before == 4 * 64 and 0 < video.tokens_after <= 4 * 64 * 0.25 + 8


def test_a_deeper_model_is_grown_from_a_smaller_one(whole, tmp_path, monkeypatch):
    """Twice the layers, the small model's language model and head; it goes on where it was stopped."""
    arguments = [*FEW, "--start", str(whole), "--tower-layers", "6", "--frames", "16", "--language-steps", "0",
                 "--warmup", "2", "--output", str(tmp_path / "out")]  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(tiny_tower, "frame_batch", stop_after(3, tiny_tower.frame_batch))
        with pytest.raises(Stopped):
            train_tiny.main([*arguments, "--work", str(tmp_path / "work")])
    train_tiny.main([*arguments, "--work", str(tmp_path / "work")])
    first = load_file(tmp_path / "out" / "model.safetensors")
    train_tiny.main([*arguments, "--work", str(tmp_path / "again")])
    again, small = (load_file(path / "model.safetensors") for path in (tmp_path / "out", whole))
    assert all(torch.equal(first[name], again[name]) for name in again)
    assert all(torch.equal(again[name], small[name]) for name in small if "vision_tower" not in name)
    heads = (load_file(path / "pooling_head.safetensors") for path in (tmp_path / "out", whole))
    assert all(torch.equal(*pair) for pair in zip(*(head.values() for head in heads), strict=True))
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert len(model.model.vision_tower.encoder.layers) == 6


@torch.no_grad()
def test_questions_side_by_side_are_asked_alone(whole):
    """Logits of each question on a sheet are those of a prompt that holds nothing else."""
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(whole).eval()
    tokenizer = AutoTokenizer.from_pretrained(whole)
    spec, times = sample_spec(tiny_data.TRAIN_SEED), np.arange(8) + 0.2
    pairs = tiny_data.ask(spec, times, np.random.default_rng(0), 2)
    asked = [pairs, pairs[::-1]]
    video = torch.randn(2, 21, 128, generator=torch.Generator().manual_seed(0))
    given = tiny_sheet.sheet(tokenizer, asked)
    hidden = tiny_sheet.hidden_states(model, given, video)
    assert {length for _, length in given.groups} == {tiny_sheet.SHORT, tiny_sheet.LONG}
    at = 0
    for amount, length in given.groups:
        for _ in range(amount):
            for row in range(2):
                ids = given.ids[row, at : at + length]
                embeds = [model.get_input_embeddings()(given.prompt), video[row], model.get_input_embeddings()(ids)]
                alone = model.model.language_model(inputs_embeds=torch.cat(embeds)[None]).last_hidden_state[0]
                torch.testing.assert_close(hidden[row, at : at + length], alone[-length:], rtol=1e-4, atol=1e-4)
            at += length
    assert at == given.ids.shape[1]


def test_the_truth_of_a_patch_is_what_is_drawn_there():
    spec = sample_spec(tiny_data.TRAIN_SEED)
    for actor in spec.actors:
        time = (actor.start + actor.end) / 2
        classes, centres = tiny_data.patch_truth(spec, time)
        x, y = actor.position(time)
        patch = int(y // tiny_data.PATCH) * tiny_data.GRID + int(x // tiny_data.PATCH)
        colour, shape, letter, dots = classes[patch]
        assert list(tiny_data.scenes.COLOURS)[colour - 1] == actor.colour
        assert tiny_data.scenes.SHAPES[shape - 1] == actor.shape
        assert (letter, dots) == (0, 0)
        assert np.allclose((centres[patch] + 1) * SIZE / 2, (x, y), atol=1e-3)
        shown = (classes[:, 0] > 0).sum() * tiny_data.PATCH**2
        assert shown == pytest.approx(np.pi * (actor.radius + 2) ** 2, rel=0.3)


def test_features_of_another_shape_are_refused(tmp_path):
    np.save(tmp_path / "train.npy", np.zeros((1, 2, 3, 4), np.float16))
    with pytest.raises(SystemExit, match=r"shape \(1, 2, 3, 4\), not \(8, 16, 256, 96\)"):
        tiny_tower.encode_videos(torch.nn.Identity(), 0, 8, 0, tmp_path / "train.npy", "train")
