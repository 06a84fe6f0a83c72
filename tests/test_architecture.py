"""The rooms of tango/ and what each may import, no circle of imports, and how much there may be to read.

docs/architecture.md says the same in words. A new room gets a line in ROOMS and in that page.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
from count_path import Import, circles, imports_of, lines_of  # noqa: E402 (a script, not a package)

# What each room may import besides itself. `tango` alone is tango/__init__.py,
# which has the version and Tango.
BELOW_INFERENCE = {"ops", "pruners", "models"}
BELOW_RUNS = {*BELOW_INFERENCE, "inference", "motionqa", "tango"}
BELOW_SWEEPS = {*BELOW_RUNS, "runs"}
BELOW_RESULTS = {*BELOW_SWEEPS, "sweeps"}
BELOW_APP = {*BELOW_RESULTS, "results", "live", "site", "visualize", "calibrate"}
ROOMS = {
    "ops": set(),
    "pruners": {"ops"},
    "models": {"ops", "pruners"},
    "motionqa": set(),
    "inference": BELOW_INFERENCE | {"tango"},
    "live": BELOW_RUNS,
    "runs": BELOW_RUNS,
    "visualize": BELOW_INFERENCE | {"inference"},
    "sweeps": BELOW_SWEEPS,
    "results": BELOW_RESULTS,
    "site": {*BELOW_RESULTS, "results"},
    "calibrate": {*BELOW_RESULTS, "results"},
    "app": BELOW_APP,
    "cli": BELOW_APP | {"app"},
    "tango": {"pruners"},
}
# with method(model): the one arrow that runs up, in Pruner.__call__.
UP = Import("tango.pruners.base", "tango.models", "function")
# All that models/ may know of methods: what they share.
SHARED = {f"tango.pruners.{name}" for name in ("base", "video", "trace", "budget", "in_llm")}

# Ceilings, counted after `ruff format`. They only ever go down.
RAISED = "shorten something, or raise it in tests/test_architecture.py and say in the commit why"
# Entered by one generate() of LLaVA-OneVision with Tango.
PATH_FILES, PATH_LINES = 13, 2_000
METHOD_LINES = 1_000  # tango/ops/ and tango/pruners/tango.py together
ALL_LINES = 23_540  # tango/; streams, the app, the page of results, reuse in the tower and calibration came with 0.2


def room(module):
    """`pruners` for tango.pruners.tango, `live` for tango.live, `tango` for tango itself; None for other packages."""
    first, *rest = module.split(".")
    return None if first != "tango" else rest[0] if rest else "tango"


def problems(imports):
    """What is wrong with imports, a sentence each."""
    rooms = {room(module) for one in imports for module in (one.importer, one.imported)} - {None}
    found = [f"{name} is no room of tests/test_architecture.py" for name in sorted(rooms - set(ROOMS))]
    for one in imports:
        here, there = room(one.importer), room(one.imported)
        arrow = f"{one.importer} imports {one.imported}"
        top = one.imported.split(".")[0]
        if here not in ROOMS or one == UP:
            continue
        if there is None:
            if here == "ops" and top != "torch" and top not in sys.stdlib_module_names:
                found.append(f"{arrow}: ops/ imports torch and the standard library alone")
            if here == "pruners" and top == "transformers":
                found.append(f"{arrow}: pruners/ knows no model, so never transformers")
        elif there != here and there not in ROOMS[here]:
            found.append(f"{arrow}: {here} may import {', '.join(sorted(ROOMS[here])) or 'no other room'}")
        elif here == "models" and there == "pruners" and one.imported not in SHARED:
            found.append(f"{arrow}: models/ knows no concrete method, only {', '.join(sorted(SHARED))}")
    rest = [one for one in imports if one != UP]
    return found + [f"a circle: {' '.join(modules)}" for modules in circles(rest)]


@pytest.fixture(scope="module")
def imports():
    return imports_of(ROOT / "tango")


def test_arrows_point_one_way(imports):
    found = problems(imports)
    assert not found, "\n".join(found)


def test_the_page_has_every_room_there_is():
    sections = re.findall(r"^### (\w+)$", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.MULTILINE)
    there = {room(f"tango.{path.stem}") for path in (ROOT / "tango").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert {*sections} == there - {"__init__", "__pycache__"} <= set(ROOMS)


def test_the_arrow_that_runs_up_is_there(imports):
    assert UP in imports, "Pruner.__call__ imports tango.models no more: take UP out of this file"


GOOD = {
    "__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tango.pruners.tango import Tango\n",
    "ops/__init__.py": "",
    "ops/rope.py": "import math\nimport torch\nfrom torch import Tensor\n",
    "pruners/__init__.py": "from tango.pruners.tango import Tango\n",
    "pruners/base.py": "class Pruner:\n    def __call__(self):\n        from tango.models import attach\n",
    "pruners/tango.py": "from tango.ops.rope import rotate\nfrom tango.pruners.base import Pruner\n",
    "models/__init__.py": "from tango.models.seam import attach\n",
    "models/seam.py": "import transformers\nfrom tango.pruners.base import Pruner\n",
    "models/tower.py": "",
    "inference/__init__.py": "from tango.models import attach\n",
    "live.py": "from tango import inference\n",
    "runs/__init__.py": "import tango.inference\nfrom tango import __version__\n",
    "visualize/__init__.py": "from tango.inference import load\n",
    "cli/__init__.py": "from tango.runs import run\nfrom tango import live, visualize\n",
}


def package(folder, changes):
    """A small package that keeps to the rules but for what `changes` adds to its files."""
    for name, source in {**GOOD, **{name: GOOD.get(name, "") + source for name, source in changes.items()}}.items():
        (folder / "tango" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "tango" / name).write_text(source)
    return imports_of(folder / "tango")


def test_a_package_that_keeps_to_the_rules(tmp_path):
    imports = package(tmp_path, {})
    assert problems(imports) == []
    assert {UP, Import("tango.live", "tango.inference", "top"), Import("tango", "tango.pruners.tango", "typing")} <= {
        *imports
    }


@pytest.mark.parametrize("file, source, problem", [
    ("ops/rope.py", "import numpy.linalg\n", "tango.ops.rope imports numpy.linalg: ops/ imports torch and the"),
    ("ops/rope.py", "from tango.pruners.base import Pruner\n", "tango.ops.rope imports tango.pruners.base: ops may im"),
    ("pruners/tango.py", "def f():\n    from transformers import AutoModel\n", "tango.pruners.tango imports transf"),
    ("pruners/tango.py", "from tango.models import attach\n", "tango.pruners.tango imports tango.models: pruners may"),
    ("pruners/tango.py", "from ..models import tower\n", "tango.pruners.tango imports tango.models.tower: pruners"),
    ("pruners/tango.py", "from .. import inference\n", "tango.pruners.tango imports tango.inference: pruners"),
    ("pruners/__init__.py", "from ..cli import main\n", "tango.pruners imports tango.cli: pruners"),
    ("models/seam.py", "from tango.pruners.tango import Tango\n", "models/ knows no concrete method"),
    ("models/seam.py", "from tango.pruners import Tango\n", "models/ knows no concrete method"),
    ("models/seam.py", "try:\n    import tango.runs\nexcept ImportError:\n    pass\n", "tango.runs: models may"),
    ("models/seam.py", "from . import attach\n", "a circle: tango.models tango.models.seam"),
    ("models/tower.py", "if TYPE_CHECKING:\n    from tango.models import attach\n"
     "def f():\n    import tango.inference\n", "imports tango.inference: models may"),
    ("live.py", "import tango.runs\n", "tango.live imports tango.runs: live may"),
    ("visualize/__init__.py", "import tango.runs\n", "tango.visualize imports tango.runs: visualize may"),
    ("attic/old.py", "import torch\n", "attic is no room"),
])  # fmt: skip
def test_a_violation_is_found(tmp_path, file, source, problem):
    found = problems(package(tmp_path, {file: source}))
    assert any(problem in one for one in found), found


def test_circles_are_found():
    def arrows(text):
        return [Import(*pair.split(">"), kind) for pair, kind in (part.split(":") for part in text.split())]

    assert circles(arrows("a>b:top b>c:top a>c:top")) == []
    assert circles(arrows("a>b:top b>c:function c>a:typing d>a:top")) == [["a", "b", "c"]]
    assert circles(arrows("a>b:top b>c:function c>a:typing"), ("top", "function")) == []
    assert circles(arrows("a>b:top b>a:top b>c:top c>d:top d>c:top")) == [["a", "b"], ["c", "d"]]


def test_the_path_from_generate_to_the_pruned_prompt():
    """In a process of its own: what earlier tests left in caches would not be entered."""
    command = [sys.executable, str(ROOT / "scripts" / "count_path.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines, files = map(int, re.search(r"(\d+) lines in (\d+) files", done.stdout).groups())
    for name in ("tango/models/seam.py", "tango/models/llava_onevision.py", "tango/pruners/tango.py"):
        assert name in done.stdout
    assert files <= PATH_FILES and lines <= PATH_LINES, (
        f"{done.stdout}\nceilings: {PATH_FILES} files, {PATH_LINES} lines; {RAISED}"
    )


def test_the_method_is_short():
    files = [*(ROOT / "tango" / "ops").glob("*.py"), ROOT / "tango" / "pruners" / "tango.py"]
    assert len(files) > 1, "tango/ops/ is empty"
    assert lines_of(files) < METHOD_LINES, f"ceiling of tango/ops/ and tango/pruners/tango.py; {RAISED}"


def test_the_whole_does_not_grow():
    assert lines_of((ROOT / "tango").rglob("*.py")) <= ALL_LINES, f"ceiling of tango/; {RAISED}"
