"""Attaching and leaving: no trace, nothing shared, and with everything kept the same outputs to the bit."""

import threading

import pytest
import torch
from tiny_llava import GRID, TOKENS, build_model, make_pruner, pixels, prompt, video
from torch import nn

from tango.models import FAMILIES, attach, family_of
from tango.pruners import REGISTRY

MATRIX = [
    pytest.param(dtype, attention, batch, method, id=f"{str(dtype)[6:]}-{attention}-batch{batch}-{method}")
    for dtype in (torch.float32, torch.bfloat16)
    for attention in ("sdpa", "eager")
    for batch in (1, 3)
    for method in REGISTRY
]


def example(batch, dtype):
    """One prompt with two videos, or a padded batch of prompts with two, one and one."""
    rows = [[5, 6, *video(), 7, *video(), 8, 9], [5, *video(), 11, 12], [6, 6, 6, *video(), 13]][:batch]
    return prompt(*rows) | {"pixel_values_videos": pixels(batch + 1, dtype=dtype)}


def outputs(model, inputs):
    with torch.no_grad():
        return model.generate(**inputs, max_new_tokens=6, do_sample=False), model(**inputs).logits


def state(model):
    """All that attaching could change: instance attributes and hooks."""
    return dict(vars(model)), [
        (dict(module._forward_hooks), dict(module._forward_pre_hooks)) for module in model.modules()
    ]


@pytest.mark.parametrize(("dtype", "attention", "batch", "method"), MATRIX)
def test_matrix(models, dtype, attention, batch, method):
    model, inputs = models(dtype, attention), example(batch, dtype)
    ids, logits = outputs(model, inputs)
    before = state(model)

    with make_pruner(method, 1.0)(model) as session:
        kept_ids, kept_logits = outputs(model, inputs)
        assert [record.tokens_after for record in session.videos] == [4 * TOKENS] * (batch + 1)
    assert torch.equal(kept_ids, ids)
    assert torch.equal(kept_logits, logits)

    with pytest.raises(KeyError), make_pruner(method, 0.3)(model) as session:
        pruned_ids, pruned_logits = outputs(model, inputs)
        assert torch.equal(pruned_ids[:, : ids.shape[1] - 6], inputs["input_ids"])
        assert pruned_logits.shape[1] < logits.shape[1]
        alone = [record.indices for record in session.videos]
        raise KeyError("the body fails")
    assert state(model) == before
    for value, expected in zip(outputs(model, inputs), (ids, logits), strict=True):
        assert torch.equal(value, expected)

    # Each row of the batch is pruned and answered as it is alone.
    last = 0
    for row in range(batch):
        attended = inputs["attention_mask"][row].bool()
        videos = 2 if row == 0 else 1
        single = {
            "input_ids": inputs["input_ids"][row, attended][None],
            "attention_mask": inputs["attention_mask"][row, attended][None],
            "pixel_values_videos": inputs["pixel_values_videos"][last : last + videos],
        }
        with make_pruner(method, 0.3)(model) as session:
            single_ids, single_logits = outputs(model, single)
        for record, indices in zip(session.videos, alone[last : last + videos], strict=True):
            assert torch.equal(record.indices, indices)
        tolerance = 1e-4 if dtype == torch.float32 else 0.2
        torch.testing.assert_close(pruned_logits[row, -1], single_logits[0, -1], atol=tolerance, rtol=tolerance)
        if dtype == torch.float32:
            length = min(single_ids.shape[1] - int(attended.sum()), 6)
            assert torch.equal(single_ids[0, -length:], pruned_ids[row, -6:][:length])
        last += videos


def test_pruning_changes_the_answer(models):
    model, inputs = models(), example(1, torch.float32)
    plain, _ = outputs(model, inputs)
    with make_pruner("tango", 0.2)(model):
        assert not torch.equal(outputs(model, inputs)[0], plain)


def test_records(models):
    model = models()
    inputs = prompt([5, *video(), 7, *video()], [5, *video(), 8]) | {"pixel_values_videos": pixels(3)}
    with make_pruner("tango", 0.3)(model) as session:
        assert session.videos == []
        model.generate(**inputs, max_new_tokens=2)
        assert len(session.videos) == 3
        for record in session.videos:
            assert (record.tokens_before, record.frames, record.grid) == (4 * TOKENS, 4, GRID)
            assert record.tokens_after == len(record.indices) < record.tokens_before
            assert sum(record.segment_sizes) == 4
            assert record.indices.device.type == "cpu"
            assert int(record.indices.max()) < record.tokens_before
        for call in (lambda ids: model.generate(ids, max_new_tokens=2), model):
            outputs(model, inputs)
            assert len(session.videos) == 3
            call(torch.tensor([[5, 6]]))
            assert session.videos == []


def test_text_and_images_pass_through(models):
    model = models()
    text = prompt([5, 6, 7], [8, 9, 10, 11])
    image = prompt([5, *[90] * (25 + 25 + 5), 7]) | {
        "pixel_values": torch.randn(1, 2, 3, 40, 40), "image_sizes": torch.tensor([[40, 40]]),
    }  # fmt: skip
    for inputs in (text, image):
        expected = outputs(model, inputs)
        with make_pruner("tango", 0.1)(model) as session:
            actual = outputs(model, inputs)
            assert session.videos == []
        assert torch.equal(actual[0], expected[0])
        assert torch.equal(actual[1], expected[1])


def test_image_and_video_in_one_prompt(models):
    model = models()
    image = [90] * 55
    mixed = prompt([5, *video(), 6, *image, 7], [8, *image, *video(), 9, 9], [4, 4]) | {
        "pixel_values": torch.randn(2, 2, 3, 40, 40), "image_sizes": torch.tensor([[40, 40]] * 2),
        "pixel_values_videos": pixels(2),
    }  # fmt: skip
    expected = outputs(model, mixed)
    with make_pruner("tango", 1.0)(model):
        actual = outputs(model, mixed)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])
    with make_pruner("uniform", 0.25)(model) as session:
        _, logits = outputs(model, mixed)
    assert [record.tokens_after for record in session.videos] == [9, 9]
    assert logits.shape[1] == 1 + 10 + 55 + 2  # row 1: 8, kept tokens and newline, the whole image, 9 9


def test_padding_is_no_image(model):
    """A prompt of embeddings in which padding looks like an image placeholder."""
    model.get_input_embeddings().weight.data[90] = 0
    mixed = prompt([5, *video(), 6, *[90] * 55, 7], [8, *video(), 9]) | {
        "pixel_values": torch.randn(1, 2, 3, 40, 40), "image_sizes": torch.tensor([[40, 40]]),
        "pixel_values_videos": pixels(2),
    }  # fmt: skip
    with torch.no_grad(), make_pruner("uniform", 0.25)(model):
        expected = model(**mixed).logits
        actual = model(inputs_embeds=model.get_input_embeddings()(mixed.pop("input_ids")), **mixed).logits
    assert torch.equal(actual[0], expected[0])
    torch.testing.assert_close(actual[1, -12:], expected[1, -12:])


def test_all_kept_is_encoded_as_the_model_does(models):
    """In one call of the tower, for the sake of the last bit; otherwise video by video."""
    model, inputs, frames = models(), example(3, torch.float32), []
    hook = model.model.vision_tower.register_forward_pre_hook(lambda _, args: frames.append(len(args[0])))
    for ratio, expected in ((1.0, [16]), (0.5, [4, 4, 4, 4])):
        with torch.no_grad(), make_pruner("tango", ratio)(model):
            model(**inputs)
        assert frames == expected
        frames.clear()
    hook.remove()


def test_calls_do_not_affect_each_other(models):
    model = models()
    first = prompt([5, *video(), 7]) | {"pixel_values_videos": pixels(1)}
    second = prompt([9, *video(2), 7, *video(2)]) | {"pixel_values_videos": pixels(2, frames=2, seed=3)}

    def run(*order):
        with make_pruner("tango", 0.3)(model):
            return [outputs(model, inputs) for inputs in order]

    (first_ids, first_logits), (second_ids, second_logits) = run(first, second)
    (second_again, second_logits_again), (first_again, first_logits_again) = run(second, first)
    assert torch.equal(first_ids, first_again)
    assert torch.equal(second_ids, second_again)
    assert torch.equal(first_logits, first_logits_again)
    assert torch.equal(second_logits, second_logits_again)


def test_threads(tmp_path):
    """Two threads on two models, one with the pooling head, one with random selection."""
    cases = []
    for seed, method in ((0, "tango"), (7, "random")):
        folder = tmp_path / method
        folder.mkdir()
        inputs = prompt([5, *video(), 7]) | {"pixel_values_videos": pixels(1, seed=seed)}
        cases.append((build_model(folder, seed=seed), make_pruner(method, 0.3), inputs))

    def run(case, results):
        model, pruner, inputs = case
        for _ in range(3):
            with pruner(model) as session:
                results.append((outputs(model, inputs)[0], session.videos[0].indices))

    expected = []
    for case in cases:
        alone = []
        run(case, alone)
        expected.append(alone)
    together = [[], []]
    threads = [threading.Thread(target=run, args=pair) for pair in zip(cases, together, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for alone, beside in zip(expected, together, strict=True):
        assert len(beside) == 3
        for left, right in zip(alone, beside, strict=True):
            assert torch.equal(left[0], right[0])
            assert torch.equal(left[1], right[1])


def test_attaching_twice(models):
    model = models()
    with make_pruner("uniform", 0.3)(model):
        with pytest.raises(RuntimeError, match=r"\(uniform\) is attached .* already"), make_pruner("topk", 0.3)(model):
            pass
        assert "generate" in vars(model)
    with make_pruner("random", 0.3)(model):
        pass
    assert "generate" not in vars(model)


def test_replacements_of_others_survive(models):
    """accelerate puts `forward` on the instance for device_map, and somebody may have replaced generate()."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

    model, inputs = models(), example(1, torch.float32)
    with make_pruner("tango", 0.3)(model):
        expected = outputs(model, inputs)
    calls = []
    original = model.generate
    model.generate = lambda **kwargs: calls.append(1) or original(**kwargs)
    replacement = model.generate
    add_hook_to_module(model, AlignDevicesHook(execution_device="cpu", io_same_device=True))
    try:
        forward = vars(model)["forward"]
        with make_pruner("tango", 0.3)(model):
            actual = outputs(model, inputs)
        assert vars(model)["generate"] is replacement
        assert vars(model)["forward"] is forward
    finally:
        remove_hook_from_module(model)
        del model.generate
    assert calls == [1]
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


def test_unknown_model():
    with pytest.raises(TypeError, match="no pruning for Linear; supported: " + ", ".join(FAMILIES)), \
            attach(nn.Linear(2, 2), make_pruner("uniform", 0.5)):  # fmt: skip
        pass


def test_modules_for_timing(models):
    model = models()
    family = family_of(model)
    assert family.vision_modules(model) == [model.model.vision_tower]
    assert family.language_model(model) is model.model.language_model
