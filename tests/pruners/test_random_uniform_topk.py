"""Random, uniform and top-k: their exact formulas, worked by hand; and the arithmetic of exact budgets."""

import zlib

import pytest
import torch
from videos import made_up

from tango.pruners import Random, TopK, Uniform
from tango.pruners.base import Pruned, full_precision
from tango.pruners.budget import apportion, fit, token_budget


def plain(frames, tokens, dim=4):
    """Features whose every row tells its own flat index."""
    return torch.arange(frames * tokens * dim, dtype=torch.float32).view(frames, tokens, dim)


@pytest.mark.parametrize(
    "count, ratio, budget",
    [(10, 0.1, 1), (10, 0.11, 2), (6272, 0.1, 628), (100, 0.07, 7), (5, 0.01, 1), (7, 1.0, 7), (30, 0.3, 9)],
)
def test_the_budget_rounds_up_but_not_for_float_noise(count, ratio, budget):
    assert token_budget(count, ratio) == budget  # 100 * 0.07 is 7.000000000000001 in doubles


@pytest.mark.parametrize("count, ratio, kept", [
    (10, 0.3, [1, 5, 8]),  # floor(10/6), floor(30/6), floor(50/6)
    (10, 0.4, [1, 3, 6, 8]),  # floor(10/8), 30/8, 50/8, 70/8
    (7, 0.25, [1, 5]),  # floor(7/4), floor(21/4)
    (5, 0.01, [2]),
    (4, 1.0, [0, 1, 2, 3]),
])  # fmt: skip
def test_uniform_by_hand(count, ratio, kept):
    features = plain(1, count)
    pruned = Uniform(ratio).prune(features)
    assert pruned.indices.tolist() == kept
    assert torch.equal(pruned.features, features[0, kept])


def test_uniform_counts_over_the_whole_video():
    assert Uniform(0.25).prune(plain(3, 4)).indices.tolist() == [2, 6, 10]  # floor((2j + 1) 12 / 6)


@pytest.mark.parametrize("seed, key", [(0, "0"), (7, "clip.mp4"), (2**63 - 1, "ß")])
def test_random_is_the_first_of_a_seeded_permutation(seed, key):
    generator = torch.Generator().manual_seed((seed + zlib.crc32(key.encode("utf-8"))) % 2**63)
    expected = sorted(torch.randperm(60, generator=generator)[:12].tolist())
    features = plain(5, 12)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    pruned = Random(0.2, seed=seed).prune(features, key=key)
    assert torch.equal(torch.get_rng_state(), before)  # the global generator is neither read nor moved
    assert pruned.indices.tolist() == expected
    assert torch.equal(pruned.features, features.view(60, 4)[expected])


def test_random_draws_differ_by_seed_and_key_and_grow_with_the_ratio():
    def drawn(ratio=0.2, seed=0, **key):
        return set(Random(ratio, seed=seed).prune(plain(5, 12), **key).indices.tolist())

    assert drawn() == drawn(key="0") != drawn(key="1")
    assert drawn() != drawn(seed=1)
    assert drawn() < drawn(0.5)  # the same permutation, more of it


def test_topk_a_frame_by_hand():
    saliency = torch.tensor([[0.1, 0.9, 0.9, 0.9], [0.2, 0.2, 0.2, 0.2], [3.0, 1.0, 2.0, 0.0]])
    # B = ceil(12 * 0.4) = 5: frames get floor(5/3), floor(10/3) - 1, 5 - 3 = 1, 2, 2; ties to the lower index.
    assert TopK(0.4).prune(plain(3, 4), saliency).indices.tolist() == [1, 4, 5, 8, 10]
    assert TopK(1 / 6).prune(plain(3, 4), saliency).indices.tolist() == [4, 8]  # shares 0, 1, 1


def test_topk_over_the_video_by_hand():
    saliency = torch.tensor([[0.1, 0.9, 0.9, 0.9], [0.2, 0.2, 0.2, 0.2], [3.0, 1.0, 2.0, 0.0]])
    pruned = TopK(0.4, scope="video").prune(plain(3, 4), saliency)
    assert pruned.indices.tolist() == [1, 2, 8, 9, 10]
    assert torch.equal(pruned.features, plain(3, 4).view(12, 4)[pruned.indices])


def test_sinks_are_never_preferred():
    saliency = torch.tensor([[9.0, 0.1, 0.2, 8.0], [9.0, 0.4, 0.3, 8.0]])
    assert TopK(0.25, sink_tokens=(0, 3)).prune(plain(2, 4), saliency).indices.tolist() == [2, 5]
    assert TopK(0.25, sink_tokens=(0, 3), scope="video").prune(plain(2, 4), saliency).indices.tolist() == [5, 6]
    assert TopK(0.25).prune(plain(2, 4), saliency).indices.tolist() == [0, 4]
    assert saliency[0, 0] == 9.0  # the caller's tensor is left alone
    with pytest.raises(ValueError, match=r"\(4,\).*0 to 3"):
        TopK(sink_tokens=(4,)).prune(plain(2, 4), saliency)


@pytest.mark.parametrize("method", [Random, Uniform, TopK])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_rows_are_the_inputs_own_bits(method, dtype):
    features, saliency, grid, times = made_up(3, (3, 4), 6, dtype=dtype)
    pruned = method(0.3).prune(features, saliency, grid, times)
    assert pruned.features.dtype == dtype
    assert torch.equal(pruned.features, features.flatten(0, 1)[pruned.indices])
    assert pruned.segment_sizes.tolist() == [3]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: TopK(scope="clip"), "TopK.scope = 'clip'.*'frame', 'video'"),
        (lambda: TopK(sink_tokens=(-1,)), "sink_tokens"),
        (lambda: Random(seed=-1), "Random.seed = -1"),
        (lambda: Random(seed=0.5), "Random.seed = 0.5"),
        (lambda: Uniform(0.0), "Uniform.retention_ratio = 0.0"),
        (lambda: Uniform(exact_budget=1), "Uniform.exact_budget = 1: expected True or False"),
        (lambda: Uniform(keep_positions="yes"), "Uniform.keep_positions = 'yes': expected True or False"),
        (
            lambda: Uniform(torch.nn.Sequential(torch.nn.ReLU())),
            "^Uniform.retention_ratio = <Sequential>: expected a fi",
        ),
        (lambda: TopK(sink_tokens=["x"] * 99), "^TopK.sink_tokens = <tuple>: expected token positions"),
    ],
)
def test_settings_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- exact budgets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shares, caps, total, expected", [
    ([1.0, 1.0, 1.0], [9, 9, 9], 7, [3, 2, 2]),  # equal remainders: the first
    ([1.0, 2.0, 4.0], [9, 9, 9], 7, [1, 2, 4]),
    ([0.5, 0.3, 0.2], [9, 9, 9], 7, [4, 2, 1]),  # 3.5, 2.1, 1.4: the half has the largest remainder
    ([8.0, 1.0, 1.0], [3, 9, 9], 8, [3, 3, 2]),  # a full one: the rest is shared
    ([8.0, 1.0, 0.0], [3, 2, 4], 7, [3, 2, 2]),  # nothing for a share of 0 before all others are full
    ([8.0, 1.0, 0.0], [3, 2, 4], 5, [3, 2, 0]),
    ([0.0, 0.0], [3, 3], 3, [2, 1]),
    ([1.0, 1.0], [0, 5], 4, [0, 4]),
    ([1.0, 1.0], [2, 2], 4, [2, 2]),
    ([1.0, 1.0], [2, 2], 0, [0, 0]),
])  # fmt: skip
def test_apportion_by_hand(shares, caps, total, expected):
    assert apportion(torch.tensor(shares), torch.tensor(caps), total).tolist() == expected


@pytest.mark.parametrize("seed", range(30))
def test_apportioned_numbers_are_near_their_shares(seed):
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, 40, (1,), generator=generator))
    shares = torch.rand(count, generator=generator) ** 4
    caps = torch.randint(0, 20, (count,), generator=generator)
    total = int(torch.randint(0, int(caps.sum()) + 1, (1,), generator=generator))
    whole = apportion(shares, caps, total)
    assert int(whole.sum()) == total
    assert bool(((whole >= 0) & (whole <= caps)).all())
    # One scale fits all that are not full: each is its scaled share rounded down or up.
    free = whole < caps
    if bool(free.any()):
        least, most = ((whole - 1) / shares).max(), ((whole + 1) / shares)[free].min()
        assert least <= most * (1 + 1e-9)


@pytest.mark.parametrize("total", [-1, 5])
def test_a_total_that_cannot_be_is_refused(total):
    with pytest.raises(ValueError, match=f"total = {total}: expected 0 to 4"):
        apportion(torch.ones(2), torch.tensor([2, 2]), total)


def test_fit_drops_the_lowest_and_adds_the_highest():
    features = plain(2, 4)
    ranking = torch.tensor([[0.5, 0.1, 0.5, 0.2], [0.9, 0.8, 0.1, 0.3]])
    merged = Pruned(torch.tensor([1, 2, 4, 6]), -torch.ones(4, 4), torch.tensor([2]))
    assert fit(merged, features, ranking, 4) is merged
    assert fit(merged, features, ranking, 3).indices.tolist() == [1, 2, 4]  # 1 and 6 tie: the later goes
    assert fit(merged, features, ranking, 1).indices.tolist() == [4]
    more = fit(merged, features, ranking, 6)
    assert more.indices.tolist() == [0, 1, 2, 4, 5, 6]
    assert torch.equal(more.features[[0, 4]], features.view(8, 4)[[0, 5]])  # unmerged
    assert torch.equal(more.features[[1, 2, 3, 5]], merged.features)
    # Another order stays as it is; what is added goes to the end of its frame.
    other = Pruned(torch.tensor([2, 1, 6, 4]), -torch.ones(4, 4), torch.tensor([2]))
    assert fit(other, features, ranking, 6).indices.tolist() == [2, 1, 0, 6, 4, 5]
    assert fit(other, features, ranking, 3).indices.tolist() == [2, 1, 4]
    assert fit(other, features, ranking, 8).indices.tolist() == [2, 1, 0, 3, 6, 4, 5, 7]


def test_full_precision_is_left_as_it_was_found():
    """Inside: no TF32, which a CPU can be asked about too, no autocast, and gradients only where they are wanted."""
    settings, cpu = torch.backends.cuda.matmul, torch.device("cpu")
    before = settings.allow_tf32
    try:
        for allowed in (True, False):
            settings.allow_tf32 = allowed
            with torch.autocast("cpu"), full_precision(cpu):
                assert not settings.allow_tf32 and not torch.is_autocast_enabled("cpu")
                assert not torch.is_grad_enabled()
            assert settings.allow_tf32 is allowed
    finally:
        settings.allow_tf32 = before
    with full_precision(cpu, gradients=True):
        assert torch.is_grad_enabled()
    with torch.no_grad(), full_precision(cpu, gradients=True):
        assert not torch.is_grad_enabled()
