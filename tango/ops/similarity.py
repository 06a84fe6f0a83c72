"""How alike tokens at one place of neighbouring frames are, and which places of a segment are static by that."""

from __future__ import annotations

import torch
from torch import Tensor


def neighbour_similarity(features: Tensor, block_bytes: int = 32 << 20) -> Tensor:
    """Cosine between each token and the token at its place in the next frame; with a zero token it is 0.

    Args:
        features: (F, L, D) any floating dtype.
        block_bytes: rough bound of the temporary memory.

    Returns:
        (F - 1, L) fp32, within [-1, 1].
    """
    frames, tokens, dim = features.shape
    similarity = torch.empty(frames - 1, tokens, device=features.device)
    step = max(1, block_bytes // (16 * tokens * dim))
    for start in range(0, frames - 1, step):
        units = torch.nn.functional.normalize(features[start : start + step + 1].float(), dim=-1)
        similarity[start : start + step] = (units[:-1] * units[1:]).sum(-1)
    return similarity.clamp_(-1.0, 1.0)


def static_places(similarity: Tensor, sizes: Tensor, threshold: float) -> Tensor:
    """Places whose similarity is above the threshold for every pair of neighbours in a segment.

    Args:
        similarity: (F - 1, L) on the CPU.
        sizes: (S,) frames in each segment.

    Returns:
        (S, L) bool; no place of a segment of one frame is static.
    """
    static = torch.zeros(len(sizes), similarity.shape[1], dtype=torch.bool)
    several, ends = sizes > 1, sizes.cumsum(0)
    if bool(several.any()):
        order = torch.arange(len(similarity))[:, None]
        broken = torch.where(similarity > threshold, -1, order).cummax(0).values
        static[several] = broken[ends[several] - 2] < (ends - sizes)[several, None]
    return static
