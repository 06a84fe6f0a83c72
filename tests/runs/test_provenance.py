"""What results say about their origin, and when an earlier answer may stand for a new one."""

import json
import os
import shutil
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


def test_a_checkpoint_is_known_by_its_contents_wherever_it_is(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other" / "name"
    for folder in (one, other):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "config.json").write_text("{}")
    before = provenance.model_fingerprint(str(one))
    assert provenance.model_fingerprint(str(other)) == before
    (one / ".cache").mkdir()
    (one / ".cache" / "download.lock").touch()  # of hf download --local-dir
    (one / "README.md").write_text("about it")
    assert provenance.model_fingerprint(str(one)) == before
    stat = (one / "model.safetensors").stat()
    (one / "model.safetensors").write_bytes(b"weightz")
    os.utime(one / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same time
    assert provenance.model_fingerprint(str(one)) != before


def test_a_hub_id_is_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "HF_HUB_CACHE", str(tmp_path))
    assert provenance.hub_commit("owner/name") is None
    found = [provenance.model_fingerprint("owner/name")]
    for commit in ("a" * 40, "b" * 40):
        folder = tmp_path / "models--owner--name"
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(commit)
        assert provenance.hub_commit("owner/name") == provenance.hub_commit("owner/name", commit) == commit
        found.append(provenance.model_fingerprint("owner/name"))
        assert found[-1] == provenance.model_fingerprint("owner/name", commit)
    assert len(set(found)) == 3
    assert (
        provenance.hub_commit("owner/name", "video") is None
        and provenance.hub_commit("owner/name", kind="dataset") is None
    )


def test_weights_that_a_method_reads_beside_the_models(tmp_path: Path) -> None:
    head = tmp_path / "head.safetensors"
    head.write_bytes(b"one")
    settings = {"saliency_weights": str(head)}
    before = provenance.head_fingerprint(settings, "LlavaOnevisionForConditionalGeneration")
    head.write_bytes(b"two")
    assert before != provenance.head_fingerprint(settings, "LlavaOnevisionForConditionalGeneration")
    assert provenance.head_fingerprint({}, "LlavaOnevisionForConditionalGeneration") is None


def test_another_method_or_family_changes_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a copy of the package: which methods' answers stand after each of these changes?"""
    copy = tmp_path / "tango"
    shutil.copytree(Path(provenance.tango.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance.tango, "__file__", str(copy / "__init__.py"))
    family = "LlavaOnevisionForConditionalGeneration"

    def found() -> dict[str, str]:
        provenance.code_fingerprint.cache_clear()
        return {name: provenance.code_fingerprint(name, family) for name in ("vanilla", "tango", "fastv", "holitom")}

    def changed_by(file: str, text: str) -> set[str]:
        before = found()
        path = copy / file
        path.write_text((path.read_text() if path.exists() else "") + text)
        after = found()
        return {name for name in before if before[name] != after[name]}

    every = {"vanilla", "tango", "fastv", "holitom"}
    try:
        assert changed_by("pruners/largest_norm.py", "x = 1\n") == set()
        assert changed_by("pruners/__init__.py", "from tango.pruners.largest_norm import x\n") == set()
        assert changed_by("models/another.py", "x = 1\n") == set()
        assert changed_by("models/qwen3_vl.py", "# another family's\n") == set()
        assert changed_by("pruners/tango.py", "# changed\n") == {"tango"}
        assert changed_by("pruners/holitom.py", "# changed\n") == {"holitom"}
        assert "tango" in changed_by("ops/density.py", "# changed\n")
        for file in ("models/seam.py", "inference/video.py", "models/tower.py", "pruners/base.py"):
            assert changed_by(file, "# changed\n") == every, file
        registry = copy / "models" / "__init__.py"
        line = '    "Another": "tango.models.another",\n'
        before = found()
        registry.write_text(registry.read_text().replace("FAMILIES = {\n", "FAMILIES = {\n" + line))
        assert line in registry.read_text() and found() == before
        assert changed_by("models/__init__.py", "# changed\n") == every
    finally:
        provenance.code_fingerprint.cache_clear()


def test_code_that_can_change_an_answer_is_in_its_fingerprint() -> None:
    root = Path(provenance.tango.__file__).parent
    covered = {str(f.relative_to(root)) for pattern in provenance.CODE for f in root.glob(pattern)}
    folders = {str(f.parent.relative_to(root)) for f in root.rglob("*.py")}
    # Made from answers, made before them, or with answers of their own, which no table has.
    others = {"runs", "sweeps", "results", "site", "cli", "visualize", "motionqa", "live", "app", "calibrate"}
    assert {str(Path(file).parent) for file in covered} == folders - others
    assert {"pruners/tango.py", "models/seam.py", "inference/chat.py", "inference/checkpoints.py"} <= covered
