"""One thread a test process: results don't depend on it, and small tensors are quicker so. Fixtures of many."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Before a test and its fixtures: importing vlmeval turns gradients off for the whole process."""
    torch.set_grad_enabled(True)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA-OneVision of a few thousand random weights."""
    from tiny import save_checkpoint

    folder = tmp_path_factory.mktemp("checkpoint") / "random-onevision"
    save_checkpoint(folder)
    return folder


@pytest.fixture(scope="session")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few questions about small videos, in MotionQA's format."""
    from tiny import write_benchmark

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
    ours = ("WRAPPER", "TANGO_CONFIG", "TANGO_ARGS", "MPLBACKEND")  # the last is set by the command, in its process
    chosen = {name: value for name, value in os.environ.items() if name not in ours}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
    return chosen | threads | offline | {"HF_HOME": str(cache), "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "200"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, with a camera that shows a test picture; see browsing.py."""
    from browsing import CHROMIUM
    from playwright.sync_api import sync_playwright

    # It needs no sandbox of its own as root in a container.
    words = ["--no-sandbox", "--disable-gpu", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with (
        sync_playwright() as playwright,
        contextlib.closing(playwright.chromium.launch(executable_path=CHROMIUM, args=words)) as running,
    ):
        yield running
