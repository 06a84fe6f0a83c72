"""What strangers tried in 0.2 and what was mended then: "Somebody who attacks" in docs/reliability.md."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from faults import ROOT, SHIPPED
from rich.table import Table

import tango.cli
from tango.cli import main
from tango.cli.common import console
from tango.results import ResultsError
from tango.results.samples import ARCHIVE, read_folders
from tango.runs.screen import visible

sys.path.insert(0, str(ROOT / "tests"))
from made_up import made_up, write_sweep

ORDERS = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egnp.\x7f"  # clear the screen, name the window, colour, turn what follows
FEW = ["--frames", "2", "--max-new-tokens", "2"]


def test_text_commands_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither questions nor names of files; letters of any script, ends of lines and joined emojis stay."""
    video = shutil.copy(SHIPPED, tmp_path / f"a{ORDERS}.mp4")
    assert main(["ask", str(video), f"What{ORDERS}?", *FEW]) == 0
    assert main(["ask", f"gone{ORDERS}", "What?"]) == 2
    assert main(["sweep", f"gone{ORDERS}"]) == 2
    table = Table("name")
    table.add_row(f"cell{ORDERS}")
    console().print(table)
    said = "".join(capsys.readouterr())
    assert not any(order in said for order in "\x1b\x07\x9b\u202e\x7f")
    assert "What\\x1b[2J\\x1b]0;owned\\x07\\x9b31m\\u202egnp.\\x7f?" in said and "cell\\x1b[2J" in said
    plain = "Où? 何\t色\n🤷\u200d♀️ \xa0ok"
    assert visible(plain) == plain


@pytest.mark.parametrize("mode", ["ask", "ask --json", "live"])
def test_answers_command_no_terminal(
    mode: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all that terminals obey, C1 controls among them, for people and as JSON, which is equal when it is read."""
    orders = ORDERS + "".join(map(chr, range(0x80, 0xA0))) + "\u2066 Où?"
    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.decode", lambda *_, **__: orders)
    monkeypatch.setattr(
        "transformers.PreTrainedTokenizerBase.batch_decode", lambda _, found, **__: [orders] * len(found)
    )
    words = ["live", str(SHIPPED), "--fast", "--question", "What?", *FEW[2:]] if mode == "live" else [
        mode.split()[0], str(SHIPPED), "What?", *FEW, *mode.split()[1:]
    ]  # fmt: skip
    assert main(words) == 0
    said = capsys.readouterr().out
    turns = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    controls = {
        c for c in {*said} - {*"\n\t"} if unicodedata.category(c) == "Cc" or unicodedata.bidirectional(c) in turns
    }
    assert not controls and "Où?" in said
    if mode == "ask":
        assert r"\x85" in said and r"\x9b" in said
    else:
        assert orders in texts(json.loads(said.splitlines()[0] if mode == "live" else said))


def texts(content: Any) -> list[str]:
    """All texts in what JSON holds."""
    inside = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return [content] if isinstance(content, str) else [text for one in inside for text in texts(one)]


@pytest.mark.parametrize("question", ["", "  ", "\n"])
def test_a_question_of_nothing_is_refused(question: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", str(SHIPPED), question, *FEW]) == 2
    assert main(["live", str(SHIPPED), "--question", question]) == 2
    assert capsys.readouterr().err.count("asks nothing; write one") == 2


@pytest.mark.parametrize("error, advice", [
    (ImportError("libtorch_cuda.so: failed to map segment from shared object"), "not enough memory to load it"),
    (RuntimeError("can't start new thread"), "ulimit -u"),
    (MemoryError(), "out of memory; use fewer --frames"),
])  # fmt: skip
def test_a_machine_without_room_is_one_line(
    error: Exception, advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(tango.cli, "app", fail)
    assert main(["methods"]) == 1
    assert advice in capsys.readouterr().err


def test_little_memory_is_no_fault_of_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    from tango.inference.checks import in_one_line

    with pytest.raises(RuntimeError, match="can't start new thread"), in_one_line("model", "its weights"):
        raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("variables, words, status, told", [
    ({"MPLBACKEND": "nope"}, ["results", "{cells}", "--output", "{out}"], 0, "accuracy.png"),
    ({"HF_HUB_OFFLINE": "1"}, ["ask", "--model", "owner/nope"], 2, "HF_HUB_OFFLINE says not to ask the hub"),
])  # fmt: skip
def test_variables_of_the_environment(
    variables: dict[str, str], words: list[str], status: int, told: str, tmp_path: Path
) -> None:
    write_sweep(tmp_path / "cells", [made_up("vanilla", None, [1, 2], 512), made_up("tango", 0.1, [1])])
    words = [word.format(cells=tmp_path / "cells", out=tmp_path / "out") for word in words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    command = [sys.executable, "-m", "tango.cli", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr
    assert told in done.stdout + done.stderr


def archive(folder: Path, name: str) -> None:
    with tarfile.open(folder / ARCHIVE, "w:xz") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())


PIPES = ("cells/00/cell.json", "x/1_efficiency.json", ARCHIVE, "accuracy.csv", "notes.md", "cells/00/identity")


def test_pipes_and_folders_named_like_files(tmp_path: Path) -> None:
    """They are passed over; in a process of its own, since a pipe would be waited for."""
    folders = []
    for make in (os.mkfifo, os.mkdir):
        for name in PIPES:
            folders.append(tmp_path / f"{make.__name__}{len(folders)}")
            write_sweep(folders[-1], [made_up("vanilla", None, [1, 2], 512)] * 2)
            place = folders[-1] / name
            place.parent.mkdir(exist_ok=True)
            place.unlink(missing_ok=True)
            make(place)
    code = (
        "import sys; from tango.cli import main; out, *folders = sys.argv[1:]; import tango.results.report; "
        "sys.modules['tango.results.report'].plot_all = lambda *_: []; "
        "print('statuses', [(main(['results', one, '--output', out]), main(['verify', one])) for one in folders])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out"), *map(str, folders)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    # These cells have no runs beside them, so that nothing is wrong and not all can be checked.
    assert done.stdout.splitlines()[-1] == f"statuses {[(0, 1)] * len(folders)}", done.stdout + done.stderr


@pytest.mark.parametrize("name", ["", ".", "./", "/cells/a"])
def test_members_of_an_archive_without_a_name(name: str, tmp_path: Path) -> None:
    archive(tmp_path, name)
    with pytest.raises(ResultsError, match="only files of cells/ belong there"):
        read_folders([tmp_path])


@pytest.mark.parametrize("content", ["", "{}\n", "[]\n", "[" * 99999, '{"accuracy": {}}\n'])
def test_logs_of_samples_that_hold_something_else(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from test_results_verify import write_cell

    place = write_cell(tmp_path, "lmms-eval", None)
    (log,) = place.rglob("*_samples_*.jsonl")
    log.write_text(content)
    assert main(["verify", str(tmp_path)]) == 2
    with contextlib.suppress(ResultsError):
        main(["results", str(tmp_path), "--site", str(tmp_path / "site")])
    assert "its run's files cannot be read" in capsys.readouterr().out or content == ""


def test_a_table_that_is_no_utf8(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_bytes(b"Made by: something\n\n| a |\n|---|\n| 1 \xff |\n")
    assert main(["verify", str(tmp_path)]) == 1
