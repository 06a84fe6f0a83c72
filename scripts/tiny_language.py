"""tango-tiny's second stage: a projector and a Qwen2 language model that answer MotionQA's questions.

The language model learns first from perfect descriptions: in place of the tower's features each patch gives its own
labels (what it shows, where the centre of its object is), at a quarter of the tokens. That needs no pictures, and is
what reading is to a large language model. The projector is then fitted to say the same from the tower's features, and
both learn together from those, at full length.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from tiny_data import GRID, IMAGE, TRAIN_SEED, VALIDATION_SEED, VIDEO, ask, patch_truth
from tiny_optimise import Optimiser, bar, resume, save_state, sum_gradients, workers
from tiny_sheet import Sheet, hidden_states, sheet
from tiny_tower import CANDIDATES, ReadOut, prepare_videos
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    Qwen2Tokenizer,
    SiglipModel,
    SiglipVisionConfig,
)

from tango.motionqa import scenes
from tango.motionqa.questions import KINDS, questions
from tango.motionqa.scenes import Spec, sample_spec

FRAMES = 8
CLIP_KINDS, SPARSE_KINDS = ("direction",), ("colour", "shape", "order")  # what videos that do not show all answer
WIDTH = 128
LABELS = sum(ReadOut.SIZES) + 2
# How loud each group of labels is told. Letters and dots cover little of a token, and few tokens; unless they are loud
# the projector is not fitted to them, and what a whole video shows of them is not found in thousands of steps.
LOUDNESS = np.repeat([1.0, 1.0, 4.0, 8.0, 4.0], [*ReadOut.SIZES, 2]).astype(np.float32)


def llava(tokenizer: Qwen2Tokenizer, vision: SiglipVisionConfig) -> LlavaOnevisionForConditionalGeneration:
    vision = SiglipVisionConfig(**{**vision.to_dict(), "vision_use_head": False})
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
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
            image_grid_pinpoints=[[scenes.SIZE, scenes.SIZE]],
            tie_word_embeddings=True,
        )
    )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


# --- what stands for a video ---
def embed_videos(model: LlavaOnevisionForConditionalGeneration, features: Tensor, side: int = GRID // 2) -> Tensor:
    """Features (B, frames, patches, width) of the tower -> (B, frames * side * side + 1, D).

    With side = GRID / 2 as the model's own forward; fewer are averages of those, a video at a lower resolution.
    """
    batch, frames = features.shape[:2]
    projected = model.model.multi_modal_projector(features.flatten(0, 1))
    pooled = model.model.apply_pooling(projected).view(batch, frames, side, GRID // 2 // side, side, -1, WIDTH)
    return torch.cat([pooled.mean((3, 5)).flatten(1, 3), model.model.image_newline.expand(batch, 1, -1)], 1)


def labels_of(spec: Spec, times: np.ndarray) -> np.ndarray:
    """(frames, patches, LABELS) float32: one-hot colour, shape, letter, number of dots, and the object's centre, each
    times its loudness."""
    rows = []
    for time_ in times:
        classes, centres = patch_truth(spec, float(time_))
        hot = [np.eye(size, dtype=np.float32)[classes[:, i]] for i, size in enumerate(ReadOut.SIZES)]
        rows.append(np.concatenate([*hot, centres], 1) * LOUDNESS)
    return np.stack(rows)


def pool(patches: Tensor, side: int) -> Tensor:
    """(B, frames, patches, C) -> (B, frames * side * side, C), averages of squares of patches."""
    batch, frames, _, width = patches.shape
    step = GRID // side
    return patches.view(batch, frames, side, step, side, step, width).mean((3, 5)).view(batch, -1, width)


def embed_labels(
    model: LlavaOnevisionForConditionalGeneration, symbols: nn.Linear, labels: np.ndarray, side: int
) -> Tensor:
    """Labels (B, frames, patches, LABELS) -> (B, frames * side * side + 1, D)."""
    said = symbols(pool(torch.from_numpy(labels).to(symbols.weight.device), side))
    return torch.cat([said, model.model.image_newline.expand(len(said), 1, -1)], 1)


# --- learning ---
def pick_frames(rng: np.random.Generator, most: int) -> tuple[np.ndarray, Sequence[str], int]:
    """Which candidate frames a step's videos show, which kinds of question they answer, and how far they can be moved.

    Whole videos: every second frame, or 9 to `most` at random. Few frames of a whole video, for what one frame shows
    and for order. Clips of two to six seconds, moved to another place in each video: the language model finds far
    sooner in these how a thing moves.
    """
    draw = rng.random()
    if draw < 0.3:
        frames = np.arange(0, 2 * int(rng.integers(2, 7)), 2)
        return frames, CLIP_KINDS, CANDIDATES - int(frames[-1])
    if draw < 0.5:
        edges = np.linspace(0, CANDIDATES, int(rng.integers(3, 7)) + 1).astype(int)
        return rng.integers(edges[:-1], edges[1:]), SPARSE_KINDS, 1
    if draw < 0.9:
        return np.arange(int(rng.integers(2)), CANDIDATES, 2), KINDS, 1
    return np.sort(rng.choice(CANDIDATES, int(rng.integers(9, most + 1)), replace=False)), KINDS, 1


@torch.no_grad()
def validate(
    model: Any, tokenizer: Qwen2Tokenizer, amount: int, show: Callable[[int, Spec], tuple[Any, ...]]
) -> dict[str, float]:
    """Share of greedy answers that are right, by kind: one question of each kind a video, each asked alone.

    show: gives the tokens (1, tokens, D) and the times of the frames of a validation video, and a Sheet's places.
    """
    model.eval()
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for v in range(amount):
        spec = sample_spec(VALIDATION_SEED + v)
        video, times, *places = show(v, spec)
        asked = questions(spec, times, np.random.default_rng([4, v]))
        one_each = [q for kind in KINDS for q in [q for q in asked if q.kind == kind][:1]]
        given = sheet(tokenizer, [[(q.prompt(), q.options[q.answer]) for q in one_each]])
        given.places = places[0] if places else None
        hidden = hidden_states(model, given, video)[0]
        length = given.groups[0][1]
        for n, q in enumerate(one_each):
            own = slice(n * length, (n + 1) * length)
            said = (given.labels[0, own] != -100).nonzero()[:-1, 0]  # the answer, without the token that ends it
            best = model.lm_head(hidden[own][said - 1]).argmax(-1).cpu()
            right[q.kind].append(bool((best == given.ids[0, own][said]).all()))
    model.train()
    scores = {kind: float(np.mean(r)) for kind, r in right.items()}
    return {"overall": float(np.mean([x for r in right.values() for x in r])), **scores}


def learn(
    args: argparse.Namespace,
    name: str,
    model: Any,
    modules: dict[str, nn.Module],
    steps: int,
    rate: float,
    batch: Callable[[int], tuple[Tensor, Sheet]],
    score: Callable[[], dict[str, float]],
) -> tuple[float, dict[str, float]]:
    """Train the modules to answer the questions of `batch(step)`; goes on from args.work/NAME.pt where there is one.

    Returns the seconds spent and the scores at the end. Each of several processes makes its own part of a batch.
    """
    rank, world = workers()
    optimiser = Optimiser(list(modules.values()), steps, rate, args.warmup)
    path = args.work / f"{name}.pt"
    start, spent = resume(path, modules, optimiser)
    model.train()
    began, smooth, scores = time.monotonic(), None, {}
    with bar() as progress:
        task = progress.add_task(name, total=steps, completed=start, note="")
        for step in range(start, steps):
            video, given = batch(step)
            hidden = hidden_states(model, given, video)
            row, at = (given.labels != -100).nonzero(as_tuple=True)
            count = torch.tensor(float(len(row)))
            if world > 1:
                dist.all_reduce(count)
            # Every process adds its answers' share of the mean over all answers of the step.
            logits = model.lm_head(hidden[row, at - 1])
            loss = F.cross_entropy(logits, given.labels[row, at].to(logits.device), reduction="sum") / float(count)
            loss.backward()
            sum_gradients(optimiser.parameters)
            optimiser.step(step)
            now = loss.item() * world
            smooth = now if smooth is None else 0.95 * smooth + 0.05 * now
            seconds = time.monotonic() - began + spent
            if (step + 1) % 25 == 0 and rank == 0:
                print(f"{name} step {step + 1} loss {smooth:.3f} {seconds:.0f}s", flush=True)
            if ((step + 1) % args.save_every == 0 or step + 1 == steps) and rank == 0:
                states = {key: module.state_dict() for key, module in modules.items()}
                save_state(path, **states, optimiser=optimiser.state(), step=step + 1, spent=seconds)
                scores = score()
                told = " ".join(f"{kind} {share:.2f}" for kind, share in scores.items())
                print(f"{name} step {step + 1} validation {told}", flush=True)
            progress.update(task, advance=1, note=f"loss {smooth:.3f}")
    model.eval()
    return time.monotonic() - began + spent, scores or score()


def learn_symbols(args: argparse.Namespace, tokenizer: Qwen2Tokenizer, model: Any) -> tuple[nn.Linear, float]:
    """The language model over labels in place of features; returns the embedding of the labels, and the seconds."""
    rank, world = workers()
    symbols = nn.Linear(LABELS, WIDTH).to(args.device)

    def batch(step: int) -> tuple[Tensor, Sheet]:
        made, asked = [], []
        for row in range(rank, args.language_batch, world):
            rng = np.random.default_rng([7, args.seed, step, row])
            pairs: list[tuple[str, str]] = []
            while not pairs:
                spec = sample_spec(TRAIN_SEED + int(rng.integers(1 << 30)))
                times = (np.arange(FRAMES) + rng.uniform(0, 0.48)) * (scenes.DURATION / FRAMES)
                pairs = ask(spec, times, rng, args.options)
            made.append(labels_of(spec, times))
            asked.append(pairs)
        return embed_labels(model, symbols, np.stack(made), args.symbol_grid), sheet(tokenizer, asked)

    def show(_: int, spec: Spec) -> tuple[Tensor, np.ndarray]:
        times = scenes.uniform_times(FRAMES)
        return embed_labels(model, symbols, labels_of(spec, times)[None], args.symbol_grid), times

    modules = {"model": model, "symbols": symbols}
    seconds, _ = learn(
        args, "symbols", model, modules, args.symbol_steps, args.language_rate, batch,
        lambda: validate(model, tokenizer, args.validation_videos, show),
    )  # fmt: skip
    return symbols, seconds


def fit_projector(args: argparse.Namespace, model: Any, symbols: nn.Linear, features: np.ndarray, times: Any) -> None:
    """Teach the projector to say of the tower's features what the labels say, by least squares over single frames."""
    parameters = list(model.model.multi_modal_projector.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=max(2, args.fit_steps))
    with bar() as progress:
        task = progress.add_task("projector", total=args.fit_steps, note="")
        for step in range(args.fit_steps):
            rng = np.random.default_rng([8, args.seed, step])
            videos, frames = rng.integers(len(features), size=64), rng.integers(CANDIDATES, size=64)
            labels = [
                labels_of(sample_spec(TRAIN_SEED + int(v)), times[v, [f]]) for v, f in zip(videos, frames, strict=True)
            ]
            with torch.no_grad():
                wanted = symbols(pool(torch.from_numpy(np.stack(labels)).to(args.device), GRID // 2))
            shown = torch.from_numpy(features[videos, frames][:, None]).float().to(args.device)
            loss = F.mse_loss(embed_videos(model, shown)[:, :-1], wanted) / wanted.var()
            loss.backward()
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            if (step + 1) % 50 == 0:
                print(f"projector step {step + 1} unexplained {loss.item():.3f}", flush=True)
            progress.update(task, advance=1)


def pick_questions(
    args: argparse.Namespace, times: np.ndarray, frames: np.ndarray, starts: int, kinds: Any, seed: list[int]
) -> tuple[int, np.ndarray, list[tuple[str, str]]]:
    """A training video's number, which of its frames are shown, and pairs of question and answer about them.

    times: (videos, candidates) seconds. frames, starts, kinds: of pick_frames().
    """
    rng = np.random.default_rng(seed)
    pairs: list[tuple[str, str]] = []
    while not pairs:
        video = int(rng.integers(args.videos))
        seen = frames + int(rng.integers(starts))
        pairs = ask(sample_spec(TRAIN_SEED + video), times[video, seen], rng, args.options, kinds)
    return video, seen, pairs


def train_language(
    args: argparse.Namespace, tokenizer: Qwen2Tokenizer, tower: SiglipModel, small: Any = None
) -> tuple[Any, dict[str, float], dict[str, float]]:
    """The finished model, the seconds of its parts, and its validation scores.

    small: a model whose projector and language model to start from, in place of labels.
    """
    torch.manual_seed(args.seed + 1)
    rank, world = workers()
    model = llava(tokenizer, tower.config.vision_config).to(args.device)
    weights = {k: v for k, v in tower.vision_model.state_dict().items() if not k.startswith("head.")}
    model.model.vision_tower.load_state_dict(weights)
    model.model.vision_tower.requires_grad_(False)
    symbols, symbol_seconds = learn_symbols(args, tokenizer, model) if small is None else (None, 0.0)
    (train_x, train_t), (val_x, val_t) = prepare_videos(args, tower)
    if small is not None:
        weights = {k: v for k, v in small.state_dict().items() if "vision_tower" not in k}
        model.load_state_dict(weights, strict=False)
    elif not (args.work / "language.pt").exists():
        fit_projector(args, model, symbols, train_x, train_t)

    def batch(step: int) -> tuple[Tensor, Sheet]:
        rng = np.random.default_rng([5, args.seed, step])
        frames, kinds, starts = pick_frames(rng, args.frames)
        # Half of the time at a quarter of the tokens: order and motion must not be read from how far away a token is.
        side = GRID // 2 // int(rng.integers(1, 3))
        rows = args.language_batch * FRAMES // min(FRAMES, len(frames))
        shown, asked = [], []
        for row in range(rank, rows, world):
            v, seen, pairs = pick_questions(args, train_t, frames, starts, kinds, [6, args.seed, step, row])
            shown.append(train_x[v, seen])
            asked.append(pairs)
        features = torch.from_numpy(np.stack(shown)).float().to(args.device)
        return embed_videos(model, features, side), sheet(tokenizer, asked)

    def show(v: int, _: Spec) -> tuple[Tensor, np.ndarray]:
        frames = np.arange(0, CANDIDATES, 2)
        shown = torch.from_numpy(val_x[v : v + 1, frames]).float()
        return embed_videos(model, shown.to(args.device)), val_t[v, frames]

    seconds, scores = learn(
        args, "language", model, {"model": model}, args.language_steps, args.language_rate, batch,
        lambda: validate(model, tokenizer, len(val_x), show),
    )  # fmt: skip
    return model, {"symbols": symbol_seconds, "language": seconds}, scores
