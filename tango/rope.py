"""ST-RoPE: rotate tokens by their place in space-time, so that inner products fall with distance.

Tango, arXiv 2604.09547, spatio-temporal rotary embedding (step 1). Pure functions on tensors.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from tango import fused
from tango.ragged import on_device


def rope_sections(dim: int) -> tuple[int, int, int]:
    """Split a feature width into the widths of the sections (time, height, width).

    Height and width take 2 * floor(floor(dim / 3) / 2) each, time takes what is left.

    Raises:
        ValueError: dim is odd or not positive, so that components cannot be paired.
    """
    if dim < 2 or dim % 2:
        raise ValueError(f"feature width {dim}: ST-RoPE pairs components, so the width must be even and at least 2")
    space = 2 * (dim // 3 // 2)
    return dim - 2 * space, space, space


def rotate(features: Tensor, positions: Tensor, time_base: float = 10000.0, space_base: float = 1000.0) -> Tensor:
    """L2-normalise tokens and rotate them by their positions, in fp32.

    Within a section of width d, component i pairs with component i + d/2 and turns by position * base^(-2i/d).
    A zero token stays zero; one shorter than 1e-12 is divided by 1e-12, as usual, and so stays short.

    Args:
        features: (..., D) tokens, any floating dtype, D even.
        positions: (..., 3) seconds, row, column of each token.
        time_base, space_base: frequency bases of the time section and of the two space sections.

    Returns:
        (..., D) fp32 unit vectors (or zeros).

    Raises:
        ValueError: D is odd.
    """
    sections = rope_sections(features.shape[-1])
    vectors = torch.nn.functional.normalize(features.float(), dim=-1)
    halves = [width // 2 for width in sections]
    positions = positions.float()
    angles = torch.cat([positions[..., i : i + 1].expand(*positions.shape[:-1], halves[i]) for i in range(3)], dim=-1)
    angles = angles * _frequencies(sections, time_base, space_base, features.device)
    cos, sin = angles.cos(), angles.sin_()
    rotated = torch.empty_like(vectors)
    start = 0
    for part_cos, part_sin in zip(torch.split(cos, halves, -1), torch.split(sin, halves, -1), strict=True):
        middle, end = start + part_cos.shape[-1], start + 2 * part_cos.shape[-1]
        first, second = vectors[..., start:middle], vectors[..., middle:end]
        torch.mul(first, part_cos, out=rotated[..., start:middle]).sub_(second * part_sin)
        torch.mul(second, part_cos, out=rotated[..., middle:end]).add_(first * part_sin)
        start = end
    return rotated


@functools.lru_cache(maxsize=32)
def _frequencies(sections: tuple[int, int, int], time_base: float, space_base: float, device: torch.device) -> Tensor:
    """(D / 2,) of the sections, one behind the other."""
    with torch.inference_mode(False):  # they outlive the call
        # On the CPU first: the same frequencies, to the bit, on every device.
        parts = [
            1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float32) / max(width, 1))
            for width, base in zip(sections, (time_base, space_base, space_base), strict=True)
        ]
        return on_device(torch.cat(parts), device)


Axes = tuple[Tensor, Tensor, Tensor]  # fp32 positions along each: seconds of frames (F,), rows (H,), columns (W,)


@dataclass(frozen=True)
class Rotated:
    """Rotated rows of a table, made when they are asked for.

    table: (F * H * W, D) tokens, any floating dtype.
    axes: where the tokens are.
    time_base, space_base: as in rotate().
    block_bytes: rough bound of the temporary memory, beside what is returned; a fused kernel needs next to none.
    """

    table: Tensor
    axes: Axes
    time_base: float = 10000.0
    space_base: float = 1000.0
    block_bytes: int = 32 << 20

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows (..) int64 of the table, as fp32 vectors (.., D)."""
        module, flat = fused.kernels(self.table.device), rows.flatten()
        vectors = self.plain(flat) if module is None else self.by_kernel(module, flat)
        return vectors.view(*rows.shape, vectors.shape[1])

    def plain(self, rows: Tensor) -> Tensor:
        """The vectors (p, D) of rows (p,), by rotate()."""
        width = self.table.shape[1]
        step = max(1, self.block_bytes // (16 * width))
        vectors = torch.empty(len(rows), width, device=self.table.device)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            vectors[start : start + step] = rotate(
                self.table.index_select(0, part), self._positions.index_select(0, part), self.time_base, self.space_base
            )
        return vectors

    def by_kernel(self, module: ModuleType, rows: Tensor) -> Tensor:
        """The vectors (p, D) of rows (p,), by a kernel of tango.kernels."""
        axes = len(self.axes[0]), len(self.axes[1]), len(self.axes[2])
        vectors: Tensor = module.rotate(self.table, rows, *self._turns, axes, rope_sections(self.table.shape[1]))
        return vectors

    @functools.cached_property
    def _positions(self) -> Tensor:
        """(F * H * W, 3)"""
        return torch.cartesian_prod(*self.axes)

    @functools.cached_property
    def _turns(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines (F + H + W, D / 2) of what each place of each axis turns every pair by."""
        sections, device = rope_sections(self.table.shape[1]), self.table.device
        angles = torch.cat(self.axes)[:, None] * _frequencies(sections, self.time_base, self.space_base, device)
        return angles.cos(), angles.sin()
