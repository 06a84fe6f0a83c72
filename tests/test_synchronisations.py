"""How often the host waits for the device in prune(), counted without one; and that the way for a GPU is exact."""

import pytest
import torch
from oracle import Oracle
from pretend_cuda import DEVICE, pretend_cuda
from videos import made_up, prune

import tango.neighbors
import tango.pruners.tango
from tango import Tango
from tango.pruners import REGISTRY
from tango.ragged import Doubts


def pruned_there(method, features, saliency, grid, times, halves=True, kernels=False):
    """prune() on the pretended device: what it returns, on the host, and the mode that counted."""
    with pretend_cuda(halves, kernels) as mode:
        features, saliency = features.to(DEVICE), saliency.to(DEVICE)
        mode.waits.clear()
        mode.launches.clear()
        pruned = method.prune(features, saliency, grid, times)
        waits, launches = mode.waits.copy(), mode.launches.copy()
        assert pruned.indices.device == pruned.features.device == DEVICE
        assert pruned.segment_sizes.device.type == "cpu"
        indices, values = pruned.indices.cpu(), pruned.features.cpu()
    return indices, values, pruned.segment_sizes, waits, launches


def scenes(frames, tokens_side, dim, count, seed=0):
    """A video of so many scenes, with static and moving places in each."""
    return made_up(frames, (tokens_side, tokens_side), dim, seed, scenes=count, noise=0.15, moving=0.6)


@pytest.mark.parametrize("what", ["item", "nonzero", "mask", "to host", "from host", "bincount"])
def test_the_count_sees_what_waits(what):
    with pretend_cuda() as mode:
        x = torch.arange(6.0).to(DEVICE)
        mode.waits.clear()
        {
            "item": lambda: float(x.sum()),
            "nonzero": lambda: x.nonzero(),
            "mask": lambda: x[x > 2],
            "to host": lambda: x.cpu(),
            "from host": lambda: torch.tensor([1.0]).to(DEVICE),
            "bincount": lambda: torch.bincount(x.long()),
        }[what]()
        assert mode.waits.total() == 1
        y = torch.tensor([1, 2]).to(DEVICE, non_blocking=True)
        assert x[y].sum().add(torch.arange(3, device=DEVICE)).cumsum(0).shape == (3,)
        assert mode.waits.total() == 1
        assert x[torch.tensor([1, 2])].shape == (2,)
        assert mode.waits.total() == 2
        with pytest.raises(RuntimeError, match="of the device and of the host"):
            torch.arange(3)[y]


@pytest.mark.parametrize("count", [1, 4, 9, 24])
def test_three_waits_whatever_the_number_of_segments(count):
    video = scenes(24, 5, 48, count)
    indices, values, sizes, waits, launches = pruned_there(Tango(), *video)
    assert waits.total() == 3, waits
    expected, features, segments = Oracle().prune(*video)
    assert sizes.tolist() == segments
    assert torch.equal(indices, expected)
    torch.testing.assert_close(values, features, rtol=1e-4, atol=1e-5)
    assert launches.total() < 600, launches


@pytest.mark.parametrize(("kernels", "most"), [(False, 600), (True, 420)])
def test_launches_of_an_ordinary_video(kernels, most):
    """32 frames of 196 tokens in a dozen segments: hundreds of launches, of which a GPU takes some 200,000 a second."""
    video = scenes(32, 14, 96, 12)
    indices, _, sizes, waits, launches = pruned_there(Tango(), *video, kernels=kernels)
    assert len(sizes) >= 10 and waits.total() == 3
    assert torch.equal(indices, Oracle().prune(*video)[0])
    assert launches.total() < most, (launches.total(), launches)
    assert (launches["kernel"] > 0) == kernels


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("memory_limit", [0.02, 256])
@pytest.mark.parametrize(
    "settings",
    [
        {"retention_ratio": 0.3, "placement": "published"},
        {"retention_ratio": 0.2, "exact_budget": True},
        {"retention_ratio": 0.15, "segmentation": "none", "merging": "cosine"},
        {"retention_ratio": 0.25, "segmentation": "fastvid", "selection": "topk", "sink_tokens": (0, 3)},
        {"retention_ratio": 0.6, "similarity_threshold": 0.3, "context_ratio": 0.8},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_the_way_for_a_gpu_keeps_the_same(settings, memory_limit, halves):
    video = made_up(7, (6, 6), 24, seed=len(settings), noise=0.3)
    method = Tango(**settings, memory_limit=memory_limit)
    here = method.prune(*video)
    indices, values, sizes, *_ = pruned_there(method, *video, halves)
    assert torch.equal(sizes, here.segment_sizes)
    assert torch.equal(indices, here.indices)
    torch.testing.assert_close(values, here.features, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("memory_limit", "most_hits"), [(256, 0), (0.02, 0), (0.02, 1)])
def test_doubts_lead_to_the_way_that_looks_again(memory_limit, most_hits, monkeypatch):
    """Zero tokens are as far from every centre: more ties than a fixed number of rivals can settle."""
    monkeypatch.setattr(tango.neighbors, "MOST_HITS", most_hits)
    video = made_up(6, (6, 6), 24, seed=2, noise=0.3, zeros=0.1)
    told = []
    ask = Doubts.any
    monkeypatch.setattr(Doubts, "any", lambda self: told.append(ask(self)) or told[-1])
    method = Tango(0.3, segmentation="none", memory_limit=memory_limit)
    indices, values, *_ = pruned_there(method, *video)
    assert told == [True]
    expected, features, _ = Oracle(0.3, segmentation="none").prune(*video)
    assert torch.equal(indices, expected)
    torch.testing.assert_close(values, features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["saliency", "timestamps"])
def test_values_that_are_not_finite_are_found_there_too(name):
    features, saliency, grid, times = made_up(3, (4, 4), 8)
    (saliency if name == "saliency" else times).view(-1)[2] = torch.nan
    with pytest.raises(ValueError, match=f"{name} must be finite: 1 values"):
        pruned_there(Tango(), features, saliency, grid, times)


def test_fixed_shapes_on_the_cpu(monkeypatch):
    monkeypatch.setattr(tango.pruners.tango, "FIXED_SHAPES", ("cpu",))
    for seed in range(4):
        video = made_up(9, (5, 5), 24, seed, noise=0.3)
        indices, values, _ = Oracle(0.2).prune(*video)
        pruned = Tango(0.2, memory_limit=0.02).prune(*video)
        assert torch.equal(pruned.indices, indices)
        torch.testing.assert_close(pruned.features, values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("exact_budget", [False, True])
@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_method_on_a_gpu(name, exact_budget):
    """No step mixes tensors of the device and of the host; the same is kept."""
    video = made_up(9, (6, 6), 24, seed=4, noise=0.3)
    method = REGISTRY[name](retention_ratio=0.3, exact_budget=exact_budget)
    here = prune(method, video)
    with pretend_cuda():
        features, saliency, grid, times = video
        there = prune(method, (features.to(DEVICE), saliency.to(DEVICE), grid, times))
        assert there.indices.device == there.features.device == DEVICE
        indices, values, sizes = there.indices.cpu(), there.features.cpu(), there.segment_sizes.cpu()
    assert torch.equal(indices, here.indices)
    assert torch.equal(sizes, here.segment_sizes)
    torch.testing.assert_close(values, here.features, rtol=1e-5, atol=1e-6)
