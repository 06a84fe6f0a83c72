"""Where the time of generate() goes: vision tower, rest of the prompt, prefill, decoding; alike for every method.

Nothing is changed in the model: hooks stand around the vision modules and before the language model's first call, and a
stopping criterion that never stops sees each token. A sample's life is then

    generate() starts | vision tower (ViT) | projector, pooling, pruning, splicing (Other) | language model (Prefill) |
    first token | further tokens (decoding) | generate() ends

On one GPU the marks are CUDA events; on several (a model spread out) the clock waits for all of them; on a CPU it is
perf_counter.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

GIB = 2**30


@dataclass(frozen=True)
class Timing:
    """One generate() call, in seconds; `new_tokens` counts decoding steps, the first token included."""

    vit_s: float
    other_s: float
    prefill_s: float
    decode_s: float
    generate_s: float
    new_tokens: int


@contextlib.contextmanager
def added(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add what is done while this is open to `seconds`, under a name."""
    began = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began


class Clock:
    """Marks moments on the device a model runs on; seconds between two marks may be asked for after wait()."""

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self.gpus = sorted({device for device in devices if device.type == "cuda"}, key=str)

    def mark(self) -> Any:
        """A moment: an event on the stream of a single GPU, else the host's clock after all devices."""
        if len(self.gpus) == 1:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self.gpus[0]))
            return event
        self.wait()
        return time.perf_counter()

    def wait(self) -> None:
        """Until all GPUs have done what they were asked."""
        for gpu in self.gpus:
            torch.cuda.synchronize(gpu)

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds from one mark to another."""
        return float(start.elapsed_time(end) / 1000 if len(self.gpus) == 1 else end - start)


class GenerationTimer:
    """Times generate() calls of one model. Use as a context; inside it, wrap every call in start() and stop().

    Args:
        vision: the modules whose time is the vision tower's.
        language: the language model; its first call of a generate() starts the prefill.

    An instance is itself a stopping criterion: pass it to generate() as a member of `stopping_criteria`.
    """

    def __init__(self, model: nn.Module, vision: Sequence[nn.Module], language: nn.Module) -> None:
        self.vision, self.language = list(vision), language
        self.clock = Clock(parameter.device for parameter in model.parameters())
        self._hooks = contextlib.ExitStack()
        self._reset()

    def _reset(self) -> None:
        self._start: Any = None
        self._vision: list[tuple[Any, Any]] = []
        self._entered: list[Any] = []
        self._prefill: Any = None
        self._tokens: list[Any] = []

    def __enter__(self) -> GenerationTimer:
        for module in self.vision:
            self._hooks.enter_context(module.register_forward_pre_hook(self._before_vision))
            self._hooks.enter_context(module.register_forward_hook(self._after_vision, always_call=True))
        self._hooks.enter_context(self.language.register_forward_pre_hook(self._before_language))
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()
        self._reset()

    def _before_vision(self, *_: Any) -> None:
        if self._start is not None:
            self._entered.append(self.clock.mark())

    def _after_vision(self, *_: Any) -> None:
        if self._entered:
            start = self._entered.pop()
            if not self._entered:  # a vision module inside another is not counted twice
                self._vision.append((start, self.clock.mark()))

    def _before_language(self, *_: Any) -> None:
        if self._start is not None and self._prefill is None:
            self._prefill = self.clock.mark()

    def __call__(self, input_ids: Tensor, scores: Any = None, **_: Any) -> Tensor:
        """Mark a token; never stops. input_ids (B, n) as generate() passes them."""
        self._tokens.append(self.clock.mark())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    def start(self) -> None:
        """Call right before generate(); forgets a call that failed."""
        self._reset()
        self.clock.wait()
        self._start = self.clock.mark()

    def stop(self) -> Timing:
        """Call right after generate() and get where its time went.

        Raises:
            RuntimeError: generate() made no token or never called the language model, so there is nothing to tell
                apart.
        """
        end = self.clock.mark()
        self.clock.wait()
        if self._prefill is None or not self._tokens:
            raise RuntimeError(
                f"generate() {'called' if self._prefill is not None else 'never called'} the language model and made "
                f"{len(self._tokens)} tokens known to the timer; pass it in stopping_criteria, and the language model "
                "that generate() runs"
            )
        between = self.clock.seconds
        vit = sum(between(a, b) for a, b in self._vision)
        timing = Timing(
            vit_s=vit,
            other_s=between(self._start, self._prefill) - vit,
            prefill_s=between(self._prefill, self._tokens[0]),
            decode_s=between(self._tokens[0], self._tokens[-1]),
            generate_s=between(self._start, end),
            new_tokens=len(self._tokens),
        )
        self._reset()
        return timing


def peak_memory() -> float:
    """Most memory this process has held so far, in GiB: of its GPUs as PyTorch counts it, or else resident in RAM."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())) / GIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / GIB


class StopAt:
    """A stopping criterion that ends a row once its new text holds one of the given strings.

    Args:
        decode: token ids (n,) to text.
        until: the strings; empty ones are ignored.

    `ended` has how many new tokens a row had when it ended so.
    """

    def __init__(self, decode: Callable[[Tensor], str], until: Sequence[str]) -> None:
        self.decode, self.until = decode, [text for text in until if text]
        self.ended: dict[int, int] = {}
        self._prompt: int | None = None

    def __call__(self, input_ids: Tensor, scores: Any = None, **_: Any) -> Tensor:
        """Which rows of input_ids (B, n) have ended, (B,) bool."""
        if self._prompt is None:  # the first call comes after one token, whether or not the prompt's ids are passed on
            self._prompt = input_ids.shape[1] - 1
        texts = [self.decode(row[self._prompt :]) for row in input_ids]
        stop = [any(mark in text for mark in self.until) for text in texts]
        for row in (row for row, over in enumerate(stop) if over):
            self.ended.setdefault(row, input_ids.shape[1] - self._prompt)
        return torch.tensor(stop, dtype=torch.bool, device=input_ids.device)

    def cut(self, text: str) -> str:
        """The text before the first of the strings."""
        return text[: min((text.find(mark) for mark in self.until if mark in text), default=len(text))]
