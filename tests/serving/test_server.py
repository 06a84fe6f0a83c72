"""The OpenAI-compatible server: videos by data, file and http URLs, what is wrong with a request, records, metrics."""

import base64
import functools
import http.server
import re
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest
from engines import DATA, FRAMES, MODEL, ROOT, Reference, prompted
from PIL import Image
from tango_vllm.loader import TangoLoader
from vllm_server import free_port, serving

from tango.inference.video import read_video
from tango.motionqa.questions import prompt, read_questions
from tango.pruners import Tango

PRUNER = Tango(retention_ratio=0.2)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("server") / "log"


@pytest.fixture(scope="module")
def url(log):
    with serving(MODEL, log, WRAPPER="tango", TANGO_ARGS="retention_ratio=0.2") as address:
        yield address


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def rows():
    return read_questions(ROOT / DATA)[::7][:60]


@pytest.fixture(scope="module")
def expected(rows):
    """The answers of transformers."""
    reference = Reference(MODEL)
    answers = []
    for row in rows:
        clip = read_video(ROOT / DATA / row["video"], FRAMES)
        tokens, _ = reference.answer(PRUNER, prompted(["<video>\n", prompt(row["question"], row["options"])]), [clip])
        answers.append(reference.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip())
    return answers


@pytest.fixture(scope="module")
def web():
    """A web server on this machine: the videos, and under /slow something that never comes."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.path.startswith("/slow"):
                threading.Event().wait(60)
                return
            super().do_GET()

        def log_message(self, *args):
            pass

    handler = functools.partial(Handler, directory=str(ROOT / DATA))
    with http.server.ThreadingHTTPServer(("127.0.0.1", free_port()), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def data(content):
    return f"data:video/mp4;base64,{base64.b64encode(content).decode()}"


def ask(client, row, *addresses, kind="video_url", **options):
    media = [{"type": kind, kind: {"url": address}} for address in addresses]
    content = [*media, {"type": "text", "text": prompt(row["question"], row["options"])}]
    reply = client.chat.completions.create(
        model="tango-tiny", messages=[{"role": "user", "content": content}], max_tokens=8, temperature=0, **options
    )
    return reply.choices[0].message.content.strip()


def address_of(row, kind, web):
    path = ROOT / DATA / row["video"]
    return {"file": f"file://{path}", "path": str(path), "http": f"{web}/{row['video']}"}.get(kind) or data(
        path.read_bytes()
    )


@pytest.mark.parametrize("kind", ["file", "path", "http", "data"])
def test_answers_are_those_of_transformers(client, rows, expected, web, kind):
    assert [ask(client, row, address_of(row, kind, web)) for row in rows[:20]] == expected[:20]


def broken(web):
    """Addresses that cannot be answered about, with a word of why."""
    video = (ROOT / DATA / "videos" / "0.mp4").read_bytes()
    return [
        ([data(b"this is no video")], "video"),
        ([data(video[:3000])], "video"),
        ([data(b"")], "video"),
        ([f"{web}/videos/none.mp4"], "404"),
        ([f"file://{ROOT}/none.mp4"], "cannot fetch file.*No such file"),
        (["file:///etc/passwd"], "allowed"),
        ([f"file://{ROOT}/README.md"], "video"),
        (["/etc/passwd"], "allowed"),
        ([data(video)] * 3, "At most 2"),
        (["nonsense"], "URL"),
    ]


def test_what_is_wrong_is_told_and_the_next_request_is_right(client, rows, expected, web):
    cases = [*broken(web), ([f"{web}/slow.mp4"], "cannot fetch http.*it took too long")]
    for addresses, word in cases:
        with pytest.raises(openai.APIStatusError) as error:
            ask(client, rows[0], *addresses)
        message = error.value.body["message"] if isinstance(error.value.body, dict) else str(error.value.body)
        assert 400 <= error.value.status_code < 500, (addresses[0][:40], error.value.status_code, message)
        assert re.search(word, message, re.IGNORECASE), message
        assert ask(client, rows[1], address_of(rows[1], "file", web)) == expected[1]


def test_two_hundred_requests_a_tenth_of_them_broken(client, rows, expected, web):
    bad = broken(web)

    def one(index):
        if index % 10 == 7:
            with pytest.raises(openai.APIStatusError) as error:
                ask(client, rows[0], *bad[index // 10 % len(bad)][0])
            return 400 <= error.value.status_code < 500
        row = index * 7 % len(rows)
        kind = ("file", "http", "data")[index % 3]
        return ask(client, rows[row], address_of(rows[row], kind, web)) == expected[row]

    with ThreadPoolExecutor(8) as pool:
        right = list(pool.map(one, range(200)))
    assert all(right), [index for index, fine in enumerate(right) if not fine]


def test_a_part_of_a_video_is_read_where_a_request_names_its_ends():
    video = ROOT / DATA / "videos" / "0.mp4"
    frames, told = TangoLoader.load_bytes(video.read_bytes(), 4, start=0.5, end=1.5)
    clip = read_video(video, 4, 0.5, 1.5)
    assert (frames == clip.frames).all() and told["timestamps"] == list(clip.timestamps)


def test_frames_and_size_that_a_request_names():
    video = ROOT / DATA / "videos" / "0.mp4"
    whole = read_video(video, 10**6).frames
    frames, told = TangoLoader.load_bytes(video.read_bytes(), 4, indices=[0, 2, len(whole) - 1], size=[40, 24])
    for frame, index in zip(frames, (0, 2, len(whole) - 1), strict=True):
        pillow = np.asarray(Image.fromarray(whole[index]).resize((24, 40), Image.Resampling.BICUBIC))
        assert np.abs(frame.astype(int) - pillow.astype(int)).max() <= 1
    assert frames.shape == (3, 40, 24, 3) and len(told["timestamps"]) == 3
    for wrong, said in [
        ({"indices": [0, len(whole)]}, f"indices reach frame {len(whole)} of a video that has {len(whole)}"),
        ({"indices": [-1]}, "at least 0"), ({"indices": []}, "whole numbers"), ({"indices": [0.5]}, "whole numbers"),
        ({"size": [0, 8]}, "at least 1"), ({"size": [8]}, "of a size two"), ({"size": 8}, "whole numbers"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=said):
            TangoLoader.load_bytes(video.read_bytes(), 4, **wrong)


def test_records_and_metrics(client, url, log, rows, web):
    def counted():
        text = urllib.request.urlopen(f"{url}/metrics").read().decode()
        names = ("tango:video_tokens_before_total", "tango:video_tokens_after_total")
        return [float(re.search(rf"^{name}(?:{{.*}})? (\S+)", text, re.MULTILINE)[1]) for name in names]

    ask(client, rows[0], address_of(rows[0], "file", web))
    before = counted()
    ask(client, rows[0], address_of(rows[0], "file", web), address_of(rows[9], "file", web))
    assert [b - a for a, b in zip(before, counted(), strict=True)] == [2 * 512, 2 * 102]
    assert "tango: video tokens of a request: 512 to 102, 512 to 102" in log.read_text()


def test_frames_as_images_are_warned_of_once(client, log, rows):
    from io import BytesIO

    clip = read_video(ROOT / DATA / rows[0]["video"], 3)
    images = []
    for frame in clip.frames:
        file = BytesIO()
        Image.fromarray(frame).save(file, "png")
        images.append(f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}")
    for _ in range(2):
        ask(client, rows[0], *images, kind="image_url")
    assert log.read_text().count("images are not pruned") == 1
