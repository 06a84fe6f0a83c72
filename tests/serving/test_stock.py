"""With the plugin installed and WRAPPER unset, vLLM gives what it gives without the plugin, to the last bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_families
from engines import published_layout
from tiny import save_qwen

ENDS = ("WRAPPER", "TANGO_CONFIG", "TANGO_ARGS", "VLLM_PLUGINS")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small model of each family."""
    root = tmp_path_factory.mktemp("models")
    published_layout(root / "llava_onevision")
    save_qwen(root / "qwen2_5_vl", head=32, scale=6, pixels=40 * 40)
    save_qwen(root / "qwen3_vl", True, head=32, scale=6, pixels=40 * 40, video=16)
    tiny_families.save("internvl", root / "internvl", 32)
    return sorted(root.iterdir())


def started(folders, file, **variables):
    """stock.py in a process that knows nothing of this one's plugin."""
    environ = {name: value for name, value in os.environ.items() if name not in ENDS} | variables
    return subprocess.Popen([sys.executable, Path(__file__).with_name("stock.py"), file, *folders], env=environ)


def test_prompts_of_every_kind(folders, tmp_path):
    files = [tmp_path / "with.json", tmp_path / "without.json"]
    with started(folders, files[0]) as one, started(folders, files[1], VLLM_PLUGINS="") as other:
        assert (one.wait(), other.wait()) == (0, 0)
    with_plugin, without = (json.loads(file.read_text()) for file in files)
    assert with_plugin["plugin"] and not without["plugin"]
    assert with_plugin["found"].keys() == {folder.name for folder in folders}
    for name, found in without["found"].items():
        assert found["class"].startswith("vllm.model_executor.models.")
        assert len({json.dumps(answer) for answer in found["together"]}) > 5, f"{name} answers all alike"
        assert with_plugin["found"][name] == found
