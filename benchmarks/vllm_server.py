"""A server of vLLM in a process of its own, for tests and benchmarks."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[1]
OPTIONS = ["--enforce-eager", "--dtype", "float32", "--max-model-len", "4096", "--allowed-local-media-path", str(ROOT),
           "--limit-mm-per-prompt", '{"video": 2, "image": 8}', "--served-model-name", "tango-tiny",
           "--media-io-kwargs", '{"video": {"num_frames": 8, "video_backend": "tango"}}']  # fmt: skip


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def serving(model, log, options=OPTIONS, wait=400, **environment):
    """The base URL of a server that answers; it is stopped, with the processes it started, at the end."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_LOGGING_LEVEL": "INFO", "VLLM_VIDEO_FETCH_TIMEOUT": "3"}
    settings["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"] = "600"  # clients here keep connections, and try nothing twice
    settings["VLLM_CPU_KVCACHE_SPACE"] = os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; else all that is free
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [*command, *options],
            cwd=ROOT,
            env=os.environ | settings | environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + wait
        while not answers(f"{url}/health"):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server did not start: {Path(log).read_text(errors='replace')[-3000:]}")
            time.sleep(1)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False
