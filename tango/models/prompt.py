"""A prompt with fewer video tokens: which columns stay, in rows of one width, and where the videos go among them.

Also what the caller of attach() learns of its videos: how many tokens of each were left, and which.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tango.models import refusals
from tango.models.versions import CACHES

PaddingSide = Literal["left", "right"]
OURS = ("video_timestamps", "video_keys", "video_metadata", "video_frames")  # arguments there are while attached
HELD = "tango_prompt"  # the attribute of a cache that holds its Held


@dataclass(frozen=True)
class VideoRecord:
    """What became of one video. Token counts are visual tokens; newline embeddings are not counted.

    `indices` (tokens_after,) are flat indices f*H*W + h*W + w on the CPU, in the order the method
    gives them, in which the language model sees them unless its family lays tokens out in rows (LLaVA-Video).
    tokens_in_llm: those that its last layers still see, where they are pruned inside it too, and average_retention:
    the share of tokens_before that its layers see at prefill, in the mean over all of them. tower_computed: the share
    of its work that the vision tower did, less than 1 with tower_reuse.
    """

    tokens_before: int
    tokens_after: int
    grid: tuple[int, int]
    frames: int
    segment_sizes: list[int]
    indices: Tensor
    tokens_in_llm: int
    average_retention: float
    tower_computed: float


class Session:
    """What the caller of attach() gets: `videos`, one record per video of the last call, in prompt order.

    A thread that has called the model reads the records of its own last call, any other thread those of the latest.
    """

    def __init__(self) -> None:
        self._latest: list[VideoRecord] = []
        self._own = threading.local()

    @property
    def videos(self) -> list[VideoRecord]:
        records: list[VideoRecord] = getattr(self._own, "videos", self._latest)
        return records

    @videos.setter
    def videos(self, records: list[VideoRecord]) -> None:
        self._own.videos = self._latest = records


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
    next (.., B): the position of the token that follows, where position_ids are not None;
    unchanged: nothing was dropped, so that the caller's own mask, positions and labels still fit.
    """

    inputs_embeds: Tensor
    extra: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor | None
    source: Tensor
    spans: Tensor
    visual: Tensor
    next: Tensor | None
    unchanged: bool

    def attended(self) -> Tensor:
        """Where the prompt is not padded (B, W), bool."""
        return torch.ones_like(self.visual) if self.attention_mask is None else self.attention_mask.bool()


@dataclass(frozen=True)
class Held:
    """What a cache holds, for cache.py: a pruned prompt, without its embeddings, and the unpruned one's ids and mask.

    ids (B, N) or None; shown (B, N) bool; numbered: positions go on from those of the mask, not from its places.
    """

    prompt: Prompt
    ids: Tensor | None
    shown: Tensor
    numbered: bool


def columns_left(shown: Tensor, edits: Sequence[Edit], padding_side: PaddingSide | None) -> tuple[Tensor, list[Tensor]]:
    """The columns that stay, (B, W), -1 for padding; and the places (T,) of each edit in that width.

    shown: (B, N) bool, where the prompt is not padded. A prompt of which nothing is dropped keeps its padding.
    """
    columns = torch.arange(shown.shape[1], device=shown.device)
    copies = torch.ones_like(shown, dtype=torch.long)
    for edit in edits:
        copies[edit.row, edit.before] = 0
        copies[edit.row] += torch.bincount(edit.after.to(copies.device), minlength=len(columns))
    if bool((copies != 1).any()):
        copies = copies.masked_fill(~shown, 0)
    rows = [columns.repeat_interleave(row) for row in copies]
    places = [place(rows[edit.row], edit.after) for edit in edits]
    source = pad(rows, padding_side or side_of_padding(shown))
    # Padding on the left moves a row's places.
    return source, [own + int((source[edit.row] >= 0).int().argmax()) for edit, own in zip(edits, places, strict=True)]


def place(row: Tensor, columns: Tensor) -> Tensor:
    """Give a video's places in a row to its columns, in the order the pruner chose; returns those places (T,)."""
    columns = columns.to(row.device)
    places = torch.isin(row, columns).nonzero().squeeze(1)
    if len(places) != len(columns):
        raise refusals.hidden_placeholders(len(columns), len(places))
    row[places] = columns
    return places


def take(tensor: Tensor, source: Tensor, padding: float = 0) -> Tensor:
    """Rows of (B, N, ..) chosen by source (B, W); -1 gives `padding`."""
    source = source.to(tensor.device)
    taken = tensor[torch.arange(len(source), device=tensor.device)[:, None], source.clamp(min=0)]
    missing = (source < 0).view(*source.shape, *[1] * (tensor.dim() - 2))
    return taken.masked_fill(missing, padding)


def side_of_padding(attended: Tensor) -> PaddingSide:
    """Where rows (B, N) are padded; left where they are not."""
    return "right" if bool(attended[:, 0].all()) and not bool(attended[:, -1].all()) else "left"


def pad(rows: Sequence[Tensor], side: PaddingSide) -> Tensor:
    """Rows of different length as one (B, W) tensor, filled with -1."""
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=-1, padding_side=side)


def written(inputs: Mapping[str, Any]) -> Tensor:
    """The text of a prompt: the embeddings (B, N, D) if the caller gives some, else the ids (B, N)."""
    for name in ("inputs_embeds", "input_ids"):
        if inputs.get(name) is not None:
            text: Tensor = inputs[name]
            return text
    raise ValueError("a prompt with videos needs input_ids or inputs_embeds")


def cache_of(inputs: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a model or layer."""
    return next((inputs[name] for name in CACHES if inputs.get(name) is not None), None)


def without(inputs: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The arguments of a call but for those of these names."""
    return {name: value for name, value in inputs.items() if name not in names}
