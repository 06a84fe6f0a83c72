"""tango-tiny, and a browser."""

import contextlib

import pytest
from playwright.sync_api import sync_playwright
from visiting import ROOT, launched

from tango.inference.checkpoints import load


@pytest.fixture(scope="module")
def checkpoint():
    return load(str(ROOT / "checkpoints" / "tango-tiny"))


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright, contextlib.closing(launched(playwright.chromium)) as running:
        yield running
