"""Density peaks and assignment against the plain dense definitions, with ties, copies and blocks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Oracle

from tango.ops import blocks, density
from tango.ops.density import Peaks, assign, cluster, density_peaks, distances

TINY = 1e-6  # MiB: blocks of 64 x 64
SLACK = torch.tensor(1e-4)  # more than products of the points below can be off


def unit(*shape, seed=0):
    points = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + 0.5
    return points / points.norm(dim=-1, keepdim=True)


def with_copies(points, seed, copies, zeros):
    """Some points of each set become copies of others, some become zero."""
    generator = torch.Generator().manual_seed(seed)
    size = points.shape[1]
    for part in points:
        chosen = torch.rand(size, generator=generator) < copies
        part[chosen] = part[torch.randint(size, (int(chosen.sum()),), generator=generator)]
        part[torch.rand(size, generator=generator) < zeros] = 0
    return points


def dense(points, count, neighbors, distance="difference"):
    oracle = Oracle(num_neighbors=neighbors, distance=distance)
    peaks, clusters = [], []
    for part in points:
        d = oracle.distances(part)
        by_score = oracle.peaks(d, count)
        peaks.append(by_score)
        clusters.append(torch.searchsorted(by_score.sort().values, oracle.join(d, by_score)))
    return torch.stack(peaks), torch.stack(clusters)


def by_definition(part, count, k, itself=False, strict=False, by_score=False):
    """Peaks, scores and clusters of one set (n, D), from its n x n distances, with the variants of other methods."""
    size = len(part)
    d = torch.cdist(part, part, compute_mode="donot_use_mm_for_euclid_dist")
    others = d.double() if itself else d.double().fill_diagonal_(torch.inf)
    near = others.sort(1).values[:, : min(k, size if itself else size - 1)]
    rho = torch.exp(-near.square().sum(1) / max(1, near.shape[1]))
    rank = torch.empty_like(order := rho.sort(descending=True, stable=True).indices)
    rank[order] = torch.arange(size)
    denser = rho[None] > rho[:, None] if strict else rank[None] < rank[:, None]
    delta = torch.where(denser, d, torch.inf).amin(1)
    score = rho.clamp(min=torch.finfo(torch.float64).tiny) * delta.double()
    scores, indices = (x[:count] for x in score.sort(descending=True, stable=True))
    centres = indices if by_score else indices.sort().values
    clusters = d[:, centres].argmin(1)
    clusters[centres] = torch.arange(count)
    return indices, scores, clusters


@settings(deadline=None, derandomize=True, max_examples=120)
@given(
    groups=st.integers(1, 3),
    size=st.integers(1, 220),
    dim=st.sampled_from([8, 12, 33, 64]),
    share=st.floats(0, 1),
    neighbors=st.integers(1, 12),
    copies=st.sampled_from([0.0, 0.0, 0.2, 0.9]),
    zeros=st.sampled_from([0.0, 0.3]),
    memory_limit=st.sampled_from([TINY, 256]),
    seed=st.integers(0, 10**6),
)
def test_equals_the_dense_definition(groups, size, dim, share, neighbors, copies, zeros, memory_limit, seed):
    points = with_copies(unit(groups, size, dim, seed=seed), seed, copies, zeros)
    count = max(1, int(share * size))
    peaks = density_peaks(points, count, neighbors, memory_limit)
    expected, clusters = dense(points, count, neighbors)
    assert torch.equal(peaks.indices, expected)
    assert torch.equal(assign(points, peaks, memory_limit), clusters)


@pytest.mark.parametrize("size", [60, 900])
@pytest.mark.parametrize("memory_limit", [TINY, 256])
def test_equals_the_definition_in_double_precision(size, memory_limit):
    """Without ties the precision of the distances does not show."""
    points = unit(2, size, 96, seed=size)
    peaks = density_peaks(points, size // 5, 7, memory_limit)
    expected, clusters = dense(points, size // 5, 7, "difference64")
    assert torch.equal(peaks.indices, expected)
    assert torch.equal(assign(points, peaks, memory_limit), clusters)


def smooth_tracks(frames, tokens, dim, seed=0, replaced=0.02):
    """Points that drift slowly from frame to frame, some replaced: the structure that screening makes use of."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(2, tokens, dim, generator=generator)
    angle = torch.arange(frames)[:, None, None] * 0.15
    points = directions[0] * angle.cos() + directions[1] * angle.sin()
    points = points + 0.05 * torch.randn(points.shape, generator=generator)
    new = torch.rand(frames, tokens, generator=generator) < replaced
    points[new] = torch.randn(int(new.sum()), dim, generator=generator)
    points = points.view(1, frames * tokens, dim)
    return points / points.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("lengths", [0.0, 0.2])
def test_screened_blocks_change_nothing(monkeypatch, lengths):
    """Also where points are of different lengths, so that closeness is not the product alone."""
    own = 1 + lengths * (torch.rand(60, 1, generator=torch.Generator().manual_seed(1)) - 0.5)
    points = smooth_tracks(60, 20, 4 * blocks.HEAD) * own.repeat_interleave(20, 0)
    asked = []
    offer = blocks._offer
    monkeypatch.setattr(blocks, "_offer", lambda *a: (asked.append(len(a[2]) * len(a[4])), offer(*a)))
    screened = density_peaks(points, 80, 7, TINY)
    looked_at = sum(asked)
    asked.clear()
    monkeypatch.setattr(blocks, "SCREEN_BLOCKS", 10**9)
    full = density_peaks(points, 80, 7, TINY)
    assert looked_at < 0.7 * sum(asked)  # screening did leave products out
    assert torch.equal(screened.indices, full.indices)
    assert torch.equal(screened.scores, full.scores)
    assert torch.equal(screened.indices, dense(points, 80, 7)[0])


def test_heads_bound_products_from_above():
    points = smooth_tracks(60, 20, 4 * blocks.HEAD)[0]
    points = points * torch.rand(1200, 1, generator=torch.Generator().manual_seed(2))
    heads = blocks._heads(points, points.square().sum(1) / 2, SLACK)
    assert heads.shape == (1200, blocks.HEAD + 1)
    above = heads.double() @ heads.double().T - points.double() @ points.double().T
    assert above.min() >= 0
    assert above.mean() < 0.1  # of products of up to 1


@pytest.mark.parametrize("size", [65, 200, 300])
@pytest.mark.parametrize("count", [3, 11, 64])
def test_nearest_in_blocks(monkeypatch, size, count):
    """The nearest of all, whether blocks are screened or not, and where a block has fewer points than are listed."""
    points = unit(size, 4 * blocks.HEAD)
    half = points.square().sum(1) / 2
    exact = (-torch.cdist(points.double(), points.double()).square() / 2).fill_diagonal_(-torch.inf)
    expected = exact.topk(count, 1).values.float()
    for least in (2, 10**9):
        monkeypatch.setattr(blocks, "SCREEN_BLOCKS", least)
        close, near = blocks.nearest_in_blocks(points, half, count, 32, SLACK, density.own_products)
        torch.testing.assert_close(close, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(exact.gather(1, near).float(), expected, atol=1e-5, rtol=0)
        assert all(len(set(row)) == count for row in near.tolist())


@pytest.mark.parametrize("asked", [0, 1, 33, 100])
@pytest.mark.parametrize("ties", [False, True])
def test_each_point_meets_each_denser_one_once(asked, ties):
    """Of 100 points in blocks of 32; points of one density have one rank."""
    points = unit(100, 8)
    rank = torch.randperm(100) // (5 if ties else 1) * (5 if ties else 1)
    some = torch.randperm(100)[:asked]
    met = torch.zeros(100, 100)
    for rows, others, close in blocks.denser_in_blocks(points, torch.full((100,), 0.5), rank, some, 32):
        torch.testing.assert_close(-2 * close, torch.cdist(points[rows], points[others]).square(), atol=1e-5, rtol=0)
        denser = rank[others] < rank[rows, None]
        assert denser.any(1).all()
        met[rows[:, None], others] += denser
    expected = torch.zeros(100, 100)
    expected[some] = (rank < rank[some, None]).float()
    assert met.equal(expected)


@pytest.mark.parametrize("kind", ["zero", "copies", "few distinct", "random"])
def test_screening_survives_degenerate_sets(kind):
    dim = 4 * blocks.HEAD
    points = torch.zeros(1, 300, dim)
    if kind != "zero":
        distinct = {"copies": 1, "few distinct": 5, "random": 300}[kind]
        points = unit(1, distinct, dim)[:, torch.arange(300) % distinct].clone()
    peaks = density_peaks(points, 20, 7, TINY)
    assert torch.equal(peaks.indices, dense(points, 20, 7)[0])
    assert torch.equal(assign(points, peaks, TINY), dense(points, 20, 7)[1])


@pytest.mark.parametrize("size", [5, 100, 700])
@pytest.mark.parametrize("memory_limit", [TINY, 256])
def test_equal_points(size, memory_limit):
    """All points equal: every score but the first is 0, so the peaks are the lowest indices, each once."""
    for points in (torch.zeros(1, size, 6), unit(1, 1, 6).expand(1, size, 6)):
        peaks = density_peaks(points, 4, 7, memory_limit)
        assert peaks.indices.tolist() == [[0, 1, 2, 3]]
        assert peaks.scores.tolist() == [[torch.inf, 0, 0, 0]]
        cluster = assign(points, peaks, memory_limit)
        assert cluster[0, :4].tolist() == [0, 1, 2, 3]  # a centre belongs to its own cluster
        assert not cluster[0, 4:].any()  # and the others to the lowest of the equals


def test_memory_limit_cannot_change_a_bit():
    points = with_copies(unit(2, 500, 48), 0, 0.1, 0.05)
    first = density_peaks(points, 60)
    for memory_limit in (TINY, 0.5, 1.0, 4096):
        peaks = density_peaks(points, 60, memory_limit=memory_limit)
        assert torch.equal(first.indices, peaks.indices)
        assert torch.equal(first.scores, peaks.scores)
        assert torch.equal(assign(points, first), assign(points, peaks, memory_limit))


@pytest.mark.parametrize("memory_limit", [TINY, 256])
def test_order_of_the_points_does_not_matter_without_ties(memory_limit):
    points = unit(1, 300, 24)
    shuffle = torch.randperm(300, generator=torch.Generator().manual_seed(5))
    peaks = density_peaks(points, 40, memory_limit=memory_limit)
    shuffled = density_peaks(points[:, shuffle], 40, memory_limit=memory_limit)
    assert torch.equal(shuffle[shuffled.indices], peaks.indices)
    centres = peaks.indices.sort().values[0]
    shuffled_centres = shuffle[shuffled.indices.sort().values[0]]
    cluster = centres[assign(points, peaks, memory_limit)[0]]
    assert torch.equal(cluster[shuffle], shuffled_centres[assign(points[:, shuffle], shuffled, memory_limit)[0]])


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 150), min_size=1, max_size=4),
    share=st.floats(0, 1),
    neighbors=st.integers(1, 9),
    copies=st.sampled_from([0.0, 0.2]),
    zeros=st.sampled_from([0.0, 0.1]),
    memory_limit=st.sampled_from([TINY, 256]),
    seed=st.integers(0, 10**6),
)
def test_sets_of_different_sizes(sizes, share, neighbors, copies, zeros, memory_limit, seed):
    """Batched with padding: as each set by itself, to the bit."""
    parts = [with_copies(unit(1, size, 24, seed=seed + i), seed, copies, zeros) for i, size in enumerate(sizes)]
    counts = [max(1, int(share * size)) for size in sizes]
    padded = torch.full((len(sizes), max(sizes), 24), 0.3)
    for i, part in enumerate(parts):
        padded[i, : sizes[i]] = part[0]
    peaks = density_peaks(padded, counts, neighbors, memory_limit, sizes=sizes)
    clusters = assign(padded, peaks, memory_limit)
    for i, part in enumerate(parts):
        alone = density_peaks(part, counts[i], neighbors)
        assert torch.equal(peaks.indices[i, : counts[i]], alone.indices[0])
        assert torch.equal(peaks.scores[i, : counts[i]], alone.scores[0])
        assert (peaks.indices[i, counts[i] :] == max(sizes)).all() and (peaks.scores[i, counts[i] :] == -1).all()
        assert torch.equal(clusters[i, : sizes[i]], assign(part, alone)[0])


@settings(deadline=None, derandomize=True, max_examples=250)
@given(
    neighbors=st.integers(1, 9),
    more=st.lists(st.integers(-3, 6), min_size=1, max_size=3),
    width=st.integers(0, 40),
    itself=st.booleans(),
    strict=st.booleans(),
    by_score=st.booleans(),
    share=st.floats(0, 1),
    copies=st.sampled_from([0.0, 0.3, 0.9]),
    zeros=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 10**6),
)
def test_about_as_many_points_as_neighbours(
    neighbors, more, width, itself, strict, by_score, share, copies, zeros, seed
):
    """Sets of k - 3 to k + 6 points, one beside a larger one: all others are listed as neighbours, or not quite."""
    sizes = [max(1, neighbors + number) for number in more]
    points = with_copies(unit(len(sizes), max(*sizes, width), 16, seed=seed), seed, copies, zeros)
    counts = [max(1, int(share * size)) for size in sizes]
    if width > max(sizes):  # a large set in the same batch
        sizes[0], counts[0] = width, max(1, int(share * width))
    peaks = density_peaks(points, counts, neighbors, itself=itself, strict=strict, sizes=sizes)
    clusters = assign(points, peaks, by_score=by_score)
    for own, size, count, indices, scores, found in zip(points, sizes, counts, *peaks, clusters, strict=True):
        expected = by_definition(own[:size], count, neighbors, itself, strict, by_score)
        assert torch.equal(indices[:count], expected[0])
        torch.testing.assert_close(scores[:count], expected[1], rtol=1e-14, atol=0)
        assert torch.equal(found[:size], expected[2])


@pytest.mark.parametrize("by_score", [False, True])
def test_copies_that_outnumber_the_centres(by_score):
    """With `strict` copies have the same score. The others join the lowest, though not all fit into a list."""
    points = unit(1, 90, 6)
    points[0, 20::2] = points[0, 20]
    peaks = density_peaks(points, 20, 3, strict=True)
    assert len(set(peaks.indices[0].tolist()) & set(range(20, 90, 2))) > 2 * density.SPARE
    expected = by_definition(points[0], 20, 3, strict=True, by_score=by_score)
    assert torch.equal(peaks.indices[0], expected[0])
    assert torch.equal(assign(points, peaks, by_score=by_score)[0], expected[2])


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    sets=st.lists(st.tuples(st.integers(0, 90), st.integers(0, 100)), min_size=1, max_size=8),
    memory_limit=st.sampled_from([TINY, 0.1, 256]),
    padding=st.sampled_from([1, 1 << 23]),
    copies=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 10**6),
)
def test_clusters_of_many_sets(sets, memory_limit, padding, copies, seed):
    """Each set as the oracle has it: around its peaks, each point by itself where there is room, or not at all."""
    sizes, counts = [size for size, _ in sets], [count for _, count in sets]
    points = with_copies(unit(1, max(1, sum(sizes)), 12, seed=seed), seed, copies, 0.1)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(density.PADDING, "cpu", padding)
        found = cluster(lambda places: points[places], 12, sizes, counts, torch.device("cpu"), 5, memory_limit)
    oracle, anchors, by_score, labels, start = Oracle(num_neighbors=5), [], [], [], 0
    total = sum(min(pair) for pair in sets)
    for size, count in sets:
        own = points[start : start + size]
        if size <= count:
            peaks, joined = torch.arange(size), torch.arange(size)
        elif count == 0:
            peaks, joined = torch.arange(0), None
        else:
            d = oracle.distances(own)
            peaks = oracle.peaks(d, count)
            joined = torch.searchsorted(peaks.sort().values, oracle.join(d, peaks))
        labels.append(torch.full((size,), total) if joined is None else len(torch.cat([*anchors, peaks[:0]])) + joined)
        anchors.append(start + peaks.sort().values)
        by_score.append(start + peaks)
        start += size
    assert torch.equal(found.anchors, torch.cat(anchors))
    assert torch.equal(found.by_score, torch.cat(by_score))
    assert torch.equal(found.labels, torch.cat(labels))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_hold_what_the_memory_limit_allows(device):
    sizes = torch.randint(1, 400, (50,), generator=torch.Generator().manual_seed(3)).tolist()
    for memory_limit in (TINY, 1.0, 16.0, 256.0):
        elements = density._block_elements(torch.device(device), memory_limit)
        batches = density._batches(sizes, 64, torch.device(device), memory_limit)
        assert sorted(place for batch in batches for place in batch) == list(range(50))
        for batch in batches:
            largest = max(sizes[place] for place in batch)
            assert len(batch) == 1 or len(batch) * largest**2 <= elements
    assert len(batches) == 1 if device == "cuda" else len(batches) > 1  # 50 sets of 64: little to waste on padding


@pytest.mark.parametrize("memory_limit", [TINY, 256])
@pytest.mark.parametrize("apart", [1e-5, 1e-4, 1e-3])
def test_points_nearer_than_products_can_tell(apart, memory_limit):
    """Heaps of points whose distances are about the rounding of products: which are near, and denser, is measured."""
    heaps = unit(1, 6, 32).repeat_interleave(30, 1)
    points = heaps + apart * torch.randn(heaps.shape, generator=torch.Generator().manual_seed(2))
    peaks = density_peaks(points, 60, 4, memory_limit)
    expected, scores, clusters = by_definition(points[0], 60, 4)
    assert torch.equal(peaks.indices[0], expected)
    torch.testing.assert_close(peaks.scores[0], scores, rtol=1e-12, atol=0)
    assert torch.equal(assign(points, peaks, memory_limit)[0], clusters)


@pytest.mark.parametrize("memory_limit", [TINY, 256])
def test_more_near_ties_than_are_listed(memory_limit):
    """The last of a point's nearest is one of forty that products cannot tell apart: their distances are measured."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(64, 64, generator=generator)).Q
    around = axes[7:47] * (1 + 1e-6 * torch.rand(40, 1, generator=generator))
    points = 3 * axes[0] + torch.cat([torch.zeros(1, 64), 0.1 * axes[1:7], around])
    points = points[torch.randperm(len(points), generator=generator)]
    peaks = density_peaks(points[None], len(points), 7, memory_limit)
    expected, scores, _ = by_definition(points, len(points), 7)
    assert torch.equal(peaks.indices[0], expected)
    torch.testing.assert_close(peaks.scores[0], scores, rtol=1e-12, atol=0)


def test_peak_limits():
    points = unit(1, 5, 4)
    assert sorted(density_peaks(points, 5)[0][0].tolist()) == [0, 1, 2, 3, 4]
    assert density_peaks(points[:, :1], 1).indices.tolist() == [[0]]
    for count in (0, 6):
        with pytest.raises(ValueError, match=f"count = {count}: expected 1 to 5"):
            density_peaks(points, count)


def test_ties_of_distance_go_to_the_lower_centre():
    # Points 2 and 3 are as far from centre 0 as from centre 1, in exact arithmetic and in fp32.
    points = torch.tensor([[[1.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]])
    for order in ([0, 1], [1, 0]):
        peaks = Peaks(torch.tensor([order]), torch.ones(1, 2, dtype=torch.float64))
        assert assign(points, peaks).tolist() == [[0, 1, 0, 0]]


def test_distances_are_symmetric_and_exact_for_copies():
    points = unit(40, 96)
    square = distances(points, points.expand(40, 40, 96))
    assert torch.equal(square, square.T)
    assert not square.diagonal().any()
    expected = torch.cdist(points.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(square.double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("memory_limit", [TINY, 256])
@pytest.mark.parametrize("neighbors", [1, 2, 4, 300])
@pytest.mark.parametrize("length", [1.0, 30.0])
@pytest.mark.parametrize("strict", [False, True])
def test_a_point_as_its_own_first_neighbour(neighbors, memory_limit, length, strict):
    """Density from the k smallest distances of a row, 0 to itself included, for points of any length; with ties."""
    points = length * with_copies(unit(2, 150, 16, seed=5), 5, 0.2, 0.1)
    peaks = density_peaks(points, 40, neighbors, memory_limit, itself=True, strict=strict)
    joined = assign(points, peaks, memory_limit)
    for group, part in enumerate(points):
        indices, _, clusters = by_definition(part, 40, neighbors, True, strict)
        assert torch.equal(peaks.indices[group], indices)
        assert torch.equal(joined[group], clusters)


def test_points_too_far_apart_for_a_density():
    """exp(-d^2) is 0 in doubles: the lower index counts as denser, and every point still joins its nearest centre."""
    points = torch.tensor([[[0.0], [100.0], [201.0], [305.0], [306.0]]])
    peaks = density_peaks(points, 4, 2)
    assert peaks.scores.isfinite()[0, 1:].all() and (peaks.scores > 0).all()
    assert peaks.indices[0].tolist() == [0, 3, 2, 1]
    assert assign(points, peaks)[0].tolist() == [0, 1, 2, 3, 3]


@pytest.mark.parametrize("size", [1, 256, 600])
def test_own_products(size):
    points = unit(2, size, 32)
    products = density.own_products(points)
    torch.testing.assert_close(products, torch.einsum("gnd,gmd->gnm", points, points), atol=1e-6, rtol=0)
    below = torch.ones(size, size, dtype=torch.bool).tril(-density.STRIP)
    assert torch.equal(products[:, below], products.mT[:, below])
