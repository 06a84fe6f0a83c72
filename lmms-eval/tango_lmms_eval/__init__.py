"""Plugin for lmms-eval: its entry point hands over models that can be pruned, and makes the task `motionqa` known."""

from __future__ import annotations

from typing import Any

__version__ = "0.2.0"


def manifests() -> list[Any]:
    """The models of this plugin, for lmms-eval's entry points of the group `lmms_eval.models`.

    lmms-eval loads these last and lets them replace its own models of the same names. It keeps whichever of "simple"
    and "chat" a manifest leaves out, and prefers chat: so names that have both upstream are given both here.

    Raises:
        SystemExit: lmms-eval swallows any other exception and would go on with its own models, unpruned whatever
            WRAPPER says.
    """
    try:
        from lmms_eval.models.registry_v2 import ModelManifest

        from tango_lmms_eval import hooks

        hooks.install()
    except Exception as error:
        raise SystemExit(
            f"tango_lmms_eval does not fit the installed lmms-eval ({type(error).__name__}: {error}); "
            "install the version it was made for: pip install -e ./lmms-eval"
        ) from error
    here, qwen = "tango_lmms_eval.models", "tango_lmms_eval.qwen"
    return [
        ModelManifest(model_id="llava_onevision", simple_class_path=f"{here}.LlavaOnevision"),
        ModelManifest(model_id="llava_vid", simple_class_path=f"{here}.LlavaVid"),
        ModelManifest(
            model_id="llava_hf",
            simple_class_path=f"{here}.LlavaOnevision",
            chat_class_path=f"{here}.LlavaOnevisionChat",
        ),
        ModelManifest(
            model_id="qwen2_5_vl", simple_class_path=f"{qwen}.Qwen25VL", chat_class_path=f"{qwen}.Qwen25VLChat"
        ),
        ModelManifest(
            model_id="internvl_hf",
            simple_class_path=f"{here}.InternVLHf",
            chat_class_path=f"{here}.InternVLHfChat",
        ),
        ModelManifest(model_id="videollama3", simple_class_path=f"{here}.VideoLlama3"),
        ModelManifest(model_id="qwen3_5", simple_class_path=f"{qwen}.Qwen35", chat_class_path=f"{qwen}.Qwen35Chat"),
        ModelManifest(
            model_id="qwen3_omni", simple_class_path=f"{qwen}.Qwen3Omni", chat_class_path=f"{qwen}.Qwen3OmniChat"
        ),
        ModelManifest(model_id="qwen3_vl", simple_class_path=f"{qwen}.Qwen3VL", chat_class_path=f"{qwen}.Qwen3VLChat"),
    ]
