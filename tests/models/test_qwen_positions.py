"""Where tokens of the Qwen-VL families stand in a pruned prompt: M-RoPE positions, deepstack of their own places."""

import pytest
import torch
from families import FAMILIES, Spy, make_pruner, outputs
from test_generate import WAYS
from test_qwen import GRIDS, QWEN, video
from tiny_qwen import END, IMAGE, START, VIDEO, image_inputs, video_inputs

from tango.models import attach, family_of


@pytest.fixture(params=QWEN)
def family(request):
    return FAMILIES[request.param]


def decoder_positions(model, call):
    """Positions (3, B, W) at each call of the decoder."""
    seen = []
    decoder = family_of(model).language_model(model)
    hook = decoder.register_forward_pre_hook(lambda _, args, kw: seen.append(kw["position_ids"]), with_kwargs=True)
    try:
        call()
    finally:
        hook.remove()
    return [positions[-3:] for positions in seen]


def rows(family):
    """Prompts of different length: two videos of different shape and an image; one video."""
    first = [5, *video(family, GRIDS[0]), 6, START, *[IMAGE] * 6, END, 7, *video(family, GRIDS[1]), 8, 9]
    return first, [4, *video(family, GRIDS[0]), 11, 12]


def batch(family, side="left"):
    inputs = family.prompt(*rows(family), side=side) | image_inputs((4, 6))
    inputs |= video_inputs(GRIDS[0], GRIDS[1], GRIDS[0])
    return inputs | ({"second_per_grid_ts": torch.tensor([1.0, 2.0, 3.0])} if family.name == "qwen2_5_vl" else {})


@pytest.mark.parametrize("side", ["left", "right"])
def test_tokens_keep_their_positions(family, side):
    model, inputs = family.model(), batch(family, side)
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    whole, deltas = model.model.get_rope_index(
        **{name: inputs[name] for name in names if name in inputs}, attention_mask=inputs["attention_mask"]
    )
    indices = [3, 11, 20, 26]
    with torch.no_grad(), attach(model, Spy(indices)):
        (pruned,) = decoder_positions(model, lambda: model(**inputs))
        next_ones = model.model.rope_deltas
    counts = inputs["attention_mask"].sum(1)
    for row, ids in enumerate(rows(family)):
        visual = [column for column, token in enumerate(ids) if token == VIDEO]
        kept = {visual[index] for index in indices} | {visual[36 + index] for index in indices if row == 0}
        columns = [column for column, token in enumerate(ids) if token != VIDEO or column in kept]
        shift = inputs["input_ids"].shape[1] - len(ids) if side == "left" else 0
        expected = whole[:, row, [column + shift for column in columns]]
        start = pruned.shape[2] - len(columns) if side == "left" else 0
        assert torch.equal(pruned[:, row, start : start + len(columns)], expected)
        assert len(columns) + int(next_ones[row]) == int(counts[row]) + int(deltas[row])
    if family.name == "qwen2_5_vl":  # 3 s, 2 positions each, from frame to frame; the kept tokens are of all but one
        assert {2 + 0, 2 + 6, 2 + 12} <= set(pruned[0, 1].tolist())


@pytest.mark.parametrize("way", WAYS)
def test_generation_goes_on_where_the_whole_prompt_would_have(family, way):
    model, inputs = family.model(), batch(family) | WAYS[way]
    inputs |= {"max_new_tokens": 4, "min_new_tokens": 4, "suppress_tokens": [IMAGE, VIDEO]}
    whole = decoder_positions(model, lambda: model.generate(**inputs))
    with attach(model, Spy([3, 11, 20, 26])):
        pruned = decoder_positions(model, lambda: model.generate(**inputs))
    assert len(whole) == len(pruned) == 4
    assert pruned[0].shape[-1] < whole[0].shape[-1]
    for left, right in zip(whole, pruned, strict=True):
        assert torch.equal(left[..., -1], right[..., -1])


def test_going_on_from_a_cache_by_hand(family):
    """The model numbers what follows a pruned prompt in a cache as it does after the whole prompt."""
    model, inputs = family.model(), batch(family)
    single = family.prompt(rows(family)[1]) | {
        name: inputs[name][-1:] for name in ("video_grid_thw", "second_per_grid_ts") if name in inputs
    }
    single["pixel_values_videos"] = inputs["pixel_values_videos"][-144:]

    def go_on():
        cache = model(**single, use_cache=True).past_key_values
        return decoder_positions(model, lambda: model(torch.tensor([[9, 10]]), past_key_values=cache))[0]

    with torch.no_grad():
        whole = go_on()
        with attach(model, Spy([3, 11])):
            pruned = go_on()
        assert torch.equal(pruned, whole)
        assert torch.equal(go_on(), whole)


def test_no_trace_in_rope_deltas(family, tmp_path):
    model, inputs = family.build(tmp_path), batch(family)
    with make_pruner("tango", 0.3)(model):
        outputs(model, inputs)
        assert model.model.rope_deltas is not None
    assert model.model.rope_deltas is None
    outputs(model, inputs)
    before = model.model.rope_deltas
    with make_pruner("tango", 0.3)(model):
        outputs(model, inputs)
        assert not torch.equal(model.model.rope_deltas, before)
    assert model.model.rope_deltas is before


def test_own_positions(family):
    """Positions that the caller gives are kept: three rows, four of which the first counts tokens, or one."""
    model = family.model()
    inputs = batch(family) | {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    width = inputs["input_ids"].shape[1]
    own = torch.randint(0, 50, (3, 2, width), generator=torch.Generator().manual_seed(0))
    flat = torch.arange(width).expand(2, -1)
    for positions, expected in ((own, own), (torch.cat((flat[None], own)), own), (flat, flat.expand(3, -1, -1))):
        with attach(model, Spy([3, 11])):
            seen = decoder_positions(model, lambda: model.generate(**inputs, position_ids=positions))  # noqa: B023
            (once,) = decoder_positions(model, lambda: model.forward(**tensors(inputs), position_ids=positions))  # noqa: B023
        columns = [width - len(rows(family)[0]) + column for column in kept_columns(rows(family)[0], [3, 11])]
        assert torch.equal(seen[0][:, 0], expected[:, 0, columns])
        assert torch.equal(seen[1][..., 0], expected[..., -1] + 1)
        assert once.shape[-1] in (len(columns), width)


def tensors(inputs):
    return {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}


def kept_columns(ids, indices):
    visual = [column for column, token in enumerate(ids) if token == VIDEO]
    kept = {visual[index] for index in indices} | {visual[36 + index] for index in indices}
    return [column for column, token in enumerate(ids) if token != VIDEO or column in kept]


def test_without_token_types(family):
    """The model then numbers a prompt as text; all kept, so does the pruned one, and its tokens keep those numbers."""
    model, inputs = family.model(), batch(family) | {"suppress_tokens": [IMAGE, VIDEO], "max_new_tokens": 4}
    del inputs["mm_token_type_ids"]
    expected = model.generate(**inputs, do_sample=False)
    with make_pruner("tango", 1.0)(model):
        assert torch.equal(model.generate(**inputs, do_sample=False), expected)
    with attach(model, Spy([3, 11])):
        positions = decoder_positions(model, lambda: model.generate(**inputs, do_sample=False))[0]
    assert positions[0, 0].tolist() == kept_columns(rows(family)[0], [3, 11])


def test_deepstack_travels_with_its_tokens():
    """Kept tokens have the deepstack features of their own places, in batch and with an image."""
    family = FAMILIES["qwen3_vl"]
    model, inputs = family.model(), batch(family)
    decoder, seen = family_of(model).language_model(model), []
    indices = [26, 3, 11]  # in any order

    def call():
        hook = decoder.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
        with torch.no_grad():
            model(**inputs)
        hook.remove()

    call()
    with attach(model, Spy(indices)):
        call()
    whole, pruned = seen
    ids = rows(family)[0]
    visual = [column for column, token in enumerate(ids) if token in (IMAGE, VIDEO)]
    places = {column: index for index, column in enumerate(visual)}
    videos = [column for column in visual if ids[column] == VIDEO]
    image = [column for column in visual if ids[column] == IMAGE]
    columns = [videos[index] for index in indices] + image + [videos[36 + index] for index in indices]
    order = [places[column] for column in columns]
    for before, after in zip(whole["deepstack_visual_embeds"], pruned["deepstack_visual_embeds"], strict=True):
        torch.testing.assert_close(after[: len(order)], before[order])
    assert pruned["visual_pos_masks"].sum() == len(order) + 3


def test_deepstack_is_not_left_out(tmp_path):
    family = FAMILIES["qwen3_vl"]
    model, row = family.build(tmp_path), [5, *family.video(), 7, 8]
    inputs = family.prompt(row) | family.pixels()
    with torch.no_grad(), attach(model, Spy([3, 11])):
        before = model(**inputs).logits
        for merger in model.model.visual.deepstack_merger_list:
            merger.linear_fc2.weight.zero_()
            merger.linear_fc2.bias.zero_()
        after = model(**inputs).logits
    assert (before[0, -1] - after[0, -1]).abs().max() > 0.01
