"""Model arguments of upstream's models that ours take so that published commands work, and what they may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tango.runs.run import ArgumentError

# The values of --model, for errors.
MODELS = (
    "llava_onevision for LLaVA-OneVision, llava_vid for LLaVA-Video, "
    "qwen2_5_vl for Qwen2.5-VL and qwen3_vl for Qwen3-VL, qwen3_5 for Qwen3.5, qwen3_omni for Qwen3-Omni, "
    "internvl_hf for InternVL3.5 and videollama3 for VideoLLaMA3, both in transformers' format"
)
# What models do something with, and take by name.
COMMON = (
    "pretrained", "device", "device_map", "dtype", "torch_dtype", "attn_implementation", "revision", "chat_template",
    "use_cache", "resume", "server", "batch_size", "max_batch_size",
)  # fmt: skip
OWN = (*COMMON, "max_frames_num", "model_name", "add_time_instruction")
QWEN_OWN = (
    *COMMON, "max_num_frames", "min_pixels", "max_pixels", "total_pixels", "fps", "system_prompt", "reasoning_prompt",
    "times",
)  # fmt: skip
# Upstream arguments that a model takes for compatibility and that can only mean what it does anyway.
Fixed = dict[str, tuple[tuple[Any, ...], str]]
FRAMEWORK: Fixed = {
    "trust_remote_code": ((None, False), "only classes of transformers are used"),
}
FIXED: Fixed = FRAMEWORK | {
    "conv_template": (
        (None, "qwen_1_5", "qwen_2"),
        "the prompt is made by the checkpoint's own chat template, which is Qwen's",
    ),
    "mm_spatial_pool_stride": ((None, 2), "the model pools by 2"),
    "video_decode_backend": ((None, "pyav", "decord"), "videos are read with PyAV"),
    "customized_config": ((None,), "the checkpoint's own configuration is used"),
    "truncation": ((None, True), "prompts are never cut"),
    "truncate_context": ((None, False), "prompts are never cut"),
}
ONEVISION = FIXED | {
    "mm_spatial_pool_mode": ((None, "bilinear"), "LLaVA-OneVision pools bilinearly"),
    "token_strategy": ((None, "single"), "a video is one placeholder"),
    "add_time_instruction": ((None, False), "LLaVA-OneVision was not trained with it"),
}
VIDEO = FIXED | {
    "mm_spatial_pool_mode": ((None, "average"), "LLaVA-Video pools by averages"),
    "mm_newline_position": ((None, "grid"), "LLaVA-Video has a newline after each row of a frame"),
    "mm_resampler_type": ((None, "spatial_pool"), "LLaVA-Video pools, and resamples no further"),
    "mm_resampler_location": ((None, "before", "after"), "pooling follows the projector, whatever this says upstream"),
    "mm_spatial_pool_out_channels": ((None, 1024), "pooling changes no widths"),
    "force_sample": ((None, True), "max_frames_num frames are sampled evenly from every video"),
    "video_fps": ((None, 1), "max_frames_num frames are sampled evenly from every video"),
    "add_faster_video": ((None, False), "all frames have the same number of tokens"),
    "faster_token_stride": ((None, 10), "all frames have the same number of tokens"),
    "overwrite": ((None, True), "pooling and newlines are LLaVA-Video's"),
    "delay_load": ((None, False), "the whole model is loaded at once"),
    "tie_weights": ((None, True), "the checkpoint says which weights are tied"),
}
QWEN = FRAMEWORK | {
    "interleave_visuals": ((None, False), "images and videos come before the text, or where a chat task puts them"),
    "enable_thinking": ((None, False), "replies are scored whole; only checkpoints that answer at once are supported"),
    "use_custom_video_loader": ((None, False), "videos are read with PyAV, at qwen-vl-utils' frames and sizes"),
    "max_image_size": ((None,), "only the custom video loader has it; max_pixels limits frames and images"),
    "max_length": ((None, 2048), "prompts are never cut"),
}
QWEN_THINKING = QWEN | {
    "enable_thinking": (
        (None, True),
        "whether it thinks is said by the checkpoint's chat template, or by chat_template",
    ),
}
INTERNVL = FRAMEWORK | {
    "min_patches": ((None, 1), "images are cut as the checkpoint's processor says"),
    "max_patches": ((None, 12), "images are cut as the checkpoint's processor says"),
    "fps": ((None,), "num_frames frames are sampled evenly from every video"),
    "low_cpu_mem_usage": ((None, False, True), "weights are read straight to their place"),
}
VIDEO_LLAMA = FRAMEWORK | {
    "use_flash_attention_2": ((None,), "say attn_implementation=flash_attention_2"),
    "use_custom_video_loader": ((None, False), "videos are read with PyAV"),
}


def batch_size_of(value: Any) -> int:
    """How many samples lmms-eval's --batch_size asks to generate together; auto is 1. Raises ArgumentError."""
    text = str(value).partition(":")[0]
    if value is None or text == "auto":
        return 1
    if not (text.isdigit() and int(text) > 0):
        raise ArgumentError(f"batch_size={value!r}: give a number of at least 1, or auto")
    return int(text)


def check_fixed(others: Mapping[str, Any], fixed: Fixed, own: Sequence[str] = OWN) -> None:
    """Raise ArgumentError for unknown arguments, and for known ones that ask for what this model does not do."""
    unknown = sorted(set(others) - set(fixed))
    if unknown:
        known = ", ".join(sorted({*own, *fixed}))
        raise ArgumentError(f"unknown model arguments {', '.join(unknown)}; known are {known}")
    for name, value in others.items():
        allowed, why = fixed[name]
        if value not in allowed:
            shown = " or ".join(str(v) for v in allowed if v is not None) or "nothing"
            raise ArgumentError(f"{name}={value!r}: {why}; use {shown} or leave it out")
