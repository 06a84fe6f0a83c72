"""Live video on a model: frames come, segments of them are pruned as they close, questions are answered at any moment.

One thread encodes frames and answers questions, in the order in which they came; the lock of the pruner's attachment
is the one lock on the model. A question sees every frame that was added before it. Callers only put things into a
queue, and read what was published: `history`, `status`, `problems`.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import queue
import resource
import sys
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, resize

from tango.inference.chat import PixelLimits
from tango.inference.names import called
from tango.inference.prompt import check_text
from tango.live.answer import Answer
from tango.live.cuts import Cuts
from tango.live.layout import Layout, layout_of
from tango.live.memory import POLICIES, Held, Segment, levels, prune, thin
from tango.live.writer import Writer
from tango.models import attach, family_of, unwrapped
from tango.ops.segmentation import holitom_threshold, neighbour_similarity
from tango.pruners.base import Pruner
from tango.pruners.tango import Tango
from tango.pruners.video import VideoTokens

log = logging.getLogger(__name__)

WAITING = 16  # frames that may wait to be encoded
LEAST_BUDGET = 16
PARTS = ("features", "saliency", "segment_features", "frame_vectors", "keys")


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


@dataclass(frozen=True)
class Unit:
    """One frame as the tower sees it: its parts (1, ..), and the seconds at which it begins, is, and ends."""

    parts: dict[str, Any]
    begin: float
    time: float
    end: float


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
            self._reused = getattr(self._seam.family, "rule", None)  # with tower_reuse
            self._layout: Layout = layout_of(self._seam.family, self.model, self.processor)
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
        self._pending: list[tuple[Tensor, float]] = []  # sampled frames that are no frame of the tower yet
        self._open: list[Unit] = []
        self._segments: list[Segment] = []
        self._number = 0  # of the first open frame
        self._grid: Any = None
        self._size: list[int] | None = None
        self._cuts: Cuts | None = None
        self._thread = threading.Thread(target=self._work, name="tango-live", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._queue.put(None)
        assert self._thread is not None
        self._thread.join()
        self._context.close()
        self._writer.forget()
        self._open, self._segments, self._pending, self._reused = [], [], [], None

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
            self._pending.append((picture, time - self._start))
            if len(self._pending) == self._layout.samples:
                pending, self._pending = self._pending, []
                unit, self._reused = self._encode(pending)
                self._place(unit)
        except Exception as error:  # whatever a processor, a tower or a method has against one frame
            failed, self._pending = True, []
            if self._cuts is not None and self._cuts.frames != len(self._open):
                self._number += len(self._open)
                self._open, self._cuts = [], Cuts(self._cuts.threshold, self._cuts.window)
                self._problem("the open segment was lost with a frame that failed")
            self._problem(f"the frame at {time} s was left out: {type(error).__name__}: {error}")
        finally:
            with self._room:
                self._frames, self._failed = self._frames + (not failed), self._failed + failed
                self._waiting -= 1
                self._room.notify_all()

    def _encode(self, frames: list[tuple[Tensor, float]]) -> tuple[Unit, Any]:
        """One frame of the tower from its sampled ones, of which the last is repeated where some are missing.

        Also returns what the next frame may reuse of it, for the caller to hold where the stream goes on from it.
        """
        pictures = [self._sized(picture) for picture, _ in frames]
        times = [time for _, time in frames]
        missing = self._layout.samples - len(frames)
        stacked = torch.stack([*pictures, *pictures[-1:] * missing])
        options: dict[str, Any] = {"do_sample_frames": False, "return_tensors": "pt"}
        if self._layout.samples > 1:
            options["do_resize"] = False
        batch = self.processor.video_processor(videos=[stacked], **options)
        inputs = {
            name: value.to(self.model.device, self.model.dtype if value.is_floating_point() else None)
            for name, value in batch.items()
            if isinstance(value, Tensor)
        }
        reused, family = copy.copy(self._reused), self._seam.family
        with self._seam.lock, contextlib.nullcontext() if reused is None else family.following(reused):
            (parts,) = family.encode(inputs)
        grid = tuple(parts.pop("grid"))
        if self._grid is None:
            self._grid = grid
            self._plan(len(parts["features"][0]))
        parts.pop("timestamps", None)
        mean = (sum(times) + missing * times[-1]) / self._layout.samples
        return Unit(parts, times[0], mean, times[-1]), reused

    def _sized(self, picture: Tensor) -> Tensor:
        """A sampled frame (3, H, W) as large as the model is to see all of them, by the first one's shape."""
        if self._layout.samples == 1:  # the processor has one size for all
            return picture
        if self._size is None:
            processor = self.processor.video_processor
            factor = processor.patch_size * processor.merge_size
            self._size = list(self.limits.frame_size(2, picture.shape[1], picture.shape[2], factor))
        sized: Tensor = resize(picture, self._size, InterpolationMode.BICUBIC, antialias=True)
        return sized

    def _plan(self, tokens: int) -> None:
        """How many frames may be open, from how many tokens one has."""
        self._tail = self.budget // 4
        each = max(1, math.ceil(self.pruner.retention_ratio * tokens))
        if each > self._tail:
            self._problem(
                f"budget {self.budget} leaves {self._tail} tokens for the newest segment, and one frame keeps {each} "
                f"at ratio {self.pruner.retention_ratio:g}: it is pruned to fit; {4 * each} would do, or a lower ratio"
            )
        self._cuts = Cuts(own_threshold(self.pruner), max(1, min(self.window, self._tail // each)))

    def _place(self, unit: Unit) -> None:
        """A new frame: close what it closes, and thin what is held."""
        assert self._cuts is not None
        similarity = None
        if self._open:
            pair = torch.cat([self._open[-1].parts["features"], unit.parts["features"]])
            similarity = neighbour_similarity(pair)[0].cpu()
        self._open.append(unit)
        for size, final in self._cuts.add(similarity):
            closed, self._open = self._open[:size], self._open[size:]
            self._segments.append(self._close(closed, final))
            self._number += size
        room = self.budget - self._tail
        if sum(map(self._layout.cost, self._segments)) > room:
            self._segments = thin(self._segments, 0.75 * room, self.policy, self._layout.cost)
        self._publish()

    def _video(self, units: list[Unit]) -> tuple[VideoTokens, Tensor | None]:
        """Frames as the method sees them, and their extra (F, L, X)."""
        parts = {name: torch.cat([unit.parts[name] for unit in units]) for name in PARTS if name in units[0].parts}
        times = torch.tensor([unit.time for unit in units], dtype=torch.float64)
        extra = None
        if units[0].parts.get("extra") is not None and units[0].parts["extra"].shape[-1]:
            extra = torch.cat([unit.parts["extra"] for unit in units])
        return VideoTokens(**parts, grid=self._grid, timestamps=times, key=str(self._number)), extra

    def _close(self, units: list[Unit], final: bool) -> Segment:
        video, extra = self._video(units)
        return self._segment(units, levels(self._seam.pruner_for(self._grid), video, extra), final)

    def _segment(self, units: list[Unit], kept: Any, final: bool, level: int = 0) -> Segment:
        times = torch.tensor([[unit.begin, unit.time] for unit in units], dtype=torch.float64)
        span = units[0].begin, units[-1].end
        return Segment(self._number, *span, len(units), times, kept, level=level, final=final)

    def _publish(self) -> None:
        samples = self._layout.samples
        held = [
            Held(s.start, s.end, s.frames * samples, self._layout.cost(s), s.level, s.joined, s.final)
            for s in self._segments
        ]
        if self._open:
            count = len(self._open) * samples
            held.append(Held(self._open[0].begin, self._open[-1].end, count, 0, 0, 1, None))
        self.history = tuple(held)

    # -- answering -------------------------------------------------------------------------------------------------

    def _answer(self, answer: Answer) -> None:
        answer.begin()
        try:
            with self._seam.lock:
                tail = self._tail_segment()
                self._writer.write(answer, self._segments, tail, self._grid, lambda: self._closed)
        except BaseException as error:
            self._writer.forget()  # it may have failed within the cache
            answer.end(error)
        else:
            answer.end()

    def _tail_segment(self) -> Segment | None:
        """The open frames, with sampled ones that are no frame of the tower yet, pruned for one question."""
        units = [*self._open, *([self._encode(self._pending)[0]] if self._pending else [])]
        if not units:
            return None
        video, extra = self._video(units)
        pruner = self._seam.pruner_for(self._grid)
        found = self._segment(units, (prune(pruner, video, extra),), True)
        if (over := self._layout.cost(found) - self._tail) > 0:
            count = max(1, len(found.kept.frames) - over)
            found = self._segment(units, (prune(pruner, video, extra, count),), True)
            while self._layout.cost(found) > self._tail and count > 1:  # times as text
                count //= 2
                found = self._segment(units, (prune(pruner, video, extra, count),), True, level=1)
        return found


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


def own_threshold(pruner: Pruner) -> float | None:
    """The similarity at which a method cuts whose segments are pruned each by itself; None for all other methods."""
    if not isinstance(pruner, Tango) or pruner.segmentation != "holitom" or pruner.exact_budget:
        return None
    return holitom_threshold(pruner.retention_ratio, pruner.similarity_threshold)


def as_picture(frame: Any) -> Any:
    """A frame as an array (height, width, 3) uint8; ValueError for anything else."""
    try:
        picture = np.asarray(frame.cpu() if isinstance(frame, Tensor) else frame)
    except Exception as error:
        raise ValueError(f"a frame is a picture, not {type(frame).__name__}") from error
    if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape or picture.dtype != np.uint8:
        shape = f"{picture.dtype} {picture.shape}"
        raise ValueError(f"a frame is an array (height, width, 3) of uint8, RGB, got {shape}")
    return picture


def resident() -> int:
    """Bytes of this process in RAM now; where the system does not say, the most so far."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
