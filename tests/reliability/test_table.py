"""docs/reliability.md has a row for each fault that is tested here, and no others."""

import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from faults import ROOT


def marked(module: ModuleType) -> Iterator[tuple[str, str]]:
    """Case and injection of each marker, on functions and on their parameters."""
    for function in vars(module).values():
        for mark in getattr(function, "pytestmark", []):
            if mark.name == "fault":
                yield mark.args
            elif mark.name == "parametrize":
                yield from (m.args for one in mark.args[1] for m in getattr(one, "marks", ()) if m.name == "fault")


@pytest.mark.skipif("FAULTS" in os.environ, reason="the table is being written")
def test_the_table_is_that_of_the_tests() -> None:
    modules = [importlib.import_module(file.stem) for file in sorted(Path(__file__).parent.glob("test_*.py"))]
    tested = [case for module in modules for case in marked(module)]
    rows = re.findall(
        r"^\| (.+?) \| (.+?) \| (.+) \| (.+?) \|$", (ROOT / "docs/reliability.md").read_text(), re.MULTILINE
    )
    listed = [(case, injected) for case, injected, *_ in rows if case != "case"]
    assert len(tested) >= 40 and len(set(tested)) == len(tested)
    assert sorted(listed) == sorted(tested), "write it anew, see tests/reliability/conftest.py"
    assert all(message and kept for _, _, message, kept in rows)
