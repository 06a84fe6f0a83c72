"""Secrets in what frameworks print, and in what results say of their command."""

import io
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from loguru import logger

from tango.runs import hooks, provenance


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "HF_TOKEN": "hf_abc", "OPENAI_API_KEY": "sk-12345", "DB_PASSWORD": "pass word", "MY_TOKEN": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "true", "MAX_NEW_TOKENS": "1024", "HF_TOKEN_PATH": "/tmp",
        "TOKENIZER_MODE": "slow",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(hooks, "get_token", lambda: "hf_ofTheFile99")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{'token': 'hf_abc'}", "{'token': '[hidden]'}"),
        ("key=sk-12345,1 true", "key=[hidden],1 true"),  # what is no secret stays
        ("pass word, hf_ofTheFile99 and hf_ofSomebodyElse", "[hidden], [hidden] and [hidden]"),
        (
            "run.py --judge-key sk-9 --key=a --max-tokens 32 --hf-token",
            "run.py --judge-key [hidden] --key=[hidden] --max-tokens 32 --hf-token",
        ),
        ("hf_home and shelf_abcdefgh", "hf_home and shelf_abcdefgh"),
        ("1024 questions in /tmp/x, read in slow mode", "1024 questions in /tmp/x, read in slow mode"),
    ],
)
def test_what_is_hidden(text: str, shown: str) -> None:
    assert hooks.mask(text) == shown


def test_whatever_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    hooks.mask_output()
    hooks.mask_output()
    print("a", {"token": "hf_abc"})
    number = logger.add(sys.stdout, format="{message}")
    logger.info("Evaluation tracker args: {}", "hf_abc")
    logger.remove(number)
    sys.__excepthook__(ValueError, ValueError("hf_abc"), None)
    said = [stream.buffer.getvalue().decode() for stream in streams]  # type: ignore[attr-defined]
    assert said == ["a {'token': '[hidden]'}\nEvaluation tracker args: [hidden]\n", "ValueError: [hidden]\n"]


def test_logs_in_files(tmp_path: Path) -> None:
    before = logging.getLogRecordFactory()
    handler = logging.FileHandler(tmp_path / "log")
    mine = logging.getLogger("of a framework")
    mine.addHandler(handler)
    try:
        hooks.mask_output()
        mine.warning("judge: %s", {"key": "sk-12345"})
        mine.warning("%d of %s", 3, "these")
    finally:
        logging.setLogRecordFactory(before)
        mine.removeHandler(handler)
        handler.close()
    assert (tmp_path / "log").read_text() == "judge: {'key': '[hidden]'}\n3 of these\n"


def test_the_command_of_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "lmms_eval", "--hf_hub_log_args", "token=hf_abc"])
    assert (
        provenance.command().endswith("--hf_hub_log_args 'token=[hidden]'") or "token=[hidden]" in provenance.command()
    )


def test_problems_command_no_terminal() -> None:
    end = "from tango.runs.hooks import give_up; give_up('lmms-eval', ['no file \\x1b[2J.mp4'])"
    done = subprocess.run([sys.executable, "-c", end], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "lmms-eval: no file \\x1b[2J.mp4\n")
