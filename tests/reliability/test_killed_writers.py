"""Writers that are killed or starved at any write: what was there before is whole, what was finished is there, once."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from made_up import made_up, write_sweep
from test_faults_in_sweeps import alive, answers, cell, read_only, room_for, sweep_of, wait_for  # noqa: F401 (a fixture)

from tango.inference.files import write_whole
from tango.results import report
from tango.runs.journal import Journal, JournalError, read_journal, write_json
from tango.sweeps.sweep import SweepError

GROUP = "Killed or starved at any write"
fault = pytest.mark.fault
Seen = Callable[[str, str], None]

# Which write of this process is its last, before it is done or after: at it the process kills itself with SIGKILL, in
# half a write, before or after a file takes its name. Counted are all calls of a process that change a file.
LETHAL = """
import os, random, signal, sys
from tango.inference import files
from tango.runs import journal
seed, left = int(sys.argv[1]), [int(sys.argv[2])]
rng = random.Random(seed)
def lethal(module, name):
    original = getattr(module, name)
    def call(*args, **named):
        left[0] -= 1
        last = left[0] == 0
        if last and rng.random() < 0.5:
            os.kill(os.getpid(), signal.SIGKILL)
        done = original(*args, **named)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return done
    setattr(module, name, call)
for name in ("fsync", "replace", "open"):
    lethal(os, name)
class File(journal.FileIO):
    def write(self, data):
        left[0] -= 1
        if left[0] == 0:
            super().write(data[: rng.randrange(len(data) + 1)])
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write(data)
journal.FileIO = File
"""


def killed(code: str, *arguments: object) -> int:
    """The exit status of a process that runs this after LETHAL."""
    words = [sys.executable, "-c", LETHAL + code, *map(str, arguments)]
    return subprocess.run(words, stdout=subprocess.DEVNULL, timeout=120).returncode


@fault("SIGKILL at any write of a journal", "30 processes one after another, each killed in or beside its n-th write")
def test_a_journal_whose_writer_is_killed(tmp_path: Path, seen: Seen) -> None:
    code = """
said = open(sys.argv[4], "a")
with journal.Journal(sys.argv[3], "run") as kept:
    while len(kept.entries) < 60:
        key = f"q{len(kept.entries)}"
        kept.append(key, {"response": "\\u2028\\r" + "x" * rng.randrange(3000), "failure": None})
        print(key, file=said, flush=True)
"""
    rng, said = random.Random(1), tmp_path / "said"
    said.touch()
    lost = []
    for seed in range(30):
        status = killed(code, seed, rng.randrange(1, 16), tmp_path / "journal", said)
        assert status in (-signal.SIGKILL, 0)
        finished = said.read_text().split("\n")[:-1]
        with Journal(tmp_path / "journal", "run") as journal:
            assert {*finished} <= {*journal.entries} and len(journal.entries) - len(finished) <= 1 + len(lost)
            lost += [key for key in journal.entries if key not in finished and key not in lost]
    lines = (tmp_path / "journal/run-rank0.jsonl").read_bytes().split(b"\n")[:-1]
    keys = [json.loads(line)["key"] for line in lines]
    assert len({*keys}) == len(keys) > 20  # nothing lost, nothing computed twice
    seen("(nothing: it is gone)", "every sample that was finished, each once; none is computed twice")


FILE = {"a": ["é" * 20_000, 1]}
WRITERS = {
    "JSON": ("journal.write_json(path, made)", "cell.json"),
    "text": ("files.write_whole(path, repr(made))", "README.md"),
    "bytes": ("files.write_whole(path, repr(made).encode())", "time.png"),
}


@fault("SIGKILL at any write of a file", "a file of each kind replaced by another, killed at each step of it")
def test_a_file_whose_writer_is_killed(tmp_path: Path, seen: Seen) -> None:
    kinds = set()
    for name, (write, called) in WRITERS.items():
        code = f"""
import pathlib
path, made = pathlib.Path(sys.argv[3]), {{"a": ["é" * 20_000, int(sys.argv[4])]}}
{write}
"""
        path = tmp_path / called
        (write_json if name == "JSON" else lambda path, made: write_whole(path, repr(made)))(path, FILE)
        before = path.read_bytes()
        whole = {number: before.replace(b"1", str(number).encode()) for number in range(2, 9)}
        for number in whole:
            status = killed(code, number, number - 1, path, number)
            kinds.add((status, path.read_bytes() == before))
            assert path.read_bytes() in (before, whole[number])
            if status == 0:
                assert path.read_bytes() == whole[number]
            before = path.read_bytes()
    assert {(-signal.SIGKILL, True), (-signal.SIGKILL, False), (0, False)} <= kinds  # it died on either side
    seen("(nothing: it is gone)", "the file as it was before, or the new one, whole")


@fault("SIGKILL at random to two ranks", "SIGKILL to two writers of one run after 0 to 0.3 s, 12 times, seeded")
def test_ranks_that_are_killed(tmp_path: Path, seen: Seen) -> None:
    code = """
import sys
from tango.runs.journal import Journal
rank = int(sys.argv[2])
with Journal(sys.argv[1], "run", rank) as kept, open(f"{sys.argv[1]}/said{rank}", "a") as said:
    for number in range(rank, 100_000, 2):
        if str(number) not in kept.entries:
            kept.append(str(number), {"response": "x" * 2000, "failure": None})
            print(number, file=said, flush=True)
"""
    rng = random.Random(2)
    for _ in range(12):
        ranks = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), rank]) for rank in "01"]
        deadline = time.monotonic() + 60
        sizes = [file.stat().st_size for file in sorted(tmp_path.glob("said*"))]
        while [f.stat().st_size for f in sorted(tmp_path.glob("said*"))] <= sizes and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.3)
        for process in ranks:
            process.kill()
            process.wait()
    counted: list[str] = []
    for rank in "01":
        finished = (tmp_path / f"said{rank}").read_text().split("\n")[:-1]
        kept = read_journal(tmp_path / f"run-rank{rank}.jsonl")
        lines = (tmp_path / f"run-rank{rank}.jsonl").read_bytes().count(b"\n")
        assert {*finished} <= {*kept} and lines - len(kept) <= 0 and len(finished) > 12
        counted += kept
    assert len({*counted}) == len(counted)
    seen("(nothing: they are gone)", "every sample that either had finished, each once")


def table_of(folder: Path) -> tuple[list[float], set[str]]:
    return pd.read_csv(folder / "accuracy.csv", comment="#")["MotionQA"].tolist(), {f.name for f in folder.iterdir()}


@fault("full disk under tables and plots", "RLIMIT_FSIZE, which cuts a plot, or a table, in its middle")
def test_tables_on_a_full_disk(tmp_path: Path, seen: Seen) -> None:
    write_sweep(tmp_path / "in", [made_up("vanilla", None, list(range(32)), 512), made_up("tango", 0.1, [1])])
    report([tmp_path / "in"], tmp_path / "out")
    (folder,) = (tmp_path / "out").iterdir()
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    errors = []
    for size in (10, 20_000):
        with room_for(size), pytest.raises(OSError, match="File too large") as error:
            report([tmp_path / "in"], tmp_path / "out")
        errors.append(error.value)
        assert before == {file.name: file.read_bytes() for file in folder.iterdir()}  # no partial file stays either
    report([tmp_path / "in"], tmp_path / "out")
    assert table_of(folder) == ([80, 2.5], {*before})
    seen(f"tango: {errors[0]}", "tables and plots as they were, whole")


@fault("full disk under a file", "RLIMIT_FSIZE of every size from nothing to all of it")
def test_a_file_on_a_full_disk(tmp_path: Path, seen: Seen) -> None:
    path = tmp_path / "cell.json"
    write_json(path, {"old": 1})
    for size in (0, 1, 100, 5000, 8191, 8192):
        with room_for(size), pytest.raises(OSError, match="File too large") as error:
            write_json(path, {"new": "x" * 9000})
        assert json.loads(path.read_bytes()) == {"old": 1} and os.listdir(tmp_path) == ["cell.json"]
    seen(f"OSError: {error.value}", "the file as it was before; nothing beside it")


@fault("full disk under a journal, at each byte", "RLIMIT_FSIZE that lets each part of a sample's line through")
def test_a_journal_on_a_disk_that_is_full_at_each_byte(tmp_path: Path, seen: Seen) -> None:
    with Journal(tmp_path, "run") as journal:
        journal.append("a", {"response": 1})
        start = journal.path.stat().st_size
        content = journal.path.read_bytes()
        for size in range(start, start + 25):
            with room_for(size), pytest.raises(JournalError, match="File too large") as error:
                journal.append("b", {"response": 2})
            assert journal.path.read_bytes() == content and list(journal.entries) == ["a"]
        journal.path.unlink()  # and while it is written anew
        with room_for(30), pytest.raises(JournalError, match="File too large"):
            journal.append("b", {"response": 2})
        journal.append("c", {"response": 3})
    assert list(read_journal(journal.path)) == ["a", "c"]
    seen(f"JournalError: {error.value}", "every sample before it, and no part of this one")


@fault("no permission to write a journal", "a folder of mode 555 for the journal")
def test_a_journal_without_permission(read_only: Path, seen: Seen) -> None:  # noqa: F811
    with pytest.raises(PermissionError) as error:
        Journal(read_only, "run")
    assert not list(read_only.iterdir())
    seen(f"{error.value}".replace(str(read_only), "read-only"), "everything there is; nothing was started")


@pytest.fixture
def shared() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@fault(
    "SIGKILL at random to sweeps", "a sweep of three cells killed with its cells after 0.2 to 1.5 s, 6 times, seeded"
)
def test_sweeps_that_are_killed(shared: Path, seen: Seen) -> None:
    rng, best = random.Random(3), 0
    for _ in range(6):
        child = os.fork()
        if child == 0:
            os.setsid()
            sweep_of(shared, *(cell(shared, name, 12, 0.05) for name in "abc")).run()
            os._exit(0)
        time.sleep(0.2 + 1.3 * rng.random())
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        finished = sum(answers(shared, name) for name in "abc")
        assert finished >= best  # nothing that was finished is gone
        best = finished
    logs = [log.read_text() for log in shared.glob("cells/*/log.txt")]
    started = [int(pid) for log in logs for pid in re.findall(r"^pid (\d+)$", log, re.MULTILINE)]
    wait_for(lambda: not any(map(alive, started)))  # cells see that their sweep is gone
    again = sweep_of(shared, *(cell(shared, name, 12) for name in "abc"))
    assert again.run() == {}
    for name in "abc":
        lines = (shared / f"cells/{name}/run/journal/r-rank0.jsonl").read_bytes().split(b"\n")[:-1]
        assert sorted(json.loads(line)["response"] for line in lines) == list(range(12))
    seen("(nothing: it is gone)", "every finished sample, each once; nothing is computed twice")


@fault("two sweeps started at the same moment", "two processes that race for one folder, 4 times")
def test_sweeps_that_race(shared: Path, seen: Seen) -> None:
    told = set()
    for number in range(4):
        folder = shared / str(number)
        children = []
        for _ in range(2):
            child = os.fork()
            if child == 0:
                try:
                    sweep_of(folder, cell(folder, "a", 5, 0.05)).run()
                    os._exit(0)
                except SweepError as error:
                    os._exit(9 if "another sweep" in str(error) else 1)
            children.append(child)
        ends = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
        told.add(tuple(ends))
        lines = (folder / "cells/a/run/journal/r-rank0.jsonl").read_bytes().split(b"\n")[:-1]
        assert sorted(json.loads(line)["response"] for line in lines) == list(range(5))
        shutil.rmtree(folder)
    assert told <= {(0, 9), (0, 0)}  # the second was told, or came when the first was done
    seen("(to the second: `another sweep works in it`)", "every sample, once")
