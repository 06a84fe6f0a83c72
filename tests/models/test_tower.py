"""Saliency and frame vectors against SigLIP's own modules and against the formulas, written out slowly."""

import pytest
import torch
from families import Spy
from safetensors.torch import load_file
from tiny_llava import build_model, pixels, prompt, video
from transformers import SiglipVisionConfig, SiglipVisionModel

from tango.models import attach
from tango.models.tower import recorded

BOTH = frozenset({"saliency", "segment_features"})


def signals(model, saliency=None, frames=4, wanted=BOTH):
    """What a pruner is given for one video, and the video's pixels."""
    spy, frame_pixels = Spy(wanted=wanted, saliency=saliency), pixels(1, frames, dtype=model.dtype)
    with torch.no_grad(), attach(model, spy):
        model(**prompt([5, *video(frames), 7]), pixel_values_videos=frame_pixels)
    return spy.calls[0], frame_pixels[0]


def whole_tower(model, folder):
    """SigLIP with its head, in fp32: the model's own tower and the head that lies beside it."""
    config = SiglipVisionConfig(**(model.config.vision_config.to_dict() | {"vision_use_head": True}))
    tower = SiglipVisionModel._from_config(config, attn_implementation="eager")
    head = load_file(folder / "pooling_head.safetensors")
    tensors = {name: value.float() for name, value in model.model.vision_tower.state_dict().items()}
    tower.load_state_dict(tensors | {name.removeprefix("vision_model."): value for name, value in head.items()})
    return tower.eval()


def to_grid(patches):
    """(F, 25) patches to (F, 9) tokens, as LLaVA-OneVision interpolates features."""
    return torch.nn.functional.interpolate(patches.view(-1, 1, 5, 5), size=(3, 3), mode="bilinear").flatten(1)


@torch.no_grad()
def test_pooling_head(tmp_path):
    model = build_model(tmp_path)
    given, frames = signals(model)
    tower = whole_tower(model, tmp_path)
    states = tower.post_layernorm(tower(frames, output_hidden_states=True).hidden_states[-1])
    probe = tower.head.probe.repeat(len(frames), 1, 1)
    _, weights = tower.head.attention(probe, states, states, need_weights=True, average_attn_weights=True)
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, 1))
    torch.testing.assert_close(given["saliency"], to_grid(weights[:, 0]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(given["segment_features"], tower(frames).pooler_output, atol=1e-4, rtol=1e-4)
    features = model.model.get_video_features(frames[None]).pooler_output
    tokens = given["features"].flatten(0, 1)
    torch.testing.assert_close(tokens, features[0, : len(tokens)], atol=1e-6, rtol=1e-6)  # a newline may follow
    assert given["saliency"].std() > 1e-3  # or the comparison would tell little


@torch.no_grad()
def test_global_query(tmp_path):
    model = build_model(tmp_path)
    given, frames = signals(model, "global_query")
    tower = model.model.vision_tower
    layer = tower.encoder.layers[-1]
    states = layer.layer_norm1(tower(frames, output_hidden_states=True).hidden_states[-2])
    expected = torch.zeros(4, 25)
    for frame in range(4):
        queries, keys = layer.self_attn.q_proj(states[frame]), layer.self_attn.k_proj(states[frame])
        for head in range(4):
            own = slice(8 * head, 8 * head + 8)
            query = queries[:, own].mean(0)
            scores = torch.stack([query @ key[own] for key in keys]) / 8**0.5
            expected[frame] += torch.softmax(scores, 0) / 4
    torch.testing.assert_close(given["saliency"], to_grid(expected), atol=1e-5, rtol=1e-4)
    assert given["saliency"].std() > 1e-3
    assert given["segment_features"] is not None  # these still come from the pooling head


@torch.no_grad()
@pytest.mark.parametrize("saliency", ["pooling_head", "global_query"])
def test_half_precision_is_near(tmp_path, saliency):
    expected, _ = signals(build_model(tmp_path), saliency)
    for attention in ("sdpa", "eager"):
        given, _ = signals(build_model(tmp_path, torch.bfloat16, attention), saliency)
        assert given["saliency"].dtype == torch.float32
        torch.testing.assert_close(given["saliency"], expected["saliency"], atol=0.01, rtol=0.05)


def test_signals_are_fp32_under_autocast(models):
    expected, _ = signals(models())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        given, _ = signals(models())
    for name in BOTH:
        assert given[name].dtype == torch.float32
        torch.testing.assert_close(given[name], expected[name], atol=0.1, rtol=0.1)


@torch.no_grad()
def test_feature_layers_of_the_caller(models):
    """The features follow vision_feature_layer; the saliency stays that of the last layer."""
    model = models()
    frames = pixels(1)
    spies = [Spy(wanted=frozenset({"saliency"})) for _ in range(2)]
    for spy, layer in zip(spies, (-1, -2), strict=True):
        with attach(model, spy):
            model(**prompt([5, *video(), 7]), pixel_values_videos=frames, vision_feature_layer=layer)
    expected = model.model.get_video_features(frames, vision_feature_layer=-2).pooler_output[0]
    tokens = spies[1].calls[0]["features"].flatten(0, 1)
    torch.testing.assert_close(tokens, expected[: len(tokens)])  # a newline may follow
    torch.testing.assert_close(spies[0].calls[0]["saliency"], spies[1].calls[0]["saliency"])


@torch.no_grad()
def test_recorded(models):
    """Outputs of modules are transformers' hidden states, and nothing stays behind, also when a call fails."""
    tower, frames = models().model.vision_tower, pixels(1)[0]
    expected = tower(frames, output_hidden_states=True).hidden_states
    modules = {0: tower.embeddings, 1: tower.encoder.layers[0], 2: tower.encoder.layers[1]}
    hooks = [len(module._forward_hooks) for module in modules.values()]  # transformers leaves some of its own
    with recorded(modules) as states:
        tower(frames)
    with pytest.raises(RuntimeError), recorded(modules):
        tower(frames[:, :, :8])
    assert [len(module._forward_hooks) for module in modules.values()] == hooks
    assert len(expected) == len(states) == 3
    for index, state in states.items():
        assert torch.equal(state, expected[index])
