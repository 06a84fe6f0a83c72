"""The training of the shipped model, for a few steps: it runs, makes a checkpoint, and goes on where it was stopped."""

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    LlavaOnevisionForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import tiny_data
import tiny_language
import tiny_mrope
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


def test_a_qwen_is_made_of_a_smaller_model(whole, tmp_path, monkeypatch):
    """It goes on where it was stopped; what it learned from stands as its processor and the model itself have it."""
    arguments = [*FEW, "--start", str(whole), "--qwen", "--warmup", "2", "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        train_tiny.main([*FEW, "--qwen"])
    for stage, module, name in (("tower", tiny_mrope, "frame_batch"), ("language", tiny_mrope, "pick_frames")):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, stop_after(3, getattr(module, name)))
            with pytest.raises(Stopped):
                train_tiny.main([*arguments, "--work", str(tmp_path / "work")])
        assert torch.load(tmp_path / "work" / f"{stage}.pt", weights_only=False)["step"] == 2
    train_tiny.main([*arguments, "--work", str(tmp_path / "work")])
    first = load_file(tmp_path / "out" / "model.safetensors")
    train_tiny.main([*arguments, "--work", str(tmp_path / "again")])
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in again)

    model = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    content = [{"type": "video"}, {"type": "text", "text": "Which letter flashes up?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    clip = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
    told = {"total_num_frames": 40, "fps": 4.0, "duration": 10.0, "frames_indices": [0, 10, 20, 38]}
    inputs = processor(text=text, videos=[clip], video_metadata=[told], do_sample_frames=False, return_tensors="pt")
    packed = tiny_mrope.patches_of(tiny_data.as_pixels(clip))
    torch.testing.assert_close(packed, inputs["pixel_values_videos"])
    # The template's own marks around all frames, which transformers takes out up to 5.17 and leaves in 5.24.
    config, ids = model.config, inputs["input_ids"][0]
    mark, pad = (
        (ids == config.vision_start_token_id) | (ids == config.vision_end_token_id),
        ids == config.video_token_id,
    )
    frame = torch.nn.functional.pad(pad, (1, 1))
    inside = ~mark | frame[:-2] | frame[2:]
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        inputs[name] = inputs[name][:, inside]
    ids, places = inputs["input_ids"][0], inputs["input_ids"][0] == config.video_token_id
    with torch.no_grad():
        features = model.model.visual(packed, tiny_mrope.grids_of(4)).pooler_output.view(1, 4, 64, -1)
        times = np.array([[0.7, 3.2, 5.7, 10.2]])
        video, positions = tiny_mrope.embed_videos(model, processor.tokenizer, features, times)
        embedded = model.get_input_embeddings()(ids)
        embedded[places] = features.flatten(0, 2)
        before = positions.shape[1] - video.shape[1]
        torch.testing.assert_close(embedded[before : positions.shape[1]], video[0])
        types = {name: inputs[name] for name in ("mm_token_type_ids", "video_grid_thw")}
        whole_prompt, _ = model.model.get_rope_index(inputs["input_ids"], **types)
        assert torch.equal(whole_prompt[:, 0, : positions.shape[1]], positions)
        given = tiny_sheet.sheet(processor.tokenizer, [[("Which letter flashes up?", "K")]])
        given.places = positions
        after = ids[positions.shape[1] :]
        assert torch.equal(given.ids[0, : len(after)], after)
        hidden = tiny_sheet.hidden_states(model, given, video)[0, : len(after)]
        alone = model.model(**inputs).last_hidden_state[0, positions.shape[1] :]
        torch.testing.assert_close(hidden, alone, rtol=1e-4, atol=1e-4)
        with Tango(retention_ratio=0.25)(model) as session:
            model.generate(**inputs, max_new_tokens=2)
    (kept,) = session.videos
    assert kept.tokens_before == 4 * 64 and 0 < kept.tokens_after <= 4 * 64 * 0.25 + 8


def test_the_shipped_qwen_is_made_by_the_command_that_is_written_down():
    """Every argument beside the checkpoint is what the command at the script's head gives."""
    (command,) = (line for line in train_tiny.__doc__.split("\n") if line.startswith("    python") and "--qwen" in line)
    made = json.loads((Path(__file__).parents[1] / "checkpoints/tango-tiny-qwen/training.json").read_text())
    given = vars(train_tiny.parse([*shlex.split(command)[2:], "--device", "cpu"]))
    assert {name: str(value) for name, value in given.items()} == {k: str(v) for k, v in made["arguments"].items()}
    assert made["validation_accuracy"]["overall"] >= 0.99


@torch.no_grad()
def test_a_qwen_starts_as_the_smaller_model_is():
    """Queries and keys meet as before where nothing is turned; text, where positions count, is read nearly the same."""
    generator = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(24, 97, generator=generator) for _ in range(2))
    turned = tiny_mrope._quiet(queries, keys)
    torch.testing.assert_close(turned[0].T @ turned[1], queries.T @ keys, rtol=1e-4, atol=1e-3)
    energy = turned[0].square().sum(1).view(4, 6)  # of both halves of the pairs, by rows and by columns
    assert (energy.sum(0).diff() > 0).all(), "what turns faster has more to say"
    folder = Path(__file__).parents[1] / "checkpoints/tango-tiny"
    small = LlavaOnevisionForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = tiny_mrope.extend(AutoTokenizer.from_pretrained(folder))
    model = tiny_mrope.qwen(tokenizer, small).eval()
    ids = tokenizer("<|im_start|>user What colour is the ring?<|im_end|>\n", return_tensors="pt").input_ids
    one, other = small(input_ids=ids).logits, model(input_ids=ids).logits[..., : len(tokenizer) - len(tiny_mrope.MARKS)]
    assert (one - other).square().mean() < 0.02 * one.var()


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
