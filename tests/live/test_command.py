"""`tango live` unattended: JSON lines, and what it refuses."""

import json
import subprocess
import sys

import pytest

from tango.cli import main

VIDEO = "data/motionqa/videos/0.mp4"
QUESTION = "Which letter flashes up?"


def test_json_lines(capsys):
    words = ["live", VIDEO, "--fast", "--fps", "2", "--every", "3", "--question", QUESTION, "--question", "How many?"]
    assert main(words) == 0
    *answers, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["time"], line["question"]) for line in answers] == [
        (3.0, QUESTION), (3.0, "How many?"), (6.0, QUESTION), (6.0, "How many?")
    ]  # fmt: skip
    assert all(line["answer"] and line["seconds_to_first"] > 0 for line in answers)
    assert answers[0]["prompt_tokens"] > answers[0]["reused_tokens"] == 0 < answers[1]["reused_tokens"]
    assert last["ended"] == "the source ended" and last["frames"] == 16 and last["dropped"] == 0


def test_it_ends_when_it_is_told_to(capsys):
    assert main(["live", VIDEO, "--fast", "--seconds", "2", "--every", "1", "--question", QUESTION]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["ended"] == "2 s are over" and last["time"] <= 2


@pytest.mark.parametrize("words, message", [
    (["nothing.mp4"], "no source 'nothing.mp4'"), (["ftp://a/b"], "streams are read from"),
    ([VIDEO, "--budget", "3"], "--budget 3"), ([VIDEO, "--every", "0"], "--every 0"),
    ([VIDEO, "--every", "5e-324"], "--every 4.94066e-324: give at least 0.001 seconds"),
    ([VIDEO, "--budget", "40000"], "--budget 40000: the language model has"),
    ([VIDEO, "--fps", "nan"], "--fps nan"), ([VIDEO, "--policy", "new"], "use one of fade"),
    ([VIDEO, "--method", "none"], "--method 'none'"),
    ([VIDEO, "--method", "fastv", "--ratio", "0.7"], "prunes inside the language model"),
    (["README.md", "--fast"], "cannot be read"),
])  # fmt: skip
def test_bad_input_is_a_sentence_and_exit_code_2(capsys, words, message):
    assert main(["live", *words, "--question", QUESTION]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err


def test_questions_are_typed_in_a_terminal(capsys):
    assert main(["live", VIDEO]) == 2
    assert "give --question" in capsys.readouterr().err


def test_a_problem_is_told_once():
    """In a process of its own: elsewhere pytest takes what is logged."""
    words = ["--fast", "--seconds", "1", "--every", "1", "--budget", "16", "--ratio", "0.9", "--question", QUESTION]
    command = [sys.executable, "-m", "tango.cli", "live", VIDEO, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr.count("budget 16 leaves 4 tokens for the newest segment") == 1
