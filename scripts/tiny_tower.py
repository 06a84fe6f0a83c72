"""tango-tiny's first stage: SigLIP's vision tower with its attention-pooling head, and what it sees in videos.

The tower learns two things at once. Contrastively (sigmoid loss), which caption belongs to which frame: the head's
attention is the saliency that Tango reads, so it has to be trained. And, through linear read-outs that are thrown away
afterwards, what each patch shows and where the centre of its object is, which teaches it far more from a frame than one
caption does, and keeps an object's content in the object's own tokens.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tiny_data import GRID, PATCH, TRAIN_SEED, VALIDATION_SEED, FrameBatch, as_coded, as_pixels, frame_batch
from tiny_optimise import Optimiser, bar, resume, save_state, workers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen2Tokenizer, SiglipConfig, SiglipModel

from tango.motionqa import scenes
from tango.motionqa.scenes import render, sample_spec

WIDTH = 96
LABELS = ("colour", "shape", "letter", "dots")
CANDIDATES = 16  # frames of a video that are encoded; each step of the second stage samples some of them


def siglip(tokenizer: Qwen2Tokenizer, layers: int) -> SiglipModel:
    shared = {"hidden_size": WIDTH, "num_attention_heads": 4, "intermediate_size": 4 * WIDTH}
    return SiglipModel(
        SiglipConfig(
            text_config={
                **shared,
                "num_hidden_layers": 2,
                "vocab_size": len(tokenizer),
                "bos_token_id": None,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
                "max_position_embeddings": 48,
                "projection_size": WIDTH,
            },
            vision_config={**shared, "num_hidden_layers": layers, "image_size": scenes.SIZE, "patch_size": PATCH},
        )
    )


class ReadOut(nn.Module):
    """Linear read-outs of single patches: colour, shape, letter, number of dots (0: none), and the object's centre."""

    SIZES = (1 + len(scenes.COLOURS), 1 + len(scenes.SHAPES), 1 + len(scenes.GLYPHS), 1 + len(scenes.NUMBERS))

    def __init__(self) -> None:
        super().__init__()
        self.classes = nn.Linear(WIDTH, sum(self.SIZES))
        self.centre = nn.Linear(WIDTH, 2)

    def forward(self, patches: Tensor, batch: FrameBatch) -> tuple[Tensor, list[float]]:
        """Patches (B, patches, WIDTH) -> the loss, and of each label the share that is read right where it is."""
        logits = self.classes(patches).flatten(0, 1).split(self.SIZES, -1)
        truth = batch.classes.to(patches.device).flatten(0, 1)
        loss = patches.new_zeros(())
        right = []
        for n, scores in enumerate(logits):
            weight = scores.new_ones(scores.shape[1])
            weight[0] = 0.1  # nine in ten patches show nothing
            # Counting dots takes looking around: the slowest to learn, and in few frames.
            loss = loss + (3 if n == 3 else 1) * F.cross_entropy(scores, truth[:, n], weight)
            labelled = truth[:, n] > 0
            right.append(float((scores.argmax(-1) == truth[:, n])[labelled].float().mean()))
        shown = (truth > 0).any(-1)
        centres = batch.centres.to(patches.device).flatten(0, 1)
        guess = self.centre(patches).flatten(0, 1)[shown]
        error = F.smooth_l1_loss(guess, centres[shown], beta=0.1, reduction="sum") / max(1, guess.numel())
        return loss + 2 * error, right


def train_tower(args: argparse.Namespace, tokenizer: Qwen2Tokenizer) -> tuple[SiglipModel, float]:
    """The trained tower and its seconds; goes on from args.work/tower.pt where there is one."""
    torch.manual_seed(args.seed)
    model, read_out = siglip(tokenizer, args.tower_layers).to(args.device), ReadOut().to(args.device)
    with torch.no_grad():  # SigLIP's own starting point for its loss: temperature 10, bias -10
        model.logit_scale.fill_(np.log(10.0))
        model.logit_bias.fill_(-10.0)

    def loss(step: int) -> tuple[Tensor, str]:
        batch = frame_batch(step, args.seed, args.tower_batch)
        text = tokenizer(batch.captions, padding="max_length", max_length=48, truncation=True, return_tensors="pt")
        out = model(
            input_ids=text.input_ids.to(args.device), pixel_values=batch.pixels.to(args.device), return_loss=True
        )
        dense, right = read_out(out.vision_model_output.last_hidden_state, batch)
        match = (out.logits_per_image.argmax(1).cpu() == torch.arange(len(batch.captions))).float().mean()
        note = f"caption loss {out.loss:.3f} match {match:.2f} patch loss {dense:.3f} right"
        note += "".join(f" {name} {share:.2f}" for name, share in zip(LABELS, right, strict=True))
        return out.loss + dense, note

    return model, learn_tower(args, model, {"model": model, "read_out": read_out}, loss)


def grow_tower(args: argparse.Namespace, tokenizer: Qwen2Tokenizer, small: Any) -> tuple[SiglipModel, float]:
    """A deeper tower that is taught to see what the tower of a smaller model sees, and its seconds; resumable as well.

    Each of the small tower's layers stands in it several times, adding that part of what it added once, which is no
    more than a start: patches look around several times where they did once. It learns the small tower's states after
    each of its layers, and what the small model's projector makes of the last ones. The pooling head is the small
    model's, frozen.
    """
    torch.manual_seed(args.seed)
    model, teacher, core = siglip(tokenizer, args.tower_layers), small.model.vision_tower, small.model
    vision, times = model.vision_model, args.tower_layers // len(teacher.encoder.layers)
    head = load_file(args.start / "pooling_head.safetensors")
    vision.load_state_dict({k.removeprefix("vision_model."): v for k, v in head.items()}, strict=False)
    vision.embeddings.load_state_dict(teacher.embeddings.state_dict())
    with torch.no_grad():
        for n, layer in enumerate(vision.encoder.layers):
            layer.load_state_dict(teacher.encoder.layers[n // times].state_dict())
            for linear in (layer.self_attn.out_proj, layer.mlp.fc2):
                linear.weight /= times
                linear.bias /= times
    model.requires_grad_(False)
    vision.embeddings.requires_grad_(True)
    vision.encoder.requires_grad_(True)
    small.requires_grad_(False).eval().to(args.device)
    model.to(args.device)

    def loss(step: int) -> tuple[Tensor, str]:
        pixels = frame_batch(step, args.seed, args.tower_batch).pixels.to(args.device)
        wanted = teacher(pixels, output_hidden_states=True).hidden_states[1:]
        found = vision(pixels, output_hidden_states=True).hidden_states[times::times]
        projected = [core.multi_modal_projector(x[-1]) for x in (found, wanted)]
        unexplained = [
            F.mse_loss(one, other) / (other - other.mean((0, 1))).square().mean()
            for one, other in zip((*found, projected[0]), (*wanted, projected[1]), strict=True)
        ]
        return torch.stack(unexplained).sum(), "unexplained " + " ".join(f"{x:.4f}" for x in unexplained)

    return model, learn_tower(args, model, {"model": model}, loss)


def learn_tower(
    args: argparse.Namespace,
    model: SiglipModel,
    modules: dict[str, nn.Module],
    loss: Callable[[int], tuple[Tensor, str]],
) -> float:
    """Train what of the modules has gradients by `loss(step)`, which says a note too; the seconds that took.

    Goes on from args.work/tower.pt where there is one.
    """
    optimiser = Optimiser(list(modules.values()), args.tower_steps, args.tower_rate, args.warmup)
    path = args.work / "tower.pt"
    start, spent = resume(path, modules, optimiser)
    model.train()
    if args.compile:
        model.vision_model.compile(dynamic=False)
    began = time.monotonic()
    with bar() as progress:
        task = progress.add_task("tower", total=args.tower_steps, completed=start, note="")
        for step in range(start, args.tower_steps):
            value, note = loss(step)
            value.backward()
            optimiser.step(step)
            seconds = time.monotonic() - began + spent
            if (step + 1) % 25 == 0:
                print(f"tower step {step + 1} {note} {seconds:.0f}s", flush=True)
                progress.update(task, note=note)
            if (step + 1) % args.save_every == 0 or step + 1 == args.tower_steps:
                states = {key: module.state_dict() for key, module in modules.items()}
                save_state(path, **states, optimiser=optimiser.state(), step=step + 1, spent=seconds)
            progress.update(task, advance=1)
    model.eval()
    return time.monotonic() - began + spent


# --- what the frozen tower sees ---
@torch.no_grad()
def encode_videos(
    tower: nn.Module,
    first_seed: int,
    amount: int,
    seed: int,
    path: Path,
    label: str,
    each: tuple[int, int] = (GRID * GRID, WIDTH),
) -> tuple[np.ndarray, np.ndarray]:
    """Tower features (V, CANDIDATES, patches, WIDTH) fp16 and times (V, CANDIDATES); kept on disk, resumable.

    Of several processes each encodes its part; all return when everything is there.
    """
    rank, world = workers()
    shape = (amount, CANDIDATES, *each)
    rng = np.random.default_rng([2, seed, first_seed])
    times = np.arange(CANDIDATES) * (scenes.DURATION / CANDIDATES) + rng.uniform(0, 0.48, (amount, 1))
    if rank == 0 and not path.exists():
        np.lib.format.open_memmap(path, "w+", np.float16, shape).flush()
    meet()
    features = np.lib.format.open_memmap(path, "r+")
    if features.shape != shape:
        raise SystemExit(
            f"{path} holds features of shape {features.shape}, not {shape}: delete it, or use another --work"
        )
    done_path = path.with_suffix(f".done-{rank}-of-{world}")
    done = int(done_path.read_text()) if done_path.exists() else amount * rank // world
    end = amount * (rank + 1) // world
    with bar() as progress:
        task = progress.add_task(f"encoding {label}", total=end, completed=done, note="")
        for i in range(done, end, 8):
            stop = min(i + 8, end)
            frames = []
            for v in range(i, stop):
                coding = np.random.default_rng([3, first_seed + v])
                spec = sample_spec(first_seed + v)
                frames += [as_coded(render(spec, float(t)), coding) for t in times[v]]
            pixels = as_pixels(np.stack(frames)).to(next(tower.parameters()).device)
            hidden = tower(pixels, output_hidden_states=True).hidden_states[-1]
            features[i:stop] = hidden.view(stop - i, *shape[1:]).half().cpu().numpy()
            if i % 256 < 8 or stop == end:
                features.flush()
                done_path.write_text(str(stop))
            progress.update(task, completed=stop)
    meet()
    return features, times


def meet() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def prepare_videos(args: argparse.Namespace, tower: SiglipModel) -> list[tuple[np.ndarray, np.ndarray]]:
    """Features and times of the training and the validation videos; computed once, then read."""
    return [
        encode_videos(tower.vision_model, first, amount, args.seed, args.work / f"{label}.npy", f"{label} videos")
        for label, first, amount in (
            ("train", TRAIN_SEED, args.videos),
            ("validation", VALIDATION_SEED, args.validation_videos),
        )
    ]
