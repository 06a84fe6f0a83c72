"""The app in a real browser, as visitors use and misuse it, and its server as somebody without a browser may."""

import asyncio
import contextlib
import html
import re
import signal
import socket
import subprocess
import sys
import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from browsing import needs_browser
from visiting import MARKUP, MOTIONQA, ROOT, WAIT, call, run, visitor

pytest.importorskip("gradio", reason="the extra `app` is not installed")
from tango import Tango
from tango.app import Limits, served
from tango.app.door import ROOM, Door
from tango.app.page import answered, drawn, tabled
from tango.app.visitors import Refused, Visitors
from tango.cli import main
from tango.inference.chat import Answer, Chat
from tango.motionqa.questions import prompt, read_questions

MEGABYTES = 2
OUTGOING: list[str] = []  # where this process connects to, or looks up, besides this machine


def note_outgoing(event, arguments):
    """An audit hook of Python."""
    if event == "socket.connect":
        address = arguments[1]
    elif event == "socket.getaddrinfo":
        address = arguments[:1]
    else:
        return
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost", None):
        OUTGOING.append(str(address[0]))


@pytest.fixture(scope="module")
def at(checkpoint):
    """The address of an app that is served in this process."""
    sys.addaudithook(note_outgoing)
    with served(checkpoint, 8, Limits(megabytes=MEGABYTES)) as address:
        yield address


def choose_sample(page, number):
    """One of the samples: (video, question, gold) of MotionQA."""
    page.get_by_label("Sample").click()
    option = page.get_by_role("option").nth(number)
    name, text = option.get_attribute("aria-label").split(": ", 1)
    option.click()
    page.locator(f'video[src*="/{name}"]').wait_for()
    (row,) = (row for row in read_questions(MOTIONQA) if row["video"].endswith(f"/{name}") and row["question"] == text)
    page.wait_for_function(
        "wanted => document.querySelector('textarea').value == wanted", arg=prompt(text, row["options"])
    )
    return row


def press(page):
    page.get_by_role("button", name="Ask").click()


def answers(page):
    """What both boxes say, once frames are drawn."""
    page.locator(".frames img").first.wait_for()
    return [page.get_by_label(name, exact=True).input_value() for name in ("Unpruned", "Pruned")]


def refusal(page, text):
    """What a refused visitor is told, with a certain text in it."""
    alert = page.get_by_role("alert").filter(has_text=text)
    alert.wait_for()
    assert [page.get_by_label(name, exact=True).input_value() for name in ("Unpruned", "Pruned")] == ["", ""]
    return alert.text_content()


def numbers(page):
    """The table: a list of texts a row."""
    return page.evaluate(
        "[...document.querySelectorAll('.numbers tr')].map(row => [...row.cells].map(c => c.textContent))"
    )


def gold(row):
    return row["options"]["ABCD".index(row["answer"])]


def ask(checkpoint, row, pruner, frames=8):
    """As the app should, while nobody uses the model."""
    content = [{"type": "video", "video": str(MOTIONQA / row["video"])}]
    content += [{"type": "text", "text": prompt(row["question"], row["options"])}]
    with Chat(checkpoint, pruner, max_frames=frames).session() as chat:
        return chat.generate([{"role": "user", "content": content}], {"max_new_tokens": 64}, "x")


@needs_browser
def test_an_answer_appears_and_the_slider_runs_it_again(browser, at, checkpoint):
    with visitor(browser, at) as page:
        row = choose_sample(page, 0)
        wanted = ask(checkpoint, row, Tango(retention_ratio=0.1))
        press(page)
        assert answers(page) == [gold(row), wanted.response]
        table = numbers(page)
        assert table[0] == ["", "unpruned", "tango 0.1"] and table[1][1:] == ["512", "512"]
        assert table[2][1:] == ["512", str(wanted.tokens["video_tokens_after"])]
        fates = page.locator(".frames img").evaluate_all("images => images.map(image => image.alt)")
        counts = [[int(n) for n in re.findall(r"(\d+) (?:kept|merged|dropped)", text)] for text in fates]
        assert len(counts) == 8 and all(sum(one) == 64 for one in counts)
        assert sum(kept for kept, *_ in counts) == wanted.tokens["video_tokens_after"]
        assert page.locator(".frames img").evaluate_all("images => images.every(image => image.naturalWidth > 100)")

        slider = page.get_by_role("slider")
        box = slider.bounding_box()
        page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + box["height"] / 2)
        page.locator(".numbers th").nth(2).filter(has_not_text=re.compile(r" 0\.1$")).wait_for()
        answers(page)  # the table, both boxes and the frames come together
        again = numbers(page)
        ratio = float(again[0][2].removeprefix("tango "))
        assert 0.4 < ratio < 0.6
        assert abs(int(again[2][2]) / 512 - ratio) < 0.05
        assert [row[1] for row in again] == [row[1] for row in table]  # the unpruned answer is not made again
    assert OUTGOING == []


@needs_browser
def test_two_visitors_at_once_get_each_their_own_answer(browser, at, checkpoint):
    with visitor(browser, at) as one, visitor(browser, at) as other:
        rows = [choose_sample(one, 1), choose_sample(other, 2)]
        assert rows[0]["video"] != rows[1]["video"] and gold(rows[0]) != gold(rows[1])
        wanted = [[gold(row), ask(checkpoint, row, Tango(retention_ratio=0.1)).response] for row in rows]
        press(one)
        press(other)
        assert [answers(one), answers(other)] == wanted


def test_two_threads_at_once_get_each_their_own_answer(checkpoint):
    """Without Gradio's queue in between."""
    visitors = Visitors(checkpoint, 4, Limits())
    rows = read_questions(MOTIONQA)[:16:4]
    pruners = [Tango(retention_ratio=ratio) for ratio in (0.1, 0.3, 0.5, 0.9)]
    found = {}

    def run(number):
        row = rows[number]
        text = prompt(row["question"], row["options"])
        found[number] = visitors.ask(str(MOTIONQA / row["video"]), text, pruners[number])[0]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, pruner in enumerate(pruners):
        wanted = ask(checkpoint, rows[number], pruner, 4)
        assert (found[number].response, found[number].tokens) == (wanted.response, wanted.tokens)


@needs_browser
def test_a_tab_that_is_closed_in_mid_answer_is_in_nobodys_way(browser, at, checkpoint, monkeypatch):
    generate, begun, go_on, asked = Chat.generate, threading.Event(), threading.Event(), []

    def slow(chat, messages, settings, name):
        asked.append(chat.pruner)
        begun.set()
        assert go_on.wait(WAIT / 1000)
        return generate(chat, messages, settings, name)

    with visitor(browser, at) as closes, visitor(browser, at) as stays:
        choose_sample(closes, 3)
        row = choose_sample(stays, 0)
        wanted = [gold(row), ask(checkpoint, row, Tango(retention_ratio=0.1)).response]
        monkeypatch.setattr(Chat, "generate", slow)
        press(closes)
        assert begun.wait(WAIT / 1000)
        closes.close()
        press(stays)
        go_on.set()
        assert answers(stays) == wanted
    assert asked.count(None) == 4  # unpruned, of each visitor a warm-up and an answer


@needs_browser
def test_what_is_asked_and_answered_is_text(browser, at, monkeypatch):
    real = Visitors.ask

    def marked(visitors, video, question, pruner):
        answer, picture = real(visitors, video, question, pruner)
        answer.response = MARKUP
        return answer, picture

    monkeypatch.setattr(Visitors, "ask", marked)
    with visitor(browser, at) as page:
        choose_sample(page, 0)
        page.get_by_label("Question").fill(MARKUP)
        press(page)
        assert answers(page) == [MARKUP, MARKUP]
        assert page.get_by_label("Question").input_value() == MARKUP


@needs_browser
def test_what_is_refused(browser, at, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.model.config.get_text_config(), "max_position_embeddings", 2048)
    with visitor(browser, at) as page:
        page.get_by_label("Question").fill("What?")
        press(page)
        refusal(page, "there is no video yet")

    text = tmp_path / "<img src=x onerror='window.hit=1'>.mp4"
    text.write_text("no video at all\n" * 1000)
    with visitor(browser, at) as page:
        page.locator("input[type=file]").first.set_input_files(text)
        page.get_by_label("Question").fill("What?")
        page.locator("video").wait_for()
        press(page)
        assert re.fullmatch(
            'video "img src=x[^/]*.mp4" cannot be read: Invalid data .*', refusal(page, "cannot be read")
        )

    with visitor(browser, at) as page:
        choose_sample(page, 0)
        page.get_by_label("Question").fill("  \n ")
        press(page)
        refusal(page, "there is no question yet")

    with visitor(browser, at) as page:
        choose_sample(page, 0)
        page.get_by_label("Question").fill("a" * 10_000)
        press(page)
        refusal(page, "the question has 10,000 letters; ask with at most 4,000")
        page.get_by_label("Question").fill("a" * 2000)
        press(page)
        page.wait_for_function("[...document.querySelectorAll('textarea')].slice(1).every(box => box.value)")
        boxes = [page.get_by_label(name, exact=True).input_value() for name in ("Unpruned", "Pruned")]
        assert all(re.fullmatch(r"left out: the prompt is \d+ tokens long .*", box) for box in boxes), boxes
        assert page.locator(".numbers, .frames").count() == 0


@needs_browser
def test_a_file_that_is_too_large(browser, at, tmp_path):
    large = tmp_path / "large.mp4"
    large.write_bytes(b"\0" * (MEGABYTES * 1_000_000 + 1))
    with visitor(browser, at) as page:
        page.locator("input[type=file]").first.set_input_files(large)
        page.get_by_test_id("toast-body").filter(has_text=re.compile("size", re.IGNORECASE)).wait_for()


RECORD = """async () => {
    const camera = await navigator.mediaDevices.getUserMedia({video: true})
    const recorder = new MediaRecorder(camera, {mimeType: "video/webm"})
    const parts = []
    recorder.ondataavailable = event => parts.push(event.data)
    recorder.start()
    await new Promise(done => setTimeout(done, 1500))
    await new Promise(done => { recorder.onstop = done; recorder.stop() })
    return [...new Uint8Array(await new Blob(parts).arrayBuffer())]
}"""


@needs_browser
def test_what_a_webcam_records(browser, at):
    """A file without a duration or an index. Gradio's own recorder sends what has come when it is stopped, which may be
    nothing where machines are busy; so the file is made by the browser's, and uploaded.
    """
    with visitor(browser, at, permissions=["camera"]) as page:
        recorded = bytes(page.evaluate(RECORD))
        file = {"name": "recording.webm", "mimeType": "video/webm", "buffer": recorded}
        page.locator("input[type=file]").first.set_input_files(file)
        page.locator("video").wait_for()
        page.get_by_label("Question").fill("What is there?")
        press(page)
        answers(page)
        before, after = (int(row[2]) for row in numbers(page)[1:3])
        assert before % 64 == 0 and 0 < after < before


def test_two_gigabytes_are_refused_early(at):
    """The server ends the connection long before all of it has come."""
    sent, chunk = 0, b"\0" * 1_000_000
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\nContent-Type: video/mp4\r\n\r\n'
    with socket.create_connection((urlsplit(at).hostname, urlsplit(at).port), timeout=60) as line:
        line.sendall(
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            b"Content-Length: 2000000000\r\n\r\n" + head
        )
        with contextlib.suppress(ConnectionError):
            while sent < 2_000_000_000:
                line.sendall(chunk)
                sent += len(chunk)
    assert sent < 100_000_000


def test_an_upload_says_how_long_it_is(at):
    """One without an end would be read for as long as its sender likes."""
    with socket.create_connection((urlsplit(at).hostname, urlsplit(at).port), timeout=60) as line:
        line.sendall(
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        assert line.recv(100).startswith(b"HTTP/1.1 411 ")


def test_uploads_do_not_fill_the_disk(tmp_path):
    """Of those that are there and those that are coming; what is refused is not read."""
    asked = []

    async def app(scope, receive, send):
        asked.append(scope)
        (tmp_path / f"{len(asked)}.mp4").write_bytes(b"x" * 100)

    door, statuses = Door(app, str(tmp_path), largest=100, events={}), []

    async def send(message):
        statuses.append(message.get("status"))

    def knock():
        """In a thread of its own: the browser's tests leave an event loop in this one."""
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, door(scope, None, send)).result()

    scope = {"type": "http", "path": "/gradio_api/upload", "headers": [(b"content-length", b"100")]}
    for _ in range(ROOM + 2):
        knock()
    assert len(asked) == ROOM and statuses == [507, None] * 2 and door.coming == 0
    (tmp_path / "1.mp4").unlink()  # as Gradio does after an hour
    door.coming = 1
    knock()
    door.coming = 0
    knock()
    assert len(asked) == ROOM + 1


def test_an_answer_cannot_be_forged(at, checkpoint):
    """The state of a visitor is the server's; what is sent in its place is not read."""
    folder, row = sample_folder(at), read_questions(MOTIONQA)[0]
    path = f"{folder}/sample0/{Path(row['video']).name}"
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    said = run(at, 0, [file, "What?", "tango", 0.1, [[path, "What?"], "forged"]])
    assert '"success":true' in said.replace(" ", "") and "forged" not in said


def test_a_folder_is_no_video(at):
    folder = sample_folder(at)
    file = {"path": f"{folder}/sample0", "meta": {"_type": "gradio.FileData"}}
    assert run(at, 0, [file, "What?", "tango", 0.1, None]).startswith("403")
    assert run(at, 0, [file | {"path": f"{folder}/a\0b"}, "What?", "tango", 0.1, None]).startswith("403")


@pytest.mark.parametrize("path, status", [
    ("/", 200),
    ("/gradio_api/file=/etc/passwd", 403),
    (f"/gradio_api/file={ROOT}/README.md", 403),
    ("/gradio_api/file=README.md", 403),
    ("/gradio_api/file={folder}/../../etc/passwd", 403),
    ("/gradio_api/file={folder}/%2e%2e/%2e%2e/etc/passwd", 403),
    ("/gradio_api/file={folder}/sample0/0.mp4", 200),
    ("/gradio_api/file=https://example.com/", 403),
    ("/gradio_api/proxy=https://example.com/", 404),
    ("/gradio_api/file/etc/passwd", 404),
    ("/static/../../../../../../../../etc/passwd", 404),
    ("/assets/..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd", 404),
    ("/gradio_api/info", 404),
    ("/gradio_api/openapi.json", 404),
    ("/openapi.json", 404),
    ("/docs", 404),
    ("/monitoring", 404),
])  # fmt: skip
def test_what_can_be_read(at, path, status):
    folder = re.search(r'"root":"[^"]*"', call(at, "GET", "/config")[1]) and sample_folder(at)
    found, text = call(at, "GET", path.replace("{folder}", folder))
    assert (found // 100, "root:" in text) == (status // 100, False)
    if status == 200:
        assert found == 200


def sample_folder(at):
    """The app's own folder, as a page learns it by choosing a sample."""
    events = run(at, 2, [re.search(r'"choices":\[\["([^"]*)"', call(at, "GET", "/config")[1])[1]])
    return re.search(r'"path": ?"([^"]*)/sample0/', events)[1]


@pytest.mark.parametrize("path", ["/etc/passwd", str(ROOT / "README.md"), "https://example.com/a.mp4", "0.mp4"])
def test_a_video_is_a_file_that_was_uploaded(at, path):
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    assert run(at, 0, [file, "What?", "tango", 0.1, None]).startswith("403")
    assert run(at, 0, [None, file, "tango", 0.1, None]).startswith("403")
    assert OUTGOING == []


def test_calls_that_no_page_makes(at, capfd):
    kind = {"Content-Type": "application/json"}
    assert call(at, "POST", "/gradio_api/queue/join", "x" * 1_000_002, kind)[0] == 413
    assert call(at, "POST", "/gradio_api/queue/join", "no JSON", kind)[0] == 400
    assert call(at, "POST", "/gradio_api/queue/join", "[" * 100_000, kind)[0] == 400
    assert call(at, "POST", "/gradio_api/queue/join", "[]", kind)[0] == 400
    assert call(at, "POST", "/gradio_api/run/predict", "{}", kind)[0] == 404
    assert call(at, "POST", "/gradio_api/process_recording", "{}", kind)[0] == 404
    right = [None, "What?", "tango", 0.1, None]
    for place, value in (
        (0, 7), (0, "x"), (0, {"a": 1}), (0, []), (1, 7), (1, ["x"]), (2, "no_such_method"), (2, None),
        (2, []), (3, 7), (3, "much"), (3, None), (3, True), (3, float("nan")), (3, 0),
    ):  # fmt: skip
        assert run(at, 0, [*right[:place], value, *right[place + 1 :]]) == "400 "
    for function in (999, -1, None, "x", 0.5, [], {}):
        assert run(at, function, right).startswith("400")
    for data in (None, {}, [], right[1:], [*right, None]):
        assert run(at, 0, data).startswith("400")
    assert capfd.readouterr().err == ""  # no traceback in the owner's log
    for question in ("What?", None):
        assert "there is no video yet" in run(at, 0, [None, question, "tango", 0.1, None])


def test_no_path_of_the_machine_is_told(at):
    for path in ("/", "/config"):
        _, text = call(at, "GET", path)
        assert "tango-tiny" in html.unescape(text)
        for secret in (str(ROOT), str(Path.home()), str(Path(sys.executable).parent), "checkpoints/tango-tiny"):
            assert f"{secret}/" not in text and f'{secret}"' not in text


@pytest.mark.parametrize("limits, message", [
    (Limits(seconds=1), r"lasts \d+ s; use one of at most 1 s"),
    (Limits(pixels=100), r"frames have \d+ x \d+ pixels; use a video with at most 100"),
    (Limits(letters=3), r"the question has 5 letters; ask with at most 3"),
])  # fmt: skip
def test_limits(checkpoint, limits, message):
    visitors = Visitors(checkpoint, 8, limits)
    with pytest.raises(Refused, match=message):
        visitors.check(str(MOTIONQA / "videos" / "0.mp4"), "What?")
    with pytest.raises(ValueError, match="megabytes = 0: give a limit above 0"):
        Limits(megabytes=0)


def test_what_fails_names_the_file_and_not_its_folder(checkpoint, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    visitors = Visitors(checkpoint, 8, Limits())
    with pytest.raises(Refused, match=r"'a\.mp4' cannot be read") as refused:
        visitors.check(str(tmp_path / "a.mp4"), "What?")
    assert str(tmp_path) not in str(refused.value)
    said, picture = answered(visitors, str(tmp_path / "a.mp4"), "What?", None)
    assert picture is None and "'a.mp4' cannot be read" in said and drawn(None) == ""


def test_names_in_tables_are_text():
    tokens = dict.fromkeys(("video_tokens_before", "video_tokens_after", "video_tokens_average", "output_tokens"), 1)
    timing = dict.fromkeys(("vit_s", "other_s", "prefill_s", "decode_s"), 0.001)
    text = tabled({MARKUP: Answer("", timing, tokens, [])})
    assert "<script" not in text and html.escape(MARKUP) in text and text.count("<td>1.0</td>") == 4


@pytest.mark.parametrize("words", [["-m", "tango.cli", "app"], ["examples/space/app.py"]], ids=["command", "space"])
def test_it_starts_and_ends(words, environment):
    more = {"PYTHONUNBUFFERED": "1", "MODEL": "checkpoints/tango-tiny"}
    more["PYTHONPATH"] = f"{ROOT}:{environment.get('PYTHONPATH', '')}"
    for _ in range(5):  # a port that was free a moment ago may be somebody else's by now
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            more["PORT"] = port = str(free.getsockname()[1])
        command = [sys.executable, *words, *(["--port", port] if "-m" in words else [])]
        process = subprocess.Popen(command, cwd=ROOT, env=environment | more, stdout=subprocess.PIPE, text=True)
        said = process.stdout.readline()
        if said or process.wait() != 2:
            break
    try:
        assert f":{port}/" in said
        at = f"http://127.0.0.1:{port}/"
        folder = Path(sample_folder(at))
        assert call(at, "GET", "/")[0] == 200 and (folder / "sample0" / "0.mp4").is_file()
        if "-m" in words:
            assert main(["app", "--port", port]) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) == 0 and "ended" in process.stdout.read()
        assert not folder.exists()
    finally:
        process.kill()


def test_what_a_space_installs_is_what_is_tested():
    pins = {*(ROOT / "requirements.txt").read_text().splitlines()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wheel, *others = [
        line for line in (ROOT / "examples/space/requirements.txt").read_text().splitlines() if line[0] != "#"
    ]
    assert wheel == f"./{project['name'].replace('-', '_')}-{project['version']}-py3-none-any.whl[app]"
    assert {*others} <= pins and {*project["optional-dependencies"]["app"]} - {"tango-vlm[cli]"} <= {*others}
    settings = yaml.safe_load((ROOT / "examples/space/README.md").read_text().split("---")[1])
    assert f"gradio=={settings['sdk_version']}" in others
    assert (ROOT / "examples/space" / settings["app_file"]).is_file()


def test_bad_options(monkeypatch, capsys):
    assert main(["app", "--model", "no-such-model"]) == 2
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["app"]) == 2
    assert 'pip install "tango-vlm[app]"' in capsys.readouterr().err
