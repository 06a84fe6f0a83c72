"""Trains tango-tiny, the small LLaVA-OneVision that the project ships, from nothing, on made-up videos.

    torchrun --nproc-per-node=2 scripts/train_tiny.py --output checkpoints/tango-tiny --work build/tango-tiny

Two stages. First SigLIP's vision tower with its attention-pooling head (tiny_tower.py). Then the projector and the
Qwen2 language model on MotionQA's training seeds (tiny_language.py), over features of the frozen tower that are
computed once. No token is ever pruned or dropped in training.

With --start the model is a deeper one, grown from a smaller one that is trained already:

    python scripts/train_tiny.py --start checkpoints/tango-tiny --tower-layers 9 --tower-steps 450 --tower-batch 16 \
        --tower-rate 1.5e-3 --warmup 30 --videos 160 --validation-videos 30 --language-steps 0 \
        --output checkpoints/tango-tiny-deep --work build/tango-tiny-deep

Its tower learns to see what the smaller one sees; projector and language model go on from the smaller one's, for
--language-steps, on videos of up to --frames frames.

With --start and --qwen it is a Qwen3-VL of the same size, which starts from the smaller one's weights (tiny_mrope.py):

    python scripts/train_tiny.py --start checkpoints/tango-tiny --qwen --tower-steps 250 --tower-batch 16 \
        --tower-rate 1e-3 --warmup 20 --videos 800 --validation-videos 30 --language-steps 100 --language-rate 1e-3 \
        --save-every 50 --threads 1 --output checkpoints/tango-tiny-qwen --work build/tango-tiny-qwen

Every batch follows from --seed and its step, and --work holds the state, so a run that was stopped goes on where it
was. Needs no network and no GPU. One process works as well; two share the second stage's batches, which on a CPU is
quicker than two threads of one.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from tiny_data import CHAT_TEMPLATE, GRID, IMAGE, VIDEO, make_tokenizer
from tiny_language import train_language
from tiny_mrope import extend, make_processor, qwen, teach_language, teach_tower
from tiny_optimise import workers
from tiny_tower import grow_tower, train_tower
from transformers import (
    AutoTokenizer,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2Tokenizer,
    SiglipModel,
)

from tango.motionqa import scenes


def save_checkpoint(folder: Path, tokenizer: Qwen2Tokenizer, tower: SiglipModel, model: Any) -> None:
    """All that AutoProcessor and from_pretrained need, and the pooling head beside it under SigLIP's tensor names."""
    folder.mkdir(parents=True, exist_ok=True)
    size = {"height": scenes.SIZE, "width": scenes.SIZE}
    common = {"size": size, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(image_grid_pinpoints=[[scenes.SIZE, scenes.SIZE]], **common),
        video_processor=LlavaOnevisionVideoProcessor(**common),
        tokenizer=tokenizer,
        num_image_tokens=GRID * GRID,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        video_token=VIDEO,
    )
    processor.save_pretrained(folder)
    model.save_pretrained(folder)
    head = {
        f"vision_model.{k}": v.contiguous()
        for k, v in tower.vision_model.state_dict().items()
        if k.startswith(("head.", "post_layernorm."))
    }
    save_file(head, folder / "pooling_head.safetensors", metadata={"format": "pt"})


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--output", type=Path, default=Path("checkpoints/tango-tiny"), help="folder of the finished checkpoint"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("build/tango-tiny"), help="folder of the resumable state (about 5 GB)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--compile", action="store_true", help="compile the tower (a third faster; needs a C++ compiler)"
    )
    parser.add_argument("--start", type=Path, help="folder of a smaller model, from which a deeper one is grown")
    parser.add_argument("--qwen", action="store_true", help="make a Qwen3-VL of the model of --start")
    parser.add_argument("--tower-layers", type=int, default=3, help="with --start a multiple of the smaller model's")
    parser.add_argument("--warmup", type=int, default=100, help="steps in which the rate rises, of each stage")
    parser.add_argument("--frames", type=int, default=11, help="most frames of a video, at most 16")
    parser.add_argument("--tower-steps", type=int, default=2400)
    parser.add_argument("--tower-batch", type=int, default=64)
    parser.add_argument("--tower-rate", type=float, default=2e-3)
    parser.add_argument("--symbol-steps", type=int, default=2000, help="steps of the language model on labels alone")
    parser.add_argument("--symbol-grid", type=int, default=4, help="cells of a frame's labels along a side there")
    parser.add_argument("--fit-steps", type=int, default=400, help="steps of fitting the projector to the labels")
    parser.add_argument("--videos", type=int, default=3000, help="training videos whose features are learned from")
    parser.add_argument("--validation-videos", type=int, default=100)
    parser.add_argument("--language-steps", type=int, default=2400)
    parser.add_argument("--language-batch", type=int, default=8)
    parser.add_argument("--language-rate", type=float, default=2.5e-3)
    parser.add_argument("--save-every", type=int, default=200, help="steps between saved states and validations")
    parser.add_argument("--options", type=int, default=3, help="questions with options about each video of a batch")
    args = parser.parse_args(argv)
    if args.qwen and not args.start:
        parser.error("--qwen makes a Qwen3-VL of a smaller model: name its folder with --start")
    return args


def train_qwen(args: argparse.Namespace, small: Any) -> tuple[dict[str, float], dict[str, float]]:
    """A Qwen3-VL from the smaller model, written to --output; seconds and scores."""
    tokenizer = extend(AutoTokenizer.from_pretrained(args.start))
    torch.manual_seed(args.seed)
    model = qwen(tokenizer, small)
    seconds = {"tower": teach_tower(args, model, small)}
    parts, scores = teach_language(args, tokenizer, model)
    make_processor(tokenizer).save_pretrained(args.output)
    model.half().save_pretrained(args.output)
    return seconds | parts, scores


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    small = LlavaOnevisionForConditionalGeneration.from_pretrained(args.start) if args.start else None
    if args.qwen:
        record(args, *train_qwen(args, small))
        return
    tokenizer = make_tokenizer()
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo", timeout=datetime.timedelta(hours=12))
    rank, world = workers()
    if rank > 0:
        dist.barrier()  # the first process trains the tower; the others read what it wrote
    if small is None:
        tower, tower_seconds = train_tower(args, tokenizer)
    else:
        tower, tower_seconds = grow_tower(args, tokenizer, small)
    if rank == 0 and world > 1:
        dist.barrier()
    torch.set_num_threads(max(1, args.threads // world))
    model, seconds, scores = train_language(args, tokenizer, tower, small)
    if rank > 0:
        return
    save_checkpoint(args.output, tokenizer, tower.cpu(), model.cpu())
    record(args, {"tower": tower_seconds, **seconds}, scores)


def record(args: argparse.Namespace, seconds: dict[str, float], scores: dict[str, float]) -> None:
    """How the checkpoint was made, beside it."""
    made = {
        "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "seconds": {part: round(value) for part, value in seconds.items()},
        "validation_accuracy": scores,
        "torch": torch.__version__,
    }
    (args.output / "training.json").write_text(json.dumps(made, indent=1) + "\n")
    print(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
