"""Frames of files, folders, standard input and addresses; connections that are cut; what may not be opened."""

import contextlib
import io
import os
import sys
import threading
import time
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import av
import numpy as np
import pytest
from PIL import Image
from tiny import write_video

from tango.inference.video import read_video
from tango.live.sources import Clock, Source


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """12 frames, 4 a second."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    write_video(path)
    return path


@contextlib.contextmanager
def served(answer):
    """An HTTP server; `answer(handler, number)` answers the request of this number."""
    count = iter(range(1000))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            with contextlib.suppress(OSError):
                answer(self, next(count))

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def send(handler, data, length=None):
    handler.send_response(200)
    if length is not None:
        handler.send_header("Content-Length", str(length))
    handler.end_headers()
    handler.wfile.write(data)


def as_ts(clip, path):
    """The same pictures as a transport stream, which says no length."""
    with av.open(str(clip)) as source, av.open(str(path), "w", format="mpegts") as out:
        stream = out.add_stream("libx264", rate=4)
        stream.width = stream.height = 32
        stream.options = {"crf": "12", "threads": "1", "g": "2", "bf": "0"}
        for frame in source.decode(video=0):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), format="rgb24")))
        out.mux(stream.encode())
    return path.read_bytes()


def test_a_file_at_the_rate_that_is_asked_for(clip):
    right = read_video(clip, 12)
    for fps, step in ((None, 1), (4, 1), (2, 2), (1, 4), (0.5, 8)):
        found = list(Source(str(clip), fps, pace=False))
        assert [seconds for _, seconds in found] == pytest.approx(right.timestamps[::step])
        assert all(np.array_equal(a, b) for (a, _), b in zip(found, right.frames[::step], strict=True))


def test_a_file_goes_at_its_own_pace(clip):
    begun = time.monotonic()
    arrived = [(time.monotonic() - begun, seconds) for _, seconds in Source(str(clip), 1)]
    assert len(arrived) == 3 and all(at >= seconds for at, seconds in arrived)


def test_a_folder_of_images(tmp_path):
    for number in (2, 0, 1):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "1b.jpg").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no image")
    said = []
    source = Source(str(tmp_path), 2, pace=False, say=said.append)
    assert [(int(picture[0, 0, 0]), seconds) for picture, seconds in source] == [(0, 0), (1, 0.5), (2, 1.5)]
    assert len(said) == source.damaged == 1 and "1b.jpg" in said[0]


def test_standard_input(clip, tmp_path, monkeypatch):
    data = as_ts(clip, tmp_path / "clip.ts")
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(data))))
    assert [seconds for _, seconds in Source("-", None, pace=False)] == pytest.approx([i / 4 for i in range(12)])


def test_a_stream_that_is_cut_goes_on_later(clip, tmp_path):
    data = as_ts(clip, tmp_path / "clip.ts")
    with served(lambda handler, number: send(handler, data) if number != 1 else handler.send_error(503)) as address:
        said: list[str] = []
        source, times = Source(f"{address}/clip.ts", None, pace=False, say=said.append), []
        for _, seconds in source:
            times.append(seconds)
            if len(times) == 24:
                source.stop()
    assert np.all(np.diff(times) > 0) and np.diff(times)[:11] == pytest.approx([0.25] * 11)
    assert source.connections == 2 and times[12] - times[11] > 0.5 + 1  # both pauses
    assert ["trying again in 0.5 s" in said[0], "trying again in 1 s" in said[1], len(said)] == [True, True, 2]


def test_a_file_over_http_that_is_cut_goes_on_where_it_was(tmp_path):
    path = tmp_path / "long.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mjpeg", rate=4)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuvj420p"
        for number in range(80):
            picture = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    data = path.read_bytes()

    def answer(handler, number):
        send(handler, data if number else data[: len(data) // 2], len(data))

    with served(answer) as address:
        source = Source(f"{address}/long.mkv", None, pace=False)
        times = [seconds for _, seconds in source]
    assert times == pytest.approx([number / 4 for number in range(80)], abs=2e-3)
    assert source.connections >= 1


def test_a_source_that_gives_nothing_ends_with_a_sentence(clip, tmp_path):
    missing = served(lambda handler, number: handler.send_error(404))
    with missing as address, pytest.raises(ValueError, match=r"gave nothing for 0.2 s"):
        list(Source(f"{address}/clip.ts", pace=False, patience=0.2))
    hang = threading.Event()
    with served(lambda handler, number: hang.wait(300)) as address:
        begun = time.monotonic()
        with pytest.raises(ValueError, match=r"gave nothing for 0.1 s"):
            list(Source(f"{address}/clip.ts", pace=False, patience=0.1, timeout=0.5))
        hang.set()
    assert time.monotonic() - begun < 120


def test_a_named_pipe_is_waited_for_and_not_for_ever(clip, tmp_path):
    data = as_ts(clip, tmp_path / "clip.ts")
    os.mkfifo(pipe := tmp_path / "pipe")
    said = []
    with pytest.raises(ValueError, match=r"pipe' gave nothing for 0.2 s: a pipe that nobody writes to"):
        list(Source(str(pipe), pace=False, patience=0.2, say=said.append))
    assert len(said) == 1 and "pipe' is a pipe that nobody writes to yet: waiting for 0.2 s" in said[0]

    def write(_):
        writer.start()

    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    source = Source(str(pipe), None, pace=False, say=write)
    assert [seconds for _, seconds in source] == pytest.approx([i / 4 for i in range(12)])
    writer.join()
    source = Source(str(pipe), pace=False, say=lambda _: source.stop())
    assert list(source) == []


def test_what_is_no_source():
    for name, words in (("nothing.mp4", "no source"), ("ftp://host/clip", "http, https, rtsp"),
                        ("file:///etc/hosts", "http"), ("concat:a|b", "no source")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            Source(name)


def test_a_file_may_not_name_another(clip, tmp_path):
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXTINF:3,\n{clip}\n#EXT-X-ENDLIST\n")
    (tmp_path / "list.ffconcat").write_text(f"ffconcat version 1.0\nfile '{clip}'\n")
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name in ("list.m3u8", "list.ffconcat", "empty.mp4"):
        with pytest.raises(ValueError, match="cannot be read"):
            list(Source(str(tmp_path / name), pace=False))


def test_a_playlist_from_the_network_may_name_addresses_and_no_files(clip, tmp_path):
    data = as_ts(clip, tmp_path / "part.ts")
    lists = {"/good.m3u8": "part.ts", "/bad.m3u8": f"file://{tmp_path / 'part.ts'}"}

    def answer(handler, _):
        part = lists.get(handler.path)
        text = f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{part}\n#EXT-X-ENDLIST\n".encode()
        send(handler, data if part is None else text, len(data if part is None else text))

    with served(answer) as address:
        assert len(list(Source(f"{address}/good.m3u8", None, pace=False))) == 12
        with pytest.raises(ValueError, match="gave nothing"):
            list(Source(f"{address}/bad.m3u8", None, pace=False, patience=0.1))


def test_the_clock():
    clock = Clock()
    assert [clock(stamp) for stamp in (7.0, 7.5, 8.0)] == [0, 0.5, 1.0]
    assert clock(None) == 1.5  # no stamp: as the one before
    assert [clock(stamp) for stamp in (3.0, 3.5)] == [2.0, 2.5]  # set back
    assert [clock(stamp) for stamp in (95000.0, 95000.25)] == [3.0, 3.25]  # wrapped, or set forward
    assert clock.known(95000.25) and not clock.known(95000.5)
    clock.again()
    assert not clock.known(1.0)
    time.sleep(0.3)
    assert clock(1.0) >= 3.25 + 0.3


def test_a_password_is_not_told():
    """What is said goes into logs."""
    said = []
    with served(lambda handler, number: handler.send_error(404)) as at:
        address = at.replace("http://", "http://user:s3cret@")
        with pytest.raises(ValueError, match="gave nothing") as told:
            list(Source(f"{address}/x.ts", pace=False, patience=0.6, say=said.append))
    assert said and "s3cret" not in " ".join([*said, str(told.value)]) and f"{at}/x.ts" in str(told.value)
    with pytest.raises(ValueError, match="streams are read from") as told:
        Source("ftp://user:s3cret@host/x")
    assert "s3cret" not in str(told.value)


@pytest.mark.parametrize("name, words", [
    ("", "no source ''"), ("http:///x", "names no host"), ("rtsp://", "names no host"),
    ("http://[::1/x", "the address cannot be: Invalid IPv6"),
    ("http://host:99999/x", "the address cannot be: Port out"),
])  # fmt: skip
def test_addresses_that_cannot_be(name, words):
    with pytest.raises(ValueError, match=words):
        Source(name)


def test_a_file_whose_name_looks_like_an_address(clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "http:b.mp4").write_bytes(clip.read_bytes())
    assert len(list(Source("http:b.mp4", None, pace=False))) == 12


def test_a_pipe_among_pictures_is_left_out(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    said = []
    source = Source(str(tmp_path), pace=False, say=said.append)
    assert (len(list(source)), source.damaged) == (1, 1) and "no regular file" in said[0]
