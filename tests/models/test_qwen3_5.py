"""Qwen3.5: a decoder of linear and full attention, for which a dropped token must never have been there."""

import math

import pytest
import torch
from families import FAMILIES, Qwen35Moe, Spy, make_pruner, outputs
from test_qwen import GRIDS, given, several, slow_saliency
from test_qwen_positions import decoder_positions
from tiny_qwen import END, IMAGE, START, VIDEO, build_model, image_inputs
from torch.nn import functional as F

from tango.models import attach
from tango.pruners import REGISTRY, HoliTom, Tango

FAMILY = FAMILIES["qwen3_5"]
KEPT = [3, 11, 20, 26]


def positions_by_the_rule(ids, grids):
    """Of one row: text counts on; a frame that starts at p has time p, rows p + y and columns p + x, and what follows
    starts at p + max(rows, columns)."""
    frames = [(h // 2, w // 2) for t, h, w in grids for _ in range(t)]
    place, at, out = 0, 0, []
    while at < len(ids):
        if ids[at] in (IMAGE, VIDEO):
            height, width = frames.pop(0)
            out += [(place, place + y, place + x) for y in range(height) for x in range(width)]
            place, at = place + max(height, width), at + height * width
        else:
            out.append((place,) * 3)
            place, at = place + 1, at + 1
    return torch.tensor(out).T, place


def example():
    """A prompt with an image between two videos, the grids in the order of the prompt, the columns that stay."""
    first, second = FAMILY.video(), FAMILY.video()
    row = [5, *first, 6, START, *[IMAGE] * 6, END, 7, *second, 8, 9]
    inputs = FAMILY.prompt(row) | image_inputs((4, 6)) | FAMILY.pixels(2)
    visual = [column for column, token in enumerate(row) if token == VIDEO]
    kept = {visual[36 * video + index] for video in (0, 1) for index in KEPT}
    columns = [column for column, token in enumerate(row) if token != VIDEO or column in kept]
    return row, inputs, [(4, 6, 6), (1, 4, 6), (4, 6, 6)], columns


def test_positions():
    model, (row, inputs, grids, columns) = FAMILY.model(), example()
    expected, after = positions_by_the_rule(row, grids)
    settings = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    with attach(model, Spy(KEPT)):
        prompt, *later = decoder_positions(model, lambda: model.generate(**inputs, **settings))
    assert torch.equal(prompt[:, 0], expected[:, columns])
    for step, positions in enumerate(later):
        assert positions.unique().tolist() == [after + step]


@pytest.mark.parametrize("kind", ["qwen3_5", "qwen3_5_moe"])
@torch.no_grad()
def test_dropped_tokens_were_never_there(kind, tmp_path):
    """Logits are those of a decoder to which only the columns that stay were ever given; greedy answers too."""
    model, (row, inputs, grids, columns) = build_model(tmp_path, kind=kind, layers=4), example()
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    for token, name, grid in (
        (VIDEO, "pixel_values_videos", "video_grid_thw"),
        (IMAGE, "pixel_values", "image_grid_thw"),
    ):
        features = torch.cat(model.model.get_video_features(inputs[name], inputs[grid], return_dict=True).pooler_output)
        embeds[0, inputs["input_ids"][0] == token] = features
    positions, after = positions_by_the_rule(row, grids)
    shorter, positions = embeds[:, columns], positions[:, None, columns]
    with attach(model, Spy(KEPT)):
        found = model(**inputs).logits
        answer = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False)[0, len(row) :]
        uncached = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False, use_cache=False)
    assert torch.equal(uncached[0, len(row) :], answer)
    assert found.shape[1] == len(columns) < len(row)
    for step, token in enumerate(answer.tolist()):
        hidden = model.model.language_model(inputs_embeds=shorter, position_ids=positions, use_cache=False)
        logits = model.lm_head(hidden.last_hidden_state)
        if step == 0:
            torch.testing.assert_close(found, logits, atol=1e-5, rtol=1e-4)
        assert int(logits[0, -1, 2:].argmax()) + 2 == token
        shorter = torch.cat((shorter, model.get_input_embeddings()(torch.tensor([[token]]))), 1)
        positions = torch.cat((positions, torch.full((3, 1, 1), after + step)), 2)


def slow_state(layer, hidden):
    """The state (heads, d, d) after tokens (n, D), one after the other, by arXiv 2412.06464: S is decayed, what it
    recalls for the key is taken from the value, and the rest is written at the key."""
    mixed = layer.in_proj_qkv(hidden)
    weight = layer.conv1d.weight[:, 0]
    width = weight.shape[1]
    state = torch.zeros(layer.num_v_heads, layer.head_k_dim, layer.head_v_dim)
    for step in range(len(hidden)):
        seen = [weight[:, width - 1 - back] * mixed[step - back] for back in range(min(width, step + 1))]
        convolved = F.silu(sum(seen))
        _, keys, values = convolved.split([layer.key_dim, layer.key_dim, layer.value_dim])
        beta = torch.sigmoid(layer.in_proj_b(hidden[step]))
        decay = torch.exp(-layer.A_log.exp() * F.softplus(layer.in_proj_a(hidden[step]) + layer.dt_bias))
        for head in range(layer.num_v_heads):
            key = keys.view(layer.num_k_heads, -1)[head * layer.num_k_heads // layer.num_v_heads]
            key = key / math.sqrt(float(key @ key) + 1e-6)
            own = state[head] * decay[head]
            value = values.view(layer.num_v_heads, -1)[head]
            state[head] = own + torch.outer(key, beta[head] * (value - key @ own))
    return state


@torch.no_grad()
def test_the_state_knows_kept_tokens_alone():
    """In a batch whose rows keep different numbers of tokens: padding leaves no trace in a state either."""
    model, layer, seen = FAMILY.model(), FAMILY.model().model.language_model.layers[0].linear_attn, []
    rows = [5, *FAMILY.video(), 7, *FAMILY.video(), 8], [5, 6, *FAMILY.video(), 9]
    inputs = FAMILY.prompt(*rows) | FAMILY.pixels(3)
    hook = layer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
    )
    with attach(model, Spy(KEPT)):
        output = model(**inputs, use_cache=True)
    hook.remove()
    states = output.past_key_values.layers[0].recurrent_states
    states = states[0] if isinstance(states, (list, tuple, dict)) else states
    for row, written in enumerate(rows):
        own = seen[0][row, -len(FAMILY.columns(written, KEPT)) :]
        torch.testing.assert_close(states[row].float(), slow_state(layer, own), atol=1e-4, rtol=1e-3)


def test_saliency(tmp_path):
    model, inputs = FAMILY.build(tmp_path), several(FAMILY)
    pixels = inputs["pixel_values_videos"].split([math.prod(grid) for grid in GRIDS])
    for call, packed, grid in zip(given(model, inputs), pixels, GRIDS, strict=True):
        expected = slow_saliency(model, packed, grid)
        torch.testing.assert_close(call["saliency"], expected, atol=1e-5, rtol=1e-4)
        assert expected.shape[1] == 1 or expected.std() > 1e-3


@pytest.mark.parametrize("method", REGISTRY)
def test_experts(method):
    """Qwen3_5MoeForConditionalGeneration: all kept as without a pruner, to the bit; pruned by every method."""
    family = Qwen35Moe()
    model = MODELS.setdefault("moe", family.model())
    inputs = family.prompt([5, *family.video(), 8], [6, 6, *family.video(), 9]) | family.pixels(2)
    if method == "fastv":
        with pytest.raises(ValueError, match=r"no pruning inside Qwen3_5MoeTextModel: .* linear attention"):
            make_pruner(method, 0.3)(model).__enter__()
        return
    expected = outputs(model, inputs, 3)
    with make_pruner(method, 1.0)(model):
        assert all(map(torch.equal, outputs(model, inputs, 3), expected))
    with make_pruner(method, 0.3)(model) as session:
        assert outputs(model, inputs, 3)[1].shape[1] < expected[1].shape[1]
    assert session.videos and all(record.tokens_after < record.tokens_before for record in session.videos)


MODELS = {}


@pytest.mark.parametrize("pruner", [Tango(pruned_layer=1), HoliTom(pruned_layer=1)])
def test_pruning_inside_is_refused(pruner):
    with pytest.raises(ValueError, match=r"no pruning inside Qwen3_5TextModel: .* or unset pruned_layer"):
        pruner(FAMILY.model()).__enter__()
