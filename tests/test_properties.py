"""What must hold of prune() for any video and any settings (hypothesis; the same examples every time)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Oracle
from videos import made_up, prune

from tango import Tango
from tango.pruners import REGISTRY
from tango.pruners.budget import token_budget

quick = settings(max_examples=150, deadline=None, derandomize=True)
videos = {
    "frames": st.integers(1, 9),
    "height": st.integers(1, 5),
    "width": st.integers(1, 5),
    "half_dim": st.integers(2, 12),
    "seed": st.integers(0, 10_000),
    "noise": st.sampled_from([0.02, 0.3, 1.0]),
}
choices = {
    "retention_ratio": st.floats(0.01, 0.99),
    "context_ratio": st.sampled_from([0.0, 0.4, 0.7, 1.0]),
    "segmentation": st.sampled_from(["holitom", "fastvid"]),
    "similarity_threshold": st.sampled_from([None, 0.3, 0.65, 0.9]),
    "num_neighbors": st.integers(1, 9),
    "expansion": st.sampled_from([1.0, 1.5, 3.0]),
}


def draw_video(frames, height, width, half_dim, seed, noise, **more):
    return made_up(frames, (height, width), 2 * half_dim, seed, noise=noise, **more)


def budget(count: int, ratio: float, least: int) -> int:
    return max(least, math.ceil(count * ratio))


def expected_size(features, sizes, tango: Tango) -> int:
    """Tokens kept, from the method's formulas alone: segment sizes and static positions decide it."""
    x = torch.nn.functional.normalize(features.float(), dim=-1)
    same = (x[:-1] * x[1:]).sum(-1) > tango.static_threshold
    total, start, tokens = 0, 0, features.shape[1]

    def compressed(count: int, ratio: float) -> int:
        if count == 0:
            return 0
        whole = budget(count, ratio, 1)
        salient = int(whole * (1 - tango.context_ratio))
        return salient + min(whole - salient, count - salient)

    for n in sizes:
        if n == 1:
            total += compressed(tokens, tango.retention_ratio)
        else:
            still = int(same[start : start + n - 1].all(0).sum())
            full = n * tokens
            ratio = min(1.0, tango.retention_ratio / ((full - (n - 1) * still) / full))
            moving = tokens - still
            whole = budget(moving, ratio, 0)
            salient = int(whole * (1 - tango.context_ratio))
            total += compressed(still, ratio) + n * salient + min(n * (whole - salient), n * (moving - salient))
        start += n
    return total


@quick
@given(video=st.fixed_dictionaries(videos), chosen=st.fixed_dictionaries(choices))
def test_budget_order_and_static_tokens(video, chosen):
    features, saliency, grid, times = draw_video(**video)
    tango = Tango(**chosen)
    pruned = tango.prune(features, saliency, grid, times)
    total = features.shape[0] * features.shape[1]
    assert len(pruned.indices) == expected_size(features, pruned.segment_sizes.tolist(), tango)
    assert pruned.indices.dtype == torch.int64
    assert (pruned.indices.diff() > 0).all()
    assert int(pruned.indices[0]) >= 0 and int(pruned.indices[-1]) < total
    assert pruned.features.isfinite().all()
    assert int(pruned.segment_sizes.sum()) == features.shape[0]


@quick
@given(video=st.fixed_dictionaries(videos), chosen=st.fixed_dictionaries(choices))
def test_equals_the_dense_oracle_and_no_memory_limit_changes_it(video, chosen):
    features, saliency, grid, times = draw_video(**video)
    indices, values, sizes = Oracle(**chosen).prune(features, saliency, grid, times)
    for limit in (256, 0.001):
        pruned = Tango(**chosen, memory_limit=limit).prune(features, saliency, grid, times)
        assert pruned.segment_sizes.tolist() == list(sizes)
        assert torch.equal(pruned.indices, indices)
        torch.testing.assert_close(pruned.features, values, rtol=1e-4, atol=1e-5)


@quick
@given(video=st.fixed_dictionaries(videos), dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float64]))
def test_dtypes_layout_and_repetition(video, dtype):
    features, saliency, grid, times = draw_video(**video, dtype=dtype)
    first = Tango(retention_ratio=0.2).prune(features, saliency, grid, times)
    scattered = features.transpose(0, 1).contiguous().transpose(0, 1)
    again = Tango(retention_ratio=0.2).prune(scattered, saliency, grid, times)
    assert first.features.dtype == dtype
    assert torch.equal(first.indices, again.indices) and torch.equal(first.features, again.features)


@quick
@given(video=st.fixed_dictionaries(videos), copies=st.floats(0.2, 1.0), zeros=st.floats(0.0, 0.5))
def test_copies_and_zero_tokens_never_give_an_index_twice(video, copies, zeros):
    features, saliency, grid, times = draw_video(**video, copies=copies, zeros=zeros)
    pruned = Tango(retention_ratio=0.3).prune(features, saliency, grid, times)
    assert (pruned.indices.diff() > 0).all()
    assert pruned.features.isfinite().all()


@quick
@given(video=st.fixed_dictionaries(videos), method=st.sampled_from(sorted(REGISTRY)))
def test_everything_is_kept_at_one(video, method):
    features, *_ = made = draw_video(**video)
    pruned = prune(REGISTRY[method](retention_ratio=1.0), made)
    assert torch.equal(pruned.indices, torch.arange(features.shape[0] * features.shape[1]))
    assert torch.equal(pruned.features, features.flatten(0, 1))


@quick
@given(video=st.fixed_dictionaries(videos), ratio=st.floats(0.01, 0.99))
def test_trivial_baselines_keep_their_budget_unmerged(video, ratio):
    features, saliency, grid, times = draw_video(**video)
    for method in ("random", "uniform", "topk"):
        pruned = REGISTRY[method](retention_ratio=ratio).prune(features, saliency, grid, times)
        assert len(pruned.indices) == token_budget(features.shape[0] * features.shape[1], ratio)
        assert (pruned.indices.diff() > 0).all()
        assert torch.equal(pruned.features, features.flatten(0, 1)[pruned.indices])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("retention_ratio", 0.0),
        ("retention_ratio", 1.01),
        ("retention_ratio", float("nan")),
        ("context_ratio", -0.1),
        ("expansion", 0.9),
        ("num_neighbors", 0),
        ("anchor_weight", 1.5),
        ("time_base", 0.0),
        ("segmentation", "dycoke"),
        ("placement", "somewhere"),
        ("saliency", "cls"),
        ("memory_limit", 0),
        ("sink_tokens", (-1,)),
        ("similarity_threshold", 2.0),
    ],
)
def test_a_setting_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=rf"Tango\.{field} = "):
        Tango(**{field: value})


def test_bad_inputs_are_named():
    features, saliency, grid, times = made_up(3, (2, 2), 8)
    nan = features.clone()
    nan[1, 2, 3] = float("nan")
    cases = [
        ((nan, saliency, grid, times), r"features must be finite.*\[1, 2, 3\]"),
        ((features, saliency[:2], grid, times), "saliency must have shape"),
        ((features, None, grid, times), "saliency is missing"),
        ((features, saliency, (3, 2), times), "grid 3 x 2"),
        ((features, saliency, grid, times[:2]), "timestamps must have shape"),
        ((features, saliency, grid, torch.tensor([0.0, 1.0, float("inf")])), "timestamps must be finite"),
        ((features[..., :7], saliency, grid, times), "even"),
        ((features[0], saliency, grid, times), "shape"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            Tango().prune(*arguments)
