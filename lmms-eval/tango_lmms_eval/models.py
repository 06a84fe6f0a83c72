"""What the models of this plugin share, and LLaVA's: lmms-eval's requests in, answers of a model with or without a
pruner out.

Everything that does not depend on lmms-eval is in tango.runs; here requests become conversations, and what happened
becomes the "tango" entry of lmms-eval's results file. Qwen's models are in qwen.py.
"""

from __future__ import annotations

import functools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from tqdm import tqdm

from tango.inference.chat import TIMES, Answer, Chat, PixelLimits
from tango.inference.checkpoints import CheckpointError, load
from tango.inference.generation import generation_settings
from tango.inference.names import check_pretrained
from tango.inference.video import Sampling
from tango.models.llava_video import FRAMES
from tango.runs.provenance import files_fingerprint
from tango.runs.run import ArgumentError, EvaluationRun, check_model
from tango.runs.runner import Record, Sample
from tango.runs.served import ServedChat, outline
from tango.runs.settings import NOTHING, SettingsError, from_environment
from tango.runs.summary import report
from tango_lmms_eval import hooks
from tango_lmms_eval.arguments import (
    COMMON,
    INTERNVL,
    MODELS,
    ONEVISION,
    OWN,
    VIDEO,
    VIDEO_LLAMA,
    Fixed,
    batch_size_of,
    check_fixed,
)
from tango_lmms_eval.conversations import chat_messages, simple_messages

log = logging.getLogger(__name__)

SOURCES = files_fingerprint(Path(__file__).parent.glob("*.py"))  # of this plugin
FAILED = "[this sample failed and is not scored]"


class Tokens(TokenCounts):
    """Token counts of a sample as lmms-eval logs them, with its video tokens before and after pruning."""

    def __init__(self, tokens: Mapping[str, int]) -> None:
        super().__init__(tokens.get("input_tokens"), tokens.get("output_tokens"))
        self.video = {name: tokens.get(name) for name in ("video_tokens_before", "video_tokens_after")}

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), **self.video}


class PrunedModel(lmms):
    """A video language model with the pruning method that WRAPPER names.

    Args (as --model_args name=value,..):
        pretrained: a folder or a hub id.
        max_frames_num: frames sampled evenly from each video.
        dtype, torch_dtype: auto, float32, float16 or bfloat16.
        attn_implementation: sdpa, eager or flash_attention_2 (on a CPU: sdpa).
        device: cpu, cuda or cuda:N; by default what accelerate gives this process.
        device_map: auto spreads the model over all GPUs of one process; anything else names its device.
        revision, chat_template, use_cache: as in upstream's llava_hf.
        resume: False computes anew what a run into the same --output_path finished before.
        server: http://host:port of a server of vLLM with tango-vllm, which answers in the model's place; see
            tango.runs.served.
        batch_size: how many samples are generated together; kept tokens and answers are those of 1, but for rounding,
            and no sample has times of its own. auto is 1. max_batch_size: without effect.
        conv_template, model_name and the others of `fixed`: taken for compatibility; another meaning is an error.

    Raises:
        SettingsError, ArgumentError, CheckpointError: before anything is loaded. Created from the command line, they
            end the process.
    """

    is_simple = True
    # Of each model: upstream's arguments that it takes by name, and that can only mean one thing; the classes of its
    # checkpoints; how it asks (see Chat), and whatever else of that its answers follow from.
    own: ClassVar[tuple[str, ...]] = OWN
    fixed: ClassVar[Fixed]
    model_classes: ClassVar[tuple[str, ...]]
    time_instruction = False
    times = TIMES[0]
    sampling: Sampling | None = None
    limits: PixelLimits | None = None
    asked: Mapping[str, Any] = NOTHING

    def __init__(
        self,
        pretrained: str,
        max_frames_num: int,
        device: str | None = None,
        device_map: str | None = None,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        attn_implementation: str | None = None,
        revision: str = "main",
        chat_template: str | None = None,
        use_cache: bool = True,
        resume: bool = True,
        server: str | None = None,
        model_name: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        self.settings = from_environment()
        together = batch_size_of(batch_size)
        check_fixed(others, self.fixed, self.own)
        check_pretrained(pretrained)
        if not isinstance(max_frames_num, int) or max_frames_num < 1:
            raise ArgumentError(f"max_frames_num={max_frames_num!r}: sample at least one frame of a video")
        if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
            raise ArgumentError(f"dtype={dtype} and torch_dtype={torch_dtype}: pass one of them")
        check_model(pretrained, revision, self.model_classes, "this model", f"; --model is {MODELS}")
        hooks.begin(report)
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if self._world_size == 1 and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
            log.warning(
                "accelerate was asked for several processes and started one, as it does without GPUs; "
                "for several on the CPU: accelerate launch --multi_gpu --num_processes=N -m lmms_eval .."
            )
        self._device, spread = self._place(device, device_map)
        chat_class: Callable[..., Chat] = Chat
        if server is not None:
            checkpoint, self.settings = outline(
                pretrained, server, self.settings, revision=revision, dtype=dtype or torch_dtype
            )
            chat_class = functools.partial(ServedChat, server=server)
        else:
            checkpoint = load(
                pretrained,
                device=self._device,
                dtype=dtype or torch_dtype or "auto",
                attn_implementation=attn_implementation,
                device_map=spread,
                revision=revision,
                chat_template=chat_template,
            )
        chat = chat_class(
            checkpoint,
            self.settings.pruner,
            max_frames_num,
            torch.initial_seed(),
            use_cache,
            self.time_instruction,
            times=self.times,
            sampling=self.sampling,
            limits=self.limits,
        )
        self.run: EvaluationRun | None = EvaluationRun(
            self.settings,
            chat,
            journal=Path(hooks.RUN.output_path) / "journal" if hooks.RUN.output_path else None,
            asked=self.asked,
            depends_on=(SOURCES,),
            resume=resume,
            rank=self._rank,
            processes=self._world_size,
            batch_size=together,
        )

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> PrunedModel:
        """As upstream; but a mistake in the settings ends the process with its message instead of a traceback and
        status 0.
        """
        try:
            return super().create_from_arg_string(arg_string, additional_config)
        except (SettingsError, ArgumentError, CheckpointError) as error:
            hooks.RUN.active = False
            hooks.refuse(str(error))

    def _place(self, device: str | None, device_map: str | None) -> tuple[torch.device, str | None]:
        """This process's device, and "auto" if the model is to be spread over several."""
        placed = accelerated = self.accelerator.device
        if device_map == "auto":
            if self._world_size > 1:
                raise ArgumentError("device_map=auto spreads one process over all GPUs; launch it without accelerate")
            return placed, "auto" if torch.cuda.is_available() else None
        name = device_map or device
        if name and not (self._world_size > 1 and name.startswith("cuda")):  # each process has a GPU of its own
            placed = torch.device(name)
        if self._world_size > 1 and placed.type != accelerated.type:
            raise ArgumentError(f"device={name} under accelerate on {accelerated.type}; leave device out")
        return placed, None

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def chat_template(self) -> str:
        raise ArgumentError("the checkpoint's chat template is always applied; leave out --apply_chat_template")

    # -- requests ----------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        chat = self._running().chat
        for request in requests:
            generation_settings(self._generation(request))  # an unknown setting is an error of the run, not of a sample
        texts = []
        for record in self._answer(requests, lambda r, name, m: chat.generate(m, self._generation(r), name)):
            if record is None:
                texts.append(GenerationResult(""))
            elif record.failure is not None:
                texts.append(GenerationResult(FAILED))
            else:
                texts.append(GenerationResult(record.response, Tokens(record.tokens)))
        return texts

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        chat = self._running().chat
        pairs = []
        for record in self._answer(requests, lambda r, _, m: chat.loglikelihood(m, self._continuation(r))):
            if record is None or record.failure is not None:
                pairs.append((float("nan"), False))
            else:
                pairs.append((float(record.response[0]), bool(record.response[1])))
        return pairs

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise ArgumentError("tasks of several rounds (generate_until_multi_round) are not supported by this model")

    def _running(self) -> EvaluationRun:
        if self.run is None:
            raise RuntimeError("this model was cleaned up after its evaluation; make a new one")
        return self.run

    def _generation(self, request: Instance) -> dict[str, Any]:
        return dict(request.args[1 if self.is_simple else 2] or {})

    def _doc(self, request: Instance) -> Any:
        doc_id, task, split = request.args[3:6]
        return self.task_dict[task][split][doc_id]

    def _continuation(self, request: Instance) -> str:
        target = request.args[1]
        return str(target(self._doc(request)) if callable(target) else target)

    def _messages(self, request: Instance) -> list[dict[str, Any]]:
        """The conversation of a request; in lmms-eval's chat interface tasks hand over whole conversations."""
        if not self.is_simple:
            return chat_messages(request.args[1](self._doc(request)))
        visuals = request.args[2](self._doc(request)) if callable(request.args[2]) else None
        return simple_messages(self._text(request), visuals or [])

    def _text(self, request: Instance) -> str:
        """The text of a simple task's request."""
        return str(request.args[0])

    def _answer(
        self, requests: Sequence[Instance], compute: Callable[[Instance, str, Any], Answer]
    ) -> Iterator[Record | None]:
        """Run all requests in order; None for those that only pad this rank to the length of others."""
        real = [request for request in requests if not request.metadata.get("__padding_only__")]
        failed: set[tuple[str, Any]] = set()
        bar = tqdm(total=len(real), disable=self._rank != 0, desc=f"Model responding ({self.settings.method})")
        run = self._running()
        with run.chat.session():
            records = run.runner.run(self._samples(run, real, compute))
            for request in requests:
                if request.metadata.get("__padding_only__"):
                    yield None
                    continue
                record = next(records)
                bar.update(1)
                if record.failure is not None:
                    failed.add((request.task_name, request.doc_id))
                yield record
        bar.close()
        # lmms-eval skips documents that no request belongs to. A failed one is taken away from its document, with all
        # other requests of that document, so that it is scored neither right nor wrong whatever the task makes of odd
        # answers.
        lost = {id(request): request for request in requests if (request.task_name, request.doc_id) in failed}
        for request in lost.values():
            request.doc_id = f"failed: {request.doc_id}"

    def _samples(
        self, run: EvaluationRun, requests: Sequence[Instance], compute: Callable[[Instance, str, Any], Answer]
    ) -> Iterator[Sample]:
        """Samples one after another, so that the images of only one batch are in memory."""
        seen: Counter[tuple[str, Any, Any]] = Counter()
        for request in requests:
            who = (request.task_name, request.doc_id, request.idx)
            name = f"{'/'.join(map(str, who))}/{seen[who]}"
            generation = self._generation(request) if request.request_type != "loglikelihood" else None
            what = repr(request.args[1]) if generation is None else generation
            yield run.sample(
                request.task_name,
                request.doc_id,
                name,
                functools.partial(self._messages, request),
                functools.partial(compute, request, name),
                settings=[request.request_type, what],
                repeat=seen[who],
                batch=generation,
            )
            seen[who] += 1

    # -- the end -----------------------------------------------------------------------------------------------------

    def clean(self) -> None:
        """Called by lmms-eval on every rank once all requests are answered: gather what happened, drop the model."""
        if self.run is not None:
            summary = self.run.finish(lambda record: (record.task, str(record.doc_id).zfill(12), record.repeat))
            if self._rank == 0:
                hooks.RUN.summary = summary
            else:  # which saves nothing: its part is done
                hooks.RUN.active = False
            self.run = None
        super().clean()


def for_chat(model: type[PrunedModel]) -> type[PrunedModel]:
    """The same for lmms-eval's chat interface."""
    named = {"__module__": model.__module__, "__doc__": for_chat.__doc__, "is_simple": False}
    return type(f"{model.__name__}Chat", (model,), named)


class LlavaOnevision(PrunedModel):
    """LLaVA-OneVision, in the `llava` package's format (lmms-lab/llava-onevision-qwen2-7b-ov) or in transformers'
    (llava-hf/llava-onevision-qwen2-7b-ov-hf).
    """

    fixed = ONEVISION
    model_classes = ("LlavaOnevisionForConditionalGeneration",)

    def __init__(
        self, pretrained: str = "lmms-lab/llava-onevision-qwen2-7b-ov", max_frames_num: int = 32, **others: Any
    ) -> None:
        super().__init__(pretrained, max_frames_num, **others)


LlavaOnevisionChat = for_chat(LlavaOnevision)


class LlavaVid(PrunedModel):
    """LLaVA-Video.

    Args (as --model_args name=value,..), beside those of PrunedModel:
        max_frames_num: 64 by default.
        add_time_instruction: tell the model a video's length and the time of each frame. True by default, as it was
            trained; upstream's default is False.
    """

    fixed = VIDEO
    model_classes = ("LlavaVideoForConditionalGeneration",)

    def __init__(
        self,
        pretrained: str = "lmms-lab/LLaVA-Video-7B-Qwen2",
        max_frames_num: int = FRAMES,
        add_time_instruction: bool = True,
        **others: Any,
    ) -> None:
        if not isinstance(add_time_instruction, bool):
            raise ArgumentError(f"add_time_instruction={add_time_instruction!r}: use True or False")
        self.time_instruction = add_time_instruction
        super().__init__(pretrained, max_frames_num, **others)


class InternVLHf(PrunedModel):
    """InternVL3 and 3.5 in transformers' format (OpenGVLab/InternVL3_5-8B-HF).

    Args (as --model_args name=value,..), beside those of PrunedModel: num_frames, upstream's name of max_frames_num.
    """

    own = (*COMMON, "num_frames")
    fixed = INTERNVL
    model_classes = ("InternVLForConditionalGeneration",)

    def __init__(self, pretrained: str = "OpenGVLab/InternVL3_5-8B-HF", num_frames: int = 32, **others: Any) -> None:
        super().__init__(pretrained, num_frames, **others)


InternVLHfChat = for_chat(InternVLHf)


class VideoLlama3(PrunedModel):
    """VideoLLaMA3 in transformers' format; upstream's own checkpoints bring code along, which is not run.

    Args (as --model_args name=value,..), beside those of PrunedModel: max_num_frames, as upstream calls
    max_frames_num.
    """

    own = (*COMMON, "max_num_frames")
    fixed = VIDEO_LLAMA
    model_classes = ("VideoLlama3ForConditionalGeneration",)

    def __init__(self, pretrained: str, max_num_frames: int = 180, **others: Any) -> None:
        super().__init__(pretrained, max_num_frames, **others)
