"""Attention within the frames and windows of packed patches: all of one length in one call.

The towers of Qwen models attend within segments that lie one behind another. With scaled_dot_product_attention
Transformers calls it for each of them, thousands of times for a video, and asks the GPU for their lengths in every
layer. Here it is called once for each length that occurs, at most four in a video.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

# With "flash" in the name a tower hands over all segments with their bounds, and asks for nothing else.
NAME = "tango_segments_in_place_of_flash"


@contextlib.contextmanager
def segments_together(tower: Any) -> Iterator[None]:
    """While open, a Qwen tower whose attention is sdpa attends within all segments of one length at once.

    Any other attention is left as it is, and a tower of which checkpoints compute layers again when the call is over.
    Results are those of the loop but for rounding.
    """
    config = tower.config
    before = config._attn_implementation
    again = torch.is_grad_enabled() and tower.training
    again = again and any(getattr(module, "gradient_checkpointing", False) for module in tower.modules())
    if before != "sdpa" or again:
        yield
        return
    AttentionInterface.register(NAME, attend_within_segments)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def attend_within_segments(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of packed segments, as an attention function of Transformers.

    Args:
        query, key, value: (1, heads, P, d).
        cu_seq_lens_q: (segments + 1,) where each begins and the last one ends.

    Returns:
        (1, P, heads, d) and None.
    """
    packed = [x[0].transpose(0, 1) for x in (query, key, value)]
    result = torch.empty_like(packed[0])
    for length, rows in _by_length(cu_seq_lens_q):
        chosen = packed if rows is None else [x[rows] for x in packed]
        q, k, v = (x.reshape(-1, length, *x.shape[1:]).transpose(1, 2) for x in chosen)
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling)
        attended = attended.transpose(1, 2).flatten(0, 1)
        if rows is None:
            return attended[None], None
        result[rows] = attended
    return result[None], None


def _by_length(bounds: Tensor) -> list[tuple[int, Tensor | None]]:
    """Each length of a segment and the rows of all that have it; None: all rows."""
    # All layers get the same tensor of bounds, so the host waits for it once.
    known: list[tuple[int, Tensor | None]] | None = getattr(bounds, "tango_by_length", None)
    if known is None:
        starts = bounds.long().cpu()
        starts, lengths = starts[:-1], starts.diff()
        distinct = sorted(set(lengths.tolist()))
        known = []
        for length in distinct:
            rows = starts[lengths == length, None] + torch.arange(length)
            known.append((length, rows.flatten().to(bounds.device) if len(distinct) > 1 else None))
        bounds.tango_by_length = known  # type: ignore[attr-defined]
    return known
