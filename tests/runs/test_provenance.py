"""What results say about their origin, and when an earlier answer may stand for a new one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import REPOSITORY

from tango.runs import provenance


def test_everything_is_told() -> None:
    torch.manual_seed(77)
    told = provenance.provenance("cpu", method="tango", settings={"retention_ratio": 0.1})
    assert list(told)[:2] == ["method", "settings"]
    assert told["seed"] == 77
    assert told["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert told["device"]["type"] == "cpu" and told["device"]["cpu_count"] == os.cpu_count() and told["device"]["name"]
    json.dumps(told)


def test_the_commit_is_that_of_this_repository() -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
    told = provenance.commit()
    if told is None:  # not a checkout, or this file is not committed yet
        pytest.skip("this copy is not tracked by git")
    assert told["hash"] == head.stdout.strip() and isinstance(told["dirty"], bool)


def test_the_command_is_as_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["/somewhere/bin/python", "-m", "lmms_eval", "--tasks", "a b"])
    monkeypatch.setenv("WRAPPER", "tango")
    monkeypatch.setenv("TANGO_ARGS", "sink_tokens=1;2")
    monkeypatch.delenv("TANGO_CONFIG", raising=False)
    assert provenance.command() == "WRAPPER=tango TANGO_ARGS='sink_tokens=1;2' python -m lmms_eval --tasks 'a b'"


def test_digests_depend_on_values_not_on_order() -> None:
    assert provenance.digest({"a": 1, "b": [2]}) == provenance.digest({"b": [2], "a": 1})
    assert provenance.digest({"a": 1}) != provenance.digest({"a": 2})


def test_a_checkpoint_is_known_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = provenance.model_fingerprint(str(tmp_path))
    assert before == provenance.model_fingerprint(str(tmp_path))
    (tmp_path / "pooling_head.safetensors").write_bytes(b"two")
    assert before != provenance.model_fingerprint(str(tmp_path))
    assert provenance.model_fingerprint("owner/name") != provenance.model_fingerprint("owner/name", "other")


def test_code_that_can_change_an_answer_is_in_its_fingerprint() -> None:
    root = Path(provenance.tango.__file__).parent
    covered = {str(f.relative_to(root)) for pattern in provenance.CODE for f in root.glob(pattern)}
    folders = {str(f.parent.relative_to(root)) for f in root.rglob("*.py")}
    others = {"runs", "sweeps", "results", "cli", "visualize", "motionqa"}  # made from answers, or made before them
    assert {str(Path(file).parent) for file in covered} == folders - others
    assert {"pruners/tango.py", "models/seam.py", "inference/chat.py", "inference/checkpoints.py"} <= covered
