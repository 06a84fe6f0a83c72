"""Segmentation: both methods against brute force, thresholds and ties."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tango.ops.cuts import fastvid
from tango.ops.segmentation import holitom, neighbour_similarity, static_places


def gain(static, start, end):
    """Of the window of frames [start, end]."""
    return int(static[start:end].all(0).sum()) * (end - start) if end > start else 0


def all_partitions(frames):
    for cuts in itertools.product([False, True], repeat=frames - 1):
        edges = [0, *(f + 1 for f in range(frames - 1) if cuts[f]), frames]
        yield [b - a for a, b in itertools.pairwise(edges)]


def total_gain(static, sizes):
    ends = list(itertools.accumulate(sizes))
    return sum(gain(static, end - size, end - 1) for size, end in zip(sizes, ends, strict=True))


def by_recurrence(static):
    """The recurrence in its own words: for each last frame, alone first, then longer windows if strictly better."""
    frames = len(static) + 1
    best, size_of = [0], [0]
    for last in range(frames):
        best.append(best[last])
        size_of.append(1)
        for size in range(2, last + 2):
            total = best[last - size + 1] + gain(static, last - size + 1, last)
            if total > best[-1]:
                best[-1], size_of[-1] = total, size
    sizes, end = [], frames
    while end:
        sizes.append(size_of[end])
        end -= size_of[end]
    return sizes[::-1]


@settings(deadline=None, derandomize=True, max_examples=50)
@given(frames=st.integers(1, 9), tokens=st.integers(1, 6), share=st.floats(0, 1), seed=st.integers(0, 999))
def test_holitom_finds_the_best_partition(frames, tokens, share, seed):
    static = torch.rand(frames - 1, tokens, generator=torch.Generator().manual_seed(seed)) < share
    sizes = holitom(static.float(), 0.5).tolist()
    assert sizes == by_recurrence(static)
    assert total_gain(static, sizes) == max(total_gain(static, partition) for partition in all_partitions(frames))


def test_holitom_many_frames():
    generator = torch.Generator().manual_seed(3)
    similarity = torch.rand(79, 8, generator=generator).sqrt()
    assert holitom(similarity, 0.3).tolist() == by_recurrence(similarity > 0.3)
    still = holitom(torch.ones(1023, 196), 0.8)
    assert still.tolist() == [1024]
    assert holitom(torch.zeros(1023, 196), 0.8).tolist() == [1] * 1024


def test_holitom_needs_more_than_the_threshold():
    similarity = torch.full((3, 4), 0.65)
    assert holitom(similarity, 0.65).tolist() == [1, 1, 1, 1]
    assert holitom(similarity + 1e-6, 0.65).tolist() == [4]


def test_holitom_ties_take_the_shorter_last_segment():
    # Two windows of two frames gain as much as one of three and one frame: 2 = 1 * 2.
    static = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert holitom(static, 0.5).tolist() == [3]
    # [2, 1], [1, 2] and [3] all gain 2: "frame alone" comes first, and only a strict improvement replaces it.
    static = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    assert total_gain(static > 0.5, [2, 1]) == total_gain(static > 0.5, [1, 2]) == total_gain(static > 0.5, [3]) == 2
    assert holitom(static, 0.5).tolist() == [2, 1]


def frames_with(similarities):
    """Frame vectors (F, 2) whose neighbours have these cosines."""
    angles = torch.tensor([0.0, *similarities], dtype=torch.float64)
    angles[1:] = angles[1:].acos()
    angles = angles.cumsum(0)
    return torch.stack([angles.cos(), angles.sin()], 1).float()


def test_fastvid_cuts_at_the_seven_smallest():
    similarities = [0.99, 0.9, 0.98, 0.91, 0.97, 0.92, 0.995, 0.93, 0.94, 0.95]
    sizes = fastvid(frames_with(similarities), 0.5)
    cut = sorted(range(10), key=lambda f: similarities[f])[:7]
    assert (sizes.cumsum(0)[:-1] - 1).tolist() == sorted(cut)


def test_fastvid_cuts_below_the_threshold_beyond_the_seven():
    similarities = [0.3, 0.31, 0.32, 0.33, 0.34, 0.35, 0.36, 0.37, 0.38, 0.99, 0.98]
    assert fastvid(frames_with(similarities), 0.65).tolist() == [1] * 9 + [3]
    assert fastvid(frames_with(similarities), 0.375).tolist() == [1] * 8 + [4]
    assert fastvid(frames_with(similarities), -1.0).tolist() == [1] * 7 + [5]


def test_fastvid_threshold_itself_does_not_cut():
    vectors = torch.eye(12)  # every cosine is exactly 0
    assert fastvid(vectors, 0.0).tolist() == [1] * 7 + [5]  # equal similarities: the lower indices are cut
    assert fastvid(vectors, 1e-6).tolist() == [1] * 12


@pytest.mark.parametrize("frames", [1, 2, 5, 8])
def test_fastvid_few_frames_are_all_cut(frames):
    assert fastvid(torch.ones(frames, 4), 0.65).tolist() == [1] * frames


def test_similarity():
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(9, 6, 10, generator=generator)
    features[3, 2] = 0
    features[7] = features[6] * 3
    similarity = neighbour_similarity(features)
    expected = torch.cosine_similarity(features[:-1].double(), features[1:].double(), dim=-1)
    torch.testing.assert_close(similarity.double(), expected, atol=1e-6, rtol=0)
    assert similarity[2, 2] == similarity[3, 2] == 0
    assert (similarity <= 1).all()
    assert torch.equal(similarity, neighbour_similarity(features, block_bytes=1))
    assert neighbour_similarity(features[:1]).shape == (0, 6)


@pytest.mark.parametrize("longest", [1, 2, 3, 5])
def test_holitom_with_a_longest_window(longest):
    static = torch.rand(8, 6, generator=torch.Generator().manual_seed(longest)) < 0.8
    sizes = holitom(static.float(), 0.5, longest).tolist()
    assert max(sizes) <= longest
    allowed = [partition for partition in all_partitions(9) if max(partition) <= longest]
    assert total_gain(static, sizes) == max(total_gain(static, partition) for partition in allowed)


def test_fastvid_with_another_number_of_cuts():
    vectors = torch.nn.functional.normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    similarity = (vectors[1:] * vectors[:-1]).sum(1)
    for cuts in (0, 1, 3, 20):
        lowest = similarity.sort().indices[:cuts].sort().values
        edges = [0, *(lowest + 1).tolist(), 9]
        assert fastvid(vectors, -1, cuts).tolist() == [b - a for a, b in itertools.pairwise(edges)]


@settings(deadline=None, derandomize=True, max_examples=50)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5), share=st.floats(0.3, 1), seed=st.integers(0, 999))
def test_static_places(sizes, share, seed):
    same = torch.rand(sum(sizes) - 1, 6, generator=torch.Generator().manual_seed(seed)) < share
    static = static_places(torch.where(same, 0.81, 0.8), torch.tensor(sizes), 0.8)  # the threshold itself is not above
    assert static.shape == (len(sizes), 6)
    for own, size, end in zip(static, sizes, itertools.accumulate(sizes), strict=True):
        expected = same[end - size : end - 1].all(0) if size > 1 else torch.zeros(6, dtype=torch.bool)
        assert torch.equal(own, expected)
