"""Makes a LLaVA-OneVision of a few thousand random weights, complete with its processor, and a tiny benchmark."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

REPOSITORY = Path(__file__).parents[1]
SIZE, PATCH = 32, 4  # 8 x 8 patches, 4 x 4 tokens a frame
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {% for p in m['content'] %}"
    "{% if p['type'] == 'text' %}{{ p['text'] }}{% else %}<{{ p['type'] }}>\n{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_checkpoint(folder: Path) -> None:
    """Random weights, a byte tokenizer, the chat template, the processor, and SigLIP's pooling head."""
    torch.manual_seed(0)
    names = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(
        vocab={name: i for i, name in enumerate(names)},
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<image>", "<video>"],
    )
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": SIZE, "patch_size": PATCH}
    text = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**vision, vision_use_head=False),
        text_config=text,
        image_token_index=names.index("<image>"),
        video_token_index=names.index("<video>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=[[SIZE, SIZE]],
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    with torch.no_grad():  # large enough that what the model sees changes what it says
        for parameter in model.parameters():
            parameter.mul_(4)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    common = {"size": {"height": SIZE, "width": SIZE}}
    LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(image_grid_pinpoints=[[SIZE, SIZE]], **common),
        video_processor=LlavaOnevisionVideoProcessor(**common),
        tokenizer=tokenizer,
        num_image_tokens=(SIZE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    tower = SiglipVisionModel(SiglipVisionConfig(**vision)).state_dict()
    tower = {
        f"vision_model.{name.removeprefix('vision_model.')}": tensor.contiguous() for name, tensor in tower.items()
    }
    head = {k: v for k, v in tower.items() if ".head." in k or ".post_layernorm." in k}
    save_file(head, folder / "pooling_head.safetensors")


def save_qwen(
    folder: Path,
    new: bool = False,
    head: int = 16,
    scale: float = 1,
    pixels: int = 24 * 24,
    video: int = 1,
    widths: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> None:
    """A Qwen2.5-VL, or `new` a Qwen3-VL, of random weights: 24 x 24 pixels are 3 x 3 tokens, two frames one.

    head: width of a head, of which there are two. scale: of all weights; large ones make answers depend on the video.
    pixels: of an image or a frame; with `new` a whole video has `video` times as many. widths: by "text" and "vision"
    what of their configurations is to be otherwise.
    """
    torch.manual_seed(0)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>"]
    special += ["<|vision_start|>", "<|vision_end|>"]
    names = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(
        vocab={name: i for i, name in enumerate(names)},
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special[1:2] + special[3:],
    )
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 2 * head, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": head,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                            "mrope_section": [head // 4, head // 8, head // 8]}
        | ({"mrope_interleaved": True} if new else {}),
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 2 * head, "intermediate_size": 48, "num_heads": 2, "patch_size": PATCH,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 2 * head,
    }  # fmt: skip
    if new:
        vision |= {"num_position_embeddings": 36, "deepstack_visual_indexes": [0]}
    else:
        vision |= {"window_size": 4 * PATCH, "fullatt_block_indexes": [1], "tokens_per_second": 2}
        del text["head_dim"]
    text |= widths.get("text", {})
    vision |= widths.get("vision", {})
    ids = {"image_token_id": 3, "video_token_id": 4, "vision_start_token_id": 5, "vision_end_token_id": 6}
    config = (Qwen3VLConfig if new else Qwen2_5_VLConfig)(text_config=text, vision_config=vision, **ids)
    model = (Qwen3VLForConditionalGeneration if new else Qwen2_5_VLForConditionalGeneration)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(scale)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    sizes = {"patch_size": vision["patch_size"], "temporal_patch_size": 2, "merge_size": 2}
    sizes["size"] = {"shortest_edge": pixels, "longest_edge": pixels}
    if new:  # as in published checkpoints; vLLM has one of them for both processors
        sizes |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    template = TEMPLATE.replace("<{{ p['type'] }}>\n", "<|vision_start|><|{{ p['type'] }}_pad|><|vision_end|>")
    whole = dict.fromkeys(sizes["size"], pixels * video)
    (Qwen3VLProcessor if new else Qwen2_5_VLProcessor)(
        image_processor=Qwen2VLImageProcessor(**sizes),
        video_processor=(Qwen3VLVideoProcessor if new else Qwen2VLVideoProcessor)(**sizes | {"size": whole}),
        tokenizer=tokenizer,
        chat_template=template,
    ).save_pretrained(folder)


def write_video(path: Path, frames: int = 12, rate: int = 4, seed: int = 0) -> None:
    """A square that crosses a textured background."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(60, 160, (SIZE, SIZE, 3), dtype=np.uint8)
    import av  # models alone do without it: benchmarks/correctness.py, where only torch and transformers are

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "12", "threads": "1", "g": "5"}
        for i in range(frames):
            frame = ground.copy()
            frame[8:16, 2 * i : 2 * i + 8] = 250
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def write_benchmark(folder: Path, videos: int = 2, each: int = 2) -> None:
    """Questions about tiny videos in MotionQA's format, and a task of lmms-eval that reads them."""
    (folder / "videos").mkdir(parents=True)
    rows = []
    for video in range(videos):
        write_video(folder / "videos" / f"{video}.mp4", seed=video)
        for n in range(each):
            row = {"id": f"{video}-{n}", "video": f"videos/{video}.mp4", "kind": ("colour", "count")[n % 2]}
            rows.append(
                row
                | {
                    "question": f"Which {n}?",
                    "options": ["red", "blue", "one", "two"],
                    "answer": "ABCD"[(video + n) % 4],
                }
            )
    (folder / "test.json").write_text(json.dumps(rows))
    tasks = folder / "tasks"
    tasks.mkdir()
    task = REPOSITORY / "lmms-eval/tango_lmms_eval/tasks/motionqa/motionqa.yaml"
    (tasks / "motionqa_tiny.yaml").write_text(
        f"include: {task}\ntask: motionqa_tiny\ndataset_kwargs: {{data_files: {{test: {folder / 'test.json'}}}}}\n"
        f"lmms_eval_specific_kwargs: {{default: {{video_root: {folder}}}}}\ngeneration_kwargs: {{max_new_tokens: 6}}\n"
    )
