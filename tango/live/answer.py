"""An answer that is still being written: iterate over it for its text, piece by piece."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from typing import Any


class Answer:
    """What Live.ask() returns; made there alone, filled by the session's thread. follows: the answer before it, if any.

    Iterating gives the text as it comes, `text()` all of it. Both raise what went wrong: ValueError for a question that
    cannot be answered, with the reason. `cancel()` ends it early, and `done`
    says whether it is written; not reading it costs nothing.

    After the first piece: seconds_to_first since the question was put, waiting_s of these until its turn came, prompt:
    entries that the language model saw, reused: of these, those whose keys and values were held from before.
    """

    def __init__(self, question: str, max_new_tokens: int, follows: Answer | None = None) -> None:
        self.question, self.max_new_tokens, self.follows = question, max_new_tokens, follows
        self.prompt = self.reused = self.new_tokens = 0
        self.waiting_s = self.seconds_to_first = 0.0
        self.cancelled = self.done = False
        self._put, self._parts = time.perf_counter(), queue.Queue[Any]()
        self._text = ""
        self._error: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        while (part := self._parts.get()) is not None:
            if isinstance(part, BaseException):
                self._parts.put(part)  # for whoever asks again
                raise part
            yield part
        self._parts.put(None)

    def text(self) -> str:
        """The whole answer, once it is finished."""
        for _ in self:
            pass
        return self._text

    def cancel(self) -> None:
        """End it with what is written by now."""
        self.cancelled = True

    # -- the session's side ----------------------------------------------------------------------------------------

    def turns(self) -> list[tuple[str, str]]:
        """Questions and answers before this one, oldest first; ValueError where one of them was not answered."""
        found: list[tuple[str, str]] = []
        earlier = self.follows
        while earlier is not None:
            if not earlier.done or earlier._error is not None:
                raise ValueError(f"the question {earlier.question!r}, which this one follows, was not answered")
            found.insert(0, (earlier.question, earlier._text))
            earlier = earlier.follows
        return found

    def begin(self) -> None:
        """Its turn has come."""
        self.waiting_s = time.perf_counter() - self._put

    def write(self, text: str) -> None:
        """Add a piece."""
        if text:
            self._text += text
            self._parts.put(text)

    def first(self) -> None:
        """The first token is known."""
        self.seconds_to_first = time.perf_counter() - self._put

    def end(self, error: BaseException | None = None) -> None:
        """No more comes, or it failed."""
        self._parts.put(error)
        self._error, self.done = error, True
