"""Loads a checkpoint, a folder or a hub id, on a CPU or on GPUs.

Both formats are read: transformers' own, and that of the `llava` package (`lmms-lab/..`), see tango.models.original.
"""

import importlib
import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoProcessor

from tango.inference import checks
from tango.inference.checks import in_one_line
from tango.inference.names import EXAMPLES, called, check_pretrained
from tango.inference.names import CheckpointError as CheckpointError
from tango.models import FAMILIES, supported
from tango.models.original import is_original, load_original, original_class, read_config

log = logging.getLogger(__name__)

DTYPES = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16")}
# Classes of published checkpoints of which a part has a family; transformers loads that alone from them.
WHOLES = {"Qwen3OmniMoeForConditionalGeneration": "Qwen3OmniMoeThinkerForConditionalGeneration"}
SHORT = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "half": "float16", "float": "float32"}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model with its processor, and how it was loaded (plain JSON, for results)."""

    model: Any
    processor: Any
    device: torch.device
    described: dict[str, Any]


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype | str:
    """Return the dtype of a name, long or short; "auto" as it is."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return "auto"
    name = str(dtype).removeprefix("torch.")
    name = SHORT.get(name, name)
    if name not in DTYPES:
        raise CheckpointError(f"{called('dtype=')}{dtype!r}: use auto, {', '.join(DTYPES)}")
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
        CheckpointError: not a checkpoint this project knows, or one that is not whole. Pickled weights are not read,
            and code that a checkpoint brings along is not run.
    """
    check_pretrained(pretrained)
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        said = called("device=")
        raise CheckpointError(f"{said}{str(device)!r}: PyTorch sees no CUDA GPU here; use {said}cpu")
    raw = _config(pretrained, revision)
    cls = _model_class(raw, pretrained)
    resolved = parse_dtype(dtype)
    if resolved == "auto" and device.type == "cpu" and raw.get("dtype", raw.get("torch_dtype")) == "float16":
        log.warning(
            "%s is stored in float16, which a CPU computes slowly: loading it in float32 (set dtype to change this)",
            pretrained,
        )
        resolved = torch.float32
    stored = raw.get("dtype", raw.get("torch_dtype")) if resolved == "auto" else str(resolved).removeprefix("torch.")
    if stored == "bfloat16" and device.type == "cpu" and not cpu_has_bfloat16():
        log.warning("%s", slow_bfloat16(pretrained))
    attention = attn_implementation
    if attention == "flash_attention_2" and device.type == "cpu" and device_map is None:
        log.warning("attn_implementation=flash_attention_2 needs a GPU: using sdpa on the CPU")
        attention = "sdpa"
    how: dict[str, Any] = {"revision": revision, "dtype": resolved, "attn_implementation": attention}
    how["device_map"] = device_map or device  # straight to its place, without a copy of all of it in main memory
    processor: Any
    checks.check_files(pretrained)
    if is_original(raw):
        with in_one_line(pretrained, "its files"):
            model, processor = load_original(pretrained, **how)
    else:
        with in_one_line(pretrained, "its config.json"):
            checks.check_weights(pretrained)
            config = cls.config_class.from_pretrained(pretrained, revision=revision)
            config._attn_implementation = "eager"  # not one that this machine may lack
            with torch.device("meta"):
                outline = cls(config)
        with in_one_line(pretrained, "its weights"):
            if raw.get("quantization_config") is None:  # whose numbers are packed
                checks.check_size(outline, pretrained)
        with in_one_line(pretrained, "its weights or generation_config.json"):
            model, report = cls.from_pretrained(
                pretrained, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **how
            )
            checks.check_report(report, pretrained)
        with in_one_line(pretrained, "the files of its processor and tokenizer"):
            processor = AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]
                pretrained, revision=revision, trust_remote_code=False
            )
    vocabulary = model.config.get_text_config().vocab_size
    checks.check_generation(model.generation_config.to_dict(), vocabulary, pretrained)
    if chat_template is not None:
        file = Path(chat_template)
        processor.chat_template = file.read_text(encoding="utf-8") if file.is_file() else chat_template
    with in_one_line(pretrained, "the files of its processor and tokenizer"):
        checks.check_processor(processor, model, pretrained)
    described = {
        "pretrained": pretrained,
        "revision": revision,
        "class": cls.__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attn_implementation": model.config._attn_implementation,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    return Checkpoint(model.eval(), processor, model.device if device_map else device, described)


def cpu_has_bfloat16() -> bool:
    """Whether this machine's processor computes bfloat16 by instructions of its own."""
    if platform.machine() in ("x86_64", "AMD64"):
        cpu: Any = torch.cpu
        return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def slow_bfloat16(pretrained: str) -> str:
    """What to say of a checkpoint that such a processor would take very long for."""
    return (
        f"{pretrained} is to run in bfloat16, which this CPU has no instructions for: some 30 times slower than "
        f"{called('dtype=')}float32, which needs twice the memory"
    )


def class_name(pretrained: str, revision: str = "main") -> str:
    """The class that load() would load, told from the checkpoint's config.json. Raises CheckpointError as it does."""
    check_pretrained(pretrained)
    name: str = _model_class(_config(pretrained, revision), pretrained).__name__
    return name


def _config(pretrained: str, revision: str) -> dict[str, Any]:
    """A checkpoint's config.json. Raises CheckpointError if there is none, or it is something else."""
    with in_one_line(pretrained, "its config.json"):
        config: Any = read_config(pretrained, revision)
    if not isinstance(config, dict):
        raise CheckpointError(f"{pretrained!r}: its config.json holds no mapping")
    if not config:
        raise CheckpointError(f"{pretrained!r}: the folder has no config.json")
    checks.check_config(config, pretrained)
    return config


def _model_class(config: Mapping[str, Any], pretrained: str) -> Any:
    """The class that a config.json names: one of transformers, or one that its family's module adds to them."""
    if is_original(config):
        try:
            return original_class(config, pretrained)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
    named = config.get("architectures") or []
    for name in (WHOLES.get(name, name) for name in named):
        if name in FAMILIES:
            return getattr(transformers, name, None) or getattr(importlib.import_module(FAMILIES[name]), name)
    raise CheckpointError(
        f"{pretrained!r} holds {' and '.join(named) or 'an unnamed class'} (model type {config.get('model_type')!r}); "
        f"{supported(named)}; checkpoints of these are for example {EXAMPLES}"
    )
