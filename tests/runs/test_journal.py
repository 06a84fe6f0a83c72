"""Journals survive kills; runners retry, record and resume."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tango.inference.chat import Answer
from tango.runs.journal import Journal, JournalError, read_journal
from tango.runs.runner import Runner, Sample
from tango.runs.summary import failures, token_summary


def test_entries_are_found_again_by_any_rank(tmp_path: Path) -> None:
    with Journal(tmp_path, "run", rank=1) as journal:
        journal.append("a", {"response": "x"})
        journal.append("a", {"response": "é"})
    with Journal(tmp_path, "run", rank=0) as journal, Journal(tmp_path, "other", rank=0) as other:
        assert journal.entries.get("a") == {"key": "a", "response": "é"}
        assert journal.entries.get("b") is None and other.entries.get("a") is None


def test_a_torn_last_line_is_dropped_and_written_over(tmp_path: Path) -> None:
    with Journal(tmp_path, "run") as journal:
        journal.append("a", {"response": 1})
        journal.append("b", {"response": 2})
        path = journal.path
    path.write_bytes(path.read_bytes()[:-5])
    with Journal(tmp_path, "run") as journal:
        assert set(journal.entries) == {"a"}
        journal.append("c", {"response": 3})
    assert set(read_journal(path)) == {"a", "c"}


def test_damage_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "run-rank0.jsonl"
    path.write_text('{"key": "a"}\n{"key": \n{"key": "b"}\n')
    with pytest.raises(JournalError, match="line 2"):
        read_journal(path)


def test_two_writers_are_kept_apart(tmp_path: Path) -> None:
    with Journal(tmp_path, "run"), pytest.raises(JournalError, match="being written by another process"):
        Journal(tmp_path, "run")


def test_a_kill_loses_nothing_that_was_finished(tmp_path: Path) -> None:
    writer = (
        "import sys, itertools; from tango.runs.journal import Journal; journal = Journal(sys.argv[1], 'run')\n"
        "for i in itertools.count(): journal.append(str(i), {'response': 'x' * 500}); print(i, flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", writer, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = [int(process.stdout.readline()) for _ in range(20)]
    os.kill(process.pid, signal.SIGKILL)
    said += [int(line) for line in process.stdout.read().split("\n") if line.strip()]
    process.wait()
    process.stdout.close()
    with Journal(tmp_path, "run") as journal:
        assert len(journal.entries) - (said[-1] + 1) in (0, 1)  # the last may not have been said yet


def sample(name: str, outcomes: list[object]) -> Sample:
    """A sample whose tries give these outcomes, one after another; an exception is raised."""

    def compute() -> Answer:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return Answer(outcome, None, {"video_tokens_before": 10, "video_tokens_after": 2}, [])

    return Sample("task", name, 0, f"key-{name}", compute)


def test_a_failure_is_retried_once_and_then_recorded() -> None:
    runner = Runner()
    bad = ValueError("no good")
    records = list(runner.run([sample("1", ["a"]), sample("2", [bad, "b"]), sample("3", [bad, bad, "c"])]))
    assert [r.response for r in records] == ["a", "b", None]
    assert [r.tries for r in records] == [1, 2, 2]
    assert [r.cold for r in records] == [True, True, True]
    assert failures(records) == [{"task": "task", "doc_id": "3", "reason": "ValueError: no good", "tries": 2}]
    assert token_summary(records)["share_kept"] == 0.2 and token_summary(records)["samples"] == 2


def test_interrupts_are_not_failures() -> None:
    def interrupted() -> Answer:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(Runner().run([Sample("task", 0, 0, "key", interrupted)]))


def test_finished_samples_are_taken_from_the_journal_and_failed_ones_are_not(tmp_path: Path) -> None:
    bad = ValueError("no good")
    with Journal(tmp_path, "run") as journal:
        first = list(Runner(journal).run([sample("1", ["a"]), sample("2", [bad, bad])]))
    with Journal(tmp_path, "run") as journal:
        again = list(Runner(journal).run([sample("1", []), sample("2", ["b"])]))
    assert [r.response for r in again] == ["a", "b"]
    assert [r.resumed for r in again] == [True, False]
    assert again[0].wall_s == first[0].wall_s > 0
    lines = [json.loads(line) for line in (tmp_path / "run-rank0.jsonl").read_text().splitlines()]
    assert [line["failure"] is None for line in lines] == [True, False, True]


def test_wall_time_covers_the_whole_loop() -> None:
    runner, start = Runner(), time.perf_counter()
    for _ in runner.run([sample(str(i), ["a"]) for i in range(5)]):
        pass
    assert 0 < sum(r.wall_s for r in runner.records) <= time.perf_counter() - start


def test_entries_of_the_first_version_are_read(tmp_path: Path) -> None:
    entry = {
        "key": "key-1", "task": "motionqa", "doc_id": 7, "repeat": 0, "response": "A", "failure": None, "tries": 1,
        "timing": {"vit_s": 0.1, "other_s": 0.1, "prefill_s": 0.1, "decode_s": 0.5, "generate_s": 0.8, "new_tokens": 6},
        "tokens": {"input_tokens": 600, "output_tokens": 2, "video_tokens_before": 512, "video_tokens_average": 51.5},
        "videos": [{"frames": 8, "kept": "0123"}], "rank": 0, "wall_s": 1.5, "peak_mem_gb": 0.5, "cold": True,
        "resumed": False,
    }  # fmt: skip
    (tmp_path / "run-rank0.jsonl").write_text(json.dumps(entry) + "\n")
    with Journal(tmp_path, "run") as journal:
        (record,) = Runner(journal).run([sample("1", [])])
    assert {"key": "key-1", **record.to_dict()} == entry | {"resumed": True}
    assert isinstance(record.tokens["input_tokens"], int)
