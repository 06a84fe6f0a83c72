"""Engines of vLLM in this process and the same model in transformers; collected only where vLLM is installed."""

import importlib.util
import os
import sys
from pathlib import Path

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def plugin():
    """The plugin as vLLM's entry point loads it; the models then go by their names with Tango in front."""
    import tango_vllm

    tango_vllm.register()
