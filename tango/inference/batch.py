"""Prompts of several conversations as one batch for generate(): padded on the left, so that all end in one column."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tango.inference.timing import StopAt


class Prepared(NamedTuple):
    """A prompt of one row: the model's inputs, what a pruner takes beside them, and each video's frames and tokens."""

    inputs: dict[str, Any]
    extra: dict[str, Any]
    sizes: list[tuple[int, int]]


def batches(prepared: Sequence[Prepared]) -> list[list[int]]:
    """Which prompts can share a call, as their places: those whose images and videos can be laid into one tensor."""
    found: dict[Any, list[int]] = {}
    for place, (inputs, extra, _) in enumerate(prepared):
        shapes = {name: values.shape[1:] if isinstance(values, Tensor) else () for name, values in inputs.items()}
        of_text = {name for name in inputs if _a_token_each(inputs, name)}
        kind = [(name, "text" if name in of_text else tuple(shapes[name])) for name in sorted(inputs)]
        found.setdefault((*kind, *sorted(extra)), []).append(place)
    return list(found.values())


def together(prepared: Sequence[Prepared], pad: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inputs of prompts that can share a call, one row each; shorter ones begin with `pad`, masked out.

    Images, videos, their sizes and times follow one another in the order of the rows.
    """
    if len(prepared) == 1:
        return prepared[0].inputs, prepared[0].extra
    first, longest = prepared[0].inputs, max(own.inputs["input_ids"].shape[1] for own in prepared)
    joined: dict[str, Any] = {}
    for name in first:
        values = [own.inputs[name] for own in prepared]
        if _a_token_each(first, name):
            filler = pad if name == "input_ids" else 0
            values = [torch.nn.functional.pad(row, (longest - row.shape[1], 0), value=filler) for row in values]
        joined[name] = torch.cat(values) if isinstance(values[0], Tensor) else [one for each in values for one in each]
    extra = {name: [one for own in prepared for one in own.extra[name]] for name in prepared[0].extra}
    return joined, extra


def reply(new: Tensor, row: int, ends: int | Sequence[int] | None, stop: StopAt) -> Tensor:
    """The new tokens (n,) of a row of a batch, without what fills it up after its end."""
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    over = torch.isin(new, new.new_tensor(ends)).nonzero()[:1] + 1
    return new[: min([len(new), *over.flatten().tolist(), *([stop.ended[row]] if row in stop.ended else [])])]


def _a_token_each(inputs: Mapping[str, Any], name: str) -> bool:
    """Whether an input has an entry for each token of the prompt."""
    values = inputs[name]
    return isinstance(values, Tensor) and values.shape == inputs["input_ids"].shape
