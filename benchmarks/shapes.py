"""The model families at their published sizes with random weights, and prompts for them.

    shape = SHAPES["llava_onevision"]
    model = build(shape, device, dtype, layers=None, toy=False)
    inputs, tokens = shape.prompt(model.config, frames=32, dtype=dtype)

Answers mean nothing with random weights; shapes, token counts, times and memory do not depend on them. `toy` shapes
have the same structure and small widths: for trying a script, not for numbers.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from clips import packed, video
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tango import Tango
from tango.models.llava_video import LlavaVideoConfig, LlavaVideoForConditionalGeneration

WORDS, IMAGE, VIDEO, START, END = (100, 400), 1000, 1001, 1002, 1003  # WORDS: from where to where ids are text
QUESTION = 20  # tokens of text before and after the video
QWEN2_7B: dict[str, Any] = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768, "tie_word_embeddings": False,
}  # fmt: skip
QWEN3_8B: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 262144,
    "tie_word_embeddings": False,
}  # fmt: skip
SIGLIP: dict[str, Any] = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16,
    "patch_size": 14, "image_size": 384, "vision_use_head": False,
}  # fmt: skip
QWEN2_5_TOWER: dict[str, Any] = {
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
    "tokens_per_second": 2,
}  # fmt: skip
QWEN3_TOWER: dict[str, Any] = {
    "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 4096,
    "deepstack_visual_indexes": [8, 16, 24],
}  # fmt: skip
QWEN_GRID = (24, 42)  # patches of a frame: 252 tokens, 336 x 588 pixels for Qwen2.5-VL and 384 x 672 for Qwen3-VL

TOY_TEXT: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 1100,
}  # fmt: skip
TOY_SIGLIP: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 196,
}  # fmt: skip
TOY_TOWER: dict[str, Any] = {
    "depth": 2, "hidden_size": 128, "intermediate_size": 512, "num_heads": 4, "out_hidden_size": 256,
    "deepstack_visual_indexes": [0],
}  # fmt: skip
TOY_GRID = (16, 18)


@dataclass(frozen=True)
class Shape:
    """One family at its published size; settings: of Tango, beyond the retention ratio."""

    name: str
    model_class: Any
    frames: int
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def llava(self) -> bool:
        return issubclass(self.model_class, LlavaOnevisionForConditionalGeneration)

    def config(self, layers: int | None = None, toy: bool = False) -> Any:
        """The configuration; layers: of tower and language model, where these are not to be all."""

        def sized(whole: dict[str, Any], small: dict[str, Any], key: str) -> dict[str, Any]:
            own = {name: small.get(name, value) if toy else value for name, value in whole.items()}
            return own if layers is None else own | {key: layers}

        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e6}
        if self.llava:
            video = issubclass(self.model_class, LlavaVideoForConditionalGeneration)
            return (LlavaVideoConfig if video else LlavaOnevisionConfig)(
                vision_config=SiglipVisionConfig(**sized(SIGLIP, TOY_SIGLIP, "num_hidden_layers")),
                text_config=Qwen2Config(**sized(QWEN2_7B, TOY_TEXT, "num_hidden_layers"), rope_parameters=rope),
                video_token_index=VIDEO,
                image_token_index=IMAGE,
                vision_feature_layer=-1,
                vision_feature_select_strategy="full",
                tie_word_embeddings=False,
            )
        if self.model_class is Qwen2_5_VLForConditionalGeneration:
            rope["mrope_section"] = [8, 12, 12] if toy else [16, 24, 24]
            text, tower, config_class = QWEN2_7B, QWEN2_5_TOWER, Qwen2_5_VLConfig
        else:
            rope |= {"rope_theta": 5e6, "mrope_interleaved": True}
            rope["mrope_section"] = [12, 10, 10] if toy else [24, 20, 20]
            text, tower, config_class = QWEN3_8B, QWEN3_TOWER, Qwen3VLConfig
        vision = sized(tower, TOY_TOWER, "depth")
        if layers is not None and "deepstack_visual_indexes" in vision:
            vision["deepstack_visual_indexes"] = [0]
        return config_class(
            text_config=sized(text, TOY_TEXT, "num_hidden_layers") | {"rope_parameters": rope},
            vision_config=vision,
            tie_word_embeddings=False,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=START,
            vision_end_token_id=END,
        )

    def grid(self, config: Any) -> tuple[int, int]:
        """Patches of a frame, rows and columns."""
        if self.llava:  # a SigLIP tower
            side = config.vision_config.image_size // config.vision_config.patch_size
            return side, side
        return QWEN_GRID if config.vision_config.hidden_size > TOY_TOWER["hidden_size"] else TOY_GRID

    def prompt(self, config: Any, frames: int, dtype: torch.dtype, videos: int = 1) -> tuple[dict[str, Tensor], int]:
        """Inputs (on the CPU) of a batch of prompts with one made-up video each, and the visual tokens of a video."""
        generator = torch.Generator().manual_seed(0)
        question = torch.randint(*WORDS, (2, QUESTION), generator=generator).tolist()
        vision, (rows, columns) = config.vision_config, self.grid(config)
        if self.llava:
            size = vision.image_size
            pixels = torch.stack([video(frames, size, size, seed, dtype) for seed in range(videos)])
            if issubclass(self.model_class, LlavaVideoForConditionalGeneration):
                tokens, places = frames * (rows // 2) ** 2, frames * (rows // 2) * (rows // 2 + 1)
            else:
                tokens = frames * (-(-rows // 2)) ** 2
                places = tokens + 1
            ids = torch.tensor([[*question[0], *[config.video_token_id] * places, *question[1]]] * videos)
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": pixels}, tokens
        patch = vision.patch_size
        parts = [
            packed(video(frames, rows * patch, columns * patch, seed, dtype), patch, vision.spatial_merge_size)
            for seed in range(videos)
        ]
        count, height, width = parts[0][1]
        length = height * width // vision.spatial_merge_size**2
        if self.model_class is Qwen3VLForConditionalGeneration:
            middle = [token for frame in range(count) for token in (frame % WORDS[1], START, *[VIDEO] * length, END)]
        else:
            middle = [START, *[VIDEO] * (count * length), END]
        ids = torch.tensor([[*question[0], *middle, *question[1]]] * videos)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": 2 * (ids == VIDEO).int(),
            "pixel_values_videos": torch.cat([part for part, _ in parts]),
            "video_grid_thw": torch.tensor([grid for _, grid in parts]),
        }, count * length


SHAPES = {
    "llava_onevision": Shape("LLaVA-OneVision-7B", LlavaOnevisionForConditionalGeneration, 32),
    "llava_video": Shape("LLaVA-Video-7B", LlavaVideoForConditionalGeneration, 64),
    "qwen2_5_vl": Shape("Qwen2.5-VL-7B", Qwen2_5_VLForConditionalGeneration, 64),
    "qwen3_vl": Shape("Qwen3-VL-8B", Qwen3VLForConditionalGeneration, 64),
}


def parameters(shape: Shape) -> float:
    """Parameters of the whole model in billions, built without memory."""
    with torch.device("meta"):
        return sum(p.numel() for p in shape.model_class(shape.config()).parameters()) / 1e9


def build(
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype,
    layers: int | None = None,
    toy: bool = False,
    config: Any = None,
) -> Any:
    """A model of random weights, with SigLIP's pooling head beside it (in a folder that lives as long as the model).

    config: the configuration, if it is not to be shape.config(layers, toy).
    """
    torch.manual_seed(0)
    with torch.device(device):
        model = shape.model_class._from_config(config or shape.config(layers, toy), dtype=dtype).eval()
    model.generation_config.eos_token_id = None  # every answer is as long as it may be
    model.generation_config.pad_token_id = 0
    if shape.llava:
        model.pooling_head_folder = folder = tempfile.TemporaryDirectory()
        own = model.config.vision_config.to_dict() | {"vision_use_head": True, "num_hidden_layers": 1}
        tensors = SiglipVisionModel(SiglipVisionConfig(**own)).state_dict().items()
        head = {f"vision_model.{n}": t.contiguous() for n, t in tensors if n.startswith(("head.", "post_layernorm."))}
        save_file(head, Path(folder.name) / "pooling_head.safetensors")
        model.config._name_or_path = folder.name
    return model


def at_layers(settings: dict[str, Any], config: Any) -> dict[str, Any]:
    """Settings for a model of fewer layers: a layer beyond its last becomes the last."""
    if "pruned_layer" not in settings:
        return settings
    return settings | {"pruned_layer": min(settings["pruned_layer"], config.text_config.num_hidden_layers - 1)}


def checked_prompt(shape: Shape, model: Any, frames: int, dtype: torch.dtype) -> tuple[dict[str, Any], int]:
    """A prompt on the model's device, and its video tokens; SystemExit unless logits at ratio 1 are the model's own."""
    inputs, tokens = shape.prompt(model.config, frames, dtype)
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    plain = model(**inputs, logits_to_keep=1).logits
    with Tango(retention_ratio=1.0, positions="transformers")(model):
        kept = model(**inputs, logits_to_keep=1).logits
    if not torch.isfinite(plain).all() or not torch.equal(plain, kept):
        raise SystemExit(f"{shape.name}: at ratio 1 the logits differ by {(plain - kept).abs().max().item():.2e}")
    return inputs, tokens
