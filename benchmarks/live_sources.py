"""Watches a local HTTP, HLS or RTSP stream with `tango live`, cuts its connection once, and shows what came of it.

python benchmarks/live_sources.py http --seconds 600 --output build/live/http.jsonl

The servers are ffmpeg's (HTTP, and HLS behind Python's file server) and GStreamer's RTSP server, for which Debian's
python3-gi, gir1.2-gst-rtsp-server-1.0 and gstreamer1.0-plugins-{base,good,ugly} are needed. Each shows a clip of
MotionQA again and again. Half way through, the server is killed, and started again five seconds later.
"""

import argparse
import functools
import http.server
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
CLIP = ROOT / "data" / "motionqa" / "videos" / "0.mp4"
AWAY = 5.0  # seconds
RTSP = """
import sys, gi
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
server, factory = GstRtspServer.RTSPServer(), GstRtspServer.RTSPMediaFactory()
server.set_service(sys.argv[1])
factory.set_launch("( videotestsrc is-live=true pattern=ball ! video/x-raw,width=128,height=128,framerate=8/1 "
                   "! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=8 ! rtph264pay name=pay0 pt=96 )")
factory.set_shared(True)
server.get_mount_points().add_factory("/clip", factory)
server.attach(None)
GLib.MainLoop().run()
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def quiet(*command):
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def looped(*output):
    """ffmpeg that shows the clip at its own pace for ever."""
    again = ["-force_key_frames", "expr:gte(t,n_forced*1)"]
    return [
        "ffmpeg",
        "-re",
        "-stream_loop",
        "-1",
        "-i",
        str(CLIP),
        "-c:v",
        "libx264",
        "-preset",
        "ultrafast",
        *again,
        *output,
    ]


class Http:
    def __init__(self, port, folder):
        self.address, self.port = f"http://127.0.0.1:{port}/clip.ts", port
        self._stop = threading.Event()

    def start(self):
        # ffmpeg serves one connection and ends with it.
        self._stop.clear()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        while not self._stop.is_set():
            self.process = quiet(*looped("-f", "mpegts", "-listen", "1", self.address))
            self.process.wait()

    def stop(self):
        self._stop.set()
        self.process.kill()
        self._thread.join()


class Hls:
    def __init__(self, port, folder):
        self.address, self.port, self.folder = f"http://127.0.0.1:{port}/clip.m3u8", port, folder
        options = ["-hls_time", "2", "-hls_list_size", "5", "-hls_flags", "delete_segments"]
        self.encoder = quiet(*looped("-f", "hls", *options, f"{folder}/clip.m3u8"))
        while not Path(folder, "clip.m3u8").exists():
            time.sleep(0.2)

    def start(self):
        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_):
                pass

        handler = functools.partial(Handler, directory=self.folder)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def end(self):
        self.encoder.kill()


class Rtsp:
    def __init__(self, port, folder):
        self.address, self.port = f"rtsp://127.0.0.1:{port}/clip", port

    def start(self):
        self.process = quiet("/usr/bin/python3", "-c", RTSP, str(self.port))

    def stop(self):
        self.process.kill()
        self.process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("kind", choices=("http", "hls", "rtsp"))
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        server = {"http": Http, "hls": Hls, "rtsp": Rtsp}[args.kind](free_port(), folder)
        server.start()
        begun = time.monotonic()
        command = [sys.executable, "-m", "tango.cli", "live", server.address, "--seconds", str(args.seconds)]
        command += ["--question", "What colour is the ring?", "--every", "10"]
        with args.output.open("w") as out, args.output.with_suffix(".log").open("w") as err:
            watching = subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL)
            try:
                time.sleep(args.seconds / 2)
                server.stop()
                time.sleep(AWAY)
                server.start()
                watching.wait(timeout=args.seconds + 120)
            finally:
                watching.kill()
                server.stop()
                if args.kind == "hls":
                    server.end()
    lines = [json.loads(line) for line in args.output.read_text().splitlines()]
    print(f"{args.kind}: {time.monotonic() - begun:.0f} s, {len(lines) - 1} answers; the last line:")
    print(json.dumps(lines[-1]))
    print(args.output.with_suffix(".log").read_text())


if __name__ == "__main__":
    main()
