"""Every example and the notebook run as they are, from the repository's root, on the shipped model and video."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from transformers import video_processing_utils, video_utils
from transformers.utils import is_torchcodec_usable

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_example(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if file.stem == "pipeline" and not is_torchcodec_usable(decode="video"):
        # transformers' own reader by PyAV in the place of its reader by torchcodec; all else is as with that.
        monkeypatch.setattr(video_processing_utils, "is_torchcodec_usable", lambda **_: True)
        monkeypatch.setattr(video_utils, "is_torchcodec_available", lambda: True)
        monkeypatch.setitem(video_utils.VIDEO_DECODERS, "torchcodec", video_utils.read_video_pyav)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [str(file.relative_to(ROOT))])
    runpy.run_path(str(file), run_name="__main__")
    said = capsys.readouterr().out
    assert f"python {file.relative_to(ROOT)}" in file.read_text()
    kept = {
        "video_question": r"(\d+) of 512 video tokens",
        "compare_methods": r"tango +(\d+)",
        "long_video": r"64 frames:  4096 -> (128) tokens",
        "pipeline": r"pipeline: yellow\n(\d+) of 512 video tokens\ngenerate: yellow",
        "pruning_inside": r"before it and inside +512 -> (\d+) enter",
    }[file.stem]
    assert 0 < int(re.search(kept, said)[1]) < 512


BOOK = ROOT / "examples" / "tango.ipynb"
PIP = """import os, pathlib, sys
pathlib.Path(os.environ["INSTALLED"]).write_text(" ".join([os.getcwd(), *sys.argv[1:]]))
"""


def run_notebook(folder: Path, environment: dict[str, str], tmp_path: Path, **more: str) -> str:
    """All cells, one after the other, by a kernel of Jupyter that starts in `folder`; what they printed."""
    nbclient = pytest.importorskip("nbclient", reason="no nbclient here: pip install nbclient ipykernel")
    nbformat = pytest.importorskip("nbformat")
    book = nbformat.read(BOOK, as_version=4)
    nbformat.validate(book)
    assert not any(cell.get("outputs") for cell in book.cells), "it is stored without outputs"
    client = nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment | {"IPYTHONDIR": str(tmp_path / "ipython")} | more)
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2  # frames; what was kept
    return "".join(output.get("text", "") for output in outputs)


def check_printed(said: str) -> None:
    before, after = re.search(r"(\d+) -> (\d+) tokens", said).groups()
    assert int(before) == 512 and 51 <= int(after) <= 75


def test_notebook(environment: dict[str, str], tmp_path: Path) -> None:
    """In Jupyter, which starts in the notebook's folder."""
    check_printed(run_notebook(BOOK.parent, environment, tmp_path, PYTHONPATH=str(ROOT)))


def test_notebook_without_a_checkout(environment: dict[str, str], tmp_path: Path) -> None:
    """As in Colab: it clones what was committed here, and installs it. pip is a stand-in that notes what it is asked:
    the real one would build with what it downloads. Tango is imported from the clone.
    """
    if not (ROOT / ".git").exists():
        pytest.skip("no git repository to clone")
    (tmp_path / "stand-in/pip").mkdir(parents=True)
    (tmp_path / "stand-in/pip/__main__.py").write_text(PIP)
    (tmp_path / "stand-in/pip/__init__.py").touch()
    (tmp_path / "content").mkdir()
    more = {"PYTHONPATH": str(tmp_path / "stand-in"), "INSTALLED": str(tmp_path / "installed")}
    check_printed(run_notebook(tmp_path / "content", environment, tmp_path, TANGO_REPOSITORY=f"file://{ROOT}", **more))
    clone = tmp_path / "content/tango-vlm"
    assert (tmp_path / "installed").read_text() == f"{clone} install --quiet .[eval]" and (clone / "tango").is_dir()


def test_the_badge_and_the_notebook_name_the_same_repository() -> None:
    text = BOOK.read_text() + (ROOT / "docs/interfaces.md").read_text()
    named = re.findall(r"(?:colab[^ ]*/github|https://github\.com)/([\w.-]+/[\w.-]+)", text)
    assert len(named) == 3 and len({*named}) == 1
