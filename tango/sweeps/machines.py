"""Where the cells of a sweep run: as processes of this machine, or on the nodes of a Ray cluster.

Either way a cell is a process that ends with whoever started it. On a cluster the nodes must see the sweep's folder,
the checkpoint, the data and the Python environment under the same paths, as they do on a shared file system.
"""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

STOP_SECONDS = 10.0
LOCAL = "local"

# Ask the kernel to end a cell with the process that started it, however that ends, then become the cell's command.
STARTER = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
    if os.getppid() != int(sys.argv[1]):
        os._exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


class SweepError(RuntimeError):
    """The sweep cannot run; the message says why."""


class ThisMachine:
    """Processes of this machine.

    Args:
        jobs: how many run at a time (slots); the cores are divided among them.
    """

    def __init__(self, jobs: int = 1) -> None:
        if jobs < 1:
            raise SweepError(f"jobs={jobs}: run at least one cell at a time")
        self.slots = jobs

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Run a command in the current folder, with these variables on top of ours; its output goes to the end of the
        log.
        """
        with log.open("ab") as output:
            return begin(command, {**threads_of(self.slots), **os.environ, **environment}, output)

    def stop(self, jobs: Sequence[Any]) -> None:
        """Terminate the jobs, and kill those that are still there after STOP_SECONDS."""
        end(jobs, STOP_SECONDS)


def begin(
    command: Sequence[str],
    environment: Mapping[str, str],
    output: IO[bytes] | None = None,
    folder: str | None = None,
) -> subprocess.Popen[bytes]:
    """A process that ends with this one, however that ends, in `folder`, else the current one; what it says goes to
    `output`, else where ours goes.
    """
    return subprocess.Popen(
        [sys.executable, "-c", STARTER, str(os.getpid()), *command],
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
    )


def end(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Terminate processes, and kill those that are still there after so many seconds."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class RayJob:
    """A cell as a task of Ray."""

    def __init__(self, ray: Any, task: Any) -> None:
        self.ray, self.task = ray, task

    def poll(self) -> int | str | None:
        """Exit status, None while it runs, or a text that says why there is none."""
        done, _ = self.ray.wait([self.task], timeout=0)
        if not done:
            return None
        try:
            status: int = self.ray.get(self.task)
        except self.ray.exceptions.RayError as error:  # its node or worker is gone, or could not start it
            cause = getattr(error, "cause", None) or error
            return f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"
        return status


class RayCluster:
    """A Ray cluster, each cell on a set of GPUs of one node. Close it, or use it in a `with` statement.

    Args:
        address: of the cluster, as ray.init() takes it ("auto", "10.0.0.1:6379"), or "local" for a Ray of its own here.
        gpus: of each cell; 0 hides all from it and gives it one core.
        workers: how many cells without GPUs a local Ray runs at a time; by default one a core.

    Raises:
        SweepError: Ray is not installed, there is no cluster, or no node has enough GPUs.
    """

    def __init__(self, address: str, gpus: int = 1, workers: int | None = None) -> None:
        if gpus < 0:
            raise SweepError(f"gpus={gpus}: give the GPUs of a cell, 0 for a CPU")
        try:
            ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise SweepError("Ray is not installed; get it with: pip install 'tango-vlm[ray]'") from error
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        own = {"num_cpus": workers, "include_dashboard": False} if address == LOCAL else {}
        try:
            check_reachable(address)
            ray.init(address, log_to_driver=False, logging_level="WARNING", **own)
        except (OSError, RuntimeError, ValueError) as error:
            raise SweepError(f"Ray at {address!r}: {error}; start it with: ray start --head, or use {LOCAL}") from error
        self._ray, self._gpus = ray, gpus
        kind, need = ("GPU", gpus) if gpus else ("CPU", 1)
        fit = [int(node["Resources"].get(kind, 0) // need) for node in ray.nodes() if node["Alive"]]
        self.slots, self._most = sum(fit), max(fit, default=0)
        if not self.slots:
            self.close()
            none = f"Ray at {address!r}: a cell needs {need} {kind}s, which none of its {len(fit)} nodes has"
            raise SweepError(none + ("; --gpus 0 runs cells without one" if gpus else ""))
        # max_retries: a cell that died is a failure to be seen. Cores are no limit where GPUs are.
        options = {"num_gpus": gpus, "num_cpus": 0 if gpus else 1, "max_retries": 0}
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a worker need not import this package
        self._run: Any = ray.remote(**options)(run_cell)

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> RayJob:
        """Queue a command on the cluster, with these variables; its output goes to the end of the log."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("CUDA_VISIBLE_DEVICES", "RAY_"))}
        variables = {**threads_of(self._most), **inherited, **environment}
        task = self._run.remote(list(command), variables, os.getcwd(), os.path.abspath(log), self._gpus)
        return RayJob(self._ray, task)

    def stop(self, jobs: Sequence[Any]) -> None:
        """Cancel the jobs, by force those that still run after twice STOP_SECONDS."""
        for job in jobs:
            self._ray.cancel(job.task)
        tasks = [job.task for job in jobs]
        if tasks:
            _, running = self._ray.wait(tasks, num_returns=len(tasks), timeout=2 * STOP_SECONDS)
            for task in running:
                self._ray.cancel(task, force=True)

    def close(self) -> None:
        """Leave the cluster."""
        self._ray.shutdown()

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_reachable(address: str) -> None:
    """Raise OSError if nobody listens at host:port, for which Ray itself would try for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), STOP_SECONDS).close()


def run_cell(command: Sequence[str], environment: Mapping[str, str], folder: str, log: str, gpus: int) -> int:
    """What a worker of Ray does for a cell, on those of its node's GPUs that Ray has given it; the exit status."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "") if gpus else ""
    with open(log, "ab") as output:
        process = begin(command, {**environment, "CUDA_VISIBLE_DEVICES": seen}, output, folder)
    try:
        return process.wait()
    finally:  # a cancelled task is interrupted as by Ctrl-C
        end([process], STOP_SECONDS)


def threads_of(jobs: int) -> dict[str, str]:
    """Variables that give one of so many jobs of a machine its part of the cores, where the caller sets none."""
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs)), "TOKENIZERS_PARALLELISM": "false"}


Job = subprocess.Popen[bytes] | RayJob
Machine = ThisMachine | RayCluster
