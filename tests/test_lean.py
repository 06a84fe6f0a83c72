"""What `pip install tango-vlm` brings is enough for what it is there for, and no more is imported."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import lean  # noqa: E402 (a script, not a package)

LEAN = {
    "torch", "torchvision", "transformers", "packaging", "safetensors", "huggingface-hub", "numpy", "av", "pillow",
    "pyyaml", "pydantic",
}  # fmt: skip


def run(extras: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/lean.py", extras, *words]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=600)


def test_what_the_extras_bring() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {Requirement(line).name for line in project["dependencies"]} == LEAN
    alone, command, tables = (lean.brought(extras) for extras in ([], ["cli"], ["eval"]))
    assert alone < command < tables == lean.brought(["eval", "cli"]) <= lean.brought(["all"])
    assert not {"pandas", "matplotlib", "accelerate", "scipy", "lmms-eval"} & alone
    assert {"matplotlib", "accelerate"} <= command and {"pandas", "tabulate"} <= tables - command


def test_what_is_imported_is_asked_for() -> None:
    """By name, not as what some other package happens to bring: huggingface-hub's 2.0 took httpx away."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    asked = {canonicalize_name(Requirement(line).name) for lines in lists for line in lines}
    nodes = [node for file in (ROOT / "tango").rglob("*.py") for node in ast.walk(ast.parse(file.read_text("utf-8")))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    others = {name.partition(".")[0] for name in names} - {*sys.stdlib_module_names, "tango"}
    owners = packages_distributions()
    unasked = {name for name in others if not {canonicalize_name(one) for one in owners.get(name, [name])} & asked}
    assert {"torch", "yaml", "PIL"} < others and unasked == {"starlette"}  # gradio's, whose version is pinned


def test_the_readmes_python_needs_no_extra() -> None:
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    ended = run("", "-c", block[1] + "import sys\nassert 'pandas' not in sys.modules")
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"512 -> \d+ video tokens", ended.stdout)


def test_a_command_names_the_extra_that_it_needs(tmp_path: Path) -> None:
    ended = run("cli", "-m", "tango.cli", "results", str(tmp_path))
    assert ended.returncode == 2
    assert ended.stderr.strip() == "tango: pandas is missing; this command needs: pip install 'tango-vlm[eval]'"


def test_the_committed_numbers_are_counted_again_with_no_more_than_the_extra() -> None:
    ended = run("eval", "-m", "tango.cli", "verify", "results/motionqa")
    assert ended.returncode == 0, ended.stderr
