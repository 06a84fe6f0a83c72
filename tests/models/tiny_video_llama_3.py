"""A small VideoLLaMA3 of random weights and the true architecture: frames of 24 x 24 pixels, 3 x 3 tokens."""

from pathlib import Path
from typing import Any

import tiny_qwen
import torch
from tiny_llava import IMAGE, VIDEO, VOCABULARY, random_model
from torch import Tensor
from transformers import Qwen2Config, VideoLlama3Config, VideoLlama3ForConditionalGeneration, VideoLlama3VisionConfig

PATCH, MERGE = 4, 2
CHANNELS = 3 * PATCH * PATCH  # numbers in a packed patch


def build_model(
    folder: Path, dtype: torch.dtype = torch.float32, attention: str = "sdpa", seed: int = 0, layers: int = 2
) -> Any:
    """A model of random weights; `folder` is where it says that it came from."""
    vision = {"patch_size": PATCH, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
              "num_attention_heads": 4, "initializer_range": 0.2}  # fmt: skip
    text = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers,
            "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.4}  # fmt: skip
    config = VideoLlama3Config(
        vision_config=VideoLlama3VisionConfig(**vision),
        text_config=Qwen2Config(**text),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        tie_word_embeddings=False,
    )
    model = random_model(VideoLlama3ForConditionalGeneration, config, "vision_model", folder, attention, seed)
    return model.to(dtype).eval()


def video_inputs(*grids: tuple[int, int, int], seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Packed videos of t x h x w patches, as tiny_qwen's, half of each patch's numbers."""
    inputs = tiny_qwen.video_inputs(*grids, seed=seed, dtype=dtype)
    packed = inputs["pixel_values_videos"][:, :CHANNELS]
    return inputs | {"pixel_values_videos": packed, "video_merge_sizes": torch.tensor([MERGE] * len(grids))}


def image_inputs(*grids: tuple[int, int], seed: int = 5, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Packed images of h x w patches."""
    inputs = tiny_qwen.image_inputs(*grids, seed=seed, dtype=dtype)
    packed = inputs["pixel_values"][:, :CHANNELS]
    return inputs | {"pixel_values": packed, "image_merge_sizes": torch.tensor([MERGE] * len(grids))}
