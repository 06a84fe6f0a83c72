"""LLaVA-OneVision (arXiv 2408.03326) as transformers has it: a SigLIP tower, projector, pooling, Qwen2.

A video of F frames stands in the prompt as F*L + 1 placeholders: the tokens of its frames, pooled bilinearly to half
the patch grid (27 x 27 to 14 x 14), and one newline. Kept tokens take the places of their placeholders, the newline
follows, and the language model numbers the shorter prompt without gaps.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tango.models import refusals
from tango.models.attention import from_attention
from tango.models.family import Family, PlacedVideo
from tango.models.pooling_head import load_pooling_head, pooled
from tango.models.prompt import Edit
from tango.models.tower import joined, recorded, weight
from tango.pruners.base import Pruner, full_precision
from tango.pruners.video import Pruned

# The tower sees no more frames at once, so that its memory does not grow with the video.
FRAMES_PER_CALL = 64
IMAGE_OPTIONS = ("image_sizes", "vision_feature_layer", "vision_feature_select_strategy", "batch_num_images")
VECTORS = ("segment_features", "frame_vectors")


class LlavaOnevision(Family):
    """LlavaOnevisionForConditionalGeneration; the base of LLaVA-Video's family, which pools and lays out differently.

    saliency (F, L) is that of the pooling head (default) or of the last vision layer, keys (F, L, width of a head) are
    those of that layer, both pooled to the token grid as the features are; segment_features and frame_vectors (F,
    vision width) are the head's output.
    """

    title = "LLaVA-OneVision"
    inputs = (
        "pixel_values", "image_sizes", "pixel_values_videos", "image_sizes_videos", "batch_num_images",
        "vision_feature_layer", "vision_feature_select_strategy", "vision_aspect_ratio",
    )  # fmt: skip
    saliencies = ("pooling_head", "global_query", "received_attention")
    sinks: Mapping[tuple[int, int], tuple[int, ...]] = {(14, 14): (28, 27, 41, 169, 11, 12)}

    def __init__(self, model: Any, pruner: Pruner) -> None:
        super().__init__(model, pruner)
        if not hasattr(self.tower, "encoder") or not hasattr(self.tower, "post_layernorm"):
            found = type(self.tower).__name__
            raise TypeError(f"{self.title} is supported with a SigLIP vision tower, not with {found}")
        refusals.check_methods(self.core, "get_video_features", "apply_pooling")
        self.vectors = [name for name in VECTORS if name in self.needs]
        self.head_saliency = "saliency" in self.needs and self.saliency == "pooling_head"
        self.head = None
        if self.vectors or self.head_saliency:
            origin = model.config._name_or_path
            self.head = load_pooling_head(self.tower, origin, pruner.saliency_weights, with_output=bool(self.vectors))

    @staticmethod
    def layout(config: Any, frames: int) -> tuple[int, int, str]:
        """Tokens along a side of a frame, placeholders of a video of so many frames, and the latter in words."""
        vision = config.vision_config
        side = -(-(vision.image_size // vision.patch_size) // 2)
        return side, frames * side * side + 1, f"{side} x {side} a frame and one newline each"

    @classmethod
    def sizes(cls, config: Any, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
        if (pixels := inputs.get("pixel_values_videos")) is None:
            return []
        count, frames = pixels.shape[:2]
        return [(frames, frames * cls.layout(config, frames)[0] ** 2)] * count

    def placeholders(self, inputs: Mapping[str, Any]) -> tuple[list[int], str]:
        pixels: Tensor = inputs["pixel_values_videos"]
        if pixels.dim() != 5 or 0 in pixels.shape:
            raise ValueError(f"pixel_values_videos has shape {tuple(pixels.shape)}, not (videos, frames, C, H, W)")
        count, frames = pixels.shape[:2]
        _, length, words = self.layout(self.core.config, frames)
        return [length] * count, f"{count} videos of {frames} frames need {count * length} ({words})"

    def encode(self, inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        pixels: Tensor = inputs["pixel_values_videos"]
        count, frames = pixels.shape[:2]
        side, _, _ = self.layout(self.core.config, frames)
        for videos in torch.split(pixels, count if self.in_one_call else 1):
            chunks = torch.split(videos.flatten(0, 1), count * frames if self.in_one_call else FRAMES_PER_CALL)
            parts = joined((self._encode_frames(chunk, inputs) for chunk in chunks), len(videos) * frames)
            for own in range(0, len(videos) * frames, frames):
                yield {name: tensor[own : own + frames] for name, tensor in parts.items()} | {"grid": (side, side)}

    def _encode_frames(self, pixels: Tensor, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Features (F, L, D) and the parts of VideoTokens that are needed, of frames (F, C, H, W)."""
        core, tower, config = self.core, self.tower, self.core.config
        layers, last = tower.encoder.layers, len(tower.encoder.layers)
        chosen = inputs.get("vision_feature_layer")
        chosen = config.vision_feature_layer if chosen is None else chosen
        chosen = [layer % (last + 1) for layer in ([chosen] if isinstance(chosen, int) else chosen)]
        # State i goes into layer i, as in transformers' hidden_states, and state `last` comes out of the last layer.
        states: dict[Any, Any] = {i: layers[i - 1] if i else tower.embeddings for i in {*chosen, last}}
        attention = layers[-1].self_attn
        projections = {"queries": attention.q_proj, "keys": attention.k_proj} if self.parts else {}
        # Where hooks or another forward(), but accelerate's, may change what comes out of the tower, that is taken.
        changed = tower._forward_hooks or ("forward" in vars(tower) and not hasattr(tower, "_hf_hook"))
        # SigLIP leaves states channels first, and each layer copies them: 67 ms, or 52 in rows (performance/vision.md).
        # On a CPU half precision is rounded otherwise then: not where the bits must be the model's own.
        in_rows = tower.embeddings.register_forward_hook(
            lambda *call: call[-1] if self.in_one_call else call[-1].contiguous()
        )
        with recorded(states | projections) as outputs, in_rows:
            output = tower(pixels, output_hidden_states=True) if changed else tower(pixels)
        outputs |= dict(enumerate(output.hidden_states)) if changed else {}
        selected = outputs[last] if chosen == [last] else torch.cat([outputs[layer] for layer in chosen], dim=-1)
        strategy = inputs.get("vision_feature_select_strategy") or config.vision_feature_select_strategy
        if strategy == "default":
            selected = selected[:, 1:]
        parts = {"features": self.pool(core.multi_modal_projector(selected))}
        with full_precision(pixels.device):
            of_patches: dict[str, Tensor] = {}
            if self.parts:
                projected = outputs["queries"], outputs["keys"]
                of_patches = from_attention(self.parts, *projected, attention.num_heads, attention.head_dim**-0.5)
            if self.head is not None:
                normed, weights = self.head.attention(outputs[last])
                if self.head_saliency:
                    of_patches["saliency"] = weights.mean(1)
                if self.vectors:
                    parts |= dict.fromkeys(self.vectors, pooled(self.head, normed, weights))
            for name, values in of_patches.items():  # (F, P), or (F, P, width)
                tokens = self.pool(values.flatten(2) if values.dim() > 2 else values[..., None])
                parts[name] = tokens.view(*tokens.shape[:2], *values.shape[2:])
        return parts

    def pool(self, patches: Tensor) -> Tensor:
        """Tokens (F, L, D) of patches (F, P, D), to the bit as the model's apply_pooling() gives them."""
        # Without its copy to channels first: 1.9 ms for 32 frames on an H100, not 48 (results/performance/vision.md).
        side = math.isqrt(patches.shape[1])
        picture = patches.view(len(patches), side, side, patches.shape[2]).permute(0, 3, 1, 2)
        tokens = nn.functional.interpolate(picture, size=[(side + 1) // 2] * 2, mode="bilinear")
        return tokens.permute(0, 2, 3, 1).flatten(1, 2)

    def image_features(self, inputs: Mapping[str, Any]) -> Tensor:
        options = {name: value for name, value in inputs.items() if name in IMAGE_OPTIONS}
        images = self.core.get_image_features(inputs["pixel_values"], return_dict=True, **options)
        return torch.cat(images.pooler_output)

    def lay_out(self, video: PlacedVideo, pruned: Pruned) -> Edit:
        newline = weight(self.core, "image_newline")[None].to(pruned.features.device)  # not to the dtype of an autocast
        columns = torch.cat((video.columns[pruned.indices.to(video.columns.device)], video.columns[-1:]))
        visual = torch.arange(len(columns), device=columns.device) < len(pruned.indices)
        return Edit(video.row, video.columns, columns, torch.cat((pruned.features, newline)), visual)


FAMILY = LlavaOnevision
