"""Qwen3-Omni's thinker: sound stays whole beside and among the tokens of videos, positions count time."""

import itertools
import math

import pytest
import torch
from families import FAMILIES, Spy, make_pruner, outputs
from test_generate import WAYS
from test_qwen_positions import decoder_positions
from tiny_qwen import (
    AUDIO,
    AUDIO_END,
    AUDIO_START,
    END,
    IMAGE,
    RATE,
    START,
    VIDEO,
    image_inputs,
    sounds,
    video_inputs,
    vision_tower,
)

from tango.models import attach, family_of
from tango.pruners import REGISTRY

FAMILY = FAMILIES["qwen3_omni_moe"]
KEPT = [3, 11, 20, 26]
# Patches of two videos and of an image, frames of a spectrum; seconds from frame to frame of the videos.
VIDEO_A, VIDEO_B, SOUND, PICTURE = (4, 6, 6), (3, 4, 10), 150, (4, 6)
STEPS = {VIDEO_A: 0.3, VIDEO_B: 1.25, (1, 4, 40): 1.0}


def tokens_of_sound(length):
    """Three convolutions halve what is left of each 100 frames, which are 13 tokens."""
    whole, left = divmod(length, 100)
    for _ in range(3):
        left = math.ceil(left / 2)
    return 13 * whole + left


def alone(grid):
    return [START, *[VIDEO] * (math.prod(grid) // 4), END]


def heard(length):
    return [AUDIO_START, *[AUDIO] * tokens_of_sound(length), AUDIO_END]


def with_sound(grid, length):
    """Each frame before the first sound token that is not earlier: a token of sound is 1 / RATE s."""
    events = [(frame * STEPS[grid] * RATE, 0, VIDEO) for frame in range(grid[0]) for _ in range(grid[1] * grid[2] // 4)]
    events += [(float(index), 1, AUDIO) for index in range(tokens_of_sound(length))]
    return [START, AUDIO_START, *[token for *_, token in sorted(events)], AUDIO_END, END]


PICTURED = [START, *[IMAGE] * 6, END]
BESIDE = [5, *heard(SOUND), *PICTURED, 6, *alone(VIDEO_A), 7, *heard(40), 8]
# Rows of ids, the grids of patches of the videos of each, and the lengths of its sounds.
KINDS = {
    "video alone": (
        ([5, *alone(VIDEO_A), 6, *alone(VIDEO_B), 7, 8], (VIDEO_A, VIDEO_B), ()),
        ([9, *alone(VIDEO_B), 4], (VIDEO_B,), ()),
    ),
    "an image and sound beside": (
        (BESIDE, (VIDEO_A,), (SOUND, 40)),
        ([*PICTURED, *alone(VIDEO_B), 9, *heard(260)], (VIDEO_B,), (260,)),
    ),
    "sound in videos": (
        ([5, *with_sound(VIDEO_A, SOUND), 6, 7], (VIDEO_A,), (SOUND,)),
        ([*PICTURED, 4, *with_sound(VIDEO_B, 400), *heard(40), 9], (VIDEO_B,), (400, 40)),
    ),
}


def example(rows, side="left", dtype=torch.float32):
    ids, grids, lengths = zip(*rows, strict=True)
    grids, lengths = sum(grids, ()), sum(lengths, ())
    inputs = FAMILY.prompt(*ids, side=side) | video_inputs(*grids, dtype=dtype)
    inputs["video_second_per_grid"] = torch.tensor([STEPS[grid] for grid in grids])
    if pictures := sum(row.count(IMAGE) for row in ids) // 6:
        inputs |= image_inputs(*[PICTURE] * pictures, dtype=dtype)
    if lengths:
        inputs |= sounds(*lengths, dtype=dtype)
    among = any((before, after) == (START, AUDIO_START) for row in ids for before, after in itertools.pairwise(row))
    return inputs | ({"use_audio_in_video": True} if among else {})


def by_the_rule(ids, grids):
    """(temporal, row, column) of each token of a row, and where the next one stands.

    Text and sound count on by 1. Frames of a video are at their times in steps of 1 / RATE s, sound among them counts
    from the video's start, rows and columns too, and what follows starts at the largest of these + 1.
    """
    grids, places, start, at = list(grids), [], 0.0, 0
    while at < len(ids):
        end = at
        while end < len(ids) and ids[at] in (VIDEO, AUDIO) and ids[end] in (VIDEO, AUDIO):
            end += 1
        run = ids[at:end] or [ids[at]]
        if VIDEO in run:
            grid = grids.pop(0)
            rows, columns = range(grid[1] // 2), range(grid[2] // 2)
            video = iter([(f * STEPS[grid] * RATE, y, x) for f in range(grid[0]) for y in rows for x in columns])
            sound = itertools.count()
            new = [next(video) if token == VIDEO else (next(sound),) * 3 for token in run]
        elif run[0] == IMAGE:
            new = [(0, y, x) for y in range(2) for x in range(3)]
        else:
            new = [(index,) * 3 for index in range(len(run))]
        places += [tuple(start + part for part in place) for place in new]
        start, at = max(max(place) for place in places) + 1, at + len(new)
    return places, start


def columns_left(ids, indices):
    """Columns of a row that stay where each video keeps the tokens of these indices, at least one of its own."""
    left, videos = [], itertools.groupby(range(len(ids)), key=lambda column: ids[column] in (START, END))
    for _, group in videos:
        group = list(group)
        visual = [column for column in group if ids[column] == VIDEO]
        left += [column for column in group if ids[column] != VIDEO or visual.index(column) in indices]
    return left


def near(positions, expected):
    torch.testing.assert_close(positions, torch.tensor(expected).T.to(positions), atol=1e-4, rtol=1e-6)


@pytest.fixture(params=KINDS)
def rows(request):
    return KINDS[request.param]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("indices", [None, KEPT])
def test_positions(rows, side, indices):
    """By the rule, of the whole prompt and of what stays; the sound stays whole."""
    model, inputs = FAMILY.model(), example(rows, side)
    pruner = make_pruner("topk", 1.0, positions="trained") if indices is None else Spy(KEPT, positions="trained")
    with torch.no_grad(), attach(model, pruner):
        (positions,) = decoder_positions(model, lambda: model(**inputs))
    assert positions.dtype == torch.float32
    for row, (ids, grids, _) in enumerate(rows):
        places, _ = by_the_rule(ids, grids)
        columns = range(len(ids)) if indices is None else columns_left(ids, KEPT)
        own = positions[:, row, -len(columns) :] if side == "left" else positions[:, row, : len(columns)]
        near(own, [places[column] for column in columns])
    assert any(place[0] % 1 for ids, grids, _ in rows for place in by_the_rule(ids, grids)[0])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ratio", [0.3, 1.0])
def test_generation_goes_on_from_there(rows, way, ratio):
    model, inputs = FAMILY.model(), example(rows) | WAYS[way]
    inputs |= {"max_new_tokens": 4, "min_new_tokens": 4, "suppress_tokens": [IMAGE, VIDEO, AUDIO]}
    with make_pruner("topk", ratio, positions="trained")(model):
        steps = decoder_positions(model, lambda: model.generate(**inputs))
    assert len(steps) == 4
    times = steps[0].shape[1] // len(rows)
    for step, positions in enumerate(steps):
        for row, (ids, grids, _) in enumerate(rows):
            expected = by_the_rule(ids, grids)[1] - 1 + step
            torch.testing.assert_close(
                positions[:, row * times : (row + 1) * times, -1], torch.full((3, times), expected), atol=1e-4, rtol=0
            )


ALIKE = [(torch.float32, "trained", method) for method in REGISTRY]


@pytest.mark.parametrize(
    "dtype, positions, method", [*ALIKE, (torch.bfloat16, "trained", "tango"), (torch.float32, "transformers", "tango")]
)
def test_whole_it_is_the_model_to_the_bit(rows, dtype, positions, method):
    model, inputs = FAMILY.model(dtype), example(rows, dtype=dtype)
    expected = outputs(model, inputs, 3)
    with make_pruner(method, 1.0, positions=positions)(model):
        found = outputs(model, inputs, 3)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@torch.no_grad()
def test_logits_are_those_of_what_stays(rows):
    """Of a decoder that is given, by hand, what stays alone: tokens with sound and deepstack, at places by the rule."""
    model = FAMILY.model()
    decoder = family_of(model).language_model(model)
    for ids, grids, lengths in rows:
        inputs = example([(ids, grids, lengths)])
        columns, row = columns_left(ids, KEPT), torch.tensor(ids)
        embeds, deepstack = model.get_input_embeddings()(row), [torch.zeros(len(ids), 32) for _ in range(2)]
        for token, name in ((VIDEO, "video"), (IMAGE, "image")):
            if token not in ids:
                continue
            pixels = inputs["pixel_values_videos" if token == VIDEO else "pixel_values"]
            output = vision_tower(model)(pixels, grid_thw=inputs[f"{name}_grid_thw"])
            embeds[row == token] = output.pooler_output
            for layer, features in zip(deepstack, output.deepstack_features, strict=True):
                layer[row == token] = features
        if lengths:
            audio = [inputs[name] for name in ("input_features", "feature_attention_mask")]
            embeds[row == AUDIO] = model.get_audio_features(*audio, return_dict=True).last_hidden_state
        visual = torch.isin(row, torch.tensor([VIDEO, IMAGE]))[columns]
        positions = torch.tensor(by_the_rule(ids, grids)[0]).T[:, columns]
        hidden = decoder(
            inputs_embeds=embeds[None, columns],
            position_ids=positions[:, None],
            visual_pos_masks=visual[None],
            deepstack_visual_embeds=[layer[columns][visual] for layer in deepstack],
        ).last_hidden_state
        with attach(model, Spy(KEPT, positions="trained")):
            found = model(**inputs).logits
        torch.testing.assert_close(found, model.lm_head(hidden), atol=1e-4, rtol=1e-4)


def test_where_transformers_numbers_otherwise():
    """Sound shorter than frames are wide, so that text would start among their columns; sound of one video alone."""
    short = ([5, *with_sound((1, 4, 40), 20), 6], ((1, 4, 40),), (20,))
    mixed = ([5, *with_sound(VIDEO_A, SOUND), 6, *alone(VIDEO_B), 7], (VIDEO_A, VIDEO_B), (SOUND,))
    model = FAMILY.model()
    for rows, others in ((short, True), (mixed, True), (KINDS["sound in videos"][0], False)):
        inputs = example([rows])
        with torch.no_grad():
            (own,) = decoder_positions(model, lambda: model(**inputs))  # noqa: B023
            found = []
            for numbered in ("transformers", "trained"):
                with make_pruner("topk", 1.0, positions=numbered)(model):
                    found += decoder_positions(model, lambda: model(**inputs))  # noqa: B023
        assert torch.equal(found[0], own)
        near(found[1][:, 0], by_the_rule(*rows[:2])[0])
        assert torch.equal(found[1], own) is not others


def part(inputs, rows, index):
    """The inputs of one row of a batch."""
    own = {}
    for name, of_row in (
        ("video", [len(row[1]) for row in rows]),
        ("image", [row[0].count(IMAGE) // 6 for row in rows]),
    ):
        if f"{name}_grid_thw" not in inputs:
            continue
        grids = inputs[f"{name}_grid_thw"].split(of_row)
        pixels = "pixel_values_videos" if name == "video" else "pixel_values"
        packed = inputs[pixels].split([int(grid.prod(1).sum()) for grid in grids])
        if of_row[index]:
            own |= {f"{name}_grid_thw": grids[index], pixels: packed[index]}
    own["video_second_per_grid"] = inputs["video_second_per_grid"].split([len(row[1]) for row in rows])[index]
    for name in ("input_features", "feature_attention_mask"):
        if name in inputs:
            own[name] = inputs[name].split([len(row[2]) for row in rows])[index]
    return FAMILY.prompt(rows[index][0]) | own


def test_a_batch_is_its_rows(rows):
    model, inputs = FAMILY.model(), example(rows)
    with torch.no_grad(), make_pruner("tango", 0.3, positions="trained")(model) as session:
        together, kept = model(**inputs).logits, [record.indices for record in session.videos]
        for index in range(len(rows)):
            single = model(**part(inputs, rows, index)).logits[0]
            torch.testing.assert_close(together[index, -len(single) :], single, atol=1e-4, rtol=1e-4)
            for record in session.videos:
                assert torch.equal(record.indices, kept.pop(0))
    assert kept == []


def test_what_cannot_be_is_refused():
    model, inputs = FAMILY.model(), example(KINDS["an image and sound beside"][:1])
    without = {name: value for name, value in inputs.items() if name != "video_second_per_grid"}
    longer = inputs | sounds(SOUND, 60)
    with torch.no_grad(), make_pruner("topk", 0.3, positions="trained")(model):
        with pytest.raises(ValueError, match="Qwen3-Omni needs video_second_per_grid"):
            model(**without)
        with pytest.raises(ValueError, match="video_second_per_grid has 2 entries for 1 videos"):
            model(**inputs | {"video_second_per_grid": torch.tensor([1.0, 1.0])})
        with pytest.raises(
            ValueError, match=f"the prompt holds {20 + 5} audio placeholders for {20 + 8} audio features"
        ):
            model(**longer)


def test_sound_alone_passes_through():
    model, inputs = FAMILY.model(), FAMILY.prompt([5, *heard(SOUND), 6]) | sounds(SOUND)
    expected = outputs(model, inputs)
    with make_pruner("tango", 0.1)(model):
        for one, other in zip(outputs(model, inputs), expected, strict=True):
            assert torch.equal(one, other)
