"""A command that is run beside a server of vLLM: `python -m tango.sweeps.serve MODEL [options of vLLM] -- COMMAND`.

The server has the method of WRAPPER, TANGO_CONFIG and TANGO_ARGS and a port of its own; {server} in the command becomes
its address. It runs in vLLM's own environment (docs/serving.md), whose Python TANGO_VLLM_PYTHON names, and ends with
this process. What it says goes to server.log in the folder that SERVER_LOG names, by default here.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from tango.runs.screen import visible
from tango.runs.settings import VANILLA
from tango.sweeps.machines import STOP_SECONDS, begin, end

PYTHON = "TANGO_VLLM_PYTHON"
LOG = "SERVER_LOG"
PLACE = "{server}"
WAIT_SECONDS = 1800.0  # a large checkpoint, from a cold file system
FAILED_TO_START = 3


def python(environ: Mapping[str, str] = os.environ) -> str:
    """The Python that has vLLM: what TANGO_VLLM_PYTHON names, else build/vllm's of this checkout."""
    return environ.get(PYTHON, "").strip() or str(Path(__file__).parents[2] / "build" / "vllm" / "bin" / "python")


def missing(environ: Mapping[str, str] = os.environ) -> str | None:
    """Why no server can be started on this machine; None if one can, as far as that is known."""
    found = shutil.which(python(environ))
    how = f"in a checkout: make vllm; elsewhere {PYTHON} names the Python of its environment"
    if found is None:
        return f"vLLM is not installed: there is no {python(environ)!r}; {how}"
    asked = [found, "-c", "import tango_vllm; tango_vllm.check_version()"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode} and no word"]
        return f"{found!r} cannot serve: {said[-1]}; {how}"
    return None


def command_of(model: str, port: int, options: Sequence[str]) -> list[str]:
    """What starts the server."""
    return [
        python(), "-m", "vllm.entrypoints.openai.api_server", "--model", model,
        "--host", "127.0.0.1", "--port", str(port), "--trust-request-mm-kwargs", "--enable-prompt-tokens-details",
        *options,
    ]  # fmt: skip


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The server's variables: the unpruned model is served with every token kept, so that all cells are read, told and
    counted alike. A CPU holds 1 GiB of keys and values unless VLLM_CPU_KVCACHE_SPACE says otherwise.
    """
    method = dict(environ)
    if method.get("WRAPPER", VANILLA) in ("", VANILLA):
        method |= {"WRAPPER": "uniform", "TANGO_CONFIG": "", "TANGO_ARGS": "retention_ratio=1.0"}
    return {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", **method}


def main(words: Sequence[str]) -> int:
    """Run the command line; the exit status is the command's, or 3 if the server did not start."""
    cut = words.index("--")
    (model, *options), command = words[:cut], words[cut + 1 :]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    log = Path(os.environ.get(LOG, ".")) / "server.log"
    running: list[subprocess.Popen[bytes]] = []

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        with log.open("wb") as out:
            running.append(begin(command_of(model, port, options), environment(), out))
        if (problem := _wait(running[0], f"{url}/health")) is not None:
            print(f"the server of vLLM {problem}; the end of {log}:", file=sys.stderr)
            print(visible("\n".join(log.read_text(errors="replace").splitlines()[-15:])), file=sys.stderr)
            return FAILED_TO_START
        running.append(begin([word.replace(PLACE, url) for word in command], os.environ))
        return running[1].wait()
    finally:
        for process in reversed(running):
            end([process], STOP_SECONDS / 2)  # a sweep waits STOP_SECONDS for this process


def _wait(server: subprocess.Popen[bytes], health: str) -> str | None:
    """Why the server does not answer; None once it does."""
    until = time.monotonic() + WAIT_SECONDS
    while server.poll() is None:
        try:
            with urllib.request.urlopen(health, timeout=5):
                return None
        except (urllib.error.URLError, OSError):
            if time.monotonic() > until:
                return f"was not ready after {WAIT_SECONDS:.0f} s"
            time.sleep(0.5)
    return f"ended with status {server.returncode}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
