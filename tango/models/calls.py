"""What calls become while a pruner is attached, besides the pruned prompt.

forward() by the caller's hand, or by generate() without a cache; the mask and the lengths of generate(). Going on from
a cache is in cache.py.
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tango.models.cache import held_by, next_tokens
from tango.models.family import Family
from tango.models.in_llm import DecoderPruner
from tango.models.prompt import OURS, Prompt, take, without, written


def by_hand(
    inputs: dict[str, Any], family: Family, decoder_pruner: DecoderPruner | None, prune: Callable[..., Prompt]
) -> dict[str, Any]:
    """The arguments of forward() on the pruned prompt; its logits are (B, W, vocabulary).

    `labels` and `shift_labels` follow their tokens. Takes the extra keyword arguments of generate(). Without videos, a
    call that goes on from the cache of a pruned prompt gets the mask and the positions that fit what the cache holds.
    """
    if not family.has_video(inputs):
        call, held = without(inputs, OURS), held_by(inputs, decoder_pruner)
        return call if held is None else call | next_tokens(held, inputs, whole=False)
    labels = [name for name in ("labels", "shift_labels") if inputs.get(name) is not None]
    if decoder_pruner is not None and labels:
        raise ValueError(f"{labels[0]} do not work with pruning inside the language model: their tokens may be dropped "
                         "there; compute the loss from the logits, or unset pruned_layer")  # fmt: skip
    shape = written(inputs).shape[:2]
    if wrong := [name for name in labels if inputs[name].shape != shape]:
        raise ValueError(f"{wrong[0]} has shape {tuple(inputs[wrong[0]].shape)}; the prompt before pruning has "
                         f"{tuple(shape)}")  # fmt: skip
    prompt = prune(inputs, side=None)
    call = without(inputs, (*OURS, *family.inputs, "input_ids"))
    whole = prompt.unchanged and decoder_pruner is None
    if not whole and isinstance(inputs.get("logits_to_keep"), Tensor):
        raise ValueError("logits_to_keep as a tensor of positions does not work while a pruner is attached: "
                         "positions move; pass a number of last positions")  # fmt: skip
    for name, padding in (("labels", -100), ("token_type_ids", 0), ("mm_token_type_ids", 0)):
        if inputs.get(name) is not None:
            call[name] = inputs[name] if prompt.unchanged else take(inputs[name], prompt.source, padding)
    if inputs.get("shift_labels") is not None and not prompt.unchanged:
        call["shift_labels"] = shifted(inputs["shift_labels"], prompt.source)
    return call | {name: getattr(prompt, name) for name in ("inputs_embeds", "attention_mask", "position_ids")}


def named(model: Any, name: str, method: Any, args: Sequence[Any]) -> dict[str, Any]:
    """Positional arguments by name: as the model's method names them or, if that takes *args, the first of its classes
    that names as many.
    """
    for each in (method, *(vars(cls).get(name) for cls in type(model).__mro__)):
        parameters = inspect.signature(each).parameters.values() if each is not None else ()
        names = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD and one.name != "self"]
        if len(names) >= len(args):
            return dict(zip(names, args, strict=False))
    raise TypeError(f"{name}() got {len(args)} arguments without names, more than it has")


def shifted(shift_labels: Tensor, source: Tensor) -> Tensor:
    """Labels (B, N) of each column's next token, for the columns of source (B, W): (B, W), -100 where none follows."""
    following = torch.nn.functional.pad(source[:, 1:], (0, 1), value=-1)
    last = shift_labels.shape[1] - 1  # its next token is beyond the prompt, and stays so
    column = torch.where(source == last, last, (following - 1).masked_fill(following <= 0, -1))
    return take(shift_labels, column, -100)


def without_cache(inputs: dict[str, Any], prompt: Prompt, full: int, embed: nn.Module) -> dict[str, Any]:
    """One step of generation without a cache: the pruned prompt of N = full columns, then the tokens so far."""
    new = inputs.pop("input_ids")[:, full:]
    times = len(new) // len(prompt.inputs_embeds)  # beams, returned sequences: rows of one prompt lie together
    mask, positions = prompt.attended().long(), prompt.position_ids
    if positions is None:
        positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 0)
    mask, positions = mask.repeat_interleave(times, 0), positions.repeat_interleave(times, -2)
    later = positions[..., -1:] + torch.arange(1, new.shape[1] + 1, device=positions.device)
    embeds = prompt.inputs_embeds.repeat_interleave(times, 0)
    return inputs | {
        "inputs_embeds": torch.cat((embeds, embed(new)), 1),
        "attention_mask": torch.cat((mask, mask.new_ones(new.shape)), 1),
        "position_ids": torch.cat((positions, later), -1),
    }


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
