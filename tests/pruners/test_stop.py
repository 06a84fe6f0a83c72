"""SToP: the published code's own numbers, plain slow versions, and what it does with sinks by hand."""

import math

import pytest
import torch
from golden_cases import cases
from hypothesis import given, settings
from hypothesis import strategies as st
from peer_checks import check_golden, check_properties, check_refusals, same
from slow_peers import cosines, fastvid, first_best, holitom, top
from videos import made_up, prune

from tango.pruners import FastVID, HoliTom, StopFastVID, StopHoliTom, StopVisionZip, VisionZip
from tango.pruners.peaks import _diameter, lowered_peaks, plain_peaks

STOP = [StopVisionZip, StopFastVID, StopHoliTom]
videos = {
    "frames": st.integers(1, 6),
    "grid": st.tuples(st.integers(1, 4), st.integers(1, 5)),
    "dim": st.sampled_from([4, 9]),
    "seed": st.integers(0, 9999),
    "noise": st.sampled_from([0.05, 0.5]),
    "copies": st.sampled_from([0.0, 0.0, 0.3, 1.0]),
    "zeros": st.sampled_from([0.0, 0.2]),
}
quick = settings(max_examples=40, deadline=None, derandomize=True)
weights = st.sampled_from([0.0, 0.03, 0.5])


def sink_scores(saliency, gamma=1.1):
    """In doubles, a list of a place's score each."""
    means = [sum(column) / len(column) for column in saliency.double().T.tolist()]
    powers = [mean**gamma for mean in means]
    return [(power - min(powers)) / (max(powers) - min(powers) + 1e-12) for power in powers]


def lowered(saliency, weight, gamma=1.1):
    return saliency.double() - weight * torch.tensor(sink_scores(saliency, gamma), dtype=torch.float64)


def stop_visionzip(x, saliency, keys, r, mu=0.03, sinks=20, share=54 / 64, published=False):
    frames, tokens, _ = x.shape
    x, scores = x.double(), sink_scores(saliency)
    strongest = sorted(range(tokens), key=lambda place: (-scores[place], place))[:sinks]
    saliency = lowered(saliency, mu)
    indices, values = [], []
    for f in range(frames):
        total = math.ceil(tokens * r)
        dominant = top(saliency[f], int(total * share))
        others = [place for place in range(tokens) if place not in dominant]
        count = total - len(dominant)
        numbers = [i * max(1, len(others) // count) for i in range(count)]
        for i, start in enumerate(numbers):
            number = start
            while number in strongest or (number != start and not published and number in numbers):
                number += 1
            numbers[i] = number if number < len(others) else start
        targets = [others[number] for number in numbers]
        joined = [[] for _ in targets]
        for place in others if targets else []:
            if place not in targets:
                joined[first_best(cosines(keys[f, [place]], keys[f, targets])[0])].append(x[f, place])
        indices += [f * tokens + place for place in (*dominant, *targets)]
        values += [x[f, place] for place in dominant]
        values += [x[f, t] + (torch.stack(g).mean(0) if g else 0) for t, g in zip(targets, joined, strict=True)]
    return indices, values


@pytest.mark.parametrize("path", cases("stop_visionzip"), ids=lambda path: path.stem)
def test_published_numbers_on_visionzip(path):
    tensors, _, pruned = check_golden(StopVisionZip, path, targets="published")
    torch.testing.assert_close(pruned.features, tensors["output_features"], atol=1e-5, rtol=1e-6)
    twice = len(pruned.indices) - len(pruned.indices.unique())
    assert twice == (8 if path.stem == "case_03" else 0)  # one in each of its frames
    own = check_golden(StopVisionZip, path)[2] if twice == 0 else None
    assert own is None or torch.equal(own.indices, pruned.indices)


@pytest.mark.parametrize("path", cases("stop_fastvid"), ids=lambda path: path.stem)
def test_published_numbers_on_fastvid(path):
    tensors, parameters, pruned = check_golden(StopFastVID, path)
    merged = torch.bincount(pruned.indices // tensors["features"].shape[1]) - parameters["salient_per_frame"]
    assert torch.equal(merged, tensors["anchors_per_frame"])


@pytest.mark.parametrize("path", cases("stop_holitom"), ids=lambda path: path.stem)
def test_published_numbers_on_holitom(path):
    tensors, _, pruned = check_golden(StopHoliTom, path)
    torch.testing.assert_close(pruned.features, tensors["output_features"], atol=1e-5, rtol=1e-6)


def test_all_cases_are_here():
    assert [len(cases(method.name)) for method in STOP] == [6, 6, 6]


@quick
@given(
    video=st.fixed_dictionaries(videos),
    ratio=st.floats(0.01, 0.99),
    mu=weights,
    sinks=st.sampled_from([0, 1, 3, 8, 20]),
    share=st.sampled_from([0.0, 0.5, 54 / 64, 1.0]),
    published=st.booleans(),
)
def test_equals_the_slow_version_on_visionzip(video, ratio, mu, sinks, share, published):
    features, saliency, grid, _ = made_up(**video)
    keys = features[..., :2] + torch.randn(*saliency.shape, 2, generator=torch.Generator().manual_seed(1)).round()
    method = StopVisionZip(ratio, mu_s=mu, num_sinks=sinks, dominant_ratio=share,
                           targets="published" if published else "distinct")  # fmt: skip
    pruned = method.prune(features, saliency, grid, keys=keys)
    same(pruned, *stop_visionzip(features, saliency, keys, ratio, mu, sinks, share, published))


@quick
@given(
    video=st.fixed_dictionaries(videos),
    ratio=st.floats(0.01, 0.99),
    mu=weights,
    weight=weights,
    tau=st.sampled_from([-1.0, 0.5, 0.9]),
    interval=st.integers(1, 4),
    once=st.booleans(),
)
def test_equals_the_slow_version_on_fastvid(video, ratio, mu, weight, tau, interval, once):
    features, saliency, grid, _ = made_up(**video)
    vectors = torch.randn(len(features), 5, generator=torch.Generator().manual_seed(2))
    method = StopFastVID(ratio, mu_s=mu, centre_sink_weight=weight, min_segments=2, similarity_threshold=tau,
                         anchor_interval=interval, centre_penalty="once" if once else "published")  # fmt: skip
    lower = [weight * score if mu else 0.0 for score in sink_scores(saliency)]
    expected = fastvid(features, lowered(saliency, mu), vectors, ratio, 2, tau, 0.4, interval, 0.6, lower, 2 - once)
    same(method.prune(features, saliency, grid, frame_vectors=vectors), *expected)


@quick
@given(
    video=st.fixed_dictionaries(videos),
    ratio=st.floats(0.01, 0.99),
    mu=weights,
    weight=weights,
    tau=st.sampled_from([0.3, 0.8]),
    static_tau=st.sampled_from([0.3, 0.8, 0.95]),
    neighbors=st.integers(1, 8),
)
def test_equals_the_slow_version_on_holitom(video, ratio, mu, weight, tau, static_tau, neighbors):
    features, saliency, grid, _ = made_up(**video)
    method = StopHoliTom(ratio, mu_s=mu, mu_t=0.2 * weight, centre_sink_weight=weight, similarity_threshold=tau,
                         static_threshold=static_tau, num_neighbors=neighbors)  # fmt: skip
    scores, penalised = sink_scores(saliency), lowered(saliency, mu)
    expected = holitom(
        features, penalised, ratio, tau, 0.6, neighbors, 1024, [weight * score for score in scores],
        [0.2 * weight * score for score in scores], static_tau,
    )  # fmt: skip
    pruned = method.prune(features, saliency, grid)
    if expected[0]:
        same(pruned, *expected)
    else:  # the steps round to nothing: the token of highest saliency less its sink score stays
        assert pruned.indices.tolist() == [int(penalised.flatten().argmax())]


@pytest.mark.parametrize("method", STOP)
@quick
@given(video=st.fixed_dictionaries(videos), ratio=st.floats(0.01, 0.99))
def test_properties(method, video, ratio):
    most = {
        StopVisionZip: lambda f, n, r: f * math.ceil(n * r),
        StopFastVID: lambda f, n, r: f * max(1, int(n * r)),
        StopHoliTom: lambda f, n, r: min(f * n, f * n * r + 2 * f),
    }
    check_properties(method, most[method], video, ratio)


@pytest.mark.parametrize("method, base, off", [
    (StopVisionZip, VisionZip, {"num_sinks": 0}), (StopFastVID, FastVID, {}),
    (StopHoliTom, HoliTom, {"mu_t": 0.0, "centre_sink_weight": 0.0}),
])  # fmt: skip
def test_without_weights_it_is_the_base(method, base, off):
    video = made_up(8, (5, 6), 16, seed=4, noise=0.2)
    plain = {"keep_positions": False} if base is FastVID else {"similarity_threshold": 0.8} if base is HoliTom else {}
    expected, pruned = prune(base(0.3, **plain), video), prune(method(0.3, mu_s=0.0, **off), video)
    assert torch.equal(pruned.indices, expected.indices) and torch.equal(pruned.features, expected.features)
    assert not torch.equal(prune(method(0.3, mu_s=0.5), video).indices, expected.indices)


def test_a_sink_is_turned_away():
    """Token 2 draws attention in every frame, 0, 1, 3, 4 in one each; 5, in none, takes the sink's place."""
    saliency = torch.full((4, 6), 0.001)
    saliency[range(4), [0, 1, 3, 4]], saliency[:, 2] = 0.015, 0.02
    features = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
    keep = {"tokens_per_frame": 2, "dominant_ratio": 1.0}
    plain = VisionZip(**keep).prune(features, saliency, keys=features).indices.view(4, 2) % 6
    assert plain.tolist() == [[0, 2], [1, 2], [2, 3], [2, 4]]
    turned = StopVisionZip(**keep).prune(features, saliency, keys=features).indices.view(4, 2) % 6
    assert turned.tolist() == [[0, 5], [1, 5], [3, 5], [4, 5]]


def test_targets_move_past_sinks():
    """Ten places, sinks 0 to 3 by score; six others, numbered 0 to 5, of which 0, 2 and 4 are contextual at first."""
    features = torch.arange(1.0, 11.0).view(1, 10, 1)
    saliency = torch.tensor([[10, 9, 8, 7, 1, 1, 1, 1, 1, 1.0]])
    chosen = {"tokens_per_frame": 7, "dominant_ratio": 0.6, "mu_s": 0.0, "num_sinks": 4}

    def places(**more):
        return StopVisionZip(**chosen | more).prune(features, saliency, keys=features).indices.tolist()

    # Others are 4 to 9. 0 and 2 go to 4, the first free one; "distinct": it is taken, they go to 5 and nowhere.
    assert places(targets="published") == [0, 1, 2, 3, 8, 8, 8]
    assert places() == [0, 1, 2, 3, 9, 6, 8]
    assert places(num_sinks=0) == [0, 1, 2, 3, 4, 6, 8]
    assert places(num_sinks=20) == [0, 1, 2, 3, 4, 6, 8]  # all ten numbers are sinks': nothing can move
    twice = StopVisionZip(targets="published", **chosen).prune(features, saliency, keys=features).features[4:, 0]
    assert twice.tolist() == pytest.approx([9 + (5 + 6 + 7 + 8 + 10) / 5, 9, 9])  # the first gathers, others stay


def test_equal_saliency_has_no_sinks():
    """Also of numbers that are no binary fractions: no difference of rounding is stretched to 0 .. 1."""
    saliency = torch.full((7, 12), 0.1)
    features = torch.randn(7, 12, 8, generator=torch.Generator().manual_seed(0))
    for method, base in ((StopHoliTom, HoliTom), (StopFastVID, FastVID)):
        same_video = prune(base(0.3, similarity_threshold=0.8), (features, saliency, None, None))
        assert torch.equal(prune(method(0.3, similarity_threshold=0.8), (features, saliency, None, None)).indices,
                           same_video.indices)  # fmt: skip


def test_the_weight_follows_the_mean_saliency():
    video = made_up(6, (4, 5), 12, seed=8)
    features, saliency, grid, times = video
    for method in STOP:
        factor = 729 * float(saliency.double().mean())
        scaled = prune(method(0.3, saliency_mean=1 / 729), video)
        assert torch.equal(scaled.indices, prune(method(0.3, mu_s=factor * method().mu_s), video).indices)
        # So the unit of saliency is all the same, which it is not without.
        small = (features, saliency / 512, grid, times)
        assert torch.equal(prune(method(0.3, saliency_mean=1 / 729), small).indices, scaled.indices)
        assert not torch.equal(prune(method(0.3), small).indices, prune(method(0.3), video).indices)


def test_peaks_with_penalties():
    generator = torch.Generator().manual_seed(6)
    points = torch.randn(3, 40, 6, generator=generator) / 6**0.5
    points[2] = points[2, :1]  # copies: scores of 0, so penalties alone decide
    indices, none = torch.arange(120).view(3, 40), torch.zeros(3, 40, dtype=torch.float64)
    for count in (1, 5, 40):
        expected = plain_peaks(points, count, 4, indices).indices
        assert torch.equal(lowered_peaks(points, count, 4, none).indices, expected)
    penalties = torch.rand(3, 40, generator=generator, dtype=torch.float64)
    assert torch.equal(lowered_peaks(points, 7, 4, penalties).indices[2], penalties[2].argsort()[:7])
    dense = plain_peaks(points[:1], 1, 4, indices[:1]).indices[0, 0]
    heavy = torch.zeros(1, 40, dtype=torch.float64).index_fill_(1, dense, 9.0)
    assert int(lowered_peaks(points[:1], 40, 4, heavy).indices[0, -1]) == dense  # the densest point is last of all


def test_the_penalty_of_the_densest_is_of_the_true_diameter_far_from_the_origin():
    """Of forty points far from the origin and near each other: products in fp32 would not tell which pair."""
    points = 1000 + torch.rand(1, 40, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    points = points.float()
    wanted = torch.cdist(points[0].double(), points[0].double()).max()
    assert float(_diameter(points[0])) == pytest.approx(float(wanted), rel=1e-12)


def test_settings_as_published():
    assert [method().mu_s for method in STOP] == [0.03, 0.02, 0.04]
    changed = [set(), {"saliency", "keep_positions"}, {"similarity_threshold"}]
    for method, base, own in zip(STOP, (VisionZip, FastVID, HoliTom), changed, strict=True):
        assert method().saliency == "received_attention" and not method().keep_positions
        assert all(method().settings()[name] == value for name, value in base().settings().items() if name not in own)
    assert StopHoliTom().in_llm(28) is None and StopHoliTom(0.05).similarity_threshold == 0.8


@pytest.mark.parametrize("method", STOP)
def test_refusals(method):
    wrong = [("mu_s", -0.1), ("gamma", 0), ("saliency_mean", 0.0)]
    if method is not StopVisionZip:
        wrong += [("centre_sink_weight", -1)]
    check_refusals(method(), wrong)
    features, saliency, grid, _ = made_up(3, (2, 3), 6)
    saliency[1, 2] = -0.25
    with pytest.raises(ValueError, match=rf"saliency must be at least 0 for {method.name}, .* got -0.25"):
        prune(method(), (features, saliency, grid, None))


def test_refusals_of_one_method():
    for method, field, value in ((StopVisionZip, "targets", "moved"), (StopVisionZip, "num_sinks", -1),
                                 (StopFastVID, "centre_penalty", "twice"), (StopHoliTom, "mu_t", -0.1),
                                 (StopHoliTom, "static_threshold", 1.5)):  # fmt: skip
        with pytest.raises(ValueError, match=rf"{method.__name__}\.{field} = "):
            method(**{field: value})
