"""Positions of a pruned prompt where the model is not left to number it: the caller's own, or those with gaps.

For families whose positions are one number a token; those of Qwen's are in qwen_vl.py.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tango.models.prompt import take, written


def numbered(inputs: Mapping[str, Any], source: Tensor, attended: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    """Positions (B, W) of a pruned prompt, and that of the token after it (B,).

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
