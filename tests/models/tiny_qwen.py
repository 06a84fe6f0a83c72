"""Small random-weight Qwen-VL models of the true architecture, and packed videos for them.

A frame is 24 x 24 pixels in 6 x 6 patches of 4, merged to 3 x 3 tokens; Qwen2.5-VL's windows of 2 x 2 tokens so have an
uneven edge, and its last vision block works in window order.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tiny_llava import random_model
from torch import Tensor
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3OmniMoeThinkerConfig,
    Qwen3OmniMoeThinkerForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

PAD, IMAGE, VIDEO, START, END, VOCABULARY = 0, 90, 91, 92, 93, 96
AUDIO, AUDIO_START, AUDIO_END, MELS, RATE = 94, 95, 89, 8, 13  # of Qwen3-Omni; RATE: positions a second
PATCH, CHANNELS = 4, 3 * 2 * 4 * 4  # pixels along a side; numbers in a packed patch of two sampled frames

CLASSES = {
    "qwen2_5_vl": (Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig),
    "qwen3_vl": (Qwen3VLForConditionalGeneration, Qwen3VLConfig),
    "qwen3_vl_moe": (Qwen3VLMoeForConditionalGeneration, Qwen3VLMoeConfig),
    "qwen3_5": (Qwen3_5ForConditionalGeneration, Qwen3_5Config),
    "qwen3_5_moe": (Qwen3_5MoeForConditionalGeneration, Qwen3_5MoeConfig),
    "qwen3_omni_moe": (Qwen3OmniMoeThinkerForConditionalGeneration, Qwen3OmniMoeThinkerConfig),
}


def build_model(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    seed: int = 0,
    kind: str = "qwen2_5_vl",
    layers: int = 2,
    sections: Sequence[int] = (4, 2, 2),
    **vision: Any,
) -> Any:
    """A model of random weights; `folder` is where it says that it came from."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)}
    text = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers,
            "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.4, "head_dim": 16,
            "rope_parameters": rope}  # fmt: skip
    settings = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": PATCH,
                "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32,
                "initializer_range": 0.2}  # fmt: skip
    if kind == "qwen2_5_vl":
        settings |= {"window_size": 4 * PATCH, "fullatt_block_indexes": [1], "tokens_per_second": 2}
        text |= {"num_attention_heads": 2, "num_key_value_heads": 1}  # heads of 16 there too
        del text["head_dim"]
    else:
        settings |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    if kind.startswith("qwen3_5"):  # every second layer, if not every fourth, is full attention
        text |= {"layer_types": ["linear_attention", "full_attention"] * (layers // 2), "linear_key_head_dim": 8,
                 "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}  # fmt: skip
        rope |= {"partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
        del settings["deepstack_visual_indexes"]
    if kind.endswith("moe"):
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        text |= {"shared_expert_intermediate_size": 16} if kind == "qwen3_5_moe" else {}
        del text["intermediate_size"]
    others: dict[str, Any] = {}
    if kind == "qwen3_omni_moe":
        audio = {"num_mel_bins": MELS, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
                 "d_model": 16, "downsample_hidden_size": 4, "output_dim": 32, "max_source_positions": 64,
                 "n_window": 50, "n_window_infer": 200, "initializer_range": 0.2}  # fmt: skip
        others = {"audio_config": audio, "audio_token_id": AUDIO, "audio_start_token_id": AUDIO_START,
                  "position_id_per_seconds": RATE, "initializer_range": 0.4}  # fmt: skip
        rope["mrope_interleaved"] = True
    model_class, config_class = CLASSES[kind]
    config = config_class(
        text_config=text,
        vision_config=settings | vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        **others,
    )
    return random_model(model_class, config, "visual", folder, attention, seed).to(dtype).eval()


def vision_tower(model: Any) -> Any:
    """Its vision tower; before transformers 5.22 Qwen3-Omni's is the model's own."""
    return getattr(model, "visual", None) or model.model.visual


def sounds(*lengths: int, seed: int = 7, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Sounds of so many frames of a spectrum, 100 a second, for Qwen3-Omni: 13 tokens a second."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    features = torch.randn(len(lengths), MELS, max(lengths), generator=generator) * mask[:, None]
    return {"input_features": features.to(dtype), "feature_attention_mask": mask.long()}


def video_inputs(*grids: tuple[int, int, int], seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Packed videos of t x h x w patches: a still background with patches that change, and a cut in the middle."""
    generator = torch.Generator().manual_seed(seed)
    packed = []
    for frames, height, width in grids:
        patches = height * width
        scenes = torch.randn(2, patches, CHANNELS, generator=generator)
        video = scenes.repeat_interleave(-(-frames // 2), 0)[:frames].clone()
        for frame in range(frames):
            start = 4 * frame % patches
            video[frame, start : start + 8] = torch.randn(8, CHANNELS, generator=generator)[: patches - start]
        packed.append(video.flatten(0, 1))
    return {"pixel_values_videos": torch.cat(packed).to(dtype), "video_grid_thw": torch.tensor(grids)}


def image_inputs(*grids: tuple[int, int], seed: int = 5, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Packed images of h x w patches."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(sum(height * width for height, width in grids), CHANNELS, generator=generator)
    return {"pixel_values": pixels.to(dtype), "image_grid_thw": torch.tensor([(1, *grid) for grid in grids])}
