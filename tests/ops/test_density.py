"""Density peaks and assignment against the plain dense definitions, with ties, copies and blocks."""

import warnings
from collections import Counter

import pytest
import tango.neighbors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Oracle
from tango.neighbors import OWN_EDGE, Search, half_squares, own_products, product_error, true_pairs
from tango.ragged import Doubts
from tango.screening import WIDE, Heads, sampled_products

from tango.ops.density import Peaks, assign, density_peaks, distances

TINY = 1e-6  # MiB: blocks of 64 x 64


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


@pytest.mark.parametrize("most_pairs", [tango.neighbors.MOST_PAIRS, 0])
def test_screened_blocks_change_nothing(monkeypatch, most_pairs):
    """Whether few rows, few pairs or all of a block are looked at; every way occurs."""
    points = smooth_tracks(60, 20, 2 * WIDE)
    products, ways = [], Counter()

    def watched(name):
        method = getattr(Search, name)

        def watch(*args):
            result = method(*args)
            ways[name, result not in (False, None)] += 1
            return result

        return watch

    for name in ("_offer_few", "_offer_some", "_closer"):
        monkeypatch.setattr(Search, name, watched(name))
    multiply = tango.neighbors.products

    def counted(points, others, *out):
        products.append(points.shape[0] * others.shape[0] * others.shape[1])
        return multiply(points, others, *out)

    monkeypatch.setattr(tango.neighbors, "products", counted)
    monkeypatch.setattr(tango.neighbors, "MOST_PAIRS", most_pairs)
    screened = density_peaks(points, 80, 7, TINY)
    taken = sum(products)
    products.clear()
    monkeypatch.setattr(tango.neighbors, "SCREEN_BLOCKS", 10**9)
    full = density_peaks(points, 80, 7, TINY)
    assert taken < 0.7 * sum(products)  # screening did leave products out
    done = [name for name, success in ways if success]
    assert done == ["_offer_few"] if most_pairs == 0 else sorted(done) == ["_closer", "_offer_few", "_offer_some"]
    assert all(ways[name, False] for name in ("_offer_few", "_offer_some", "_closer"))
    assert torch.equal(screened.indices, full.indices)
    assert torch.equal(screened.scores, full.scores)
    assert torch.equal(screened.indices, dense(points, 80, 7)[0])


def test_screening_of_points_of_different_lengths(monkeypatch):
    """There closeness is not the product alone."""
    lengths = 0.9 + 0.2 * torch.rand(60, 1, generator=torch.Generator().manual_seed(1))
    points = smooth_tracks(60, 20, 2 * WIDE) * lengths.repeat_interleave(20, 0)
    screened = density_peaks(points, 80, 7, TINY)
    assert not Search(points[0], 64).same
    monkeypatch.setattr(tango.neighbors, "SCREEN_BLOCKS", 10**9)
    full = density_peaks(points, 80, 7, TINY)
    assert torch.equal(screened.indices, full.indices)
    assert torch.equal(screened.scores, full.scores)
    assert torch.equal(screened.indices, dense(points, 80, 7)[0])


def test_heads_bound_products_from_above():
    points = smooth_tracks(60, 20, 2 * WIDE)[0] * torch.rand(1200, 1, generator=torch.Generator().manual_seed(2))
    search = Search(points, 64)
    heads = Heads.of(points, search.half, search.error)
    exact = points.double() @ points.double().T
    loose, tight = (x.double() @ x.double().T - exact for x in (heads.narrow, heads.wide))
    assert loose.min() >= 0
    assert tight.min() >= 0
    assert tight.mean() < loose.mean() / 2


def test_pairs_of_a_block_where_few_get_into_lists(monkeypatch):
    """All of a block's pairs, or only those that get into a list: the same outcome, and both occur."""
    points = smooth_tracks(30, 20, 48)
    done = Counter()
    offer = Search._offer_block

    def watched(*args):
        result = offer(*args)
        done[result] += 1
        return result

    monkeypatch.setattr(Search, "_offer_block", watched)
    few = density_peaks(points, 60, 7, TINY)
    assert done[True] > 5 and done[False] > 0
    monkeypatch.setattr(tango.neighbors, "MOST_HITS", -1)
    every = density_peaks(points, 60, 7, TINY)
    assert torch.equal(few.indices, every.indices) and torch.equal(few.scores, every.scores)
    assert torch.equal(few.indices, dense(points, 60, 7)[0])


@pytest.mark.parametrize("shape", [(3, 5), (8, 8), (7, 16), (1, 24), (4, 0)])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_true_pairs(shape, share):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < share
    rows, columns = true_pairs(mask, 1)
    assert torch.equal(torch.stack([rows, columns], 1), mask.nonzero())
    count = int(mask.sum())
    assert count == 0 or true_pairs(mask, (count - 0.5) / mask.numel()) is None


@pytest.mark.parametrize("size", [1, 2, 511, 513, 1025])
def test_own_products_are_products(size):
    points = unit(size, 40)
    whole = torch.full((size + 3, size + 3), torch.nan)
    found = own_products(points, whole[:size, :size])
    assert torch.allclose(found, points @ points.T, atol=1e-6)
    if size > 2 * OWN_EDGE:
        assert torch.equal(found[: size // 2, size // 2 :], found[size // 2 :, : size // 2].T)
    assert torch.equal(found, whole[:size, :size])
    assert whole[size:].isnan().all()


def test_sampled_products_are_products():
    points, others = unit(30, 50), unit(40, 50, seed=1)
    rows, columns = (torch.rand(30, 40, generator=torch.Generator().manual_seed(0)) < 0.1).nonzero().T.contiguous()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = sampled_products(points, others, rows, columns)
    assert torch.allclose(found, (points @ others.T)[rows, columns], atol=1e-6)
    nothing = torch.empty(0, dtype=torch.int64)
    assert sampled_products(points, others, nothing, nothing).shape == (0,)


@pytest.mark.parametrize("kind", ["zero", "copies", "few distinct", "random"])
def test_screening_survives_degenerate_sets(kind):
    dim = 2 * WIDE
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
    fixed=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_sets_of_different_sizes(sizes, share, neighbors, copies, zeros, memory_limit, fixed, seed):
    """Batched with padding, and with fixed shapes: as each set by itself, to the bit, unless there is a doubt."""
    parts = [with_copies(unit(1, size, 24, seed=seed + i), seed, copies, zeros) for i, size in enumerate(sizes)]
    counts = [max(1, int(share * size)) for size in sizes]
    padded = torch.full((len(sizes), max(sizes), 24), 0.3)
    for i, part in enumerate(parts):
        padded[i, : sizes[i]] = part[0]
    doubts = Doubts() if fixed else None
    peaks = density_peaks(padded, counts, neighbors, memory_limit, sizes=sizes, doubts=doubts)
    cluster = assign(padded, peaks, memory_limit, doubts=doubts)
    if doubts is not None and doubts.any():
        return
    for i, part in enumerate(parts):
        alone = density_peaks(part, counts[i], neighbors)
        assert torch.equal(peaks.indices[i, : counts[i]], alone.indices[0])
        assert torch.equal(peaks.scores[i, : counts[i]], alone.scores[0])
        assert (peaks.indices[i, counts[i] :] == max(sizes)).all() and (peaks.scores[i, counts[i] :] == -1).all()
        assert torch.equal(cluster[i, : sizes[i]], assign(part, alone)[0])


@pytest.mark.parametrize("memory_limit", [TINY, 256])
def test_fixed_shapes_are_enough_for_points_in_general_position(memory_limit):
    """And not for equal distances to many centres, which is a doubt, never a wrong result."""
    doubts = Doubts()
    points = smooth_tracks(30, 12, 64)
    peaks = density_peaks(points, 40, 7, memory_limit, doubts=doubts)
    assert torch.equal(assign(points, peaks, memory_limit, doubts=doubts), assign(points, peaks))
    assert torch.equal(peaks.indices, density_peaks(points, 40).indices)
    assert not doubts.any()
    member = next(i for i in range(points.shape[1]) if i not in peaks.indices)
    points[0, member] = 0  # as far from every centre
    assign(points, peaks, memory_limit, doubts=doubts)
    assert doubts.any()


@pytest.mark.parametrize("dim", [64, 896])
def test_products_of_halves(monkeypatch, dim):
    """What a GPU multiplies, here with sums in fp32: within the bound, and far better than bfloat16 alone."""
    points = unit(300, dim)
    exact = points.double() @ points.double().T
    bound = product_error(points, half_squares(points))
    monkeypatch.setattr(tango.neighbors, "splits", lambda device: True)
    multiply = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, out_dtype: multiply(a.to(out_dtype), b.to(out_dtype)))
    error = (tango.neighbors.products(points, points).double() - exact).abs().max()
    assert error < 3 * 2.0**-18 + bound < product_error(points, half_squares(points))
    assert error < (points.bfloat16().double() @ points.bfloat16().double().T - exact).abs().max() / 20


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
        d = torch.cdist(part, part, compute_mode="donot_use_mm_for_euclid_dist")
        rho = torch.exp(-d.double().sort(1).values[:, :neighbors].square().mean(1))
        rank = torch.empty_like(order := rho.sort(descending=True, stable=True).indices)
        rank[order] = torch.arange(len(part))
        denser = rho[None] > rho[:, None] if strict else rank[None] < rank[:, None]
        delta = torch.where(denser, d, torch.inf).amin(1)
        delta[delta == torch.inf] = d.max()
        score = rho.clamp(min=torch.finfo(torch.float64).tiny) * delta
        assert torch.equal(peaks.indices[group], score.sort(descending=True, stable=True).indices[:40])
        centres = peaks.indices[group].sort().values
        expected = d[:, centres].argmin(1)
        expected[centres] = torch.arange(40)
        assert torch.equal(joined[group], expected)


def test_points_too_far_apart_for_a_density():
    """exp(-d^2) is 0 in doubles: the lower index counts as denser, and every point still joins its nearest centre."""
    points = torch.tensor([[[0.0], [100.0], [201.0], [305.0], [306.0]]])
    peaks = density_peaks(points, 4, 2)
    assert peaks.scores.isfinite()[0, 1:].all() and (peaks.scores > 0).all()
    assert peaks.indices[0].tolist() == [0, 3, 2, 1]
    assert assign(points, peaks)[0].tolist() == [0, 1, 2, 3, 3]
