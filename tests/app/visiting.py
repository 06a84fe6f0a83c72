"""Visitors of the app: in a real browser, and without one."""

import contextlib
import http.client
import json
import time
from pathlib import Path
from urllib.parse import urlsplit

from browsing import CHROMIUM, WAIT
from playwright.sync_api import expect

ROOT = Path(__file__).parents[2]
MOTIONQA = ROOT / "data" / "motionqa"
DESK, PHONE = {"width": 1300, "height": 1000}, {"width": 390, "height": 800}
MARKUP = "<script>window.hit=1</script><img src=x onerror='window.hit=1'> ${window.hit=1} {{7*7}} [a](javascript:hit)"
GRADIOS = "Method not implemented."  # an error of its component for videos, where one is too large or cannot be played
expect.set_options(timeout=WAIT)  # its own five seconds are for quiet machines


def launched(kind, *options):
    """Debian's browser, with a camera that shows a pattern."""
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    return kind.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", *camera, *options])


@contextlib.contextmanager
def visitor(browser, at, **options):
    """A page of a visitor's own. A request to another host, and anything in the console, fails the test."""
    problems = []
    with contextlib.closing(browser.new_context(**{"viewport": DESK, **options})) as context:
        context.set_default_timeout(WAIT)
        page = context.new_page()
        page.on("console", lambda said: problems.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request",
            lambda sent: None if sent.url.startswith((at, "data:", f"blob:{at}")) else problems.append(sent.url),
        )
        page.goto(at)
        page.get_by_role("button", name="Ask").wait_for()
        yield page
        assert page.is_closed() or page.evaluate("window.hit") is None
    assert [problem for problem in problems if problem != GRADIOS] == []


def call(at, method, path, body=None, headers=None):
    """Status and text of an answer."""
    connection = http.client.HTTPConnection(urlsplit(at).netloc, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")


def run(at, function, data):
    """What an event of the page gives, as the page hears of it."""
    session = f"s{time.monotonic_ns()}"
    body = json.dumps({"data": data, "fn_index": function, "session_hash": session})
    status, text = call(at, "POST", "/gradio_api/queue/join", body, {"Content-Type": "application/json"})
    return call(at, "GET", f"/gradio_api/queue/data?session_hash={session}")[1] if status == 200 else f"{status} {text}"
