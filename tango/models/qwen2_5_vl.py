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

from tango.models.in_llm import language_model
from tango.models.prompt import written
from tango.models.qwen_vl import QwenVL, vision_modules
from tango.models.trained import IMAGE, VIDEO, Grid, trained_positions
from tango.pruners.base import Pruner

__all__ = ["FAMILY", "Qwen2_5_VL", "language_model", "vision_modules", "window_order"]


class Qwen2_5_VL(QwenVL):
    """Qwen2_5_VLForConditionalGeneration."""

    title = "Qwen2.5-VL"

    def __init__(self, model: Any, pruner: Pruner) -> None:
        super().__init__(model, pruner)
        self.trained = pruner.positions == "trained"

    def _whole_positions(self, inputs: Mapping[str, Any]) -> Tensor:
        if not self.trained:
            return super()._whole_positions(inputs)
        text, types, shown = written(inputs), inputs.get("mm_token_type_ids"), inputs.get("attention_mask")
        if types is None:
            config = self.core.config
            image, video = (self.find(token, text) for token in (config.image_token_id, config.video_token_id))
            types = IMAGE * image + VIDEO * video
        images, videos = (self._all_token_grids(inputs.get(f"{name}_grid_thw")) for name in ("image", "video"))
        positions = trained_positions(
            types.cpu(),
            torch.ones_like(types, dtype=torch.bool).cpu() if shown is None else shown.cpu().bool(),
            images,
            videos,
            self._times(videos, inputs.get("second_per_grid_ts")),
        )
        return positions.to(text.device, non_blocking=True)

    def _times(self, videos: Sequence[Grid], intervals: Any) -> list[Tensor]:
        """Temporal positions of each video's frames, from its first: cut to whole ones from fp32, as in training."""
        rate = self.core.config.vision_config.tokens_per_second
        if intervals is None:
            intervals = torch.ones(len(videos))
        steps = torch.as_tensor(intervals, dtype=torch.float32, device="cpu") * rate
        return [(torch.arange(grid[0]) * step).long() for grid, step in zip(videos, steps, strict=True)]

    def _order(self, height: int, width: int) -> Tensor:
        return window_order(height, width, self.tower.window_size // self.merge // self.tower.patch_size)


def window_order(height: int, width: int, side: int) -> Tensor:
    """Raster indices (H*W,) of a frame's tokens, window by window of side x side, in raster order inside of each."""
    row, column = torch.arange(height)[:, None], torch.arange(width)
    window = (row // side) * -(-width // side) + column // side
    return window.flatten().argsort(stable=True)


FAMILY = Qwen2_5_VL
