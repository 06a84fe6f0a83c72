"""What the tests of pages share: Debian's Chromium, which the fixture `browser` starts, and what a page must not do."""

import shutil

import pytest

CHROMIUM = shutil.which("chromium")
WAIT = 120_000  # milliseconds, for machines that do other things; usually it takes less than one second
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)")


def problems_of(page):
    """A list that grows with what a page from the disk must not do: say anything in the console, fail, go elsewhere."""
    problems = []
    page.on("console", lambda message: problems.append(f"console.{message.type}: {message.text}"))
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    page.on("requestfailed", lambda sent: problems.append(f"failed: {sent.url}"))
    page.on("request", lambda sent: problems.append(sent.url) if not sent.url.startswith(("file:", "data:")) else 0)
    return problems
