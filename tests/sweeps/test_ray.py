"""A sweep on Ray, with two workers of a local one: failures, kill, resume; and what cannot be."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_sweep import alive, wait_for

from tango.sweeps import machines
from tango.sweeps.machines import RayCluster, SweepError

pytest.importorskip("ray", reason="the extra `ray` is not installed")

# A sweep, and the same again. The log of `gone` is where its node has no folder. argv: folder, this one.
SWEEPER = """
import json, pathlib, sys
sys.path.insert(0, sys.argv[2])
from test_sweep import cell, quiet
from tango.sweeps.machines import RayCluster
from tango.sweeps.sweep import Sweep
folder = pathlib.Path(sys.argv[1])
class Lossy(RayCluster):
    def start(self, command, environment, log):
        return super().start(command, environment, log if log.parent.name != "gone" else folder / "none" / "log.txt")
cells = [cell(folder, "a", 600, 0.05), cell(folder, "b", 2), cell(folder, "bad", status=3), cell(folder, "gone")]
with Lossy("local", gpus=0, workers=2) as cluster:
    failures = Sweep(folder, cells, console=quiet(), machine=cluster).run()
    told = {"slots": cluster.slots, "failures": failures}
    (folder / "partial").write_text(json.dumps(told))
    (folder / "partial").rename(folder / "told.json")
    Sweep(folder, cells, console=quiet(), machine=cluster).run()
"""

# `tango sweep --ray` of two cells, one of which fails, instead of a model's. argv: folder, this one.
COMMAND = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[2], str(Path(sys.argv[2]).parent)]
from dataclasses import replace
from made_up import made_up
from test_sweep import cell
from tango.cli import main
from tango.sweeps import expand
folder = Path(sys.argv[1])
result = made_up("tango", 0.1, [1, 2]) | {"tokens": {}}
cells = [replace(cell(folder / "m", "a", 2), collect=lambda run: result), cell(folder / "m", "bad", status=3)]
expand.expand = lambda grid: expand.Expanded({"m": cells}, [], [])
sys.exit(main(["sweep", "--ray", "local", "--gpus", "0", "--output", str(folder), "--json"]))
"""


def test_the_command_hands_its_cells_to_ray(tmp_path: Path, environment: dict[str, str]) -> None:
    words = [sys.executable, "-c", COMMAND, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)
    assert [one["method"] for one in told["cells"]] == ["tango"] and list(told["failed"]) == ["m/bad"]
    assert "it went wrong" in told["failed"]["m/bad"]
    assert (tmp_path / "m" / "cells" / "a" / "cell.json").is_file()


def answered(folder: Path) -> int:
    journal = folder / "cells" / "a" / "run" / "journal" / "r-rank0.jsonl"
    return journal.read_text().count("\n") if journal.is_file() else 0


def test_kill_a_cell_go_on_and_kill_the_sweep(tmp_path: Path, environment: dict[str, str]) -> None:
    here = str(Path(__file__).parent)
    sweep = subprocess.Popen([sys.executable, "-c", SWEEPER, str(tmp_path), here], env=environment)
    log = tmp_path / "cells" / "a" / "log.txt"
    wait_for(lambda: answered(tmp_path) >= 2 and "pid" in log.read_text(), 300)
    os.kill(int(log.read_text().split()[-1]), signal.SIGKILL)
    wait_for(lambda: (tmp_path / "told.json").is_file(), 300)
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["slots"] == 2 and set(told["failures"]) == {"a", "bad", "gone"}
    assert "SIGKILL" in told["failures"]["a"] and "it went wrong" in told["failures"]["bad"]
    assert "FileNotFoundError" in told["failures"]["gone"] and "none/log.txt" in told["failures"]["gone"]
    assert (tmp_path / "cells" / "b" / "cell.json").is_file()

    wait_for(lambda: log.read_text().count("pid") == 2, 300)
    resumed, worker = (int(log.read_text().rsplit("starting at", 1)[1].split()[i]) for i in (0, 2))
    assert 2 <= resumed <= answered(tmp_path) < 600 and alive(worker)
    sweep.kill()
    sweep.wait()
    wait_for(lambda: not alive(worker), 300)
    assert answered(tmp_path) < 600  # it did not just come to its end


def test_what_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SweepError, match="gpus=-1"):
        RayCluster("local", gpus=-1)
    with pytest.raises(SweepError, match=r"Ray at '127\.0\.0\.1:1': .*refused.*ray start --head"):
        RayCluster("127.0.0.1:1")
    monkeypatch.setattr(machines.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(SweepError, match=r"Ray is not installed.*tango-vlm\[ray\]"):
        RayCluster("local")
