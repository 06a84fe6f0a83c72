"""When the frames of a prompt are, and which positions its tokens have where the model is not left to number them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tango.models.prompt import take, written

TEXT, IMAGE, VIDEO, AUDIO = range(4)  # types of a prompt's tokens
Grid = tuple[int, int, int]  # frames, rows and columns of tokens


def timestamps_of(video_metadata: Sequence[Any] | None) -> list[list[float] | None] | None:
    """Seconds of the sampled frames from a processor's `video_metadata`; None for a video without frame rate."""
    if video_metadata is None:
        return None
    timestamps: list[list[float] | None] = []
    for video in video_metadata:
        video = video[0] if isinstance(video, list | tuple) else video
        rate, frames = video["fps"], video["frames_indices"]
        timestamps.append(None if rate is None or frames is None else [float(frame) / rate for frame in frames])
    return timestamps


def numbered(inputs: Mapping[str, Any], source: Tensor, attended: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    """Positions (B, W) of a pruned prompt, one a token, and that of the token after it (B,).

    inputs, source, attended: as in Family.positions. keep: tokens keep the positions they have in the unpruned prompt,
    by the caller or else by its mask; without it each row goes on from the first of these without gaps.
    """
    positions, mask = inputs.get("position_ids"), inputs.get("attention_mask")
    if positions is None:
        shown = torch.ones(written(inputs).shape[:2], device=source.device) if mask is None else mask
        positions = (shown.to(source.device).bool().long().cumsum(1) - 1).clamp(min=0)
    positions = positions.expand(len(source), -1)
    kept = take(positions, source)
    if keep:
        return kept, positions.amax(1) + 1
    first = kept.gather(1, attended.int().argmax(1, keepdim=True))
    renumbered = (first + attended.long().cumsum(1) - 1).masked_fill(~attended, 0)
    return renumbered, renumbered.amax(1) + 1


def trained_positions(
    types: Tensor, shown: Tensor, images: Sequence[Grid], videos: Sequence[Grid], times: Iterable[Tensor]
) -> Tensor:
    """M-RoPE positions (3, B, N), temporal, row and column, of a whole prompt as in training; 0 in the padding.

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
