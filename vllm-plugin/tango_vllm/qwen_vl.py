"""What Qwen2.5-VL and Qwen3-VL share inside vLLM: the tower with what its last attention says, positions, times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.qwen2_vl import Qwen2VLMultiModalDataParser

from tango.models.attention import from_attention, parts_of_attention
from tango.models.packed import PATCHES_PER_CALL
from tango.models.qwen_vl import QwenVL
from tango.models.tower import joined, recorded
from tango.pruners.base import Pruner
from tango_vllm import mrope, settings
from tango_vllm.heads import all_heads
from tango_vllm.processing import TIMES, DefaultMetadata


class QwenParser(DefaultMetadata, Qwen2VLMultiModalDataParser):
    """vLLM's parser for these models; a video that comes without times gets default ones."""


class QwenInfo:
    """Mixin of what vLLM must know of these models."""

    def get_data_parser(self) -> QwenParser:
        merge = self.get_hf_config().vision_config.spatial_merge_size
        return QwenParser(merge, video_needs_metadata=True, expected_hidden_size=self._get_expected_hidden_size())


class QwenTower:
    """Mixin of a model: `visual` is its tower."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        pruner = settings.from_environment_or_config(config)
        settings.check(pruner, config.text_config.num_hidden_layers, QwenVL.saliencies, gapless=False)
        self.prune_with(pruner)
        if self.parts and vllm_config.compilation_config.compile_mm_encoder:
            raise settings.SettingsError(
                f"{pruner.name} reads the vision tower's attention: leave compile_mm_encoder off"
            )
        if vllm_config.use_v2_model_runner:
            raise settings.SettingsError("pruning is tested with vLLM's first model runner: VLLM_USE_V2_MODEL_RUNNER=0")
        # Tells vLLM, and this class's base, that prompts are shorter than their videos and positions not numbers.
        vllm_config.model_config.multimodal_config.video_pruning_rate = 0.5
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.merge: int = self.visual.spatial_merge_size

    def prune_with(self, pruner: Pruner) -> None:
        """Take a method."""
        self.tango = pruner
        self.parts = parts_of_attention(pruner.needs, pruner.saliency or QwenVL.saliencies[0])

    def _parse_and_validate_video_input(self, **kwargs: Any) -> Any:
        return super()._parse_and_validate_video_input(**kwargs), kwargs.get(TIMES)  # type: ignore[misc]

    def encoded(self, pixels: Tensor, grid: Sequence[int]) -> dict[str, Tensor]:
        """`tokens` (F, L, D) of a video's patches and the parts of VideoTokens that the method needs."""
        frames, height, width = grid
        step = max(1, PATCHES_PER_CALL // (height * width))
        chunks = pixels.split(step * height * width)
        return joined((self._encoded_chunk(chunk, height, width) for chunk in chunks), frames)

    def _encoded_chunk(self, pixels: Tensor, height: int, width: int) -> dict[str, Tensor]:
        attention, group = self.visual.blocks[-1].attn, self.merge**2
        frames = len(pixels) // (height * width)
        rotation: dict[str, Tensor] = {}

        def keep_rotation(_: Any, args: Any, kwargs: Any) -> None:
            rotation.update(cos=kwargs["rotary_pos_emb_cos"], sin=kwargs["rotary_pos_emb_sin"])

        rotated = attention.register_forward_pre_hook(keep_rotation, with_kwargs=True)
        with rotated, recorded({"qkv": attention.qkv} if self.parts else {}) as states:
            tokens = self.visual(pixels.type(self.visual.dtype), grid_thw=[[frames, height, width]])
        encoded = {"tokens": tokens.view(frames, height * width // group, -1)}
        if self.parts:
            queries, keys = (x.view(frames, height * width, -1) for x in all_heads(states["qkv"][0]))
            angles = (torch.cat((x, x), -1).view(frames, height * width, -1) for x in rotation.values())
            size = attention.hidden_size_per_attention_head
            found = from_attention(
                self.parts, queries, keys, queries.shape[-1] // size, size**-0.5, group, tuple(angles)
            )
            order = self._order(height // self.merge, width // self.merge)
            raster = slice(None) if order is None else order.argsort().to(tokens.device)
            encoded |= {name: part[:, raster] for name, part in found.items()}
        return encoded

    def _order(self, height: int, width: int) -> Tensor | None:
        """Raster indices (L,) of a frame's tokens in the order in which the tower works; None: in raster order."""
        return None

    def _postprocess_image_embeds_evs(self, image_embeds: Any, image_input: Any) -> Any:
        return image_embeds

    def _postprocess_video_embeds_evs(self, video_embeds: Any, video_input: Any) -> Any:
        return video_embeds

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: Any) -> tuple[Tensor, int]:
        """Final positions (3, N) of text and images; those of a video come with its embeddings."""
        positions = mrope.Positions()
        for feature in sorted(mm_features, key=lambda one: one.mm_position.offset):
            positions.text(feature.mm_position.offset - positions.length)
            frames, height, width = feature.data[f"{feature.modality}_grid_thw"].data.tolist()
            rows, columns = height // self.merge, width // self.merge
            if feature.modality == "image":
                positions.add(mrope.grid_places(torch.arange(frames), rows, columns))
            else:
                reach = self._reach(feature, input_tokens, frames, max(rows, columns))
                positions.add(torch.zeros(feature.mm_position.length, 3, dtype=torch.int64), reach)
        return positions.finish(len(input_tokens))

    def _reach(self, feature: Any, input_tokens: list[int], frames: int, side: int) -> int:
        """How many positions a video takes, of frames of which rows or columns, whichever are more, are `side`."""
        raise NotImplementedError

    def frame_times(self, times: Tensor, frames: int) -> Tensor:
        """Seconds of each frame (F,): given so, or as those of the sampled frames of which each is the mean.

        Raises:
            ValueError: neither one a frame nor one a sampled frame.
        """
        samples = self.config.vision_config.temporal_patch_size
        if len(times) == frames:
            return times
        missing = frames * samples - len(times)
        if not 0 <= missing < samples:
            raise ValueError(f"{len(times)} times for a video of {frames} frames of {samples} sampled ones each")
        padded = torch.cat((times, times[-1:].expand(missing)))
        return padded.view(frames, samples).mean(1)
