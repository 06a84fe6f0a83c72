"""`tango app`: the same as `tango ask` in a browser (tango.app.served)."""

import importlib.util
import signal
import threading
from typing import Annotated

import typer

from tango.cli import common
from tango.cli.answering import check_model, frames_for, input_errors, load
from tango.cli.common import InputError, console, steps

EXAMPLES = (
    "tango app",
    "tango app --model llava-hf/llava-onevision-qwen2-7b-ov-hf --port 8000",
)


def app(
    model: common.Model = None,
    frames: common.Frames = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=1, max=65535, show_default="the first free one from 7860 on")] = None,
    share: Annotated[bool, typer.Option("--share", help="Also at a public address, through Gradio's servers.")] = False,
    max_megabytes: Annotated[int, typer.Option(min=1, help="Largest file of a visitor.")] = 100,
    max_seconds: Annotated[int, typer.Option(min=1, help="Longest video of a visitor, and longest stream.")] = 600,
    max_streams: Annotated[int, typer.Option(min=1, help="Visitors that may watch a stream at once.")] = 4,
    addresses: Annotated[
        bool, typer.Option("--addresses", help="Visitors may name http and rtsp addresses, which this machine opens.")
    ] = False,
    device: common.Device = None,
    dtype: common.Dtype = "auto",
) -> None:
    """Ask about videos in a browser: both answers side by side, with tokens, times and the frames as they were pruned.

    It goes on until it is interrupted. Visitors share one model and are answered one after the other.
    """
    if importlib.util.find_spec("gradio") is None:
        raise InputError('tango app needs Gradio; install it with: pip install "tango-vlm[app]"')
    with steps(3) as step:
        step("starting up")
        check_model(model)
        step("loading the model")
        checkpoint = load(model, device, dtype)
        step("starting the server")
        from tango.app import Limits, served

        limits = Limits(megabytes=max_megabytes, seconds=max_seconds, streams=max_streams)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    page = served(checkpoint, frames_for(frames, model), limits, host=host, port=port, share=share, addresses=addresses)
    with input_errors(), page as at:
        console().print(f"Tango is at {at} (Ctrl+C ends it)", highlight=False)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            console().print("ended")
