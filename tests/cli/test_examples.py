"""Every example and the notebook run as they are, from the repository's root, on the shipped model and video."""

import json
import re
import runpy
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from transformers.utils import is_torchcodec_usable

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_example(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if file.stem == "pipeline" and not is_torchcodec_usable(decode="video"):
        pytest.skip("no torchcodec here, or no FFmpeg for it: transformers cannot read video files")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [str(file.relative_to(ROOT))])
    runpy.run_path(str(file), run_name="__main__")
    said = capsys.readouterr().out
    assert f"python {file.relative_to(ROOT)}" in file.read_text()
    kept = {
        "video_question": r"(\d+) of 512 video tokens",
        "compare_methods": r"tango +(\d+)",
        "long_video": r"64 frames:  4096 -> (128) tokens",
        "pipeline": r"(\d+) of 512 video tokens",
        "pruning_inside": r"before it and inside +512 -> (\d+) enter",
    }[file.stem]
    assert 0 < int(re.search(kept, said)[1]) < 512


def test_notebook(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its cells one after the other in one namespace, as Jupyter runs them; it starts in the notebook's folder."""
    monkeypatch.chdir(ROOT / "examples")
    plt.switch_backend("Agg")
    book = json.loads((ROOT / "examples" / "tango.ipynb").read_text())
    assert book["nbformat"] == 4 and len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in book["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "stored without outputs, which would be those of an older model"
            exec(compile(source, f"tango.ipynb, cell {cell['id']}", "exec"), names)
    before, after = re.search(r"(\d+) -> (\d+) tokens", capsys.readouterr().out).groups()
    assert int(before) == 512 and 51 <= int(after) <= 75
    plt.close("all")
