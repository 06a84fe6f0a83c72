"""One evaluation of a model by a framework, which hands over its requests as conversations and gets records back.

The plugins of both frameworks (lmms-eval/, VLMEvalKit/) consist of this and of what is peculiar to their framework:
settings, checkpoint, Chat, then EvaluationRun, its samples, and what it comes to.
"""

import functools
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tango.inference.chat import Answer, Chat
from tango.inference.checkpoints import class_name
from tango.inference.prompt import Message
from tango.runs import provenance
from tango.runs.journal import Journal
from tango.runs.load import Load
from tango.runs.runner import Record, Runner, Sample
from tango.runs.settings import NOTHING, MethodSettings
from tango.runs.summary import efficiency, failures, token_summary

log = logging.getLogger(__name__)


class ArgumentError(ValueError):
    """A model argument that cannot be; the message says what can."""


def check_model(pretrained: str, revision: str, classes: Sequence[str], model: str, advice: str = "") -> None:
    """Turn away a checkpoint of another class than a framework's model is for, before it is loaded.

    Raises:
        ArgumentError: it is of another; names both and the model, and ends with `advice`.
        CheckpointError: it is none.
    """
    if (held := class_name(pretrained, revision)) not in classes:
        raise ArgumentError(f"{pretrained!r} holds a {held}, and {model} is for {' and '.join(classes)}{advice}")


class EvaluationRun:
    """What one evaluation comes to: which model was asked and how, its journal, its records, its summary.

    Args:
        settings: the method; its pruner is the chat's.
        chat: what answers.
        journal: folder of finished samples, for runs that go on after a kill; None keeps them in memory only.
        asked: other arguments that answers follow from, for results.
        depends_on: whatever else answers follow from, as JSON values: the plugin's version.
        resume: False computes anew what an earlier run finished.
        rank, processes: which process this is, of how many; with several, torch.distributed connects them.
        batch_size: how many samples that are alike are generated together.

    Raises:
        JournalError: see Journal.
    """

    def __init__(
        self,
        settings: MethodSettings,
        chat: Chat,
        *,
        journal: Path | None,
        asked: Mapping[str, Any] = NOTHING,
        depends_on: Sequence[Any] = (),
        resume: bool = True,
        rank: int = 0,
        processes: int = 1,
        batch_size: int = 1,
    ) -> None:
        self.settings, self.chat, self.processes = settings, chat, processes
        checkpoint = chat.checkpoint
        source, branch = checkpoint.described["pretrained"], checkpoint.described["revision"]
        weights = provenance.model_fingerprint(source, branch)
        commit = None if Path(source).expanduser().exists() else provenance.hub_commit(source, branch)
        self.described = checkpoint.described | {
            "revision": commit or branch,
            "weights": weights,
            "max_frames_num": chat.max_frames,
            "use_cache": chat.use_cache,
            "time_instruction": chat.time_instruction,
            "time_spaces": chat.time_spaces,
            **asked,
            **({"batch_size": batch_size} if batch_size > 1 else {}),
        }
        # All that an answer depends on beside its prompt: runs of one digest may take each other's answers.
        method = settings.describe()["settings"]
        family = checkpoint.described["class"]
        self.digest = provenance.digest(
            {name: value for name, value in self.described.items() if name not in ("pretrained", "revision")},
            settings.method,
            {name: value for name, value in method.items() if name != "saliency_weights"},
            provenance.head_fingerprint(method, family),
            checkpoint.device.type,
            chat.seed,
            *depends_on,
            checkpoint.processor.chat_template,
            provenance.code_fingerprint(settings.method, family),
            {name: provenance.versions().get(name) for name in provenance.LIBRARIES},
        )
        self.journal = None if journal is None else Journal(journal, self.digest, rank)
        if self.journal is not None and not resume:
            self.journal.entries.clear()
        self.runner = Runner(self.journal, rank, size=batch_size, together=self._generate)
        self._load = Load()

    def sample(
        self,
        task: str,
        doc_id: int | str,
        name: str,
        messages: Callable[[], Sequence[Message]],
        ask: Callable[[Sequence[Message]], Answer],
        *,
        settings: Any = None,
        repeat: int = 0,
        batch: Mapping[str, Any] | None = None,
    ) -> Sample:
        """A request as a sample.

        Args:
            task, doc_id, repeat: of its record. name: unique in the run.
            messages: makes the conversation; called now, and again for each try if that fails.
            ask: answers it.
            settings: what else is asked for, as JSON values.
            batch: generation settings of a request that may be generated together with others of the same.
        """

        @functools.cache  # of what is made; what fails is tried again
        def conversation() -> Sequence[Message]:
            try:
                return messages()
            except SystemExit as error:  # tasks of lmms-eval end the process over a missing video
                raise FileNotFoundError(f"the task gave up: {error.code}") from error

        shown: list[Any] | None = None
        try:
            shown = identity(conversation())
        except Exception as error:  # the runner meets it again, where it is retried and recorded
            log.debug("the prompt of %s cannot be made: %s", name, error)
        key = provenance.digest(name, settings, shown)
        return Sample(task, doc_id, repeat, key, lambda: ask(conversation()), batch, conversation)

    def _generate(self, samples: Sequence[Sample]) -> list[Answer]:
        names = [sample.key for sample in samples]
        return self.chat.generate_batch([sample.messages() for sample in samples], samples[0].batch, names)

    def finish(self, order: Callable[[Record], Any]) -> dict[str, Any]:
        """Gather the records of all processes, which all call this, and close the journal.

        Args:
            order: a key to sort the records by.

        Returns:
            The summary as plain JSON: provenance, failures, tokens, efficiency, and under "samples" all records.
        """
        self.close()
        gathered: list[Any] = [self.runner.records]
        if self.processes > 1:
            gathered = [None] * self.processes
            dist.all_gather_object(gathered, self.runner.records)
        records = sorted((record for records in gathered for record in records), key=order)
        entries = [record.to_dict() for record in records]
        failed = failures(records)
        device = self.chat.checkpoint.device
        return {
            **provenance.provenance(device, **self.settings.describe(), model=self.described),
            "processes": self.processes,
            "load": self._load.noted(),
            "run": self.digest,
            "n_samples": len(records),
            "n_failed": len(failed),
            "n_resumed": sum(record.resumed for record in records),
            "failed": failed,
            "tokens": token_summary(records),
            "efficiency": efficiency(entries),
            "samples": entries,
        }

    def close(self) -> None:
        """Let other processes write the journal."""
        if self.journal is not None:
            self.journal.close()


def identity(messages: Sequence[Message]) -> list[Any]:
    """What a conversation consists of, as JSON: texts, images by their bytes, and files by name, size and time, in
    whichever folder they lie.
    """
    parts: list[Any] = []
    for message in messages:
        for part in message["content"]:
            source = part.get("image", part.get("video"))
            if source is None:
                parts.append([message["role"], part["text"]])
            elif isinstance(source, str | Path):
                file = Path(source)
                found = file.stat() if file.is_file() else None
                stamp = str(source) if found is None else [(file.name, found.st_size, found.st_mtime_ns)]
                parts.append([message["role"], stamp, part.get("start"), part.get("end")])
            else:
                parts.append([message["role"], source.mode, source.size, hashlib.sha256(source.tobytes()).hexdigest()])
    return parts
