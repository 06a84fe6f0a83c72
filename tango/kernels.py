"""Triton kernels for a GPU: one launch, and one pass over memory, for what PyTorch does in many.

The same sums as the plain way in rope.py and neighbors.py, in another order: equal but for rounding. Use them through
fused.py, which checks that on the GPU at hand. Imported only where Triton is installed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

OTHERS, COMPONENTS = 16, 128  # of a tile of differences
PAIRS = 512  # pairs of components to turn at a time
SPLIT = 1024  # numbers to split at a time


@triton.jit  # type: ignore[untyped-decorator]
def distances_kernel(  # type: ignore[no-untyped-def]
    points, rows, others, result, count, row_stride, column_stride,
    WIDTH: tl.constexpr, OTHERS: tl.constexpr, COMPONENTS: tl.constexpr,
):  # fmt: skip
    """One row of distances, OTHERS of them in each program."""
    place = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * OTHERS + tl.arange(0, OTHERS)
    there = column < count
    own = tl.load(rows + place)
    other = tl.load(others + place * row_stride + column * column_stride, mask=there, other=0)
    squares = tl.zeros((OTHERS, COMPONENTS), tl.float32)
    for start in range(0, WIDTH, COMPONENTS):
        component = start + tl.arange(0, COMPONENTS)
        inside = component < WIDTH
        left = tl.load(points + own * WIDTH + component, mask=inside, other=0.0)
        right = tl.load(
            points + other[:, None] * WIDTH + component[None, :], mask=there[:, None] & inside[None, :], other=0.0
        )
        difference = left[None, :] - right
        squares += difference * difference
    tl.store(result + place * count + column, tl.sqrt_rn(tl.sum(squares, 1)), mask=there)


@triton.jit  # type: ignore[untyped-decorator]
def rotate_kernel(  # type: ignore[no-untyped-def]
    table, rows, cos, sin, result, frames, height, columns,
    TIME: tl.constexpr, SPACE: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """One token. TIME and SPACE are the pairs of the time section and of each space section."""
    half: tl.constexpr = TIME + 2 * SPACE
    place = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + place)
    frame, cell = row // (height * columns), row % (height * columns)
    token, turned = table + row * (2 * half), result + place * (2 * half)
    squares = tl.zeros((PAIRS,), tl.float32)
    for start in range(0, 2 * half, PAIRS):
        component = start + tl.arange(0, PAIRS)
        value = tl.load(token + component, mask=component < 2 * half, other=0.0).to(tl.float32)
        squares += value * value
    length = tl.maximum(tl.sqrt_rn(tl.sum(squares, 0)), 1e-12)
    for start in range(0, half, PAIRS):
        pair = start + tl.arange(0, PAIRS)
        inside, in_time, in_height = pair < half, pair < TIME, pair < TIME + SPACE
        # A section's first halves lie before its second ones.
        first = pair + tl.where(in_time, 0, tl.where(in_height, TIME, TIME + SPACE))
        second = first + tl.where(in_time, TIME, SPACE)
        angle = tl.where(in_time, frame, frames + tl.where(in_height, cell // columns, height + cell % columns))
        one = tl.load(cos + angle * half + pair, mask=inside, other=0.0)
        other = tl.load(sin + angle * half + pair, mask=inside, other=0.0)
        left = tl.load(token + first, mask=inside, other=0.0).to(tl.float32) / length
        right = tl.load(token + second, mask=inside, other=0.0).to(tl.float32) / length
        tl.store(turned + first, left * one - right * other, mask=inside)
        tl.store(turned + second, right * one + left * other, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def split_kernel(  # type: ignore[no-untyped-def]
    values, result, WIDTH: tl.constexpr, LOW_SECOND: tl.constexpr, SPLIT: tl.constexpr
):  # fmt: skip
    """SPLIT numbers of one row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * SPLIT + tl.arange(0, SPLIT)
    inside = column < WIDTH
    value = tl.load(values + row * WIDTH + column, mask=inside, other=0.0)
    high = value.to(tl.bfloat16)
    low = (value - high.to(tl.float32)).to(tl.bfloat16)
    begin = result + row * (3 * WIDTH) + column
    tl.store(begin, high, mask=inside)
    tl.store(begin + WIDTH, low if LOW_SECOND else high, mask=inside)
    tl.store(begin + 2 * WIDTH, high if LOW_SECOND else low, mask=inside)


def recheck(points: Tensor, rows: Tensor, others: Tensor) -> Tensor:
    """See neighbors.recheck(): symmetric, 0 for equal points, the same bits whatever else is in the batch."""
    points, count = points.contiguous(), others.shape[1]
    result = points.new_empty(others.shape)
    if result.numel():
        with torch.cuda.device_of(points):  # type: ignore[no-untyped-call]
            distances_kernel[(len(rows), triton.cdiv(count, OTHERS))](
                points, rows.contiguous(), others, result, count, *others.stride(), points.shape[1], OTHERS, COMPONENTS
            )
    return result


def rotate(
    table: Tensor, rows: Tensor, cos: Tensor, sin: Tensor, axes: tuple[int, int, int], sections: tuple[int, int, int]
) -> Tensor:
    """Rows (p,) of a table (F * H * W, D), as unit vectors (p, D) fp32, rotated.

    Args:
        cos, sin: (F + H + W, D / 2) fp32, of the angles that each place of each axis turns each pair by.
        axes: F, H, W; sections: widths of those of time, height and width, see rope_sections().
    """
    table = table.contiguous()
    result = torch.empty(len(rows), table.shape[1], device=table.device)
    if len(rows):
        with torch.cuda.device_of(table):  # type: ignore[no-untyped-call]
            rotate_kernel[(len(rows),)](
                table, rows.contiguous(), cos, sin, result, *axes, sections[0] // 2, sections[1] // 2, PAIRS
            )
    return result


def halves(values: Tensor, low_second: bool) -> Tensor:
    """Numbers (.., D) fp32 as sums of two of bfloat16, side by side (.., 3 * D): high, high, low or high, low, high."""
    values = values.contiguous()
    width = values.shape[-1]
    result = values.new_empty(*values.shape[:-1], 3 * width, dtype=torch.bfloat16)
    if result.numel():
        with torch.cuda.device_of(values):  # type: ignore[no-untyped-call]
            split_kernel[(values.numel() // width, triton.cdiv(width, SPLIT))](values, result, width, low_second, SPLIT)
    return result
