"""Qwen3-Omni's thinker (arXiv 2509.17765): Qwen3-VL's tower and deepstack, an audio encoder, M-RoPE that counts time.

A video stands in the prompt as one span of F*L placeholders or, with its sound, as one in which placeholders of audio
stand among those of frames, in the order of time. Tokens of videos are pruned, those of audio all stay. What is kept
takes its place and keeps its positions, which are fractions of 80 ms. The part of the model that speaks, the talker, is
no part of this: it reads hidden states of the whole prompt.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tango.models.prompt import written
from tango.models.qwen3_vl import Qwen3VL
from tango.models.trained import AUDIO, IMAGE, VIDEO, trained_positions
from tango.pruners.base import Pruner

__all__ = ["FAMILY", "Qwen3Omni", "language_model", "vision_modules"]


def core(model: Any) -> Any:
    """What is below the output projection; in older versions of transformers that is the model itself."""
    return model if hasattr(model, "visual") else model.model


def vision_modules(model: Any) -> list[nn.Module]:
    """The modules whose calls are the vision tower's time."""
    return [core(model).visual]


def language_model(model: Any) -> nn.Module:
    """The decoder, without its output projection."""
    decoder: nn.Module = getattr(model.model, "language_model", model.model)
    return decoder


class Qwen3Omni(Qwen3VL):
    """Qwen3OmniMoeThinkerForConditionalGeneration."""

    title = "Qwen3-Omni"
    seconds = "video_second_per_grid"
    sound = ("input_features", "feature_attention_mask", "audio_feature_lengths")
    inputs = (*Qwen3VL.inputs[:4], seconds, *sound, "use_audio_in_video")  # pixels and grids

    def __init__(self, model: Any, pruner: Pruner) -> None:
        super().__init__(SimpleNamespace(model=core(model)), pruner)
        self.trained = pruner.positions == "trained"

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

    def _whole_positions(self, inputs: Mapping[str, Any]) -> Tensor:
        """As in training; transformers' own are others where a video's sound is shorter than its frames are high or
        wide, or where some videos have sound and others none.
        """
        ids, shown, config = inputs.get("input_ids"), inputs.get("attention_mask"), self.core.config
        if not self.trained and (ids is None or shown is None):  # numbered as text
            return super()._whole_positions({**inputs, "mm_token_type_ids": None})
        grids = [inputs.get(f"{name}_grid_thw") for name in ("image", "video")]
        text, each = written(inputs), torch.as_tensor(inputs[self.seconds])
        positions: Tensor
        if self.trained:
            kinds = ((IMAGE, config.image_token_id), (VIDEO, config.video_token_id), (AUDIO, config.audio_token_id))
            types = torch.stack([kind * self.find(token, text) for kind, token in kinds]).sum(0).cpu()
            images, videos = map(self._all_token_grids, grids)
            steps = zip(videos, each.cpu().float(), strict=True)
            times = [torch.arange(grid[0]) * step * config.position_id_per_seconds for grid, step in steps]
            seen = torch.ones_like(types) if shown is None else shown.cpu()
            positions = trained_positions(types, seen.bool(), images, videos, times)
        else:
            mask, among = inputs.get("feature_attention_mask"), bool(inputs.get("use_audio_in_video"))
            lengths = inputs.get("audio_feature_lengths") if mask is None else mask.sum(1)
            positions, _ = self.core.get_rope_index(ids, *grids, shown, among, lengths, each)
        return positions.to(text.device, non_blocking=True)


FAMILY = Qwen3Omni
