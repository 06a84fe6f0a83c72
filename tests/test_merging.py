"""Merging: weights, sums, both placements, and that what is kept stays what it is."""

import pytest
import torch
from oracle import Oracle

from tango.merging import merge, segment_sums


def unit(*shape, seed=0):
    points = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return points / points.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("placement", ["anchor", "published"])
@pytest.mark.parametrize("count", [0, 1, 4, 17, 29, 30])
@pytest.mark.parametrize("anchor_weight", [0.0, 0.6, 1.0])
def test_equals_the_oracle_in_batch(placement, count, anchor_weight):
    table = torch.randn(200, 20, generator=torch.Generator().manual_seed(2))
    tokens = torch.stack([torch.randperm(200, generator=torch.Generator().manual_seed(g))[:30] for g in range(4)])
    tokens = tokens.sort(dim=1).values
    vectors = unit(4, 30, 20)
    kept, values = merge(table, tokens, vectors, count, 5, anchor_weight, placement)
    assert kept.shape == (4, count) and values.shape == (4, count, 20)
    oracle = Oracle(num_neighbors=5, anchor_weight=anchor_weight, placement=placement)
    for group in range(4):
        expected, features = oracle.merge(table[tokens[group]], vectors[group], tokens[group], count)
        assert torch.equal(kept[group], expected)
        torch.testing.assert_close(values[group], features)


def clusters_of(sizes):
    """Vectors and features of well separated clusters, the first member of each in the middle of it."""
    dim = 2 * len(sizes)
    vectors = torch.cat(
        [
            torch.eye(dim)[2 * i] + torch.linspace(0, 0.02, size)[:, None] * torch.eye(dim)[2 * i + 1]
            for i, size in enumerate(sizes)
        ]
    )
    vectors = vectors / vectors.norm(dim=-1, keepdim=True)
    return vectors, torch.randn(len(vectors), dim, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("anchor_weight", [0.2, 0.4, 0.6])
def test_least_weight_and_one_over_size(anchor_weight):
    sizes = [1, 2, 3, 10]
    vectors, features = clusters_of(sizes)
    kept, values = merge(features, torch.arange(len(features))[None], vectors[None], len(sizes), 2, anchor_weight)
    start = 0
    for anchor, value, size in zip(kept[0], values[0], sizes, strict=True):
        assert start <= anchor < start + size
        w = max(1 / size, anchor_weight)
        mean = features[start : start + size].mean(0)
        torch.testing.assert_close(value, w * features[anchor] + (1 - w) * mean)
        start += size


def test_published_placement_permutes_the_anchors_own_tokens():
    vectors, features = unit(1, 60, 16), torch.randn(60, 16, generator=torch.Generator().manual_seed(4))
    tokens = torch.arange(60)[None]
    kept, values = merge(features, tokens, vectors, 12)
    published_kept, published = merge(features, tokens, vectors, 12, placement="published")
    assert torch.equal(kept, published_kept)
    assert not torch.equal(values, published)
    assert sorted(map(tuple, values[0].tolist())) == sorted(map(tuple, published[0].tolist()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_no_more_than_there_is_room_for_is_kept_unmerged(dtype):
    table = torch.randn(9, 4, generator=torch.Generator().manual_seed(5)).to(dtype)
    tokens = torch.tensor([[1, 4, 8]])
    kept, values = merge(table, tokens, unit(1, 3, 4), 3)
    assert torch.equal(kept, tokens)
    assert torch.equal(values[0], table[tokens[0]].float())


@pytest.mark.parametrize("memory_limit", [1e-6, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_segment_sums(memory_limit, dtype):
    generator = torch.Generator().manual_seed(6)
    table = torch.randn(50, 7, generator=generator).to(dtype)
    rows, segments = torch.randint(50, (300,), generator=generator), torch.randint(12, (300,), generator=generator)
    segments[segments == 5] = 4  # an empty segment
    expected = torch.zeros(12, 7, dtype=torch.float64).index_add_(0, segments, table[rows].double())
    sums = segment_sums(table, rows, segments, 12, memory_limit)
    torch.testing.assert_close(sums.double(), expected, atol=1e-5, rtol=0)
    assert not sums[5].any()
    assert torch.equal(sums, segment_sums(table, rows, segments, 12))
