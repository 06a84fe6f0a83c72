"""What the tests of faults share: the marker, and what the table in docs/reliability.md is made of.

    FAULTS=docs/reliability.md python -m pytest tests/reliability

runs all of them and writes the table; a run in which a test fails writes nothing.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import ROOT, observed, table


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "fault(case, injected): a fault, and how it is brought about; a row of the table"
    )


@pytest.fixture
def seen(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str, str], None]:
    """Called with what the user sees and what is kept; puts both into the table."""
    case, injected = request.node.get_closest_marker("fault").args

    def note(message: str, kept: str) -> None:
        text = message.replace(str(tmp_path), "").replace(f"{ROOT}/", "")
        text = re.sub(r"\b(process|pid) \d+", r"\1 4711", " ".join(text.split()))
        observed[request.module.GROUP, case, injected] = (text, kept)

    return note


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if (file := os.environ.get("FAULTS")) and exitstatus == 0:
        _, heading, tried = (ROOT / file).read_text(encoding="utf-8").partition("\n## Tried by strangers")
        (ROOT / file).write_text(table() + heading + tried, encoding="utf-8")  # that is written by hand
