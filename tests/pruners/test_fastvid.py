"""FastVID: the published code's own numbers, a plain slow version, and its budgets and anchor frames by hand."""

import pytest
import torch
from golden_cases import cases, read
from hypothesis import given, settings
from hypothesis import strategies as st
from peer_checks import check_golden, check_properties, check_refusals, same
from slow_peers import fastvid
from videos import made_up

from tango.pruners.fastvid import FastVID

videos = {
    "frames": st.integers(1, 9),
    "grid": st.tuples(st.integers(1, 4), st.integers(1, 5)),
    "dim": st.sampled_from([4, 9]),
    "seed": st.integers(0, 9999),
    "noise": st.sampled_from([0.05, 0.5]),
    "copies": st.sampled_from([0.0, 0.0, 0.3]),
    "zeros": st.sampled_from([0.0, 0.2]),
}
quick = settings(max_examples=25, deadline=None, derandomize=True)


@pytest.mark.parametrize("path", cases("fastvid"), ids=lambda path: path.stem)
def test_published_numbers(path):
    tensors, parameters, pruned = check_golden(FastVID, path)
    merged = torch.bincount(pruned.indices // tensors["features"].shape[1]) - parameters["salient_per_frame"]
    assert torch.equal(merged, tensors["anchors_per_frame"])


def test_all_cases_are_here():
    assert len(cases("fastvid")) == 6


@pytest.mark.parametrize("number", [3, 5])
def test_the_slow_version_meets_them_too(number):
    tensors, p, _ = read(cases("fastvid")[number])
    indices, values, sizes = fastvid(
        tensors["features"], tensors["saliency"], tensors["frame_vectors"], p["retention_ratio"], p["min_segments"],
        p["similarity_threshold"], p["context_ratio"], p["anchor_interval"], p["anchor_weight"],
    )  # fmt: skip
    assert indices == tensors["kept_indices"].tolist() and sizes == tensors["segment_sizes"].tolist()
    torch.testing.assert_close(torch.stack(values).float(), tensors["kept_features"], atol=1e-5, rtol=1e-5)


@quick
@given(
    video=st.fixed_dictionaries(videos),
    ratio=st.floats(0.01, 0.99),
    min_segments=st.integers(1, 4),
    tau=st.sampled_from([-1.0, 0.5, 0.9]),
    share=st.sampled_from([0.0, 0.4, 0.7, 1.0]),
    interval=st.integers(1, 4),
    beta=st.sampled_from([0.0, 0.3, 0.6, 1.0]),
)
def test_equals_the_slow_version(video, ratio, min_segments, tau, share, interval, beta):
    features, saliency, grid, _ = made_up(**video)
    chosen = {"min_segments": min_segments, "similarity_threshold": tau, "context_ratio": share,
              "anchor_interval": interval, "anchor_weight": beta}  # fmt: skip
    method = FastVID(ratio, **chosen)
    vectors = torch.randn(len(features), 5, generator=torch.Generator().manual_seed(2))
    expected = fastvid(features, saliency, vectors, ratio, min_segments, tau, share, interval, beta)
    same(method.prune(features, saliency, grid, frame_vectors=vectors), *expected)
    same(method.prune(features, saliency, grid, segment_features=vectors), *expected)


@quick
@given(video=st.fixed_dictionaries(videos), ratio=st.floats(0.01, 0.99))
def test_properties(video, ratio):
    check_properties(FastVID, lambda f, n, r: f * max(1, int(n * r)), video, ratio)


def test_frame_vectors_are_the_mean_tokens_where_none_are_given():
    features, saliency, grid, _ = made_up(9, (3, 4), 6, seed=3)
    method = FastVID(0.3, min_segments=3, similarity_threshold=0.5)
    expected = method.prune(features, saliency, grid, frame_vectors=features.mean(1))
    pruned = method.prune(features, saliency, grid)
    assert torch.equal(pruned.indices, expected.indices) and len(expected.segment_sizes) < 9


def test_budgets_and_anchor_frames():
    """196 tokens: 12 salient and 7 merged a frame; those of a segment stand in every 4th frame from its last."""
    features, saliency, grid, _ = made_up(7, (14, 14), 6, seed=1)
    vectors = torch.tensor([[1.0, 0]] * 5 + [[0, 1.0]] * 2)
    method = FastVID(0.1, min_segments=2)
    pruned = method.prune(features, saliency, grid, frame_vectors=vectors)
    assert pruned.segment_sizes.tolist() == [5, 2]
    # 5 frames of 7 in frames 0 and 4: 17 each, one is lost; 2 frames of 7 in their last.
    assert torch.bincount(pruned.indices // 196).tolist() == [12 + 17, 12, 12, 12, 12 + 17, 12, 12 + 14]
    for ratio, salient, merged in ((0.15, 18, 11), (0.2, 24, 15)):
        every = FastVID(ratio, min_segments=8).prune(features, saliency, grid)
        assert torch.bincount(every.indices // 196).tolist() == [salient + merged] * 7
        assert FastVID(ratio, context_ratio=0, min_segments=8).prune(features, saliency, grid).indices.numel() > 0
    exact = FastVID(0.1, min_segments=2, exact_budget=True).prune(features, saliency, grid, frame_vectors=vectors)
    assert len(exact.indices) == round(0.1 * 7 * 196)
    assert set(pruned.indices.tolist()) < set(exact.indices.tolist())


def test_an_anchor_stays_as_it_is_when_nobody_joins():
    """All tokens alike: the lowest anchor takes every token, the others none."""
    features = torch.ones(1, 6, 4)
    features[0, 5] = 3.0
    pruned = FastVID(0.67, context_ratio=0.8).prune(features, torch.tensor([[0, 0, 0, 0, 0, 1.0]]), (2, 3))
    assert pruned.indices.tolist() == [0, 1, 2, 5]
    assert torch.equal(pruned.features, features[0, [0, 1, 2, 5]])


def test_refusals():
    wrong = [("min_segments", 0), ("similarity_threshold", 1.1), ("context_ratio", -0.1), ("anchor_interval", 0),
             ("anchor_weight", 1.01)]  # fmt: skip
    check_refusals(FastVID(), wrong)
    features, saliency, grid, _ = made_up(3, (2, 2), 4)
    with pytest.raises(ValueError, match=r"frame_vectors must have shape \(3, width\)"):
        FastVID().prune(features, saliency, grid, frame_vectors=torch.zeros(2, 4))
    with pytest.raises(ValueError, match="frame_vectors must be finite"):
        FastVID().prune(features, saliency, grid, frame_vectors=torch.full((3, 4), torch.nan))
