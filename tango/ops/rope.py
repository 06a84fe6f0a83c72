"""ST-RoPE: rotate tokens by their place in space-time, so that inner products fall with distance.

Tango, arXiv 2604.09547, step 3 of docs/method.md.
"""

import torch
from torch import Tensor


def rope_sections(dim: int) -> tuple[int, int, int]:
    """Widths of the sections (time, height, width): the latter two 2 * floor(floor(dim / 3) / 2), time what is left.

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
    A zero token stays zero, and one shorter than 1e-12 stays short.

    Args:
        features: (..., D) tokens, any floating dtype; ValueError where D is odd.
        positions: (..., 3) seconds, row, column of each token.
        time_base, space_base: frequency bases of the time section and of the two space sections.

    Returns:
        (..., D) fp32 unit vectors (or zeros).
    """
    sections = rope_sections(features.shape[-1])
    vectors = torch.nn.functional.normalize(features.float(), dim=-1)
    rotated = torch.empty_like(vectors)
    start = 0
    for axis, (width, base) in enumerate(zip(sections, (time_base, space_base, space_base), strict=True)):
        half = width // 2
        # On the CPU first: the same frequencies, to the bit, on every device.
        frequencies = 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float32) / max(width, 1))
        angles = positions[..., axis : axis + 1].float() * frequencies.to(features.device)
        cos, sin = angles.cos(), angles.sin_()
        first, second = vectors[..., start : start + half], vectors[..., start + half : start + width]
        torch.mul(first, cos, out=rotated[..., start : start + half]).sub_(second * sin)
        torch.mul(second, cos, out=rotated[..., start + half : start + width]).add_(first * sin)
        start += width
    return rotated


def rotate_rows(
    table: Tensor, positions: Tensor, rows: Tensor, time_base: float, space_base: float, block_bytes: int
) -> Tensor:
    """rotate() of the rows (..) int64 of a table (T, D) at positions (T, 3), as (.., D), a block at a time."""
    flat, width = rows.flatten(), table.shape[1]
    vectors = torch.empty(len(flat), width, dtype=torch.float32, device=table.device)
    for start in range(0, len(flat), step := max(1, block_bytes // (16 * width))):
        part = flat[start : start + step]
        vectors[start : start + step] = rotate(table[part], positions[part], time_base, space_base)
    return vectors.view(*rows.shape, width)
