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
    (T, D).
    """

    row: int
    before: Tensor
    after: Tensor
    embeddings: Tensor


@dataclass(frozen=True)
class Prompt:
    """A pruned prompt of width W.

    inputs_embeds (B, W, D); attention_mask (B, W) or None; position_ids (.., B, W) or None (numbered by the model);
    source (B, W) int64: the column of the unpruned prompt that each position comes from, -1 for padding;
    unchanged: nothing was dropped, so that the caller's own mask, positions and labels still fit.
    """

    inputs_embeds: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor | None
    source: Tensor
    unchanged: bool

    def align(self, tensor: Tensor, padding: int) -> Tensor:
        """Take a (B, N, ..) tensor of the unpruned prompt to (B, W, ..)."""
        return tensor if self.unchanged else take(tensor, self.source, padding)


def shorten(family: "Family", inputs: Mapping[str, Any], edits: Sequence[Edit], side: Side | None) -> Prompt:
    """The prompt (input_ids or inputs_embeds of `inputs`, with its mask and positions) after the edits of its videos.

    side: where rows that end up shorter than others are padded; None: where the prompt is padded already, or left.
    A prompt of which nothing is dropped keeps its width, padding, mask and positions.
    """
    embeds, mask = inputs.get("inputs_embeds"), inputs.get("attention_mask")
    ids = inputs["input_ids"] if embeds is None else None
    given: Tensor = inputs["input_ids"] if embeds is None else embeds
    batch, width = given.shape[:2]
    columns = torch.arange(width, device=given.device)
    kept = torch.ones(batch, width, dtype=torch.bool, device=given.device)
    for edit in edits:
        kept[edit.row, edit.before] = False
        kept[edit.row, edit.after] = True
    attended = torch.ones_like(kept) if mask is None else mask.to(kept.device).bool()
    stay = kept if bool(kept.all()) else kept & attended
    rows = [columns[row] for row in stay]
    slots = [place(rows[edit.row], edit.after) for edit in edits]
    source = pad(rows, side or padding_side(attended))
    unchanged = source.shape == kept.shape and bool((source == columns).all())

    real = source >= 0
    out = family.embed(
        None if ids is None else take(ids, source), None if embeds is None else take(embeds, source), real, inputs
    )
    for edit, slot in zip(edits, slots, strict=True):
        start = int(real[edit.row].int().argmax())  # padding on the left
        out[edit.row, (slot + start).to(out.device)] = edit.embeddings.to(out.device, out.dtype)

    positions = inputs.get("position_ids")
    if unchanged:
        return Prompt(out, mask, positions, source, unchanged)
    attended = real & take(attended, source)
    if mask is not None:
        mask = attended.to(mask.device, mask.dtype)
    elif not bool(real.all()):
        mask = attended.long()
    return Prompt(out, mask, family.positions(positions, source, attended), source, unchanged)


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
            f"{len(columns)} embeddings of a video have {len(slots)} places in the prompt: the pruner gave an index "
            "twice, or attention_mask hides placeholders of the video"
        )
    row[slots] = columns
    return slots
