"""DyCoke: the published code's own numbers, a plain slow version of the steps, and which frames are cut."""

import pytest
import torch
from golden_cases import cases, read
from videos import made_up

from tango.pruners.dycoke import DyCoke, references


def slow(features, merging_ratio):
    """Flat indices kept, in published order."""
    frames, tokens, _ = features.shape
    n = int((1 - merging_ratio) * tokens)
    if frames == 1:
        return list(range(tokens))

    def least_alike(frame, reference):
        a, b = features[frame].double(), features[reference].double()
        cosine = [float(a[i] @ b[i] / max(1e-300, float(a[i].norm() * b[i].norm()))) for i in range(tokens)]
        return sorted(range(tokens), key=lambda i: (cosine[i], i))[:n]

    kept = {}
    for i in range(0, frames - 1, 2):
        kept[i], kept[i + 1] = list(range(tokens)), least_alike(i + 1, i)
    for i in range(0, frames - 4, 4):
        kept[i + 2] = least_alike(i + 2, i)
    return [frame * tokens + place for frame in sorted(kept) for place in kept[frame]]


@pytest.mark.parametrize("path", cases("dycoke"), ids=lambda path: path.stem)
def test_published_numbers(path):
    tensors, parameters, grid = read(path)
    method = DyCoke(merging_ratio=parameters["merging_ratio"])
    pruned = method.prune(tensors["features"], None, grid)
    assert torch.equal(pruned.indices, tensors["output_indices"])
    torch.testing.assert_close(pruned.features, tensors["output_features"], rtol=0, atol=0)
    assert len(pruned.indices) / tensors["features"][..., 0].numel() == parameters["retention_ratio"]
    method.order = "ascending"
    pruned = method.prune(tensors["features"], None, grid)
    assert torch.equal(pruned.indices, tensors["kept_indices"])
    torch.testing.assert_close(pruned.features, tensors["kept_features"], rtol=0, atol=0)


def test_all_cases_are_here():
    assert len(cases("dycoke")) == 6


@pytest.mark.parametrize("frames", range(1, 12))
@pytest.mark.parametrize("merging_ratio", [0.0, 0.31, 0.7, 1.0])
def test_equals_the_slow_version(frames, merging_ratio):
    features, _, grid, _ = made_up(frames, (3, 5), 8, frames, zeros=0.1)
    pruned = DyCoke(merging_ratio=merging_ratio).prune(features, None, grid)
    assert pruned.indices.tolist() == slow(features, merging_ratio)
    assert torch.equal(pruned.features, features.flatten(0, 1)[pruned.indices])


def test_which_frames_are_cut_against_which():
    # -1: whole, -2: dropped. Of eight frames the third is cut against the first; of the last four none.
    assert references(8).tolist() == [-1, 0, 0, 2, -1, 4, -1, 6]
    assert references(9).tolist() == [-1, 0, 0, 2, -1, 4, 4, 6, -2]
    assert references(4).tolist() == [-1, 0, -1, 2]
    assert references(5).tolist() == [-1, 0, 0, 2, -2]
    assert references(1).tolist() == [-1]
    # 32 x 196 at k = 0.7: 9 whole frames and 23 of 58.
    assert len(DyCoke().prune(torch.randn(32, 196, 2)).indices) == 9 * 196 + 23 * 58


def test_the_retention_ratio_is_not_used():
    features, _, grid, _ = made_up(8, (3, 5), 8)
    few, many = (DyCoke(ratio).prune(features, None, grid) for ratio in (0.01, 0.9))
    assert torch.equal(few.indices, many.indices)


@pytest.mark.parametrize("frames, ratio, kept", [
    (8, 0.5, [10, 2, 2, 2, 10, 2, 10, 2]),  # 40: three whole frames, and 10 over five cut ones
    (8, 0.6, [10, 4, 4, 4, 10, 3, 10, 3]),
    (8, 0.1, [3, 0, 0, 0, 3, 0, 2, 0]),  # 8 do not hold the whole frames
    (9, 0.9, [10, 10, 10, 10, 10, 10, 10, 10, 1]),  # 81: the dropped frame comes back
    (1, 0.3, [3]),
])  # fmt: skip
def test_exact_budget_by_hand(frames, ratio, kept):
    features = torch.randn(frames, 10, 6, generator=torch.Generator().manual_seed(1))
    pruned = DyCoke(ratio, exact_budget=True).prune(features)
    assert torch.bincount(pruned.indices // 10, minlength=frames).tolist() == kept
    if frames == 1:
        assert pruned.indices.tolist() == [1, 5, 8]  # at equal steps


def test_exact_budget_keeps_the_least_alike_of_a_cut_frame():
    features, _, grid, _ = made_up(4, (3, 5), 8, 5)
    pruned = DyCoke((30 + 8) / 60, exact_budget=True).prune(features, None, grid)
    cut = [index for index in pruned.indices.tolist() if index // 15 in (1, 3)]
    expected = [index for index in slow(features, 1 - 4.5 / 15) if index // 15 in (1, 3)]
    assert cut == expected
