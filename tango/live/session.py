"""Live video on a model: frames come, segments of them are pruned as they close, questions are answered at any moment.

One thread encodes frames and answers questions, in the order in which they came; the lock of the pruner's attachment
is the one lock on the model. A question sees every frame that was added before it. Callers only put things into a
queue, and read what was published: `history`, `status`, `problems`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import resource
import sys
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tango.inference.chat import PixelLimits
from tango.inference.names import called
from tango.inference.prompt import check_text
from tango.live.answer import Answer
from tango.live.encoder import Encoder, as_picture
from tango.live.layout import layout_of
from tango.live.memory import POLICIES, Held, Holding
from tango.live.writer import Writer
from tango.models import attach, family_of, unwrapped
from tango.pruners.base import Pruner

log = logging.getLogger(__name__)

WAITING = 16  # frames that may wait to be encoded
LEAST_BUDGET = 16


@dataclass(frozen=True)
class Status:
    """Counts of a session so far.

    frames: encoded; skipped: nearer to the one before than 1 / fps; dropped: come while too many waited; failed: that
    could not be encoded; waiting: not encoded yet. tokens: entries of the language model that closed segments take.
    seconds: of the newest frame on the stream's clock. memory: bytes resident in RAM.
    """

    frames: int
    skipped: int
    dropped: int
    failed: int
    waiting: int
    tokens: int
    seconds: float | None
    memory: int


class Live:
    """A stream of frames that a model can be asked about. Use as a context; the model is as before at its end.

    Args:
        model, processor: as transformers loads them; LLaVA-OneVision, Qwen2.5-VL or Qwen3-VL.
        pruner: the method, as Tango(retention_ratio=0.1); it prunes each segment as it closes.
        budget: the most tokens that the language model ever sees of the stream, times as text included. A quarter is
            for the open segment. What is closed is thinned, when it has grown beyond the rest, to three quarters of it,
            so that the start of the prompt changes seldom.
        fps: take no more frames a second; None takes every one.
        window: frames (of the tower: two sampled ones for Qwen) after which a segment is closed in any case.
        policy: which segments are thinned: "fade" leaves tokens a frame in proportion to one over their age, "oldest"
            begins with the oldest, "even" thins all alike.
        limits: how large frames are for models that take any size (Qwen's).

    Tango with its own segmentation closes a segment where no later frame can move its end, so that an answer about a
    clip of which nothing was thinned is that of generate() under the same method. Other methods look at whole clips:
    for them that holds up to `window` frames, and longer streams are pruned a window at a time.

    Raises:
        ValueError: a setting that cannot be. TypeError, RuntimeError, ImportError: as tango.models.attach().
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        pruner: Pruner,
        *,
        budget: int = 2048,
        fps: float | None = 1.0,
        window: int = 64,
        policy: str = "fade",
        limits: PixelLimits | None = None,
    ) -> None:
        for name, value, least in (("budget", budget, LEAST_BUDGET), ("window", window, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r}: give a whole number of at least {least}")
        if fps is not None and not 0 < fps < math.inf:
            raise ValueError(f"fps={fps!r}: give frames a second above 0, or None for every frame")
        if policy not in POLICIES:
            raise ValueError(f"policy={policy!r}: use one of {', '.join(POLICIES)}")
        self.model, self.processor, self.pruner = unwrapped(model), processor, pruner
        self.budget, self.fps, self.window, self.policy = budget, fps, window, policy
        self.limits = limits or PixelLimits()
        self.problems: deque[str] = deque(maxlen=100)
        self.history: tuple[Held, ...] = ()
        self._context = contextlib.ExitStack()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Live:
        if self._thread is not None:
            raise RuntimeError("a Live session is entered once: make another for another stream")
        module = family_of(self.model)
        decoder = module.language_model(self.model)
        check_pruner(self.pruner, decoder)
        self._context.enter_context(attach(self.model, self.pruner))
        try:
            self._seam = self.model.generate.seam
            self._layout = layout_of(self._seam.family, self.model, self.processor)
            self._encoder = Encoder(self.model, self.processor, self._seam, self._layout.samples, self.limits)
            self._holding = Holding(
                self._seam,
                self._layout.samples,
                self._layout.cost,
                self.budget,
                self.window,
                self.policy,
                self._problem,
            )
            self._writer = Writer(self.model, decoder, self._layout, self.processor.tokenizer)
            most = self._layout.most_positions
            if self.budget >= most:
                said = called("budget=", str(self.budget))
                raise ValueError(f"{said}: the language model has positions for {most}; give a lower one")
        except BaseException:
            self._context.close()
            raise
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._room = threading.Condition()  # guards the counts below, and is told when a frame is done
        self._waiting = self._frames = self._skipped = self._dropped = self._failed = 0
        self._newest: float | None = None  # on the caller's clock
        self._closed = False
        self._start: float | None = None  # the first frame's time
        self._thread = threading.Thread(target=self._work, name="tango-live", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._queue.put(None)
        assert self._thread is not None
        self._thread.join()
        self._context.close()
        del self._encoder, self._holding, self._writer

    # -- what callers do -------------------------------------------------------------------------------------------

    def add(self, frame: Any, time: float, wait: bool = False) -> bool:
        """Hand over a frame; returns whether it was taken: not if it came too soon after another, or too many wait.

        Args:
            frame: (height, width, 3) uint8 RGB, an array or a tensor; it is copied.
            time: seconds on any clock that runs forward.
            wait: until there is room for it, instead of dropping it.

        Raises:
            ValueError: no such picture, or a time that is not after the one before. The session goes on.
            RuntimeError: outside the `with` block.
        """
        self._check_open()
        picture = as_picture(frame)
        time = float(time)
        if not math.isfinite(time):
            raise ValueError(f"a frame's time is {time}: give finite seconds")
        with self._room:
            last = self._newest
            if last is not None and time <= last:
                raise ValueError(f"a frame at {time} s came after one at {last} s: times must rise")
            if last is not None and self.fps is not None and time - last < (1 - 1e-3) / self.fps:
                self._skipped += 1
                return False
            while wait and self._waiting >= WAITING and not self._closed:
                self._room.wait(0.1)
            if self._waiting >= WAITING:
                self._dropped += 1
                return False
            self._newest, self._waiting = time, self._waiting + 1
            self._queue.put((torch.from_numpy(picture.copy()).permute(2, 0, 1), time))
        return True

    def ask(self, question: str, max_new_tokens: int = 64, follows: Answer | None = None) -> Answer:
        """Ask about all that was added before: iterate over what comes back for the text as it is written.

        Greedy decoding, with the repetition penalty of the checkpoint's generation settings. `follows`: an earlier
        answer, whose conversation this question goes on; it stands after the stream as it is now. Else it stands alone.

        Raises:
            ValueError: no question, no length, no answer to follow, or no frame was added yet. RuntimeError: outside
                the `with` block.
        """
        self._check_open()
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"a question is some text, got {question!r}")
        check_text(question)
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens!r}: give a whole number of at least 1")
        if follows is not None and not isinstance(follows, Answer):
            raise ValueError(f"follows={follows!r}: give what an earlier ask() returned, or None")
        if self._newest is None:
            raise ValueError("no frame has come yet: add one before you ask")
        answer = Answer(question, max_new_tokens, follows)
        self._queue.put(answer)
        return answer

    def wait(self) -> None:
        """Until every frame that was added is encoded."""
        with self._room:
            while self._waiting and self._thread is not None and self._thread.is_alive():
                self._room.wait(0.1)

    @property
    def status(self) -> Status:
        """Counts so far."""
        with self._room:
            seconds = None if self._newest is None or self._start is None else self._newest - self._start
            tokens = sum(held.tokens for held in self.history if held.final is not None)
            counts = self._frames, self._skipped, self._dropped, self._failed, self._waiting
            return Status(*counts, tokens, seconds, resident())

    def _check_open(self) -> None:
        if self._thread is None or self._closed:
            raise RuntimeError("a Live session takes frames and questions inside `with Live(..) as video:` only")

    # -- the session's thread --------------------------------------------------------------------------------------

    def _work(self) -> None:
        # What is worked out on the host stays there, also under torch.set_default_device("cuda").
        with torch.inference_mode():
            while (job := self._queue.get()) is not None and not self._closed:
                if isinstance(job, Answer):
                    self._answer(job)
                else:
                    self._take(*job)
        with contextlib.suppress(queue.Empty):
            while True:
                if isinstance(job, Answer):
                    job.end(RuntimeError("the session ended before this question was answered"))
                job = self._queue.get_nowait()

    def _problem(self, sentence: str) -> None:
        if sentence not in self.problems:
            self.problems.append(sentence)
            log.warning("%s", sentence)

    def _take(self, picture: Tensor, time: float) -> None:
        failed = False
        try:
            self._start = time if self._start is None else self._start
            unit = self._encoder.add(picture, time - self._start)
            if unit is not None:
                self._holding.add(unit)
                self.history = self._holding.held()
        except Exception as error:  # whatever a processor, a tower or a method has against one frame
            failed, self._encoder.pending = True, []
            self._holding.failed()
            self._problem(f"the frame at {time} s was left out: {type(error).__name__}: {error}")
        finally:
            with self._room:
                self._frames, self._failed = self._frames + (not failed), self._failed + failed
                self._waiting -= 1
                self._room.notify_all()

    def _answer(self, answer: Answer) -> None:
        answer.begin()
        try:
            with self._seam.lock:
                newest = self._holding.newest(self._encoder.rest())
                self._writer.write(answer, self._holding.segments, newest, self._holding.grid, lambda: self._closed)
        except BaseException as error:
            self._writer.forget()  # it may have failed within the cache
            answer.end(error)
        else:
            answer.end()


def check_pruner(pruner: Any, decoder: Any) -> None:
    """Turn away what attach() would take and a stream cannot have."""
    if isinstance(pruner, Pruner) and pruner.in_llm(decoder.config.num_hidden_layers) is not None:
        raise ValueError(
            f"{pruner.name} as it is set prunes inside the language model, for one question at a time, and a stream's "
            "cache serves all questions; use a method that prunes before it, or unset pruned_layer"
        )
    if isinstance(pruner, Pruner) and pruner.tower_reuse == "stc":
        raise ValueError("tower_reuse='stc' is for clips, and a stream's frames come one at a time; use 'pixels'")
    if "sliding_attention" in (getattr(decoder.config, "layer_types", None) or ()):
        raise ValueError("no live video with a language model of sliding windows; unset use_sliding_window")


def resident() -> int:
    """Bytes of this process in RAM now; where the system does not say, the most so far."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
