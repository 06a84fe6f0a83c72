"""docs/methods.md names every method, with a row, a section, and all of its settings."""

import dataclasses
import re
from pathlib import Path

import pytest

from tango.pruners import REGISTRY, Pruner
from tango.results.cells import LABELS

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_row_and_section(name):
    assert PAGE.count(f"\n| `{name}` |") == 1, f"docs/methods.md: the table needs one row for {name}"
    sections = dict(re.findall(r"^### (.*?)\n(.*?)(?=^#|\Z)", PAGE, re.M | re.S))
    own = [text for title, text in sections.items() if name in title.split(", ")]
    assert len(own) == 1, f"docs/methods.md: one section needs the title '### {name}'"
    common = {field.name for field in dataclasses.fields(Pruner)} | {"memory_limit"}
    missing = [
        f.name for f in dataclasses.fields(REGISTRY[name]) if f.name not in common and f"`{f.name}`" not in own[0]
    ]
    assert not missing, f"docs/methods.md: the section of {name} names no {', '.join(missing)}"


def test_every_method_has_a_label_in_tables():
    assert set(REGISTRY) - set(LABELS) == {"random", "uniform"}, "LABELS of tango/results/cells.py"
