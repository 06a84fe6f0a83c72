"""Attaching and leaving: no trace, nothing shared, and with everything kept the same outputs to the bit."""

import contextlib
import gc
import threading
import tomllib
from pathlib import Path

import pytest
import torch
import transformers
from families import FAMILIES as TINY
from families import GRID, TOKENS, count_frames, make_pruner, outputs
from tiny_llava import pixels, prompt, video
from torch import nn

from tango.models import FAMILIES, TRANSFORMERS, attach, family_of
from tango.pruners import REGISTRY, Uniform

SETTINGS = [(d, a, b) for d in (torch.float32, torch.bfloat16) for a in ("sdpa", "eager") for b in (1, 3)]
# Tango in all of them; what dtype, kernel and batch do to the seam does not depend on the method, so others in two.
MATRIX = [
    pytest.param(dtype, attention, batch, method, id=f"{str(dtype)[6:]}-{attention}-batch{batch}-{method}")
    for method in REGISTRY
    for dtype, attention, batch in (SETTINGS if method == "tango" else (SETTINGS[1], SETTINGS[6]))
]


def rows(family, batch):
    """A prompt with two videos, or prompts of different length with two, one and one."""
    video = family.video()
    return [[5, 6, *video, 7, *video, 8, 9], [5, *video, 11, 12], [6, 6, 6, *video, 13]][:batch]


def example(family, batch=1, dtype=torch.float32):
    return family.prompt(*rows(family, batch)) | family.pixels(batch + 1, dtype=dtype)


def state(model):
    """All that attaching could change: instance attributes and hooks."""
    core = vars(model.model)
    return (
        {**vars(model)},
        core.get("rope_deltas"),
        [(dict(module._forward_hooks), dict(module._forward_pre_hooks)) for module in model.modules()],
    )


@pytest.mark.parametrize(("dtype", "attention", "batch", "method"), MATRIX)
def test_matrix(family, dtype, attention, batch, method):
    model, inputs = family.model(dtype, attention), example(family, batch, dtype)
    if method == "fastv" and not family.inside:
        with pytest.raises(ValueError, match=r"no pruning inside .*; take a method that prunes before it"):
            make_pruner(method, 0.3)(model).__enter__()
        return
    width, new = inputs["input_ids"].shape[1], 4
    ids, logits = outputs(model, inputs, new)
    before = state(model)

    with make_pruner(method, 1.0)(model) as session:
        kept_ids, kept_logits = outputs(model, inputs, new)
        assert [record.tokens_after for record in session.videos] == [4 * TOKENS] * (batch + 1)
    assert torch.equal(kept_ids, ids)
    assert torch.equal(kept_logits, logits)

    def fail():
        with make_pruner(method, 0.3)(model) as session:
            found.extend(outputs(model, inputs, new))
            alone.extend(record.indices for record in session.videos)
            raise KeyError("the body fails")

    found, alone = [], []
    with pytest.raises(KeyError):
        fail()
    pruned_ids, pruned_logits = found
    assert torch.equal(pruned_ids[:, :width], inputs["input_ids"])
    assert pruned_logits.shape[1] < logits.shape[1]
    assert state(model) == before
    for value, expected in zip(outputs(model, inputs, new), (ids, logits), strict=True):
        assert torch.equal(value, expected)

    # Each row of the batch is pruned and answered as it is alone.
    last = 0
    for row, written in enumerate(rows(family, batch) if batch > 1 else []):
        videos = 2 if row == 0 else 1
        single = family.prompt(written) | family.part(inputs, last, videos)
        with make_pruner(method, 0.3)(model) as session:
            single_ids, single_logits = outputs(model, single, new)
        for record, indices in zip(session.videos, alone[last : last + videos], strict=True):
            assert torch.equal(record.indices, indices)
        tolerance = 1e-4 if dtype == torch.float32 else 0.2
        torch.testing.assert_close(pruned_logits[row, -1], single_logits[0, -1], atol=tolerance, rtol=tolerance)
        if dtype == torch.float32:
            length = single_ids.shape[1] - len(written)
            assert torch.equal(single_ids[0, len(written) :], pruned_ids[row, width : width + length])
        last += videos


def test_pruning_changes_the_answer(family):
    model, inputs = family.model(), example(family)
    plain, logits = outputs(model, inputs)
    with make_pruner("tango", 0.2)(model):
        pruned, pruned_logits = outputs(model, inputs)
    assert not torch.equal(pruned, plain)
    assert (pruned_logits[0, -1] - logits[0, -1]).abs().max() > 0.01


def test_records(family):
    model, video = family.model(), family.video()
    inputs = family.prompt([5, *video, 7, *video], [5, *video, 8]) | family.pixels(3)
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
            outputs(model, inputs, 2)
            assert len(session.videos) == 3
            call(torch.tensor([[5, 6]]))
            assert session.videos == []


def test_text_and_images_pass_through(family):
    model = family.model()
    text = family.prompt([5, 6, 7], [8, 9, 10, 11])
    image = family.prompt([5, *family.image, 7]) | family.images()
    for inputs in (text, image):
        expected = outputs(model, inputs)
        with make_pruner("tango", 0.1)(model) as session:
            outputs(model, example(family), 1)  # which leaves nothing behind
            actual = outputs(model, inputs)
            assert session.videos == []
        assert torch.equal(actual[0], expected[0])
        assert torch.equal(actual[1], expected[1])


def test_image_and_video_in_one_prompt(family):
    model = family.model()
    video, image = family.video(), family.image
    written = [5, *video, 6, *image, 7], [8, *image, *video, 9, 9], [4, 4]
    mixed = family.prompt(*written) | family.visuals("viiv")
    expected = outputs(model, mixed)
    with make_pruner("tango", 1.0)(model):
        actual = outputs(model, mixed)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])
    with make_pruner("uniform", 0.25)(model) as session:
        _, logits = outputs(model, mixed)
    assert [record.tokens_after for record in session.videos] == [9, 9]
    columns = family.columns(written[1], session.videos[1].indices.tolist())
    assert logits.shape[1] == len(columns) > len(image) + 9  # the whole image is there


def test_padding_is_no_image(family, tmp_path):
    """A prompt of embeddings in which padding looks like an image placeholder."""
    model = family.build(tmp_path)
    model.get_input_embeddings().weight.data[90] = 0
    model.get_input_embeddings().weight.data[0] = 0
    rows = [5, *family.video(), 6, *family.image, 7], [8, *family.video(), 9]
    mixed = family.prompt(*rows) | family.visuals("viv")
    mixed.pop("mm_token_type_ids", None)  # a model with M-RoPE needs ids to use it
    numbered = "transformers" if family.told is None else "trained"  # Qwen3-Omni's are of embeddings too
    with torch.no_grad(), make_pruner("uniform", 0.25, positions=numbered)(model) as session:
        expected = model(**mixed).logits
        actual = model(inputs_embeds=model.get_input_embeddings()(mixed.pop("input_ids")), **mixed).logits
    own = len(family.columns(rows[1], session.videos[1].indices.tolist()))
    assert torch.equal(actual[0], expected[0])
    torch.testing.assert_close(actual[1, -own:], expected[1, -own:])


def test_all_kept_is_encoded_as_the_model_does(family):
    """In one call of the tower, for the sake of the last bit; otherwise video by video."""
    model, inputs, frames = family.model(), example(family, 3), []
    hook = count_frames(family, model, frames)
    for ratio, expected in ((1.0, [16]), (0.5, [4, 4, 4, 4])):
        with torch.no_grad(), make_pruner("tango", ratio)(model):
            model(**inputs)
        assert frames == expected
        frames.clear()
    hook.remove()


def test_calls_do_not_affect_each_other(family):
    model = family.model()
    first = family.prompt([5, *family.video(), 7]) | family.pixels(1)
    second = family.prompt([9, *family.video(2), 7, *family.video(2)]) | family.pixels(2, frames=2, seed=3)

    def run(*order):
        with make_pruner("tango", 0.3)(model):
            return [outputs(model, inputs) for inputs in order]

    (first_ids, first_logits), (second_ids, second_logits) = run(first, second)
    (second_again, second_logits_again), (first_again, first_logits_again) = run(second, first)
    assert torch.equal(first_ids, first_again)
    assert torch.equal(second_ids, second_again)
    assert torch.equal(first_logits, first_logits_again)
    assert torch.equal(second_logits, second_logits_again)


def test_failed_calls_do_not_affect_later_ones(family):
    """A call that breaks off after pruning leaves nothing for the next prompt."""
    model, inputs = family.model(), example(family)
    text = family.prompt([5, 6, 7])
    expected = outputs(model, text)
    decoder = family_of(model).language_model(model)
    with make_pruner("tango", 0.3)(model):
        pruned = outputs(model, inputs)
        for call in (model, lambda **kwargs: model.generate(**kwargs, max_new_tokens=2)):
            hook = decoder.register_forward_pre_hook(lambda *_: [][0], prepend=True)
            with torch.no_grad(), pytest.raises(IndexError):
                call(**inputs)
            hook.remove()
            for actual, whole in ((outputs(model, text), expected), (outputs(model, inputs), pruned)):
                assert torch.equal(actual[0], whole[0])
                assert torch.equal(actual[1], whole[1])


def test_threads(family, tmp_path):
    """Two threads on two models, one with Tango, one with random selection."""
    cases = []
    for seed, method in ((0, "tango"), (7, "random")):
        folder = tmp_path / method
        folder.mkdir()
        inputs = family.prompt([5, *family.video(), 7]) | family.pixels(1, seed=seed)
        cases.append((family.build(folder, seed=seed), make_pruner(method, 0.3), inputs))

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


def test_attaching_twice(family):
    model = family.model()
    with make_pruner("uniform", 0.3)(model):
        with pytest.raises(RuntimeError, match=r"\(uniform\) is attached .* already"), make_pruner("topk", 0.3)(model):
            pass
        assert "generate" in vars(model)
    with make_pruner("random", 0.3)(model):
        pass
    assert "generate" not in vars(model)


def test_what_is_never_entered_says_that_it_pruned_nothing(models):
    model = models()
    told = r"Uniform was given a model and pruned nothing: write: with Uniform\(..\)\(model\): model.generate\(..\)"
    with pytest.warns(RuntimeWarning, match=told) as said:
        Uniform()(model)
    assert said[0].filename == __file__
    context = attach(model, Uniform())
    with pytest.warns(RuntimeWarning, match="Uniform"):
        del context


def test_what_is_entered_says_nothing(family, recwarn):
    model = family.model()
    with Uniform()(model):
        pass
    with contextlib.suppress(TypeError), Uniform()(nn.Linear(2, 2)):  # a model of no family
        pass
    with contextlib.suppress(RuntimeError), Uniform()(model), Uniform()(model):  # attached already
        pass
    gc.collect()
    assert not [one for one in recwarn if "pruned nothing" in str(one.message)]


def test_replacements_of_others_survive(family):
    """accelerate puts `forward` on the instance for device_map, and somebody may have replaced generate()."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

    model, inputs = family.model(), example(family)
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
        remove_hook_from_module(model)  # leaves the class's forward() on the instance
        del model.generate, model.forward
    assert calls == [1]
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


def test_unknown_model():
    with pytest.raises(TypeError, match="no pruning for Linear; supported: " + ", ".join(FAMILIES)), \
            attach(nn.Linear(2, 2), make_pruner("uniform", 0.5)):  # fmt: skip
        pass


@pytest.mark.parametrize("other, name", [("tango", "str"), (Uniform, ".*Uniform"), (nn.Linear(2, 2), "Linear$")])
def test_what_is_no_pruner(family, other, name):
    with pytest.raises(TypeError, match=rf"needs a pruner, as Tango\(retention_ratio=0.1\), not {name}"):
        attach(family.model(), other).__enter__()


def test_every_family_is_tested():
    assert {type(tiny.model()).__name__ for tiny in TINY.values()} <= set(FAMILIES)
    assert {FAMILIES[type(tiny.model()).__name__] for tiny in TINY.values()} == set(FAMILIES.values())


def test_modules_for_timing(family):
    model = family.model()
    module = family_of(model)
    assert module.vision_modules(model) == [family.tower(model)]
    assert module.language_model(model) is model.get_decoder()


def test_only_tested_versions_of_transformers(models, monkeypatch):
    for version in ("5.16.2", "5.25.0.dev0", "6.0.0"):
        monkeypatch.setattr(transformers, "__version__", version)
        message = f"transformers {version} is installed, and pruning is tested with versions from 5.17 to below 5.25"
        with pytest.raises(ImportError, match=message), make_pruner("uniform", 0.3)(models()):
            pass
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["dependencies"]
    assert "transformers>={},<{}".format(*TRANSFORMERS) in declared


def test_videos_that_are_encoded_already_are_refused(models):
    model = models()
    inputs = prompt([5, *video(), 7]) | {"pixel_values_videos": pixels(1)}
    with torch.no_grad(), make_pruner("uniform", 0.3)(model):
        for encoded, left_out in (({"video": object()}, "pixel_values_videos"), ({"image": object()}, "")):
            call = {name: value for name, value in inputs.items() if name != left_out}
            for run in (model, model.generate):
                with pytest.raises(ValueError, match="mm_encoder_outputs does not work while a pruner is attached"):
                    run(**call, mm_encoder_outputs=encoded)
