"""Loads a checkpoint for evaluation: a local folder or a hub id of transformers' own format, on a CPU or on GPUs."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoProcessor

from tango.models import FAMILIES

log = logging.getLogger(__name__)

# Checkpoints stored for the `llava` package, and the same weights in transformers' format.
CONVERTED = {
    "lmms-lab/llava-onevision-qwen2-0.5b-ov": "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
    "lmms-lab/llava-onevision-qwen2-0.5b-si": "llava-hf/llava-onevision-qwen2-0.5b-si-hf",
    "lmms-lab/llava-onevision-qwen2-7b-ov": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    "lmms-lab/llava-onevision-qwen2-7b-ov-chat": "llava-hf/llava-onevision-qwen2-7b-ov-chat-hf",
    "lmms-lab/llava-onevision-qwen2-7b-si": "llava-hf/llava-onevision-qwen2-7b-si-hf",
    "lmms-lab/llava-onevision-qwen2-72b-ov-sft": "llava-hf/llava-onevision-qwen2-72b-ov-hf",
    "lmms-lab/llava-onevision-qwen2-72b-ov-chat": "llava-hf/llava-onevision-qwen2-72b-ov-chat-hf",
    "lmms-lab/llava-onevision-qwen2-72b-si": "llava-hf/llava-onevision-qwen2-72b-si-hf",
}
EXAMPLE = "llava-hf/llava-onevision-qwen2-7b-ov-hf"
DTYPES = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16")}
SHORT = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "half": "float16", "float": "float32"}


class CheckpointError(ValueError):
    """A checkpoint or a way of loading it that cannot be; the message says what can."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model with its processor, and how it was loaded (plain JSON, for results)."""

    model: Any
    processor: Any
    device: torch.device
    described: dict[str, Any]


def check_pretrained(pretrained: str) -> None:
    """Turn away checkpoints that are stored for the `llava` package, before anything is loaded.

    Raises:
        CheckpointError: names the checkpoint in transformers' format where there is one.
    """
    if not isinstance(pretrained, str) or not pretrained:
        raise CheckpointError(f"pretrained={pretrained!r}: pass a folder or a hub id, for example {EXAMPLE}")
    if pretrained in CONVERTED:
        raise CheckpointError(
            f"pretrained={pretrained!r} is stored for the `llava` package, which this model does not read; "
            f"the same weights in transformers' format are {CONVERTED[pretrained]!r}"
        )
    if pretrained.startswith("lmms-lab/"):
        raise CheckpointError(
            f"pretrained={pretrained!r} is stored for the `llava` package, which this model does not read; "
            f"use a checkpoint in transformers' format: {', '.join(sorted(CONVERTED.values()))}"
        )
    looks_local = pretrained.startswith(("/", "./", "../", "~")) or pretrained.count("/") != 1
    if looks_local and not Path(pretrained).expanduser().is_dir():
        raise CheckpointError(f"pretrained={pretrained!r}: no such folder, and not a hub id of the form owner/name")


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype | str:
    """ "auto" or a dtype by name."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return "auto"
    name = str(dtype).removeprefix("torch.")
    name = SHORT.get(name, name)
    if name not in DTYPES:
        raise CheckpointError(f"dtype={dtype!r}: use auto, {', '.join(DTYPES)}")
    resolved: torch.dtype = DTYPES[name]
    return resolved


def load(
    pretrained: str,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    attn_implementation: str | None = None,
    device_map: str | None = None,
    revision: str = "main",
    chat_template: str | None = None,
) -> Checkpoint:
    """Load a checkpoint whose class has a family in tango.models.

    Args:
        dtype: "auto" is what the checkpoint is stored in, but float32 instead of float16 on a CPU.
        attn_implementation: "sdpa", "eager" or "flash_attention_2"; the latter becomes sdpa on a CPU, with a warning.
        device_map: "auto" spreads the model over all GPUs; None puts it on `device`.
        chat_template: a file or text that replaces the processor's own template.

    Raises:
        CheckpointError: not a checkpoint this project knows.
    """
    check_pretrained(pretrained)
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CheckpointError(f"device={str(device)!r}: PyTorch sees no CUDA GPU here; use device=cpu")
    config = AutoConfig.from_pretrained(pretrained, revision=revision)
    cls = _model_class(config, pretrained)
    resolved = parse_dtype(dtype)
    stored = getattr(config, "dtype", None)
    if resolved == "auto" and device.type == "cpu" and stored in (torch.float16, "float16"):
        log.warning(
            "%s is stored in float16, which a CPU computes slowly: loading it in float32 (set dtype to change this)",
            pretrained,
        )
        resolved = torch.float32
    attention = attn_implementation
    if attention == "flash_attention_2" and device.type == "cpu" and device_map is None:
        log.warning("attn_implementation=flash_attention_2 needs a GPU: using sdpa on the CPU")
        attention = "sdpa"
    spread = {} if device_map is None else {"device_map": device_map}
    model = cls.from_pretrained(pretrained, revision=revision, dtype=resolved, attn_implementation=attention, **spread)
    model = model.eval() if spread else model.to(device).eval()
    processor: Any = AutoProcessor.from_pretrained(pretrained, revision=revision)  # type: ignore[no-untyped-call]
    if chat_template is not None:
        file = Path(chat_template)
        processor.chat_template = file.read_text(encoding="utf-8") if file.is_file() else chat_template
    if not processor.chat_template:
        raise CheckpointError(f"{pretrained!r} has no chat template; pass chat_template=<file>")
    described = {
        "pretrained": pretrained,
        "revision": revision,
        "class": cls.__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attn_implementation": model.config._attn_implementation,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    return Checkpoint(model, processor, model.device if spread else device, described)


def _model_class(config: Any, pretrained: str) -> Any:
    for name in config.architectures or []:
        if name in FAMILIES:
            return getattr(transformers, name)
    held = " and ".join(config.architectures or ["an unnamed class"])
    raise CheckpointError(
        f"{pretrained!r} holds {held} (model type {config.model_type!r}); supported classes: {', '.join(FAMILIES)}; "
        f"a checkpoint in this format is for example {EXAMPLE}"
    )
