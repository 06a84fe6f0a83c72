"""Qwen3-VL in vLLM: videos pruned as tango.models.qwen3_vl does, times as text among the tokens, and deepstack.

A video's item in the prompt holds the times and markers of its frames too, and all placeholders stand in its first
frame, since how many each frame keeps depends on what is seen. The embeddings of an item then are those of all its
tokens in their true order, text included, each with its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from tango.pruners.video import VideoTokens
from tango_vllm import mrope, runner
from tango_vllm.processing import PrunedVideos, VideoPlaceholders
from tango_vllm.qwen_vl import QwenInfo, QwenTower

runner.call_after_loading(mrope.enable)


class TimedInfo(QwenInfo):
    """Mixin of what vLLM must know of models that write times of frames into the prompt."""

    def get_max_video_tokens(self, seq_len: int, mm_counts: Mapping[str, int]) -> int:
        """As vLLM's, and room for the times and markers of as many frames as a video may have: items hold those too."""
        processor = self.get_video_processor()
        frames = processor.max_frames // processor.temporal_patch_size
        written = len(self.get_tokenizer().encode("<9999.9 seconds>", add_special_tokens=False)) + 2
        return super().get_max_video_tokens(seq_len, mm_counts) + frames * written  # type: ignore[misc]


class Info(TimedInfo, Qwen3VLProcessingInfo):
    """As vLLM's; a video may come without times."""


def item_tokens(config: Any, tokenizer: Any, times: Any, counts: Sequence[int]) -> list[int]:
    """The tokens of a video's item: of each frame its time, a marker, so many placeholders, a marker."""
    return Qwen3VLMultiModalProcessor.get_video_repl(
        tokens_per_frame=list(counts),
        timestamps=times,
        tokenizer=tokenizer,
        vision_start_token_id=config.vision_start_token_id,
        vision_end_token_id=config.vision_end_token_id,
        video_token_id=config.video_token_id,
    ).full


class Processor(PrunedVideos, Qwen3VLMultiModalProcessor):
    """As vLLM's; of a video's placeholders there are budget()."""

    def placeholders(self, item: Any) -> VideoPlaceholders:
        config, (frames, height, width) = self.info.get_hf_config(), item["video_grid_thw"].data.tolist()
        tokens = height * width // config.vision_config.spatial_merge_size**2
        kept, times = self.pruner.budget(frames, tokens), item["timestamps"].data
        full = item_tokens(config, self.info.get_tokenizer(), times, [kept] + [0] * (frames - 1))
        return VideoPlaceholders(full, None, frames * tokens, kept)


class PrunedQwen3VL(QwenTower):
    """Mixin of vLLM's models: their videos are pruned; `tango` is the method."""

    # -- videos --------------------------------------------------------------------------------------------------

    def _process_video_input(self, video_input: Any) -> list[Tensor]:
        """Of each video the embeddings of its item's tokens, deepstack, and in columns behind them, their places."""
        videos, times = video_input
        grids = videos["video_grid_thw"].tolist()
        packed = videos["pixel_values_videos"].split([t * h * w for t, h, w in grids])
        return [self._pruned(*video) for video in zip(packed, grids, videos["timestamps"], times, strict=True)]

    def _pruned(self, pixels: Tensor, grid: Sequence[int], written: Any, times: Tensor) -> Tensor:
        frames, rows, columns = grid[0], grid[1] // self.merge, grid[2] // self.merge
        parts = self.encoded(pixels, grid)
        features, deepstack = parts.pop("tokens").split([self.visual_dim, self.multiscale_dim], dim=-1)
        times = self.frame_times(times, frames) if len(times) else torch.arange(frames)
        pruned = self.tango.prune_tokens(VideoTokens(features, (rows, columns), times, **parts))
        indices = pruned.indices.cpu()

        tokens = torch.tensor(item_tokens(self.config, self._tokenizer, written, [rows * columns] * frames))
        visual = tokens == self.config.video_token_id
        times_kept = (~visual).long()  # text once; a place where a method puts several tokens, so often
        times_kept[visual] = indices.bincount(minlength=frames * rows * columns)
        places = self._places(visual, frames, rows, columns)
        own = places[visual][indices]  # as in transformers: each frame has its number of tokens, in the method's order
        tokens, visual, places = (x.repeat_interleave(times_kept, 0) for x in (tokens, visual, places))
        places[visual] = own
        text = self.get_language_model().embed_input_ids(tokens.to(features.device))
        out = torch.cat((text, text.new_zeros(len(text), self.multiscale_dim)), dim=1)
        extra = deepstack.flatten(0, 1)[indices.to(deepstack.device)]
        out[visual.to(out.device)] = torch.cat((pruned.features, extra), dim=1).to(out)
        return mrope.with_columns(out, torch.cat((places, torch.arange(len(places))[:, None]), dim=1))

    @staticmethod
    def _places(visual: Tensor, frames: int, rows: int, columns: int) -> Tensor:
        """Places (n, 3) of an unpruned item's tokens from its start, given which of them are visual."""
        positions, before = mrope.Positions(), 0
        for first in visual.nonzero()[:: rows * columns, 0].tolist():
            positions.text(first - before)
            positions.add(mrope.grid_places(torch.zeros(1, dtype=torch.int64), rows, columns))
            before = first + rows * columns
        return positions.finish(len(visual))[0].T

    # -- positions -----------------------------------------------------------------------------------------------

    def _reach(self, feature: Any, input_tokens: list[int], frames: int, side: int) -> int:
        first, length = feature.mm_position.offset, feature.mm_position.length
        kept = input_tokens[first : first + length].count(self.config.video_token_id)
        return length - kept + frames * side

    def recompute_mrope_positions(
        self, input_ids: Any, multimodal_embeddings: Any, mrope_positions: Tensor, num_computed_tokens: int
    ) -> tuple[list[Tensor], Tensor, int]:
        """Embeddings without their columns, and positions with those of the videos among them."""
        width = self.visual_dim + self.multiscale_dim
        positions, embeddings = mrope_positions.clone(), list(multimodal_embeddings)
        if any(rows.shape[1] > width for rows in embeddings):
            items = [first for first in self._items(input_ids) if first >= num_computed_tokens]
            for index, rows in enumerate(embeddings):
                if rows.shape[1] == width:
                    continue
                embeddings[index], places = mrope.without_columns(rows, 4)
                at = int(places[0, 3])  # the number of its first token within its item
                first = num_computed_tokens if at else items.pop(0)
                origin = positions[:, first - at - 1 : first - at] + 1  # behind <|vision_start|>
                positions[:, first : first + len(rows)] = places[:, :3].T.to(positions) + origin
        return embeddings, positions, int(positions[0, -1]) + 1 - positions.shape[1]

    def _items(self, input_ids: Any) -> list[int]:
        """Where the items of videos start: behind a <|vision_start|> whose next one has a placeholder behind it."""
        tokens = torch.as_tensor(input_ids).tolist()
        starts = [index for index, token in enumerate(tokens[:-1]) if token == self.config.vision_start_token_id]
        filled = [tokens[index + 1] == self.config.video_token_id for index in starts]
        return [
            one + 1 for one, itself, following in zip(starts, filled, filled[1:], strict=False) if following > itself
        ]


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=Qwen3VLDummyInputsBuilder)
class TangoQwen3VL(PrunedQwen3VL, Qwen3VLForConditionalGeneration):
    """Qwen3VLForConditionalGeneration whose videos are pruned; `tango` is the method."""
