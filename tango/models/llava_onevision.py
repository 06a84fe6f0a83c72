"""LLaVA-OneVision (arXiv 2408.03326) as transformers has it: a SigLIP tower, projector, pooling, Qwen2.

A video of F frames stands in the prompt as F*L + 1 placeholders: the tokens of its frames, pooled bilinearly to half
the patch grid (27 x 27 to 14 x 14), and one newline. Kept tokens take the places of their placeholders, the newline
follows, and the language model numbers the shorter prompt without gaps.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tango.models.family import Family, Video, joined, placeholders
from tango.models.pooling_head import load_pooling_head
from tango.models.siglip import mean_keys, mean_query_saliency, received_saliency, recorded_states

if TYPE_CHECKING:
    from tango.pruners.base import Pruned, Pruner

# Positions that draw attention in every frame whatever it shows, by grid.
SINK_TOKENS = {(14, 14): (28, 27, 41, 169, 11, 12)}
# The tower sees no more frames at once, so that its memory does not grow with the video.
FRAMES_PER_CALL = 64
SIGNALS = frozenset({"saliency", "segment_features", "frame_vectors", "keys", "key"})
SALIENCIES = ("pooling_head", "global_query", "received_attention")


def vision_modules(model: Any) -> list[nn.Module]:
    """The modules whose calls are the vision tower's time."""
    return [model.model.vision_tower]


def language_model(model: Any) -> nn.Module:
    """The decoder, without its output projection."""
    decoder: nn.Module = model.model.language_model
    return decoder


class LlavaOnevision(Family):
    """LlavaOnevisionForConditionalGeneration; the base of LLaVA-Video's family, which pools and lays out differently.

    Signals: saliency (F, L), from the pooling head (default), from the mean query of the last vision layer, or what a
    patch receives in that layer, pooled to the token grid as the features are; keys (F, L, width of a head) of that
    layer, mean over heads, pooled so too; segment_features or frame_vectors (F, vision width), the head's output.
    """

    inputs = (
        "pixel_values", "image_sizes", "pixel_values_videos", "image_sizes_videos", "batch_num_images",
        "vision_feature_layer", "vision_feature_select_strategy", "vision_aspect_ratio",
    )  # fmt: skip
    video_inputs = ("pixel_values_videos",)
    title = "LLaVA-OneVision"
    sinks: Mapping[tuple[int, int], tuple[int, ...]] = SINK_TOKENS

    def __init__(self, model: Any, pruner: "Pruner") -> None:
        self.model = model
        self.core = model.model
        tower = self.core.vision_tower
        if not hasattr(tower, "encoder") or not hasattr(tower, "post_layernorm"):
            raise TypeError(f"{self.title} is supported with a SigLIP vision tower, not with {type(tower).__name__}")
        self.saliency = pruner.saliency or "pooling_head"
        if self.saliency not in SALIENCIES:
            raise ValueError(f"saliency={pruner.saliency!r}: {self.title} has {', '.join(SALIENCIES)}")
        self.needs = pruner.needs
        if unknown := self.needs - SIGNALS:
            raise ValueError(f"{pruner.name} needs {', '.join(sorted(unknown))}; {self.title} has {sorted(SIGNALS)}")
        # All frames of a prompt in one call, as the model itself does, where the result must equal its own to the bit.
        self.frames_per_call = FRAMES_PER_CALL if pruner.retention_ratio < 1 else None
        vectors = not self.needs.isdisjoint({"segment_features", "frame_vectors"})
        self.head = None
        if vectors or ("saliency" in self.needs and self.saliency == "pooling_head"):
            origin = self.model.config._name_or_path
            self.head = load_pooling_head(tower, origin, pruner.saliency_weights, with_output=vectors)

    def sink_tokens(self, grid: tuple[int, int]) -> tuple[int, ...] | None:
        return self.sinks.get(grid)

    @staticmethod
    def layout(config: Any, frames: int) -> tuple[int, int, str]:
        """Tokens along a side of a frame, placeholders of a video of so many frames, and the latter in words."""
        vision = config.vision_config
        side = -(-(vision.image_size // vision.patch_size) // 2)
        return side, frames * side * side + 1, f"{side} x {side} a frame and one newline each"

    @classmethod
    def sizes(cls, config: Any, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
        pixels = inputs.get("pixel_values_videos")
        if pixels is None:
            return []
        videos, frames = pixels.shape[:2]
        return [(frames, cls.layout(config, frames)[0] ** 2)] * videos

    def videos(self, inputs: Mapping[str, Any]) -> Iterator[Video]:
        pixels: Tensor = inputs["pixel_values_videos"]
        if pixels.dim() != 5 or 0 in pixels.shape:
            raise ValueError(f"pixel_values_videos has shape {tuple(pixels.shape)}, not (videos, frames, C, H, W)")
        count, frames = pixels.shape[:2]
        side, length, words = self.layout(self.core.config, frames)
        places = placeholders(self.core, inputs, self.core.config.video_token_id).nonzero()
        if len(places) != count * length:
            raise ValueError(
                f"the prompt holds {len(places)} video placeholders, and {count} videos of {frames} frames need "
                f"{count * length} ({words})"
            )
        places = places.view(count, length, 2)
        rows: list[int] = places[:, 0, 0].tolist()
        if rows != places[:, -1, 0].tolist():
            raise ValueError("a video's placeholders are spread over several prompts of the batch")

        together = count if self.frames_per_call is None else 1
        for first in range(0, count, together):
            encoded = self._encode(pixels[first : first + together].flatten(0, 1), inputs)
            for index in range(first, first + together):
                own = slice((index - first) * frames, (index - first + 1) * frames)
                parts: dict[str, Any] = {name: tensor[own] for name, tensor in encoded.items()}
                yield Video(rows[index], places[index, :, 1], parts.pop("features"), (side, side), **parts)

    def lay_out(self, video: Video, pruned: "Pruned") -> tuple[Tensor, Tensor]:
        newline = self.core.image_newline[None].to(pruned.features)
        columns = torch.cat((video.columns[pruned.indices.to(video.columns.device)], video.columns[-1:]))
        return torch.cat((pruned.features, newline)), columns

    def embed(self, ids: Tensor | None, embeds: Tensor | None, real: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        prompt = {"input_ids": ids, "inputs_embeds": embeds}
        if embeds is None:
            embeds = self.core.get_input_embeddings()(ids)
        pixels = inputs.get("pixel_values")
        if pixels is None:
            return embeds
        options = ("vision_feature_layer", "vision_feature_select_strategy", "batch_num_images")
        images = self.core.get_image_features(
            pixels, inputs.get("image_sizes"), return_dict=True, **{name: inputs.get(name) for name in options}
        ).pooler_output
        features = torch.cat(images).to(embeds)
        mask = placeholders(self.core, prompt, self.core.config.image_token_id) & real
        if (places := int(mask.sum())) != len(features):
            raise ValueError(f"the prompt holds {places} image placeholders for {len(features)} image features")
        return embeds.masked_scatter(mask.unsqueeze(-1).to(embeds.device), features)

    def _encode(self, pixels: Tensor, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Features (F, L, D) and the signals that are asked for, by their names in Video, of frames (F, C, H, W)."""
        parts = torch.split(pixels, self.frames_per_call or len(pixels))
        return joined((self._encode_chunk(part, inputs) for part in parts), len(pixels))

    def _encode_chunk(self, pixels: Tensor, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        core, tower, config = self.core, self.core.vision_tower, self.model.config
        last = len(tower.encoder.layers)
        layers = inputs.get("vision_feature_layer")
        layers = config.vision_feature_layer if layers is None else layers
        layers = [layer % (last + 1) for layer in ([layers] if isinstance(layers, int) else layers)]
        with recorded_states(tower, {*layers, last - 1, last}) as states:
            tower(pixels)
        selected = states[layers[0]] if len(layers) == 1 else torch.cat([states[layer] for layer in layers], dim=-1)
        strategy = inputs.get("vision_feature_select_strategy") or config.vision_feature_select_strategy
        if strategy == "default":
            selected = selected[:, 1:]
        signals = {"features": core.apply_pooling(core.multi_modal_projector(selected))}

        layer, state = tower.encoder.layers[-1], states[last - 1]
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            if self.head is not None:
                normed, weights = self.head.attention(states[last])
                patches = weights.mean(1)
                if not self.needs.isdisjoint({"segment_features", "frame_vectors"}):
                    signals["segment_features"] = self.head.pooled(normed, weights)
            if "saliency" in self.needs:
                if self.saliency == "global_query":
                    patches = mean_query_saliency(layer, state)
                elif self.saliency == "received_attention":
                    patches = received_saliency(layer, state)
                signals["saliency"] = core.apply_pooling(patches[..., None]).squeeze(-1)
            if "keys" in self.needs:
                signals["keys"] = core.apply_pooling(mean_keys(layer, state))
        return signals


FAMILY = LlavaOnevision
