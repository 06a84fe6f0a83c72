"""Trains tango-tiny, the small LLaVA-OneVision that the project ships, from nothing, on made-up videos.

    torchrun --nproc-per-node=2 scripts/train_tiny.py --output checkpoints/tango-tiny --work build/tango-tiny

Two stages. First SigLIP's vision tower with its attention-pooling head (tiny_tower.py). Then the projector and the
Qwen2 language model on MotionQA's training seeds, over features of the frozen tower that are computed once. No
token is ever pruned or dropped in training.

Every batch follows from --seed and its step, and --work holds the state, so a run that was stopped goes on where it
was. Needs no network and no GPU. One process works as well; two share the second stage's batches, which on a CPU is
quicker than two threads of one.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from tiny_data import (
    CHAT_TEMPLATE,
    GRID,
    IMAGE,
    TRAIN_SEED,
    TURN,
    VALIDATION_SEED,
    VIDEO,
    assemble,
    make_tokenizer,
    turns,
)
from tiny_optimise import Optimiser, bar, load_state, save_state, sum_gradients, workers
from tiny_tower import CANDIDATES, prepare_videos, train_tower
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2Config,
    Qwen2Tokenizer,
    SiglipModel,
    SiglipVisionConfig,
)

from tango.evaluation import motionqa
from tango.evaluation.motionqa import questions, sample_spec


# --- stage 2: projector and language model ---
def llava(tokenizer: Qwen2Tokenizer, vision: SiglipVisionConfig) -> LlavaOnevisionForConditionalGeneration:
    vision = SiglipVisionConfig(**{**vision.to_dict(), "vision_use_head": False})
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
            video_token_index=tokenizer.convert_tokens_to_ids(VIDEO),
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            image_grid_pinpoints=[[motionqa.SIZE, motionqa.SIZE]],
            tie_word_embeddings=True,
        )
    )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def embed_videos(model: LlavaOnevisionForConditionalGeneration, features: Tensor) -> Tensor:
    """Features (B, frames, patches, width) of the tower -> (B, frames * tokens + 1, D), as the model's own forward."""
    batch = features.shape[0]
    projected = model.model.multi_modal_projector(features.flatten(0, 1))
    pooled = model.model.apply_pooling(projected).reshape(batch, -1, projected.shape[-1])
    return torch.cat([pooled, model.model.image_newline.expand(batch, 1, -1)], 1)


def language_hidden(model: LlavaOnevisionForConditionalGeneration, ids: Tensor, video: Tensor, start: int) -> Tensor:
    embedded = model.get_input_embeddings()(ids)
    embedded = torch.cat([embedded[:, :start], video, embedded[:, start + video.shape[1] :]], 1)
    return model.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state


def pick_frames(rng: np.random.Generator) -> np.ndarray:
    """Which of the candidate frames a step's videos show: mostly eight over the whole video, else 2 to 10 at random."""
    if rng.random() < 0.7:
        return np.arange(int(rng.integers(2)), CANDIDATES, 2)
    amount = int(rng.integers(2, 11))
    return np.sort(rng.choice(CANDIDATES, amount, replace=False))


@torch.no_grad()
def validate(
    model: Any, tokenizer: Qwen2Tokenizer, features: np.ndarray, times: np.ndarray, first_seed: int
) -> dict[str, float]:
    """Share of greedy answers that are right, by kind: one question of each kind a video, each asked alone."""
    model.eval()
    start = len(tokenizer(f"{TURN}user ").input_ids)
    frames = np.arange(0, CANDIDATES, 2)
    right: dict[str, list[bool]] = {kind: [] for kind in motionqa.KINDS}
    for v in range(len(features)):
        rng = np.random.default_rng([4, v])
        asked = questions(sample_spec(first_seed + v), times[v, frames], rng)
        one_each = [q for k in motionqa.KINDS for q in [q for q in asked if q.kind == k][:1]]
        video = embed_videos(model, torch.from_numpy(features[v : v + 1, frames]).float().to(model.device))
        ids, labels = assemble(tokenizer, video.shape[1], [[(q.prompt(), q.options[q.answer])] for q in one_each])
        ids, labels = ids.to(model.device), labels.to(model.device)
        hidden = language_hidden(model, ids, video.expand(len(ids), -1, -1), start)
        for row, q in enumerate(one_each):
            said = (labels[row] != -100).nonzero()[:-1, 0]  # the answer, without the token that ends it
            right[q.kind].append(bool((model.lm_head(hidden[row, said - 1]).argmax(-1) == ids[row, said]).all()))
    model.train()
    scores = {kind: float(np.mean(r)) for kind, r in right.items()}
    return {"overall": float(np.mean([x for r in right.values() for x in r])), **scores}


def train_language(
    args: argparse.Namespace, tokenizer: Qwen2Tokenizer, tower: SiglipModel
) -> tuple[Any, float, dict[str, float]]:
    torch.manual_seed(args.seed + 1)
    rank, world = workers()
    vision = tower.vision_model
    (train_x, train_t), (val_x, val_t) = prepare_videos(args, tower)
    model = llava(tokenizer, tower.config.vision_config).to(args.device)
    weights = {k: v for k, v in vision.state_dict().items() if not k.startswith("head.")}
    model.model.vision_tower.load_state_dict(weights)
    model.model.vision_tower.requires_grad_(False)
    total = args.language_steps
    optimiser = Optimiser([model], total, args.language_rate)
    path = args.work / "language.pt"
    start, spent = 0, 0.0
    if state := load_state(path):
        model.load_state_dict(state["model"])
        optimiser.load(state["optimiser"])
        start, spent = state["step"], state["spent"]
    model.train()
    prefix = len(tokenizer(f"{TURN}user ").input_ids)
    began, smooth = time.time(), None
    scores: dict[str, float] = {}
    with bar() as progress:
        task = progress.add_task("language model", total=total, completed=start, note="")
        for step in range(start, total):
            frames = pick_frames(np.random.default_rng([5, args.seed, step]))
            chosen, pairs = [], []
            for row in range(rank, args.language_batch, world):
                rng = np.random.default_rng([6, args.seed, step, row])
                asked: list[tuple[str, str]] = []
                while not asked:
                    v = int(rng.integers(args.videos))
                    asked = turns(sample_spec(TRAIN_SEED + v), train_t[v, frames], rng, args.turns)
                chosen.append(v)
                pairs.append(asked)
            shown = torch.from_numpy(train_x[np.array(chosen)][:, frames]).float()
            video = embed_videos(model, shown.to(args.device))
            ids, labels = assemble(tokenizer, video.shape[1], pairs)
            ids, labels = ids.to(args.device), labels.to(args.device)
            hidden = language_hidden(model, ids, video, prefix)
            learned = labels[:, 1:] != -100
            count = learned.sum().float()
            if world > 1:
                dist.all_reduce(count)
            # Every process adds its answers' share of the mean over all answers of the step.
            loss = (
                F.cross_entropy(model.lm_head(hidden[:, :-1][learned]), labels[:, 1:][learned], reduction="sum") / count
            )
            loss.backward()
            sum_gradients(optimiser.parameters)
            optimiser.step(step)
            now = loss.item() * world
            smooth = now if smooth is None else 0.95 * smooth + 0.05 * now
            if (step + 1) % 25 == 0 and rank == 0:
                print(f"language step {step + 1} loss {smooth:.3f} {time.time() - began + spent:.0f}s", flush=True)
            if ((step + 1) % args.save_every == 0 or step + 1 == total) and rank == 0:
                save_state(
                    path,
                    model=model.state_dict(),
                    optimiser=optimiser.state(),
                    step=step + 1,
                    spent=time.time() - began + spent,
                )
                scores = validate(model, tokenizer, val_x, val_t, VALIDATION_SEED)
                print(
                    f"language step {step + 1} validation " + " ".join(f"{k} {s:.2f}" for k, s in scores.items()),
                    flush=True,
                )
            progress.update(task, advance=1, note=f"loss {smooth:.3f}")
    return (
        model.eval(),
        time.time() - began + spent,
        scores or validate(model, tokenizer, val_x, val_t, VALIDATION_SEED),
    )


# --- the checkpoint ---
def save_checkpoint(folder: Path, tokenizer: Qwen2Tokenizer, tower: SiglipModel, model: Any) -> None:
    """All that AutoProcessor and from_pretrained need, and the pooling head beside it under SigLIP's tensor names."""
    folder.mkdir(parents=True, exist_ok=True)
    size = {"height": motionqa.SIZE, "width": motionqa.SIZE}
    common = {"size": size, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(image_grid_pinpoints=[[motionqa.SIZE, motionqa.SIZE]], **common),
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
    parser.add_argument("--tower-steps", type=int, default=1600)
    parser.add_argument("--tower-batch", type=int, default=64)
    parser.add_argument("--tower-rate", type=float, default=2e-3)
    parser.add_argument("--videos", type=int, default=6000, help="training videos of the second stage")
    parser.add_argument("--validation-videos", type=int, default=100)
    parser.add_argument("--language-steps", type=int, default=2400)
    parser.add_argument("--language-batch", type=int, default=16)
    parser.add_argument("--language-rate", type=float, default=2e-3)
    parser.add_argument("--save-every", type=int, default=200, help="steps between saved states and validations")
    parser.add_argument("--turns", type=int, default=4, help="multiple-choice questions about each video of a batch")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo", timeout=datetime.timedelta(hours=12))
    rank, world = workers()
    if rank > 0:
        dist.barrier()  # the first process trains the tower; the others read what it wrote
    tower, tower_seconds = train_tower(args, tokenizer)
    if rank == 0 and world > 1:
        dist.barrier()
    torch.set_num_threads(max(1, args.threads // world))
    model, language_seconds, scores = train_language(args, tokenizer, tower)
    if rank > 0:
        return
    save_checkpoint(args.output, tokenizer, tower.cpu(), model.cpu())
    record = {
        "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "tower_seconds": round(tower_seconds),
        "language_seconds": round(language_seconds),
        "validation_accuracy": scores,
        "torch": torch.__version__,
    }
    (args.output / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
