"""Writes a small model as LLaVA-NeXT checkpoints are stored: their config.json, tensor names, shards and tokenizer."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import LlavaOnevisionForConditionalGeneration, Qwen2Config, Qwen2Tokenizer, SiglipVisionConfig

from tango.models.llava_video import LlavaVideoForConditionalGeneration

TOWER = "model.vision_tower.vision_tower.vision_model."
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = len(SPECIAL) + 256 + 5  # the tokenizer's words, and embeddings to spare as Qwen2 has
IMAGE, VIDEO = VOCABULARY - 5, VOCABULARY - 4  # what <image> and <video> become
SIZE = 40  # pixels, in patches of 8
LAYERS = 3  # of the vision tower that the file names, of which the last is not used


def small_model(
    kind: type[LlavaOnevisionForConditionalGeneration], tied: bool = False, dtype: torch.dtype = torch.float32
) -> LlavaOnevisionForConditionalGeneration:
    """A model of either class with random weights of a dtype; its buffers stay fp32, as from_pretrained() has them."""
    torch.manual_seed(0)
    text = {
        "vocab_size": VOCABULARY, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 1e6, "tie_word_embeddings": tied,
        "initializer_range": 0.3,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": LAYERS - 1, "num_attention_heads": 2,
        "image_size": SIZE, "patch_size": 8, "vision_use_head": False,
    }  # fmt: skip
    config = kind.config_class(
        vision_config=SiglipVisionConfig(**vision),
        text_config=Qwen2Config(**text),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=[[SIZE, SIZE], [SIZE, 2 * SIZE]],
        tie_word_embeddings=tied,
    )
    model = kind(config).eval()
    for parameter in model.model.vision_tower.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def original_name(name: str) -> str:
    """What the `llava` package calls a tensor of the transformers classes."""
    if name.startswith("model.vision_tower."):
        return TOWER + name.removeprefix("model.vision_tower.")
    if name.startswith("model.multi_modal_projector.linear_"):
        number, rest = name.removeprefix("model.multi_modal_projector.linear_").split(".")
        return f"model.mm_projector.{ {'1': 0, '2': 2}[number] }.{rest}"
    return name.replace("model.language_model.", "model.")


def original_tensors(model: LlavaOnevisionForConditionalGeneration) -> dict[str, torch.Tensor]:
    tensors = {original_name(name): value.detach().clone().contiguous() for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    return tensors


def original_config(model: LlavaOnevisionForConditionalGeneration, tower: str) -> dict[str, Any]:
    text: Any = model.config.text_config
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {name: getattr(text, name) for name in (*names, "num_key_value_heads", "rms_norm_eps")} | {
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava",
        "rope_theta": 1e6,
        "rope_scaling": None,
        "sliding_window": 131072,
        "use_sliding_window": False,
        "tie_word_embeddings": model.config.tie_word_embeddings,
        "torch_dtype": str(model.dtype).removeprefix("torch."),
        "bos_token_id": 0,
        "eos_token_id": 2,
        "image_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": [[width, height] for height, width in model.config.image_grid_pinpoints],
        "mm_hidden_size": model.config.vision_config.hidden_size,
        "mm_newline_position": "grid" if isinstance(model, LlavaVideoForConditionalGeneration) else "one_token",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_spatial_pool_mode": "bilinear",
        "mm_use_im_start_end": False,
        "mm_vision_select_layer": -2,
        "mm_vision_tower": tower,
        "use_mm_proj": True,
    }


def write_original(
    folder: Path,
    model: LlavaOnevisionForConditionalGeneration,
    shards: int = 1,
    tensors: dict[str, torch.Tensor] | None = None,
    **config: Any,
) -> None:
    """A checkpoint folder. tensors: to write instead of the model's; config: fields to write otherwise."""
    tower = folder / "tower"
    tower.mkdir(parents=True)
    vision = model.config.vision_config.to_dict() | {"num_hidden_layers": LAYERS, "model_type": "siglip_vision_model"}
    (tower / "config.json").write_text(json.dumps(vision))
    (folder / "config.json").write_text(json.dumps(original_config(model, str(tower)) | config))
    sampling = {"do_sample": True, "temperature": 0.7, "repetition_penalty": 1.05}
    (folder / "generation_config.json").write_text(json.dumps(sampling | {"eos_token_id": [2, 0], "pad_token_id": 0}))
    words = {name: i for i, name in enumerate(SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    Qwen2Tokenizer(vocab=words, merges=[], eos_token="<|im_end|>").save_pretrained(folder)

    tensors = original_tensors(model) if tensors is None else tensors
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    names = sorted(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file({name: tensors[name] for name in names[shard::shards]}, folder / file)
        weight_map |= dict.fromkeys(names[shard::shards], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
