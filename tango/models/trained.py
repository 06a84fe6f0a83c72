"""M-RoPE positions of a whole prompt as Qwen2.5-VL and Qwen3-Omni were trained with them, by their papers."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

TEXT, IMAGE, VIDEO, AUDIO = range(4)  # types of a prompt's tokens
Grid = tuple[int, int, int]  # frames, rows and columns of tokens


def trained_positions(
    types: Tensor, shown: Tensor, images: Sequence[Grid], videos: Sequence[Grid], times: Iterable[Tensor]
) -> Tensor:
    """Temporal, row and column positions (3, B, N) of a prompt; 0 in the padding.

    Section 2.1 of arXiv 2502.13923, and arXiv 2509.17765 for sound. Text and sound have one position a token, the same
    three times. An image or a video that starts at p has rows p, p + 1, .., columns p, p + 1, .. and, of frame i,
    p + times[i]. Sound among the tokens of a video starts at p too. What follows starts at the largest of these + 1.

    Args:
        types: (B, N) of TEXT, IMAGE, VIDEO and AUDIO. shown: (B, N) bool, False where padded.
        images, videos: frames, rows and columns of tokens of each, in prompt order over all rows.
        times: (F,) of the frames of each video, and of no others; in the dtype of the positions.

    Raises:
        ValueError: a row's placeholders are not those of the grids.
    """
    moments = list(times)
    whole = next((moment.dtype for moment in moments), torch.int64)
    still = ((grid, torch.zeros(grid[0], dtype=whole)) for grid in images)
    grids = {IMAGE: iter(still), VIDEO: iter(zip(videos, moments, strict=True))}
    positions = torch.zeros(3, *types.shape, dtype=whole)
    for row, (own, seen) in enumerate(zip(types, shown, strict=True)):
        left, parts, start, at = own[seen], [], torch.zeros((), dtype=whole), 0
        together = left.masked_fill(left == AUDIO, VIDEO)  # a video, and the sound among its tokens
        while at < len(left):
            kind = int(together[at])
            ends = (together[at:] != kind).nonzero()
            run = left[at : at + int(ends[0])] if len(ends) else left[at:]
            part = torch.arange(len(run), dtype=whole).expand(3, -1)
            if kind != TEXT and not bool((run == AUDIO).all()):
                grid, moment = next(grids[kind], (None, torch.empty(0)))
                count = 0 if grid is None else grid[0] * grid[1] * grid[2]
                if not bool((run == AUDIO).any()):  # else the next of its kind may follow with nothing between
                    run = run[:count]
                if count == 0 or grid is None or int((run == kind).sum()) != count:
                    raise ValueError(
                        f"the {'image' if kind == IMAGE else 'video'} at token {at} of row {row}: its placeholders are "
                        f"not those of its grid, {grid}; pass mm_token_type_ids as the processor made them"
                    )
                part = torch.zeros(3, len(run), dtype=whole)
                part[:, run == AUDIO] = torch.arange(len(run) - count, dtype=whole)
                sides = (torch.arange(size, dtype=whole) for size in grid[1:])
                part[:, run != AUDIO] = torch.stack(torch.meshgrid(moment, *sides, indexing="ij")).flatten(1)
            parts.append(part + start)
            start, at = parts[-1].max() + 1, at + len(run)
        if parts:
            positions[:, row, seen] = torch.cat(parts, 1)
    return positions
