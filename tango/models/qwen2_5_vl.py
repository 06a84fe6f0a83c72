"""Qwen2.5-VL (arXiv 2502.13923): a vision tower with windowed attention, a 2 x 2 merger, a decoder with M-RoPE.

A video stands in the prompt as one span of F*L placeholders. Kept tokens take the places of their placeholders and
keep their temporal, row and column positions; the text after the video is numbered as it is without pruning.
"""

import torch
from torch import Tensor

from tango.models.family import language_model
from tango.models.qwen_vl import QwenVL, vision_modules

__all__ = ["FAMILY", "Qwen2_5_VL", "language_model", "vision_modules", "window_order"]


class Qwen2_5_VL(QwenVL):
    """Qwen2_5_VLForConditionalGeneration."""

    title = "Qwen2.5-VL"

    def _order(self, height: int, width: int) -> Tensor:
        return window_order(height, width, self.tower.window_size // self.merge // self.tower.patch_size)


def window_order(height: int, width: int, side: int) -> Tensor:
    """Raster indices (H*W,) of a frame's tokens, window by window of side x side, in raster order inside of each."""
    row, column = torch.arange(height)[:, None], torch.arange(width)
    window = (row // side) * -(-width // side) + column // side
    return window.flatten().argsort(stable=True)


FAMILY = Qwen2_5_VL
