"""EVS: the published code's own numbers, a plain slow version of the steps, and what half precision does to it."""

import pytest
import torch
from golden_cases import cases, read
from hypothesis import given, settings
from hypothesis import strategies as st
from peer_checks import check_properties
from videos import made_up

from tango.pruners.evs import EVS, changes

videos = {
    "frames": st.integers(1, 6),
    "grid": st.tuples(st.integers(1, 4), st.integers(1, 5)),
    "dim": st.sampled_from([3, 8]),
    "seed": st.integers(0, 9999),
    "noise": st.sampled_from([0.0, 0.05, 0.5]),
    "copies": st.sampled_from([0.0, 0.3, 1.0]),
    "zeros": st.sampled_from([0.0, 0.2]),
}
quick = settings(max_examples=40, deadline=None, derandomize=True)


def slow(features, ratio):
    """Flat indices kept: one token at a time, in doubles; changes that differ by rounding alone are equal."""
    frames, tokens, _ = features.shape
    x, changed = features.double(), []
    for f in range(frames):
        for n in range(tokens):
            lengths = [max(float(x[f - i, n].norm()), 1e-8) for i in (0, 1)]
            changed.append(round(1 - float(x[f, n] @ x[f - 1, n]) / lengths[0] / lengths[1], 9) if f else 255.0)
    rate = 1 - ratio
    budget = max(tokens, int(frames * tokens * (1 - rate)))
    return sorted(sorted(range(frames * tokens), key=lambda place: (-changed[place], place))[:budget])


@pytest.mark.parametrize("path", cases("evs"), ids=lambda path: path.stem)
def test_published_numbers(path):
    tensors, parameters, grid = read(path)
    pruned = EVS(1 - parameters["pruning_rate"]).prune(tensors["features"], None, grid)
    assert torch.equal(pruned.indices, tensors["kept_indices"])
    assert torch.equal(pruned.features, tensors["kept_features"])
    assert torch.equal(EVS(parameters["retention_ratio"]).prune(tensors["features"]).indices, pruned.indices)
    frames, tokens, _ = tensors["features"].shape
    assert torch.equal(torch.bincount(pruned.indices // tokens, minlength=frames), tensors["frame_budgets"])


def test_all_cases_are_here():
    assert len(cases("evs")) == 6


@quick
@given(video=st.fixed_dictionaries(videos), ratio=st.floats(0.01, 0.99))
def test_equals_the_slow_version(video, ratio):
    features, _, grid, _ = made_up(**video)
    pruned = EVS(ratio).prune(features, None, grid)
    assert pruned.indices.tolist() == slow(features, ratio)
    assert torch.equal(pruned.features, features.flatten(0, 1)[pruned.indices])


@quick
@given(video=st.fixed_dictionaries(videos), ratio=st.floats(0.01, 0.99))
def test_properties(video, ratio):
    check_properties(EVS, lambda f, n, r: max(n, f * n * r), video, ratio)


@pytest.mark.parametrize("ratio, kept", [(0.2, 39), (0.3, 60), (0.7, 140), (0.1, 20), (0.01, 20)])
def test_the_number_is_that_of_serving_engines(ratio, kept):
    """int(n (1 - q)) with q = 1 - r in doubles: 1 - (1 - 0.2) is a little less than 0.2. Never less than a frame."""
    video = torch.randn(10, 20, 8, generator=torch.Generator().manual_seed(0))
    assert len(EVS(ratio).prune(video).indices) == kept
    assert len(EVS(ratio, exact_budget=True).prune(video).indices) == round(200 * ratio)


def test_changes_by_hand():
    features = torch.tensor([[[3.0, 0], [0, 0], [1, 0], [1e-9, 0]], [[0, 2.0], [1, 1], [-4, 0], [1e-9, 0]]])
    # A right angle, one with a zero token, the opposite; and lengths below 1e-8, taken for 1e-8: 1 - 0.1^2.
    torch.testing.assert_close(changes(features), torch.tensor([[255.0] * 4, [1, 1, 2, 0.99]]))
    generator = torch.Generator().manual_seed(1)
    still = torch.randn(1, 50, 96, generator=generator).expand(3, 50, 96)
    assert bool((changes(still)[1:] == 0).all())  # exactly, so that the lower index wins
    assert EVS(0.5).prune(still).indices.tolist() == list(range(75))


def test_a_token_is_compared_with_the_frame_before_also_if_that_one_is_dropped():
    """Four frames that turn by the same small angle: no change grows, so the lower indices win; then one that jumps."""
    angles = torch.tensor([0.0, 0.1, 0.2, 0.3, 1.3])
    features = torch.stack([angles.cos(), angles.sin()], -1)[:, None].expand(5, 6, 2)
    assert EVS(0.4).prune(features).indices.tolist() == [*range(6), *range(24, 30)]


def drifting(dtype):
    """A still video with a little noise, the more the later the frame."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(8, 64, 48, generator=generator) * torch.linspace(0.005, 0.02, 8)[:, None, None]
    return (torch.randn(1, 64, 48, generator=generator) + noise).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_what_changed(dtype):
    features = drifting(torch.float32).to(dtype)
    full, pruned = EVS(0.4).prune(features.float()), EVS(0.4).prune(features)
    assert torch.equal(pruned.indices, full.indices) and pruned.features.dtype == dtype
    later = torch.bincount(pruned.indices // 64, minlength=8)
    assert int(later[4:].sum()) > int(later[1:4].sum())
    if dtype == torch.bfloat16:  # most changes are 0 there: the earliest tokens fill the budget
        coarse = torch.bincount(EVS(0.4, precision="features").prune(features).indices // 64, minlength=8)
        assert coarse.tolist() != later.tolist() and int(coarse[1:4].sum()) > int(coarse[4:].sum())
    zeros = features.clone()
    zeros[3:5, 7] = 0
    assert bool(EVS(0.4, precision="features").prune(zeros).indices.eq(3 * 64 + 7).any())  # a change of 1


def test_refusals():
    with pytest.raises(ValueError, match=r"EVS.precision = 'half': expected one of 'full', 'features'"):
        EVS(precision="half")
    with pytest.raises(ValueError, match=r"EVS.retention_ratio = 0"):
        EVS(0)
