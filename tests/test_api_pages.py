"""The API pages have every public name, and each name of theirs is one of the package."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs" / "api").glob("*.md")))
NAMES = re.findall(r"^::: (\S+)$", TEXT, re.MULTILINE)


def listed(file):
    """A package's __all__, without importing it: Gradio may not be there."""
    for statement in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", None) == "__all__":
            return ast.literal_eval(statement.value)
    return []


def test_every_public_name_has_an_entry():
    public = {
        ".".join([*file.parent.relative_to(ROOT).parts, name])
        for file in sorted((ROOT / "tango").rglob("__init__.py"))
        for name in listed(file)
    } - {"tango.__version__"}
    assert len(public) > 30
    assert public <= {*NAMES}
    assert {f"tango.ops.{file.stem}" for file in (ROOT / "tango" / "ops").glob("[!_]*.py")} <= {*NAMES}
    assert len(NAMES) == len({*NAMES})


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_is_there(name):
    owner, _, last = name.rpartition(".")
    if owner == "tango.app":
        assert last in listed(ROOT / "tango" / "app" / "__init__.py")
    else:
        found = getattr(importlib.import_module(owner), last, None) or importlib.import_module(name)
        assert found.__doc__
