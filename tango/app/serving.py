"""Starts and ends the app's server: Gradio's, without what it does for itself, behind door.py."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from tango.app.door import Door, events_of
from tango.app.page import CSS, build
from tango.app.streams import Streams
from tango.app.visitors import Limits, Visitors
from tango.inference.checkpoints import Checkpoint

WAITING = 50  # visitors in the queue; who comes after them is told so
FONTS = ["system-ui", "sans-serif"]


@contextlib.contextmanager
def served(
    checkpoint: Checkpoint,
    frames: int,
    limits: Limits | None = None,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    addresses: bool = False,
) -> Iterator[str]:
    """The app's address, while it is served.

    Args:
        checkpoint: what tango.inference.checkpoints.load() returned.
        frames: sampled from each video.
        limits: of what visitors hand in; None: those of Limits().
        host: 127.0.0.1 for this machine alone, 0.0.0.0 for all that reach it.
        port: None takes the first free one from 7860 on.
        share: also through Gradio's servers, at an address that is public.
        addresses: visitors may name http(s) and rtsp(s) addresses to watch, which this machine then opens.

    Raises:
        OSError: the port is taken.
    """
    limits = limits or Limits()
    largest = limits.megabytes * 1_000_000
    with tempfile.TemporaryDirectory(prefix="tango-app-") as folder:
        folder = os.path.realpath(folder)
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        title = Path(checkpoint.described["pretrained"]).name
        visitors = Visitors(checkpoint, frames, limits)
        streams = Streams(visitors, addresses)
        page = build(visitors, streams, title, Path(folder)).queue(max_size=WAITING)
        events = events_of(page.get_config_file())
        try:
            _, local, public = page.launch(
                server_name=host,
                server_port=port,
                share=share,
                max_file_size=largest,
                app_kwargs={"middleware": [Middleware(Door, folder=folder, largest=largest, events=events)]},
                theme=gr.themes.Default(font=FONTS, font_mono=["monospace"]),
                css=CSS,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                mcp_server=False,
                ssr_mode=False,
                pwa=False,
                quiet=True,
                prevent_thread_lock=True,
            )
            yield public or local
        finally:
            streams.close()
            page.close(verbose=False)
