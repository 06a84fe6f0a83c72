"""Qwen2.5-VL (arXiv 2502.13923): a vision tower with windowed attention, a 2 x 2 merger, a decoder with M-RoPE.

A video stands in the prompt as one span of F*L placeholders. Kept tokens take the places of their placeholders and
keep their temporal, row and column positions; the text after the video is numbered as it is without pruning.

Those positions are computed here, as the model was trained with them: transformers from 5.3 on starts the text after a
video too early, inside of a long one's temporal positions, and before 5.24 cuts a video's interval to whole seconds.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from tango.models.in_llm import language_model
from tango.models.prompt import written
from tango.models.qwen_vl import QwenVL, vision_modules
from tango.pruners.base import Pruner

__all__ = ["FAMILY", "Qwen2_5_VL", "language_model", "trained_positions", "vision_modules", "window_order"]

IMAGE, VIDEO = 1, 2  # types of a prompt's tokens; text is 0


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
        positions = trained_positions(
            types.cpu(),
            torch.ones_like(types, dtype=torch.bool).cpu() if shown is None else shown.cpu().bool(),
            self._all_token_grids(inputs.get("image_grid_thw")),
            self._all_token_grids(inputs.get("video_grid_thw")),
            self._steps(inputs.get("second_per_grid_ts")),
        )
        return positions.to(text.device, non_blocking=True)

    def _all_token_grids(self, grids: Any) -> list[tuple[int, int, int]]:
        return [] if grids is None else self._token_grids(torch.as_tensor(grids))

    def _steps(self, intervals: Any) -> Iterator[Tensor]:
        """The temporal positions from one frame of each video to the next: fp32, as they were in training."""
        rate = self.core.config.vision_config.tokens_per_second
        if intervals is None:
            return itertools.repeat(torch.tensor(float(rate), dtype=torch.float32))
        return iter(torch.as_tensor(intervals, dtype=torch.float32, device="cpu") * rate)

    def _order(self, height: int, width: int) -> Tensor:
        return window_order(height, width, self.tower.window_size // self.merge // self.tower.patch_size)


def trained_positions(
    types: Tensor,
    shown: Tensor,
    images: list[tuple[int, int, int]],
    videos: list[tuple[int, int, int]],
    steps: Iterator[Tensor],
) -> Tensor:
    """Temporal, row and column positions (3, B, N) of a prompt, by section 2.1 of arXiv 2502.13923; 0 in the padding.

    Text has one position a token, the same three times. An image or a video that starts at p has rows p, p + 1, ..,
    columns p, p + 1, .. and, of frame i, p + int(i * step). What follows starts at the largest of these + 1.

    Args:
        types: (B, N) 0 for text, 1 for tokens of images, 2 of videos. shown: (B, N) bool, False where padded.
        images, videos: frames, rows and columns of tokens of each, in prompt order over all rows.
        steps: temporal positions between frames, of each video.

    Raises:
        ValueError: a row's placeholders are not those of the grids.
    """
    grids = {IMAGE: iter(images), VIDEO: iter(videos)}
    positions = torch.zeros(3, *types.shape, dtype=torch.int64)
    for row, (own, seen) in enumerate(zip(types, shown, strict=True)):
        left, parts, start = own[seen].tolist(), [], 0
        total = len(left)
        while left:
            if left[0] == 0:
                count = next((place for place, kind in enumerate(left) if kind), len(left))
                part = torch.arange(count).expand(3, -1)
            else:
                grid = next(grids[left[0]], None)
                if grid is None or left[: (count := grid[0] * grid[1] * grid[2])] != [left[0]] * count:
                    name = "image" if left[0] == IMAGE else "video"
                    raise ValueError(
                        f"the {name} at token {total - len(left)} of row {row}: its placeholders are not those of its "
                        f"grid, {grid}; pass mm_token_type_ids as the processor made them"
                    )
                step = next(steps) if left[0] == VIDEO else torch.tensor(0.0)
                frames, rows, columns = (torch.arange(size) for size in grid)
                part = torch.stack(torch.meshgrid((frames * step).long(), rows, columns, indexing="ij")).flatten(1)
            parts.append(part + start)
            start = int(parts[-1].max()) + 1
            left = left[count:]
        if parts:
            positions[:, row, seen] = torch.cat(parts, 1)
    return positions


def window_order(height: int, width: int, side: int) -> Tensor:
    """Raster indices (H*W,) of a frame's tokens, window by window of side x side, in raster order inside of each."""
    row, column = torch.arange(height)[:, None], torch.arange(width)
    window = (row // side) * -(-width // side) + column // side
    return window.flatten().argsort(stable=True)


FAMILY = Qwen2_5_VL
