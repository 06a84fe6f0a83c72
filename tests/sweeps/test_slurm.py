"""scripts/slurm.sh as SLURM runs it: one cell a task, stopped before its time is over and queued again.

Instead of SLURM's commands stand two that write down how they were called; the sweep is a process that waits.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "slurm.sh"
# `python -m tango.cli sweep ..`: says how it was called, and ends as a sweep does that is stopped, a moment after it.
SWEEP = """#!/bin/bash
[ "$SECONDS_TO_RUN" = 0 ] || trap 'sleep 0.3; echo stopped >> "$CALLS"; kill $!; exit 130' TERM
echo "$@ NPROC=$NPROC threads=$OMP_NUM_THREADS in $PWD" >> "$CALLS"
[ "$SECONDS_TO_RUN" = 0 ] && exit "$STATUS"
sleep "$SECONDS_TO_RUN" & wait
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the commands, and a file `calls` of what they were asked for."""
    for name, text in {
        "python": SWEEP,
        "scontrol": '#!/bin/bash\necho "scontrol $@" >> "$CALLS"\n',
        "squeue": '#!/bin/bash\necho "$STATE"\n',
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    given = {"CALLS": tmp_path / "calls", "PYTHON": tmp_path / "python", "STATE": "RUNNING", "STATUS": "0"}
    given |= {"SECONDS_TO_RUN": "0", "SLURM_SUBMIT_DIR": ROOT, "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3"}
    given |= {"SLURM_GPUS_ON_NODE": "2", "SLURM_CPUS_PER_TASK": "8"}
    for name, value in given.items():
        monkeypatch.setenv(name, str(value))
    for name in ("NPROC", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def started() -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", str(SCRIPT), "grid.yaml", "--limit", "5"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def has_a_trap(pid: int) -> bool:
    """Whether a process catches SIGTERM, as Linux says."""
    (caught,) = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(caught, 16) >> signal.SIGTERM - 1 & 1)


def stop(cluster: Path) -> tuple[int, str, list[str]]:
    """Start a task, send it SIGTERM once its cell runs; returns its status, what it said, and the calls."""
    process = started()
    deadline = time.monotonic() + 120
    while not ((cluster / "calls").exists() and has_a_trap(process.pid)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    return process.returncode, said, (cluster / "calls").read_text().splitlines()


def test_one_cell_on_the_gpus_of_its_task(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for status in (0, 1, 2):
        monkeypatch.setenv("STATUS", str(status))
        process = started()
        process.communicate(timeout=120)
        assert process.returncode == status
    calls = (cluster / "calls").read_text().splitlines()
    assert set(calls) == {f"-m tango.cli sweep grid.yaml --limit 5 --cell 3 NPROC=2 threads=8 in {ROOT}"}


def test_time_is_over(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECONDS_TO_RUN", "60")
    status, said, calls = stop(cluster)
    # The cell was stopped, which takes a moment, before the task asked to be queued again.
    assert status == 0 and calls[1:] == ["stopped", "scontrol requeue 70_3"] and "is queued again" in said


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PREEMPTED", ""])
def test_cancelled_or_preempted(state: str, cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECONDS_TO_RUN", "60")
    monkeypatch.setenv("STATE", state)
    status, _, calls = stop(cluster)
    assert status == 130 and calls[1:] == ["stopped"]


def test_outside_of_an_array(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    process = started()
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2 and "sbatch --array=1-CELLS scripts/slurm.sh GRID.yaml" in said
    assert not (cluster / "calls").exists()


def test_a_cell_by_its_number_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real command: a number beyond the grid is refused by name."""
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "99")
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(ROOT))
    words = ["bash", str(SCRIPT), "configs/sweeps/tango_tiny.yaml"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "--cell 99: this grid has cells 1 to 14" in done.stderr
