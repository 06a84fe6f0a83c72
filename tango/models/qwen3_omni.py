"""Qwen3-Omni's thinker (arXiv 2509.17765): Qwen3-VL's tower and deepstack, an audio encoder, M-RoPE that counts time.

A video stands in the prompt as one span of F*L placeholders or, with its sound, as one in which placeholders of audio
stand among those of frames, in the order of time. Tokens of videos are pruned, those of audio all stay. What is kept
takes its place and keeps its positions, which are fractions of 80 ms. The part of the model that speaks, the talker, is
no part of this: it reads hidden states of the whole prompt.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tango.models.positions import Grid
from tango.models.prompt import written
from tango.models.qwen3_vl import Qwen3VL


class Qwen3Omni(Qwen3VL):
    """Qwen3OmniMoeThinkerForConditionalGeneration."""

    title = "Qwen3-Omni"
    seconds = "video_second_per_grid"
    sound = ("input_features", "feature_attention_mask", "audio_feature_lengths")
    inputs = (*Qwen3VL.inputs[:4], seconds, *sound, "use_audio_in_video")  # pixels and grids

    def placeholders(self, inputs: Mapping[str, Any]) -> tuple[list[int], str]:
        if inputs.get(self.seconds) is None:
            raise ValueError(f"{self.title} needs {self.seconds}, the seconds from frame to frame of each video")
        return super().placeholders(inputs)

    def embed(self, text: Tensor, images: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        out = super().embed(text, images, inputs)
        if inputs.get("input_features") is None:
            return out
        features = self.core.get_audio_features(*map(inputs.get, self.sound), return_dict=True).last_hidden_state
        places = self.find(self.core.config.audio_token_id, text)
        if (count := int(places.sum())) != len(features):
            raise ValueError(f"the prompt holds {count} audio placeholders for {len(features)} audio features")
        return out.masked_scatter(places[..., None].to(out.device), F.pad(features, (0, self.extra_width)).to(out))

    def moments(self, videos: Sequence[Grid], inputs: Mapping[str, Any]) -> list[Tensor]:
        """Not cut. Transformers' own positions are others where a video's sound is shorter than its frames are high or
        wide, or where some videos have sound and others none.
        """
        steps = zip(videos, torch.as_tensor(inputs[self.seconds]).cpu().float(), strict=True)
        return [torch.arange(grid[0]) * step * self.core.config.position_id_per_seconds for grid, step in steps]

    def _positions_of_transformers(self, inputs: Mapping[str, Any]) -> Tensor:
        ids, shown = inputs.get("input_ids"), inputs.get("attention_mask")
        if ids is None or shown is None:  # numbered as text
            return super()._positions_of_transformers({**inputs, "mm_token_type_ids": None})
        mask, among = inputs.get("feature_attention_mask"), bool(inputs.get("use_audio_in_video"))
        lengths = inputs.get("audio_feature_lengths") if mask is None else mask.sum(1)
        grids, each = map(inputs.get, ("image_grid_thw", "video_grid_thw")), torch.as_tensor(inputs[self.seconds])
        positions: Tensor
        positions, _ = self.core.get_rope_index(ids, *grids, shown, among, lengths, each)
        return positions.to(written(inputs).device, non_blocking=True)


FAMILY = Qwen3Omni
