"""docs/methods.md names every method, with a row, a section, and all of its settings."""

import dataclasses
import re
from pathlib import Path

import pytest

from tango.pruners import REGISTRY, Pruner

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_row_and_section(name):
    assert PAGE.count(f"| `{name}` |") == 1
    sections = dict(re.findall(r"^### (.*?)\n(.*?)(?=^#|\Z)", PAGE, re.M | re.S))
    (section,) = (text for title, text in sections.items() if name in title.split(", "))
    common = {field.name for field in dataclasses.fields(Pruner)} | {"memory_limit"}
    missing = [
        f.name for f in dataclasses.fields(REGISTRY[name]) if f.name not in common and f"`{f.name}`" not in section
    ]
    assert not missing
