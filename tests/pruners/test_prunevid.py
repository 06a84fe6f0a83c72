"""PruneVid: the published code's own numbers, a plain slow version of the steps, and the budget by bisection."""

import math

import pytest
import torch
from golden_cases import cases, read
from videos import made_up

from tango.pruners.prunevid import PruneVid, repaired, scenes, static_places


def cosine(a, b):
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm else 0.0


def slow_clusters(points, count, k):
    """(centres by falling score, the centre's place in that order of every point), from all distances in doubles."""
    n, dim = points.shape
    d = [[float((a - b).norm()) / math.sqrt(dim) for b in points] for a in points]
    rho = [math.exp(-sum(x * x for x in sorted(row)[: min(k, n)]) / min(k, n)) for row in d]
    denser = [[j for j in range(n) if (rho[j], -j) > (rho[i], -i)] for i in range(n)]
    delta = [min((d[i][j] for j in denser[i]), default=max(max(row) for row in d)) for i in range(n)]
    centres = sorted(range(n), key=lambda i: (-rho[i] * delta[i], bool(denser[i]), i))[:count]
    joined = [min(range(count), key=lambda c: (d[i][centres[c]], c)) for i in range(n)]
    for place, centre in enumerate(centres):
        joined[centre] = place
    return centres, joined


def slow_scenes(means, ratio, k):
    """Frames in each scene."""
    labels = slow_clusters(means, max(1, int(len(means) * ratio)), k)[1]
    return slow_repair(labels)


def runs_of(labels):
    runs, start = [], 0
    for i in range(1, len(labels) + 1):
        if i == len(labels) or labels[i] != labels[start]:
            runs.append((labels[start], start, i - start))
            start = i
    return runs


def slow_repair(labels):
    labels = list(labels)
    runs = runs_of(labels)
    for label, start, length in runs:
        longest = max(other[2] for other in runs if other[0] == label)
        if length < longest or length < 2:
            labels[start : start + length] = [None] * length
    while None in labels:
        runs = runs_of(labels)
        at = next(i for i, run in enumerate(runs) if run[0] is None)
        _, start, length = runs[at]
        left = runs[at - 1] if at > 0 else None
        right = runs[at + 1] if at + 1 < len(runs) else None
        beside = [run for run in (left, right) if run]
        label = sorted(beside, key=lambda run: -run[2])[0][0] if beside else 0
        labels[start : start + length] = [label] * length
    return [length for _, _, length in runs_of(labels)]


def slow(features, tau, segment_ratio, beta, k, merge_above):
    """(flat homes in published order, features, frames in each scene)."""
    x = features.double()
    tokens = x.shape[1]
    sizes = slow_scenes(x.mean(1), segment_ratio, k)
    indices, values, start = [], [], 0

    def merged(vectors, homes):
        if len(homes) <= merge_above:
            indices.extend(homes)
            values.extend(vectors)
            return
        count = max(1, int(len(homes) * beta))
        centres, joined = slow_clusters(torch.stack(vectors), count, k)
        for place, centre in enumerate(centres):
            indices.append(homes[centre])
            values.append(torch.stack([v for v, j in zip(vectors, joined, strict=True) if j == place]).mean(0))

    for width in sizes:
        still = []
        for n in range(tokens):
            pairs = [cosine(x[start + a, n], x[start + b, n]) for a in range(width) for b in range(width) if a != b]
            still.append(width > 1 and sum(pairs) / (width * (width - 1)) > tau)
        static = [n for n in range(tokens) if still[n]]
        merged([x[start : start + width, n].mean(0) for n in static], [start * tokens + n for n in static])
        for f in range(start, start + width):
            moving = [n for n in range(tokens) if not still[n]]
            merged([x[f, n] for n in moving], [f * tokens + n for n in moving])
        start += width
    return indices, torch.stack(values), sizes


@pytest.mark.parametrize("path", cases("prunevid"), ids=lambda path: path.stem)
def test_published_numbers(path):
    tensors, parameters, grid = read(path)
    names = ("tau", "temporal_segment_ratio", "cluster_ratio", "num_neighbors", "merge_above")
    method = PruneVid(**{name: parameters[name] for name in names})
    pruned = method.prune(tensors["features"], None, grid)
    assert torch.equal(pruned.indices, tensors["kept_indices"])
    assert torch.equal(pruned.segment_sizes, tensors["segment_sizes"])
    torch.testing.assert_close(pruned.features, tensors["output_features"], rtol=1e-6, atol=1e-5)
    # Blocks: per scene the static tokens, then as many dynamic ones as the case says.
    lengths = torch.stack([tensors["static_sizes"], tensors["dynamic_sizes"]], 1).flatten()
    assert int(lengths.sum()) == len(pruned.indices)
    method.order = "ascending"
    ordered = method.prune(tensors["features"], None, grid)
    order = tensors["kept_indices"].argsort()
    assert torch.equal(ordered.indices, tensors["kept_indices"][order])
    assert torch.equal(ordered.features, pruned.features[order])


def test_all_cases_are_here():
    assert len(cases("prunevid")) == 6


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("settings", [
    {}, {"tau": 0.5, "cluster_ratio": 0.3}, {"merge_above": 3, "num_neighbors": 2, "cluster_ratio": 0.71},
    {"temporal_segment_ratio": 0.6, "num_neighbors": 1}, {"cluster_ratio": 0.01, "tau": 0.7},
])  # fmt: skip
def test_equals_the_slow_version(seed, settings):
    features, _, grid, _ = made_up(1 + 2 * seed, (4, 5), 10, seed, noise=0.4, scenes=1 + seed % 3)
    settings = {"cluster_ratio": 0.5} | settings
    pruned = PruneVid(**settings).prune(features, None, grid)
    indices, values, sizes = slow(
        features,
        settings.get("tau", 0.8),
        settings.get("temporal_segment_ratio", 0.25),
        settings["cluster_ratio"],
        settings.get("num_neighbors", 7),
        settings.get("merge_above", 14),
    )
    assert pruned.segment_sizes.tolist() == sizes
    assert pruned.indices.tolist() == indices
    torch.testing.assert_close(pruned.features.double(), values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "labels, lengths",
    [
        ("aaabbb", [3, 3]),
        ("aaabaa", [6]),  # the stray b joins a, and so does what a lost itself
        ("aabbbab", [2, 5]),  # the last a and b are cleared: one neighbour
        ("abaacc", [4, 2]),
        ("abab", [4]),  # nothing is left: one scene
        ("aaxbb", [3, 2]),  # a tie: left
        ("aaxbbb", [2, 4]),
        ("aaxaaxbbbb", [6, 4]),  # the left run counts as repaired: 6 against 4, where 2 or 3 alone would lose
        ("aabbaa", [2, 2, 2]),  # runs of one label that tie are all kept
        ("a", [1]),
        ("ab", [2]),
    ],
)
def test_repair_by_hand(labels, lengths):
    numbers = [ord(label) for label in labels]
    assert repaired(numbers) == lengths
    assert slow_repair(numbers) == lengths


def test_repair_equals_the_slow_one():
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        count = int(torch.randint(1, 15, (1,), generator=generator))
        kinds = int(torch.randint(1, 5, (1,), generator=generator))
        labels = torch.randint(0, kinds, (count,), generator=generator).tolist()
        found = repaired(labels)
        assert found == slow_repair(labels)
        assert sum(found) == count and (count == 1 or min(found) >= 2)


def test_scenes_are_found():
    places = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    noise = 0.01 * torch.randn(12, 16, generator=torch.Generator().manual_seed(1))
    assert scenes(places.repeat_interleave(4, 0) + noise).tolist() == [4, 4, 4]


def test_static_is_more_than_tau():
    # Two frames at cosines 1, 0.8 and 0: the comparison is strict.
    features = torch.tensor([[[1.0, 0.0]] * 3, [[2.0, 0.0], [0.8, 0.6], [0.0, 1.0]]])
    assert static_places(features, 0.79).tolist() == [True, True, False]
    assert static_places(features, 0.81).tolist() == [True, False, False]
    assert static_places(features[:1], -1.0).tolist() == [False] * 3
    half = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert static_places(half, 0.0).tolist() == [False]


def test_static_places_of_half_precision_are_those_of_the_same_numbers_in_float():
    features = torch.randn(4, 2000, 16, generator=torch.Generator().manual_seed(0)).add_(1.0).bfloat16()
    found = static_places(features, 0.5)
    assert torch.equal(found, static_places(features.double().float(), 0.5))
    assert 0 < int(found.sum()) < 2000


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.7])
def test_the_ratio_is_met_by_the_largest_cluster_ratio(seed, ratio):
    features, _, grid, _ = made_up(6, (5, 6), 10, seed, noise=0.2)
    frames, tokens = features.shape[:2]
    kept = len(PruneVid(ratio).prune(features, None, grid).indices)

    def at(beta):
        return len(PruneVid(cluster_ratio=beta).prune(features, None, grid).indices)

    counts = [at(beta) for beta in torch.linspace(1e-3, 1, 61).tolist()]
    fitting = [count for count in counts if count <= ratio * frames * tokens]
    assert kept == max(fitting, default=min(counts))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ratio", [0.005, 0.02, 0.1, 0.3, 0.77, 0.99])
def test_exact_budget(seed, ratio):
    features, _, grid, _ = made_up(6, (5, 6), 10, seed, noise=0.2)
    pruned = PruneVid(ratio, exact_budget=True).prune(features, None, grid)
    assert len(pruned.indices) == max(1, round(ratio * 180))
    assert len(set(pruned.indices.tolist())) == len(pruned.indices)


def test_exact_budget_beyond_all_sets_takes_back_what_was_averaged():
    features = torch.ones(4, 6, 5) + 0.1 * torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))
    assert len(PruneVid(0.9).prune(features).indices) == 6  # all of it is static
    pruned = PruneVid(0.5, exact_budget=True).prune(features)
    assert len(pruned.indices) == 12 and pruned.indices[:6].tolist() == list(range(6))
    torch.testing.assert_close(pruned.features[:6], features.mean(0))
    assert torch.equal(pruned.features[6:], features.view(24, 5)[pruned.indices[6:]])
    unlike = [-cosine(features[i // 6, i % 6], features.mean(0)[i % 6]) for i in range(24)]
    assert pruned.indices[6:].tolist() == sorted(sorted(range(6, 24), key=lambda i: -unlike[i])[:6])


def test_exact_budget_shares_by_size_and_leaves_small_sets_alone():
    method = PruneVid(0.4, exact_budget=True)
    counts = method._counts(torch.tensor([40, 10, 20, 0, 30]), 100)  # 40: 10 as it is, 30 over 40 + 20 + 30
    assert counts.tolist() == [13, 10, 7, 0, 10]
    few = PruneVid(0.1, exact_budget=True)._counts(torch.tensor([40, 10, 20, 0, 30]), 100)
    assert few.tolist() == [4, 1, 2, 0, 3]  # 10 would not hold the small set and one of each large one


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"cluster_ratio": 0.0}, "cluster_ratio = 0.0"),
        ({"cluster_ratio": 0.5, "exact_budget": True}, "cluster_ratio = 0.5: expected None with exact_budget"),
        ({"tau": 1.5}, "tau = 1.5"),
        ({"merge_above": 0}, "merge_above = 0"),
        ({"order": "time"}, "order = 'time'"),
        ({"temporal_segment_ratio": 2.0}, "temporal_segment_ratio = 2.0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        PruneVid(**settings)
