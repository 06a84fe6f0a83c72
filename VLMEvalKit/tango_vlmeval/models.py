"""The models of this plugin: VLMEvalKit's messages in, answers of a model with or without a pruner out.

VLMEvalKit asks for one answer after another. Everything that does not depend on it is in tango.runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from vlmeval.smp.file import INFER_FAIL_MSG
from vlmeval.vlm.base import BaseModel

from tango.inference.chat import TIMES, Chat, PixelLimits
from tango.inference.checkpoints import CheckpointError, class_name, load, parse_dtype
from tango.inference.generation import generation_settings
from tango.models.llava_video import FRAMES
from tango.runs.provenance import files_fingerprint
from tango.runs.run import ArgumentError, EvaluationRun, check_model
from tango.runs.served import ServedChat, outline
from tango.runs.settings import VANILLA, SettingsError, from_environment

GREEDY = {"do_sample": False}
# Of this plugin, what answers follow from; data sets make prompts, which are told by themselves, and scores.
SOURCES = files_fingerprint(file for file in Path(__file__).parent.glob("*.py") if file.name != "datasets.py")


@dataclass
class Prompt:
    """A question of a data set, whose message is made when it is asked."""

    index: Any
    build: Callable[[], list[dict[str, Any]]]


class TangoModel(BaseModel):  # type: ignore[misc]
    """A video language model, with the pruning method that WRAPPER names.

    Args:
        pretrained, model_path (either): a folder or a hub id, in transformers' format or the `llava` package's.
        nframe: frames sampled evenly from each video, where the data set does not say.
        dtype: auto, float32, float16 or bfloat16.
        attn_implementation: sdpa, eager or flash_attention_2 (on a CPU: sdpa).
        device: cpu, cuda or cuda:N; by default a GPU if there is one. device_map: auto spreads the model over all.
        revision, chat_template, use_cache: as in tango.inference's load() and Chat.
        max_new_tokens: of an answer, where the data set does not say.
        resume: False computes anew what a run into the same --work-dir finished before.
        seed: of sampled generation.
        time_instruction: see Chat; LLaVA-Video only, in the words of VLMEvalKit.
        server: http://host:port of a server of vLLM with tango-vllm, which answers in the model's place; see
            tango.runs.served.
        use_vllm, verbose: upstream's, which it passes to some models by their names; the former can only be False.

    Raises:
        SettingsError, ArgumentError, CheckpointError: before anything is loaded.
    """

    allowed_types: ClassVar[list[str]] = ["text", "image", "video"]
    INTERLEAVE, VIDEO_LLM, is_api = True, True, False
    model_classes: ClassVar[tuple[str, ...]]
    default_frames: ClassVar[int]

    def __init__(
        self,
        pretrained: str | None = None,
        model_path: str | None = None,
        nframe: int | None = None,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        device: str | None = None,
        device_map: str | None = None,
        revision: str = "main",
        chat_template: str | None = None,
        use_cache: bool = True,
        max_new_tokens: int = 1024,
        resume: bool = True,
        seed: int = 1234,
        time_instruction: bool = True,
        server: str | None = None,
        use_vllm: bool = False,
        verbose: bool = False,
    ) -> None:
        super().__init__()
        self.settings = from_environment()
        if (pretrained is None) == (model_path is None):
            raise ArgumentError(f"pretrained={pretrained!r}, model_path={model_path!r}: give one of them")
        source = pretrained if pretrained is not None else str(model_path)
        if use_vllm:
            raise ArgumentError("use_vllm: leave out --use-vllm; a server of vLLM is named by --server")
        if nframe is not None and (not isinstance(nframe, int) or nframe < 1):
            raise ArgumentError(f"nframe={nframe!r}: sample at least one frame of a video")
        if device_map not in (None, "auto"):
            raise ArgumentError(f"device_map={device_map!r}: use auto, or name a device")
        check_model(source, revision, self.model_classes, type(self).__name__)
        gpu = torch.cuda.is_available()
        torch.manual_seed(seed)
        chat_class: Callable[..., Chat] = Chat
        if server is not None:
            checkpoint, self.settings = outline(source, server, self.settings, revision=revision, dtype=dtype)
            chat_class = functools.partial(ServedChat, server=server)
        else:
            checkpoint = load(
                source,
                device=device or ("cuda" if gpu else "cpu"),
                dtype=dtype,
                attn_implementation=attn_implementation,
                device_map=device_map if gpu else None,
                revision=revision,
                chat_template=chat_template,
            )
        self.frames, self.max_new_tokens, self.resume = nframe or self.default_frames, max_new_tokens, resume
        self.chat = chat_class(
            checkpoint, self.settings.pruner, self.frames, seed, use_cache, time_instruction, time_spaces=False
        )
        self.asked: dict[str, Any] = {}  # see EvaluationRun
        self._depends_on = (SOURCES,)
        self._evaluation: tuple[EvaluationRun, str, dict[str, Any]] | None = None  # its data set, generation settings

    @contextlib.contextmanager
    def evaluating(
        self, dataset: str, frames: int, generation: Mapping[str, Any], journal: Path, rank: int = 0, processes: int = 1
    ) -> Iterator[EvaluationRun]:
        """Answer the questions of a data set within: from the journal what it holds, and shielded against failures.

        Args:
            dataset: its name, the task of the records. frames: of each video. generation: see generation_settings().
            journal: folder of the finished samples. rank, processes: which process this is, of how many.
        """
        generation = {"max_new_tokens": self.max_new_tokens, **GREEDY, **generation}
        generation_settings(generation)  # an unknown setting is an error of the run, not of a sample
        run = EvaluationRun(
            self.settings,
            dataclasses.replace(self.chat, max_frames=frames),
            journal=journal,
            asked=self.asked,
            depends_on=self._depends_on,
            resume=self.resume,
            rank=rank,
            processes=processes,
        )
        with contextlib.closing(run), run.chat.session():
            self._evaluation = run, dataset, generation
            try:
                yield run
            finally:
                self._evaluation = None

    def generate(self, message: Any, dataset: str | None = None) -> str:
        """The reply to a message: a Prompt while evaluating, else a list of texts, images and videos as upstream has.

        A question that fails twice is answered by upstream's mark of a failure with the reason.
        """
        if not isinstance(message, Prompt):
            listed = isinstance(message, list) and all(isinstance(part, dict) for part in message)
            messages = conversation(message if listed else self.preproc_content(message))
            settings = {"max_new_tokens": self.max_new_tokens, **GREEDY}
            if self._evaluation is not None:
                return str(self._evaluation[0].chat.generate(messages, settings, "").response)
            with self.chat.session():
                return str(self.chat.generate(messages, settings, "").response)
        if self._evaluation is None:
            raise RuntimeError("a Prompt can only be asked within evaluating()")
        run, task, settings = self._evaluation
        index = message.index.item() if hasattr(message.index, "item") else message.index
        name = f"{task}/{index}"
        ask = functools.partial(run.chat.generate, settings=settings, name=name)
        sample = run.sample(task, index, name, lambda: conversation(message.build()), ask, settings=settings)
        record = run.runner.answer(sample)
        return str(record.response) if record.failure is None else f"{INFER_FAIL_MSG}: {record.failure}"

    def generate_inner(self, message: Any, dataset: str | None = None) -> str:
        return self.generate(message, dataset)


class TangoLlavaOnevision(TangoModel):
    """LLaVA-OneVision: lmms-lab/llava-onevision-qwen2-7b-ov, llava-hf/llava-onevision-qwen2-7b-ov-hf."""

    model_classes = ("LlavaOnevisionForConditionalGeneration",)
    default_frames = 32


class TangoLlavaVideo(TangoModel):
    """LLaVA-Video: lmms-lab/LLaVA-Video-7B-Qwen2."""

    model_classes = ("LlavaVideoForConditionalGeneration",)
    default_frames = FRAMES


class TangoQwenVL(TangoModel):
    """Qwen2.5-VL, Qwen3-VL, Qwen3.5 and Qwen3-Omni without sound: Qwen/Qwen2.5-VL-7B-Instruct.

    Args, beside those of TangoModel:
        min_pixels, max_pixels, total_pixels: see PixelLimits; its defaults are those of upstream's models for video.
        times: processor for the frames' real times, published for the paper's run; see Chat.
    """

    model_classes = (
        "Qwen2_5_VLForConditionalGeneration", "Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration",
        "Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration",
        "Qwen3OmniMoeThinkerForConditionalGeneration",
    )  # fmt: skip
    default_frames = 64

    def __init__(
        self,
        pretrained: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        total_pixels: int | None = None,
        times: str = TIMES[0],
        **others: Any,
    ) -> None:
        if times not in TIMES:
            raise ArgumentError(f"times={times!r}: use one of {', '.join(TIMES)}")
        try:
            limits = PixelLimits(min_pixels, max_pixels, total_pixels)
        except ValueError as error:
            raise ArgumentError(str(error)) from error
        super().__init__(pretrained, **others)
        self.chat = dataclasses.replace(self.chat, limits=limits, times=times)
        self.asked = dataclasses.asdict(limits) | {"times": times}


class TangoInternVL(TangoModel):
    """InternVL3 and 3.5 in transformers' format: OpenGVLab/InternVL3_5-8B-HF."""

    model_classes = ("InternVLForConditionalGeneration",)
    default_frames = 32


class TangoVideoLlama3(TangoModel):
    """VideoLLaMA3 in transformers' format."""

    model_classes = ("VideoLlama3ForConditionalGeneration",)
    default_frames = 180


MODELS = (TangoLlavaOnevision, TangoLlavaVideo, TangoQwenVL, TangoInternVL, TangoVideoLlama3)
# Upstream's names of models that these are taken over under, for --model.
TAKEN_OVER: dict[str, tuple[type[TangoModel], str]] = {
    "llava_onevision_qwen2_0.5b_ov": (TangoLlavaOnevision, "lmms-lab/llava-onevision-qwen2-0.5b-ov"),
    "llava_onevision_qwen2_7b_ov": (TangoLlavaOnevision, "lmms-lab/llava-onevision-qwen2-7b-ov"),
    "llava-onevision-qwen2-0.5b-ov-hf": (TangoLlavaOnevision, "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"),
    "llava-onevision-qwen2-7b-ov-hf": (TangoLlavaOnevision, "llava-hf/llava-onevision-qwen2-7b-ov-hf"),
    "llava_video_qwen2_7b": (TangoLlavaVideo, "lmms-lab/LLaVA-Video-7B-Qwen2"),
    "Qwen2.5-VL-3B-Instruct": (TangoQwenVL, "Qwen/Qwen2.5-VL-3B-Instruct"),
    "Qwen2.5-VL-7B-Instruct": (TangoQwenVL, "Qwen/Qwen2.5-VL-7B-Instruct"),
    "Qwen2.5-VL-72B-Instruct": (TangoQwenVL, "Qwen/Qwen2.5-VL-72B-Instruct"),
}


def register(names: Sequence[str] = (), **how: str) -> dict[str, str]:
    """Make the classes known to VLMEvalKit, and the names in TAKEN_OVER.

    Args:
        names: of --model; one that is a folder or a hub id and no name of upstream's becomes a model of its last part.
        how: revision, dtype and attn_implementation of these models, if they are given.

    Returns:
        What to call each of `names`.

    Raises:
        CheckpointError: one is neither, or is upstream's own and `how` is given, or there is no such dtype.
        SettingsError: one is upstream's own and WRAPPER names a method.
    """
    import vlmeval.vlm
    from vlmeval.config import supported_VLM

    parse_dtype(how.get("dtype", "auto"))  # upstream would go on to the next model over it
    for cls in MODELS:
        setattr(vlmeval.vlm, cls.__name__, cls)
    for name, (cls, source) in TAKEN_OVER.items():
        supported_VLM[name] = functools.partial(cls, pretrained=source, **(how if name in names else {}))
    called = {}
    for name in names:
        called[name] = name
        if name in supported_VLM and getattr(supported_VLM[name], "func", None) not in MODELS:
            if how:
                raise CheckpointError(f"{name!r} is upstream's own model, which takes no {', '.join(how)}")
            if (method := from_environment().method) != VANILLA:
                raise SettingsError(f"WRAPPER={method!r}, but {name!r} is upstream's own model and would not be pruned")
        if name not in supported_VLM:
            held = class_name(name, how.get("revision", "main"))
            cls = next((cls for cls in MODELS if held in cls.model_classes), None)
            if cls is None:
                raise CheckpointError(f"{name!r} holds a {held}, which no model of this plugin is for")
            called[name] = Path(name).resolve().name if Path(name).is_dir() else name.rsplit("/", 1)[-1]
            supported_VLM[called[name]] = functools.partial(cls, pretrained=name, **how)
    return called


def conversation(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A message of VLMEvalKit as one user message of tango.inference.chat.

    Videos come first and texts are joined, as upstream's models of these families do; without a video the order stays.
    Texts that would touch are set apart by a line break.
    """
    visuals = [visual(part) for part in parts if part["type"] == "video"]
    content: list[dict[str, Any]] = []
    for part in parts:
        if part["type"] == "image":
            content.append(visual(part))
        elif part["type"] == "text":
            if not part["value"]:
                continue
            if content and content[-1]["type"] == "text":
                content[-1]["text"] = joined(content[-1]["text"], part["value"])
            else:
                content.append({"type": "text", "text": part["value"]})
        elif part["type"] != "video":
            raise ValueError(f"a message part of type {part['type']!r}; text, image and video can be asked about")
    return [{"role": "user", "content": [*visuals, *content]}]


def visual(part: Mapping[str, Any]) -> dict[str, Any]:
    """An image or video of VLMEvalKit's message as the chat template takes it."""
    if part["type"] == "image":
        return {"type": "image", "image": part["value"]}
    return {"type": "video", "video": part["value"], "start": part.get("start"), "end": part.get("end")}


def joined(before: str, after: str) -> str:
    """Two texts with white space between them."""
    return before + ("" if before[-1].isspace() or after[0].isspace() else "\n") + after
