"""Qwen2.5-VL (arXiv 2502.13923): a vision tower with windowed attention, a 2 x 2 merger, a decoder with M-RoPE.

A video stands in the prompt as one span of F*L placeholders. Kept tokens take the places of their placeholders and
keep their temporal, row and column positions; the text after the video is numbered as it is without pruning.

Those positions are computed here, as the model was trained with them: transformers from 5.3 on starts the text after a
video too early, inside of a long one's temporal positions, and before 5.24 cuts a video's interval to whole seconds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tango.models.positions import Grid
from tango.models.qwen_vl import QwenVL


class Qwen2_5_VL(QwenVL):
    """Qwen2_5_VLForConditionalGeneration."""

    title = "Qwen2.5-VL"

    def moments(self, videos: Sequence[Grid], inputs: Mapping[str, Any]) -> list[Tensor]:
        """Cut to whole ones from fp32."""
        rate, intervals = self.core.config.vision_config.tokens_per_second, inputs.get(self.seconds)
        if intervals is None:
            intervals = torch.ones(len(videos))
        steps = torch.as_tensor(intervals, dtype=torch.float32, device="cpu") * rate
        return [(torch.arange(grid[0]) * step).long() for grid, step in zip(videos, steps, strict=True)]

    def _types(self, inputs: Mapping[str, Any]) -> Tensor:
        told: Tensor | None = inputs.get("mm_token_type_ids")
        return super()._types(inputs) if told is None else told

    def order(self, height: int, width: int) -> Tensor:
        return window_order(height, width, self.tower.window_size // self.merge // self.tower.patch_size)


def window_order(height: int, width: int, side: int) -> Tensor:
    """Raster indices (H*W,) of a frame's tokens, window by window of side x side, in raster order inside of each."""
    row, column = torch.arange(height)[:, None], torch.arange(width)
    window = (row // side) * -(-width // side) + column // side
    return window.flatten().argsort(stable=True)


FAMILY = Qwen2_5_VL
