"""Going on from the cache of a pruned prompt, as chat programs do with a second question about the same video.

Such a cache has fewer entries than the conversation has tokens, so that neither the caller nor transformers can tell
from its length which tokens are new, nor which position comes next. What seam.py leaves on the cache, a `Held`, does.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tango.models.in_llm import MARK, DecoderPruner
from tango.models.prompt import HELD, Held, cache_of, written


def held_by(inputs: Mapping[str, Any], decoder_pruner: DecoderPruner | None) -> Held | None:
    """What the cache among the arguments of a call holds of a pruned prompt; None: no cache, or none of ours.

    Raises ValueError for a cache that was filled by pruning inside the language model where none is attached.
    """
    cache = cache_of(inputs)
    held: Held | None = getattr(cache, HELD, None)
    if held is not None and int(cache.get_seq_length()) == 0:  # emptied since, as static caches are
        delattr(cache, HELD)
        return None
    if held is not None and decoder_pruner is None and hasattr(cache, MARK):
        raise ValueError(
            f"the cache holds a prompt pruned before layer {getattr(cache, MARK).layer}, and the attached method "
            "prunes before no layer: go on from it with the method that filled it"
        )
    return held


def next_tokens(held: Held, inputs: Mapping[str, Any], whole: bool) -> dict[str, Any]:
    """Arguments of a call that goes on from a cache of C tokens: the M new tokens, their mask and their positions.

    whole: the prompt is the whole conversation where its mask does not say otherwise; else the new tokens alone.
    Gives `input_ids` or `inputs_embeds` (B, M, ..), attention_mask (B, C + M) and position_ids (.., B, M).

    Raises ValueError for another conversation than the cache holds, and for a mask or rows that do not fit.
    """
    for name in ("pixel_values", "pixel_values_videos"):
        if inputs.get(name) is not None:
            raise ValueError(
                f"{name} came with a cache that holds a pruned prompt: videos and images must come in the first "
                f"prompt; leave {name} out, or pass an empty cache"
            )
    text, mask, length = written(inputs), inputs.get("attention_mask"), int(cache_of(inputs).get_seq_length())
    name = "inputs_embeds" if text.dim() == 3 else "input_ids"
    prompt, full = held.prompt, held.shown.shape[1]
    rows, width = prompt.source.shape
    after = length - width  # tokens that came after the prompt
    if after < 0:
        raise ValueError(f"the cache was cut to {length} tokens, within its pruned prompt of {width}: pass an empty "
                         "cache, with the video")  # fmt: skip
    if len(text) % rows:
        raise ValueError(f"the cache holds {rows} prompts, and {name} has {len(text)} rows: pass a multiple of these")
    times = len(text) // rows
    if isinstance(mask, Tensor) and mask.dim() != 2:
        raise ValueError(f"attention_mask has {mask.dim()} dimensions: to go on from a pruned prompt pass one of shape "
                         "(rows, tokens), or none")  # fmt: skip
    before = full + after  # columns of the conversation that the cache holds
    if whole and (mask is None or mask.shape[1] == text.shape[1]):
        same = held.ids is None or text.dim() == 3 or starts_with(text, held, times)
        if text.shape[1] > before and same:
            text = text[:, before:]
        elif mask is not None or text.shape[1] > before:
            raise ValueError(
                f"the cache holds {before} tokens of a conversation that {name}, of shape {tuple(text.shape[:2])}, "
                "does not go on from: pass the whole conversation, or the new tokens with a mask of all"
            )
    new = text.shape[1]
    tail = torch.ones(len(text), after + new, dtype=torch.long, device=text.device)
    if mask is not None:
        if mask.shape[1] not in (length + new, before + new):
            raise ValueError(
                f"attention_mask has shape {tuple(mask.shape)}: for {new} new tokens after a cache of {length} it must "
                f"have {length + new} columns, or {before + new} with all of the unpruned prompt"
            )
        tail = mask[:, mask.shape[1] - after - new :].to(text.device).long()
    call: dict[str, Any] = {name: text}
    call["attention_mask"] = torch.cat((prompt.attended().to(text.device).long().repeat_interleave(times, 0), tail), 1)
    if inputs.get("position_ids") is None or whole:
        places = tail.cumsum(1) - 1 if whole else torch.arange(after + new, device=text.device).expand_as(tail)
        start = next_position(held).to(text.device).repeat_interleave(times, -1)
        call["position_ids"] = start[..., None] + places[:, after:].clamp(min=0)
    return call


def continued(call: dict[str, Any], embed: nn.Module) -> dict[str, Any]:
    """The same call of new tokens for generate(), which takes embeddings of all, and feeds those beyond the cache."""
    new = call.pop("inputs_embeds") if "inputs_embeds" in call else embed(call.pop("input_ids"))
    before = new.new_zeros(len(new), call["attention_mask"].shape[1] - new.shape[1], new.shape[2])
    return call | {"inputs_embeds": torch.cat((before, new), 1)}


def next_position(held: Held) -> Tensor:
    """The position (.., B) of the token that follows a held prompt."""
    prompt, mask = held.prompt, held.prompt.attended()
    if prompt.next is None or prompt.position_ids is None:
        return mask.sum(1) if held.numbered else torch.full_like(mask[:, 0], mask.shape[1], dtype=torch.long)
    if held.numbered and not bool(prompt.visual[:, -1].any()):  # as generate() goes on itself
        return prompt.position_ids[..., -1].expand_as(prompt.next) + 1
    return prompt.next


def starts_with(ids: Tensor, held: Held, times: int) -> bool:
    """Whether ids (B, ..) begin with those of the held prompt; what its mask hid is not compared."""
    prompt, shown = (
        x.to(ids.device).repeat_interleave(times, 0) for x in (held.ids if held.ids is not None else ids, held.shown)
    )
    return ids.shape[1] >= prompt.shape[1] and bool(((ids[:, : prompt.shape[1]] == prompt) | ~shown).all())
