"""What vLLM's model runners need to know of pruned models. Both are wrapped in memory; nothing is changed on disk."""

from __future__ import annotations

import functools
from typing import Any

from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

_after_loading: list[Any] = []


def call_after_loading(function: Any) -> None:
    """Have a function called with each model runner once its model is there."""
    if not _after_loading:
        for runner in (CPUModelRunner, GPUModelRunner):
            runner.load_model = _wrapped(runner.load_model)
    if function not in _after_loading:
        _after_loading.append(function)


def _wrapped(load_model: Any) -> Any:
    @functools.wraps(load_model)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        load_model(self, *args, **kwargs)
        for function in _after_loading:
            function(self)

    return wrapper


def refuse_other_models() -> None:
    """A model that nothing prunes must not be served as if something did."""
    call_after_loading(_refuse)


def _refuse(runner: Any) -> None:
    from tango_vllm import FAMILIES

    if not hasattr(runner.get_model(), "tango"):
        named = getattr(runner.model_config.hf_config, "architectures", None) or [type(runner.get_model()).__name__]
        raise ValueError(
            f"WRAPPER is set, but {', '.join(named)} cannot be pruned in vLLM; these can: "
            f"{', '.join(FAMILIES)}. Unset WRAPPER to serve the model as it is"
        )
