"""Many questions about one video in one pass, none of which sees another: what tango-tiny's language model learns from.

Asked one after the other in a conversation, later answers can be copied from earlier questions, and looking at the
video is not learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tiny_data import END, TURN
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen2Tokenizer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

SHORT, LONG = 22, 43  # tokens of a question asked openly and one with options, its answer included


@dataclass
class Sheet:
    """Questions about the videos of a batch, side by side: none sees another, so each is learned as if asked alone.

    `prompt` is what stands before the video. After it and the video come `groups` of (amount, length): that many
    questions, padded to that length.
    """

    prompt: Tensor  # (n,) ids
    ids: Tensor  # (B, T) of all questions
    labels: Tensor  # (B, T), -100 but for answers
    groups: list[tuple[int, int]]
    places: Tensor | None = None  # positions (3, n) of prompt and video, where they are no count of tokens


def sheet(tokenizer: Qwen2Tokenizer, asked: list[list[tuple[str, str]]]) -> Sheet:
    """Lays out the (question, answer) pairs of each video; every video must have as many of either length."""
    end = tokenizer.convert_tokens_to_ids(END)
    pad = tokenizer.pad_token_id
    rows: dict[int, list[tuple[list[int], list[int]]]] = {SHORT: [], LONG: []}
    for row in asked:
        for question, answer in row:
            before = tokenizer(f"\n{question}{END}\n{TURN}assistant\n").input_ids
            said = [*tokenizer(answer).input_ids, end]
            size = len(before) + len(said)
            length = SHORT if size <= SHORT else LONG
            if size > LONG:
                raise ValueError(f"{question!r} with {answer!r} takes {size} tokens, more than {LONG}")
            fill = length - size
            rows[length].append((before + said + [pad] * fill, [-100] * len(before) + said + [-100] * fill))
    groups = [(len(found) // len(asked), length) for length, found in rows.items() if found]
    parts = [torch.tensor(found).view(len(asked), -1, 2, length) for length, found in rows.items() if found]
    ids, labels = (torch.cat([part[:, :, side].flatten(1) for part in parts], 1) for side in (0, 1))
    return Sheet(torch.tensor(tokenizer(f"{TURN}user ").input_ids), ids, labels, groups)


class SideBySide:
    """Attention of a Sheet: the prompt and video causally; each question to them, and causally to itself.

    One call a group, the video's keys repeated for each question: far fewer products than one masked square.
    """

    def __init__(self, start: int, groups: list[tuple[int, int]]) -> None:
        self.start, self.groups = start, groups

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, None]:
        start = self.start
        outputs = [
            F.scaled_dot_product_attention(query[:, :, :start], key[:, :, :start], value[:, :, :start], is_causal=True)
        ]
        at = start
        batch, heads, _, width = query.shape
        for amount, length in self.groups:
            own = slice(at, at + amount * length)
            at = own.stop

            def questions_of(x: Tensor, own: slice = own, amount: int = amount, length: int = length) -> Tensor:
                return x[:, :, own].view(batch, heads, amount, length, width).transpose(1, 2).flatten(0, 1)

            def with_video(x: Tensor, amount: int = amount) -> Tensor:
                video = x[:, None, :, :start].expand(-1, amount, -1, -1, -1).flatten(0, 1)
                return torch.cat([video, questions_of(x)], 2)

            seen = torch.ones(length, start + length, dtype=torch.bool, device=query.device).tril(start)
            out = F.scaled_dot_product_attention(
                questions_of(query), with_video(key), with_video(value), attn_mask=seen
            )
            outputs.append(out.view(batch, amount, heads, length, width).transpose(1, 2).flatten(2, 3))
        return torch.cat(outputs, 2).transpose(1, 2), None


def hidden_states(model: Any, given: Sheet, video: Tensor) -> Tensor:
    """Last hidden states (B, T, D) of the questions on a sheet, after videos (B, tokens, D)."""
    embed, language = model.get_input_embeddings(), model.model.language_model
    prompt = embed(given.prompt.to(video.device)).expand(len(video), -1, -1)
    hidden = torch.cat([prompt, video, embed(given.ids.to(video.device))], 1)
    start = prompt.shape[1] + video.shape[1]
    places = torch.arange(start)[None] if given.places is None else given.places
    first = int(places.max()) + 1
    after = [(first + torch.arange(length)).repeat(amount).expand(len(places), -1) for amount, length in given.groups]
    positions = torch.cat([places, *after], 1).to(hidden.device)
    positions = positions if given.places is None else positions[:, None]
    rotary = language.rotary_emb(hidden, positions)
    ALL_ATTENTION_FUNCTIONS.register("side_by_side", SideBySide(start, given.groups))
    kind = language.config._attn_implementation
    language.config._attn_implementation = "side_by_side"
    try:
        for layer in language.layers:
            hidden = layer(hidden, attention_mask=None, position_ids=positions, position_embeddings=rotary)
    finally:
        language.config._attn_implementation = kind
    return language.norm(hidden)[:, start:]
