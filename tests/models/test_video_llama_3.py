"""What only VideoLLaMA3 has: tokens that its processor leaves out, a tower for any size that merges bilinearly."""

import math

import pytest
import torch
from families import FAMILIES, TOKENS, Spy, make_pruner, outputs
from test_qwen import rotated
from tiny_qwen import IMAGE, VIDEO
from tiny_video_llama_3 import video_inputs

from tango.models import attach
from tango.models.video_llama_3 import survivors
from tango.pruners import REGISTRY, Pruned
from tango.pruners.unmerged import keep

FAMILY = FAMILIES["video_llama_3"]
# What the processor left of two videos of four frames of 3 x 3 tokens; a frame keeps at least its first token.
PRESENT = torch.ones(2, 4, TOKENS, dtype=torch.bool)
PRESENT[0, 1, 2:7] = PRESENT[0, 2, 1:] = PRESENT[0, 3, 3:5] = PRESENT[1, 3, :6] = False


def video(present):
    return [token for frame, own in enumerate(present) for token in (20 + frame, *[VIDEO] * int(own.sum()))]


def example(batch=1):
    """A prompt with two videos of which some tokens were left out, and an image; a second row with one video."""
    rows = [5, *video(PRESENT[0]), 6, *FAMILY.image, *video(PRESENT[1]), 7, 8], [5, *video(PRESENT[0]), 9]
    mask = [PRESENT[0], PRESENT[1], PRESENT[0]][: batch + 1]
    inputs = FAMILY.prompt(*rows[:batch]) | FAMILY.images() | FAMILY.pixels(batch + 1)
    return rows, inputs | {"video_compression_mask": torch.cat([own.flatten() for own in mask])}


def stand_in(present, index):
    """The token itself, or the last before it at its place that was not left out."""
    frame, place = divmod(index, TOKENS)
    while not present[frame, place]:
        frame -= 1
    return frame * TOKENS + place


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("method", REGISTRY)
def test_pruning_comes_after_what_was_left_out(method, batch):
    """All kept as without a pruner, to the bit; pruned, a share of what was left, and of that alone."""
    model, (_, inputs) = FAMILY.model(), example(batch)
    left = [int(own.sum()) for own in [*PRESENT, PRESENT[0]][: batch + 1]]
    expected = outputs(model, inputs, 3)
    with make_pruner(method, 1.0)(model) as session:
        assert all(map(torch.equal, outputs(model, inputs, 3), expected))
        assert [(record.tokens_before, record.tokens_after) for record in session.videos] == [(n, n) for n in left]
    exact = {} if method == "fastv" else {"exact_budget": True}
    with make_pruner(method, 0.3, **exact)(model) as session:
        answer, logits = outputs(model, inputs, 3)
    assert answer.shape[1] == inputs["input_ids"].shape[1] + 3 and logits.shape[1] < expected[1].shape[1]
    for record, count, present in zip(session.videos, left, [*PRESENT, PRESENT[0]], strict=False):
        if method != "fastv":
            assert record.tokens_after == round(0.3 * count)
        assert record.tokens_before == count and record.frames == 4
        assert bool(present.flatten()[record.indices].all())
        assert len(record.indices.unique()) == len(record.indices)


@torch.no_grad()
def test_logits_are_those_of_the_shorter_prompt():
    """By hand: what a method kept, each by what stands in for it, and numbers without gaps."""
    model, (rows, inputs) = FAMILY.model(), example()
    wanted = [3, 12, 14, 21, 33]  # of the first video 3, 12, 14 and 21 were left at 3 twice: one of them is another
    with attach(model, Spy(wanted)) as session:
        found = model(**inputs).logits
    features = model.model.get_video_features(
        inputs["pixel_values_videos"], inputs["video_grid_thw"], inputs["video_merge_sizes"]
    ).pooler_output
    image = model.model.get_image_features(
        inputs["pixel_values"], inputs["image_grid_thw"], inputs["image_merge_sizes"]
    ).pooler_output[0]
    row, embeds, columns = rows[0], model.get_input_embeddings()(inputs["input_ids"]), []
    embeds[0, [column for column, token in enumerate(row) if token == IMAGE]] = image
    places = iter([column for column, token in enumerate(row) if token == VIDEO])
    dropped = set()
    for index, present in enumerate(PRESENT):
        own = {token: next(places) for token in present.flatten().nonzero()[:, 0].tolist()}
        kept = session.videos[index].indices.tolist()
        expected = {stand_in(present, token) for token in wanted}
        assert expected <= set(kept) and len(kept) == len(wanted) and kept == sorted(kept)
        for token in expected:
            first = token if token in wanted else next(one for one in wanted if stand_in(present, one) == token)
            embeds[0, own[token]] = features[index][first]
        for token in set(kept) - expected:
            embeds[0, own[token]] = features[index][token]
        dropped |= {place for token, place in own.items() if token not in kept}
    columns = [column for column in range(len(row)) if column not in dropped]
    decoder = model.model.language_model
    hidden = decoder(inputs_embeds=embeds[:, columns], position_ids=torch.arange(len(columns))[None])
    torch.testing.assert_close(found, model.lm_head(hidden.last_hidden_state), atol=1e-5, rtol=1e-5)


def test_survivors():
    present = torch.tensor([[1, 1, 1], [0, 1, 0], [0, 0, 1]]).bool()
    features = torch.arange(9.0).view(3, 3, 1)

    def survive(*indices):
        found = survivors(keep(features, torch.tensor(indices)), features, present)
        return found.indices.tolist(), found.features[:, 0].tolist()

    assert survive(0, 4, 8) == ([0, 4, 8], [0, 4, 8])
    assert survive(3, 7) == ([0, 4], [3, 7])  # as they were kept, where those stand that they repeat
    assert survive(0, 3, 6) == ([0, 1, 4], [0, 1, 4])  # 0 is kept once; of 1, 2, 4, 8 two more, evenly spread
    assert survive(*range(9)) == ([0, 1, 2, 4, 8], [0, 1, 2, 4, 8])
    merged = Pruned(torch.tensor([5, 2]), torch.tensor([[50.0], [20.0]]), torch.tensor([3]))
    assert survivors(merged, features, present).features[:, 0].tolist()[-1] in (20.0, 4.0, 8.0)
    with pytest.raises(ValueError, match="leaves out tokens of a video's first frame"):
        survivors(merged, features, ~present)


@pytest.mark.parametrize("saliency", ["global_query", "received_attention"])
@torch.no_grad()
def test_saliency_and_keys(saliency):
    """By their formulas, patch by patch, for frames of 2 x 4 tokens."""
    model, grid = FAMILY.model(), (2, 4, 8)
    inputs = video_inputs(grid)
    spy = Spy([0], wanted=frozenset({"saliency", "keys"}), saliency=saliency)
    with attach(model, spy):
        model(**FAMILY.prompt([5, *[VIDEO] * 16, 7]), **inputs)
    layer, states = model.model.vision_model.encoder.layers[-1], []
    hook = layer.register_forward_pre_hook(lambda _, args: states.append(args[0]))
    model.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"], inputs["video_merge_sizes"])
    hook.remove()
    frequencies = [10000 ** (-2 * index / 4) for index in range(2)]
    for frame, hidden in enumerate(states[0].view(2, 32, 32)):
        normed = layer.layer_norm1(hidden)
        query, key = layer.self_attn.q_proj(normed).view(32, 4, 8), layer.self_attn.k_proj(normed).view(32, 4, 8)
        for patch in range(32):  # four of a token lie side by side
            token, part = divmod(patch, 4)
            y, x = token // 4 * 2 + part // 2, token % 4 * 2 + part % 2
            angles = [y * f for f in frequencies] + [x * f for f in frequencies]
            for head in range(4):
                query[patch, head] = rotated(query[patch, head], angles)
                key[patch, head] = rotated(key[patch, head], angles)
        by_token = key.view(8, 4, 4, 8).mean(1)
        torch.testing.assert_close(spy.calls[0]["keys"][frame], by_token.mean(1), atol=1e-5, rtol=1e-4)
        expected = torch.zeros(8)
        for head in range(4):
            if saliency == "global_query":
                expected += torch.softmax(by_token[:, head] @ query[:, head].mean(0) / math.sqrt(8), 0) / 4
            else:
                received = torch.softmax(query[:, head] @ key[:, head].T / math.sqrt(8), 1).mean(0)
                expected += received.view(8, 4).mean(1) / 4
        torch.testing.assert_close(spy.calls[0]["saliency"][frame], expected, atol=1e-6, rtol=1e-4)
        assert expected.std() > 1e-3


@pytest.mark.parametrize("change, message", [
    ({"video_merge_sizes": None}, "needs video_grid_thw and video_merge_sizes"),
    ({"video_compression_mask": torch.ones(35)}, r"has shape \(35,\); the videos need \(36,\)"),
    ({"video_compression_mask": torch.arange(36) > 3}, "holds 36 video placeholders, and 1 videos need 32"),
    ({"pixel_values_videos": torch.zeros(143, 48)}, "video_grid_thw needs 144 rows"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(change, message):
    model, inputs = FAMILY.model(), FAMILY.prompt([5, *FAMILY.video(), 7]) | FAMILY.pixels()
    with make_pruner("uniform", 0.3)(model), pytest.raises(ValueError, match=message):
        model.generate(**inputs | change, max_new_tokens=1)
