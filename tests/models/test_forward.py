"""forward() under a pruner, what a pruner is given, long and malformed input."""

import warnings

import pytest
import torch
from families import GRID, TOKENS, Spy, count_frames, make_pruner
from transformers.video_utils import VideoMetadata

from tango.models import attach, family_of
from tango.models.prompt import place
from tango.models.refusals import NO_TIMES


def example(family, *rows, **settings):
    rows = rows or ([5, 6, *family.video(), 7, 8],)
    count = sum(list(row).count(family.placeholder) for row in rows) // family.video().count(family.placeholder)
    return family.prompt(*rows) | family.pixels(count) | settings


def decoder_call(model, inputs):
    """What the unattached model calls its decoder with."""
    seen = []
    decoder = family_of(model).language_model(model)
    hook = decoder.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    model(**inputs)
    hook.remove()
    return decoder, seen[0]


@torch.no_grad()
def by_hand(family, model, inputs, columns):
    """Logits of a prompt of which only these columns are left, from what the model makes of the whole prompt."""
    decoder, call = decoder_call(model, inputs)
    shorter = {"inputs_embeds": call["inputs_embeds"][:, columns]}
    if family.mrope:
        shorter["position_ids"] = call["position_ids"][..., columns]
    if call.get("visual_pos_masks") is not None:
        visual = call["visual_pos_masks"]
        wide = [torch.zeros_like(call["inputs_embeds"]) for _ in call["deepstack_visual_embeds"]]
        for tensor, features in zip(wide, call["deepstack_visual_embeds"], strict=True):
            tensor[visual] = features
        shorter["visual_pos_masks"] = visual[:, columns]
        shorter["deepstack_visual_embeds"] = [tensor[:, columns][visual[:, columns]] for tensor in wide]
    shorter["attention_mask"] = torch.ones(1, len(columns), dtype=torch.long)
    return model.lm_head(decoder(**shorter, use_cache=False).last_hidden_state)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_are_those_of_the_shorter_prompt(family, attention):
    model, row = family.model(attention=attention), [5, 6, *family.video(), 7, *family.image, 8]
    inputs = family.prompt(row) | family.visuals("vi")
    # in any order a method likes; newlines of LLaVA-Video stand for rows, which only make sense in their own order
    indices = [2, 11, 30] if family.name == "llava_video" else [30, 2, 11]
    with torch.no_grad(), attach(model, Spy(indices)) as session:
        actual = model(**inputs).logits
    expected = by_hand(family, model, inputs, family.columns(row, indices))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert session.videos[0].indices.tolist() == indices
    whole = by_hand(family, model, inputs, list(range(len(row))))
    assert (actual[0, -1] - whole[0, -1]).abs().max() > 0.01  # or the comparison would tell little


def test_columns_follow_their_tokens():
    """A family whose tokens keep their own positions reads them off the columns, in the order of the embeddings."""
    row = torch.tensor([0, 1, 3, 4, 7, 9])
    slots = place(row, torch.tensor([7, 3, 4]))
    assert slots.tolist() == [2, 3, 4]
    assert row.tolist() == [0, 1, 7, 3, 4, 9]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_stays_on_its_side(family, side):
    model = family.model()
    rows = [5, *family.video(), 7], [5, *family.video(), 7, *family.video(), 9, 9]
    inputs = family.prompt(*rows, side=side) | family.pixels(3)
    with torch.no_grad(), attach(model, Spy()):
        together = model(**inputs).logits
        alone = model(**family.prompt(rows[0]), **family.part(inputs, 0, 1)).logits
    short, long = (len(family.columns(row, [0, 5, 17])) for row in rows)
    own = slice(-short, None) if side == "left" else slice(short)
    assert together.shape[1] == long
    torch.testing.assert_close(together[0, own], alone[0], atol=1e-4, rtol=1e-4)


def test_rows_that_become_unlike_get_a_mask(family):
    """Prompts of one length, without a mask, of which one loses more than the other."""
    model, row = family.model(), [6, *family.video(), 7]
    text = [5] * len(row)
    inputs = family.prompt(row, text) | family.pixels(1)
    del inputs["attention_mask"]
    single = family.prompt(row) | family.part(inputs, 0, 1)
    del single["attention_mask"]
    with torch.no_grad(), attach(model, Spy()):
        logits = model(**inputs).logits
        alone = model(**single).logits
    with torch.no_grad():
        plain = model(torch.tensor([text])).logits
    assert logits.shape[1] == len(text)
    own = len(family.columns(row, [0, 5, 17]))
    torch.testing.assert_close(logits[0, -own:], alone[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits[1], plain[0], atol=1e-4, rtol=1e-4)


def test_labels_follow_their_tokens(family):
    model = family.model()
    rows = [5, *family.video(), 7, 8], [5, *family.video(), 7, 8, 9, 10]
    inputs = example(family, *rows)
    ids = inputs["input_ids"]
    labels = ids.masked_fill((ids == family.placeholder) | (inputs["attention_mask"] == 0), -100)
    with torch.no_grad(), attach(model, Spy()):
        out = model(**inputs, labels=labels)
    kept = [[row[column] for column in family.columns(row, [0, 5, 17])] for row in rows]
    shorter = torch.full((2, len(kept[1])), -100)
    for row, tokens in enumerate(kept):
        shorter[row, -len(tokens) :] = torch.tensor(
            [-100 if token == family.placeholder else token for token in tokens]
        )
    expected = model.loss_function(out.logits, shorter, vocab_size=model.config.text_config.vocab_size)
    torch.testing.assert_close(out.loss, expected)
    with torch.no_grad(), make_pruner("uniform", 1.0)(model):
        kept = model(**inputs, labels=labels)
    with torch.no_grad():
        plain = model(**inputs, labels=labels)
    assert torch.equal(kept.loss, plain.loss)


def test_some_logits(family):
    model, inputs = family.model(), example(family)
    if not family.keeps:
        pytest.skip("the model has no logits_to_keep")
    with torch.no_grad(), attach(model, Spy()):
        last = model(**inputs, logits_to_keep=2).logits
        torch.testing.assert_close(last, model(**inputs).logits[:, -2:], atol=1e-5, rtol=1e-5)
        with pytest.raises(ValueError, match="logits_to_keep as a tensor"):
            model(**inputs, logits_to_keep=torch.tensor([3]))


def test_times_and_keys(family):
    model, video = family.model(), family.video()
    inputs = example(family, [9, *video, 8], [5, *video, 7, *video])
    times = [[0.0, 0.5, 1.0, 1.5], torch.arange(4) * 2, [3, 4, 5, 6]]
    metadata = [
        VideoMetadata(total_num_frames=100, fps=25.0, frames_indices=[0, 25, 50, 75]),
        {"fps": None, "frames_indices": [0, 1, 2, 3]},
        [{"fps": 2.0, "frames_indices": [0, 1, 2, 3]}],
    ]
    default, ordinals = [[frame * (family.told or 1) for frame in range(4)]] * 3, ["0", "0", "1"]
    told, names = [[0, 0.5, 1, 1.5], [0, 2, 4, 6], [3, 4, 5, 6]], ["a", "b", 7]
    cases = (
        ({}, default, ordinals),
        ({"video_timestamps": times, "video_keys": names}, told, ["a", "b", "7"]),
        ({"video_metadata": metadata}, [[0, 1, 2, 3], default[1], told[0]], ordinals),
        ({"video_metadata": metadata, "video_timestamps": times[::-1]}, told[::-1], ordinals),
    )
    for given, expected, keys in cases:
        for call in (model, lambda **kwargs: model.generate(**kwargs, max_new_tokens=1)):
            spy = Spy()
            with torch.no_grad(), attach(model, spy):
                call(**inputs, **given)
            assert [call["timestamps"].tolist() for call in spy.calls] == expected
            assert [call["key"] for call in spy.calls] == keys
            assert all(call["grid"] == GRID and call["saliency"] is None for call in spy.calls)
    with torch.no_grad(), attach(model, Spy()):
        model(torch.tensor([[5, 6]]), video_timestamps=[], video_keys=[])
        for name in ("video_timestamps", "video_keys"):
            for values in (times[:2], [*times, times[0]]):
                with pytest.raises(ValueError, match=f"{name}.* has {len(values)} entries"):
                    model(**inputs, **{name: values})
        sampled = "3 timestamps for a video of 4 frames of 2 sampled ones"
        told = sampled if family.name.startswith("qwen") else r"its timestamps must have shape \(4,\), got \(3,\)"
        with pytest.raises(ValueError, match=told):
            model(**inputs, video_timestamps=[[0, 1, 2]] * 3)


def test_times_that_nobody_gave_are_said_once(family):
    model, inputs = family.model(), example(family, [9, *family.video(), 8])
    inputs.pop("second_per_grid_ts", None)
    given = {"video_timestamps": [[0.0, 1.0, 2.0, 3.0]]}
    with warnings.catch_warnings(record=True) as told, torch.no_grad():
        warnings.simplefilter("default")
        for method, times in (("topk", {}), ("tango", given), ("tango", {}), ("tango", {})):
            with attach(model, make_pruner(method, 0.3)):
                model(**inputs, **times)
    assert [str(one.message) for one in told if "1 s apart" in str(one.message)] == [NO_TIMES] * (family.told is None)


def test_a_clocks_zero_changes_nothing(family):
    model, inputs = family.model(), example(family, [9, *family.video(), 8])
    pruner = make_pruner("tango", 0.3, segmentation="none")
    times = [0.0, 0.25, 0.5, 1.0]
    with torch.no_grad(), attach(model, pruner) as session:
        expected, spans = model(**inputs, video_timestamps=[times]).logits, []
        for offset in (0.0, 1e5, 1.7e9):
            late = [time + offset for time in times]
            for given in (late, torch.tensor(late, dtype=torch.float64)):
                assert torch.equal(model(**inputs, video_timestamps=[given]).logits, expected)
            rate = [{"fps": 4.0, "frames_indices": [round(4 * time) for time in late]}]
            assert torch.equal(model(**inputs, video_metadata=rate).logits, expected)
            spans.append(session.videos[0].indices.tolist())
    assert spans[0] == spans[1] == spans[2]


@pytest.mark.parametrize(
    "method", ["tango", "fastvid", "flashvid", "holitom", "prunevid", "visionzip", "fastv", "dycoke"]
)
def test_another_default_dtype_changes_nothing(family, method):
    model, inputs = family.model(), example(family, [9, *family.video(), 8])
    pruner = make_pruner(method, 0.6)
    with torch.no_grad(), attach(model, pruner) as session:
        expected, kept = model(**inputs).logits, session.videos[0].indices
        for default in (torch.float64, torch.bfloat16):
            torch.set_default_dtype(default)
            try:
                found = model(**inputs).logits
            finally:
                torch.set_default_dtype(torch.float32)
            assert torch.equal(session.videos[0].indices, kept)
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("method", ["random", "uniform", "topk", "tango"])
def test_few_frames_and_small_budgets(family, method, frames):
    model = family.model()
    inputs = family.prompt([5, *family.video(frames), 7]) | family.pixels(1, frames)
    for ratio in (0.01, 0.1, 0.5, 1.0):
        with make_pruner(method, ratio)(model) as session:
            model.generate(**inputs, max_new_tokens=2)
        assert 1 <= session.videos[0].tokens_after <= frames * TOKENS


def test_a_thousand_frames(family):
    """The tower sees a bounded number of frames at once."""
    model, frames = family.model(), 1100
    row = [5, *family.video(frames), 7]
    inputs = family.prompt(row) | family.pixels(1, frames)
    sizes = []
    hook = count_frames(family, model, sizes)
    with make_pruner("tango", 0.05)(model) as session:
        out = model.generate(**inputs, max_new_tokens=2, do_sample=False, eos_token_id=[])
    hook.remove()
    assert out.shape[1] == len(row) + 2
    assert len(sizes) > 1 and max(sizes) <= family.frames_per_call and sum(sizes) == frames
    assert session.videos[0].tokens_after < 0.25 * session.videos[0].tokens_before


@pytest.mark.parametrize("wanted", [frozenset({"saliency", "segment_features"}), frozenset()])
def test_chunks_change_nothing(family, monkeypatch, wanted):
    model = family.model()
    inputs = family.prompt([5, *family.video(7), 7]) | family.pixels(1, 7)
    spies = [Spy(wanted=wanted), Spy(wanted=wanted)]
    for spy, frames in zip(spies, (7, 3), strict=True):
        monkeypatch.setattr(family.limit, frames * family.units)
        sizes = []
        hook = count_frames(family, model, sizes)
        with torch.no_grad(), attach(model, spy):
            model(**inputs)
        hook.remove()
        assert len(sizes) == {7: 1, 3: 3}[frames]
    for name in ("features", *wanted):
        if spies[0].calls[0][name] is not None:
            torch.testing.assert_close(spies[0].calls[0][name], spies[1].calls[0][name], atol=1e-5, rtol=1e-5)


def test_bad_features_name_the_video(family):
    model = family.model()
    inputs = example(family, [5, *family.video(), 7, *family.video()])
    pixels = inputs[next(iter(family.pixels()))]
    for value in (float("nan"), float("inf")):
        pixels[len(pixels) // 2 :].flatten(0, -2)[0, 0] = value  # in the second video
        with torch.no_grad(), make_pruner("tango", 0.3)(model):
            with pytest.raises(ValueError, match=r"video 1 \(key '1'\): its features must be finite"):
                model.generate(**inputs, max_new_tokens=2)
            with pytest.raises(ValueError, match=r"video 1 \(key 'clip'\)"):
                model(**inputs, video_keys=["fine", "clip"])


def test_malformed_prompts(family):
    model, inputs, video = family.model(), example(family), family.video()
    visual = video.count(family.placeholder)
    short = [5, *video]
    short.remove(family.placeholder)
    if family.name == "internvl":
        pytest.skip("says it in words of its own, in test_internvl.py")
    with torch.no_grad(), make_pruner("uniform", 0.3)(model):
        with pytest.raises(ValueError, match=rf"holds {visual - 1} video placeholders, and 1 videos .*need {visual}"):
            model(**(inputs | family.prompt(short)))
        with pytest.raises(ValueError, match="spread over several prompts"):
            model(**(inputs | family.prompt([5, *video[:20]], [5, *video[20:]])))
        with pytest.raises(ValueError, match=rf"attention_mask has shape \(1, 3\); .* needs \(1, {len(video) + 4}\)"):
            model(**(inputs | {"attention_mask": torch.ones(1, 3)}))
        with pytest.raises(ValueError, match="attention_mask hides placeholders"):
            model(**(inputs | {"attention_mask": (inputs["input_ids"] != family.placeholder).long()}))
        features = family.image.count(family.image[1])
        with pytest.raises(ValueError, match=rf"holds 0 image placeholders for {features} image features"):
            model(**inputs, **family.images())


def test_unknown_signals(family):
    with pytest.raises(ValueError, match=r"spy needs motion; .* has \[.*'saliency'.*\]"), \
            attach(family.model(), Spy(wanted=frozenset({"motion"}))):  # fmt: skip
        pass


def test_gradients_flow(family):
    """Forward with labels can be differentiated, as without pruning; pruning itself is not trained."""
    model, inputs = family.model(), example(family)
    with make_pruner("uniform", 0.3)(model):
        model(
            **inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"] == family.placeholder, -100)
        ).loss.backward()
    gradients = [model.lm_head.weight.grad, family.projector(model).grad]
    model.zero_grad(set_to_none=True)
    assert all(gradient is not None and bool(gradient.isfinite().all()) and gradient.any() for gradient in gradients)
