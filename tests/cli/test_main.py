"""The command as a whole: help, exit codes, one line for bad input, and what is imported for it."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tango.cli
from tango.cli import main
from tango.cli.common import EXIT_CODES
from tango.inference.names import CheckpointError, check_pretrained

ROOT = Path(__file__).parents[2]
COMMANDS = (
    *("ask", "app", "live", "profile", "visualize", "calibrate", "demo", "sweep", "results", "verify", "methods"),
    "doctor",
)


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    # transformers writes its log to the stderr of its import, which in a test may be an earlier test's, closed by now.
    monkeypatch.setattr(logging, "raiseExceptions", False)


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys; from tango.cli import main; status = main(['--help']); "
        "print([name for name in ('torch', 'transformers', 'numpy', 'av', 'pandas') if name in sys.modules]); "
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(f" {name} " in done.stdout for name in COMMANDS)
    words = " ".join(done.stdout.replace("│", " ").split())
    assert all(f"{code} {meaning}" in words for code, meaning in EXIT_CODES.items())


SERVERS = ("app", "live")  # they go on until they are interrupted; live prints JSON by itself


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert "Examples" in said and f"$ tango {command}" in said
    assert "--json" in said or command in SERVERS


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tango {tango.__version__}\n"


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """Files that are not what they should be."""
    (tmp_path / "broken.mp4").write_bytes(b"not a video at all" * 100)
    (tmp_path / "empty.mp4").touch()
    whole = (ROOT / "data/motionqa/videos/0.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"architectures": ["BertModel"], "model_type": "bert"}')
    (tmp_path / "none").mkdir()
    (tmp_path / "no_template").mkdir()
    for file in (ROOT / "checkpoints/tango-tiny").iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / "no_template" / file.name).symlink_to(file)
    (tmp_path / "grid.yaml").write_text("ratio: [0.1]\n")
    (tmp_path / "text.yaml").write_text("ratios: many\n")
    (tmp_path / "zero.yaml").write_text("ratios: [0.1, 0]\n")
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "torn.yaml").write_text("ratios: [0.1\n")
    return tmp_path


BAD_INPUT = [
    (["wrong"], ["No such command 'wrong'", "tango --help"]),
    (["ask", "--nope"], ["--nope", "tango ask --help"]),
    (["ask", "--ratio", "1.5"], ["--ratio", "1.5", "(0, 1]"]),
    (["ask", "--ratio", "0"], ["--ratio", "(0, 1]"]),
    (["ask", "--frames", "0"], ["--frames", "1"]),
    (["ask", "{}/gone.mp4", "What?"], ["gone.mp4", "no video file"]),
    (["ask", "What happens?"], ["What happens?", "tango ask VIDEO QUESTION"]),
    (["ask", "{}/broken.mp4", "What?"], ["broken.mp4"]),
    (["ask", "{}/empty.mp4", "What?"], ["empty.mp4"]),
    (["ask", "{}/cut.mp4", "What?"], ["cut.mp4"]),
    (["ask", "--method", "tangle"], ["tangle", "tango", "fastvid"]),
    (["ask", "--set", "depth=3"], ["depth", "context_ratio"]),
    (["ask", "--set", "context_ratio=2"], ["context_ratio", "2", "[0, 1]"]),
    (["ask", "--set", "segmentation=by hand"], ["by hand", "holitom"]),
    (["ask", "--config", "{}/gone.yaml"], ["gone.yaml", "--config"]),
    (["ask", "--model", "{}/none"], ["none"]),
    (["ask", "--model", "{}/no_template"], ["has no chat template; put one there as chat_template.jinja"]),
    (["ask", "--model", "{}/bert"], ["BertModel", "LlavaOnevisionForConditionalGeneration"]),
    (["ask", "--model", "{}/gone"], ["gone"]),
    (["ask", "--model", "./nomodel"], ["./nomodel", "no such folder"]),
    (["ask", "--model", "checkpoints/tango-tny"], ["no such folder", "did you mean 'checkpoints/tango-tiny'"]),
    (["ask", "--model", "checkpoint/tango-tiny"], ["no such folder", "did you mean 'checkpoints/tango-tiny'"]),
    (["profile", "--model", "tango-tiny"], ["no such folder", "did you mean 'checkpoints/tango-tiny'"]),
    (["visualize", "--model", "checkpoints/../checkpoints/tiny-tango"], ["tiny-tango", "no such folder"]),
    (["ask", "--model", "no spaces/in names"], ["no spaces/in names", "not a hub id"]),
    (["ask", "--model", "checkpoints/motion"], ["no such folder in 'checkpoints'", "hf download checkpoints/motion"]),
    (["doctor", "--model", "nope"], ["nope", "no such folder"]),
    (["doctor", "--model", "./nomodel"], ["./nomodel", "no such folder"]),
    (["ask", "data/motionqa/videos/0.mp4", "bad \udcff"], ["bad", "not UTF-8 at character 5"]),
    (["profile", "--question", "\ud800"], ["not UTF-8 at character 1"]),
    (["visualize", "--question", "a\udc80"], ["not UTF-8 at character 2"]),
    (["ask", "data/motionqa/videos/0.mp4", "a" * 40_000], ["positions for 32768", "a shorter text"]),
    (["profile", "--question", "a " * 40_000], ["positions for 32768", "a shorter text"]),
    (["visualize", "--question", "a" * 40_000, "--output", "{}/seen"], ["positions for 32768", "a shorter text"]),
    (["ask", "--device", "tpu"], ["tpu", "cuda"]),
    (["ask", "--dtype", "int3"], ["int3", "bfloat16"]),
    (["profile", "--method", "fastv", "--ratio", "0.3"], ["0.3", "above 0.500"]),
    (["profile", "--repeats", "0"], ["--repeats"]),
    (["visualize", "{}/broken.mp4"], ["broken.mp4"]),
    (["visualize", "--method", "tangle"], ["tangle", "fastvid"]),
    (["visualize", "--ratio", "7"], ["--ratio", "(0, 1]"]),
    (["ask", "--ratio", "10%"], ["--ratio", "'10%'", "0.1"]),
    (["sweep", "--ratio", "0.1", "--ratio", "12.5 %"], ["--ratio", "0.125"]),
    (["profile", "--ratio", "all"], ["--ratio", "'all'", "as 0.1"]),
    (["visualize", "--set", "colour=3"], ["--set", "colour", "similarity_threshold"]),
    (["visualize", "--config", "none.yaml"], ["--config 'none.yaml'", "no such file"]),
    (["ask", "--model", "checkpoints/tango-tinny"], ["--model 'checkpoints/tango-tinny'", "checkpoints/tango-tiny"]),
    (["methods", "tangle"], ["tangle", "fastvid"]),
    (["results", "{}/gone"], ["gone"]),
    (["sweep", "{}/gone.yaml"], ["gone.yaml"]),
    (["sweep", "{}/grid.yaml"], ["unknown key 'ratio'", "ratios"]),
    (["sweep", "{}/text.yaml"], ["'many'", "a number"]),
    (["sweep", "{}/zero.yaml"], ["zero.yaml: ratios[1] = 0", "(0, 1]"]),
    (["sweep", "{}/list.yaml"], ["list.yaml", "ratios"]),
    (["sweep", "{}/torn.yaml"], ["torn.yaml"]),
    (["sweep", "--framework", "mine"], ["mine", "lmms-eval", "VLMEvalKit"]),
    (["sweep", "--benchmark", "Video-MME"], ["lmms-eval/Video-MME", "hf download"]),
    (["sweep", "--benchmark", "Mine"], ["Mine", "MotionQA", "MVBench"]),
    (["sweep", "--gpus", "2"], ["gpus = 2", "--ray"]),
    (["sweep", "--ray", "local", "--jobs", "2"], ["jobs = 2", "Ray"]),
    (["sweep", "--framework", "VLMEvalKit", "--benchmark", "Mine"], ["Mine", "MVBench"]),
    (["sweep", "--framework", "VLMEvalKit", "--frames", "9"], ["9", "8, 16, 32, 64"]),
    (["sweep", "--method", "tangle"], ["tangle", "fastvid"]),
    (["sweep", "--model", "{}/bert"], ["BertModel"]),
    (["sweep", "--model", "{}/none"], ["nothing was started", "config.json"]),
    (["sweep", "--model", "owner/name", "--framework", "VLMEvalKit"], ["owner/name", "hf download"]),
    (["sweep", "--limit", "0"], ["--limit"]),
]


@pytest.mark.parametrize("words, told", BAD_INPUT, ids=lambda words: " ".join(words)[:60])
def test_bad_input_gets_one_line(
    words: list[str], told: list[str], bad: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.format(bad) for word in words]) == 2
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith("tango: ")]
    assert len(lines) == 1 and not said.out and "Traceback" not in said.err, said
    assert all(part in lines[0] for part in told), lines[0]


@pytest.mark.parametrize("name", tango.cli.TYPED)
def test_what_was_typed_stands_in_messages_as_it_was_typed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Names such as sweeps give to folders hold names of arguments; messages name options in their own words alone."""
    value = f"./{name}16"
    for words, told in (
        (["ask", "--model", value], f"--model {value!r}: no such folder"),
        (["visualize", "--config", value], f"--config {value!r}: no such file"),
        (["profile", "--set", f"segmentation={name}16"], f"segmentation = '{name}16': expected one of"),
        (["ask", "--set", name.partition("=")[0]], f"--set {name.partition('=')[0].strip()!r} is not field=value"),
    ):
        assert main(words) == 2
        assert told in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"^pretrained='\./no'"):  # as for a script that runs a command
        check_pretrained("./no")


def tango_with(change: str, words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command line in a shell of its own, its streams changed there."""
    line = f"{sys.executable} -m tango.cli {words} {change}"
    return subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment})


@pytest.mark.parametrize(
    "words, code", [("--version", 0), ("methods", 0), ("methods --json", 0), ("methods tangle", 2)]
)
@pytest.mark.parametrize("change", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(words: str, code: int, change: str) -> None:
    done = tango_with(change, words)
    assert done.returncode == code and "Traceback" not in done.stderr
    assert (done.stdout == "") == (">&-" in change.split() or code == 2)
    assert (done.stderr == "") == ("2>&-" in change or code == 0)


def test_json_alone_where_stderr_is_closed() -> None:
    done = tango_with("2>&-", "methods tangle --json")
    assert json.loads(done.stdout)["exit_code"] == done.returncode == 2


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_MAX_THREADS", "NUMEXPR_NUM_THREADS"])
@pytest.mark.parametrize("value", ["abc", "0", "-3", "1.5", "²"])
def test_odd_numbers_of_threads(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    assert main(["methods"]) == 2
    assert capsys.readouterr().err == f"tango: {name}={value!r}: give a number of threads of at least 1, or unset it\n"
    monkeypatch.setenv(name, " ")
    assert main(["methods"]) == 0


@pytest.mark.parametrize("command, told", [("sweep", "goes on from what is finished"), ("methods", "starts anew")])
def test_an_interruption_says_how_to_go_on(
    command: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tango.cli.methods.describe", interrupted)
    monkeypatch.setattr("tango.sweeps.grid.read_grid", interrupted)
    assert main([command]) == 130
    assert capsys.readouterr().err.startswith(f"tango: interrupted; the same command {told}")


def test_errors_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "tangle", "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert told["exit_code"] == 2 and "tangle" in told["error"]


@pytest.mark.parametrize(
    "error, code, told",
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "out of memory"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory.\nMore."), 1, "CUDA out of memory."),
    ],
)
def test_other_ends(
    error: BaseException,
    code: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("tango.cli.methods.describe", fail)
    assert main(["methods"]) == code
    said = capsys.readouterr()
    assert said.err.startswith(f"tango: {told}") and len(said.err.splitlines()) == 1 and not said.out


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr("tango.cli.methods.describe", fail)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        main(["methods"])


def test_a_warning_commands_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = bytearray((ROOT / "data/motionqa/videos/0.mp4").read_bytes())
    middle = whole.find(b"mdat") + 9000
    whole[middle : middle + 400] = b"Z" * 400
    (tmp_path / "a\x1b[31mb.mp4").write_bytes(whole)
    assert main(["ask", str(tmp_path / "a\x1b[31mb.mp4"), "What?", "--frames", "16", "--max-new-tokens", "1"]) == 0
    said = capsys.readouterr().err
    assert "a\\x1b[31mb.mp4 is damaged: 11 of 16 frames" in said and "\x1b" not in said
