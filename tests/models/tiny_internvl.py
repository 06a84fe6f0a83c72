"""A small InternVL of random weights and the true architecture: tiles of 24 x 24 pixels, 3 x 3 tokens."""

import functools
import inspect
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_llava import IMAGE, VOCABULARY, random_model
from transformers import InternVLConfig, InternVLVisionConfig, Qwen3Config

SIZE, PATCH = 24, 4


class InternVLForConditionalGeneration(transformers.InternVLForConditionalGeneration):  # type: ignore[misc]
    """The class itself, which takes and ignores `video_frames`: tests hand the same arguments to it and to a pruner."""

    @functools.wraps(transformers.InternVLForConditionalGeneration.forward)
    def forward(self, *args: Any, video_frames: Any = None, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)

    signature = inspect.signature(forward)
    added = inspect.Parameter("video_frames", inspect.Parameter.KEYWORD_ONLY, default=None)
    *before, last = signature.parameters.values()
    forward.__signature__ = signature.replace(parameters=[*before, added, last])


def build_model(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    seed: int = 0,
    layers: int = 2,
    **vision: Any,
) -> Any:
    """A model of random weights; `folder` is where it says that it came from."""
    settings = {"image_size": [SIZE, SIZE], "patch_size": [PATCH, PATCH], "hidden_size": 32, "intermediate_size": 48,
                "num_hidden_layers": 2, "num_attention_heads": 4, "attention_bias": True,
                "layer_scale_init_value": 1.0, "initializer_range": 0.2}  # fmt: skip
    text = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.4}  # fmt: skip
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**settings | vision),
        text_config=Qwen3Config(**text),
        image_token_id=IMAGE,
        image_seq_length=9,
        tie_word_embeddings=False,
    )
    fresh = ("bias", "cls_token", "position")
    model = random_model(InternVLForConditionalGeneration, config, "vision_tower", folder, attention, seed, fresh)
    return model.to(dtype).eval()
