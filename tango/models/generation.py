"""What generate() is handed where a call has a length, no mask, no times, or a cache to go on from."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def infer_mask(inputs: dict[str, Any], setting: Callable[..., Any]) -> Tensor:
    """The mask generate() would make of the unpruned prompt: pads are masked unless eos is the pad."""
    if (ids := inputs.get("input_ids")) is None:
        return torch.ones_like(inputs["inputs_embeds"][..., 0], dtype=torch.long)
    pad, eos = setting(inputs, "pad_token_id"), setting(inputs, "eos_token_id")
    if pad is None or pad in (eos if isinstance(eos, list | tuple) else [eos]):
        return torch.ones_like(ids)
    mask: Tensor = ids != pad
    return mask.long()


def shift_length(call: dict[str, Any], name: str, value: int, ids: Tensor | None, width: int) -> None:
    """Add to max_length or min_length what generate() takes off it, so that it counts the unpruned prompt, of a width.

    It takes off the embeddings' width where that differs from the number of ids.
    """
    counted, shorter = 0 if ids is None else ids.shape[1], call["inputs_embeds"].shape[1]
    shift = (shorter if shorter != counted else 0) - (width if width != counted else 0)
    config = call.get("generation_config")
    if shift == 0:
        return
    if config is None or call.get(name) is not None:
        call[name] = value + shift
    else:
        call["generation_config"] = config = copy.deepcopy(config)
        setattr(config, name, value + shift)


def continued(call: dict[str, Any], embed: nn.Module) -> dict[str, Any]:
    """The same call of new tokens for generate(), which takes embeddings of all, and feeds those beyond the cache."""
    new = call.pop("inputs_embeds") if "inputs_embeds" in call else embed(call.pop("input_ids"))
    before = new.new_zeros(len(new), call["attention_mask"].shape[1] - new.shape[1], new.shape[2])
    return call | {"inputs_embeds": torch.cat((before, new), 1)}


def timestamps_of(video_metadata: Sequence[Any] | None) -> list[list[float] | None] | None:
    """Seconds of the sampled frames from a processor's `video_metadata`; None for a video without frame rate."""
    if video_metadata is None:
        return None
    timestamps: list[list[float] | None] = []
    for video in video_metadata:
        video = video[0] if isinstance(video, list | tuple) else video
        rate, frames = video["fps"], video["frames_indices"]
        timestamps.append(None if rate is None or frames is None else [float(frame) / rate for frame in frames])
    return timestamps
