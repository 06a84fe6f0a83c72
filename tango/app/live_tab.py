"""The tab that watches a stream: a video at its own pace, a webcam or an address, and questions at any moment."""

import base64
import contextlib
import html
import io
from collections.abc import Iterator
from typing import Any

import gradio as gr
from PIL import Image

from tango.app.markup import inline, refused
from tango.app.streams import FPS, Streams, Watched
from tango.app.visitors import Refused
from tango.pruners import REGISTRY

STEP = 0.5  # seconds between two looks at what is held
SHOWN = (480, 320)  # pixels of the newest frame at most


def build_live(streams: Streams, samples: dict[str, tuple[str, str]], preferred: str) -> None:
    """Add the tab's parts to the page that is being built.

    Args:
        samples: what to choose them by, a video and a question.
        preferred: the method that is chosen at first.
    """
    sources = ["Video", "Webcam", *(["Address"] if streams.addresses else [])]
    with gr.Row():
        with gr.Column():
            source = gr.Radio(sources, value="Video", label="Source")
            video = gr.Video(label="Video to watch", sources=["upload"])
            sample = gr.Dropdown(list(samples), label="Sample to watch", value=None, visible=bool(samples))
            webcam = gr.Image(
                label="Webcam",
                sources=["webcam"],
                streaming=True,
                visible=False,
                webcam_options=gr.WebcamOptions(mirror=False, constraints={"video": {"width": 640, "height": 480}}),
            )
            address = gr.Textbox(label="Address of the stream", placeholder="rtsp://", max_lines=1, visible=False)
            method = gr.Dropdown(streams.methods, value=preferred, label="Live method")
            ratio = gr.Slider(0.01, 1, 0.1, step=0.01, label="Live retention ratio")
            with gr.Row():
                watch_it = gr.Button("Watch", variant="primary")
                stop = gr.Button("Stop")
        with gr.Column():
            held = gr.HTML()
            question = gr.Textbox(label="Question about the stream", lines=3, max_lines=8)
            ask = gr.Button("Ask now", variant="primary")
            answer = gr.Textbox(label="Answer", lines=3, interactive=False)
            problem = gr.HTML()

    def watch(
        source: str, video: str | None, address: str | None, method: str, ratio: float, request: gr.Request
    ) -> Iterator[str]:
        """How it stands, twice a second until it ends; the session ends with the page that shows it."""
        visitor = str(request.session_hash)
        pruner = REGISTRY[method](retention_ratio=ratio)
        try:
            if source == "Address":
                watched = streams.start(visitor, pruner, address=(address or "").strip())
            else:
                watched = streams.start(visitor, pruner, video=(video or "") if source == "Video" else None)
        except Refused as error:
            yield refused(error)
            return
        try:
            while watched.running:
                yield shown(watched)
                watched.wait(STEP)
            yield shown(watched)
        finally:
            watched.stop()

    def shown(watched: Watched) -> str:
        """The newest frame, and what is held."""
        picture, image = watched.picture, ""
        if picture is not None and watched.source is not None:  # a webcam shows itself
            small = Image.fromarray(picture)
            small.thumbnail(SHOWN)
            image = inline(small, "the newest frame of the stream")
        return f'{image}<p class="held">{html.escape(watched.state())}</p>'

    def answer_now(text: str | None, request: gr.Request) -> Iterator[tuple[str, str]]:
        """The answer, piece by piece."""
        said = ""
        try:
            streams.visitors.check_question(text := text or "")
            watched = streams.of(str(request.session_hash))
            if not watched.asking.acquire(blocking=False):
                raise Refused("one question at a time: the one before is not answered yet")
            with contextlib.ExitStack() as ends:
                ends.callback(watched.asking.release)
                pieces = watched.ask(text)
                ends.callback(pieces.cancel)  # if the tab is closed meanwhile
                yield "", ""
                for piece in pieces:
                    said += piece
                    yield said, ""
        except (ValueError, RuntimeError) as error:
            yield said, refused(error)

    def frame(sent: Any, request: gr.Request) -> None:
        """A picture of the webcam, as the browser sends it."""
        if (picture := decoded(sent, streams.visitors.limits.pixels)) is not None:
            streams.add(str(request.session_hash), picture)

    at_once: dict[str, Any] = {"concurrency_limit": None, "api_visibility": "private"}
    watch_it.click(watch, [source, video, address, method, ratio], held, show_progress="hidden", **at_once)
    gr.on([ask.click, question.submit], answer_now, question, [answer, problem], show_progress="hidden", **at_once)
    webcam.stream(frame, webcam, None, preprocess=False, stream_every=1 / FPS, show_progress="hidden", **at_once)
    stop.click(streams.left, None, None, **at_once)
    sample.change(samples.get, sample, [video, question], **at_once)
    source.change(
        lambda chosen: [gr.update(visible=chosen == name) for name in ("Video", "Video", "Webcam", "Address")],
        source,
        [video, sample, webcam, address],
        **at_once,
    )


def decoded(sent: Any, pixels: int) -> Image.Image | None:
    """A picture in what a browser sends of its webcam; None where there is none, or one of more pixels."""
    url = sent.get("url") if isinstance(sent, dict) else None
    if not isinstance(url, str) or not url.startswith("data:image/"):
        return None
    try:
        with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])), formats=("JPEG", "PNG", "WEBP")) as image:
            return image.convert("RGB") if image.width * image.height <= pixels else None
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
