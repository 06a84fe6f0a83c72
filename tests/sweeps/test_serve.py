"""Cells that ask a server: each beside one of its own, with the cell's method. A stub stands in for vLLM."""

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_families

from tango.cli.__main__ import main
from tango.pruners import Tango
from tango.runs.settings import fingerprint, served
from tango.sweeps import serve
from tango.sweeps.grid import read_grid

TESTS = Path(__file__).parents[1]
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the stub writes to; TANGO_VLLM_PYTHON is the stub."""
    program = tmp_path / "python"
    lines = ["import sys", f"sys.path.insert(0, {str(TESTS)!r})", "import stub_vllm", "stub_vllm.main(sys.argv[1:])"]
    program.write_text("\n".join([f"#!{sys.executable}", *lines, ""]))
    program.chmod(0o755)
    pruner = served(Tango(retention_ratio=0.1))
    (tmp_path / "methods.json").write_text(json.dumps({"tango": [pruner.name, fingerprint(pruner), 51]}))
    monkeypatch.setenv(serve.PYTHON, str(program))
    monkeypatch.setenv("STUB_VLLM", str(tmp_path))
    return tmp_path


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


def test_a_sweep_through_servers(stub: Path, capsys: Captured) -> None:
    """A failed question is no result and no loss: started again, the sweep asks it alone."""
    grid = stub / "grid.yaml"
    grid.write_text("engine: vllm\nmethods: [tango]\nratios: [0.1]\nlimit: 3\nvllm_options: [--enforce-eager]\n")
    words = ["sweep", str(grid), "--output", str(stub / "out"), "--json", "--cell", "2"]
    (stub / "broken").touch()
    assert main(words) == 1
    assert "1 of its 3 samples failed" in capsys.readouterr().err
    (started,) = lines(stub / "starts")
    assert started.startswith("tango ") and "--enforce-eager" in started
    asked = len(lines(stub / "requests.jsonl"))
    (stub / "broken").unlink()
    assert main(words) == 0
    (cell,) = json.loads(capsys.readouterr().out)["cells"]
    assert len(lines(stub / "requests.jsonl")) == asked + 1
    assert cell["questions"] == 3 and cell["tokens"]["share_kept"] == 51 / 512 and cell["engine"] == "vllm"
    result = json.loads((stub / "out/tango-tiny/cells/motionqa-tango-0.1/cell.json").read_text())
    assert result["provenance"]["model"]["engine"] == "vLLM 0.32.0"
    assert result["provenance"]["settings"]["exact_budget"] is True
    assert main(["results", str(stub / "out"), "--output", str(stub / "tables")]) == 0
    assert main(words) == 0 and len(lines(stub / "starts")) == 2, "what is finished is not served again"


def test_the_unpruned_model_is_served_with_every_token() -> None:
    assert serve.environment({"WRAPPER": "vanilla", "TANGO_CONFIG": "x"})["TANGO_ARGS"] == "retention_ratio=1.0"
    assert serve.environment({"WRAPPER": "tango", "TANGO_ARGS": "retention_ratio=0.1"})["WRAPPER"] == "tango"


def test_what_cannot_be_served_is_told_before_anything_starts(
    stub: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["sweep", "--engine", "vllm", "--ratio", "0.1", "--method", "random", "--method", "topk", "--dry-run"]
    assert main([*words, "--method", "fastvid"]) == 0
    told = capsys.readouterr()
    assert "random draws by a video's place" in told.err and "tokens without gaps; set keep_positions=false" in told.err
    assert len(told.out.splitlines()) == 2 and all("-m tango.sweeps.serve " in line for line in told.out.splitlines())
    monkeypatch.setenv(serve.PYTHON, str(stub / "none"))
    assert main(words) == 2
    assert "vLLM is not installed: there is no" in capsys.readouterr().err
    monkeypatch.setenv(serve.PYTHON, sys.executable)
    assert main(words) == 2
    assert "cannot serve: ModuleNotFoundError: No module named 'tango_vllm'" in capsys.readouterr().err
    monkeypatch.setenv(serve.PYTHON, "/bin/false")
    assert main(words) == 2
    assert "cannot serve: it ended with status 1 and no word" in capsys.readouterr().err


def test_models_that_are_not_served_are_refused_by_name(stub: Path, capsys: Captured) -> None:
    tiny_families.save("video_llama_3", stub / "other")
    words = ["sweep", "--engine", "vllm", "--ratio", "0.1", "--method", "tango", "--model", str(stub / "other")]
    assert main([*words, "--output", str(stub / "out")]) == 2
    assert "VideoLlama3ForConditionalGeneration is not served; these are: Llava" in capsys.readouterr().err
    assert not (stub / "starts").exists()


def test_other_engines_and_options(tmp_path: Path) -> None:
    for content, said in [
        ("engine: sglang", "use transformers or vllm"),
        ("vllm_options: [--enforce-eager]", "goes with engine: vllm"),
        ("{engine: vllm, attn_implementation: sdpa}", "vLLM has its own"),
    ]:
        (tmp_path / "grid.yaml").write_text(content)
        with pytest.raises(ValueError, match=said):
            read_grid(tmp_path / "grid.yaml", {})


def test_a_server_that_does_not_start(stub: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(serve.LOG, str(stub))
    monkeypatch.setenv("WRAPPER", "nothing")
    assert serve.main(["model", "--", sys.executable, "-c", "raise SystemExit('never')"]) == serve.FAILED_TO_START
    said = capfd.readouterr().err
    assert "ended with status 1" in said and "KeyError: 'nothing'" in said and "never" not in said


def test_what_a_server_says_commands_no_terminal(stub: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(serve.LOG, str(stub))
    (stub / "python").write_text(f"#!{sys.executable}\nraise SystemExit('no room \\x1b[2J here')\n")
    assert serve.main(["model", "--", sys.executable, "-c", ""]) == serve.FAILED_TO_START
    assert "no room \\x1b[2J here" in capfd.readouterr().err


def test_the_command_ends_with_its_status_and_the_server_with_it(stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(serve.LOG, str(stub))
    monkeypatch.setenv("WRAPPER", "tango")
    code = "import sys, urllib.request as u; u.urlopen(sys.argv[1] + '/metrics'); sys.exit(7)"
    assert serve.main(["model", "--", sys.executable, "-c", code, serve.PLACE]) == 7
    words = lines(stub / "starts")[0].split()
    with (
        pytest.raises(ConnectionRefusedError),
        socket.create_connection(("127.0.0.1", int(words[words.index("--port") + 1])), 60),
    ):
        pass
