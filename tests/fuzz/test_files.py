"""Journals, cell.json and grids with changed bytes and changed structure: read, set aside or refused in a sentence."""

import copy
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st
from made_up import made_up, write_sweep
from rich.console import Console

from tango.inference.chat import Answer
from tango.results import ResultsError, report
from tango.results.cells import read_cell
from tango.runs.journal import Journal, JournalError, read_journal
from tango.runs.runner import Runner, Sample
from tango.runs.summary import efficiency, token_summary
from tango.sweeps.grid import Grid, read_grid

Fuzz = Callable[..., None]
NUMBERS = [0, -1, 1, 2**63, -(2**80), 10**400, 1e300, -1e300, 1e-300, float("nan"), float("inf"), -0.0, 0.5]
TEXTS = ["", "a\u2028b\x85\n", "\ud83d", "x" * 300, "=1|<b>$\\frac{", "nan", "1", "\0"]
ODD = st.recursive(
    st.sampled_from([None, True, False, *NUMBERS, *TEXTS]) | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
PIECES = st.sampled_from(
    [b"\n", b"\r", b"\0", b"{", b"}", b'"', b",", b"[" * 2000, b"\xff", b"\xe2\x80\xa8", b"null", b"-1", b"1e999"]
)


@st.composite
def changed_bytes(draw: Any, content: bytes) -> bytes:
    """Bytes cut off, taken out, replaced or put in, one to five times."""
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.sampled_from([start, start + 1, start + 7, len(content)]))
        content = content[:start] + draw(st.one_of(st.just(b""), PIECES, st.binary(max_size=4))) + content[end:]
    return content


@st.composite
def changed_values(draw: Any, value: Any) -> Any:
    """Something in it, one to three times, replaced, taken out, put in or said twice."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        inner = value
        while True:
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(inner[key], dict | list) and inner[key] and draw(st.booleans()):
                inner = inner[key]
                continue
            how = draw(st.sampled_from(["replace", "remove", "add", "repeat"]))
            if how == "remove":
                del inner[key]
            elif how == "repeat" and isinstance(inner, list):
                inner.append(inner[key])
            elif how == "add" and isinstance(inner, dict):
                inner[draw(st.text(max_size=4))] = draw(ODD)
            else:
                inner[key] = draw(ODD)
            break
    return value


def answer(number: int) -> Sample:
    timing = {"vit_s": 0.1, "other_s": 0.1, "prefill_s": 0.1, "decode_s": 0.1, "generate_s": 0.4, "new_tokens": 2}
    tokens: dict[str, int | float] = {"video_tokens_before": 10, "video_tokens_after": 2, "video_tokens_average": 2.0}
    return Sample(
        "t", number, 0, f"key-{number}", lambda: Answer(f"anew {number}\u2028", timing, tokens, [{"kept": "x"}])
    )


@pytest.fixture
def lines(tmp_path: Path) -> list[bytes]:
    with Journal(tmp_path / "whole", "run") as journal:
        list(Runner(journal).run([answer(number) for number in range(4)]))
    return journal.path.read_bytes().split(b"\n")[:-1]


def run_again(folder: Path, content: bytes) -> None:
    """A run goes on over such a journal, or it is refused and left as it is."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    file = folder / "run-rank0.jsonl"
    file.write_bytes(content)
    try:
        with Journal(folder, "run") as journal:
            records = list(Runner(journal).run([answer(number) for number in range(4)]))
    except JournalError as error:
        assert "is no journal of ours" in str(error) and file.read_bytes() == content  # noqa: PT017 (either is right)
        return
    entries = [record.to_dict() for record in records]
    assert [record.response for record in records if not record.resumed] == [
        f"anew {record.doc_id}\u2028" for record in records if not record.resumed
    ]
    assert all(record.failure is None and record.response is not None for record in records)
    efficiency(entries)
    token_summary(records)
    assert {f"key-{number}" for number in range(4)} <= {*read_journal(file)}
    with Journal(folder, "run") as journal:  # now all is there
        assert all(record.resumed for record in Runner(journal).run([answer(number) for number in range(4)]))
    kept = file.read_bytes()
    assert all(line in kept for line in content.split(b"\n")[:-1])  # and no line was taken away


@pytest.mark.filterwarnings("ignore")
def test_journals_of_changed_bytes(fuzz: Fuzz, lines: list[bytes], tmp_path: Path) -> None:
    whole = b"\n".join(lines) + b"\n"
    fuzz(lambda content: run_again(tmp_path / "run", content), 60, content=changed_bytes(whole))


def test_journals_of_changed_entries(fuzz: Fuzz, lines: list[bytes], tmp_path: Path) -> None:
    def check(entries: list[Any]) -> None:
        run_again(tmp_path / "run", "".join(json.dumps(entry) + "\n" for entry in entries).encode())

    fuzz(check, 60, entries=changed_values([json.loads(line) for line in lines]))


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep of two cells, of which one is changed; plots take too long to be made a hundred times."""
    monkeypatch.setattr(sys.modules["tango.results.report"], "plot_all", lambda *_: [])
    write_sweep(tmp_path / "sweep", [made_up("vanilla", None, [1, 2], 512), made_up("tango", 0.1, [1])])
    return tmp_path / "sweep"


def report_again(sweep: Path) -> None:
    """The other cell is in the report, whatever this one is; what it has of numbers can be."""
    file = sweep / "cells/01/cell.json"
    made = report([sweep], sweep.parent / "out")
    made.show(Console(file=io.StringIO()))
    try:
        cell = read_cell(file)
    except ResultsError as error:
        cell, refused = None, str(error)
    folders = {path.parent for path in made.files}
    assert any("| unpruned" in (folder / "README.md").read_text(encoding="utf-8") for folder in folders)
    if cell is None:
        assert refused.startswith(str(file)) and any(str(file) in remark for remark in made.remarks)
        assert len(refused) < len(str(file)) + 1000
    else:
        assert all(
            0 <= row["score"] <= 1 and 0 <= row["tokens_after"] <= row["tokens_before"] for row in cell["samples"]
        )


def test_cells_of_changed_bytes(fuzz: Fuzz, sweep: Path) -> None:
    def check(content: bytes) -> None:
        (sweep / "cells/01/cell.json").write_bytes(content)
        report_again(sweep)

    fuzz(check, 15, content=changed_bytes((sweep / "cells/01/cell.json").read_bytes()))


def test_cells_of_changed_values(fuzz: Fuzz, sweep: Path) -> None:
    def check(cell: Any) -> None:
        (sweep / "cells/01/cell.json").write_text(json.dumps(cell))
        report_again(sweep)

    cell = made_up("tango", 0.1, [1])
    cell["efficiency"]["spread"] = {"Avg_Total_TTFT": 1.0}
    cell["provenance"]["load"] = {"start": 0.5, "end": 1.5, "cores": 2, "waited": 0.01}
    cell["samples"] = cell["samples"][:2]
    fuzz(check, 25, cell=changed_values(cell))


GRID = {"models": ["checkpoints/tango-tiny"], "benchmarks": ["MotionQA"], "ratios": [0.1, 0.2], "limit": 3, "frames": 8,
        "frameworks": "lmms-eval", "methods": "tango", "jobs": 1, "output": "build/x"}  # fmt: skip


def read_again(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    try:
        grid = read_grid(file, {})
    except ValueError as error:
        refused = str(error)
        assert len(refused) < 3000 and (file.name in refused or refused.startswith(("gpus = ", "jobs = ")))
        return
    assert isinstance(grid, Grid) and all(0 < ratio <= 1 for ratio in grid.ratios) and grid.frames >= 1


def test_grids_of_changed_bytes(fuzz: Fuzz, tmp_path: Path) -> None:
    whole = yaml.safe_dump(GRID).encode()
    fuzz(lambda content: read_again(tmp_path / "grid.yaml", content), 100, content=changed_bytes(whole))


def test_grids_of_changed_values(fuzz: Fuzz, tmp_path: Path) -> None:
    def check(grid: Any) -> None:
        read_again(tmp_path / "grid.yaml", json.dumps(grid).encode())

    fuzz(check, 100, grid=changed_values(GRID))
