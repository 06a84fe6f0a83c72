"""What methods besides Tango ask of the model side: attention received, keys, own positions, an index twice."""

import pytest
import torch
from families import FAMILIES, TOKENS, Spy
from torch.nn import functional as F
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from tango.models import attach
from tango.pruners import Pruned


class Keen(Spy):
    """A Spy that is given keys and frame vectors, too."""

    wanted = frozenset({"saliency", "keys", "frame_vectors"})

    def __init__(self, *args, **settings):
        super().__init__(*args, wanted=self.wanted, **settings)


def given(family, saliency="received_attention", attention="sdpa", dtype=torch.float32):
    """What a pruner is given for one video of 4 frames, the model, and the video."""
    model, spy, inputs = family.model(dtype, attention), Keen(saliency=saliency), family.pixels(1, dtype=dtype)
    with torch.no_grad(), attach(model, spy):
        model(**family.prompt([5, *family.video(), 7]), **inputs)
    return spy.calls[0], model, inputs


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava_onevision", "llava_video"])
def test_llava_signals(name):
    """Attention received and keys of the last layer, from transformers' own maps and projections."""
    family = FAMILIES[name]
    signals, _, inputs = given(family)
    tower = family.model(attention="eager").model.vision_tower
    outputs = tower(inputs["pixel_values_videos"][0], output_hidden_states=True, output_attentions=True)
    received = outputs.attentions[-1].mean((1, 2))
    torch.testing.assert_close(received.sum(-1), torch.ones(4))
    layer = tower.encoder.layers[-1]
    keys = layer.self_attn.k_proj(layer.layer_norm1(outputs.hidden_states[-2]))
    keys = keys.unflatten(-1, (layer.self_attn.num_heads, -1)).mean(2)
    side = int(received.shape[1] ** 0.5)

    def to_grid(patches):
        patches = patches.transpose(1, 2).unflatten(2, (side, side))
        if name == "llava_video":
            return F.avg_pool2d(patches, 2).flatten(2).transpose(1, 2)
        return F.interpolate(patches, size=(3, 3), mode="bilinear").flatten(2).transpose(1, 2)

    torch.testing.assert_close(signals["saliency"], to_grid(received[..., None])[..., 0], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(signals["keys"], to_grid(keys), atol=1e-5, rtol=1e-4)
    assert signals["saliency"].std() > 1e-3 and signals["keys"].shape[-1] == tower.config.hidden_size // 4
    assert signals["frame_vectors"].shape == (4, tower.config.hidden_size)


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_qwen_signals(name):
    """The same of the last block, frame by frame with whole maps; tokens are told by what leaves the merger."""
    family, seen = FAMILIES[name], {}
    visual = family.model().model.visual
    block, side = visual.blocks[-1], 36  # patches of a frame
    hooks = [
        block.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs, x=args[0]), with_kwargs=True),
        visual.merger.register_forward_hook(lambda _, args, output: seen.update(merged=output)),
    ]
    signals, _, _ = given(family)
    for hook in hooks:
        hook.remove()
    heads = block.attn.num_heads
    query, key, _ = block.attn.qkv(block.norm1(seen["x"])).view(4 * side, 3, heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, *seen["position_embeddings"])
    saliency, keys = torch.zeros(4, 9), torch.zeros(4, 9, query.shape[-1])
    for frame in range(4):
        own = slice(frame * side, (frame + 1) * side)
        received = torch.zeros(side)
        for head in range(heads):
            scores = query[own, head] @ key[own, head].T / query.shape[-1] ** 0.5
            received += scores.softmax(1).mean(0) / heads
        merged = seen["merged"][9 * frame : 9 * frame + 9]
        for token in range(9):
            place = torch.cdist(merged[token][None], signals["features"][frame]).argmin()
            group = slice(4 * token, 4 * token + 4)
            saliency[frame, place] = received[group].mean()
            keys[frame, place] = key[own][group].mean((0, 1))
    torch.testing.assert_close(signals["saliency"], saliency, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(signals["keys"], keys, atol=1e-5, rtol=1e-4)
    assert signals["saliency"].std() > 1e-4
    assert signals["frame_vectors"] is None  # methods take the mean token


@torch.no_grad()
@pytest.mark.parametrize("saliency", ["received_attention", None])
def test_signals_in_half_precision_are_near(family, saliency):
    expected, _, _ = given(family, saliency)
    for attention in ("sdpa", "eager"):
        signals, _, _ = given(family, saliency, attention, torch.bfloat16)
        for name in ("saliency", "keys"):
            assert signals[name].dtype == torch.float32
            torch.testing.assert_close(signals[name], expected[name], atol=0.05, rtol=0.1)


def by_hand(model, pixels, ids, indices, video=2, new=5):
    """Prefill logits and greedy ids of a LLaVA-OneVision prompt whose tokens keep the positions they had."""
    features = model.model.get_video_features(pixels).pooler_output[0]
    text, after = model.get_input_embeddings()(ids), video + 4 * TOKENS + 1
    embeds = torch.cat((text[:video], features[indices], model.model.image_newline[None], text[after:]))[None]
    columns = [*range(video), *(video + index for index in indices), *range(after - 1, len(ids))]
    answer = []
    for step in range(new):
        positions = torch.tensor([columns + list(range(len(ids), len(ids) + step))])
        mask = torch.ones_like(positions)
        logits = model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=0
        ).logits
        if step == 0:
            prefill = logits
        answer.append(int(logits[0, -1].argmax()))
        embeds = torch.cat((embeds, model.get_input_embeddings()(torch.tensor([[answer[-1]]]))), 1)
    return prefill, answer


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_positions_with_gaps(attention):
    """LLaVA numbers without gaps; a method may keep positions, and then generation goes on from the whole prompt."""
    family = FAMILIES["llava_onevision"]
    model, indices = family.model(attention=attention), [2, 11, 30]
    row = [5, 6, *family.video(), 7, 8, 9]
    inputs = family.prompt(row) | family.pixels(1)
    logits, answer = by_hand(model, inputs["pixel_values_videos"], inputs["input_ids"][0], indices)
    with attach(model, Spy(indices)):
        closed = model(**inputs).logits
    assert (closed - logits).abs().max() > 1e-3  # positions matter here
    with attach(model, Spy(indices, keep_positions=True)):
        torch.testing.assert_close(model(**inputs).logits, logits, atol=1e-4, rtol=1e-4)
        without_mask = {name: value for name, value in inputs.items() if name != "attention_mask"}
        for more in ({}, {"use_cache": False}):
            torch.testing.assert_close(model(**without_mask, **more).logits, logits, atol=1e-4, rtol=1e-4)
            ids = model.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=-1, **more)
            assert ids[0, len(row) :].tolist() == answer
        far = torch.arange(len(row))[None] + 3  # the caller's own positions
        torch.testing.assert_close(model(**inputs, position_ids=far).logits, logits, atol=1e-3, rtol=1e-3)
        longer = [[6, *family.video(), 7, *family.video(), 8], row]
        together = family.prompt(*longer) | family.pixels(3)
        together["pixel_values_videos"][2] = inputs["pixel_values_videos"][0]
        ids = model.generate(**together, max_new_tokens=5, do_sample=False, eos_token_id=-1)
        assert ids[1, -5:].tolist() == answer
        beams = model.generate(**inputs, max_new_tokens=5, do_sample=False, num_beams=2, eos_token_id=-1)
        again = model.generate(**inputs, max_new_tokens=5, do_sample=False, num_beams=2, eos_token_id=-1,
                               use_cache=False)  # fmt: skip
        assert torch.equal(beams, again)


class Twice(Spy):
    """Two rows at the place of token 5, the second of them another vector."""

    def prune_tokens(self, video):
        pruned = super().prune_tokens(video)
        values = pruned.features.clone()
        values[2] = values[1] * 2 + 1
        return Pruned(pruned.indices, values, pruned.segment_sizes)


@torch.no_grad()
def test_an_index_twice():
    """Both rows stand in the prompt, one after the other."""
    family = FAMILIES["llava_onevision"]
    model, inputs = family.model(), family.prompt([5, 6, *family.video(), 7, 8]) | family.pixels(1)
    features = model.model.get_video_features(inputs["pixel_values_videos"]).pooler_output[0]
    text = model.get_input_embeddings()(inputs["input_ids"][0])
    kept = features[[0, 5, 5, 17]]
    kept[2] = kept[1] * 2 + 1
    embeds = torch.cat((text[:2], kept, model.model.image_newline[None], text[-2:]))[None]
    expected = model(inputs_embeds=embeds, attention_mask=torch.ones(1, 9, dtype=torch.long)).logits
    with attach(model, Twice([0, 5, 5, 17])) as session:
        torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-5, rtol=1e-5)
    assert session.videos[0].tokens_after == 4


@torch.no_grad()
def test_an_index_twice_in_any_family(family):
    """It takes part in a batch and in generation, at the position that its index has."""
    model, video = family.model(), family.video()
    inputs = family.prompt([5, *video, 7, 8], [6, 6, *video, 7, *video]) | family.pixels(3)
    with attach(model, Twice([0, 5, 5, 17])):
        together = model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=-1)
        alone = model.generate(
            **family.prompt([5, *video, 7, 8]), **family.part(inputs, 0, 1), max_new_tokens=4, do_sample=False,
            eos_token_id=-1,
        )  # fmt: skip
        logits = model(**family.prompt([5, *video, 7, 8]), **family.part(inputs, 0, 1)).logits
    assert torch.equal(together[0, -4:], alone[0, -4:])
    expected = len(family.columns([5, *video, 7, 8], [0, 5, 17])) + 1
    assert logits.shape[1] == expected
