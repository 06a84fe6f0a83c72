"""The sweep engine on cells that are small scripts: resume, kill, lock, failures, what goes out of date."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tango.sweeps.cells import Evaluation
from tango.sweeps.grid import read_grid
from tango.sweeps.lmms_cells import lmms_cell
from tango.sweeps.sweep import Cell, CellError, JournalCounter, Sweep, SweepError

# Answers questions one by one as a framework with a journal does, then writes an output. argv: run folder, questions,
# seconds a question, exit status, what the answers follow from.
WORKER = """
import json, os, pathlib, sys, time
run, number, seconds, status = pathlib.Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
(run / "journal").mkdir(parents=True, exist_ok=True)
path = run / "journal" / (sys.argv[5] + "-rank0.jsonl")
done = len(path.read_text().splitlines()) if path.exists() else 0
print("starting at", done, "pid", os.getpid(), flush=True)
with path.open("a") as journal:
    for i in range(done, number):
        time.sleep(seconds)
        journal.write(json.dumps({"key": str(i)}) + "\\n")
        journal.flush()
if status:
    sys.exit("it went wrong")
(run / "out").mkdir(exist_ok=True)
(run / "out" / "result.json").write_text(json.dumps({"resumed": done, "method": os.environ["WRAPPER"]}))
"""


def read_output(run: Path) -> dict[str, Any]:
    file = run / "out" / "result.json"
    if not file.is_file():
        raise CellError("no result.json")
    return dict(json.loads(file.read_text()))


def cell(folder: Path, name: str, questions: int = 3, seconds: float = 0.0, status: int = 0, code: str = "r") -> Cell:
    run = str(folder / "cells" / name / "run")
    command = [sys.executable, "-c", WORKER, run, str(questions), str(seconds), str(status), code]
    return Cell(name, f"identity of {name}, {questions}, {code}", command, {"WRAPPER": name}, questions, read_output)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


def test_finished_cells_are_not_computed_again(tmp_path: Path) -> None:
    cells = [cell(tmp_path, "a"), cell(tmp_path, "b")]
    sweep = Sweep(tmp_path, cells, jobs=2, console=quiet())
    assert sweep.run() == {}
    assert [r["method"] for r in sweep.results()] == ["a", "b"]
    before = {c.name: sweep.place(c).result.stat().st_mtime_ns for c in cells}
    again = Sweep(tmp_path, [*cells, cell(tmp_path, "c")], console=quiet())
    assert again.run() == {}
    assert before == {c.name: sweep.place(c).result.stat().st_mtime_ns for c in cells}
    assert len(again.results()) == 3


def made(folder: Path, *cells: Cell) -> tuple[list[dict[str, Any]], str]:
    """The results of a sweep of cells, and what it said."""
    sweep = Sweep(folder, cells, console=quiet())
    assert sweep.run() == {}
    return sweep.results(), sweep.console.file.getvalue()  # type: ignore[attr-defined]


def test_nothing_finished_is_deleted(tmp_path: Path) -> None:
    first, _ = made(tmp_path, cell(tmp_path, "a"))
    assert first[0]["resumed"] == 0
    more, said = made(tmp_path, cell(tmp_path, "a", 5))  # another limit: goes on from the samples that there are
    assert more[0]["resumed"] == 3 and "a has changed; its result is kept in" in said
    other, _ = made(tmp_path, cell(tmp_path, "a", code="other"))
    assert other[0]["resumed"] == 0
    marks = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("cell.json")}
    assert len(marks) == 3 and sorted(mark.parts[-2] for mark in marks)[-1] != "a"
    for questions in (3, 5, 3):  # earlier ones are taken back without computing
        again, said = made(tmp_path, cell(tmp_path, "a", questions))
        assert again[0]["resumed"] == {3: 0, 5: 3}[questions] and "1 of 1 cells are finished already" in said
        assert json.loads((tmp_path / "cells/a/run/out/result.json").read_text())["resumed"] == again[0]["resumed"]
        assert sorted(marks.values()) == sorted(file.stat().st_mtime_ns for file in tmp_path.rglob("cell.json"))
    assert len(list(tmp_path.glob("cells/a/run/journal/*"))) == 2


def test_shelves_stay_in_their_cell(tmp_path: Path) -> None:
    made(tmp_path, cell(tmp_path, "a"))
    file = tmp_path / "cells/a/cell.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"identity": "../../../b"}))
    made(tmp_path, cell(tmp_path, "a"))
    assert {path.name for path in tmp_path.iterdir()} == {"cells", "lock"}
    assert len(list(tmp_path.glob("cells/a/earlier/*/cell.json"))) == 1


def test_a_move_that_was_interrupted_is_made_again(tmp_path: Path) -> None:
    made(tmp_path, cell(tmp_path, "a"))
    made(tmp_path, cell(tmp_path, "a", 5))
    (shelf,) = tmp_path.glob("cells/a/earlier/*")
    (tmp_path / "cells/a/cell.json").unlink()  # taken back, all but the result
    (tmp_path / "cells/a/run/out").rename(tmp_path / "gone")
    (shelf / "run/out").rename(tmp_path / "cells/a/run/out")
    again, said = made(tmp_path, cell(tmp_path, "a"))
    assert again[0]["resumed"] == 0 and "1 of 1 cells are finished already" in said


def test_samples_that_failed_are_left_out_and_tried_again(tmp_path: Path) -> None:
    failed = [{"task": "t", "doc_id": 7, "reason": "FileNotFoundError: no clip", "tries": 2}]

    def collect(run: Path) -> dict[str, Any]:
        lost = failed if (tmp_path / "lost").exists() else []
        return {"provenance": {"failed": lost}, "samples": [{"id": 1}, {"id": 2}], "resumed": 0}

    (tmp_path / "lost").touch()
    one = replace(cell(tmp_path / "s", "a", status=1), collect=collect)
    sweep = Sweep(tmp_path / "s", [one], console=quiet())
    assert "1 of its 3 samples failed and are not in its result, the first: FileNotFoundError: no clip" in str(
        sweep.run()
    )
    assert len(sweep.results()) == 1
    outputs = sorted((tmp_path / "s/cells/a/run").rglob("*.json")) or [tmp_path / "s/cells/a/run/out/result.json"]
    outputs[0].parent.mkdir(exist_ok=True)
    outputs[0].write_text("a score")
    broken = replace(cell(tmp_path / "s", "a", status=3), command=[sys.executable, "-c", "raise SystemExit(3)"])
    again = Sweep(tmp_path / "s", [broken], console=quiet())  # the next try comes to nothing: the result stays whole
    assert "exit status 3" in again.run()["a"] and len(again.results()) == 1 and outputs[0].read_text() == "a score"
    (tmp_path / "lost").unlink()
    mended = Sweep(tmp_path / "s", [replace(cell(tmp_path / "s", "a"), collect=collect)], console=quiet())
    assert mended.run() == {} and mended.results()[0]["provenance"]["failed"] == []
    assert not list((tmp_path / "s/cells/a").glob("earlier/*"))
    crashed = replace(cell(tmp_path / "s", "b", status=1), collect=collect)  # says that it failed, without a sample
    assert "exit status 1" in Sweep(tmp_path / "s", [crashed], console=quiet()).run()["b"]


def test_a_failure_stays_in_its_cell(tmp_path: Path) -> None:
    cells = [cell(tmp_path, "bad", status=3), cell(tmp_path, "good"), cell(tmp_path, "odd")]
    cells[2] = replace(cells[2], collect=lambda run: read_output(run / "elsewhere"))
    cells.append(replace(cell(tmp_path, "real-time"), command=["bash", "-c", "kill -40 $$"]))  # a signal without a name
    sweep = Sweep(tmp_path, cells, console=quiet())
    failures = sweep.run()
    assert set(failures) == {"bad", "odd", "real-time"} and failures["real-time"].startswith("ended by signal 40; ")
    assert "exit status 1" in failures["bad"] and "it went wrong" in failures["bad"] and "log.txt" in failures["bad"]
    assert "no result.json" in failures["odd"]
    assert [r["method"] for r in sweep.results()] == ["good"]
    mended = Sweep(tmp_path, [cell(tmp_path, "bad")], console=quiet())
    assert mended.run() == {}
    assert mended.results()[0]["resumed"] == 3  # what it had finished was not lost with its failure


SWEEPER = """
import pathlib, sys
sys.path.insert(0, sys.argv[2])
from test_sweep import Sweep, cell, quiet
folder = pathlib.Path(sys.argv[1])
Sweep(folder, [cell(folder, "a", 2000, 0.05), cell(folder, "b", 2)], console=quiet()).run()
"""


def wait_for(condition: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_sweep_takes_its_cells_with_it_and_goes_on(tmp_path: Path, number: int) -> None:
    journal = tmp_path / "cells" / "a" / "run" / "journal" / "r-rank0.jsonl"
    here = str(Path(__file__).parent)
    process = subprocess.Popen([sys.executable, "-c", SWEEPER, str(tmp_path), here], stderr=subprocess.DEVNULL)
    wait_for(lambda: journal.exists() and len(journal.read_text().splitlines()) >= 3)
    cells = [cell(tmp_path, "a", 2000), cell(tmp_path, "b", 2)]
    with pytest.raises(SweepError, match=f"process {process.pid}"):
        Sweep(tmp_path, cells, console=quiet()).run()
    process.send_signal(number)
    process.wait()
    worker = int((tmp_path / "cells/a/log.txt").read_text().split("pid")[1].split()[0])
    wait_for(lambda: not alive(worker))
    finished = len(journal.read_text().splitlines())
    assert finished < 2000
    sweep = Sweep(tmp_path, cells, console=quiet())
    assert sweep.run() == {}
    assert sweep.results()[0]["resumed"] == finished
    assert JournalCounter(journal.parent).count() == 2000


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rsplit(")")[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_grid_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="jobs=0"):
        Sweep(tmp_path, [], jobs=0)
    with pytest.raises(SweepError, match="two cells of the name a"):
        Sweep(tmp_path, [cell(tmp_path, "a"), cell(tmp_path, "a")])


def test_counting_reads_whole_lines_once(tmp_path: Path) -> None:
    counter, path = JournalCounter(tmp_path), tmp_path / "r-rank0.jsonl"
    assert counter.count() == 0
    path.write_text('{"key": "a"}\n{"key": "b"}\n{"ke')
    assert counter.count() == 2
    with path.open("a") as file:
        file.write('y": "c"}\n{"key": "a"}\n')
    assert counter.count() == 3


def test_counting_follows_the_run_that_grows_though_the_clock_is_set_back(tmp_path: Path) -> None:
    """A journal may be older than that of an earlier run: by an hour, or by all years if a machine starts in 1970."""
    earlier, now = tmp_path / "r-rank0.jsonl", tmp_path / "s-rank0.jsonl"
    earlier.write_text('{"key": "a"}\n{"key": "b"}\n{"ke')  # torn
    counter = JournalCounter(tmp_path)
    assert counter.count() == 2
    for time_s, text, count in ((-3600, "", 0), (-3600, '{"key": "c"}\n', 1), (None, '{"key": "d"}\n', 2)):
        with now.open("a") as file:
            file.write(text)
        at = 0 if time_s is None else earlier.stat().st_mtime + time_s
        os.utime(now, (at, at))
        assert [counter.count(), counter.count()] == [count, count]


def test_an_earlier_run_from_before_the_clock_was_set_back_hides_no_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cell(tmp_path, "a", questions=6, seconds=0.3, code="now")
    earlier = tmp_path / "cells" / "a" / "run" / "journal" / "earlier-rank0.jsonl"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("".join(f'{{"key": "{number}"}}\n' for number in range(9)))
    os.utime(earlier, (time.time() + 3600,) * 2)
    seen = []
    monkeypatch.setattr("tango.sweeps.sweep._time_left", lambda *numbers: seen.append(numbers) or "")
    assert Sweep(tmp_path, [one], console=quiet()).run() == {}
    assert any(computed > 0 < remaining for _, computed, remaining in seen), seen
    assert all(computed >= 0 <= remaining for _, computed, remaining in seen), seen


def test_what_a_cell_of_lmms_eval_depends_on(tmp_path: Path, checkpoint: Path) -> None:
    data = tmp_path / "test.json"
    data.write_text("[]")
    given: dict[str, Any] = {"pretrained": str(checkpoint), "data": [data], "samples": 9}
    ours = {"method": "tango", "ratio": 0.15}

    def made(**how: Any) -> Cell:
        return lmms_cell(tmp_path, Evaluation(**given, **how), task="t")

    tango = made(**ours)
    assert tango.name == "t-tango-0.15"
    assert tango.environment["TANGO_ARGS"] == "retention_ratio=0.15" and tango.environment["WRAPPER"] == "tango"
    assert tango.identity == made(**ours).identity
    several = made(**ours, processes=2)
    assert several.identity == tango.identity and "--nproc-per-node=2" in several.command
    others = [made(), made(method="tango", ratio=0.1), made(**ours, limit=3), made(**ours, dtype="float16")]
    assert others[2].samples == 3
    data.write_text("[1]")
    others.append(made(**ours))
    moved = tmp_path / "elsewhere" / "model"
    shutil.copytree(checkpoint, moved)
    (tmp_path / "data").mkdir()
    given |= {"pretrained": str(moved), "data": [Path(shutil.copy(data, tmp_path / "data"))]}
    assert made(**ours).identity == others[-1].identity  # the same files in other folders
    weights = moved / "model.safetensors"
    times = weights.stat()
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    others.append(made(**ours))
    assert len({tango.identity, *(other.identity for other in others)}) == 7
    with pytest.raises(ValueError, match="needs a retention ratio"):
        made(method="tango")


def test_parts_of_a_sweep_share_its_folder(tmp_path: Path) -> None:
    cells = [cell(tmp_path, "a"), cell(tmp_path, "b")]
    whole, one = Sweep(tmp_path, cells, console=quiet()), Sweep(tmp_path, cells[:1], console=quiet(), part=True)
    other, again = (Sweep(tmp_path, found, console=quiet(), part=True) for found in (cells[1:], cells[:1]))
    with one._locked():
        assert other.run() == {} and other.results()[0]["resumed"] == 0  # another cell, at the same time
        with pytest.raises(SweepError, match=r"another sweep \(process \d+\) works in '.*/cells/a'"):
            again.run()
        with pytest.raises(SweepError, match=r"another sweep \(process unknown\) works in"):
            whole.run()
    with whole._locked(), pytest.raises(SweepError, match=rf"process {os.getpid()}"):
        one.run()
    assert whole.run() == {} and len(whole.results()) == 2


def test_weights_and_biases_arguments_go_to_lmms_eval(tmp_path: Path, checkpoint: Path) -> None:
    """A run with them is in tests/runs/test_vlmeval_runs.py."""
    tango = Evaluation(pretrained=str(checkpoint), samples=9, method="tango", ratio=0.1)
    plain, logged, named = (
        lmms_cell(tmp_path, tango, task="t", wandb_args=given) for given in (None, "project=p", "project=p,name=n")
    )
    assert logged.command == [*plain.command, "--wandb_args", "project=p,name=t-tango-0.1"]
    assert named.command == [*plain.command, "--wandb_args", "project=p,name=n"]
    assert logged.identity == plain.identity
    with pytest.raises(ValueError, match="wandb_args = 'project=p': only lmms-eval has them"):
        read_grid(None, {"wandb_args": "project=p", "frameworks": ["VLMEvalKit"]})
