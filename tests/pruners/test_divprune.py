"""DivPrune: the published code's own numbers, a plain slow version, and no token twice."""

import pytest
import torch
from golden_cases import cases, read
from videos import made_up

from tango.pruners import divprune
from tango.pruners.divprune import DivPrune, most_diverse


def slow(tokens, count):
    """Places picked of (n, D), in order, from all distances in doubles."""
    x = tokens.double()
    norm = x.norm(dim=-1, keepdim=True)
    x = torch.where(norm > 0, x / norm, x)
    d = [[1 - float(a @ b) for b in x] for a in x]
    n = len(d)
    d = [[0.0 if value < 1e-12 else value for value in row] for row in d]
    nearest = [min((d[i][j] for j in range(n) if j != i), default=0.0) for i in range(n)]
    picked = [max(range(n), key=lambda i: (nearest[i], -i))]
    while len(picked) < count:
        left = [i for i in range(n) if i not in picked]
        picked.append(max(left, key=lambda i: (min(d[i][j] for j in picked), -i)))
    return picked


@pytest.mark.parametrize("path", cases("divprune"), ids=lambda path: path.stem)
def test_published_numbers(path):
    tensors, parameters, grid = read(path)
    features, scope = tensors["features"], parameters["scope"]
    pruned = DivPrune(parameters["retention_ratio"], scope=scope).prune(features, None, grid)
    assert torch.equal(pruned.indices, tensors["kept_indices"])
    torch.testing.assert_close(pruned.features, tensors["kept_features"], rtol=0, atol=0)
    sets = features if scope == "frame" else features.flatten(0, 1)[None]
    picks = most_diverse(sets, len(tensors["kept_indices"]) // len(sets))
    picks = picks + torch.arange(len(sets))[:, None] * sets.shape[1]
    assert torch.equal(picks.flatten(), tensors["selection_order"])


def test_all_cases_are_here():
    assert len(cases("divprune")) == 6


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("copies, zeros", [(0.0, 0.0), (0.4, 0.0), (0.2, 0.15)])
def test_equals_the_slow_version(seed, copies, zeros, monkeypatch):
    monkeypatch.setattr(divprune, "BLOCK_ELEMENTS", 300)  # several blocks, the last one ragged
    features, _, grid, _ = made_up(3, (3, 5), 9, seed, copies=copies, zeros=zeros)
    flat = features.flatten(0, 1)
    for count in (1, 7, 30, 45):
        assert most_diverse(flat[None], count)[0].tolist() == slow(flat, count)
    framewise = most_diverse(features, 6).tolist()
    assert framewise == [slow(frame, 6) for frame in features]
    pruned = DivPrune(0.4).prune(features, None, grid)
    assert pruned.indices.tolist() == sorted(slow(flat, 18))
    assert torch.equal(pruned.features, flat[pruned.indices])


def test_by_hand():
    angles = torch.tensor([0.0, 0.1, 0.2, 3.0, 1.5])
    tokens = torch.stack([angles.cos(), angles.sin()], 1)
    # 3.0 has its nearest, 1.5, farthest; then 0.0 is farthest from 3.0; then 1.5 from both.
    assert most_diverse(tokens[None], 3).tolist() == [[3, 0, 4]]


def test_copies_are_picked_by_index_and_never_twice():
    assert most_diverse(torch.ones(1, 20, 33), 20).tolist() == [list(range(20))]
    assert most_diverse(torch.zeros(1, 5, 4), 5).tolist() == [list(range(5))]
    assert most_diverse(torch.ones(2, 1, 4), 1).tolist() == [[0], [0]]


@pytest.mark.parametrize(
    "count, ratio, kept", [(25, 0.1, 2), (35, 0.1, 4), (15, 0.1, 2), (3, 0.1, 1), (576, 0.098, 56)]
)
def test_counts_round_half_to_even_and_keep_one(count, ratio, kept):
    assert len(DivPrune(ratio).prune(torch.randn(1, count, 4)).indices) == kept


def test_exact_budget_by_frame():
    features = torch.randn(4, 14, 5, generator=torch.Generator().manual_seed(0))
    assert len(DivPrune(0.1, scope="frame").prune(features).indices) == 4 * 1
    pruned = DivPrune(0.1, scope="frame", exact_budget=True).prune(features)  # 5.6 of 56: 6 tokens
    assert torch.bincount(pruned.indices // 14).tolist() == [1, 2, 1, 2]
    assert pruned.indices.tolist() == sorted(
        frame * 14 + place for frame, count in enumerate([1, 2, 1, 2]) for place in slow(features[frame], count)
    )


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"DivPrune\.scope = 'clip'"):
        DivPrune(scope="clip")
