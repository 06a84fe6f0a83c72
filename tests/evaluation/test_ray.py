"""A sweep on Ray, with two workers of a local one: failures, kill, resume; and what cannot be."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_sweep import alive, cell, quiet, wait_for

from tango.evaluation import machines
from tango.evaluation.machines import RayCluster, SweepError
from tango.evaluation.sweep import Sweep

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

SWEEPER = """
import pathlib, sys
sys.path.insert(0, sys.argv[2])
from test_ray import RayCluster, Sweep, cells, quiet
folder = pathlib.Path(sys.argv[1])
with RayCluster("local", gpus=0, workers=2) as cluster:
    Sweep(folder, cells(folder), console=quiet(), machine=cluster).run()
"""


def cells(folder: Path) -> list:
    return [cell(folder, "a", 600, 0.05), cell(folder, "b", 600, 0.05), cell(folder, "c", 2)]


def answered(folder: Path, name: str) -> int:
    journal = folder / "cells" / name / "run" / "journal" / "r-rank0.jsonl"
    return journal.read_text().count("\n") if journal.is_file() else 0


def worker(folder: Path, name: str) -> int:
    """The process of a cell, from what it said when it started last."""
    return int((folder / "cells" / name / "log.txt").read_text().rsplit("pid", 1)[1].split()[0])


def test_kill_a_cell_kill_the_sweep_and_go_on(tmp_path: Path, environment: dict[str, str]) -> None:
    here = str(Path(__file__).parent)
    first = subprocess.Popen([sys.executable, "-c", SWEEPER, str(tmp_path), here], env=environment)
    wait_for(lambda: min(answered(tmp_path, "a"), answered(tmp_path, "b")) >= 2, 300)
    assert not (tmp_path / "cells" / "c").exists()  # there are two workers
    os.kill(worker(tmp_path, "a"), signal.SIGKILL)
    wait_for(lambda: (tmp_path / "cells" / "c" / "cell.json").is_file(), 120)
    assert first.poll() is None and alive(worker(tmp_path, "b"))  # it stayed in its cell
    first.kill()
    first.wait()
    wait_for(lambda: not alive(worker(tmp_path, "b")), 120)
    stopped = {name: answered(tmp_path, name) for name in ("a", "b")}
    assert all(2 <= number < 600 for number in stopped.values())

    shorter = [cell(tmp_path, name, stopped[name] + 2) for name in ("a", "b")]  # the identity is the same
    bad = [cell(tmp_path, "bad", status=3), cell(tmp_path, "gone")]
    with RayCluster("local", gpus=0, workers=2) as cluster:
        assert cluster.slots == 2
        cluster.stop([])
        sweep = Sweep(tmp_path, [*shorter, cells(tmp_path)[2], *bad], console=quiet(), machine=cluster)
        start = cluster.start

        def lose(command, environment, log):  # a node without the folder
            return start(command, environment, log if log.parent.name != "gone" else tmp_path / "none" / "log.txt")

        cluster.start = lose
        failures = sweep.run()
    assert set(failures) == {"bad", "gone"}
    assert "exit status 1" in failures["bad"] and "it went wrong" in failures["bad"]
    assert "FileNotFoundError" in failures["gone"] and "none/log.txt" in failures["gone"]
    assert {r["method"]: r["resumed"] for r in sweep.results()} == {**stopped, "c": 0}


def test_what_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SweepError, match="gpus=-1"):
        RayCluster("local", gpus=-1)
    with pytest.raises(SweepError, match=r"Ray at '127\.0\.0\.1:1': .*refused.*ray start --head"):
        RayCluster("127.0.0.1:1")
    monkeypatch.setattr(machines.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(SweepError, match=r"Ray is not installed.*tango-vlm\[ray\]"):
        RayCluster("local")
