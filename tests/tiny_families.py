"""Checkpoints of a few thousand random weights of InternVL, VideoLLaMA3, Qwen3.5 and Qwen3-Omni, with processors."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tiny import TEMPLATE
from tokenizers import pre_tokenizers
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    InternVLVisionConfig,
    Qwen2Config,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3Config,
    Qwen3OmniMoeProcessor,
    Qwen3OmniMoeThinkerConfig,
    Qwen3OmniMoeThinkerForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    VideoLlama3Config,
    VideoLlama3ForConditionalGeneration,
    VideoLlama3Processor,
    VideoLlama3VideoProcessor,
    VideoLlama3VisionConfig,
    WhisperFeatureExtractor,
)

SIZE, PATCH, TOKENS = 24, 4, 9  # 3 x 3 tokens a frame
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>",
           "<|vision_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>", "<|audio_pad|>",
           "<|audio_start|>", "<|audio_end|>"]  # fmt: skip
IDS = {name: index for index, name in enumerate(SPECIAL)}
TEXT = {"vocab_size": len(SPECIAL) + 256, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.2}  # fmt: skip
VISION = {"intermediate_size": 48, "initializer_range": 0.2}
QWEN_SIZES = {"patch_size": PATCH, "merge_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def save(kind: str, folder: Path, head: int = 16) -> None:
    """A checkpoint of kind internvl, video_llama_3, qwen3_5 or qwen3_omni, with heads so wide, two in each layer."""
    torch.manual_seed(0)
    made = {"internvl": internvl, "video_llama_3": video_llama_3, "qwen3_5": qwen3_5, "qwen3_omni": qwen3_omni}
    model, processor = made[kind](head)
    model.generation_config.eos_token_id = IDS["<|im_end|>"]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def tokenizer(**named: str) -> Any:
    names = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet())
    return Qwen2Tokenizer(
        vocab={name: index for index, name in enumerate(names)}, merges=[], eos_token="<|im_end|>",
        pad_token="<|endoftext|>", additional_special_tokens=[SPECIAL[1], *SPECIAL[3:]], **named,
    )  # fmt: skip


def visual(text: str) -> str:
    return TEMPLATE.replace("<{{ p['type'] }}>\n", text)


def internvl(head: int = 16) -> tuple[Any, Any]:
    width = {"hidden_size": 2 * head}
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(
            image_size=[SIZE, SIZE], patch_size=[PATCH, PATCH], num_hidden_layers=2, num_attention_heads=2,
            **VISION | width,
        ),
        text_config=Qwen3Config(**TEXT | width, head_dim=head),
        image_token_id=IDS["<IMG_CONTEXT>"], image_seq_length=TOKENS, tie_word_embeddings=False,
    )  # fmt: skip
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
             "video_token": "<video>"}  # fmt: skip
    size = {"height": SIZE, "width": SIZE}
    own = tokenizer(extra_special_tokens=named)
    shown = visual("{{ '<video>' if p['type'] == 'video' else '<IMG_CONTEXT>' }}\n")
    images = transformers.GotOcr2ImageProcessor(size=size, crop_to_patches=True)
    processor = InternVLProcessor(images, own, InternVLVideoProcessor(size=size), image_seq_length=TOKENS,
                                  chat_template=shown)  # fmt: skip
    return InternVLForConditionalGeneration(config), processor


def video_llama_3(head: int = 16) -> tuple[Any, Any]:
    width = {"hidden_size": 2 * head}
    config = VideoLlama3Config(
        vision_config=VideoLlama3VisionConfig(
            patch_size=PATCH, num_hidden_layers=2, num_attention_heads=2, **VISION | width
        ),
        text_config=Qwen2Config(**TEXT | width),
        image_token_id=IDS["<|image_pad|>"], video_token_id=IDS["<|video_pad|>"], tie_word_embeddings=False,
    )  # fmt: skip
    images = transformers.VideoLlama3ImageProcessor(
        **QWEN_SIZES, size=dict.fromkeys(("shortest_edge", "longest_edge"), SIZE**2)
    )
    videos = VideoLlama3VideoProcessor(**QWEN_SIZES, size={"shortest_edge": SIZE**2, "longest_edge": 8 * SIZE**2})
    processor = VideoLlama3Processor(images, tokenizer(), videos, chat_template=visual("<|{{ p['type'] }}_pad|>\n"))
    return VideoLlama3ForConditionalGeneration(config), processor


def qwen3_5(head: int = 16) -> tuple[Any, Any]:
    width = {"hidden_size": 2 * head}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [head // 8, head // 16, head // 16],
            "mrope_interleaved": True, "partial_rotary_factor": 0.5}  # fmt: skip
    wide = 8 if head < 32 else 128  # as published: vLLM's kernel for CPUs takes no other
    linear = {"layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": wide,
              "linear_value_head_dim": wide, "linear_num_key_heads": 2, "linear_num_value_heads": 4}  # fmt: skip
    config = Qwen3_5Config(
        text_config=TEXT | width | linear | {"head_dim": head, "rope_parameters": rope},
        vision_config=VISION | width | {
            "depth": 2, "num_heads": 2, "patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "out_hidden_size": 2 * head, "num_position_embeddings": 36,
        },
        image_token_id=IDS["<|image_pad|>"], video_token_id=IDS["<|video_pad|>"],
        vision_start_token_id=IDS["<|vision_start|>"], vision_end_token_id=IDS["<|vision_end|>"],
    )  # fmt: skip
    size = dict.fromkeys(("shortest_edge", "longest_edge"), SIZE**2)
    images = Qwen2VLImageProcessor(**QWEN_SIZES, temporal_patch_size=2, size=size)
    whole = dict.fromkeys(size, 8 * SIZE**2)
    videos = Qwen3VLVideoProcessor(**QWEN_SIZES, temporal_patch_size=2, size=whole)
    shown = visual("<|vision_start|><|{{ p['type'] }}_pad|><|vision_end|>")
    return Qwen3_5ForConditionalGeneration(config), Qwen3VLProcessor(images, tokenizer(), videos, chat_template=shown)


def qwen3_omni(head: int = 16) -> tuple[Any, Any]:
    """Its processor makes frames of at least 128 x 1024 pixels, so patches are large."""
    width = {"hidden_size": 2 * head}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [head // 4, head // 8, head // 8],
            "mrope_interleaved": True}  # fmt: skip
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    config = Qwen3OmniMoeThinkerConfig(
        text_config=TEXT | width | experts | {"rope_parameters": rope},
        vision_config=VISION | width | {
            "depth": 2, "num_heads": 2, "patch_size": 64, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "out_hidden_size": 2 * head, "num_position_embeddings": 36, "deepstack_visual_indexes": [0],
        },
        audio_config={"num_mel_bins": 8, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
                      "d_model": 16, "downsample_hidden_size": 4, "output_dim": 2 * head, "max_source_positions": 64},
        image_token_id=IDS["<|image_pad|>"], video_token_id=IDS["<|video_pad|>"], audio_token_id=IDS["<|audio_pad|>"],
        vision_start_token_id=IDS["<|vision_start|>"], vision_end_token_id=IDS["<|vision_end|>"],
        audio_start_token_id=IDS["<|audio_start|>"], position_id_per_seconds=13,
    )  # fmt: skip
    named = {f"{kind}_token": f"<|{kind}_pad|>" for kind in ("image", "video", "audio")}
    named |= {f"{kind}_{end}_token": f"<|{kind}_{name}|>" for kind in ("vision", "audio")
              for end, name in (("bos", "start"), ("eos", "end"))}  # fmt: skip
    sizes = QWEN_SIZES | {"patch_size": 64, "temporal_patch_size": 2}
    size = {"shortest_edge": 384**2, "longest_edge": 384**2}
    processor = Qwen3OmniMoeProcessor(
        Qwen2VLImageProcessor(**sizes, size=size), Qwen2VLVideoProcessor(**sizes, size=size),
        WhisperFeatureExtractor(feature_size=8), tokenizer(extra_special_tokens=named),
        chat_template=visual("<|vision_start|><|{{ p['type'] }}_pad|><|vision_end|>"),
    )  # fmt: skip
    return Qwen3OmniMoeThinkerForConditionalGeneration(config), processor
