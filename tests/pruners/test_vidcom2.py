"""VidCom2: the published code's own numbers, a plain slow version of the steps, budgets worked by hand."""

import math

import pytest
import torch
from golden_cases import cases, read
from videos import made_up

from tango.pruners.vidcom2 import VidCom2, frame_scales, likeness


def slow(features, ratio):
    """Flat indices kept, step by step, one token at a time, in doubles."""
    x = features.double()
    frames, tokens, dim = x.shape
    flat = x.reshape(-1, dim)
    variance = [float(((flat[:, c] - flat[:, c].mean()) ** 2).mean()) for c in range(dim)]
    channels = sorted(sorted(range(dim), key=lambda c: (variance[c], c))[: dim // 2])
    y = x[..., channels]
    norm = y.norm(dim=-1, keepdim=True)
    y = torch.where(norm > 0, y / norm, y)

    def kernel(a, b):
        return sum(math.exp(-float(((a - b) ** 2).sum()) / (2 * width)) for width in (1 / 8, 1 / 4, 1 / 2, 1, 2))

    g = y.reshape(-1, len(channels)).mean(0)
    v = [[kernel(y[f, n], g) for n in range(tokens)] for f in range(frames)]
    u = [[kernel(y[f, n], y[f].mean(0)) for n in range(tokens)] for f in range(frames)]
    s = [-sum(row) / tokens for row in v]
    e = [math.exp((value - max(s)) / 0.01) for value in s]
    kept = []
    for f in range(frames):
        scale = min(1.0, ratio * (1 + e[f] / sum(e) - 1 / frames))
        ranked = sorted(range(tokens), key=lambda n: (v[f][n] + u[f][n], n))
        kept += [f * tokens + n for n in sorted(ranked[: max(1, round(scale * tokens))])]
    return kept


@pytest.mark.parametrize("path", cases("vidcom2"), ids=lambda path: path.stem)
def test_published_numbers(path):
    tensors, parameters, grid = read(path)
    pruned = VidCom2(parameters["retention_ratio"]).prune(tensors["features"], None, grid)
    assert torch.equal(pruned.indices, tensors["kept_indices"])
    torch.testing.assert_close(pruned.features, tensors["kept_features"], rtol=0, atol=0)
    frames, tokens, _ = tensors["features"].shape
    assert torch.equal(torch.bincount(pruned.indices // tokens, minlength=frames), tensors["frame_budgets"])
    scales = frame_scales(likeness(tensors["features"])[0], parameters["retention_ratio"])
    torch.testing.assert_close(scales, tensors["frame_scales"], rtol=1e-4, atol=1e-6)


def test_all_cases_are_here():
    assert len(cases("vidcom2")) == 6


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ratio", [0.02, 0.1, 0.35, 0.9])
def test_equals_the_slow_version(seed, ratio):
    features, _, grid, _ = made_up(1 + seed, (4, 5), 10 + seed, seed)
    pruned = VidCom2(ratio).prune(features, None, grid)
    assert pruned.indices.tolist() == slow(features, ratio)
    assert torch.equal(pruned.features, features.flatten(0, 1)[pruned.indices])


def test_a_frame_unlike_the_others_keeps_up_to_twice_as_many():
    # 4 frames: three alike, one unlike. Its softmax weight at temperature 0.01 is 1, so it gets r (2 - 1/4) L, and the
    # others r (1 - 1/4) L: 35 and 15 of 100 at r = 0.2.
    generator = torch.Generator().manual_seed(0)
    features = torch.ones(4, 100, 8) + 0.01 * torch.randn(4, 100, 8, generator=generator)
    features[2] = torch.randn(100, 8, generator=generator)
    kept = torch.bincount(VidCom2(0.2).prune(features).indices // 100, minlength=4)
    assert kept.tolist() == [15, 15, 35, 15]
    assert torch.bincount(VidCom2(0.7).prune(features).indices // 100).tolist() == [
        52,
        52,
        100,
        52,
    ]  # a cap; 52.5 is even


def test_budgets_round_half_to_even_and_keep_one():
    alike = torch.ones(2, 10, 4)  # every weight is 1 / F, so every scale is r
    assert len(VidCom2(0.25).prune(alike).indices) == 2 * 2
    assert len(VidCom2(0.35).prune(alike).indices) in (2 * 3, 2 * 4)  # 3.5 in fp32 is not exact
    assert VidCom2(0.01).prune(alike).indices.tolist() == [0, 10]  # one a frame; copies: the lowest index


def test_exact_budget_follows_the_shares():
    features, _, grid, _ = made_up(7, (4, 5), 12, seed=3)
    shares = frame_scales(likeness(features)[0], 0.13) * 20
    pruned = VidCom2(0.13, exact_budget=True).prune(features, None, grid)
    assert len(pruned.indices) == round(0.13 * 140)
    kept = torch.bincount(pruned.indices // 20, minlength=7)
    assert bool((kept >= 1).all()) and float((kept - shares).abs().max()) < 1.5
    assert len(VidCom2(0.01, exact_budget=True).prune(features, None, grid).indices) == 1  # fewer than frames
