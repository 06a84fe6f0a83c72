"""What a task may ask of generate(): its settings by name, as lmms-eval's tasks write them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# What a request may set; anything else would silently be without effect.
SAMPLING = ("temperature", "top_p", "top_k")
PASSED_ON = (
    "max_new_tokens",
    "min_new_tokens",
    "num_beams",
    "length_penalty",
    "repetition_penalty",
    "no_repeat_ngram_size",
)
IGNORED = ("image_aspect_ratio",)  # older tasks carry it; the processor decides
GENERATION = (*PASSED_ON, *SAMPLING, "do_sample", "until", *IGNORED)


def generation_settings(asked: Mapping[str, Any], use_cache: bool = True) -> tuple[dict[str, Any], list[str]]:
    """A task's generation settings as keyword arguments of generate(), and the strings to stop at.

    Greedy unless do_sample or a temperature above 0 asks otherwise; 1024 new tokens at most unless it says so.

    Raises:
        ValueError: a setting that is not known; the message lists those that are.
    """
    unknown = sorted(set(asked) - set(GENERATION))
    if unknown:
        raise ValueError(f"unknown generation settings {', '.join(unknown)}; known are {', '.join(sorted(GENERATION))}")
    until = asked.get("until") or []
    until = [until] if isinstance(until, str) else list(until)
    settings = {name: asked[name] for name in PASSED_ON if asked.get(name) is not None}
    settings.setdefault("max_new_tokens", 1024)
    temperature = asked.get("temperature")
    do_sample = asked.get("do_sample")
    sample = (temperature or 0) > 0 if do_sample is None or temperature is not None else bool(do_sample)
    settings["do_sample"] = sample and do_sample is not False
    for name in SAMPLING:
        # None, so that a checkpoint's own sampling settings neither apply to greedy decoding nor warn about it.
        if not settings["do_sample"]:
            settings[name] = None
        elif asked.get(name) is not None:
            settings[name] = asked[name]
    settings["use_cache"] = use_cache
    return settings, until


def check_logits(logits: Tensor, dtype: torch.dtype) -> None:
    """Turn away what a model cannot choose a word by: the largest of numbers that are none is the first of all.

    Raises:
        ValueError: some are NaN; says what to do for weights of a dtype.
    """
    if bool(logits.isnan().any()):
        raise ValueError(
            f"the language model computes NaN, so it has no answer: its weights or its config.json are damaged, or its "
            f"numbers do not fit into {str(dtype).removeprefix('torch.')}; get it anew, or try float32"
        )


class FirstLogits:
    """A logits processor that keeps what the first word is chosen by, to be looked at when nobody waits for it."""

    def __init__(self) -> None:
        self.logits: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores (B, vocabulary) as generate() passes them, and as they are returned."""
        self.logits = scores if self.logits is None else self.logits
        return scores

    def check(self, dtype: torch.dtype) -> None:
        """check_logits() of them."""
        if self.logits is not None:
            check_logits(self.logits, dtype)
