"""tango-tiny-qwen: a Qwen3-VL of tango-tiny's size, with a rotary tower, a 2 x 2 merger, each frame's time as text, and
M-RoPE.

It starts from tango-tiny's weights as far as the two architectures share them, which is nearly all of the way: the
tower's blocks but for the rotation, and the language model but for the norms of queries and keys and for positions in
three dimensions. The tower then learns what the smaller model's tower and projector make of frames, and the language
model goes on with questions, over features of the frozen tower that are computed once. As with tango-tiny no token is
pruned in training.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from tiny_data import CHAT_TEMPLATE, GRID, PATCH, TRAIN_SEED, TURN, VALIDATION_SEED, VIDEO, frame_batch
from tiny_language import learn, pick_frames, pick_questions, validate
from tiny_optimise import workers
from tiny_sheet import Sheet, sheet
from tiny_tower import CANDIDATES, encode_videos, learn_tower
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from tango.motionqa import scenes
from tango.motionqa.scenes import Spec

SIDE = GRID // 2  # tokens along a side of a frame
MARKS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
WIDE = 2  # how many times as wide a head is as the smaller model's: what is added keeps the norms from telling much
LOUD = 4.0  # the added constant against the usual size of queries and keys


def extend(tokenizer: Qwen2Tokenizer) -> Qwen2Tokenizer:
    """With the marks of Qwen's videos, as the last tokens."""
    tokenizer.add_tokens(MARKS, special_tokens=True)
    return tokenizer


def make_processor(tokenizer: Qwen2Tokenizer) -> Qwen3VLProcessor:
    """Frames of any size in patches of tango-tiny's size, one frame at a time."""
    common = {"patch_size": PATCH, "merge_size": 2, "temporal_patch_size": 1, "image_mean": [0.5] * 3}
    common |= {"image_std": [0.5] * 3, "size": {"shortest_edge": 256, "longest_edge": 64 * scenes.SIZE**2}}
    template = CHAT_TEMPLATE.replace(VIDEO, MARKS[0] + MARKS[3] + MARKS[1])
    template = template.replace("<image>", MARKS[0] + MARKS[2] + MARKS[1])
    return Qwen3VLProcessor(
        Qwen2VLImageProcessor(**common), tokenizer, Qwen3VLVideoProcessor(**common), chat_template=template
    )


def qwen(tokenizer: Qwen2Tokenizer, small: Any) -> Qwen3VLForConditionalGeneration:
    """The model, with the smaller one's weights."""
    seen, said = small.config.vision_config, small.config.text_config
    start, end, image, video = tokenizer.convert_tokens_to_ids(MARKS)
    width = said.hidden_size // said.num_attention_heads * WIDE
    rope = {"rope_theta": said.rope_parameters["rope_theta"], "rope_type": "default", "mrope_interleaved": True}
    model = Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(
            vision_config={
                "depth": seen.num_hidden_layers,
                "hidden_size": seen.hidden_size,
                "intermediate_size": seen.intermediate_size,
                "num_heads": seen.num_attention_heads,
                "patch_size": PATCH,
                "temporal_patch_size": 1,
                "out_hidden_size": said.hidden_size,
                "num_position_embeddings": GRID * GRID,
                "deepstack_visual_indexes": [],
            },
            text_config={
                **{key: getattr(said, key) for key in (
                    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                    "num_key_value_heads", "max_position_embeddings", "eos_token_id", "pad_token_id",
                )},
                "vocab_size": len(tokenizer),
                "head_dim": width,
                "attention_bias": True,
                "bos_token_id": None,
                "rope_parameters": {**rope, "mrope_section": [width // 2 - 2 * (width // 6), width // 6, width // 6]},
            },
            tie_word_embeddings=True,
            image_token_id=image,
            video_token_id=video,
            vision_start_token_id=start,
            vision_end_token_id=end,
        )
    )  # fmt: skip
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    with torch.no_grad():
        _copy_tower(model.model.visual, small)
        _copy_language(model.model.language_model, small.model.language_model)
    return model


def _copy_tower(tower: Any, small: Any) -> None:
    old = small.model.vision_tower
    tower.patch_embed.proj.weight.copy_(old.embeddings.patch_embedding.weight[:, :, None])
    tower.patch_embed.proj.bias.copy_(old.embeddings.patch_embedding.bias)
    tower.pos_embed.weight.copy_(old.embeddings.position_embedding.weight)
    for new, layer in zip(tower.blocks, old.encoder.layers, strict=True):
        heads = new.attn.num_heads
        queries, keys = (_apart(one, heads) for one in (layer.self_attn.q_proj, layer.self_attn.k_proj))
        for head in range(heads):
            queries[head], keys[head] = _quiet(queries[head], keys[head])
        values = _apart(layer.self_attn.v_proj, heads)
        whole = torch.cat([one.flatten(0, 1) for one in (queries, keys, values)])
        new.attn.qkv.weight.copy_(whole[:, :-1])
        new.attn.qkv.bias.copy_(whole[:, -1])
        for ours, theirs in (
            (new.norm1, layer.layer_norm1), (new.norm2, layer.layer_norm2), (new.attn.proj, layer.self_attn.out_proj),
            (new.mlp.linear_fc1, layer.mlp.fc1), (new.mlp.linear_fc2, layer.mlp.fc2),
        ):  # fmt: skip
            ours.load_state_dict(theirs.state_dict())
    # Of the projector's units as many as the merger has for a patch, those that say most; the mean over four patches.
    one, two = small.model.multi_modal_projector.linear_1, small.model.multi_modal_projector.linear_2
    width, merger = old.config.hidden_size, tower.merger
    best = two.weight.norm(dim=0).mul(one.weight.norm(dim=1)).topk(width).indices
    merger.linear_fc1.weight.copy_(torch.block_diag(*[one.weight[best]] * 4))
    merger.linear_fc1.bias.copy_(one.bias[best].repeat(4))
    merger.linear_fc2.weight.copy_(two.weight[:, best].repeat(1, 4) / 4)
    merger.linear_fc2.bias.copy_(two.bias)


def _apart(linear: nn.Linear, heads: int) -> Tensor:
    """Weights of each head with the bias as the last column: (heads, width of a head, in + 1)."""
    return torch.cat((linear.weight, linear.bias[:, None]), 1).view(heads, -1, linear.in_features + 1).clone()


def _quiet(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """The same products of queries and keys, with most of them in the parts that the rotation hardly turns.

    A head of width d has d / 2 pairs (i, i + d / 2), the first half turned by rows, the other by columns, in each
    first the fastest.
    """
    left, found, right = torch.linalg.svd(queries.T @ keys)
    width = len(queries)
    quarter = width // 4
    pair = torch.arange(width) % (width // 2) % quarter  # 0: turned fastest
    order = pair.argsort(descending=True, stable=True)
    new = [torch.empty_like(queries), torch.empty_like(keys)]
    root = found[:width, None].sqrt()
    new[0][order], new[1][order] = root * left.T[:width], root * right[:width]
    return new[0], new[1]


def _copy_language(language: Any, old: Any) -> None:
    language.embed_tokens.weight[: len(old.embed_tokens.weight)] = old.embed_tokens.weight
    language.embed_tokens.weight[len(old.embed_tokens.weight) :] = old.embed_tokens.weight.mean(0)
    language.norm.load_state_dict(old.norm.state_dict())
    for new, layer in zip(language.layers, old.layers, strict=True):
        new.mlp.load_state_dict(layer.mlp.state_dict())
        new.input_layernorm.load_state_dict(layer.input_layernorm.state_dict())
        new.post_attention_layernorm.load_state_dict(layer.post_attention_layernorm.state_dict())
        ours, theirs = new.self_attn, layer.self_attn
        heads, width = ours.config.num_attention_heads, ours.head_dim
        # Pair j of the smaller head becomes pair WIDE * j, which is turned as fast.
        half = torch.arange(width // WIDE // 2) * WIDE
        places = torch.cat((half, half + width // 2))
        for name, norm, free in (("q_proj", ours.q_norm, 1), ("k_proj", ours.k_norm, 1 + WIDE)):
            known = _apart(getattr(theirs, name), heads)
            wide = torch.zeros(heads, width, known.shape[2])
            wide[:, places] = known
            # The constant stands in a pair where the others have none, so it adds nothing to products.
            size = known.square().sum((1, 2)).sqrt() * LOUD
            size = size.max().expand(heads)
            wide[:, free, -1] = size
            getattr(ours, name).weight.copy_(wide.flatten(0, 1)[:, :-1])
            getattr(ours, name).bias.copy_(wide.flatten(0, 1)[:, -1])
            norm.weight.fill_(float(size[0]) / width**0.5)
        ours.q_norm.weight.mul_(WIDE**0.5)  # products are divided by the root of a head's width
        wide = torch.zeros(heads, width, theirs.v_proj.in_features + 1)
        wide[:, places] = _apart(theirs.v_proj, heads)
        ours.v_proj.weight.copy_(wide.flatten(0, 1)[:, :-1])
        ours.v_proj.bias.copy_(wide.flatten(0, 1)[:, -1])
        out = torch.zeros(theirs.o_proj.out_features, heads, width)
        out[:, :, places] = theirs.o_proj.weight.view(len(out), heads, -1)
        ours.o_proj.weight.copy_(out.flatten(1))
        ours.o_proj.bias.zero_()


# --- the tower ---
def patches_of(pixels: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N * patches, 3 * PATCH ** 2), in the order of the tokens that patches are merged into."""
    cut = pixels.view(len(pixels), 3, SIDE, 2, PATCH, SIDE, 2, PATCH)
    return cut.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(0, 4).flatten(1)


def grids_of(frames: int) -> Tensor:
    return torch.tensor([[frames, GRID, GRID]])


class Merged(nn.Module):
    """The tower as encode_videos() calls one: what the language model gets of each frame."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor, **_: Any) -> Any:
        merged = self.tower(patches_of(pixels), grids_of(len(pixels))).pooler_output
        return argparse.Namespace(hidden_states=[merged])


def teach_tower(args: argparse.Namespace, model: Any, small: Any) -> float:
    """The tower learns the smaller one's states after each layer, and what its projector makes of the last ones."""
    teacher, tower = small.model.vision_tower, model.model.visual
    small.requires_grad_(False).eval()
    order = torch.arange(GRID * GRID).view(SIDE, 2, SIDE, 2).transpose(1, 2).flatten()

    def loss(step: int) -> tuple[Tensor, str]:
        pixels = frame_batch(step, args.seed, args.tower_batch).pixels
        with torch.no_grad():
            states = teacher(pixels, output_hidden_states=True).hidden_states[1:]
            projected = small.model.multi_modal_projector(states[-1])
            wanted = [state[:, order].flatten(0, 1) for state in states]
            wanted.append(small.model.apply_pooling(projected).flatten(0, 1))
        found: list[Tensor] = []
        hooks = [block.register_forward_hook(lambda *call: found.append(call[2])) for block in tower.blocks]
        merged = tower(patches_of(pixels), grids_of(len(pixels))).pooler_output
        for hook in hooks:
            hook.remove()
        unexplained = [
            F.mse_loss(one, other) / (other - other.mean(0)).square().mean()
            for one, other in zip((*found, merged), wanted, strict=True)
        ]
        return torch.stack(unexplained).sum(), "unexplained " + " ".join(f"{x:.4f}" for x in unexplained)

    return learn_tower(args, tower, {"model": tower}, loss)


# --- the language model ---
def embed_videos(model: Any, tokenizer: Qwen2Tokenizer, features: Tensor, times: np.ndarray) -> tuple[Tensor, Tensor]:
    """Features (B, frames, tokens, D) and seconds (B, frames) -> what stands for the videos, as the processor writes
    them, (B, n, D), and the M-RoPE positions (3, n) of the sheet's prompt and that, which are the same for all."""
    first = (times - times[:, :1]).clip(0, 9.9)  # as tango.inference.chat has it; one digit before the point
    embed = model.get_input_embeddings()
    start, end = (embed.weight[tokenizer.convert_tokens_to_ids(mark)] for mark in MARKS[:2])
    said = torch.tensor([[tokenizer(f"<{t:.1f} seconds>").input_ids for t in row] for row in first.tolist()])
    batch, frames = features.shape[:2]
    parts = [embed(said), start.expand(batch, frames, 1, -1), features, end.expand(batch, frames, 1, -1)]
    before, rows = said.shape[2] + 1, torch.arange(SIDE)
    own = torch.stack((torch.zeros(SIDE, SIDE).long(), *torch.meshgrid(rows, rows, indexing="ij"))).flatten(1)
    frame = torch.cat((torch.arange(before).expand(3, -1), own + before, torch.full((3, 1), before + SIDE)), 1)
    prompt = len(tokenizer(f"{TURN}user ").input_ids)
    places = [torch.arange(prompt).expand(3, -1)]
    places += [frame + prompt + n * (before + SIDE + 1) for n in range(frames)]
    return torch.cat(parts, 2).flatten(1, 2), torch.cat(places, 1)


def teach_language(
    args: argparse.Namespace, tokenizer: Qwen2Tokenizer, model: Any
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds and scores; the tower is frozen."""
    rank, world = workers()
    (train_x, train_t), (val_x, val_t) = (
        encode_videos(Merged(model.model.visual).eval(), first, amount, args.seed, args.work / f"{label}.npy",
                      f"{label} videos", (SIDE * SIDE, model.config.text_config.hidden_size))
        for label, first, amount in (
            ("train", TRAIN_SEED, args.videos),
            ("validation", VALIDATION_SEED, args.validation_videos),
        )
    )  # fmt: skip

    def batch(step: int) -> tuple[Tensor, Sheet]:
        frames, kinds, starts = pick_frames(np.random.default_rng([5, args.seed, step]), args.frames)
        rows = args.language_batch * 8 // min(8, len(frames))
        shown, asked, times = [], [], []
        for row in range(rank, rows, world):
            v, seen, pairs = pick_questions(args, train_t, frames, starts, kinds, [6, args.seed, step, row])
            shown.append(train_x[v, seen])
            times.append(train_t[v, seen])
            asked.append(pairs)
        features = torch.from_numpy(np.stack(shown)).float()
        video, places = embed_videos(model, tokenizer, features, np.stack(times))
        given = sheet(tokenizer, asked)
        given.places = places
        return video, given

    def show(v: int, _: Spec) -> tuple[Tensor, np.ndarray, Tensor]:
        frames = np.arange(0, CANDIDATES, 2)
        shown = torch.from_numpy(val_x[v : v + 1, frames]).float()
        video, places = embed_videos(model, tokenizer, shown, val_t[v : v + 1, frames])
        return video, val_t[v, frames], places

    model.model.visual.requires_grad_(False)
    print("before the language model learns:", validate(model, tokenizer, len(val_x), show), flush=True)
    seconds, scores = learn(
        args, "language", model, {"model": model}, args.language_steps, args.language_rate, batch,
        lambda: validate(model, tokenizer, len(val_x), show),
    )  # fmt: skip
    return {"language": seconds}, scores
