"""Tests of the Triton kernels, run by test_kernels.py in a process that is set up for Triton's interpreter."""

import pytest
import torch
import triton.language as tl
from oracle import Oracle
from triton.runtime import interpreter
from videos import made_up

import tango.fused
import tango.kernels
import tango.neighbors
import tango.pruners.tango
from tango import Tango
from tango.neighbors import recheck_plainly, split_plainly
from tango.rope import Rotated

CPU = torch.device("cpu")
convert = interpreter._convert_float


def as_a_gpu_rounds(values, source, target, mode):
    """The interpreter cuts numbers off to make them bfloat16."""
    if source == tl.float32 and target == tl.bfloat16:
        return torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()
    return convert(values, source, target, mode)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(tango.fused, "DEVICES", ("cpu",))
    monkeypatch.setattr(interpreter, "_convert_float", as_a_gpu_rounds)
    tango.fused.kernels.cache_clear()
    yield
    tango.fused.kernels.cache_clear()


@pytest.mark.parametrize("width", [2, 128, 300])
@pytest.mark.parametrize("count", [1, 16, 37])
def test_distances(width, count):
    generator = torch.Generator().manual_seed(width + count)
    points = torch.randn(40, width, generator=generator)
    points[3] = points[7]
    rows = torch.randint(40, (10,), generator=generator)
    others = torch.randint(40, (10, count), generator=generator)
    others[:, 0] = rows
    rows[0], others[0, -1] = 3, 7
    found = tango.kernels.recheck(points, rows, others)
    torch.testing.assert_close(found, recheck_plainly(points, rows, others), rtol=1e-6, atol=1e-6)
    assert not found[1:, 0].any() and found[0, -1] == 0
    # The same bits from the other end, and in another batch.
    back = tango.kernels.recheck(points, others.flatten(), rows[:, None].expand(-1, count).reshape(-1, 1))
    assert torch.equal(back.view_as(found), found)
    assert torch.equal(tango.kernels.recheck(points, rows[5:9], others[5:9]), found[5:9])


def test_distances_to_all_and_to_none():
    points = torch.randn(20, 10, generator=torch.Generator().manual_seed(0))
    rows, everyone = torch.arange(20), torch.arange(20).expand(20, -1)
    found = tango.kernels.recheck(points, rows, everyone)
    torch.testing.assert_close(found, recheck_plainly(points, rows, everyone))
    assert torch.equal(found, found.T)
    assert tango.kernels.recheck(points, rows[:0], everyone[:0]).shape == (0, 20)
    assert tango.kernels.recheck(points, rows, everyone[:, :0]).shape == (20, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [2, 4, 36, 1100])
def test_rotation(width, dtype):
    generator = torch.Generator().manual_seed(width)
    table = torch.randn(5 * 2 * 3, width, generator=generator).to(dtype)
    table[4] = 0
    axes = torch.tensor([0.0, 0.4, 7.0, 311.5, 2999.0]), torch.arange(2.0), torch.arange(3.0)
    rows = torch.tensor([[29, 4, 0], [17, 8, 8]])
    rotated = Rotated(table, axes, time_base=500.0, space_base=30.0)
    vectors = rotated(rows)
    assert vectors.dtype == torch.float32 and vectors.shape == (2, 3, width)
    torch.testing.assert_close(vectors.flatten(0, 1), rotated.plain(rows.flatten()), rtol=0, atol=1e-6)
    assert not vectors[0, 1].any()
    assert rotated(rows[:0]).shape == (0, 3, width)


@pytest.mark.parametrize("shape", [(3, 8), (2, 5, 130), (2, 1100), (0, 4)])
def test_halves(shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, shape[-1])
    for low_second in (False, True):
        assert torch.equal(tango.kernels.halves(values, low_second), split_plainly(values, low_second))


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"retention_ratio": 0.2},
        {"retention_ratio": 0.3, "segmentation": "none", "memory_limit": 0.02},
        {"retention_ratio": 0.25, "merging": "cosine"},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_prune_keeps_what_the_oracle_keeps(settings, fixed, monkeypatch):
    if fixed:
        monkeypatch.setattr(tango.pruners.tango, "FIXED_SHAPES", ("cpu",))
    # Products of halves, too, as on a GPU; a CPU has none of bfloat16 with sums in fp32.
    monkeypatch.setattr(tango.neighbors, "splits", lambda device: True)
    for name in ("mm", "bmm"):
        monkeypatch.setattr(torch, name, lambda a, b, out_dtype: torch.matmul(a.to(out_dtype), b.to(out_dtype)))
    calls = []
    for name in ("recheck", "rotate", "halves"):
        kernel = getattr(tango.kernels, name)
        monkeypatch.setattr(tango.kernels, name, lambda *a, k=kernel, n=name: calls.append(n) or k(*a))
    video = made_up(6, (5, 4), 26, seed=1, noise=0.3)
    pruned = Tango(**settings).prune(*video)
    oracle = {name: value for name, value in settings.items() if name != "memory_limit"}
    indices, values, sizes = Oracle(**oracle).prune(*video)
    assert set(calls) == {"recheck", "rotate", "halves"}
    assert pruned.segment_sizes.tolist() == sizes
    assert torch.equal(pruned.indices, indices)
    torch.testing.assert_close(pruned.features, values, rtol=1e-4, atol=1e-5)


def test_kernels_that_are_wrong_are_not_used(monkeypatch):
    assert tango.fused.kernels(CPU) is tango.kernels
    tango.fused.kernels.cache_clear()
    kernel = tango.kernels.recheck
    monkeypatch.setattr(tango.kernels, "recheck", lambda *a: kernel(*a) * 1.001)
    with pytest.warns(RuntimeWarning, match=r"without its Triton kernels on cpu.* differ by \d"):
        assert tango.fused.kernels(CPU) is None
    tango.fused.kernels.cache_clear()
    monkeypatch.setattr(tango.kernels, "recheck", lambda *a: kernel(*a) + 1e-9)
    with pytest.warns(RuntimeWarning, match="differ by inf"):
        assert tango.fused.kernels(CPU) is None


def test_a_compiler_that_fails_leaves_the_plain_way(monkeypatch):
    def fails(*args):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(tango.kernels, "rotate", fails)
    video = made_up(4, (4, 4), 24, seed=1, noise=0.3)
    with pytest.warns(RuntimeWarning, match="Failed to find C compiler"):
        pruned = Tango(0.2).prune(*video)
    assert torch.equal(pruned.indices, Oracle(0.2).prune(*video)[0])
