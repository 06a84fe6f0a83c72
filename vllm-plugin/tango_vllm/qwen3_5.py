"""Qwen3.5 in vLLM: as Qwen3-VL, without deepstack; layers of linear attention never get the dropped tokens."""

from __future__ import annotations

from vllm.model_executor.models.qwen3_5 import Qwen3_5ForConditionalGeneration, Qwen3_5ProcessingInfo
from vllm.model_executor.models.qwen3_vl import Qwen3VLDummyInputsBuilder
from vllm.multimodal import MULTIMODAL_REGISTRY

from tango_vllm.qwen3_vl import Processor, PrunedQwen3VL, TimedInfo


class Info(TimedInfo, Qwen3_5ProcessingInfo):
    """As vLLM's; a video may come without times."""


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=Qwen3VLDummyInputsBuilder)
class TangoQwen35(PrunedQwen3VL, Qwen3_5ForConditionalGeneration):
    """Qwen3_5ForConditionalGeneration whose videos are pruned; `tango` is the method."""
