"""generate() under a pruner: every way of generating, and sequences laid out as without pruning."""

import pytest
import torch
from families import IMAGE, VIDEO, Spy, count_frames, make_pruner
from tiny_llava import PAD
from transformers import DynamicCache, GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from tango.models import attach, family_of

WAYS = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 1.3, "top_k": 20},
    "several samples": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 3, "do_sample": False},
    "all beams": {"num_beams": 3, "num_return_sequences": 2, "do_sample": False, "length_penalty": 0.5},
    "beam sampling": {"num_beams": 2, "do_sample": True},
    "without cache": {"use_cache": False, "do_sample": False},
    "beams without cache": {"use_cache": False, "num_beams": 2, "num_return_sequences": 2, "do_sample": False},
    "sampling without cache": {"use_cache": False, "do_sample": True},
    "static cache": {"cache_implementation": "static", "do_sample": False},
    "repetition penalty": {"repetition_penalty": 3.0, "do_sample": False},
    "no repeated words": {"no_repeat_ngram_size": 1, "do_sample": False},
    "least length": {"min_new_tokens": 6, "do_sample": False},
}


def rows(family):
    video = family.video()
    return [5, 6, *video, 7, 8], [5, *video, 11, *video, 12]


def example(family, **settings):
    return family.prompt(*rows(family)) | family.pixels(3) | {"max_new_tokens": 6} | settings


def generate(model, inputs):
    torch.manual_seed(3)
    return model.generate(**inputs)


@pytest.mark.parametrize("way", WAYS)
def test_all_kept_is_equal(family, way):
    """One video a prompt: from pixels, LLaVA's generate() mixes up several for beams (see test_llava_onevision)."""
    model = family.model()
    several, encodes_once = {"num_beams", "num_return_sequences"} & set(WAYS[way]), "_expand_multimodal_outputs"
    if family.name in ("internvl", "qwen3_omni_moe") and several and not hasattr(model, encodes_once):
        pytest.skip("older transformers repeat pixels row by row for beams: the unpruned model sees them out of order")
    written = rows(family)[0], [5, *family.video(), 11]
    if family.mrope:
        written = rows(family)
    inputs = family.prompt(*written) | family.pixels(sum(row.count(family.placeholder) for row in written) // 36)
    inputs |= {"max_new_tokens": 6, "suppress_tokens": [IMAGE, VIDEO]}  # these in an answer break the unpruned model
    inputs |= WAYS[way] | {"return_dict_in_generate": True, "output_logits": True}
    expected = generate(model, inputs)
    with make_pruner("tango", 1.0)(model):
        actual = generate(model, inputs)
    assert torch.equal(actual.sequences, expected.sequences)
    for left, right in zip(actual.logits, expected.logits, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("way", WAYS)
def test_layout(family, way):
    """Prompt ids, then new tokens; and the same twice from one seed."""
    model, inputs = family.model(), example(family, **WAYS[way])
    with make_pruner("tango", 0.3)(model):
        out = generate(model, inputs)
        again = generate(model, inputs)
    ids = inputs["input_ids"]
    copies = len(out) // len(ids)
    assert copies == WAYS[way].get("num_return_sequences", 1)
    assert torch.equal(out[:, : ids.shape[1]], ids.repeat_interleave(copies, 0))
    assert ids.shape[1] < out.shape[1] <= ids.shape[1] + 6
    assert torch.equal(out, again)


@pytest.mark.parametrize("way", ["greedy", "beams", "all beams", "several samples"])
def test_with_and_without_cache_agree(family, way):
    model, inputs = family.model(), example(family, **WAYS[way])
    with make_pruner("tango", 0.3)(model) as session:
        cached = generate(model, inputs)
        records = session.videos
        uncached = generate(model, inputs | {"use_cache": False})
    assert torch.equal(cached, uncached)
    assert [record.tokens_after for record in session.videos] == [record.tokens_after for record in records]


def test_steps_are_those_of_forward(family):
    """Each step of decoding gives the logits of one forward() over prompt and answer so far."""
    model, inputs = family.model(), example(family, do_sample=False, max_new_tokens=4)
    asked = {"return_dict_in_generate": True, "output_logits": True, "suppress_tokens": [1, IMAGE, VIDEO]}
    with torch.no_grad(), attach(model, Spy()):
        out = generate(model, inputs | asked)
        video = set(family.pixels()) & set(inputs)
        answer = out.sequences[:, inputs["input_ids"].shape[1] :]
        written = [[*row, *new] for row, new in zip(rows(family), answer[:, :-1].tolist(), strict=True)]
        whole = model(**family.prompt(*written), **{name: inputs[name] for name in video}).logits
    torch.testing.assert_close(torch.stack(out.logits, 1), whole[:, -4:], atol=1e-4, rtol=1e-4)


def test_going_on_from_a_cache(family):
    """By hand, from the cache that forward() returns, with a mask of its length or, if nothing is padded, without."""
    model = family.model()
    row = [5, 6, *family.video(2), 7, 8]
    inputs = family.prompt(row) | family.pixels(1, 2)
    with torch.no_grad(), attach(model, Spy()):
        prefill = model(**inputs, use_cache=True)
        cache = prefill.past_key_values
        length = cache.get_seq_length()
        assert length == len(family.columns(row, [0, 5, 17], 2))
        # models with M-RoPE number all of a mask, also without a pruner, so they cannot have one here
        mask = None if family.mrope else torch.ones(1, length + 2, dtype=torch.long)
        later = model(torch.tensor([[9, 10]]), past_key_values=cache, attention_mask=mask).logits
        whole = model(**family.prompt([*row, 9, 10]) | family.pixels(1, 2)).logits
    torch.testing.assert_close(later, whole[:, -2:], atol=1e-4, rtol=1e-4)


def test_videos_are_encoded_once(family):
    model = family.model()
    frames = []
    hook = count_frames(family, model, frames)
    try:
        for settings in ({}, {"use_cache": False}, {"num_beams": 3}):
            with make_pruner("tango", 0.3)(model):
                generate(model, example(family, **settings))
            assert sum(frames) == 12
            frames.clear()
    finally:
        hook.remove()


def test_return_dict(family):
    model = family.model()
    wanted = ("return_dict_in_generate", "output_scores", "output_logits", "output_hidden_states")
    asked = dict.fromkeys(wanted, True)
    inputs = example(family, do_sample=False)
    plain = generate(model, inputs | asked)
    with make_pruner("tango", 1.0)(model):
        kept = generate(model, inputs | asked)
    assert torch.equal(kept.sequences, plain.sequences)
    for left, right in zip(kept.scores + kept.logits, plain.scores + plain.logits, strict=True):
        assert torch.equal(left, right)
    with make_pruner("uniform", 0.25)(model) as session:
        pruned = generate(model, inputs | asked)
        assert torch.equal(pruned.sequences, generate(model, inputs))
        beams = generate(model, inputs | asked | {"num_beams": 3})
    width = len(family.columns(rows(family)[1], session.videos[1].indices.tolist()))
    assert pruned.hidden_states[0][0].shape[1] == width
    assert pruned.past_key_values.get_seq_length() == width + len(pruned.scores) - 1
    length = inputs["input_ids"].shape[1]
    assert torch.equal(beams.sequences[:, :length], inputs["input_ids"])
    assert beams.sequences_scores.shape == (2,)
    # compute_transition_scores() slices sequences by the prompt's length
    scores = model.compute_transition_scores(beams.sequences, beams.scores, beams.beam_indices)
    assert scores.shape == beams.beam_indices.shape


@pytest.mark.parametrize("lengths", [{"max_length": 5}, {"max_new_tokens": 5}, {"max_length": 13, "min_length": 6}])
@pytest.mark.parametrize("place", ["keyword", "config", "model"])
@pytest.mark.parametrize("ratio", [0.3, 1.0])
def test_lengths_count_the_whole_prompt(family, lengths, place, ratio):
    """`lengths` are given here beyond the prompt's."""
    model, inputs = family.model(), example(family, do_sample=False, eos_token_id=list(range(2, 96)))
    del inputs["max_new_tokens"]
    length = inputs["input_ids"].shape[1]
    new, least = lengths.get("max_new_tokens", lengths.get("max_length")), lengths.get("min_length", 1)
    lengths = {name: value + (0 if "new" in name else length) for name, value in lengths.items()}
    if "min_length" not in lengths:
        inputs["eos_token_id"] = 1
    saved = model.generation_config
    try:
        if place == "keyword":
            inputs |= lengths
        elif place == "config":
            inputs["generation_config"] = GenerationConfig(
                **lengths, eos_token_id=inputs.pop("eos_token_id"), pad_token_id=PAD, do_sample=inputs.pop("do_sample")
            )
        else:
            model.generation_config = GenerationConfig(**lengths, pad_token_id=PAD)
        inputs["suppress_tokens"] = [IMAGE, VIDEO, 1]
        expected = generate(model, inputs)
        with make_pruner("tango", ratio)(model):
            actual = generate(model, inputs)
        if place == "config":
            assert inputs["generation_config"].max_length == lengths.get("max_length")
    finally:
        model.generation_config = saved
    for out in (expected, actual):
        assert length + least <= out.shape[1] <= length + new
    if "min_length" in lengths:  # every token but 0 and 1 ends the answer, as soon as it may
        assert expected.shape == actual.shape
    else:
        assert actual.shape[1] == expected.shape[1] == length + new
    if ratio == 1:
        assert torch.equal(actual, expected)


def test_default_length_and_too_long_a_prompt(family):
    model, inputs = family.model(), example(family, do_sample=False)
    del inputs["max_new_tokens"]
    length = inputs["input_ids"].shape[1]
    with make_pruner("tango", 0.3)(model):
        assert generate(model, inputs | {"eos_token_id": []}).shape[1] == length + 20
        with pytest.raises(ValueError, match=rf"Input length of input_ids is {length}, but `max_length` is set to 60"):
            generate(model, inputs | {"max_length": 60})


def test_the_prompt_may_come_in_other_ways(family):
    model, inputs = family.model(), example(family, do_sample=False, suppress_tokens=[IMAGE, VIDEO])
    with make_pruner("tango", 0.3)(model):
        expected = generate(model, inputs)
        ids = inputs.pop("input_ids")
        assert torch.equal(model.generate(ids, **inputs), expected)
        assert torch.equal(model.generate(inputs=ids, **inputs), expected)
        mask = inputs.pop("attention_mask")
        assert torch.equal(model.generate(ids, **inputs), expected)  # padding is told by the pad token
        embeds = model.get_input_embeddings()(ids)
        both = model.generate(ids, inputs_embeds=embeds, attention_mask=mask, **inputs)
        assert torch.equal(both, expected)
        with pytest.raises(ValueError, match="twice"):
            model.generate(ids, input_ids=ids, **inputs)
        with pytest.raises(ValueError, match="needs input_ids or inputs_embeds"):
            model.generate(**inputs)
        new = model.generate(inputs_embeds=embeds, attention_mask=mask, **inputs)
        shorter = inputs | {"max_new_tokens": None, "max_length": ids.shape[1] + 3}
        short = model.generate(inputs_embeds=embeds, attention_mask=mask, **shorter)
        assert torch.equal(short, new[:, :3])
        if not family.mrope:  # without ids these models number a prompt as text
            assert torch.equal(new, expected[:, ids.shape[1] :])
    with make_pruner("tango", 1.0)(model):
        new = model.generate(inputs_embeds=embeds, attention_mask=mask, **inputs)
    assert torch.equal(new, model.generate(inputs_embeds=embeds, attention_mask=mask, **inputs))


def test_masks_that_are_not_given(family):
    """Without a mask generate() takes pads for padding, unless the pad ends the answer; so does the pruned prompt."""
    model, inputs = family.model(), example(family, do_sample=False, suppress_tokens=[IMAGE, VIDEO])
    del inputs["attention_mask"]
    for eos in (1, PAD, [PAD, 4], []):
        plain = generate(model, inputs | {"eos_token_id": eos})
        with make_pruner("tango", 1.0)(model):
            assert torch.equal(generate(model, inputs | {"eos_token_id": eos}), plain)


def test_right_padding_is_generated_from_the_left(family):
    """Without pruning, new tokens would follow the padding; the pruned prompt has to be padded anew anyway."""
    model, settings = family.model(), family.pixels(3) | {"max_new_tokens": 6, "do_sample": False}
    with make_pruner("tango", 0.3)(model):
        left = generate(model, family.prompt(*rows(family)) | settings)
        right = generate(model, family.prompt(*rows(family), side="right") | settings)
    width = family.prompt(*rows(family))["input_ids"].shape[1]
    assert torch.equal(left[:, width:], right[:, width:])


def test_bystanders_see_the_prompt_as_written(family):
    """Streamers, stopping criteria and logits processors get the ids of the whole prompt."""
    model = family.model()
    inputs = family.prompt([5, *family.video(), 7]) | family.pixels(1)
    inputs |= {"max_new_tokens": 4, "do_sample": False, "eos_token_id": []}

    class Streamer(BaseStreamer):
        def __init__(self):
            self.values, self.ended = [], False

        def put(self, value):
            self.values.append(value.flatten())

        def end(self):
            self.ended = True

    class Second(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            seen.append(input_ids[0].tolist())
            return torch.full((len(input_ids),), input_ids.shape[1] == length + 2)

    seen, length = [], inputs["input_ids"].shape[1]
    streamer = Streamer()
    with make_pruner("tango", 0.3)(model):
        out = generate(model, inputs | {
            "streamer": streamer,
            "stopping_criteria": StoppingCriteriaList([Second()]),
            "logits_processor": [lambda ids, scores: seen.append(ids[0].tolist()) or scores],
        })  # fmt: skip
    assert out.shape[1] == length + 2
    assert torch.equal(torch.cat(streamer.values), out[0])
    assert streamer.ended
    assert all(ids == out[0, : len(ids)].tolist() and len(ids) >= length for ids in seen)


@pytest.mark.parametrize(
    "setting",
    [{"prompt_lookup_num_tokens": 2}, {"prefill_chunk_size": 8}, {"encoder_repetition_penalty": 1.5},
     {"token_healing": True}, {"cache_implementation": "paged"}, {"custom_generate": "someone/something"}],
)  # fmt: skip
def test_what_cannot_work_says_so(family, setting):
    model = family.model()
    with make_pruner("tango", 0.3)(model), pytest.raises(ValueError, match=f"{next(iter(setting))}=.* while a pruner"):
        generate(model, example(family, **setting))


def test_cache_must_be_empty(family):
    model, inputs = family.model(), example(family, do_sample=False)
    with make_pruner("tango", 0.3)(model):
        expected = generate(model, inputs)
        empty = DynamicCache(config=family_of(model).language_model(model).config)
        assert torch.equal(generate(model, inputs | {"past_key_values": empty}), expected)
        out = generate(model, inputs | {"return_dict_in_generate": True})
        with pytest.raises(ValueError, match=r"the cache holds \d+ tokens and the prompt a video"):
            generate(model, inputs | {"past_key_values": out.past_key_values})
