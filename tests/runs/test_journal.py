"""Journals survive kills; runners retry, record and resume."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

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
    lines = (tmp_path / "run-rank1.jsonl").read_text(encoding="utf-8")
    assert lines == '{"key":"a","response":"x"}\n{"key":"a","response":"é"}\n'  # as text that people can read


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


@pytest.mark.parametrize(
    "damaged",
    ['{"key": ', '{"response": 1}', '{"key": 5}', "[1]", "null", "7", '{"key":"b","response":NaN}', "\0\0\0",
     '{"key", "é"', '{"key":"b","n":1e999}', '{"key":"b","n":-Infinity}', '{"key":"b","n":' + "9" * 5000 + "}",
     '{"key":"b","n":' + str(2**63) + "}", '{"key":"b","n":' + "[" * 100_000 + "]" * 100_000 + "}",
     '{"key":"b","n":' + "[" * 60 + "]" * 60 + "}"],
    ids=lambda text: text[:24],
)  # fmt: skip
def test_a_damaged_line_is_set_aside(damaged: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "run-rank0.jsonl"
    content = f'{{"key": "a"}}\n{damaged}\n{{"key": "c"}}\n'
    path.write_text(content)
    assert set(read_journal(path)) == {"a", "c"}
    assert "line 2, is set aside and its sample computed anew" in caplog.text and len(caplog.text) < 600
    with Journal(tmp_path, "run") as journal:
        assert set(journal.entries) == {"a", "c"}
        journal.append("b", {"response": 1})
    assert path.read_text() == content + '{"key":"b","response":1}\n'  # nothing that was there is changed
    assert set(read_journal(path)) == {"a", "b", "c"}


def test_what_ends_a_journal_is_only_cut_if_it_is_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "run-rank0.jsonl"
    for end, kept in (
        ('{"key":"b","resp', ""), ('{"k', ""), ('{"key":"b"}', '{"key":"b"}\n'), ("\0\0", "\0\0\n"), ("x", "x\n"),
    ):  # fmt: skip
        path.write_text('{"key": "a"}\n' + end)
        with Journal(tmp_path, "run") as journal:
            assert set(journal.entries) == {"a", *(["b"] if kept.startswith("{") else [])}
        assert path.read_text() == '{"key": "a"}\n' + kept


SEPARATORS = "\u2028\u2029\x85\r\x0b\x0c\x1c\x1d\x1e\n\r\n\0\ufeff"


@pytest.mark.parametrize("separator", [*SEPARATORS, SEPARATORS])
def test_line_separators_in_a_reply(separator: str, tmp_path: Path) -> None:
    text = f"{separator}one{separator}two{separator}"
    with Journal(tmp_path, "run") as journal:
        for key in ("a", f"key{separator}"):
            journal.append(key, {"response": text})
    with Journal(tmp_path, "run") as journal:
        assert [entry["response"] for entry in journal.entries.values()] == [text, text]
        assert list(journal.entries) == ["a", f"key{separator}"]
    assert journal.path.read_bytes().count(b"\n") == 2


FOREIGN = [b"precious", b"precious\n", b"two\nlines", b'{"name": "Ada"}', b'{"name": "Ada"}\n', b"[1, 2]\n", b"{",
           b"\n\n", b"\x89PNG\r\n\x1a\n\0\0", b"id,answer\n1,B\n"]  # fmt: skip


@pytest.mark.parametrize("content", FOREIGN)
def test_a_file_that_is_no_journal_is_refused_as_it_is(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run-rank0.jsonl"
    path.write_bytes(content)
    for _ in range(2):
        with pytest.raises(JournalError, match="is no journal of ours; move it elsewhere"):
            Journal(tmp_path, "run")
    assert path.read_bytes() == content
    with Journal(tmp_path, "run", rank=1) as journal:  # of another rank, it is left out
        journal.append("a", {"response": 1})
    assert path.read_bytes() == content and list(journal.entries) == ["a"]


@pytest.mark.parametrize("target", ["a file", "a journal", "nothing", "a device", "a folder", "itself"])
def test_a_link_is_never_written(target: str, tmp_path: Path) -> None:
    elsewhere, path = tmp_path / "elsewhere" / "mine.txt", tmp_path / "journal" / "run-rank0.jsonl"
    elsewhere.parent.mkdir()
    path.parent.mkdir()
    content = b'{"key": "a"}\n{"key": "b", "resp' if target == "a journal" else b"precious"
    elsewhere.write_bytes(content)
    names = {"nothing": elsewhere.parent / "new.txt", "a device": Path("/dev/null"), "itself": path}
    path.symlink_to(names.get(target, elsewhere.parent if target == "a folder" else elsewhere))
    with pytest.raises(JournalError, match="is a link, and what it points to is not written"):
        Journal(path.parent, "run")
    assert elsewhere.read_bytes() == content and [file.name for file in elsewhere.parent.iterdir()] == ["mine.txt"]
    with Journal(path.parent, "run", rank=1) as journal:  # another rank's may be read
        assert list(journal.entries) == (["a"] if target == "a journal" else [])


def test_only_regular_files_are_journals(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run-rank0.jsonl")
    (tmp_path / "run-rank3.jsonl").mkdir()
    with pytest.raises(JournalError, match="is no regular file"):
        Journal(tmp_path, "run")
    with pytest.raises(JournalError, match="is no regular file"):
        read_journal(tmp_path / "run-rank0.jsonl")
    with pytest.raises((JournalError, OSError)):
        Journal(tmp_path, "run", rank=3)
    with Journal(tmp_path, "run", rank=1) as journal:  # and does not wait for the pipe
        journal.append("a", {})


@pytest.mark.parametrize(
    "how", ["deleted", "renamed", "its folder deleted", "replaced by an empty file", "replaced by ours"]
)
def test_a_journal_that_loses_its_name_is_written_anew(how: str, tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    with Journal(folder, "run") as journal:
        journal.append("a", {"response": 1})
        if how == "renamed":
            journal.path.rename(folder / "old.jsonl")
        elif how == "its folder deleted":
            shutil.rmtree(folder)
        else:
            journal.path.unlink()
        if how.startswith("replaced"):
            journal.path.write_text("" if "empty" in how else '{"key": "z", "response": 0}\n')
        journal.append("b", {"response": 2})
        with pytest.raises(JournalError, match="being written by another process"):
            Journal(folder, "run")
        journal.append("c", {"response": 3})
    answers = {key: entry["response"] for key, entry in read_journal(journal.path).items()}
    assert answers == {"a": 1, "b": 2, "c": 3} | ({"z": 0} if how == "replaced by ours" else {})


def test_a_second_writer_after_a_journal_was_renamed(tmp_path: Path) -> None:
    with Journal(tmp_path, "run") as first:
        first.append("a", {"response": 1})
        first.path.rename(tmp_path / "old.jsonl")
        with Journal(tmp_path, "run") as second:
            second.append("b", {"response": 2})
            with pytest.raises(JournalError, match="being written by another process"):
                first.append("c", {"response": 3})
            second.append("d", {"response": 4})
    assert list(read_journal(tmp_path / "run-rank0.jsonl")) == ["b", "d"]
    for place in ("link", "foreign"):
        with Journal(tmp_path, place) as journal:
            journal.path.unlink()
            (journal.path.symlink_to if place == "link" else journal.path.write_text)(str(tmp_path / "old.jsonl"))
            with pytest.raises(JournalError, match="is a link" if place == "link" else "is no journal"):
                journal.append("c", {"response": 3})


def test_success_wins_over_failure_whatever_the_order(tmp_path: Path) -> None:
    for rank, lines in enumerate(
        ([("a", None), ("b", "bad")], [("a", "bad"), ("b", None)], [("b", "bad"), ("c", "bad")])
    ):
        with Journal(tmp_path, "run", rank=rank) as journal:
            for key, failure in lines:
                journal.append(key, {"failure": failure, "rank": rank})
            journal.append("c", {"failure": f"of {rank}", "rank": rank})
    with Journal(tmp_path, "run", rank=9) as journal:
        found = {key: (entry["failure"], entry["rank"]) for key, entry in journal.entries.items()}
    assert found == {"a": (None, 0), "b": (None, 1), "c": ("of 2", 2)}


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


def test_each_failed_try_gives_back_what_it_held_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stood in for here: what PyTorch keeps for itself is emptied before the next try, and not after a success."""
    emptied: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(len(emptied)))
    bad = torch.OutOfMemoryError("no room")
    for tries, expected in (["a"], 0), ([bad, "b"], 1), ([bad, bad], 2):
        emptied.clear()
        list(Runner().run([sample("1", tries)]))
        assert len(emptied) == expected


def test_samples_of_one_batch_are_computed_together_and_the_first_of_a_process_are_cold() -> None:
    """Pairs, of which the second fails together and is computed one by one, and one that is alone."""
    asked: list[list[str]] = []

    def together(group: Sequence[Sample]) -> list[Answer]:
        asked.append([str(one.doc_id) for one in group])
        if asked[-1] == ["3", "4"]:
            raise ValueError("too much at once")
        return [Answer(f"together {one.doc_id}", None, {}, []) for one in group]

    samples = [replace(sample(name, [name]), batch="greedy") for name in "123456"]
    records = list(Runner(size=2, together=together).run([*samples, sample("7", ["7"])]))
    assert asked == [["1", "2"], ["3", "4"], ["5", "6"]]
    responses = ["together 1", "together 2", "3", "4", "together 5", "together 6", "7"]
    assert [record.response for record in records] == responses
    assert [record.cold for record in records] == [True, True, False, False, False, False, False]
    assert [record.tries for record in records] == [1] * 7


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


@pytest.mark.parametrize(
    "field, value",
    [("tries", "x"), ("tries", -1), ("timing", 5), ("timing", {}), ("timing", {"vit_s": 1}), ("tokens", {"a": "x"}),
     ("tokens", {"video_tokens_before": -1}), ("tokens", []), ("videos", {}), ("wall_s", None), ("wall_s", -1.0),
     ("response", None), ("rank", 1.5), ("cold", "maybe"), ("failure", 0), ("doc_id", [1]), ("peak_mem_gb", ...)],
)  # fmt: skip
def test_an_entry_with_wrong_or_missing_fields_is_computed_anew(field: str, value: object, tmp_path: Path) -> None:
    with Journal(tmp_path, "run") as journal:
        list(Runner(journal).run([sample("1", ["a"]), sample("2", ["b"])]))
    lines = [json.loads(line) for line in journal.path.read_text().split("\n")[:2]]
    lines[0][field] = value
    if value is ...:
        del lines[0][field]
    journal.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Journal(tmp_path, "run") as journal:
        again = list(Runner(journal).run([sample("1", ["anew"]), sample("2", [])]))
    assert [(r.response, r.resumed) for r in again] == [("anew", False), ("b", True)]
    with Journal(tmp_path, "run") as journal:
        again = list(Runner(journal).run([sample("1", []), sample("2", [])]))
    assert [(r.response, r.resumed) for r in again] == [("anew", True), ("b", True)]
