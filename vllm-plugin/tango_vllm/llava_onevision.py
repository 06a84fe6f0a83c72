"""LLaVA-OneVision in vLLM: frames encoded as tango.models.llava_onevision does, pruned, and a newline after them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionDummyInputsBuilder,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
)
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY

from tango.models.attention import from_attention, parts_of_attention
from tango.models.llava_onevision import FRAMES_PER_CALL, VECTORS, LlavaOnevision
from tango.models.pooling_head import load_pooling_head, pooled
from tango.models.tower import joined, recorded
from tango.pruners.base import Pruner, full_precision
from tango.pruners.video import VideoTokens
from tango_vllm import settings
from tango_vllm.heads import all_heads
from tango_vllm.processing import TIMES, PlainInfo, PrunedVideos, VideoPlaceholders


class Info(PlainInfo, LlavaOnevisionProcessingInfo):
    """As vLLM's, with times of frames."""


class Processor(PrunedVideos, LlavaOnevisionMultiModalProcessor):
    """As vLLM's; a video stands in the prompt as budget() placeholders and one for the newline."""

    def _get_hf_mm_inputs(self, mm_items: Any, hf_kwargs: Any) -> Any:
        inputs = super()._get_hf_mm_inputs(mm_items, hf_kwargs)
        if videos := inputs.hf_data.get("videos"):
            inputs.hf_data["videos"] = [frames for frames, _ in videos]
        return inputs

    def placeholders(self, item: Any) -> VideoPlaceholders:
        config, frames = self.info.get_hf_config(), len(item["pixel_values_videos"].data)
        side, _, _ = LlavaOnevision.layout(config, frames)
        kept = self.pruner.budget(frames, side * side)
        return VideoPlaceholders([config.video_token_index] * (kept + 1), None, frames * side * side, kept)


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=LlavaOnevisionDummyInputsBuilder)
class TangoLlavaOnevision(LlavaOnevisionForConditionalGeneration):
    """LlavaOnevisionForConditionalGeneration whose videos are pruned; `tango` is the method."""

    # transformers 5 saves a tower without the level `vision_model`; the pooling head beside a checkpoint is read apart.
    hf_to_vllm_mapper = LlavaOnevisionForConditionalGeneration.hf_to_vllm_mapper | WeightsMapper(
        orig_to_new_prefix={
            f"{level}vision_tower.{part}": f"vision_tower.vision_model.{part}"
            for level in ("model.", "")
            for part in ("embeddings.", "encoder.", "post_layernorm.", "head.")
        }
        | {"vision_model.": None}
    )

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        pruner = settings.from_environment_or_config(config)
        settings.check(pruner, config.text_config.num_hidden_layers, LlavaOnevision.saliencies, gapless=True)
        if config.vision_feature_layer != -1 or config.vision_feature_select_strategy != "full":
            raise settings.SettingsError(
                "pruned in vLLM is what takes all patches (full) of the last vision layer (-1)"
            )
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.checkpoint = vllm_config.model_config.model
        self.prune_with(pruner)

    def prune_with(self, pruner: Pruner) -> None:
        """Take a method, and load what it reads beside the tower's own output."""
        self.tango = pruner
        self.parts = parts_of_attention(pruner.needs, pruner.saliency or LlavaOnevision.saliencies[0])
        self.vectors = [name for name in VECTORS if name in pruner.needs]
        self.head_saliency = "saliency" in pruner.needs - {*self.parts}
        self.pooling_head = None
        if self.vectors or self.head_saliency:
            tower, given = self.vision_tower.vision_model, pruner.saliency_weights
            self.pooling_head = load_pooling_head(tower, self.checkpoint, given, with_output=bool(self.vectors))

    def _parse_and_validate_video_input(self, **kwargs: Any) -> Any:
        return super()._parse_and_validate_video_input(**kwargs), kwargs.get(TIMES)

    def _process_video_pixels(self, inputs: Any) -> list[Tensor]:
        """What each video gives the language model: budget() tokens and the newline, (K + 1, D)."""
        videos, times = inputs
        return [self._pruned(*video) for video in zip(videos["pixel_values_videos"], times, strict=True)]

    def _pruned(self, pixels: Tensor, times: Tensor) -> Tensor:
        frames = len(pixels)
        side, _, _ = LlavaOnevision.layout(self.config, frames)
        parts = joined(map(self._encoded, torch.split(pixels, FRAMES_PER_CALL)), frames)
        pruned = self.tango.prune_tokens(
            VideoTokens(**parts, grid=(side, side), timestamps=times if len(times) else torch.arange(frames))
        )
        return torch.cat((pruned.features, self.image_newline[None].to(pruned.features)))

    def _encoded(self, pixels: Tensor) -> dict[str, Tensor]:
        """Features (F, L, D) and the parts of VideoTokens that the method needs, of frames (F, C, H, W)."""
        attention = self.vision_tower.vision_model.encoder.layers[-1].self_attn
        with recorded({"qkv": attention.qkv_proj} if self.parts else {}) as outputs:
            states = self._image_pixels_to_features(self.vision_tower, pixels)
        parts = {"features": self.apply_pooling(self.multi_modal_projector(states))}
        with full_precision(pixels.device):
            if self.parts:
                queries, keys = all_heads(outputs["qkv"][0])
                found = from_attention(self.parts, queries, keys, attention.num_heads, attention.scale)
                if "saliency" in found:
                    parts["saliency"] = self.apply_pooling(found["saliency"][..., None]).squeeze(-1)
                if "keys" in found:
                    parts["keys"] = self.apply_pooling(found["keys"])
            if self.pooling_head is not None:
                normed, weights = self.pooling_head.attention(states)
                if self.head_saliency:
                    parts["saliency"] = self.apply_pooling(weights.mean(1)[..., None]).squeeze(-1)
                if self.vectors:
                    parts |= dict.fromkeys(self.vectors, pooled(self.pooling_head, normed, weights))
        return parts
