"""Cutting a video into segments of similar frames.

Tango, arXiv 2604.09547, steps 1 and 2 of docs/method.md, as in HoliTom: the largest gain from static tokens, by dynamic
programming. The other way, FastVID's cuts where neighbouring frames differ, is in cuts.py.
"""

import torch
from torch import Tensor


def neighbour_similarity(features: Tensor, block_bytes: int = 8 << 20) -> Tensor:
    """Cosine between each token and the token at its place in the next frame; with a zero token it is 0.

    Args:
        features: (F, L, D) any floating dtype.
        block_bytes: rough bound of the temporary memory.

    Returns:
        (F - 1, L) fp32, within [-1, 1].
    """
    frames, tokens, dim = features.shape
    similarity = torch.empty(frames - 1, tokens, dtype=torch.float32, device=features.device)
    step = max(1, block_bytes // (16 * tokens * dim))
    for start in range(0, frames - 1, step):
        units = torch.nn.functional.normalize(features[start : start + step + 1].float(), dim=-1)
        similarity[start : start + step] = (units[:-1] * units[1:]).sum(-1)
    return similarity.clamp_(-1.0, 1.0)


def holitom(similarity: Tensor, threshold: float, max_window: int | None = None) -> Tensor:
    """Partition frames so that the total gain of the segments is largest.

    The gain of a window of frames [a, b] is (b - a) times the number of positions whose similarity is above the
    threshold for every pair of neighbours in it. Among equal partitions the last segment is the shortest, by the
    order in which the recurrence tries windows: one frame, two, three, and so on, taking only strict improvements.

    Args:
        similarity: (F - 1, L) cosine of neighbouring frames at each position. threshold: it must be exceeded.
        max_window: most frames a segment may have; None for any number.

    Returns:
        (S,) int64 on the CPU, frames in each segment.
    """
    pairs, frames = len(similarity), len(similarity) + 1
    # run[i, l]: how many pairs in a row, ending with pair i, are static at position l. A window of g + 1 frames ending
    # at frame i + 1 has as many static positions as run[i] has entries of at least g: counts of run lengths suffice.
    order = torch.arange(pairs, device=similarity.device)[:, None]
    broken = torch.where(similarity > threshold, -1, order).cummax(0).values
    run = order - broken
    lengths = torch.bincount((order * frames + run).flatten(), minlength=pairs * frames).view(pairs, frames).cpu()
    static = lengths.flip(1).cumsum(1).flip(1)
    gains = static * torch.arange(frames)  # gains[i, g]: of the window of g + 1 frames ending at frame i + 1

    best = torch.zeros(frames + 1, dtype=torch.int64)  # best[j]: of the first j frames
    length = [1] * (frames + 1)
    for last in range(1, frames):
        totals = (best[: last + 1].flip(0) + gains[last - 1, : last + 1])[:max_window]
        best[last + 1] = totals.max()
        length[last + 1] = int((totals == best[last + 1]).nonzero()[0]) + 1  # the first of equals
    sizes, end = [], frames
    while end:
        sizes.append(length[end])
        end -= length[end]
    return torch.tensor(sizes[::-1], dtype=torch.int64)


def holitom_threshold(retention_ratio: float, threshold: float | None) -> float:
    """The threshold, or what HoliTom (arXiv 2505.21334) and Tango were published with at a retention ratio."""
    return threshold if threshold is not None else 0.65 if retention_ratio <= 0.1 else 0.8


def static_places(similarity: Tensor, sizes: Tensor, threshold: float) -> Tensor:
    """Places whose similarity is above the threshold for every pair of neighbours in a segment.

    Args:
        similarity: (F - 1, L) on the CPU; sizes: (S,) frames in each segment.

    Returns:
        (S, L) bool; no place of a segment of one frame is static.
    """
    static = torch.zeros(len(sizes), similarity.shape[1], dtype=torch.bool)
    several, ends = sizes > 1, sizes.cumsum(0)
    order = torch.arange(len(similarity))[:, None]
    broken = torch.where(similarity > threshold, -1, order).cummax(0).values
    static[several] = broken[ends[several] - 2] < (ends - sizes)[several, None]
    return static
