"""Asks the unpruned model and pruned ones the same questions about the same videos, and compares answer with answer."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from tango.inference.asking import conversation
from tango.inference.chat import Answer, Chat
from tango.inference.encoded import Encodings
from tango.pruners import REGISTRY, Pruner
from tango.runs.run import EvaluationRun
from tango.runs.runner import Record, Sample
from tango.runs.settings import MethodSettings

WHOLE = REGISTRY["uniform"](retention_ratio=1)  # keeps every token: to the bit what the model answers by itself


@dataclass(frozen=True)
class Clip:
    """A video file and the questions about it."""

    video: str
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """One question answered by a pruned model.

    answer, unpruned: what it and the unpruned model say. kl: Kullback-Leibler divergence of the distribution of the
    first token from the unpruned model's, in nats. kept: share of the video's tokens, in the mean over the language
    model's layers. failure: why there is no answer; the other fields then say nothing.
    """

    video: str
    question: str
    answer: str = ""
    unpruned: str = ""
    kl: float = 0.0
    kept: float = 0.0
    failure: str | None = None

    @property
    def same(self) -> bool:
        """Whether both answers are the same text but for case, spaces and what stands at their ends."""
        return plain(self.answer) == plain(self.unpruned)


def plain(text: str) -> str:
    """A text in lower case, with single spaces, without punctuation at its ends."""
    return " ".join(text.lower().split()).strip(" .,:;!?*\"'()")


def compare(
    chat: Chat,
    clips: Sequence[Clip],
    pruners: Sequence[Pruner],
    *,
    journal: Path,
    new_tokens: int = 32,
    step: Callable[[str], None] = lambda name: None,
) -> list[list[Asked]]:
    """Ask all questions about all clips of the unpruned model and with each pruner: a list a pruner, in their order.

    Videos are taken one after another. The vision tower runs once a video for the unpruned model, and once for each
    kind of saliency that the pruners ask for; answers are to the bit those of separate runs.

    Args:
        chat: of the model; its pruner is set here.
        journal: folder of finished answers. What stopped goes on there: an answer is asked for once.
        step: called with the name of each video and way of answering before it starts.

    Raises:
        JournalError: see tango.runs.journal.Journal.
    """
    ways, found = (WHOLE, *pruners), [list[Asked]() for _ in pruners]
    encodings = Encodings(chat.checkpoint.model, ways)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(first_tokens(chat.checkpoint.model))
        runs = [EvaluationRun(MethodSettings(way.name, way), chat, journal=journal) for way in ways]
        for run in runs:
            stack.callback(run.close)
        for clip in clips:
            encodings.forget()
            of_clip = OfClip(chat, clip, new_tokens, first)
            samples = [[of_clip.sample(run, question) for question in clip.questions] for run in runs]
            wanted = {
                question
                for run, row in zip(runs[1:], samples[1:], strict=True)
                for question, sample in zip(clip.questions, row, strict=True)
                if not finished(run, sample)
            }
            unpruned: dict[str, Asked] = {}
            for index, (way, run, row) in enumerate(zip(ways, runs, samples, strict=True)):
                step(f"{Path(clip.video).name}: {f'{way.name} {way.retention_ratio:g}' if index else 'unpruned'}")
                chat.pruner = way
                idle = all(finished(run, sample) for sample in row) and not (index == 0 and wanted)
                with contextlib.nullcontext() if idle else chat.session():
                    if not idle:
                        encodings.share()
                    for question, sample in zip(clip.questions, row, strict=True):
                        if index and (failure := unpruned[question].failure) is not None:
                            found[index - 1].append(Asked(clip.video, question, failure=failure))
                            continue
                        one = read(clip, question, run.runner.answer(sample))
                        if index:
                            found[index - 1].append(replace(one, unpruned=unpruned[question].answer))
                            continue
                        unpruned[question] = one
                        if one.failure is None and question in wanted - set(of_clip.references):
                            of_clip.ask(question, 1)  # for its distribution: its answer came from the journal
    return found


def finished(run: EvaluationRun, sample: Sample) -> bool:
    """Whether the journal has an answer already."""
    entry = None if run.journal is None else run.journal.entries.get(sample.key)
    return entry is not None and entry.get("failure") is None


def read(clip: Clip, question: str, record: Record) -> Asked:
    """What a record of OfClip.sample() says."""
    if record.failure is not None:
        return Asked(clip.video, question, failure=record.failure)
    text, kl = record.response
    kept = record.tokens["video_tokens_average"] / record.tokens["video_tokens_before"]
    return Asked(clip.video, question, answer=str(text), kl=float(kl), kept=kept)


class OfClip:
    """Questions about one clip, asked in an open session; `references` has the unpruned model's distributions."""

    def __init__(self, chat: Chat, clip: Clip, new_tokens: int, first: list[Tensor]) -> None:
        self.chat, self.clip, self.new_tokens, self.first = chat, clip, new_tokens, first
        self.references: dict[str, Tensor] = {}

    def sample(self, run: EvaluationRun, question: str) -> Sample:
        """A question with the pruner of a run; its response is the answer's text and the KL divergence."""
        name, settings = f"{self.clip.video}: {question}", {"max_new_tokens": self.new_tokens}
        messages = conversation(self.clip.video, question)
        return run.sample(
            "calibrate", question, name, lambda: messages, lambda _: self.ask(question, self.new_tokens),
            settings=settings,
        )  # fmt: skip

    def ask(self, question: str, tokens: int) -> Answer:
        """The answer of the model as it is now; the unpruned one's distribution becomes the reference."""
        self.first.clear()
        messages = conversation(self.clip.video, question)
        given = self.chat.generate(messages, {"max_new_tokens": tokens}, self.clip.video)
        logs, kl = self.first[0], 0.0
        if self.chat.pruner is WHOLE:
            self.references[question] = logs
        else:
            reference = self.references[question]
            kl = float((reference.exp() * (reference - logs)).nan_to_num(0.0).sum().clamp(min=0))
        return replace(given, response=[given.response, kl])


@contextlib.contextmanager
def first_tokens(model: Any) -> Iterator[list[Tensor]]:
    """While open, the list that this yields gets, if empty, the log-probabilities (vocabulary,) of the next token.

    They are read where the model makes logits of hidden states: no temperature or penalty has touched them.
    """
    found: list[Tensor] = []

    def look(_: Any, __: Any, logits: Tensor) -> None:
        if not found:
            found.append(logits[0, -1].detach().float().log_softmax(-1))

    with model.get_output_embeddings().register_forward_hook(look):
        yield found
