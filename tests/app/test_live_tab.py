"""The tab that watches a stream, in a browser and without: each visitor has their own session, which ends with them."""

import base64
import contextlib
import functools
import gc
import http.server
import io
import json
import re
import threading
import time
import weakref

import av
import pytest
from browsing import needs_browser
from PIL import Image
from playwright.sync_api import expect
from visiting import MARKUP, MOTIONQA, WAIT, call, launched, run, visitor

pytest.importorskip("gradio", reason="the extra `app` is not installed")
from tango import Tango
from tango.app import Limits, served, streams
from tango.app.live_tab import decoded
from tango.app.streams import Streams, sharing
from tango.app.visitors import Refused, Visitors
from tango.live import Live
from tango.live.sources import Source
from tango.motionqa.questions import prompt, read_questions

WATCH, ASK, FRAME = 3, 4, 5  # the page's events, by number
QUESTION = "What colour is the ring?"


@pytest.fixture(scope="module")
def at(checkpoint):
    with served(checkpoint, 8, Limits(megabytes=2, streams=2)) as address:
        yield address


@pytest.fixture(scope="module")
def open_to_addresses(checkpoint):
    with served(checkpoint, 8, Limits(megabytes=2), addresses=True) as address:
        yield address


def sessions():
    """Threads of all sessions in this process."""
    return [thread for thread in threading.enumerate() if thread.name in ("tango-live", "tango-watched")]


def until_none():
    """Wait until no session is left."""
    late = time.monotonic() + WAIT / 1000
    while sessions() and time.monotonic() < late:
        time.sleep(0.05)
    assert not sessions()


@pytest.fixture(autouse=True)
def nothing_is_left():
    """All that a test watched ends with its pages."""
    yield
    until_none()


def go_live(page):
    page.get_by_role("tab", name="Live").click()
    page.get_by_role("button", name="Watch").wait_for()


def choose(page, number):
    """One of the samples: its row of MotionQA."""
    page.get_by_label("Sample to watch").click()
    option = page.get_by_role("option").nth(number)
    name, text = option.get_attribute("aria-label").split(": ", 1)
    option.click()
    page.locator(f'video[src*="/{name}"]').wait_for()
    (row,) = (row for row in read_questions(MOTIONQA) if row["video"].endswith(f"/{name}") and row["question"] == text)
    expect(page.get_by_label("Question about the stream")).to_have_value(prompt(row["question"], row["options"]))
    return row


def watch(page):
    page.get_by_role("button", name="Watch").click()


def held(page, text):
    """How it stands, once that has a text in it; (frames in, tokens held, open frames)."""
    page.locator(".held").filter(has_text=re.compile(text)).wait_for()
    found = re.search(
        r"(\d+) frames in, (\d+) of 2048 tokens held and (\d+) frames", page.locator(".held").text_content()
    )
    return tuple(map(int, found.groups())) if found else None


def ask(page, wanted=re.compile(r"^(?!not yet$)[\s\S]")):
    """Ask what stands in the box, and wait for the answer, which may come in pieces: this one, or any."""
    page.get_by_label("Answer").evaluate("box => { box.value = 'not yet' }")
    page.get_by_role("button", name="Ask now").click()
    expect(page.get_by_label("Answer")).to_have_value(wanted)


def refusal(page, text):
    alert = page.get_by_role("alert").filter(has_text=text)
    alert.wait_for()
    return alert.text_content()


def by_hand(checkpoint, row, ratio=0.1):
    """What a session says of the whole video, a frame a second."""
    model = sharing(checkpoint.model)
    with Live(model, checkpoint.processor, Tango(retention_ratio=ratio), budget=2048, fps=1.0) as video:
        for picture, second in Source(str(MOTIONQA / row["video"]), 1.0, pace=False):
            video.add(picture, second, wait=True)
        return video.ask(prompt(row["question"], row["options"]), 64).text()


@needs_browser
def test_a_sample_at_its_own_pace_with_questions_while_it_goes_on(browser, at, checkpoint, monkeypatch):
    pictures, go_on = Source._connected, threading.Event()

    def in_two_parts(source):
        """Five frames, and the others once a question was answered, however long that takes here."""
        for number, one in enumerate(pictures(source)):
            assert number < 5 or go_on.wait(WAIT / 1000)
            yield one

    monkeypatch.setattr(Source, "_connected", in_two_parts)
    with visitor(browser, at) as page:
        go_live(page)
        row = choose(page, 1)
        begun = time.monotonic()
        watch(page)
        held(page, "5 frames in")
        ask(page)
        go_on.set()
        frames, _, _ = held(page, "the video has ended; you may still ask")
        assert frames == 8 and time.monotonic() - begun > 6.5
        assert page.locator("img[alt='the newest frame of the stream']").evaluate("image => image.naturalWidth") == 128
        ask(page, by_hand(checkpoint, row))
        page.get_by_role("button", name="Stop").click()
        held(page, "^stopped$")
        until_none()
        page.get_by_role("button", name="Ask now").click()
        assert refusal(page, "nothing is watched") == "nothing is watched: press Watch first"


@needs_browser
def test_visitors_have_each_their_own_stream_and_the_other_tab_goes_on(browser, at, checkpoint):
    with visitor(browser, at) as one, visitor(browser, at) as other, visitor(browser, at) as third:
        rows = []
        for number, page in ((1, one), (2, other)):
            go_live(page)
            rows.append(choose(page, number))
            watch(page)
        wanted = [by_hand(checkpoint, row) for row in rows]
        assert wanted[0] != wanted[1]
        third.get_by_label("Sample").click()
        third.get_by_role("option").first.click()
        third.locator("video").wait_for()
        third.get_by_role("button", name="Ask").click()
        third.locator(".frames img").first.wait_for()
        for page in (one, other):
            held(page, "the video has ended")
        for page, answer in zip((one, other), wanted, strict=True):
            ask(page, answer)
        assert len(sessions()) == 4
        go_live(third)
        choose(third, 3)
        watch(third)
        assert "2 visitors watch streams already, as many as may" in refusal(third, "watch streams already")
        one.close()
        late = time.monotonic() + WAIT / 1000
        while len(sessions()) > 2 and time.monotonic() < late:
            time.sleep(0.05)
        watch(third)
        held(third, "frames in")


@needs_browser
def test_a_tab_that_is_closed_in_mid_answer_frees_everything(browser, at, monkeypatch):
    models, begun, opened = weakref.WeakSet(), threading.Event(), Live.__enter__

    def noted(video):
        models.add(video.model)
        return opened(video)

    def endless(writer, answer, segments, tail, grid, closed):
        begun.set()
        while not (closed() or answer.cancelled):
            time.sleep(0.01)

    monkeypatch.setattr(Live, "__enter__", noted)
    monkeypatch.setattr("tango.live.writer.Writer.write", endless)
    with visitor(browser, at) as page:
        go_live(page)
        choose(page, 0)
        watch(page)
        held(page, "[1-8] frames in")
        page.get_by_role("button", name="Ask now").click()
        assert begun.wait(WAIT / 1000) and len(models) == 1
        page.close()
        until_none()
    late = time.monotonic() + WAIT / 1000
    while len(models) and time.monotonic() < late:
        time.sleep(0.1)
        gc.collect()
    assert len(models) == 0


@needs_browser
def test_what_is_asked_and_answered_is_text(browser, at, monkeypatch):
    def marked(writer, answer, segments, tail, grid, closed):
        answer.write(MARKUP)

    monkeypatch.setattr("tango.live.writer.Writer.write", marked)
    with visitor(browser, at) as page:
        go_live(page)
        choose(page, 0)
        watch(page)
        held(page, "[1-8] frames in")
        page.get_by_label("Question about the stream").fill(MARKUP)
        ask(page, MARKUP)


@needs_browser
def test_what_is_refused(browser, at, tmp_path):
    text = tmp_path / "a.mp4"
    text.write_text("no video at all\n" * 1000)
    with visitor(browser, at) as page:
        go_live(page)
        watch(page)
        refusal(page, "there is no video yet")
        page.get_by_role("button", name="Ask now").click()
        refusal(page, "there is no question yet")
        page.get_by_label("Question about the stream").fill("a" * 10_000)
        page.get_by_role("button", name="Ask now").click()
        refusal(page, "the question has 10,000 letters; ask with at most 4,000")
        page.locator("input[type=file]").last.set_input_files(text)
        page.locator("video").last.wait_for()
        watch(page)
        refusal(page, "'a.mp4' cannot be read: Invalid data")


@pytest.fixture(scope="module")
def filmed(browser, tmp_path_factory):
    """A browser whose camera shows a video of MotionQA, again and again."""
    film = tmp_path_factory.mktemp("film") / "film.mjpeg"
    with av.open(str(MOTIONQA / "videos" / "3.mp4")) as source, av.open(str(film), "w", format="mjpeg") as file:
        stream = file.add_stream("mjpeg", rate=8)
        stream.width = stream.height = 128
        stream.pix_fmt = "yuvj420p"
        for frame in source.decode(video=0):
            for packet in stream.encode(frame.reformat(format="yuvj420p")):
                file.mux(packet)
        file.mux(stream.encode(None))
    with contextlib.closing(launched(browser.browser_type, f"--use-file-for-fake-video-capture={film}")) as running:
        yield running


@needs_browser
def test_a_webcam(filmed, at):
    with visitor(filmed, at, permissions=["camera"]) as page:
        go_live(page)
        page.get_by_role("radio", name="Webcam").click()
        page.get_by_role("button", name="Click to Access Webcam").click()
        page.get_by_role("button", name="capture photo").click()
        watch(page)
        held(page, "[3-9] frames in")
        options = {"options": ["red", "green", "blue", "pink"]}
        page.get_by_label("Question about the stream").fill(prompt(QUESTION, **options))
        ask(page)
        page.get_by_role("button", name="Stop").click()
        held(page, "^stopped$")
        page.wait_for_timeout(2500)  # pictures that still come start nothing
        assert not sessions()


def picture(size=(640, 480), kind="JPEG"):
    """As a browser sends it."""
    file = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(file, kind)
    return {"path": None, "url": f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"}


def test_pictures_that_cannot_be():
    assert decoded(picture(), 640 * 480).size == (640, 480)
    assert decoded(picture((16, 16), "PNG"), 256).getpixel((0, 0)) == (200, 30, 30)
    assert decoded(picture(), 640 * 480 - 1) is None
    for sent in (
        None,
        "data:image/png;base64,AAAA",
        {"path": "/etc/passwd"},
        {"url": 7},
        {"url": "https://example.com/a.png"},
        {"url": "data:image/png;base64,AAAA"},
        {"url": "data:image/jpeg;base64,%%%"},
        {"url": "data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode()},
        picture((4, 4), "GIF"),
    ):
        assert decoded(sent, 10**9) is None


def test_a_bomb_is_not_unpacked():
    assert decoded(picture((30_000, 30_000), "PNG"), 10**7) is None


def test_calls_that_no_page_makes(at, capfd):
    kind = {"Content-Type": "application/json"}
    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    assert run(at, FRAME, [file]).startswith("403")
    body = json.dumps({"data": [file], "fn_index": FRAME})
    for path, status in (("stream/ab12", 403), ("stream/ab12/close", 403), ("stream/ab12/0/1/playlist.m3u8", 404)):
        assert call(at, "POST", f"/gradio_api/{path}", body, kind)[0] == status
    assert call(at, "POST", "/gradio_api/stream/ab12", "x" * 1_000_002, kind)[0] == 413
    none = json.dumps({"data": [None], "fn_index": FRAME})
    assert call(at, "POST", "/gradio_api/stream/ab12", none, kind)[0] == 404  # no such event
    assert call(at, "POST", "/gradio_api/stream/ab12", json.dumps({"data": []}), kind)[0] == 400
    assert "nothing is watched" in run(at, ASK, ["What?"])
    assert "there is no question yet" in run(at, ASK, [None])
    assert "there is no video yet" in run(at, WATCH, ["Video", None, None, "tango", 0.1])
    for source, address in (("Address", "http://127.0.0.1/"), ("Address", "/etc/passwd"), (None, "")):
        assert run(at, WATCH, [source, None, address, "tango", 0.1]) == "400 "
    for sent in (7, "x", [], {"path": 7}, {"path": None, "meta": 7}, {"url": 7}):
        assert run(at, FRAME, [sent]) == "400 "
    assert capfd.readouterr().err == ""  # no traceback in the owner's log


@pytest.mark.parametrize("address", [
    "/etc/passwd", "file:///etc/passwd", "http", "", "/dev/video0", "-", "ftp://x/y", "concat:a|b", "http:// x", "x\nhttp://y",
])  # fmt: skip
def test_only_addresses_are_opened(open_to_addresses, address):
    assert "that is no address" in run(open_to_addresses, WATCH, ["Address", None, address, "tango", 0.1])


@pytest.fixture(scope="module")
def film_server():
    """MotionQA's videos over HTTP."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(MOTIONQA / "videos"))
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@needs_browser
def test_an_address_where_the_owner_allows_it(browser, open_to_addresses, film_server):
    with visitor(browser, open_to_addresses) as page:
        go_live(page)
        page.get_by_role("radio", name="Address").click()
        page.get_by_label("Address of the stream").fill(f"{film_server}/0.mp4")
        watch(page)
        held(page, "[2-8] frames in")
        page.get_by_label("Question about the stream").fill("What colour is the ring?")
        ask(page)
        page.get_by_label("Address of the stream").fill(f"{film_server}/none.mp4")
        page.get_by_role("button", name="Stop").click()
        held(page, "^stopped$")


@pytest.fixture
def some(checkpoint):
    """Streams without a page."""
    found = Streams(Visitors(checkpoint, 8, Limits(streams=2)), addresses=False)
    with contextlib.closing(found):
        yield found


def test_without_the_owners_option_no_address_is_opened(some):
    with pytest.raises(Refused, match="started without --addresses"):
        some.start("a", Tango(), address="http://127.0.0.1:1/")


def test_a_stream_ends_when_its_time_is_over(checkpoint):
    found = Streams(Visitors(checkpoint, 8, Limits(seconds=9)), addresses=False)
    with contextlib.closing(found):
        watched = found.start("a", Tango())
        watched.until = time.monotonic() + 0.5  # while a thread waits for longer: it looks again at the end
        video = found.start("b", Tango(), video=str(MOTIONQA / "videos/0.mp4"))
        video.until = time.monotonic() + 2
        video.wait(60)
        assert video.said == "the time for one visitor is over; press Watch to go on" and not video.running
        watched.wait(60)
        assert not watched.running
        with pytest.raises(Refused, match="nothing is watched"):
            watched.ask(QUESTION)


def test_watching_something_else_ends_what_was_watched(some):
    first = some.start("a", Tango(), video=str(MOTIONQA / "videos/0.mp4"))
    second = some.start("a", Tango())
    assert not first.running and second.running and first.said == "stopped"
    some.start("b", Tango())
    with pytest.raises(Refused, match="2 visitors watch streams already"):
        some.start("c", Tango())
    some.end("b")
    assert some.start("c", Tango()).running


def test_one_question_at_a_time(some):
    watched = some.start("a", Tango())
    with pytest.raises(Refused, match="no frame has come yet"):
        watched.ask(QUESTION)
    watched.add(decoded(picture((128, 128)), 10**6))
    assert watched.ask(QUESTION).text()
    watched.add("no picture")  # left out
    assert watched.state().startswith("0 s, 1 frames in, 0 of 2048 tokens held and 1 frames of an open segment")


def test_a_copy_shares_every_weight_and_no_method(checkpoint):
    with Tango()(checkpoint.model):
        copied = sharing(checkpoint.model)
    own, other = checkpoint.model.state_dict(), copied.state_dict()
    assert all(own[name].data_ptr() == other[name].data_ptr() for name in own) and own.keys() == other.keys()
    assert not hasattr(copied.generate, "seam") and copied is not checkpoint.model
    with Tango()(checkpoint.model), Tango()(copied):
        pass


def test_methods_that_can_watch(some):
    assert "tango" in some.methods and "fastv" not in some.methods
    assert streams.BUDGET == 2048
