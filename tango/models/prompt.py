"""A prompt with fewer video tokens: choose the columns that stay, pad the rows to one width, embed, put videos in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from tango.models.family import Family

Side = Literal["left", "right"]


@dataclass(frozen=True)
class Edit:
    """What becomes of one video in row `row` of a prompt.

    Its placeholders stood in `before` (n,); of those columns `after` (T,) stay, in this order, and hold `embeddings`
    (T, D + X), X of the family. A column may stay twice. `visual` (T,) is False where that is a newline.
    """

    row: int
    before: Tensor
    after: Tensor
    embeddings: Tensor
    visual: Tensor


@dataclass(frozen=True)
class Prompt:
    """A pruned prompt of width W.

    inputs_embeds (B, W, D); extra (B, W, X): what the family adds to them elsewhere in the model; attention_mask (B, W)
    or None; position_ids (.., B, W) or None (numbered by the model);
    source (B, W) int64: the column of the unpruned prompt that each position comes from, -1 for padding;
    spans (B, W) int64: the video that each position belongs to, counted over the whole prompt, newlines included; -1
    elsewhere; visual (B, W) bool: where a visual token of a video stands;
    unchanged: nothing was dropped, so that the caller's own mask, positions and labels still fit.
    """

    inputs_embeds: Tensor
    extra: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor | None
    source: Tensor
    spans: Tensor
    visual: Tensor
    unchanged: bool

    def attended(self) -> Tensor:
        """Where the prompt is not padded (B, W), bool."""
        return torch.ones_like(self.visual) if self.attention_mask is None else self.attention_mask.bool()

    def align(self, tensor: Tensor, padding: int) -> Tensor:
        """Take a (B, N, ..) tensor of the unpruned prompt to (B, W, ..)."""
        return tensor if self.unchanged else take(tensor, self.source, padding)


def shorten(
    family: "Family", inputs: Mapping[str, Any], edits: Sequence[Edit], side: Side | None, gaps: bool = False
) -> Prompt:
    """The prompt (input_ids or inputs_embeds of `inputs`, with its mask and positions) after the edits of its videos.

    side: where rows that end up shorter than others are padded; None: where the prompt is padded already, or left.
    gaps: every token keeps the position it has in the unpruned prompt, also where the family numbers without gaps.
    A prompt of which nothing is dropped keeps its width, padding, mask and positions.
    """
    embeds, mask = inputs.get("inputs_embeds"), inputs.get("attention_mask")
    ids = inputs["input_ids"] if embeds is None else None
    given: Tensor = inputs["input_ids"] if embeds is None else embeds
    batch, width = given.shape[:2]
    columns = torch.arange(width, device=given.device)
    copies = torch.ones(batch, width, dtype=torch.long, device=given.device)
    for edit in edits:
        copies[edit.row, edit.before] = 0
        copies[edit.row] += torch.bincount(edit.after.to(copies.device), minlength=width)
    shown = torch.ones_like(copies, dtype=torch.bool) if mask is None else mask.to(copies.device).bool()
    if bool((copies != 1).any()):
        copies = copies.masked_fill(~shown, 0)
    rows = [columns.repeat_interleave(row) for row in copies]
    slots = [place(rows[edit.row], edit.after) for edit in edits]
    source = pad(rows, side or padding_side(shown))
    unchanged = source.shape == copies.shape and bool((source == columns).all())

    real = source >= 0
    out = family.embed(
        None if ids is None else take(ids, source), None if embeds is None else take(embeds, source), real, inputs
    )
    spans, visual = torch.full_like(source, -1), torch.zeros_like(real)
    for index, (edit, slot) in enumerate(zip(edits, slots, strict=True)):
        places = slot + int(real[edit.row].int().argmax())  # padding on the left
        out[edit.row, places.to(out.device)] = edit.embeddings.to(out.device, out.dtype)
        spans[edit.row, places] = index
        visual[edit.row, places] = edit.visual.to(places.device)

    narrow = out.shape[-1] - family.extra_width
    out, extra = out[..., :narrow].contiguous(), out[..., narrow:]

    attended = real & take(shown, source)
    positions, numbered = family.positions(inputs, source, attended), inputs.get("position_ids")
    gaps = gaps and positions is None and not unchanged
    if gaps:
        whole = (shown.long().cumsum(1) - 1).clamp(min=0) if numbered is None else numbered.expand(batch, -1)
        positions = take(whole, source)
    elif positions is None and numbered is not None:
        positions = numbered if unchanged else renumber(numbered, source, attended)
    if not unchanged:
        if mask is not None:
            mask = attended.to(mask.device, mask.dtype)
        elif gaps or not bool(real.all()):  # without a mask, gaps would be taken for the starts of other sequences
            mask = attended.long()
    return Prompt(out, extra, mask, positions, source, spans, visual, unchanged)


def cache_of(kwargs: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a model or layer, under the name of transformers 5.20 or the one before."""
    cache = kwargs.get("cache")
    return kwargs.get("past_key_values") if cache is None else cache


def renumber(given: Tensor, source: Tensor, attended: Tensor) -> Tensor:
    """Positions (B, W) without gaps, each row going on from the first of those given to the unpruned prompt (B, N)."""
    first = take(given.expand(source.shape[0], -1), source).gather(1, attended.int().argmax(1, keepdim=True))
    return (first + attended.long().cumsum(1) - 1).masked_fill(~attended, 0)


def take(tensor: Tensor, source: Tensor, padding: float = 0) -> Tensor:
    """Rows of (B, N, ..) chosen by source (B, W); -1 gives `padding`."""
    source = source.to(tensor.device)
    rows = torch.arange(source.shape[0], device=tensor.device)[:, None]
    taken = tensor[rows, source.clamp(min=0)]
    missing = (source < 0).view(*source.shape, *[1] * (tensor.dim() - 2))
    return taken.masked_fill(missing, padding)


def padding_side(attended: Tensor) -> Side:
    return "right" if bool(attended[:, 0].all()) and not bool(attended[:, -1].all()) else "left"


def pad(rows: Sequence[Tensor], side: Side) -> Tensor:
    """Rows of different length as one (B, W) tensor, filled with -1."""
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=-1, padding_side=side)


def place(row: Tensor, columns: Tensor) -> Tensor:
    """Give a video's places in a row to its columns, in the order the pruner chose; returns those places (T,)."""
    columns = columns.to(row.device)
    slots = torch.isin(row, columns).nonzero().squeeze(1)
    if len(slots) != len(columns):
        raise ValueError(
            f"{len(columns)} embeddings of a video have {len(slots)} places in the prompt: attention_mask hides "
            "placeholders of the video"
        )
    row[slots] = columns
    return slots
