"""InternVL3 and 3.5 in vLLM: tiles encoded as tango.models.internvl does, a frame's number before what is kept of it.

A video's item in the prompt holds the numbers and markers of its frames too, and all placeholders stand in its first
frame, since how many each frame keeps depends on what is seen. The embeddings of an item then are those of all its
tokens in their true order, text included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.interns1 import (
    InternS1DummyInputsBuilder,
    InternS1ForConditionalGeneration,
    InternS1MultiModalProcessor,
    InternS1ProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.tokenizers import cached_tokenizer_from_config

from tango.models.attention import parts_of_attention
from tango.models.internvl import TILES_PER_CALL, InternVL
from tango.models.tower import joined, recorded
from tango.pruners.base import Pruner
from tango.pruners.video import VideoTokens
from tango_vllm import settings
from tango_vllm.processing import TIMES, PlainInfo, PrunedVideos, VideoPlaceholders


class Info(PlainInfo, InternS1ProcessingInfo):
    """As vLLM's, with times of frames."""


def item_tokens(tokenizer: Any, counts: Sequence[int]) -> list[int]:
    """The tokens of a video's item: of each frame its number, a marker, so many placeholders, a marker."""
    tokens: list[int] = []
    for index, count in enumerate(counts):
        before = "\n" * (index > 0) + f"Frame{index + 1}: {tokenizer.start_image_token}"
        tokens += tokenizer.encode(before, add_special_tokens=False)
        tokens += [tokenizer.convert_tokens_to_ids(tokenizer.video_token)] * count
        tokens += [tokenizer.convert_tokens_to_ids(tokenizer.end_image_token)]
    return tokens


class Processor(PrunedVideos, InternS1MultiModalProcessor):
    """As vLLM's; of a video's placeholders there are budget()."""

    def _get_hf_mm_inputs(self, mm_items: Any, hf_kwargs: Any) -> Any:
        inputs = super()._get_hf_mm_inputs(mm_items, hf_kwargs)
        if videos := inputs.hf_data.get("videos"):
            inputs.hf_data["videos"] = [frames for frames, _ in videos]
            inputs = inputs._replace(hf_kwargs={**inputs.hf_kwargs, "do_sample_frames": False})
        return inputs

    def placeholders(self, item: Any) -> VideoPlaceholders:
        pixels = item["pixel_values_videos"].data
        frames, tokens = len(pixels), InternVL.side(self.info.get_hf_config(), pixels) ** 2
        kept = self.pruner.budget(frames, tokens)
        full = item_tokens(self.info.get_tokenizer(), [kept] + [0] * (frames - 1))
        return VideoPlaceholders(full, None, frames * tokens, kept)


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=InternS1DummyInputsBuilder)
class TangoInternVL(InternS1ForConditionalGeneration):
    """vLLM's class for InternVLForConditionalGeneration whose videos are pruned; `tango` is the method."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        pruner = settings.from_environment_or_config(config)
        settings.check(pruner, config.text_config.num_hidden_layers, InternVL.saliencies, gapless=True)
        if config.vision_feature_layer != -1 or config.vision_feature_select_strategy != "default":
            raise settings.SettingsError(
                "pruned in vLLM is what takes the patches (default) of the last vision layer (-1)"
            )
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.tokenizer = cached_tokenizer_from_config(vllm_config.model_config)
        self.prune_with(pruner)

    def prune_with(self, pruner: Pruner) -> None:
        """Take a method."""
        self.tango = pruner
        self.parts = parts_of_attention(pruner.needs, pruner.saliency or InternVL.saliencies[0])

    def _parse_and_validate_video_input(self, **kwargs: Any) -> Any:
        return super()._parse_and_validate_video_input(**kwargs), kwargs.get(TIMES)

    def _process_vision_input(self, image_input: Any) -> Any:
        """Of each image its tokens; of each video the embeddings of its item's tokens."""
        if not isinstance(image_input, tuple):
            return super()._process_vision_input(image_input)
        videos, times = image_input
        packed = videos["pixel_values"].split(videos["num_patches"].flatten().tolist())
        return [self._pruned(*video) for video in zip(packed, times, strict=True)]

    def _pruned(self, pixels: Tensor, times: Tensor) -> Tensor:
        frames, side = len(pixels), InternVL.side(self.config, pixels)
        parts = joined(map(self._encoded, torch.split(pixels, TILES_PER_CALL)), frames)
        pruned = self.tango.prune_tokens(
            VideoTokens(**parts, grid=(side, side), timestamps=times if len(times) else torch.arange(frames))
        )
        counts = (pruned.indices.cpu() // side**2).bincount(minlength=frames).tolist()
        tokens = torch.tensor(item_tokens(self.tokenizer, counts), device=pixels.device)
        rows = self.language_model.embed_input_ids(tokens)
        rows[tokens == self.video_context_token_id] = pruned.features.to(rows)
        return rows

    def _encoded(self, pixels: Tensor) -> dict[str, Tensor]:
        """Features (T, L, D) and the parts of VideoTokens that the method needs, of tiles (T, C, H, H).

        Each rank has all heads: vLLM does not split this attention.
        """
        attention = self.vision_tower.encoder.layer[-1].attention
        names = ("q_norm", "k_norm") if attention.qk_normalization else ("q_proj", "k_proj")
        modules = {name: attention.get_submodule(at) for name, at in zip(("queries", "keys"), names, strict=True)}
        with recorded(modules if self.parts else {}) as outputs:
            parts = {"features": self.extract_feature(pixels)}
        return parts | InternVL.attended(self.config, pixels, attention, outputs, self.parts) if self.parts else parts
