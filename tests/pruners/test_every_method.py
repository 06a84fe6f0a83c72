"""What holds of every method; with exact_budget also that the number of tokens is known before the video is."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import pkgutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from videos import made_up, prune

import tango.pruners
from tango import Tango
from tango.pruners import Pruner
from tango.pruners.video import VideoTokens
from tango.runs.settings import field_types


def every_method() -> dict[str, type[Pruner]]:
    """All methods with a file in tango/pruners/."""
    found = {}
    for module in pkgutil.iter_modules(tango.pruners.__path__, "tango.pruners."):
        for _, value in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(value, Pruner) and not inspect.isabstract(value):
                found[value.name] = value
    return found


METHODS = every_method()


quick = settings(max_examples=40, deadline=None, derandomize=True)
videos = {
    "frames": st.integers(1, 10),
    "grid": st.tuples(st.integers(1, 5), st.integers(1, 6)),
    "dim": st.sampled_from([4, 10, 16]),
    "seed": st.integers(0, 10_000),
    "noise": st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    "moving": st.sampled_from([0.0, 0.4]),
    "copies": st.sampled_from([0.0, 0.3, 1.0]),
    "zeros": st.sampled_from([0.0, 0.2]),
}


@pytest.mark.parametrize("name", sorted(METHODS))
@quick
@given(
    video=st.fixed_dictionaries(videos),
    ratio=st.one_of(st.floats(0.001, 1.0), st.sampled_from([0.1, 0.25, 0.5])),
    exact=st.sampled_from([True, True, False]),
)
def test_the_number_is_the_one_that_was_promised(name, video, ratio, exact):
    made = made_up(**video)
    frames, tokens, dim = made[0].shape
    method = METHODS[name](retention_ratio=ratio, exact_budget=exact)
    pruned = prune(method, made)
    count = len(pruned.indices)
    promised = max(1, round(ratio * (frames * tokens)))
    if name == "fastv":  # prunes nothing before the language model
        promised = frames * tokens
    assert method.budget(frames, tokens) == promised
    assert 1 <= count <= frames * tokens if not exact else count == promised
    assert pruned.indices.shape == (count,) and pruned.features.shape == (count, dim)
    assert pruned.indices.dtype == torch.int64 and pruned.features.dtype == made[0].dtype
    assert bool(((pruned.indices >= 0) & (pruned.indices < frames * tokens)).all())
    assert bool(pruned.features.isfinite().all())
    assert bool((pruned.indices // tokens).diff().ge(0).all())  # frames stay in order
    assert int(pruned.segment_sizes.sum()) == frames
    if name != "flashvid":  # the one in which a salient and a merged token may share a place
        assert len(pruned.indices.unique()) == count


@pytest.mark.parametrize("name", sorted(METHODS))
def test_it_changes_little(name):
    """Of a video that is not extreme most tokens are those that the method keeps anyway."""
    video = made_up(8, (6, 7), 16, seed=2, noise=0.3)
    settings = {"expansion": 1.0} if name == "flashvid" else {}
    off = prune(METHODS[name](retention_ratio=0.2, **settings), video).indices.tolist()
    on = prune(METHODS[name](retention_ratio=0.2, exact_budget=True), video).indices.tolist()
    if name in ("dycoke", "prunevid", "uniform"):  # other numbers by themselves; another step
        assert len(on) == 67
        return
    assert len(set(on) & set(off)) >= 0.8 * max(len(on), len(off))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_off_is_the_default_and_a_ratio_of_one_keeps_all(name):
    assert METHODS[name]().exact_budget is False
    assert [field.default for field in dataclasses.fields(METHODS[name]) if field.name == "exact_budget"] == [False]
    video = made_up(3, (3, 4), 8)
    pruned = prune(METHODS[name](retention_ratio=1.0, exact_budget=True), video)
    assert pruned.indices.tolist() == list(range(36))
    assert torch.equal(pruned.features, video[0].flatten(0, 1))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_half_precision_and_nan(name, exact):
    features, saliency, grid, times = made_up(5, (4, 5), 8, seed=1)
    method = METHODS[name](retention_ratio=0.3, exact_budget=exact)
    half = prune(method, (features.bfloat16(), saliency, grid, times))
    full = prune(method, (features.bfloat16().float(), saliency, grid, times))
    assert half.features.dtype == torch.bfloat16
    assert torch.equal(half.indices, full.indices)
    assert torch.equal(half.features, full.features.bfloat16())
    features[2, 3, 4] = float("nan")
    with pytest.raises(ValueError, match="features must be finite"):
        prune(method, (features, saliency, grid, times))


def test_what_was_checked_when_it_was_made_stays_as_it_is():
    features, saliency, grid, times = made_up(2, (2, 3), 8)
    video = VideoTokens(features, grid, torch.as_tensor(times), saliency=saliency)
    pruned = Tango(retention_ratio=0.5).prune(features, saliency, grid, times)
    for made in (video, pruned):
        with pytest.raises(dataclasses.FrozenInstanceError):
            made.features = features


def test_values_that_fill_a_line_are_shown_by_their_class():
    for letters, shown in ((197, "'" + 197 * "x" + "'"), (198, "<str>")):
        with pytest.raises(ValueError, match=rf"Tango\.merging = {shown}: expected"):
            Tango(merging=letters * "x")


def test_tango_shares_by_largest_remainder():
    method = Tango(0.1, exact_budget=True)
    # Frames by themselves: 3 of 14 tokens share 4.2, so 4: 1.33 each, the first gets one more.
    sizes, static = torch.tensor([1, 1, 1]), torch.tensor([0, 0, 0])
    assert method._budgets(sizes, static, 14).tolist() == [[0, 2], [0, 1], [0, 1]]
    assert Tango(0.1)._budgets(sizes, static, 14).tolist() == [[0, 2], [0, 2], [0, 2]]
    # A segment of 4 frames with 6 of 10 places static: r' = 0.25 / (22 / 40); static 6 r' = 2.73, dynamic 16 r' = 7.27.
    sizes, static = torch.tensor([4]), torch.tensor([6])
    assert Tango(0.25, exact_budget=True)._budgets(sizes, static, 10).tolist() == [[3, 7]]
    assert Tango(0.25)._budgets(sizes, static, 10).tolist() == [[3, 8]]
    # All static and r' = 1: six tokens are all there are; the rest comes back by saliency.
    assert Tango(0.5, exact_budget=True)._budgets(sizes, torch.tensor([10]), 10).tolist() == [[10, 0]]


def test_tango_takes_back_the_most_salient():
    features = torch.ones(3, 4, 6)
    saliency = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.5, 0.9, 0.1, 0.2], [0.3, 0.1, 0.8, 0.0]])
    pruned = Tango(0.5, exact_budget=True).prune(features, saliency, (2, 2), [0.0, 1.0, 2.0])
    assert pruned.indices.tolist() == [0, 1, 2, 3, 5, 10]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_another_default_device_changes_nothing(name):
    features, saliency, grid, times = made_up(6, (4, 5), 16, seed=2)
    parts = {"segment_features": features.mean(1), "frame_vectors": features.mean(1), "keys": features[..., :6]}
    expected = METHODS[name](retention_ratio=0.4).prune(features, saliency, grid, times.tolist(), **parts)
    with torch.device("meta"):
        found = METHODS[name](retention_ratio=0.4).prune(features, saliency, grid, times.tolist(), **parts)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.features, expected.features)
    assert torch.equal(found.segment_sizes, expected.segment_sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_another_default_dtype_changes_nothing(name, dtype):
    features, saliency, grid, times = made_up(8, (6, 6), 32, seed=2, dtype=dtype)
    parts = {"segment_features": features.mean(1), "frame_vectors": features.mean(1), "keys": features[..., :6]}
    given = features, saliency, grid, times.tolist()
    for exact in (False, True):
        method = METHODS[name](retention_ratio=0.3, exact_budget=exact)
        expected = method.prune(*given, **parts)
        for default in (torch.float64, torch.float16, torch.bfloat16):
            torch.set_default_dtype(default)
            try:
                found = method.prune(*given, **parts)
            finally:
                torch.set_default_dtype(torch.float32)
            assert torch.equal(found.indices, expected.indices)
            assert torch.equal(found.features, expected.features) and found.features.dtype == dtype


@pytest.mark.parametrize("offset", [-3.0, 1e3, 1e6, 1.7e9, 1.7e12])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_clocks_zero_changes_nothing(name, offset):
    features, saliency, grid, _ = made_up(12, (6, 6), 32, seed=3)
    parts = {"segment_features": features.mean(1), "frame_vectors": features.mean(1), "keys": features[..., :6]}
    times = torch.arange(12, dtype=torch.float64) * 0.25
    method = METHODS[name](retention_ratio=0.2)
    expected = method.prune(features, saliency, grid, times, **parts)
    for late in (times + offset, (times + offset).tolist(), (times + offset).numpy()):
        found = method.prune(features, saliency, grid, late, **parts)
        assert torch.equal(found.indices, expected.indices) and torch.equal(found.features, expected.features)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_gradients_are_those_of_a_weighted_sum(name, exact):
    """Each token carries its own number as a one-hot vector, so that what comes out tells its weights: P = W X."""
    for seed in range(3):
        features, *rest = made_up(6, (4, 5), 16, seed=seed)
        frames, tokens, dim = features.shape
        numbers = 0.01 * torch.eye(frames * tokens).view(frames, tokens, -1)
        features = torch.cat((features, numbers), -1).requires_grad_()
        pruned = prune(METHODS[name](retention_ratio=0.3, exact_budget=exact), (features, *rest)).features
        weights = pruned[:, dim:].detach() / 0.01
        torch.testing.assert_close(weights @ features.detach().flatten(0, 1), pruned.detach(), atol=1e-4, rtol=1e-4)
        upstream = torch.randn(pruned.shape, generator=torch.Generator().manual_seed(seed))
        (pruned * upstream).sum().backward()
        torch.testing.assert_close(features.grad.flatten(0, 1), weights.T @ upstream, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_settings_as_large_as_they_may_be_prune_or_are_refused(method: str) -> None:
    """Numbers beyond any meaning are refused when the method is made; what passes computes, in memory that is there."""
    generator = torch.Generator().manual_seed(0)
    features, saliency = torch.randn(6, 36, 16, generator=generator), torch.rand(6, 36, generator=generator)
    for field in field_types(METHODS[method]):
        for value in (5e-324, 1e9, 1e12, 1e308, 10**9, 2**63, 10**30):
            pruner = None
            with contextlib.suppress(ValueError):
                pruner = METHODS[method](**{field: value})
            if pruner is None:
                continue
            assert field == "seed" or value <= 1e9, (field, value)
            with contextlib.suppress(ValueError):  # pruning inside the language model, which has no such layer
                pruner.prune(features, saliency, (6, 6), range(6))
