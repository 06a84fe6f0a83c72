"""Streams that visitors watch: of each visitor one session of tango.live, which ends and frees all when the tab closes.

A session has the model to itself: a copy that shares every weight, since a method is attached to a model, and to one
model only one.
"""

import contextlib
import copy
import itertools
import re
import threading
import time
from typing import Any

import gradio as gr
import numpy as np

from tango.app.visitors import Refused, Visitors, told
from tango.live import Answer, Live
from tango.live.sources import Source
from tango.pruners import REGISTRY, Pruner
from tango.visualize.runs import ANSWER_TOKENS

FPS = 1.0  # frames a second that are looked at
BUDGET = 2048  # tokens, the default of `tango live`
PATIENCE = 20.0  # seconds without a frame after which an address has ended
ADDRESS = re.compile(r"(https?|rtsps?)://\S+", re.IGNORECASE)
NOTHING = "nothing is watched: press Watch first"


class Watched:
    """One visitor's session, in a thread that ends with it.

    source: None takes what add() is given. seconds: after which it ends, whatever comes.
    """

    def __init__(self, model: Any, processor: Any, pruner: Pruner, source: Source | None, seconds: float) -> None:
        self.source, self.until = source, time.monotonic() + seconds
        self.picture: Any = None  # the newest frame
        self.said = ""  # why nothing more comes
        self.asking = threading.Lock()
        self._video: Live | None = None
        self._stopped, self._begun = threading.Event(), threading.Event()
        self._thread = threading.Thread(
            target=self._watch, args=(model, processor, pruner), name="tango-watched", daemon=True
        )
        self._thread.start()
        self._begun.wait()

    @property
    def running(self) -> bool:
        """Whether it holds anything."""
        return self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Until it has ended, so many seconds at most."""
        self._thread.join(seconds)

    def stop(self) -> None:
        """End it, and wait until it has, but for an address that does not answer."""
        self._stopped.set()
        if self.source is not None:
            self.source.stop()
        self._thread.join(5)

    def add(self, picture: Any) -> None:
        """A frame that has come just now."""
        video = self._video
        if video is not None and not self._stopped.is_set():
            with contextlib.suppress(ValueError, RuntimeError):  # a picture that cannot be; or it has just ended
                video.add(np.asarray(picture), time.monotonic())

    def ask(self, question: str) -> Answer:
        """The answer, as it is written; Refused if none can come."""
        video = self._video
        if video is None:
            raise Refused(NOTHING)
        try:
            return video.ask(question, ANSWER_TOKENS)
        except (ValueError, RuntimeError) as error:
            raise Refused(str(error)) from error

    def state(self) -> str:
        """What is held, in a line."""
        video = self._video
        if video is None:
            return self.said
        status = video.status
        still_open = sum(held.frames for held in video.history if held.final is None)
        line = f"{status.seconds or 0:.0f} s, {status.frames} frames in, {status.tokens} of {BUDGET} tokens held"
        line += f" and {still_open} frames of an open segment"
        line += f", {status.dropped} frames dropped" if status.dropped else ""
        return f"{line}{'; ' if self.said else ''}{self.said}"

    def _watch(self, model: Any, processor: Any, pruner: Pruner) -> None:
        why = "stopped"
        try:
            with Live(model, processor, pruner, budget=BUDGET, fps=FPS) as self._video:
                self._begun.set()
                for picture, second in self.source or ():
                    if time.monotonic() > self.until or self._stopped.is_set():
                        break
                    self._video.add(picture, second)
                    self.picture = picture
                else:
                    self.said = "" if self.source is None else "the video has ended; you may still ask"
                if not self._stopped.wait(max(0.0, self.until - time.monotonic())):
                    why = "the time for one visitor is over; press Watch to go on"
        except (ValueError, RuntimeError, OSError) as error:
            if not self._stopped.is_set():  # else the source ended because it was told to, perhaps before a frame came
                why = told(error, self.source.name) if self.source is not None else str(error)
        finally:
            self.said, self._video, self.picture = why, None, None
            self._begun.set()


class Streams:
    """The sessions of all visitors. `methods`: those that can watch a stream with this model; none: no model can.

    addresses: whether visitors may name what this machine is to open.
    """

    def __init__(self, visitors: Visitors, addresses: bool) -> None:
        self.visitors, self.addresses = visitors, addresses
        self.processor = visitors.checkpoint.processor
        self._model = sharing(visitors.checkpoint.model)
        self._of: dict[str, Watched] = {}
        self._lock = threading.Lock()
        self.methods = [name for name in visitors.methods if self._fits(REGISTRY[name]())]

    def _fits(self, pruner: Pruner) -> bool:
        try:
            with Live(self._model, self.processor, pruner, budget=BUDGET):
                return True
        except ValueError:
            return False

    def start(self, visitor: str, pruner: Pruner, video: str | None = None, address: str | None = None) -> Watched:
        """Watch a file, an address, or with neither what is added; ends what this visitor watched before.

        Raises:
            Refused: a file or an address that may not or cannot be watched, or too many watch already.
        """
        source, limits = None, self.visitors.limits
        if address is not None:
            if not self.addresses:
                raise Refused("addresses cannot be watched here: the app was started without --addresses")
            if not ADDRESS.fullmatch(address):
                raise Refused("that is no address: one begins with http://, https://, rtsp:// or rtsps://")
            source = Source(address, FPS, patience=PATIENCE)
        elif video is not None:
            self.visitors.check_video(video)
            source = Source(video, FPS)
        with self._lock:
            self.end(visitor)
            self._of = {name: watched for name, watched in self._of.items() if watched.running}
            if len(self._of) >= limits.streams:
                raise Refused(f"{len(self._of)} visitors watch streams already, as many as may; try again later")
            self._of[visitor] = Watched(sharing(self._model), self.processor, pruner, source, limits.seconds)
            return self._of[visitor]

    def of(self, visitor: str) -> Watched:
        """What a visitor watches; Refused if nothing."""
        watched = self._of.get(visitor)
        if watched is None:
            raise Refused(NOTHING)
        return watched

    def add(self, visitor: str, picture: Any) -> None:
        """A picture of a visitor's webcam, which is left out unless they watch that."""
        watched = self._of.get(visitor)
        if watched is not None and watched.source is None:
            watched.add(picture)

    def end(self, visitor: str) -> None:
        """End what a visitor watches, if anything."""
        watched = self._of.pop(visitor, None)
        if watched is not None:
            watched.stop()

    def left(self, request: gr.Request) -> None:
        """End what is watched in a tab that was closed."""
        self.end(str(request.session_hash))

    def close(self) -> None:
        """End all."""
        for visitor in list(self._of):
            self.end(visitor)


def sharing(model: Any) -> Any:
    """A copy of a model that shares all of its weights."""
    return copy.deepcopy(model, {id(part): part for part in itertools.chain(model.parameters(), model.buffers())})
