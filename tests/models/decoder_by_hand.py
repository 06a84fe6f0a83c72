"""A decoder of the Qwen2 kind, layer by layer with full attention maps, and pruning inside it in plain loops.

One prompt at a time, no padding, no cache: what tango/models/in_llm.py is compared with.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tango.pruners import Pruner
from tango.pruners.in_llm import LayerPruning
from tango.pruners.unmerged import keep


class Inside(Pruner):
    """Lets the first tokens of each frame in (None: all), and does inside the language model what it is told."""

    name = "inside"

    def __init__(
        self, settings: LayerPruning | None, frame: int | None = None, positions: str = "transformers"
    ) -> None:
        super().__init__(retention_ratio=0.5, positions=positions)
        self.inside, self.frame = settings, frame

    def in_llm(self, layers):
        return self.inside

    def _prune(self, video):
        frames, tokens, _ = video.features.shape
        indices = torch.arange(frames * tokens)
        return keep(video.features, indices[indices % tokens < (self.frame or tokens)])


@dataclass
class Drop:
    """What to drop before a layer: all but round(share * n) places of each span of a prompt of `length` places.

    causal: False lets the prompt's tokens see each other in the layer before.
    """

    layer: int
    share: float
    length: int
    spans: list[list[int]]
    merging: str = "drop"
    causal: bool = True
    left: list[list[int]] = field(default_factory=list)  # filled: the places of each span that stayed


def run(decoder: Any, embeds: Tensor, positions: Tensor, drop: Drop, deepstack: Sequence[Tensor] = ()) -> Tensor:
    """Normalised last hidden states (n', D) of embeds (n, D) at positions (.., 1, n), without a cache.

    deepstack: (n, D) each, added after layers 0, 1, ..
    """
    hidden, weights = embeds, embeds.new_empty(0)
    stay = list(range(len(embeds)))
    cos, sin = (part[0] for part in decoder.rotary_emb(embeds[None], positions))
    for index, layer in enumerate(decoder.layers):
        if index == drop.layer:
            hidden, stay = shrink(hidden, weights[:, drop.length - 1].mean(0), drop)
            cos, sin = cos[stay], sin[stay]
        attention = layer.self_attn
        normed = layer.input_layernorm(hidden)
        query, key, value = (
            split(projection(normed), attention.head_dim)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        query, key = turn(query, cos, sin), turn(key, cos, sin)
        groups = len(query) // len(key)
        scores = query @ key.repeat_interleave(groups, 0).transpose(1, 2) / attention.head_dim**0.5
        length = len(hidden)
        unseen = torch.ones(length, length).triu(1).bool()
        if not drop.causal and index == drop.layer - 1:
            unseen[: drop.length, : drop.length] = False
        weights = scores.masked_fill(unseen, float("-inf")).softmax(-1)
        mixed = weights @ value.repeat_interleave(groups, 0)
        hidden = hidden + attention.o_proj(mixed.transpose(0, 1).reshape(length, -1))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden)[None])[0]
        if index < len(deepstack):
            hidden = hidden + deepstack[index][stay]
    return decoder.norm(hidden)


def shrink(hidden: Tensor, scores: Tensor, drop: Drop) -> tuple[Tensor, list[int]]:
    """Hidden states (n', D) and places of what stays."""
    result, gone = list(hidden), set()
    drop.left = []
    for span in drop.spans:
        count = max(1, round(len(span) * drop.share))
        kept = sorted(sorted(span, key=lambda place: (-scores[place].item(), place))[:count])
        drop.left.append(kept)
        joined: dict[int, list[int]] = {place: [] for place in kept}
        for place in span:
            if place not in joined:
                gone.add(place)
                similar = [torch.cosine_similarity(hidden[place], hidden[other], 0).item() for other in kept]
                joined[kept[similar.index(max(similar))]].append(place)
        for place, members in joined.items():
            if drop.merging == "mean":
                mean = (hidden[place] + sum(hidden[member] for member in members)) / (1 + len(members))
                result[place] = 0.6 * hidden[place] + 0.4 * mean
            if drop.merging == "sequential":
                for member in members:
                    result[place] = (result[place] + hidden[member]) / 2
    stay = [place for place in range(len(hidden)) if place not in gone]
    return torch.stack([result[place] for place in stay]), stay


def split(states: Tensor, width: int) -> Tensor:
    return states.view(len(states), -1, width).transpose(0, 1)


def turn(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = states.shape[-1] // 2
    first, second = states[..., :half], states[..., half:]
    low, high = cos[..., :half], sin[..., :half]
    return torch.cat((first * low - second * high, second * low + first * high), -1)
