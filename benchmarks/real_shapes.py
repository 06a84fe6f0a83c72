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
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from shapes import SHAPES as FAMILIES  # noqa: E402
from shapes import Shape, at_layers, build, parameters  # noqa: E402

from tango import Tango, __version__  # noqa: E402

INSIDE = replace(FAMILIES["llava_video"], name="LLaVA-Video-7B, pruned inside", settings={"pruned_layer": 18})
SHAPES = (FAMILIES["llava_onevision"], FAMILIES["llava_video"], INSIDE, FAMILIES["qwen2_5_vl"], FAMILIES["qwen3_vl"])


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
    model = build(shape, device, dtype, args.layers)
    layers = model.config.text_config.num_hidden_layers
    settings = at_layers(shape.settings, model.config)
    inputs, tokens = shape.prompt(model.config, frames, dtype)
    inputs = {name: value.to(device) for name, value in inputs.items()}
    plain, unpruned = seconds(device, lambda: model(**inputs, logits_to_keep=1).logits)
    with Tango(retention_ratio=1.0, positions="transformers")(model):
        kept = model(**inputs, logits_to_keep=1).logits
    if not torch.isfinite(plain).all() or not torch.equal(plain, kept):
        raise SystemExit(f"{shape.name}: at ratio 1 the logits differ by {(plain - kept).abs().max().item()}")
    del kept
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with Tango(retention_ratio=args.ratio, **settings)(model) as session:
        pruned, spent = seconds(device, lambda: model(**inputs, logits_to_keep=1).logits)
        answer = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
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
