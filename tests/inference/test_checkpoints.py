"""In which dtype a checkpoint is loaded, and what is said of one that this processor is slow with."""

import json
import shutil
from pathlib import Path

import pytest

from tango.inference import checkpoints
from tango.inference.checkpoints import CheckpointError, load, slow_bfloat16


@pytest.mark.parametrize("able", [False, True])
@pytest.mark.parametrize("field", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("stored, asked, used", [
    ("bfloat16", "auto", "bfloat16"), ("float32", "auto", "float32"), ("float32", "bfloat16", "bfloat16"),
    ("bfloat16", "float32", "float32"),
])  # fmt: skip
def test_bfloat16_is_told_of_where_the_processor_lacks_it(
    able: bool, field: str, stored: str, asked: str, used: str, checkpoint: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """What counts is the dtype that it is loaded in; older files call their own `torch_dtype`."""
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps(config | {field: stored}), encoding="utf-8")
    monkeypatch.setattr(checkpoints, "cpu_has_bfloat16", lambda: able)
    assert str(load(str(folder), dtype=asked).model.dtype) == f"torch.{used}"
    assert (slow_bfloat16(str(folder)) in caplog.text) == (used == "bfloat16" and not able)


def test_a_config_of_a_larger_model_is_refused_before_room_is_made(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["intermediate_size"] *= 100
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"not those of its config.json, which describes [\d,]+ parameters; they"):
        load(str(folder))
