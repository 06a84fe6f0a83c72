"""Generation with a pruner attached, after the behaviours that transformers checks of every model that generates.

Its source distribution holds no such tests, so these are our own. Kept whole, a model must generate what it generates
with nothing attached; pruned, the same call in another way must give the same tokens.
"""

import inspect

import pytest
import torch
from attached import MODES, PEERS, example, modes
from families import IMAGE, VIDEO
from transformers import DynamicCache

from tango.models import attach, family_of

NEW = 5
FIXED = {"max_new_tokens": NEW, "min_new_tokens": NEW, "suppress_tokens": [IMAGE, VIDEO]}
BEHAVIOURS = {
    "greedy": {"do_sample": False},
    "sample": {"do_sample": True},
    "beam search": {"do_sample": False, "num_beams": 2},
    "beam sample": {"do_sample": True, "num_beams": 2},
    "several sequences": {"do_sample": True, "num_return_sequences": 2},
    "without a cache": {"do_sample": False, "use_cache": False},
    "static cache": {"do_sample": False, "cache_implementation": "static"},
}


@pytest.fixture(params=PEERS)
def family(request):
    return PEERS[request.param]


@pytest.fixture(params=MODES)
def mode(request, family):
    if request.param not in modes(family):
        pytest.skip("pruning inside layers of linear attention is refused")
    return request.param


def generate(model, pruner, inputs, **settings):
    torch.manual_seed(0)
    if pruner is None:
        return model.generate(**inputs, **FIXED | settings)
    with attach(model, pruner):
        return model.generate(**inputs, **FIXED | settings)


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_sequences(family, mode, behaviour):
    """Prompt and new tokens; in any cache the same; kept whole, those of the model with nothing attached."""
    model, inputs, settings = family.model(), example(family), BEHAVIOURS[behaviour]
    found = generate(model, MODES[mode], inputs, **settings)
    width = inputs["input_ids"].shape[1]
    assert found.shape == (3 * settings.get("num_return_sequences", 1), width + NEW)
    assert torch.equal(found[:, :width], inputs["input_ids"].repeat_interleave(len(found) // 3, 0))
    if mode == "whole":
        assert torch.equal(found, generate(model, None, inputs, **settings))
    if settings["do_sample"] is False and "num_beams" not in settings:
        assert torch.equal(found, generate(model, MODES[mode], inputs, do_sample=False))


@pytest.mark.parametrize("beams", [1, 2])
def test_dict_outputs(family, mode, beams):
    """Scores and logits of each step, and past_key_values; attentions and hidden states of each layer and step."""
    model = family.model(attention="eager")
    inputs = example(family)
    wanted = dict.fromkeys(("output_scores", "output_logits", "output_attentions", "output_hidden_states"), True)
    out = generate(model, MODES[mode], inputs, do_sample=False, num_beams=beams, return_dict_in_generate=True, **wanted)
    decoder = family_of(model).language_model(model)
    attending = [index for index, layer in enumerate(decoder.layers) if hasattr(layer, "self_attn")]
    assert len(out.scores) == len(out.logits) == len(out.attentions) == len(out.hidden_states) == NEW
    assert out.past_key_values is not None
    assert all(len(step) == len(attending) for step in out.attentions)
    assert all(len(step) == len(decoder.layers) + 1 for step in out.hidden_states)
    for step in out.hidden_states[1:]:
        assert all(states.shape[:2] == (3 * beams, 1) for states in step)
    plain = generate(model, MODES[mode], inputs, do_sample=False, num_beams=beams)
    assert torch.equal(out.sequences, plain)
    heads, size = model.config.text_config.num_key_value_heads, decoder.layers[attending[0]].self_attn.head_dim
    for layer, states in ((attending[0], 0), (attending[-1], -1)):
        keys, length = out.past_key_values.layers[layer].keys, out.hidden_states[0][states].shape[1] + NEW - 1
        assert keys.shape == (3 * beams, heads, length, size)


def test_left_padding(family, mode):
    """More padding changes nothing."""
    model, inputs = family.model(), example(family)
    found = generate(model, MODES[mode], inputs, do_sample=False)
    padded = dict(inputs)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if name in inputs:
            padded[name] = torch.nn.functional.pad(inputs[name], (4, 0))
    again = generate(model, MODES[mode], padded, do_sample=False)
    assert torch.equal(again[:, -NEW:], found[:, -NEW:])


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}, {"cache_implementation": "static"}], ids=str)
def test_from_inputs_embeds(family, mode, settings):
    """Embeddings in place of ids, and beside them."""
    model, inputs = family.model(), example(family)
    found = generate(model, MODES[mode], inputs, do_sample=False, **settings)
    embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
    both = generate(model, MODES[mode], inputs | {"inputs_embeds": embeds}, do_sample=False, **settings)
    assert torch.equal(both[:, -NEW:], found[:, -NEW:])
    if not family.mrope:  # Qwen's models number embeddings alone as text
        del inputs["input_ids"]
        alone = generate(model, MODES[mode], inputs | {"inputs_embeds": embeds}, do_sample=False, **settings)
        assert torch.equal(alone, found[:, -NEW:])


@pytest.mark.parametrize("embedded", [False, True])
def test_continue_from_past_key_values(family, mode, embedded):
    """Two calls with one cache in between give the tokens of one, from ids and from embeddings."""
    model, inputs = family.model(), example(family)
    embed = model.get_input_embeddings()
    if embedded:
        inputs["inputs_embeds"] = embed(inputs.pop("input_ids")).detach()
    whole = generate(model, MODES[mode], inputs, do_sample=False)
    with attach(model, MODES[mode]):
        first = model.generate(**inputs, **FIXED | {"max_new_tokens": 2, "min_new_tokens": 2}, do_sample=False,
                               return_dict_in_generate=True)  # fmt: skip
        text = {"input_ids": first.sequences}
        if embedded:
            text = {"inputs_embeds": torch.cat((inputs["inputs_embeds"], embed(first.sequences).detach()), 1)}
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 2), value=1)
        rest = model.generate(**text, attention_mask=mask, **FIXED | {"max_new_tokens": 3, "min_new_tokens": 3},
                              do_sample=False, past_key_values=first.past_key_values)  # fmt: skip
    assert torch.equal(rest[:, -3:], whole[:, -3:])


@pytest.mark.parametrize("mode", ["whole", "half"])
def test_continue_multi_turn_text(family, mode):
    """More text after the answer: as one prompt of all. Inside the decoder a prompt's last token decides what stays."""
    model, inputs = family.model(), example(family)
    with attach(model, MODES[mode]):
        first = model.generate(**inputs, **FIXED, do_sample=False, return_dict_in_generate=True)
        ids = torch.cat((first.sequences, torch.tensor([[11, 12, 13]]).expand(3, -1)), 1)
        more = ids.shape[1] - inputs["input_ids"].shape[1]
        whole = inputs | {"input_ids": ids}
        for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
            if name in inputs:
                whole[name] = torch.nn.functional.pad(inputs[name], (0, more), value=value)
        fresh = model.generate(**whole, **FIXED, do_sample=False)
        rest = model.generate(input_ids=ids, attention_mask=whole["attention_mask"], **FIXED, do_sample=False,
                              past_key_values=first.past_key_values)  # fmt: skip
    assert torch.equal(rest[:, -NEW:], fresh[:, -NEW:])


def test_with_and_without_position_ids(family, mode):
    """Positions that the caller writes out are those that the model would give."""
    model, inputs = family.model(), example(family)
    found = generate(model, MODES[mode], inputs, do_sample=False)
    if family.mrope:
        number = (model if hasattr(model, "get_rope_index") else model.model).get_rope_index
        known = inputs | {"second_per_grids": inputs.get("video_second_per_grid")}  # Qwen3-Omni's name of it
        names = set(known) & set(inspect.signature(number).parameters)
        positions, _ = number(**{name: known[name] for name in names})
    else:
        positions = inputs["attention_mask"].cumsum(1) - 1
    again = generate(model, MODES[mode], inputs | {"position_ids": positions}, do_sample=False)
    assert torch.equal(again, found)


def test_eager_matches_sdpa(family, mode):
    inputs, pruner = example(family), MODES[mode]
    models = [family.model(attention=name) for name in ("eager", "sdpa")]
    eager, sdpa = (generate(model, pruner, inputs, do_sample=False) for model in models)
    assert torch.equal(eager, sdpa)


def test_compiled(family, mode):
    torch._dynamo.reset()
    model, inputs = family.model(), example(family)
    found = generate(model, MODES[mode], inputs, do_sample=False)
    assert torch.equal(generate(torch.compile(model, backend="eager"), MODES[mode], inputs, do_sample=False), found)


@pytest.mark.parametrize("settings", [{"assistant_model": None}, {"prompt_lookup_num_tokens": 2}], ids=str)
def test_assisted_decoding_is_refused_by_name(family, mode, settings):
    """It reads the prompt's ids where the pruned prompt has embeddings; text alone is generated as ever."""
    model = family.model()
    settings = {name: model if value is None else value for name, value in settings.items()}
    with pytest.raises(ValueError, match=next(iter(settings))):
        generate(model, MODES[mode], example(family), do_sample=False, **settings)
    text = family.prompt([5, 6, 7])
    if "assistant_model" not in settings and family.inside:  # transformers refuses it for linear attention itself
        assert torch.equal(generate(model, MODES[mode], text, **settings), generate(model, None, text, **settings))


def test_without_input_ids(family, mode):
    """From the first token alone."""
    model = family.model()
    bos = {"bos_token_id": 3, "do_sample": False}
    assert torch.equal(generate(model, MODES[mode], {}, **bos), generate(model, None, {}, **bos))


def test_a_cache_of_the_callers_own(family, mode):
    model, inputs, cache = family.model(), example(family), DynamicCache(config=family.model().config.text_config)
    found = generate(model, MODES[mode], inputs, do_sample=False, past_key_values=cache)
    assert torch.equal(found, generate(model, MODES[mode], inputs, do_sample=False))
    assert cache.get_seq_length() > 0


def test_only_the_last_logits(family, mode):
    """logits_to_keep of forward() gives the last of all; that of generate() changes nothing."""
    model, inputs = family.model(), example(family)
    with torch.no_grad(), attach(model, MODES[mode]):
        whole, last = model(**inputs).logits, model(**inputs, logits_to_keep=1).logits
    assert last.shape[1] == (1 if family.keeps else whole.shape[1])
    torch.testing.assert_close(last[:, -1], whole[:, -1])
    if family.keeps:
        found = generate(model, MODES[mode], inputs, do_sample=False)
        assert torch.equal(generate(model, MODES[mode], inputs, do_sample=False, logits_to_keep=1), found)
