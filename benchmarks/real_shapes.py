"""Do the 7B models run, at their true shapes? Random weights, one made-up prompt through each family.

    python3 benchmarks/real_shapes.py                                   # on a GPU: whole models, 32 / 64 frames
    python3 benchmarks/real_shapes.py --device cpu --layers 2 --frames 8  # a few layers of full width, about 12 GB

For each family: the whole model is built on the meta device and its parameters are counted; then a model is filled with
random weights and must give, attached at a retention ratio of 1, the logits it gives unattached; then Tango at --ratio
prunes the prompt and four tokens are generated. With random weights answers mean nothing: what is shown is that
shapes, grids, budgets and caches fit. Seconds (on a GPU only) are of a single call, for orientation.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
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

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tango import Tango, __version__  # noqa: E402
from tango.models.llava_video import LlavaVideoConfig, LlavaVideoForConditionalGeneration  # noqa: E402

VIDEO = 151656  # any id inside the vocabulary would do for the two LLaVA
START, END = 151652, 151653
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
QWEN_GRID = (24, 42)  # patches of a frame: 252 tokens, 336 x 588 pixels for Qwen2.5-VL and 384 x 672 for Qwen3-VL


@dataclass
class Shape:
    """One family at its published size: classes, configuration by number of layers (None: all), frames, prompt."""

    name: str
    model_class: Any
    frames: int
    settings: dict[str, Any]

    def config(self, layers: int | None) -> Any:
        def fewer(config: dict[str, Any], key: str) -> dict[str, Any]:
            return config | ({} if layers is None else {key: layers})

        rope = {"rope_type": "default", "rope_theta": 1e6}
        if self.model_class is LlavaOnevisionForConditionalGeneration or "llava" in self.name.lower():
            config_class = LlavaVideoConfig if "Video" in self.name else LlavaOnevisionConfig
            return config_class(
                vision_config=SiglipVisionConfig(**fewer(SIGLIP, "num_hidden_layers")),
                text_config=Qwen2Config(**fewer(QWEN2_7B, "num_hidden_layers"), rope_parameters=rope),
                video_token_index=VIDEO,
                image_token_index=VIDEO - 1,
                vision_feature_layer=-1,
                vision_feature_select_strategy="full",
                tie_word_embeddings=False,
            )
        if self.model_class is Qwen2_5_VLForConditionalGeneration:
            vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
                      "out_hidden_size": 3584, "tokens_per_second": 2}  # fmt: skip
            text = fewer(QWEN2_7B, "num_hidden_layers") | {"rope_parameters": rope | {"mrope_section": [16, 24, 24]}}
            config_class = Qwen2_5_VLConfig
        else:
            vision = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16,
                      "out_hidden_size": 4096, "deepstack_visual_indexes": [8, 16, 24]}  # fmt: skip
            if layers is not None:
                vision["deepstack_visual_indexes"] = [0]
            rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
            text = fewer(QWEN3_8B, "num_hidden_layers") | {"rope_parameters": rope}
            config_class = Qwen3VLConfig
        ids = {"video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
        return config_class(text_config=text, vision_config=fewer(vision, "depth"), tie_word_embeddings=False, **ids)

    def prompt(self, frames: int, dtype: torch.dtype) -> tuple[dict[str, Tensor], int]:
        """The inputs of one prompt with a still scene in which something moves, and its number of visual tokens."""
        generator = torch.Generator().manual_seed(0)
        question = torch.randint(1000, (20,), generator=generator).tolist()
        if self.name.startswith("LLaVA"):
            pixels = torch.randn(3, 384, 384, generator=generator).expand(1, frames, -1, -1, -1).clone()
            for frame in range(frames):
                left = frame * 37 % 300
                pixels[0, frame, :, 100:180, left : left + 80] = torch.randn(3, 80, 80, generator=generator)
            tokens = frames * (169 if "Video" in self.name else 196)
            places = frames * 13 * 14 if "Video" in self.name else tokens + 1
            ids = torch.tensor([[*question, *[VIDEO] * places, *question]])
            return {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "pixel_values_videos": pixels.to(dtype),
            }, tokens
        count, (height, width) = frames // 2, QWEN_GRID
        patch = 14 if self.model_class is Qwen2_5_VLForConditionalGeneration else 16
        packed = torch.randn(height * width, 6 * patch * patch, generator=generator).expand(count, -1, -1).clone()
        for frame in range(count):
            start = frame * 40 % (height * width - 80)
            packed[frame, start : start + 80] = torch.randn(80, packed.shape[2], generator=generator)
        length = height * width // 4
        span = [START, *[VIDEO] * length, END]
        if self.model_class is Qwen3VLForConditionalGeneration:
            middle = [token for frame in range(count) for token in (100 + frame, *span)]
        else:
            middle = [START, *[VIDEO] * (count * length), END]
        ids = torch.tensor([[*question, *middle, *question]])
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": 2 * (ids == VIDEO).int(),
            "pixel_values_videos": packed.flatten(0, 1).to(dtype),
            "video_grid_thw": torch.tensor([[count, height, width]]),
        }, count * length


SHAPES = (
    Shape("LLaVA-OneVision-7B", LlavaOnevisionForConditionalGeneration, 32, {}),
    Shape("LLaVA-Video-7B", LlavaVideoForConditionalGeneration, 64, {}),
    Shape("LLaVA-Video-7B, pruned inside", LlavaVideoForConditionalGeneration, 64, {"pruned_layer": 18}),
    Shape("Qwen2.5-VL-7B", Qwen2_5_VLForConditionalGeneration, 64, {}),
    Shape("Qwen3-VL-8B", Qwen3VLForConditionalGeneration, 64, {}),
)


def parameters(shape: Shape) -> float:
    """Parameters of the whole model in billions, built without memory."""
    with torch.device("meta"):
        return sum(p.numel() for p in shape.model_class(shape.config(None)).parameters()) / 1e9


def pooling_head(model: Any, folder: Path) -> None:
    """Random weights of SigLIP's pooling head beside the model, where its family looks for them."""
    config = SiglipVisionConfig(
        **(model.config.vision_config.to_dict() | {"vision_use_head": True, "num_hidden_layers": 1})
    )
    tensors = SiglipVisionModel(config).state_dict().items()
    wanted = ("head.", "post_layernorm.")
    save_file({f"vision_model.{n}": t.contiguous() for n, t in tensors if n.startswith(wanted)},
              folder / "pooling_head.safetensors")  # fmt: skip
    model.config._name_or_path = str(folder)


def seconds(device: torch.device, call: Any) -> tuple[Any, float]:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


@torch.no_grad()
def run(shape: Shape, args: argparse.Namespace) -> str:
    """One row of the table; SystemExit where something does not hold."""
    device = torch.device(args.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    frames = args.frames or shape.frames
    torch.manual_seed(0)
    with torch.device(device):
        model = shape.model_class._from_config(shape.config(args.layers), dtype=dtype).eval()
    layers = model.config.text_config.num_hidden_layers
    settings = dict(shape.settings)
    if "pruned_layer" in settings:
        settings["pruned_layer"] = min(settings["pruned_layer"], layers - 1)
    inputs, tokens = shape.prompt(frames, dtype)
    inputs = {name: value.to(device) for name, value in inputs.items()}
    with tempfile.TemporaryDirectory() as folder:
        if "LLaVA" in shape.name:
            pooling_head(model, Path(folder))
        plain, unpruned = seconds(device, lambda: model(**inputs, logits_to_keep=1).logits)
        with Tango(retention_ratio=1.0)(model):
            kept = model(**inputs, logits_to_keep=1).logits
        if not torch.isfinite(plain).all() or not torch.equal(plain, kept):
            raise SystemExit(f"{shape.name}: at ratio 1 the logits differ by {(plain - kept).abs().max().item()}")
        del kept
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with Tango(retention_ratio=args.ratio, **settings)(model) as session:
            pruned, spent = seconds(device, lambda: model(**inputs, logits_to_keep=1).logits)
            answer = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)
    (video,) = session.videos
    new = answer.shape[1] - inputs["input_ids"].shape[1]
    if video.tokens_before != tokens or not torch.isfinite(pruned).all() or new != 4:
        raise SystemExit(f"{shape.name}: {video.tokens_before} tokens before, not {tokens}, or no answer of 4 ({new})")
    share = video.average_retention if video.average_retention is not None else video.tokens_after / tokens
    memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if device.type == "cuda" else ""
    inside = "" if video.tokens_in_llm is None else str(video.tokens_in_llm)
    counts = f"{parameters(shape):.2f} | {layers} | {frames} | {tokens} | {video.tokens_after} | {inside}"
    times = f"{unpruned:.2f} | {spent:.2f}" if device.type == "cuda" else " | "
    return f"| {shape.name} | {counts} | {100 * share:.1f} % | {times} | {memory} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--layers", type=int, help="keep this many layers of tower and language model (default: all)")
    parser.add_argument("--frames", type=int, help="sampled frames (default: 32 for LLaVA-OneVision, else 64)")
    parser.add_argument("--ratio", type=float, default=0.1)
    parser.add_argument("--only", help="families whose name holds this text")
    parser.add_argument("--output", type=Path, help="file of the table (default: none)")
    args = parser.parse_args()
    if args.device == "cpu" and args.layers is None:
        parser.error("whole models want a GPU; on the CPU pass --layers 2")
    machine = torch.cuda.get_device_name() if args.device.startswith("cuda") else f"CPU, {os.cpu_count()} cores"
    lines = [
        "# The true shapes, with random weights",
        "",
        f"- made by: python3 benchmarks/real_shapes.py {' '.join(sys.argv[1:])}",
        f"- machine: {machine}; tango {__version__}, python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
        "- checked: at a retention ratio of 1 the logits are those of the unattached model to the bit; token counts",
        "- parameters are of the whole model; layers are those that ran; seconds are of one prefill on a GPU",
        "",
        "| model | parameters, 10^9 | layers | frames | tokens | kept | at the last layer | average kept "
        "| unpruned, s | Tango, s | peak, GiB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    print("\n".join(lines), flush=True)
    for shape in SHAPES:
        if args.only is None or args.only in shape.name:
            lines.append(run(shape, args))
            print(lines[-1], flush=True)
            gc.collect()
            if args.output:
                args.output.parent.mkdir(parents=True, exist_ok=True)
                args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
