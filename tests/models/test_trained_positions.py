"""Qwen2.5-VL's positions as the model was trained with them, against the published rule written out in plain loops."""

import pytest
import torch
from families import FAMILIES, Spy, make_pruner
from test_generate import WAYS
from test_qwen_positions import decoder_positions
from tiny_qwen import END, IMAGE, START, VIDEO, image_inputs, video_inputs

from tango.models import attach
from tango.models.positions import trained_positions
from tango.pruners.fastv import FastV

RATE = 2  # tokens_per_second of the small model
GRIDS = (12, 6, 6), (3, 4, 10)
TALL, WIDE = (START, *[VIDEO] * 12 * 9, END), (START, *[VIDEO] * 3 * 10, END)
PICTURE = (START, *[IMAGE] * 6, END)  # of 4 x 6 patches
ROWS = [5, *TALL, 6, *PICTURE, 7, *WIDE, 8, 9], [4, *WIDE, 11, 12], [9, 10, 11]
INTERVALS = [0.7, 1.0, 2.5]  # s from frame to frame, of the videos of all rows
SHAPES = [(12, 3, 3), (3, 2, 5), (3, 2, 5)]
QWEN = FAMILIES["qwen2_5_vl"]


@pytest.fixture
def model():
    return QWEN.model()


def by_the_rule(ids, videos):
    """(temporal, row, column) of each token of a row: text counts on, a frame i is int(i * interval * RATE) later."""
    places, start, column = [], 0, 0
    videos = iter(videos)
    while column < len(ids):
        if ids[column] == VIDEO:
            (frames, rows, columns), interval = next(videos)
            new = [
                (int(i * (interval * RATE)), y, x) for i in range(frames) for y in range(rows) for x in range(columns)
            ]
        elif ids[column] == IMAGE:
            new = [(0, y, x) for y in range(2) for x in range(3)]
        else:
            new = [(0, 0, 0)]
        new = [tuple(start + part for part in place) for place in new]
        start = max(max(place) for place in new) + 1
        places += new
        column += len(new)
    return places, start


def example(side="left", intervals=INTERVALS, **settings):
    inputs = QWEN.prompt(*ROWS, side=side) | image_inputs((4, 6)) | video_inputs(*GRIDS, GRIDS[1]) | settings
    return inputs if intervals is None else inputs | {"second_per_grid_ts": intervals}


def rule(intervals=INTERVALS):
    videos = list(zip(SHAPES, intervals or [1.0] * 3, strict=True))
    return [by_the_rule(row, own) for row, own in zip(ROWS, (videos[:2], videos[2:], []), strict=True)]


def check(positions, sides, expected):
    """Positions (3, B, W) of rows padded on a side are those of the rule at the columns that stay."""
    for row, places in enumerate(expected):
        own = positions[:, row, -len(places) :] if sides == "left" else positions[:, row, : len(places)]
        assert own.T.tolist() == [list(place) for place in places]


def test_a_long_video():
    """16 frames of 4 x 4 tokens, 1 s apart: text goes on from 31, not from 4."""
    places, after = by_the_rule([VIDEO] * 256 + [5], [((16, 4, 4), 1.0)])
    assert places[-1] == (31, 31, 31) and after == 32
    types = torch.tensor([[2] * 256 + [0]])
    found = trained_positions(types, types >= 0, [], [(16, 4, 4)], [torch.arange(16) * 2])
    assert found[:, 0].T.tolist() == [list(place) for place in places]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("intervals", [INTERVALS, torch.tensor([1 / 3, 0.4, 1.6]), [4.0, 0.1, 0.25], None])
def test_all_kept(model, side, intervals):
    """Also what follows is numbered from there: rope_deltas is what the model adds to the number of tokens."""
    inputs = example(side, intervals)
    expected = rule(None if intervals is None else [float(interval) for interval in intervals])
    with torch.no_grad(), make_pruner("tango", 1.0, positions="trained")(model):
        (positions,) = decoder_positions(model, lambda: model(**inputs))
        deltas = model.model.rope_deltas[:, 0].tolist()
    check(positions, side, [places for places, _ in expected])
    assert deltas == [after - len(places) for places, after in expected]


@pytest.mark.parametrize("pruner", [Spy([3, 11, 26], positions="trained"), FastV(retention_ratio=0.8, pruned_layer=1)])
def test_pruned(model, pruner):
    inputs = example()
    with torch.no_grad(), attach(model, pruner):
        (positions,) = decoder_positions(model, lambda: model(**inputs))
    expected = []
    for ids, (places, _) in zip(ROWS, rule(), strict=True):
        columns = range(len(ids))
        if isinstance(pruner, Spy):
            spans = [start for start in columns if ids[start] == VIDEO != ids[start - 1]]
            kept = {start + index for start in spans for index in pruner.indices.tolist()}
            columns = [column for column in columns if ids[column] != VIDEO or column in kept]
        expected.append([places[column] for column in columns])
    check(positions, "left", expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ratio", [0.3, 1.0])
def test_generation_goes_on_from_there(model, way, ratio):
    inputs = example(max_new_tokens=4, min_new_tokens=4, suppress_tokens=[IMAGE, VIDEO]) | WAYS[way]
    with make_pruner("topk", ratio, positions="trained")(model):
        steps = decoder_positions(model, lambda: model.generate(**inputs))
    assert len(steps) == 4
    times = steps[0].shape[1] // len(ROWS)
    for step, positions in enumerate(steps):
        for row, (_, after) in enumerate(rule()):
            assert (positions[:, row * times : (row + 1) * times, -1] == after - 1 + step).all()


def test_going_on_from_a_cache_by_hand(model):
    inputs = QWEN.prompt([5, *TALL, 6]) | video_inputs(GRIDS[0]) | {"second_per_grid_ts": INTERVALS[:1]}
    with torch.no_grad(), make_pruner("topk", 0.3, positions="trained")(model):
        cache = model(**inputs, use_cache=True).past_key_values
        (positions,) = decoder_positions(model, lambda: model(torch.tensor([[9, 10]]), past_key_values=cache))
    _, after = by_the_rule([5, *TALL, 6], [(SHAPES[0], INTERVALS[0])])
    assert positions[:, 0].tolist() == [[after, after + 1]] * 3


def test_the_prompt_may_come_in_other_ways(model):
    """Without token types, as embeddings, without a mask; positions that the caller gives stand as they are."""
    inputs = example()
    ids = inputs.pop("input_ids")
    embeds = model.get_input_embeddings()(ids)
    untyped = {name: value for name, value in inputs.items() if name != "mm_token_type_ids"}
    with torch.no_grad(), make_pruner("topk", 1.0, positions="trained")(model):
        for call in (untyped | {"input_ids": ids}, inputs | {"inputs_embeds": embeds},
                     untyped | {"inputs_embeds": embeds}):  # fmt: skip
            (positions,) = decoder_positions(model, lambda: model(**call))  # noqa: B023
            check(positions, "left", [places for places, _ in rule()])
        own = torch.arange(ids.shape[1]).expand(3, 3, -1)
        (positions,) = decoder_positions(model, lambda: model(input_ids=ids, **inputs, position_ids=own))
        assert torch.equal(positions, own)
        single = QWEN.prompt(ROWS[1]) | video_inputs(GRIDS[1])
        del single["attention_mask"]
        (positions,) = decoder_positions(model, lambda: model(**single))
    places, _ = by_the_rule(ROWS[1], [(SHAPES[1], 1.0)])
    check(positions, "left", [places])


def test_videos_without_anything_between():
    types = torch.tensor([[0, *[2] * 8, *[2] * 2]])
    found = trained_positions(
        types, types >= 0, [], [(2, 2, 2), (1, 1, 2)], [torch.arange(2) * 2, torch.zeros(1).long()]
    )
    assert found[:, 0, -2:].T.tolist() == [[4, 4, 4], [4, 4, 5]]


def test_types_that_are_not_the_videos(model):
    inputs = example()
    inputs["mm_token_type_ids"] = inputs["mm_token_type_ids"].roll(1, 1)
    inputs["mm_token_type_ids"][0, -20] = 0
    with make_pruner("topk", 0.5, positions="trained")(model), pytest.raises(ValueError, match="mm_token_type_ids"):
        model(**inputs)


def test_those_of_transformers(model):
    """positions="transformers" is the installed version's, pruned or not; kept tokens have the same."""
    inputs = example()
    with torch.no_grad():
        (plain,) = decoder_positions(model, lambda: model(**inputs))
        with make_pruner("topk", 1.0)(model):
            (whole,) = decoder_positions(model, lambda: model(**inputs))
        single = QWEN.prompt([5, *QWEN.video(), 6]) | QWEN.pixels()
        (every,) = decoder_positions(model, lambda: model(**single))
        with attach(model, Spy([3, 11])):
            (pruned,) = decoder_positions(model, lambda: model(**single))
    assert torch.equal(plain, whole)
    assert torch.equal(pruned, every[..., [0, 1, 2 + 3, 2 + 11, 38, 39]])


def test_refused():
    with pytest.raises(ValueError, match=r"Tango\.positions = 'own': expected one of 'trained', 'transformers'"):
        make_pruner("tango", 0.5, positions="own")


def test_other_families_have_one_numbering():
    """Qwen3-VL's is the same in transformers and in training: all kept, it equals the model that nothing is on."""
    family = FAMILIES["qwen3_vl"]
    model, inputs = family.model(), family.prompt([5, *family.video(), 7, 8]) | family.pixels()
    with torch.no_grad():
        expected = model(**inputs).logits
        with make_pruner("tango", 1.0, positions="trained")(model):
            assert torch.equal(model(**inputs).logits, expected)
