"""generate() under a pruner: every way of generating, and sequences laid out as without pruning."""

import pytest
import torch
from tiny_llava import IMAGE, PAD, VIDEO, make_pruner, pixels, prompt, video
from transformers import DynamicCache, GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

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


def example(**settings):
    rows = [5, 6, *video(), 7, 8], [5, *video(), 11, *video(), 12]
    return prompt(*rows) | {"pixel_values_videos": pixels(3), "max_new_tokens": 6} | settings


def generate(model, inputs):
    torch.manual_seed(3)
    return model.generate(**inputs)


@pytest.mark.parametrize("way", WAYS)
def test_all_kept_is_equal(models, way):
    model = models()
    inputs = prompt([5, 6, *video(), 7, 8], [5, *video(), 11]) | {"pixel_values_videos": pixels(2), "max_new_tokens": 6}
    inputs |= {"suppress_tokens": [IMAGE, VIDEO]} | WAYS[way]  # one of these in an answer breaks generation from pixels
    expected = generate(model, inputs)
    with make_pruner("tango", 1.0)(model):
        actual = generate(model, inputs)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("way", ["several samples", "beams", "all beams"])
def test_all_kept_is_equal_with_several_videos(models, way):
    """Against the model's own embeddings: from pixels, generate() repeats videos one by one for beams and samples, and
    so gives a prompt of two videos the first one twice. Under a pruner each prompt has its own videos in any mode."""
    model, inputs = models(), example(**WAYS[way])
    merged = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: merged.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**{name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values_videos")})
    hook.remove()
    expected = generate(model, {**inputs, "pixel_values_videos": None, "inputs_embeds": merged[0]})
    with make_pruner("tango", 1.0)(model):
        actual = generate(model, inputs)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("way", WAYS)
def test_layout(models, way):
    """Prompt ids, then new tokens; and the same twice from one seed."""
    model, inputs = models(), example(**WAYS[way])
    with make_pruner("tango", 0.3)(model):
        out = generate(model, inputs)
        again = generate(model, inputs)
    ids = inputs["input_ids"]
    copies = len(out) // len(ids)
    assert copies == WAYS[way].get("num_return_sequences", 1)
    assert torch.equal(out[:, : ids.shape[1]], ids.repeat_interleave(copies, 0))
    assert ids.shape[1] < out.shape[1] <= ids.shape[1] + 6
    assert torch.equal(out, again)


@pytest.mark.parametrize("way", ["greedy", "beams", "all beams"])
def test_with_and_without_cache_agree(models, way):
    model, inputs = models(), example(**WAYS[way])
    with make_pruner("tango", 0.3)(model) as session:
        cached = generate(model, inputs)
        records = session.videos
        uncached = generate(model, inputs | {"use_cache": False})
    assert torch.equal(cached, uncached)
    assert [record.tokens_after for record in session.videos] == [record.tokens_after for record in records]


def test_videos_are_encoded_once(models):
    model = models()
    frames = []
    hook = model.model.vision_tower.register_forward_pre_hook(lambda _, args: frames.append(len(args[0])))
    try:
        for settings in ({}, {"use_cache": False}, {"num_beams": 3}):
            with make_pruner("tango", 0.3)(model):
                generate(model, example(**settings))
            assert sum(frames) == 12
            frames.clear()
    finally:
        hook.remove()


def test_return_dict(models):
    model = models()
    wanted = ("return_dict_in_generate", "output_scores", "output_logits", "output_hidden_states")
    asked = dict.fromkeys(wanted, True)
    inputs = example(do_sample=False)
    plain = generate(model, inputs | asked)
    with make_pruner("tango", 1.0)(model):
        kept = generate(model, inputs | asked)
    assert torch.equal(kept.sequences, plain.sequences)
    for left, right in zip(kept.scores + kept.logits, plain.scores + plain.logits, strict=True):
        assert torch.equal(left, right)
    with make_pruner("uniform", 0.25)(model):
        pruned = generate(model, inputs | asked)
        assert torch.equal(pruned.sequences, generate(model, inputs))
        beams = generate(model, inputs | asked | {"num_beams": 3})
    width = 3 + 2 * 10  # the longer row: its text and two videos of 9 kept tokens and a newline
    assert pruned.hidden_states[0][0].shape[1] == width
    assert pruned.past_key_values.get_seq_length() == width + len(pruned.scores) - 1
    length = inputs["input_ids"].shape[1]
    assert torch.equal(beams.sequences[:, :length], inputs["input_ids"])
    assert beams.sequences_scores.shape == (2,)
    # compute_transition_scores() slices sequences by the prompt's length
    scores = model.compute_transition_scores(beams.sequences, beams.scores, beams.beam_indices)
    assert scores.shape == beams.beam_indices.shape


@pytest.mark.parametrize("lengths", [{"max_length": 82}, {"max_new_tokens": 5}, {"max_length": 90, "min_length": 83}])
@pytest.mark.parametrize("place", ["keyword", "config", "model"])
@pytest.mark.parametrize("ratio", [0.3, 1.0])
def test_lengths_count_the_whole_prompt(models, lengths, place, ratio):
    model, inputs = models(), example(do_sample=False, eos_token_id=list(range(2, 96)))
    del inputs["max_new_tokens"]
    length = inputs["input_ids"].shape[1]
    assert length == 77
    new = lengths.get("max_new_tokens", lengths.get("max_length", 0) - length)
    least = 1 if "min_length" not in lengths else lengths["min_length"] - length
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


def test_default_length_and_too_long_a_prompt(models):
    model, inputs = models(), example(do_sample=False)
    del inputs["max_new_tokens"]
    with make_pruner("tango", 0.3)(model):
        assert generate(model, inputs | {"eos_token_id": []}).shape[1] == inputs["input_ids"].shape[1] + 20
        with pytest.raises(ValueError, match=r"Input length of input_ids is 77, but `max_length` is set to 60"):
            generate(model, inputs | {"max_length": 60})


def test_the_prompt_may_come_in_other_ways(models):
    model, inputs = models(), example(do_sample=False)
    with make_pruner("tango", 0.3)(model):
        expected = generate(model, inputs)
        ids = inputs.pop("input_ids")
        assert torch.equal(model.generate(ids, **inputs), expected)
        assert torch.equal(model.generate(inputs=ids, **inputs), expected)
        mask = inputs.pop("attention_mask")
        assert torch.equal(model.generate(ids, **inputs), expected)  # padding is told by the pad token
        embeds = model.get_input_embeddings()(ids)
        new = model.generate(inputs_embeds=embeds, attention_mask=mask, **inputs)
        assert torch.equal(new, expected[:, ids.shape[1] :])
        both = model.generate(ids, inputs_embeds=embeds, attention_mask=mask, **inputs)
        assert torch.equal(both, expected)
        shorter = inputs | {"max_new_tokens": None, "max_length": 80}
        short = model.generate(inputs_embeds=embeds, attention_mask=mask, **shorter)
        assert torch.equal(short, expected[:, ids.shape[1] : 80])
        with pytest.raises(ValueError, match="twice"):
            model.generate(ids, input_ids=ids, **inputs)
        with pytest.raises(ValueError, match="needs input_ids or inputs_embeds"):
            model.generate(**inputs)


def test_masks_that_are_not_given(models):
    """Without a mask generate() takes pads for padding, unless the pad ends the answer; so does the pruned prompt."""
    model, inputs = models(), example(do_sample=False)
    del inputs["attention_mask"]
    for eos in (1, PAD, [PAD, 4], []):
        plain = generate(model, inputs | {"eos_token_id": eos})
        with make_pruner("tango", 1.0)(model):
            assert torch.equal(generate(model, inputs | {"eos_token_id": eos}), plain)


def test_right_padding_is_generated_from_the_left(models):
    """Without pruning, new tokens would follow the padding; the pruned prompt has to be padded anew anyway."""
    model = models()
    rows = [5, 6, *video(), 7, 8], [5, *video(), 11, *video(), 12]
    settings = {"pixel_values_videos": pixels(3), "max_new_tokens": 6, "do_sample": False}
    with make_pruner("tango", 0.3)(model):
        left = generate(model, prompt(*rows) | settings)
        right = generate(model, prompt(*rows, side="right") | settings)
    assert torch.equal(left[:, -6:], right[:, -6:])


def test_bystanders_see_the_prompt_as_written(models):
    """Streamers, stopping criteria and logits processors get the ids of the whole prompt."""
    model = models()
    inputs = prompt([5, *video(), 7]) | {"pixel_values_videos": pixels(1), "max_new_tokens": 4, "do_sample": False}

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


def test_own_positions(models):
    """Positions that the caller gives are carried on without gaps from the first."""
    model, inputs = models(), example(do_sample=False)
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with make_pruner("tango", 0.3)(model):
        expected = generate(model, inputs)
        assert torch.equal(generate(model, inputs | {"position_ids": positions}), expected)
        seen = []
        hook = model.model.language_model.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
        )
        shifted = generate(model, inputs | {"position_ids": positions + 3})
        hook.remove()
    assert torch.equal(shifted, expected)  # rotary attention only sees differences
    width = seen[0].shape[1]
    assert width < 41
    assert seen[0][1].tolist() == list(range(3, width + 3))  # the longer row
    assert seen[0][0].tolist()[-5:] == list(range(int(seen[0][0].max()) - 4, int(seen[0][0].max()) + 1))
    assert [step[1].tolist() for step in seen[1:]] == [[width + 3 + step] for step in range(len(seen) - 1)]


@pytest.mark.parametrize(
    "setting",
    [{"prompt_lookup_num_tokens": 2}, {"prefill_chunk_size": 8}, {"encoder_repetition_penalty": 1.5},
     {"token_healing": True}, {"cache_implementation": "paged"}, {"custom_generate": "someone/something"}],
)  # fmt: skip
def test_what_cannot_work_says_so(models, setting):
    model = models()
    with make_pruner("tango", 0.3)(model), pytest.raises(ValueError, match=f"{next(iter(setting))}=.* while a pruner"):
        generate(model, example(**setting))


def test_cache_must_be_empty(models):
    model, inputs = models(), example(do_sample=False)
    with make_pruner("tango", 0.3)(model):
        expected = generate(model, inputs)
        empty = DynamicCache(config=model.config.text_config)
        assert torch.equal(generate(model, inputs | {"past_key_values": empty}), expected)
        out = generate(model, inputs | {"return_dict_in_generate": True})
        with pytest.raises(ValueError, match=r"past_key_values holds \d+ tokens and the prompt a video"):
            generate(model, inputs | {"past_key_values": out.past_key_values})
