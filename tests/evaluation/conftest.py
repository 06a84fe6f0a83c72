"""A tiny model, a tiny benchmark, and the environment to run lmms-eval on them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import save_checkpoint, write_benchmark


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "random-onevision"
    save_checkpoint(folder)
    return folder


@pytest.fixture(scope="session")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark") / "tiny"
    write_benchmark(folder)
    return folder


@pytest.fixture
def nothing_left_over(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No method chosen in this process, and lmms-eval's plugin as it was."""
    from tango_lmms_eval import hooks

    for name in ("WRAPPER", "TANGO_CONFIG", "TANGO_ARGS"):
        monkeypatch.delenv(name, raising=False)
    yield
    hooks.RUN = hooks.Run()


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a subprocess: one thread, no network, a cache of its own."""
    cache = tmp_path_factory.mktemp("cache")
    chosen = {k: v for k, v in os.environ.items() if k not in ("WRAPPER", "TANGO_CONFIG", "TANGO_ARGS")}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
    return chosen | threads | offline | {"HF_HOME": str(cache), "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "200"}
