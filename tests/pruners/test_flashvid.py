"""FlashVID: the published code's own numbers, a plain slow version, its quirks, and what enters a language model."""

import math

import pytest
import torch
from golden_cases import cases, read
from hypothesis import given, settings
from hypothesis import strategies as st
from peer_checks import check_golden, check_properties, check_refusals, same
from slow_peers import flashvid
from videos import made_up

from tango.pruners.flashvid import FlashVID

videos = {
    "frames": st.integers(1, 6),
    "grid": st.tuples(st.integers(1, 4), st.integers(1, 5)),
    "dim": st.sampled_from([5, 10]),
    "seed": st.integers(0, 9999),
    "noise": st.sampled_from([0.05, 0.3, 1.0]),
    "zeros": st.sampled_from([0.0, 0.1]),
}
quick = settings(max_examples=25, deadline=None, derandomize=True)


@pytest.mark.parametrize("path", cases("flashvid"), ids=lambda path: path.stem)
def test_published_numbers(path):
    tensors, parameters, pruned = check_golden(FlashVID, path)
    salient = tensors["salient_indices"]
    assert torch.isin(salient, pruned.indices).all()
    rows = torch.searchsorted(pruned.indices, salient)  # the first where an index occurs twice
    features = tensors["features"].flatten(0, 1)
    assert torch.equal(pruned.features[rows], features[salient])
    assert len(pruned.indices) - len(pruned.indices.unique()) == parameters["duplicate_indices"]


def test_all_cases_are_here():
    assert len(cases("flashvid")) == 6


def test_the_slow_version_meets_one_too():
    tensors, parameters, _ = read(cases("flashvid")[5])
    indices, values, sizes = flashvid(
        tensors["features"], tensors["saliency"], parameters["retention_ratio"],
        {name: parameters[name] for name in ("min_segments", "selection")},
    )  # fmt: skip
    assert indices == tensors["kept_indices"].tolist() and sizes == tensors["segment_sizes"].tolist()
    torch.testing.assert_close(torch.stack(values).float(), tensors["kept_features"], atol=1e-5, rtol=1e-5)


@quick
@given(
    video=st.fixed_dictionaries(videos),
    ratio=st.floats(0.01, 0.95),
    chosen=st.fixed_dictionaries(
        {
            "segment_threshold": st.sampled_from([-1.0, 0.5, 0.9]),
            "min_segments": st.integers(1, 4),
            "expansion": st.sampled_from([0.5, 1.0, 1.25]),
            "alpha": st.sampled_from([0.0, 0.5, 0.7, 1.0]),
            "temporal_threshold": st.sampled_from([-1.0, 0.0, 0.5, 0.8]),
            "selection": st.sampled_from(["v1", "v2"]),
            "tree_mean": st.sampled_from(["published", "exact"]),
        }
    ),
)
def test_equals_the_slow_version(video, ratio, chosen):
    features, saliency, grid, _ = made_up(**video)
    pruned = FlashVID(ratio, **chosen).prune(features, saliency, grid)
    same(pruned, *flashvid(features, saliency, ratio, chosen))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("selection", ["v1", "v2"])
def test_copies(seed, selection):
    """Exact copies tie everywhere, for salience, for parents and for density; the lower index wins."""
    features, saliency, grid, _ = made_up(4, (3, 4), 12, seed, noise=0.3, copies=0.3)
    chosen = {"selection": selection, "min_segments": 2, "segment_threshold": -1.0, "temporal_threshold": 0.7}
    pruned = FlashVID(0.4, **chosen).prune(features, saliency, grid)
    same(pruned, *flashvid(features, saliency, 0.4, chosen))


@quick
@given(video=st.fixed_dictionaries(videos | {"copies": st.sampled_from([0.0, 1.0])}), ratio=st.floats(0.01, 0.99))
def test_properties(video, ratio):
    def most(frames, tokens, r):
        return frames * min(tokens, math.ceil(tokens * r * 1.25) + 1)

    check_properties(FlashVID, most, video, ratio, unique=False)


def test_budgets():
    features, saliency, grid, _ = made_up(2, (14, 14), 8, seed=1)
    for ratio, total, salient in ((0.1, 25, 18), (0.15, 37, 26), (0.2, 49, 35)):
        pruned = FlashVID(ratio).prune(features, saliency, grid)  # each frame is a segment
        own = torch.bincount(pruned.indices // 196)
        assert all(total <= count <= total + 1 for count in own.tolist())
        unmerged = (pruned.features == features.flatten(0, 1)[pruned.indices]).all(1).sum()
        assert unmerged >= 2 * salient
        assert len(FlashVID(ratio, alpha=1.0).prune(features, saliency, grid).indices) == 2 * total
    assert len(FlashVID(0.85).prune(features, saliency, grid).indices) == 2 * 196


def test_trees():
    """Frame after frame absorbs its copy: a chain of four tokens, and what the published quirk makes of its mean."""
    features = torch.zeros(4, 3, 6)
    for frame in range(4):  # token 0 grows, the others are new each time
        features[frame, 0, 0] = 1.0 + frame
        features[frame, 1, 1 + frame], features[frame, 2, 5] = 1.0, -1.0 if frame % 2 else 1.0
    saliency = torch.tensor([[0.0, 1.0, 1.0]]).expand(4, 3)
    settings = {"segment_threshold": -1.0, "min_segments": 1, "expansion": 1.0, "alpha": 0.5, "selection": "v1"}
    for tree_mean, expected in (("published", (1 + 2 + 3 + 4) / 2), ("exact", (1 + 2 + 3 + 4) / 4)):
        pruned = FlashVID(0.5, tree_mean=tree_mean, **settings).prune(features, saliency, (1, 3))
        row = (pruned.indices == 0).nonzero()[0, 0]
        assert float(pruned.features[row, 0]) == expected
        assert not torch.isin(torch.tensor([3, 6, 9]), pruned.indices).any()


def test_what_enters_a_language_model():
    """On a model the ratio is the mean over its layers, whatever is pruned inside; called directly, as published."""
    features, saliency, grid, _ = made_up(3, (10, 10), 8)

    def kept(method):
        return len(method.prune(features, saliency, grid).indices)

    plain = FlashVID(0.2, alpha=1.0)
    assert kept(plain) == 3 * 25 and kept(plain.before_llm(28)) == 3 * 20 and plain.in_llm(28) is None
    full = FlashVID(0.2, alpha=1.0, pruning_layer=20)
    assert full.before_llm(28).expansion == 1.25 and kept(full.before_llm(28)) == 3 * 25
    inside = full.in_llm(28)
    assert (inside.layer, inside.retention, inside.merging, inside.newlines) == (20, 0.3, "drop", False)
    assert inside.count(11) == 4  # rounded up
    qwen3 = FlashVID(0.2, pruning_layer=28, llm_retention_ratio=0.1)
    assert qwen3.before_llm(36).expansion == 1.25
    assert FlashVID(0.2, expansion=2.0).before_llm(28).expansion == 2.0
    exact = FlashVID(0.2, pruning_layer=20, exact_budget=True)
    assert kept(exact) == 60 and kept(exact.before_llm(28)) == 75
    assert FlashVID(1.0, pruning_layer=20).in_llm(28) is None
    with pytest.raises(ValueError, match=r"FlashVID.pruning_layer = 20: a language model of 4 layers"):
        full.in_llm(4)


def test_refusals():
    wrong = [("segment_threshold", 1.5), ("min_segments", 0), ("expansion", 0), ("alpha", 1.1),
             ("temporal_threshold", -2), ("selection", "v3"), ("tree_mean", "mean"), ("pruning_layer", 0),
             ("llm_retention_ratio", 0)]  # fmt: skip
    check_refusals(FlashVID(), wrong)
    with pytest.raises(ValueError, match=r"FlashVID.expansion = 1.25: expected None with exact_budget"):
        FlashVID(expansion=1.25, exact_budget=True)
