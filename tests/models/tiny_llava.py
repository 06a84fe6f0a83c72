"""Small random-weight models of the true architecture, and prompts for them.

A frame is 40 x 40 pixels in 5 x 5 patches of 8, pooled to 3 x 3 tokens, so that a prompt of some videos stays short and
the pooling has an uneven edge. The pooling head lies beside the model, as it does beside a LLaVA checkpoint.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tango.pruners import REGISTRY, Pruner

PAD, IMAGE, VIDEO, VOCABULARY = 0, 90, 91, 96
GRID = (3, 3)
TOKENS = 9  # a frame


def build_model(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    seed: int = 0,
    model_class: type[LlavaOnevisionForConditionalGeneration] = LlavaOnevisionForConditionalGeneration,
    layers: int = 2,
    **vision: Any,
) -> LlavaOnevisionForConditionalGeneration:
    """A model whose pooling head is in `folder`, which it takes for the folder it was loaded from."""
    settings = {"image_size": 40, "patch_size": 8, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                "num_attention_heads": 4, "vision_use_head": False}  # fmt: skip
    text = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers,
            "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.4}  # fmt: skip
    size = (settings | vision)["image_size"]
    config = model_class.config_class(
        vision_config=SiglipVisionConfig(**(settings | vision)),
        text_config=Qwen2Config(**text),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_grid_pinpoints=[[size, size], [size, 2 * size]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model = random_model(model_class, config, "vision_tower", folder, attention, seed)
    torch.manual_seed(seed + 1)
    head = make_head(config.vision_config)
    save_file(head, folder / "pooling_head.safetensors")
    return model.to(dtype).eval()


def random_model(
    model_class: Any, config: Any, tower: str, folder: Path, attention: str, seed: int, fresh: Sequence[str] = ("bias",)
) -> Any:
    """A model of any family. fresh: parts of names in its tower whose weights start as zeros: mistakes are to show."""
    torch.manual_seed(seed)
    model = model_class._from_config(config, attn_implementation=attention)
    owner = model if hasattr(model, tower) else model.model  # Qwen3-Omni's own before transformers 5.22
    for name, parameter in getattr(owner, tower).named_parameters():
        if any(part in name for part in fresh):
            torch.nn.init.normal_(parameter, std=0.5)
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = 1
    model.config._name_or_path = str(folder)
    return model


def make_head(config: SiglipVisionConfig) -> dict[str, Tensor]:
    """A random post_layernorm and pooling head, under the names SigLIP checkpoints have."""
    settings = config.to_dict() | {"vision_use_head": True, "num_hidden_layers": 1}
    tower = SiglipVisionModel(SiglipVisionConfig(**settings))
    return {
        f"vision_model.{name}": (value + 0.3 * torch.randn_like(value)).contiguous()
        for name, value in tower.state_dict().items()
        if name.startswith(("head.", "post_layernorm."))
    }


def video(frames: int = 4) -> list[int]:
    """Placeholders of one video."""
    return [VIDEO] * (frames * TOKENS + 1)


def prompt(*rows: Sequence[int], side: str = "left") -> dict[str, Tensor]:
    """input_ids and attention_mask of rows, padded to one length."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        where = slice(width - len(row), None) if side == "left" else slice(None, len(row))
        ids[index, where] = torch.tensor(row)
        mask[index, where] = 1
    return {"input_ids": ids, "attention_mask": mask}


def pixels(
    videos: int = 1, frames: int = 4, seed: int = 0, size: int = 40, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Videos (V, F, 3, size, size) of a still background with something that moves, and a cut in the middle."""
    generator = torch.Generator().manual_seed(seed)
    scenes = torch.randn(videos, 2, 3, size, size, generator=generator)
    out = scenes.repeat_interleave(-(-frames // 2), 1)[:, :frames].clone()
    for frame in range(frames):
        left = 8 * frame % size
        out[:, frame, :, 8:24, left : left + 8] = torch.randn(videos, 3, 16, 8, generator=generator)
    return out.to(dtype)


def make_pruner(method: str, ratio: float, **settings: Any) -> Pruner:
    """A method whose positions are those of transformers, as these tests compare with models that nothing is on."""
    settings = {"positions": "transformers"} | settings
    if method == "fastv":  # the first of two layers sees everything: the ratio is that of the second
        ratio, settings = (1 + ratio) / 2, {"pruned_layer": 1} | settings
    if method == "prunevid":  # by default it leaves the few tokens of these frames as they are
        settings = {"merge_above": 2} | settings
    return REGISTRY[method](retention_ratio=ratio, **settings)
