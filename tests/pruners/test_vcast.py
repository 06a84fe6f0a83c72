"""V-CAST: the published code's own numbers, a plain slow version of the steps, and budgets worked by hand."""

import itertools
import math

import pytest
import torch
from golden_cases import cases, read
from hypothesis import given, settings
from hypothesis import strategies as st
from videos import made_up

from tango.pruners.vcast import VCast, curvature

videos = {
    "frames": st.integers(1, 6),
    "grid": st.tuples(st.integers(1, 4), st.integers(1, 5)),
    "dim": st.sampled_from([4, 9]),
    "seed": st.integers(0, 9999),
    "noise": st.sampled_from([0.1, 0.5]),
    "zeros": st.sampled_from([0.0, 0.2]),
}
quick = settings(max_examples=40, deadline=None, derandomize=True)


def unit(vector):
    return vector / max(float(vector.norm()), 1e-6)


def slow(features, ratio, temperature=0.7, least=1, one_each=False):
    """Flat indices kept, step by step, in doubles but for the budgets."""
    x = features.double()
    frames, tokens, _ = x.shape
    if frames == 1:
        return list(range(tokens))
    means = [unit(frame.mean(0)) for frame in x]
    steps = [unit(b - a) for a, b in itertools.pairwise(means)]
    k = [1.0, *(1 - float(a @ b) for a, b in itertools.pairwise(steps)), 1.0]
    weights = torch.softmax(torch.tensor(k, dtype=torch.float32) / temperature, 0)
    least = min(least, tokens)
    budget = max(max(1, round(frames * tokens * ratio)), frames * least)
    shares = (weights * (budget - frames * least)).tolist()
    counts = [least + min(math.floor(share), tokens - least) for share in shares]
    order = sorted(range(frames), key=lambda f: (-(shares[f] - math.floor(shares[f])), f))
    while sum(counts) < budget:
        for f in order:
            while counts[f] < tokens and sum(counts) < budget:
                counts[f] += 1
                if one_each:
                    break
    kept = []
    for f in range(frames):
        lengths = [float(token.norm()) for token in x[f]]
        spread = max(lengths) - min(lengths) + 1e-6
        score = [
            round(1 - float(unit(token) @ means[f]) + (length - min(lengths)) / spread, 12)
            for token, length in zip(x[f], lengths, strict=True)
        ]
        kept += sorted(f * tokens + n for n in sorted(range(tokens), key=lambda n: (-score[n], n))[: counts[f]])
    return kept


def budgets(pruned, frames, tokens):
    return torch.bincount(pruned.indices // tokens, minlength=frames).tolist()


@pytest.mark.parametrize("path", cases("vcast"), ids=lambda path: path.stem)
def test_published_numbers(path):
    tensors, parameters, grid = read(path)
    chosen = {name: parameters[name] for name in ("retention_ratio", "budget_temperature", "min_tokens")}
    pruned = VCast(**chosen).prune(tensors["features"], None, grid)
    assert torch.equal(pruned.indices, tensors["kept_indices"])
    assert torch.equal(pruned.features, tensors["kept_features"])
    frames, tokens, _ = tensors["features"].shape
    assert budgets(pruned, frames, tokens) == tensors["frame_budgets"].tolist()
    means = torch.nn.functional.normalize(tensors["features"].double().mean(1), dim=-1)
    torch.testing.assert_close(curvature(means).float(), tensors["curvature"], atol=1e-4, rtol=1e-4)


def test_all_cases_are_here():
    assert len(cases("vcast")) == 6


@quick
@given(
    video=st.fixed_dictionaries(videos),
    ratio=st.floats(0.01, 0.99),
    temperature=st.sampled_from([0.1, 0.7, 5.0]),
    least=st.integers(1, 4),
    one_each=st.booleans(),
)
def test_equals_the_slow_version(video, ratio, temperature, least, one_each):
    features, _, grid, _ = made_up(**video)
    method = VCast(ratio, budget_temperature=temperature, min_tokens=least,
                   remainder="one_each" if one_each else "published")  # fmt: skip
    pruned = method.prune(features, None, grid)
    assert pruned.indices.tolist() == slow(features, ratio, temperature, least, one_each)
    assert torch.equal(pruned.features, features.flatten(0, 1)[pruned.indices])


def test_curvature_by_hand():
    """Straight on 0, a corner 1, back 2, and 1 where the video stands still and at both ends."""
    places = torch.tensor([[0.0, 0], [1, 0], [2, 0], [2, 1], [2, 0], [2, 0], [3, 0]], dtype=torch.float64)
    assert curvature(places).tolist() == [1, 0, 1, 2, 1, 1, 1]


def test_what_is_left_over():
    """Equal weights: 4 frames of 10 tokens, 22 tokens: one each, 4.5 more each, so 4, and 2 that are left over."""
    features = torch.randn(1, 10, 6, generator=torch.Generator().manual_seed(0)).expand(4, 10, 6)
    assert budgets(VCast(0.55).prune(features), 4, 10) == [7, 5, 5, 5]
    assert budgets(VCast(0.55, remainder="one_each").prune(features), 4, 10) == [6, 6, 5, 5]
    assert budgets(VCast(0.55, min_tokens=9).prune(features), 4, 10) == [9] * 4
    assert budgets(VCast(0.55, min_tokens=11).prune(features), 4, 10) == [10] * 4
    # Steady motion: the ends have nearly all weight, 10.5 more each; they are full, and pass on what is left.
    angles = torch.tensor([0.0, 0.1, 0.2])
    steady = torch.stack([angles.cos(), angles.sin()], -1)[:, None] * torch.arange(1, 11)[:, None]
    assert budgets(VCast(0.8, budget_temperature=0.1).prune(steady), 3, 10) == [10, 4, 10]


def test_any_temperature():
    """The smallest number gives all to the frame that turns most, and the largest the same to each."""
    features, _, grid, _ = made_up(5, (4, 5), 8, seed=2)
    most = int(curvature(torch.nn.functional.normalize(features.double().mean(1), dim=-1)).argmax())
    coldest = budgets(VCast(0.2, budget_temperature=5e-324).prune(features, None, grid), 5, 20)
    assert coldest == [16 if frame == most else 1 for frame in range(5)]
    assert budgets(VCast(0.2, budget_temperature=1e9).prune(features, None, grid), 5, 20) == [4] * 5


def test_one_frame():
    features, _, grid, _ = made_up(1, (3, 4), 8)
    assert VCast(0.25).prune(features, None, grid).indices.tolist() == list(range(12))
    two = VCast(0.25, min_tokens=1, exact_budget=True).prune(features, None, grid)
    again = slow(torch.cat([features, features]), 0.25)  # two such frames keep 3 each, by the same scores
    assert two.indices.tolist() == again[:3]


def test_exact_budget():
    features, _, grid, _ = made_up(6, (4, 5), 12, seed=3)
    exact, off = VCast(0.13, exact_budget=True), VCast(0.13)
    assert torch.equal(exact.prune(features, None, grid).indices, off.prune(features, None, grid).indices)
    assert len(VCast(0.03, exact_budget=True).prune(features, None, grid).indices) == 4  # fewer than frames
    assert len(VCast(0.03).prune(features, None, grid).indices) == 6
    wanted = VCast(0.13, min_tokens=5, exact_budget=True).prune(features, None, grid)
    assert len(wanted.indices) == 16 and min(budgets(wanted, 6, 20)) >= 2


def test_equal_tokens_keep_the_lower_index():
    features = torch.ones(3, 8, 4)
    assert VCast(0.25, remainder="one_each").prune(features).indices.tolist() == [0, 1, 8, 9, 16, 17]


def test_refusals():
    for field, value in (("budget_temperature", 0), ("min_tokens", 0), ("remainder", "none")):
        with pytest.raises(ValueError, match=rf"VCast.{field} = "):
            VCast(**{field: value})
