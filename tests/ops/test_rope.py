"""ST-RoPE against its formula in double precision."""

import pytest
import torch

from tango.ops.rope import rope_sections, rotate, rotate_rows


def by_formula(features, positions, time_base, space_base):
    """Step by step in fp64: each component pair of a section turned by position * base^(-2i/d)."""
    x = features.double()
    x = x / x.norm(dim=-1, keepdim=True)
    dim = x.shape[-1]
    b = 2 * (dim // 3 // 2)
    out = x.clone()
    start = 0
    for axis, (d, base) in enumerate([(dim - 2 * b, time_base), (b, space_base), (b, space_base)]):
        for i in range(d // 2):
            angle = positions[..., axis].double() * base ** (-2 * i / d)
            x1, x2 = x[..., start + i], x[..., start + i + d // 2]
            out[..., start + i] = x1 * angle.cos() - x2 * angle.sin()
            out[..., start + i + d // 2] = x2 * angle.cos() + x1 * angle.sin()
        start += d
    return out


@pytest.mark.parametrize(
    "dim, expected",
    [
        (3584, (1196, 1194, 1194)),
        (896, (300, 298, 298)),
        (36, (12, 12, 12)),
        (100, (36, 32, 32)),
        (2, (2, 0, 0)),
        (4, (4, 0, 0)),
        (6, (2, 2, 2)),
    ],
)
def test_sections(dim, expected):
    assert rope_sections(dim) == expected
    assert sum(expected) == dim


@pytest.mark.parametrize("dim", [0, 1, 7, -2])
def test_odd_widths_are_refused(dim):
    with pytest.raises(ValueError, match=f"feature width {dim}"):
        rope_sections(dim)


@pytest.mark.parametrize("dim", [2, 4, 6, 36, 100])
@pytest.mark.parametrize("bases", [(10000.0, 1000.0), (100.0, 50.0), (7.0, 10000.0)])
def test_formula(dim, bases):
    generator = torch.Generator().manual_seed(dim)
    features = torch.randn(3, 5, dim, generator=generator)
    positions = torch.rand(3, 5, 3, generator=generator) * torch.tensor([60.0, 14.0, 14.0])
    rotated = rotate(features, positions, *bases)
    assert rotated.dtype == torch.float32
    torch.testing.assert_close(rotated.double(), by_formula(features, positions, *bases), atol=1e-5, rtol=0)


def test_bases_are_those_of_the_paper_unless_others_are_given():
    generator = torch.Generator().manual_seed(0)
    features, positions = torch.randn(5, 12, generator=generator), torch.rand(5, 3, generator=generator)
    expected = by_formula(features, positions, 10000.0, 1000.0)
    torch.testing.assert_close(rotate(features, positions).double(), expected, atol=1e-5, rtol=0)


def test_inner_product_depends_on_the_difference_of_places_alone():
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 60, generator=generator)
    here, there, shift = torch.tensor([[1.0, 2, 3], [4, 0, 9], [7, 5, 2]])
    once = rotate(a, here) @ rotate(b, there)
    again = rotate(a, here + shift) @ rotate(b, there + shift)
    torch.testing.assert_close(once, again, atol=1e-6, rtol=0)
    assert not torch.isclose(once, rotate(a, here) @ rotate(b, here), atol=1e-3)


def test_zero_tokens_and_origin():
    positions = torch.tensor([[5.0, 3.0, 2.0], [0.0, 0.0, 0.0]])
    features = torch.zeros(2, 12)
    features[1] = torch.arange(12.0)
    rotated = rotate(features, positions)
    assert torch.equal(rotated[0], torch.zeros(12))
    torch.testing.assert_close(rotated[1], features[1] / features[1].norm())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_and_strides(dtype):
    features = torch.randn(12, 6, generator=torch.Generator().manual_seed(2)).to(dtype).T
    positions = torch.arange(18.0).view(3, 6).T
    assert torch.equal(rotate(features, positions), rotate(features.float().contiguous(), positions.contiguous()))


@pytest.mark.parametrize("block_bytes", [1, 16 * 12 * 4, 1 << 20])
def test_rows_of_a_table(block_bytes):
    """Places of any shape, some of them twice: the same as all rotated at once, to the bit, in blocks of any size."""
    generator = torch.Generator().manual_seed(3)
    table, positions = torch.randn(20, 12, generator=generator), 9 * torch.rand(20, 3, generator=generator)
    rows = torch.randint(20, (3, 5), generator=generator)
    vectors = rotate_rows(table.bfloat16(), positions, rows, 100.0, 50.0, block_bytes)
    assert torch.equal(vectors, rotate(table.bfloat16(), positions, 100.0, 50.0)[rows])
    assert rotate_rows(table, positions, rows[:0], 100.0, 50.0, block_bytes).shape == (0, 5, 12)
