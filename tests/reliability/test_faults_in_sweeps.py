"""Sweeps of made-up cells that are stopped, starved and damaged while they run; nothing that was finished is lost."""

import contextlib
import io
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import ROOT
from made_up import made_up, write_sweep
from rich.console import Console

import tango.results  # noqa: F401 (so that copies of this process need not)
from tango.cli import main, tell
from tango.cli.common import BAD_INPUT
from tango.inference.chat import Answer
from tango.runs.journal import Journal, JournalError, read_journal
from tango.runs.runner import Runner, Sample
from tango.sweeps import expand
from tango.sweeps.sweep import Cell, CellError, Sweep, SweepError

GROUP = "Sweeps and runs"
fault = pytest.mark.fault
Seen = Callable[[str, str], None]

# A cell: answers questions with a journal, as the frameworks' plugins do. argv: run folder, questions, seconds of each,
# the question before which `fault` is executed, fault.
WORKER = """
import json, os, pathlib, signal, sys, time
from tango.runs.journal import Journal
run, number, seconds, bad, fault = pathlib.Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:]
print("pid", os.getpid(), flush=True)
with Journal(run / "journal", "r") as journal:
    resumed = len(journal.entries)
    for i in range(resumed, number):
        time.sleep(seconds)
        if i == int(bad):
            exec(fault)
        journal.append(str(i), {"response": i})
(run / "out").mkdir()
(run / "out" / "result.json").write_text(json.dumps({"resumed": resumed}))
"""


def collect(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "out" / "result.json").read_text()))


def cell(folder: Path, name: str, number: int = 3, seconds: float = 0.0, bad: int = -1, fault: str = "") -> Cell:
    run = folder / "cells" / name / "run"
    command = [sys.executable, "-c", WORKER, str(run), str(number), str(seconds), str(bad), fault]
    return Cell(name, f"identity of {name}", command, {}, number, collect)


def sweep_of(folder: Path, *cells: Cell) -> Sweep:
    return Sweep(folder, cells, console=Console(file=io.StringIO(), width=400))


def said_by(sweep: Sweep) -> str:
    return sweep.console.file.getvalue()  # type: ignore[attr-defined]


def answers(folder: Path, name: str = "a") -> int:
    file = folder / "cells" / name / "run" / "journal" / "r-rank0.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def command_line(folder: Path) -> None:
    """`tango sweep` of a long cell, in a process of its own; what it says goes to files."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background it is ignored
    os.dup2(os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT), 2)
    os.dup2(os.open(folder / "stdout", os.O_WRONLY | os.O_CREAT), 1)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    expanded = expand.Expanded({"m": [cell(folder / "grid/m", "a", 4000, 0.05)]}, [], [])
    expand.expand = lambda grid: expanded  # in this process only
    status = main(["sweep", "--output", str(folder / "grid")])
    sys.stderr.flush()
    os._exit(status)


STOPPED = "everything: the cell is stopped with it, and the next run goes on after the last finished sample"


@pytest.mark.parametrize(
    "number, status",
    [
        pytest.param(signal.SIGINT, 130, marks=fault("SIGINT during a sweep", "Ctrl-C to `tango sweep`")),
        pytest.param(signal.SIGTERM, 130, marks=fault("SIGTERM during a sweep", "`kill` of its process")),
        pytest.param(signal.SIGKILL, -9, marks=fault("SIGKILL during a sweep", "`kill -9` of its process")),
    ],
)  # fmt: skip
def test_a_sweep_that_is_stopped(number: int, status: int, tmp_path: Path, seen: Seen) -> None:
    folder = tmp_path / "grid" / "m"
    process = multiprocessing.get_context("spawn").Process(target=command_line, args=(tmp_path,))
    process.start()
    wait_for(lambda: answers(folder) >= 3)
    assert process.pid
    os.kill(process.pid, number)
    process.join()
    worker = int((folder / "cells/a/log.txt").read_text().split()[1])
    wait_for(lambda: not alive(worker))
    assert process.exitcode == status
    lines = [line for line in (tmp_path / "stderr").read_text().splitlines() if line.startswith("tango: ")]
    told = "tango: interrupted; the same command goes on from what is finished"
    assert lines == ([told] if status == 130 else [])
    assert "Traceback" not in (tmp_path / "stderr").read_text()
    finished = answers(folder)
    again = sweep_of(folder, cell(folder, "a", finished + 2))
    assert again.run() == {} and again.results()[0]["resumed"] == finished >= 3
    seen(lines[0] if lines else "(nothing: it is gone)", STOPPED)


@pytest.mark.fault("two sweeps at once", "a second sweep in the folder of one that runs")
def test_two_sweeps_at_once(tmp_path: Path, seen: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        sweep_of(tmp_path, cell(tmp_path, "a", 4000, 0.05)).run()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    wait_for(lambda: answers(tmp_path) >= 2)
    with pytest.raises(SweepError, match=f"another sweep .process {process.pid}. works in") as error:
        sweep_of(tmp_path, cell(tmp_path, "a", 4000)).run()
    before = answers(tmp_path)
    wait_for(lambda: answers(tmp_path) > before)  # the first one is not disturbed
    process.kill()
    process.join()
    tell(str(error.value), BAD_INPUT, False)
    seen(capsys.readouterr().err, "everything: the first goes on undisturbed, the second touches nothing")


@pytest.mark.parametrize(
    "fault, told",
    [
        pytest.param(
            "os.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL, as the system does when memory runs out",
            marks=pytest.mark.fault("the system ends a cell for its memory", "SIGKILL to the process of a cell"),
        ),
        pytest.param(
            "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)); bytearray(2**31)", "MemoryError",
            marks=pytest.mark.fault("out of memory in a cell", "RLIMIT_AS of 1 GiB, and 2 GiB asked for"),
        ),
        pytest.param(
            "import resource; sys.tracebacklimit = 0; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)); "
            "journal.append('2', {'response': 'x' * 9999})", "cannot be written: File too large",
            marks=pytest.mark.fault("full disk in a cell", "RLIMIT_FSIZE, so that its journal cannot grow"),
        ),
        pytest.param(
            "os.rmdir(run / 'journal' / 'x')", "FileNotFoundError",
            marks=pytest.mark.fault("a cell that fails", "an exception in it"),
        ),
    ],
)  # fmt: skip
def test_a_failure_stays_in_its_cell(fault: str, told: str, tmp_path: Path, seen: Seen) -> None:
    sweep = sweep_of(tmp_path, cell(tmp_path, "a", 4, bad=2, fault=fault), cell(tmp_path, "b"))
    failures = sweep.run()
    assert list(failures) == ["a"] and told in failures["a"] and "log.txt" in failures["a"]
    assert answers(tmp_path) == 2 and len(sweep.results()) == 1
    mended = sweep_of(tmp_path, cell(tmp_path, "a", 4), cell(tmp_path, "b"))
    assert mended.run() == {} and [result["resumed"] for result in mended.results()] == [2, 0]
    seen(
        f"tango: a failed: {failures['a']}",
        "the other cells, and the cell's own two samples: the next run goes on there",
    )


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may grow beyond this: as on a full disk, part of what is written gets there and then an error comes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.fault("full disk under a journal", "RLIMIT_FSIZE, which lets half of a sample through")
def test_a_journal_on_a_full_disk(tmp_path: Path, seen: Seen) -> None:
    with Journal(tmp_path, "run") as journal:
        journal.append("a", {"response": "x" * 150_000})
        with (
            room_for(200_000),
            pytest.raises(JournalError, match="File too large; its 1 finished samples are kept") as error,
        ):
            journal.append("b", {"response": "x" * 150_000})
        assert list(read_journal(journal.path)) == ["a"]
        journal.append("c", {"response": "there is room again"})
    assert list(read_journal(tmp_path / "run-rank0.jsonl")) == ["a", "c"]
    seen(f"JournalError: {error.value}", "every sample before it; half a sample is taken off again")


@pytest.mark.fault("full disk under a sweep", "RLIMIT_FSIZE, so that a cell's result cannot be written")
def test_a_sweep_on_a_full_disk(tmp_path: Path, seen: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    big = replace(cell(tmp_path, "b"), collect=lambda run: collect(run) | {"samples": [{"id": "x" * 300_000}]})
    cells = [cell(tmp_path, "a"), big]
    sweep = sweep_of(tmp_path, *cells)
    with room_for(200_000), pytest.raises(SweepError, match=r"File too large: .*; what was finished") as error:
        sweep.run()
    assert [result["identity"] for result in sweep.results()] == ["identity of a"] and answers(tmp_path, "b") == 3
    again = sweep_of(tmp_path, *cells)
    assert again.run() == {} and again.results()[1]["resumed"] == 3
    tell(str(error.value), BAD_INPUT, False)
    seen(capsys.readouterr().err, "finished cells, and the samples of the others: nothing is computed twice")


@pytest.mark.fault("full disk under what a command prints", "`tango --version > /dev/full`")
def test_stdout_on_a_full_disk(seen: Seen) -> None:
    code = "import sys; from tango.cli import main; sys.exit(main(['--version']))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "tango: [Errno 28] No space left on device\n")
    seen(done.stderr, "files that the command wrote before")


@pytest.fixture
def results(tmp_path: Path) -> Iterator[Path]:
    """Finished cells. Their tables are made once, so that nothing needs to be imported as nobody."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        write_sweep(folder, [made_up("vanilla", None, [1, 2], 512), made_up("tango", 0.1, [1])])
        assert main(["results", name, "--output", str(tmp_path / "tables")]) == 0
        yield folder


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that the user may not write to; the superuser becomes nobody for it (after tmp_path was made)."""
    folder = Path(tempfile.mkdtemp(prefix="read-only-"))
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.fault("read-only folder for a sweep", "a folder of mode 555")
def test_a_sweep_in_a_read_only_folder(read_only: Path, seen: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SweepError, match="Permission denied") as error:
        sweep_of(read_only / "grid", cell(read_only, "a")).run()
    tell(str(error.value), BAD_INPUT, False)
    seen(capsys.readouterr().err.replace(str(read_only), "read-only"), "everything there is; nothing was started")


@pytest.mark.fault("read-only folder for results", "`tango results` into a folder of mode 555")
def test_results_in_a_read_only_folder(
    results: Path, read_only: Path, seen: Seen, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["results", str(results), "--output", str(read_only / "tables")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "Permission denied" in line
    seen(line.replace(str(read_only), "read-only"), "the sweep's cells: they are only read")


def damage(file: Path, content: str) -> None:
    assert file.is_file()
    file.write_text(content)


@pytest.mark.fault("torn cell.json", "the result of a finished cell replaced by its first bytes")
def test_a_damaged_result_is_made_again(tmp_path: Path, seen: Seen) -> None:
    cells = [cell(tmp_path, "a"), cell(tmp_path, "b")]
    assert sweep_of(tmp_path, *cells).run() == {}
    damage(tmp_path / "cells/a/cell.json", '{"identity": "ident')
    again = sweep_of(tmp_path, *cells)
    assert again.run() == {} and [result["resumed"] for result in again.results()] == [3, 0]
    line = next(line for line in said_by(again).splitlines() if "damaged" in line)
    assert "cell.json is damaged" in line and "run again" in line
    seen(line, "all samples: the cell is put together from its journal")


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", '{"identity": ' + "9" * 5000 + "}", "\0"], ids=range(4))
def test_a_result_of_another_form_is_made_again(content: str, tmp_path: Path) -> None:
    cells = [cell(tmp_path, "a")]
    assert sweep_of(tmp_path, *cells).run() == {}
    damage(tmp_path / "cells/a/cell.json", content)
    os.mkfifo(tmp_path / "cells/a/run/journal/r-rank1.jsonl")  # and what would wait for ever if it was read
    again = sweep_of(tmp_path, *cells)
    assert again.run() == {} and [result["resumed"] for result in again.results()] == [3]
    assert "cell.json is damaged" in said_by(again)


@pytest.mark.fault("a cell's output damaged", "a framework that writes half of its file, and says that all is well")
def test_damaged_output(tmp_path: Path, seen: Seen) -> None:
    broken = replace(cell(tmp_path, "a"), collect=lambda run: json.loads('{"resumed": '))
    sweep = sweep_of(tmp_path, broken, cell(tmp_path, "b"))
    failures = sweep.run()
    assert list(failures) == ["a"] and "its files are damaged: JSONDecodeError" in failures["a"]
    assert sweep_of(tmp_path, cell(tmp_path, "a")).run() == {}
    seen(f"tango: a failed: {failures['a']}", "the other cells, and the cell's samples")


@pytest.mark.fault("no output of a cell", "a framework that ends well without a file")
def test_no_output(tmp_path: Path, seen: Seen) -> None:
    def missing(run: Path) -> dict[str, Any]:
        raise CellError(f"expected one *_efficiency.json below {str(run)!r}, found 0")

    failures = sweep_of(tmp_path, replace(cell(tmp_path, "a"), collect=missing), cell(tmp_path, "b")).run()
    assert list(failures) == ["a"] and "found 0" in failures["a"]
    seen(f"tango: a failed: {failures['a']}", "the other cells, and the cell's samples")


@pytest.mark.fault("a journal damaged in the middle", "its second line of three replaced by half of it")
def test_a_damaged_journal(tmp_path: Path, seen: Seen) -> None:
    assert sweep_of(tmp_path, cell(tmp_path, "a")).run() == {}
    (tmp_path / "cells/a/cell.json").unlink()
    journal = tmp_path / "cells/a/run/journal/r-rank0.jsonl"
    first, _, third = journal.read_text().split("\n")[:3]
    damage(journal, f'{first}\n{{"key": "1", "resp\n{third}\n')
    again = sweep_of(tmp_path, cell(tmp_path, "a"), cell(tmp_path, "b"))
    assert again.run() == {} and [result["resumed"] for result in again.results()] == [2, 0]
    line = next(line for line in (tmp_path / "cells/a/log.txt").read_text().split("\n") if "set aside" in line)
    assert "line 2, is set aside and its sample computed anew" in line
    seen(line, "all samples but the damaged one, and its line as it is")


@pytest.mark.fault("a file in the place of a journal", "a text file with the journal's name, and a link to one")
def test_a_file_that_is_no_journal(tmp_path: Path, seen: Seen) -> None:
    sweep = sweep_of(tmp_path, cell(tmp_path, "a"))
    assert sweep.run() == {}
    (tmp_path / "cells/a/cell.json").unlink()
    journal, notes = tmp_path / "cells/a/run/journal/r-rank0.jsonl", tmp_path / "notes.txt"
    damage(journal, "precious")
    failures = sweep.run()
    assert "is no journal of ours" in failures["a"] and journal.read_text() == "precious"
    journal.rename(notes)
    journal.symlink_to(notes)
    assert "is a link" in sweep.run()["a"] and notes.read_text() == "precious"
    seen(f"tango: a failed: {failures['a']}", "the file and what the link points to, as they are; the other cells")


@pytest.mark.fault("a journal torn at its end", "the last bytes cut off, as a kill or a power failure does")
def test_a_torn_journal(tmp_path: Path, seen: Seen) -> None:
    assert sweep_of(tmp_path, cell(tmp_path, "a")).run() == {}
    (tmp_path / "cells/a/cell.json").unlink()
    journal = tmp_path / "cells/a/run/journal/r-rank0.jsonl"
    journal.write_bytes(journal.read_bytes()[:-4])
    again = sweep_of(tmp_path, cell(tmp_path, "a"))
    assert again.run() == {} and again.results()[0]["resumed"] == 2
    seen("(nothing: the torn sample is computed again)", "all samples but the torn one")


@pytest.mark.fault("out of memory in a sample", "an allocation of 2**60 bytes while a sample is answered")
def test_out_of_memory_in_a_sample(tmp_path: Path, seen: Seen) -> None:
    def sample(name: str, size: int) -> Sample:
        def answer() -> Answer:
            return Answer(torch.empty(size, dtype=torch.uint8).numel(), None, {}, [])

        return Sample("t", name, 0, name, answer)

    with Journal(tmp_path, "run") as journal:
        first, failed, last = Runner(journal).run([sample("a", 1), sample("b", 2**60), sample("c", 2)])
    assert (first.response, failed.response, last.response) == (1, None, 2)
    assert "can't allocate memory" in failed.failure and failed.tries == 2
    kept = read_journal(tmp_path / "run-rank0.jsonl")
    assert [kept[name]["failure"] is None for name in "abc"] == [True, False, True]
    seen(failed.failure, "the other samples; it is tried twice, recorded as failed, and tried again next time")


@pytest.mark.fault("out of memory in a command", "`tango ask` for which an allocation of 2**60 bytes fails")
def test_out_of_memory_in_a_command(
    monkeypatch: pytest.MonkeyPatch, seen: Seen, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("tango.inference.chat.read_video", lambda *_: torch.empty(2**60, dtype=torch.uint8))
    assert main(["ask"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "can't allocate memory" in line and "fewer --frames" in line
    seen(line, "nothing was computed")
