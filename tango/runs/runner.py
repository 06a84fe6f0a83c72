"""Runs samples, one by one or in batches: taken from the journal if finished before, retried once if they fail, always
recorded.
"""

import gc
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

import torch
from pydantic import Field

from tango.inference.chat import Answer
from tango.inference.timing import Timing, peak_memory
from tango.runs.journal import Journal
from tango.runs.reading import checked

log = logging.getLogger(__name__)
TRIES = 2
NotNegative = Annotated[float, Field(ge=0)]


@dataclass
class Record:
    """One finished sample, as journals and results files hold it. Times in seconds, memory in units of 2**30 bytes.

    failure: why it has no answer; None if it has one. timing: None where nothing was generated, and in runs of batches.
    wall_s: from the end of the sample before to the end of this one; in a batch, an equal share. cold: the first sample
    that its process computed, or one of the first batch. rank: the process that computed it.
    """

    task: str
    doc_id: int | str
    repeat: int
    response: Any
    failure: str | None
    tries: Annotated[int, Field(ge=1)]
    timing: dict[str, Any] | None
    tokens: dict[str, int | float]
    videos: list[dict[str, Any]]
    rank: int
    wall_s: NotNegative
    peak_mem_gb: NotNegative
    cold: bool
    resumed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, as the journal stores them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass
class Sample:
    """One request: who it is, the key of its answer, and how to compute it.

    batch: what samples have in common that may be computed together; None: computed alone. messages: the conversation.
    """

    task: str
    doc_id: int | str
    repeat: int
    key: str
    compute: Callable[[], Answer]
    batch: Any = None
    messages: Callable[[], Any] = list


class Runner:
    """Computes samples in order and remembers their records.

    Args:
        journal: where finished samples are kept; None keeps them in memory only.
        rank: which process this is.
        size: how many samples are computed together, by `together`, which answers samples of one `batch`. Where it
            fails, each is computed alone.
    """

    def __init__(
        self,
        journal: Journal | None = None,
        rank: int = 0,
        size: int = 1,
        together: Callable[[Sequence[Sample]], Sequence[Answer]] | None = None,
    ) -> None:
        self.journal, self.rank, self.size, self.together = journal, rank, size, together
        self.records: list[Record] = []
        self._cold = True
        self._last: float | None = None  # when the sample before ended

    def run(self, samples: Iterable[Sample]) -> Iterator[Record]:
        """Yield one record a sample, in order."""
        self._last = time.perf_counter()
        rest = iter(samples)
        while batch := list(itertools.islice(rest, self.size)):
            yield from self._answers(batch)

    def answer(self, sample: Sample) -> Record:
        """The record of a sample; a failed one has `failure` set and no response."""
        return next(self._answers([sample]))

    def _answers(self, samples: Sequence[Sample]) -> Iterator[Record]:
        last = self._last or time.perf_counter()
        found = [(sample, self._finished(sample)) for sample in samples]
        made = self._together([sample for sample, record in found if record is None])
        share = (time.perf_counter() - last) / max(1, len(made))
        for sample, record in found:
            if record is None:
                record = made.get(sample.key) or self._compute(sample)
                record.wall_s = share if sample.key in made else time.perf_counter() - last
                if self.size > 1:
                    record.timing = None
                if self.journal is not None:
                    self.journal.append(sample.key, record.to_dict())
            last = self._last = time.perf_counter()
            self.records.append(record)
            yield record

    def _together(self, samples: Sequence[Sample]) -> dict[str, Record]:
        """The records, by key, of samples that were computed together."""
        made: dict[str, Record] = {}
        for batch, alike in itertools.groupby(samples, key=lambda sample: sample.batch):
            group = list(alike)
            if self.together is None or batch is None or len(group) < 2:
                continue
            cold, self._cold = self._cold, False
            try:
                answers = self.together(group)
            except Exception as error:
                log.warning("%d samples are computed one by one, for together: %s", len(group), error)
                _make_room()
                continue
            for sample, answer in zip(group, answers, strict=True):
                made[sample.key] = self._record(sample, answer, 1, cold)
        return made

    def _finished(self, sample: Sample) -> Record | None:
        entry = self.journal.entries.get(sample.key) if self.journal is not None else None
        if self.journal is None or entry is None or entry.get("failure") is not None:  # what failed is tried again
            return None
        try:
            record: Record = checked(Record, entry, "", strict=False)
            if record.response is None:
                raise ValueError("neither a response nor a failure")
            checked(dict[str, NotNegative], record.tokens, "tokens", strict=False)
            if record.timing is not None:
                checked(Timing, record.timing, "timing", strict=False)
        except ValueError as error:
            log.warning("%s %s is computed anew: its entry in the journal has %s", sample.task, sample.doc_id, error)
            return None
        record.resumed = True
        return record

    def _compute(self, sample: Sample) -> Record:
        cold, self._cold = self._cold, False
        failure = ""
        for tries in range(1, TRIES + 1):
            try:
                answer = sample.compute()
            except Exception as error:
                failure = f"{type(error).__name__}: {error}"
                message = "%s %s failed (try %d of %d): %s"
                log.warning(message, sample.task, sample.doc_id, tries, TRIES, failure, exc_info=tries == TRIES)
                cold = True  # whatever it left behind, the next try is no ordinary sample
            else:
                return self._record(sample, answer, tries, cold)
            _make_room()  # out here, where the error and what it holds are gone
        return self._record(sample, Answer(None, None, {}, []), TRIES, cold, failure)

    def _record(self, sample: Sample, answer: Answer, tries: int, cold: bool, failure: str | None = None) -> Record:
        return Record(
            task=sample.task,
            doc_id=sample.doc_id,
            repeat=sample.repeat,
            failure=failure,
            tries=tries,
            rank=self.rank,
            wall_s=0.0,
            peak_mem_gb=peak_memory(),
            cold=cold,
            **vars(answer),  # response, timing, tokens, videos
        )


def _make_room() -> None:
    """Free what a failed try held, so that running out of memory once does not fail the rest."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
