"""Qwen2.5-VL in vLLM: videos pruned as tango.models.qwen2_5_vl does, kept tokens and all text at their positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from tango.models.qwen2_5_vl import window_order
from tango.pruners.video import VideoTokens
from tango_vllm import mrope, runner
from tango_vllm.processing import PrunedVideos, VideoPlaceholders
from tango_vllm.qwen_vl import QwenInfo, QwenTower

runner.call_after_loading(mrope.enable)


class Info(QwenInfo, Qwen2_5_VLProcessingInfo):
    """As vLLM's; a video may come without times."""


class Processor(PrunedVideos, Qwen2_5_VLMultiModalProcessor):
    """As vLLM's; a video stands in the prompt as budget() placeholders."""

    def placeholders(self, item: Any) -> VideoPlaceholders:
        config, (frames, height, width) = self.info.get_hf_config(), item["video_grid_thw"].data.tolist()
        tokens = height * width // config.vision_config.spatial_merge_size**2
        kept = self.pruner.budget(frames, tokens)
        return VideoPlaceholders([config.video_token_id] * kept, None, frames * tokens, kept)

    def _maybe_apply_prompt_updates(self, mm_items: Any, mm_res: Any) -> Any:
        prompt, placeholders = super()._maybe_apply_prompt_updates(mm_items, mm_res)
        config = self.info.get_hf_config()
        if self.counting and "video" in placeholders:
            for one in (one for items in placeholders.values() for one in items):
                end = one.start_idx + len(one.tokens)
                if prompt[one.start_idx - 1 : one.start_idx] != [config.vision_start_token_id] or (
                    prompt[end : end + 1] != [config.vision_end_token_id]
                ):
                    raise ValueError("a video or image must stand between <|vision_start|> and <|vision_end|>")
        return prompt, placeholders


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=Qwen2_5_VLDummyInputsBuilder)
class TangoQwen2_5_VL(QwenTower, Qwen2_5_VLForConditionalGeneration):
    """Qwen2_5_VLForConditionalGeneration whose videos are pruned; `tango` is the method."""

    # -- videos --------------------------------------------------------------------------------------------------

    def _order(self, height: int, width: int) -> Tensor:
        return window_order(height, width, self.visual.window_size // self.merge // self.visual.patch_size)

    def _process_video_input(self, video_input: Any) -> list[Tensor]:
        """Of each video its kept tokens and, in columns behind them, their places: (K, D + 6)."""
        videos, times = video_input
        grids, intervals = videos["video_grid_thw"].tolist(), videos["second_per_grid_ts"].flatten().tolist()
        packed = videos["pixel_values_videos"].split([t * h * w for t, h, w in grids])
        return [self._pruned(*video) for video in zip(packed, grids, intervals, times, strict=True)]

    def _pruned(self, pixels: Tensor, grid: Sequence[int], interval: float, times: Tensor) -> Tensor:
        frames, rows, columns = grid[0], grid[1] // self.merge, grid[2] // self.merge
        parts = self.encoded(pixels, grid)
        if not len(times):
            times = torch.arange(frames, dtype=torch.float32) * interval
        pruned = self.tango.prune_tokens(
            VideoTokens(parts.pop("tokens"), (rows, columns), self.frame_times(times, frames), **parts)
        )
        places = mrope.grid_places(self._temporal(frames, interval), rows, columns)
        return mrope.with_columns(pruned.features, places[pruned.indices.cpu()])

    def _temporal(self, frames: int, interval: float) -> Tensor:
        """The temporal place (F,) of each frame: in fp32, as tango.models.qwen2_5_vl has it."""
        step = torch.tensor(interval, dtype=torch.float32) * self.config.vision_config.tokens_per_second
        return (torch.arange(frames) * step).long()

    # -- positions -----------------------------------------------------------------------------------------------

    def _reach(self, feature: Any, input_tokens: list[int], frames: int, side: int) -> int:
        last = int(self._temporal(frames, feature.data["second_per_grid_ts"].data.item())[-1])
        return max(last + 1, side)

    def recompute_mrope_positions(
        self, input_ids: Any, multimodal_embeddings: Any, mrope_positions: Tensor, num_computed_tokens: int
    ) -> tuple[list[Tensor], Tensor, int]:
        """Embeddings without their columns, and positions with those of the videos among them."""
        width = self.config.text_config.hidden_size
        media = {self.config.image_token_id, self.config.video_token_id}
        positions, embeddings = mrope_positions.clone(), list(multimodal_embeddings)
        if any(rows.shape[1] > width for rows in embeddings):
            runs = mrope.starts(input_ids, media, num_computed_tokens)
            for index, (rows, (start, _)) in enumerate(zip(embeddings, runs, strict=False)):
                if rows.shape[1] > width:
                    embeddings[index], places = mrope.without_columns(rows, 3)
                    first = max(start, num_computed_tokens)
                    origin = positions[:, start - 1 : start] + 1  # of <|vision_start|>
                    positions[:, first : first + len(rows)] = places.T.to(positions) + origin
        return embeddings, positions, int(positions[0, -1]) + 1 - positions.shape[1]
