"""Merging: weights, sums, both placements, and that what is kept stays what it is."""

import pytest
import torch
from oracle import Oracle

from tango.ops.density import cluster
from tango.ops.merging import merge as merge_clusters
from tango.ops.merging import segment_sums, take


def unit(*shape, seed=0):
    points = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return points / points.norm(dim=-1, keepdim=True)


def merge(table, sets, vectors, counts, neighbors=7, anchor_weight=0.6, placement="anchor", memory_limit=256):
    """Kept rows and features of each set; sets and vectors are lists, of rows of the table and of their vectors."""
    rows, points = torch.cat(sets), torch.cat(vectors)
    counts = [counts] * len(sets) if isinstance(counts, int) else counts
    sizes, settings = [len(part) for part in sets], (torch.device("cpu"), neighbors, memory_limit)
    clusters = cluster(lambda places: points[places], points.shape[1], sizes, counts, *settings)
    # The table in two pieces, as tokens of a video and the means of its static ones are.
    tables = table[:70], table[70:]
    merged = merge_clusters(tables, rows, clusters.anchors, clusters.labels, anchor_weight, memory_limit)
    kept = rows[clusters.anchors if placement == "anchor" else clusters.by_score]
    parts = torch.arange(len(kept)).split([min(pair) for pair in zip(counts, sizes, strict=True)])
    order = [part[kept[part].argsort()] for part in parts]
    return [kept[part] for part in order], [merged[part] for part in order]


@pytest.mark.parametrize("placement", ["anchor", "published"])
@pytest.mark.parametrize("count", [0, 1, 4, 17, 29, 30])
@pytest.mark.parametrize("anchor_weight", [0.0, 0.6, 1.0])
def test_equals_the_oracle_in_batch(placement, count, anchor_weight):
    table = torch.randn(200, 20, generator=torch.Generator().manual_seed(2))
    tokens = torch.stack([torch.randperm(200, generator=torch.Generator().manual_seed(g))[:30] for g in range(4)])
    tokens = tokens.sort(dim=1).values
    vectors = unit(4, 30, 20)
    kept, values = merge(table, list(tokens), list(vectors), count, 5, anchor_weight, placement)
    oracle = Oracle(num_neighbors=5, anchor_weight=anchor_weight, placement=placement)
    for group in range(4):
        expected, features = oracle.merge(table[tokens[group]], vectors[group], tokens[group], count)
        assert torch.equal(kept[group], expected)
        torch.testing.assert_close(values[group], features)


@pytest.mark.parametrize("placement", ["anchor", "published"])
def test_sets_of_different_sizes_and_counts(placement):
    generator = torch.Generator().manual_seed(8)
    table = torch.randn(200, 20, generator=generator)
    sizes, counts = [30, 12, 30, 0, 5, 44], [7, 20, 3, 4, 0, 44]
    sets = [torch.randperm(200, generator=generator)[:size].sort().values for size in sizes]
    vectors = [unit(size, 20, seed=size) for size in sizes]
    kept, values = merge(table, sets, vectors, counts, 5, 0.6, placement)
    oracle = Oracle(num_neighbors=5, placement=placement)
    for j, count in enumerate(counts):
        expected, features = oracle.merge(table[sets[j]], vectors[j], sets[j], count)
        assert torch.equal(kept[j], expected)
        torch.testing.assert_close(values[j], features)


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
    kept, values = merge(features, [torch.arange(len(features))], [vectors], len(sizes), 2, anchor_weight)
    start = 0
    for anchor, value, size in zip(kept[0], values[0], sizes, strict=True):
        assert start <= anchor < start + size
        w = max(1 / size, anchor_weight)
        mean = features[start : start + size].mean(0)
        torch.testing.assert_close(value, w * features[anchor] + (1 - w) * mean)
        start += size


def test_published_placement_permutes_the_anchors_own_tokens():
    vectors, features = [unit(60, 16)], torch.randn(60, 16, generator=torch.Generator().manual_seed(4))
    tokens = [torch.arange(60)]
    kept, values = merge(features, tokens, vectors, 12)
    published_kept, published = merge(features, tokens, vectors, 12, placement="published")
    assert torch.equal(kept[0], published_kept[0])
    assert not torch.equal(values[0], published[0])
    assert sorted(map(tuple, values[0].tolist())) == sorted(map(tuple, published[0].tolist()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_no_more_than_there_is_room_for_is_kept_unmerged(dtype):
    table = torch.randn(9, 4, generator=torch.Generator().manual_seed(5)).to(dtype)
    tokens = torch.tensor([1, 4, 8])
    kept, values = merge(table, [tokens], [unit(3, 4)], 3)
    assert torch.equal(kept[0], tokens)
    assert torch.equal(values[0], table[tokens].float())


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


@pytest.mark.parametrize("count", [0, 3])
def test_segments_beyond_the_last_are_dropped(count):
    table, segments = torch.randn(6, 5, generator=torch.Generator().manual_seed(7)), torch.tensor([3, 0, 3, 1, 0, 3])
    segments = segments.clamp(max=count)
    sums = segment_sums([table[:2], table[2:]], torch.arange(6), segments, count)
    assert torch.equal(sums, torch.zeros(count + 1, 5).index_add_(0, segments, table)[:count])


def test_order_of_addition_does_not_depend_on_other_segments():
    """A segment's sum is the same to the bit whatever is added to others, and on every run."""
    table = torch.randn(500, 9, generator=torch.Generator().manual_seed(8))
    rows = torch.randperm(500, generator=torch.Generator().manual_seed(9))
    segments = torch.arange(500) % 7
    sums = segment_sums(table, rows, segments, 7)
    for segment in range(7):
        own = rows[segments == segment]
        assert torch.equal(sums[segment], segment_sums(table, own, torch.zeros_like(own), 1)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_take_from_tables_one_behind_the_other(dtype):
    tables = [torch.randn(size, 3).to(dtype) for size in (4, 0, 5)]
    rows = torch.tensor([8, 0, 3, 4, 4, 7])
    values = take(tables, rows)
    assert values.dtype == torch.float32 and torch.equal(values, torch.cat(tables)[rows].float())
    assert take(tables, rows[:0]).shape == (0, 3)
