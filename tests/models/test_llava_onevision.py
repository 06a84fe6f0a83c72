"""What only the LLaVA families have: a pooling head, attention sinks, frames one by one, positions without gaps."""

from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES, TOKENS, Spy, make_pruner
from tiny_llava import VIDEO, build_model, pixels, prompt, video
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from tango.models import attach
from tango.models.llava_onevision import LlavaOnevision
from tango.pruners import Tango


def example(**settings):
    return prompt([5, 6, *video(), 7, 8]) | {"pixel_values_videos": pixels(1)} | settings


def test_only_what_is_asked_for_is_computed(models, monkeypatch):
    model, inputs = models(), example()
    monkeypatch.setattr("tango.models.llava_onevision.load_pooling_head", lambda *_, **__: pytest.fail("not needed"))
    monkeypatch.setattr("tango.models.llava_onevision.from_attention", lambda *_: pytest.fail("not needed"))
    with torch.no_grad(), attach(model, Spy()):
        model(**inputs)
    monkeypatch.undo()
    monkeypatch.setattr("tango.models.llava_onevision.load_pooling_head", lambda *_, **__: pytest.fail("not needed"))
    spy = Spy(wanted=frozenset({"saliency", "key"}), saliency="global_query")
    with torch.no_grad(), attach(model, spy):
        model(**inputs)
    assert spy.calls[0]["saliency"].shape == (4, TOKENS)


def test_attention_sinks(tmp_path):
    """On the 14 x 14 grid the family's sinks reach a pruner that has none of its own; elsewhere nothing does."""
    seen = []

    class Sinks(Tango):
        def prune_tokens(self, video):
            seen.append(self.sink_tokens)
            return super().prune_tokens(video)

    model = build_model(tmp_path, image_size=108, patch_size=4, num_hidden_layers=1)
    inputs = prompt([5, *[VIDEO] * 393]) | {"pixel_values_videos": pixels(1, 2, size=108)}
    for own in (None, (), (3,)):
        pruner = Sinks(0.1, sink_tokens=own)
        with torch.no_grad(), pruner(model):
            model(**inputs)
        assert pruner.sink_tokens == own
    model = build_model(tmp_path)
    with torch.no_grad(), Sinks(0.3)(model):
        model(**example())
    assert seen == [(28, 27, 41, 169, 11, 12), (), (3,), None]
    assert LlavaOnevision.sinks[14, 14] == seen[0]


def test_malformed_pixels(models):
    with torch.no_grad(), make_pruner("uniform", 0.3)(models()):
        with pytest.raises(ValueError, match=r"shape \(4, 3, 40, 40\), not \(videos, frames, C, H, W\)"):
            models()(**example(pixel_values_videos=pixels(1)[0]))
        with pytest.raises(ValueError, match=r"holds 36 .* 1 videos of 4 frames need 37 \(3 x 3 a frame"):
            models()(**(example() | prompt([5, *video()[1:]])))


@pytest.mark.parametrize("name", ["llava_onevision", "llava_video"])
@pytest.mark.parametrize(
    "way",
    [{"do_sample": True, "num_return_sequences": 3}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}],
)
def test_all_kept_is_equal_with_several_videos(name, way):
    """Against the model's own embeddings: from pixels, generate() repeats videos one by one for beams and samples, and
    so gives a prompt of two videos the first one twice. Under a pruner each prompt has its own videos in any mode."""
    family = FAMILIES[name]
    model, video = family.model(), family.video()
    inputs = family.prompt([5, 6, *video, 7, 8], [5, *video, 11, *video, 12]) | family.pixels(3)
    merged, settings = [], {"max_new_tokens": 6, **way}
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: merged.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    torch.manual_seed(3)
    text = {name: value for name, value in inputs.items() if name != "pixel_values_videos"}
    expected = model.generate(**text, inputs_embeds=merged[0], **settings)
    torch.manual_seed(3)
    with make_pruner("tango", 1.0)(model):
        actual = model.generate(**inputs, **settings)
    assert torch.equal(actual, expected)


def test_own_positions(models):
    """Positions that the caller gives are carried on without gaps from the first."""
    model = models()
    inputs = prompt([5, 6, *video(), 7, 8], [5, *video(), 11, *video(), 12])
    inputs |= {"pixel_values_videos": pixels(3), "max_new_tokens": 6, "do_sample": False}
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with make_pruner("tango", 0.3)(model):
        expected = model.generate(**inputs)
        assert torch.equal(model.generate(**inputs | {"position_ids": positions}), expected)
        seen = []
        hook = model.model.language_model.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
        )
        shifted = model.generate(**inputs | {"position_ids": positions + 3})
        hook.remove()
    assert torch.equal(shifted, expected)  # rotary attention only sees differences
    width = seen[0].shape[1]
    assert width < 41
    assert seen[0][1].tolist() == list(range(3, width + 3))  # the longer row
    assert seen[0][0].tolist()[-5:] == list(range(int(seen[0][0].max()) - 4, int(seen[0][0].max()) + 1))
    assert [step[1].tolist() for step in seen[1:]] == [[width + 3 + step] for step in range(len(seen) - 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("side", "width"), [(27, 64), (10, 5), (3, 1), (1, 32)])
def test_pooling_is_the_models_to_the_bit(dtype, side, width):
    """The family pools without the model's copy to channels first; odd and even grids, features and saliency."""
    vision = SimpleNamespace(image_size=side * 14, patch_size=14)
    core = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    patches = torch.randn(3, side**2, width, generator=torch.Generator().manual_seed(side)).to(dtype)
    own = LlavaOnevision.pool(object.__new__(LlavaOnevision), patches)
    assert torch.equal(own, LlavaOnevisionModel.apply_pooling(core, patches))


def test_pooling_of_patches_that_are_no_square():
    """As many frames as make up for it: never patches of one frame in another, as a class token dropped would give."""
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        LlavaOnevision.pool(object.__new__(LlavaOnevision), torch.zeros(9, 10, 4))
