"""HoliTom: the published code's own numbers, a plain slow version, its order, its part inside the language model."""

import pytest
import torch
from golden_cases import cases, read
from hypothesis import given, settings
from hypothesis import strategies as st
from peer_checks import check_golden, check_properties, check_refusals, same
from slow_peers import holitom
from videos import made_up

from tango.pruners.holitom import HoliTom

videos = {
    "frames": st.integers(1, 8),
    "grid": st.tuples(st.integers(1, 4), st.integers(1, 5)),
    "dim": st.sampled_from([5, 10]),
    "seed": st.integers(0, 9999),
    "noise": st.sampled_from([0.05, 0.3, 1.0]),
    "copies": st.sampled_from([0.0, 0.0, 0.3, 1.0]),
    "zeros": st.sampled_from([0.0, 0.2]),
}
quick = settings(max_examples=25, deadline=None, derandomize=True)


@pytest.mark.parametrize("path", cases("holitom"), ids=lambda path: path.stem)
def test_published_numbers(path):
    check_golden(HoliTom, path)


@pytest.mark.parametrize("path", cases("holitom"), ids=lambda path: path.stem)
def test_published_numbers_inside_the_language_model(path):
    tensors, parameters, _ = read(path)
    inside = HoliTom(pruned_layer=18, llm_drop_ratio=parameters["llm_drop_ratio"]).in_llm(28)
    start, length = parameters["llm_start"], parameters["llm_length"]
    hidden, scores = tensors["llm_hidden_states"], tensors["llm_attention_last_row"].mean(0)
    video = slice(start, start + length)
    kept = inside.keep(scores[video])
    out = torch.cat((hidden[:start], inside.merge(hidden[video], kept), hidden[start + length :]))
    places = torch.cat((torch.arange(start), start + kept, torch.arange(start + length, len(hidden))))
    assert torch.equal(places, tensors["llm_kept_positions"])
    torch.testing.assert_close(out, tensors["llm_output_hidden_states"], atol=1e-5, rtol=1e-5)


def test_all_cases_are_here():
    assert len(cases("holitom")) == 6


@quick
@given(
    video=st.fixed_dictionaries(videos),
    ratio=st.floats(0.01, 0.99),
    tau=st.sampled_from([None, 0.3, 0.8]),
    beta=st.sampled_from([0.0, 0.6, 1.0]),
    neighbors=st.integers(1, 8),
    longest=st.sampled_from([1, 2, 3, 1024]),
)
def test_equals_the_slow_version(video, ratio, tau, beta, neighbors, longest):
    features, saliency, grid, _ = made_up(**video)
    method = HoliTom(ratio, similarity_threshold=tau, anchor_weight=beta, num_neighbors=neighbors, max_window=longest)
    threshold = tau if tau is not None else 0.65 if ratio <= 0.1 else 0.8
    expected = holitom(features, saliency, ratio, threshold, beta, neighbors, longest)
    pruned = method.prune(features, saliency, grid)
    if expected[0]:
        same(pruned, *expected)
    else:  # the steps round to nothing: the most salient token stays
        assert pruned.indices.tolist() == [int(saliency.flatten().argmax())]


@quick
@given(video=st.fixed_dictionaries(videos), ratio=st.floats(0.01, 0.99))
def test_properties(video, ratio):
    def most(frames, tokens, r):
        return min(frames * tokens, frames * tokens * r + 2 * frames)  # rounded up in each frame of each window

    check_properties(HoliTom, most, video, ratio)


def test_a_still_video():
    """Everything is static: one window, stored once, so that the ratio is raised to all of it."""
    features = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0)).expand(4, 6, 8)
    saliency = torch.rand(4, 6, generator=torch.Generator().manual_seed(1))
    pruned = HoliTom(0.25).prune(features, saliency, (2, 3))
    assert pruned.indices.tolist() == list(range(6)) and pruned.segment_sizes.tolist() == [4]
    torch.testing.assert_close(pruned.features, features[0])
    third = HoliTom(0.125).prune(features, saliency, (2, 3))  # round(6 * 0.5) of them
    assert len(third.indices) == 3


def test_the_order_is_by_window_static_ones_first():
    """Two scenes; token 1 of each is static, the others change all the time."""
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(4, 3, 16, generator=generator)
    features[1, 1], features[3, 1] = features[0, 1], features[2, 1]
    saliency = torch.tensor([[1.0, 0, 2], [2, 0, 1], [1, 0, 2], [2, 0, 1]])
    pruned = HoliTom(0.5, similarity_threshold=0.9).prune(features, saliency, (1, 3))
    assert pruned.segment_sizes.tolist() == [2, 2]
    # r' = 0.5 / (10 / 12) = 0.6: one static token, ceil(2 * 0.6) = 2 others a frame.
    assert pruned.indices.tolist() == [1, 0, 2, 3, 5, 7, 6, 8, 9, 11]


def test_inside_the_language_model():
    assert HoliTom().in_llm(28) is None
    assert HoliTom(1.0, pruned_layer=18).in_llm(28) is None
    inside = HoliTom(0.2, pruned_layer=18).in_llm(28)
    assert (inside.layer, inside.retention, inside.merging, inside.newlines) == (18, 0.5, "sequential", True)
    assert inside.count(7) == 4 and inside.count(5) == 2  # halves to even
    method = HoliTom(0.2, pruned_layer=18)
    assert method.before_llm(28) is method  # on top of the ratio, as published
    with pytest.raises(ValueError, match=r"HoliTom.pruned_layer = 18: a language model of 4 layers"):
        method.in_llm(4)


def test_refusals():
    wrong = [("similarity_threshold", 2), ("anchor_weight", -1), ("num_neighbors", 0), ("max_window", 0),
             ("pruned_layer", 0), ("llm_drop_ratio", 1.0), ("llm_drop_ratio", -0.5)]  # fmt: skip
    check_refusals(HoliTom(), wrong)
