"""Asks a loaded model about videos, images and text, with or without a pruner, and says what that took.

A conversation is a list of messages {"role": .., "content": [parts]}; a part is {"type": "text", "text": ..}, {"type":
"image", "image": a PIL image or a file} or {"type": "video", "video": a file, "start": s, "end": s}. The processor's
chat template turns it into the prompt.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.v2.functional import InterpolationMode, resize
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from tango.inference.batch import Prepared, batches, reply, together
from tango.inference.checkpoints import Checkpoint
from tango.inference.generation import FirstLogits, check_logits, generation_settings
from tango.inference.picture import Picture
from tango.inference.prompt import Message, check_length, check_text, least_seen, spell_out, spelled, written
from tango.inference.timing import GenerationTimer, StopAt, added
from tango.inference.video import Clip, Sampling, read_video
from tango.models import attach, family_of
from tango.pruners.base import Pruner

TIMES = ("processor", "published")  # see Chat
# In tokens, as qwen-vl-utils has them: of a pair of frames at least and at most, of a video in all, and how much more
# than the least a frame may have whatever the whole may.
MIN_TOKENS, MAX_TOKENS, TOTAL_TOKENS, SLACK = 128, 768, 0.9 * 128000, 1.05


@dataclass(frozen=True)
class PixelLimits:
    """How many pixels a frame may have for models that take any size (Qwen's), by the rules of qwen-vl-utils.

    min_pixels, max_pixels: of a frame or an image; None: 128 and 768 tokens (an image: the processor's own).
    total_pixels: of a video, shared by its pairs of frames; None: 115200 tokens.

    Raises:
        ValueError: limits that are not positive, or the least above the most.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None

    def __post_init__(self) -> None:
        for name in ("min_pixels", "max_pixels", "total_pixels"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}={value!r}: give a whole number of pixels of at least 1")
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels={self.min_pixels} is above max_pixels={self.max_pixels}")

    def frame_size(self, frames: int, height: int, width: int, factor: int) -> tuple[int, int]:
        """Height and width of a video's frames: multiples of `factor`, the pixels along a token, in about its shape.

        Raises:
            ValueError: one side is more than 200 times the other.
        """
        token = factor * factor
        least = self.min_pixels or MIN_TOKENS * token
        total = self.total_pixels or TOTAL_TOKENS * token
        most = max(min(MAX_TOKENS * token, total / frames * 2), int(least * SLACK))
        most = min(self.max_pixels or most, most)
        chosen: tuple[int, int] = smart_resize(height, width, factor, least, most)  # type: ignore[arg-type]  # a float
        return chosen

    def of_images(self) -> dict[str, dict[str, int]]:
        """What a processor is told of images: both ends or neither."""
        ends = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        return {"images_kwargs": {name: end for name, end in ends.items() if end}} if all(ends.values()) else {}


@dataclass
class Answer:
    """What a model answered, and what that took.

    response: text, or plain JSON for other kinds of request.
    timing: seconds by part (tango.inference.timing.Timing), None where nothing was generated.
    tokens: input_tokens, output_tokens, video_tokens_before, video_tokens_after, video_tokens_average.
    videos: one entry a video: frames, grid, segment_sizes, tokens_before, tokens_after, and a hash of the kept indices.
    """

    response: Any
    timing: dict[str, Any] | None
    tokens: dict[str, int | float]
    videos: list[dict[str, Any]]


@dataclass
class Chat:
    """A model to ask.

    Args:
        checkpoint: what tango.inference.checkpoints.load() returned.
        pruner: attached while session() is open; None leaves the model untouched.
        max_frames: frames sampled from each video.
        seed: of sampled generation; with the sample's name it gives the same text in any order of samples.
        use_cache: let the language model keep keys and values while decoding.
        time_instruction: say a video's length and the times of its frames before the question, where the model was
            trained on that (processors with a `time_instruction`: LLaVA-Video's).
        time_spaces: that sentence as in training and in lmms-eval; False: as VLMEvalKit writes it.
        times: the times of frames that Qwen's models and the pruner get. "processor": the real ones, of each pair of
            frames the mean, and for Qwen2.5-VL the real interval from pair to pair. "published": as in the paper's run,
            an interval of 1 s whatever the video, and times of pairs spread evenly from the first to the last frame's;
            Qwen3-VL's prompt, which says the times, stays as it is.
        sampling: chooses the frames of a video, in place of max_frames of them.
        limits: sizes of frames and images, where the model takes any (Qwen's); None leaves them to the processor.
    """

    checkpoint: Checkpoint
    pruner: Pruner | None = None
    max_frames: int = 32
    seed: int = 0
    use_cache: bool = True
    time_instruction: bool = True
    time_spaces: bool = True
    times: str = "processor"
    sampling: Sampling | None = None
    limits: PixelLimits | None = None
    seconds: dict[str, float] = field(default_factory=dict, init=False, repr=False)  # read_s, and resize_s in it
    _timer: GenerationTimer | None = field(default=None, init=False, repr=False)
    _pruned: Any = field(default=None, init=False, repr=False)
    _clip: tuple[Any, Clip] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.times not in TIMES:
            raise ValueError(f"times={self.times!r}: use one of {', '.join(TIMES)}")
        if self.max_frames < 1:
            raise ValueError(f"max_frames_num={self.max_frames}: sample at least one frame of a video")

    @contextlib.contextmanager
    def session(self) -> Iterator[Chat]:
        """Attach the pruner, if any, and the timer; ask within."""
        model = self.checkpoint.model
        family = family_of(model)
        decoder = family.language_model(model)
        with contextlib.ExitStack() as stack:
            if self.pruner is not None:
                self._pruned = stack.enter_context(attach(model, self.pruner))
            self._timer = stack.enter_context(GenerationTimer(model, family.vision_modules(model), decoder))
            # Before the language model computes anything; what pruning leaves is known no sooner.
            stack.enter_context(decoder.register_forward_pre_hook(self._check_seen, with_kwargs=True))
            try:
                yield self
            finally:
                self._timer = self._pruned = None  # the last video is remembered: the next session may ask about it

    def generate(self, messages: Sequence[Message], settings: Mapping[str, Any], name: str) -> Answer:
        """Answer a conversation.

        Args:
            settings: the task's generation settings, see generation_settings().
            name: the sample's, seeds sampling.

        Raises:
            RuntimeError: outside session(). Whatever reading, preparing or generating raises passes through.
        """
        return self._answer([self._prepare(messages)], settings, name)[0]

    def generate_batch(
        self, conversations: Sequence[Sequence[Message]], settings: Mapping[str, Any], names: Sequence[str]
    ) -> list[Answer]:
        """Answer several conversations, in one call of generate() those whose images and videos fit into one tensor.

        Kept tokens and answers are those of generate() one by one, but for rounding; each timing is that of its call.
        Sampling and beam search go one by one. Raises as generate() does; then none is answered.
        """
        options, _ = generation_settings(settings, self.use_cache)
        prepared = [self._prepare(messages) for messages in conversations]
        alone = options["do_sample"] or options.get("num_beams", 1) > 1
        answers: dict[int, Answer] = {}
        for places in [[place] for place in range(len(prepared))] if alone else batches(prepared):
            made = self._answer([prepared[place] for place in places], settings, names[places[0]])
            answers |= zip(places, made, strict=True)
        return [answers[place] for place in range(len(prepared))]

    def _answer(self, prepared: Sequence[Prepared], settings: Mapping[str, Any], name: str) -> list[Answer]:
        """Answer prompts in one call of generate()."""
        timer = self._timer
        if timer is None:
            raise RuntimeError("Chat.generate() works inside `with chat.session():` only")
        options, until = generation_settings(settings, self.use_cache)
        model, tokenizer = self.checkpoint.model, self.checkpoint.processor.tokenizer
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        inputs, extra = together(prepared, pad)
        width = inputs["input_ids"].shape[1]
        stop = StopAt(lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)), until)
        if options["do_sample"]:
            torch.manual_seed((self.seed + zlib.crc32(name.encode())) % 2**63)
        criteria, first = StoppingCriteriaList([timer, stop] if stop.until else [timer]), FirstLogits()
        options |= {"stopping_criteria": criteria, "logits_processor": LogitsProcessorList([first])}
        with torch.inference_mode():
            timer.start()
            sequences = model.generate(**inputs, **extra, **options, pad_token_id=pad)
            timing = timer.stop()
        first.check(model.dtype)
        videos = iter(self._videos([size for own in prepared for size in own.sizes]))
        answers = []
        for row, own in enumerate(prepared):
            new = reply(sequences[row, width:], row, model.generation_config.eos_token_id, stop)
            shown = list(itertools.islice(videos, len(own.sizes)))
            text = stop.cut(tokenizer.decode(new, skip_special_tokens=True)).strip()
            counts = _count_tokens(own.inputs["input_ids"].shape[1], len(new), shown)
            answers.append(Answer(text, asdict(timing), counts, shown))
        return answers

    def loglikelihood(self, messages: Sequence[Message], continuation: str) -> Answer:
        """Log-likelihood of a text as the reply; the response is [sum of log-probabilities, whether greedy decoding
        gives it].
        """
        model, tokenizer = self.checkpoint.model, self.checkpoint.processor.tokenizer
        inputs, extra, sizes = self._prepare(messages)
        check_text(continuation)
        reply = inputs["input_ids"].new_tensor([spelled(continuation, tokenizer)])
        if reply.numel() == 0:
            raise ValueError(f"the continuation {continuation!r} has no tokens")
        width, count = inputs["input_ids"].shape[1], reply.shape[1]
        inputs["input_ids"] = torch.cat((inputs["input_ids"], reply), 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if "mm_token_type_ids" in inputs:
            inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, count))
        with torch.inference_mode():
            logits = model(**inputs, **extra, logits_to_keep=count + 1).logits[0, -count - 1 : -1].float()
        check_logits(logits, model.dtype)
        chosen = torch.log_softmax(logits, -1).gather(1, reply[0, :, None].to(logits.device))
        greedy = bool((logits.argmax(-1) == reply[0].to(logits.device)).all())
        videos = self._videos(sizes)
        return Answer([float(chosen.sum()), greedy], None, _count_tokens(width, count, videos), videos)

    def _prepare(self, messages: Sequence[Message]) -> Prepared:
        """Model inputs on the device, and keyword arguments only a pruner takes."""
        images, clips, keys, shown = [], [], [], []
        visuals: list[int] = []  # frames of each, 0 for an image
        instruct = getattr(self.checkpoint.processor, "time_instruction", None) if self.time_instruction else None
        for message in messages:
            parts = []
            for part in message["content"]:
                if part["type"] == "text":
                    parts.append({"type": "text", "text": part["text"]})
                elif part["type"] == "image":
                    images.append(open_image(part["image"]))
                    visuals.append(0)
                    parts.append({"type": "image"})
                elif part["type"] == "video":
                    clip = self._read(part)
                    clips.append(clip)
                    visuals.append(len(clip.frames))
                    keys.append(Path(part["video"]).stem)
                    parts.append({"type": "video"})
                    if instruct is not None:
                        since = [time - clip.timestamps[0] for time in clip.timestamps]
                        sentence = instruct(clip.duration, since, spaces=self.time_spaces)
                        parts.append({"type": "text", "text": sentence + "\n"})
                else:
                    raise ValueError(
                        f"a message part of type {part['type']!r}; text, image and video can be asked about"
                    )
            shown.append({"role": message["role"], "content": parts})
        text, spelled_texts = written(shown, self.checkpoint.processor)
        media: dict[str, Any] = {"images": images} if images else {}
        if clips:
            media["videos"] = [torch.from_numpy(clip.frames).permute(0, 3, 1, 2) for clip in clips]
            media["video_metadata"] = [metadata_of(clip) for clip in clips]
            media["videos_kwargs"] = {"do_sample_frames": False}  # sampled already, with their times known
        if self.limits is not None:
            media.setdefault("videos_kwargs", {})["do_resize"] = False
            media |= self.limits.of_images()
        batch = self.checkpoint.processor(text=[text], return_tensors="pt", **media)
        spell_out(batch, spelled_texts)
        inputs = dict(batch.to(self.checkpoint.device, self.checkpoint.model.dtype))
        model, family = self.checkpoint.model, family_of(self.checkpoint.model)
        # Where the inputs do not say it themselves (InternVL's).
        told = {"video_frames": visuals} if clips and "video_frames" in family.inputs else {}
        sizes = family.sizes(model.config, inputs | told)
        check_length(least_seen(inputs["input_ids"].shape[1], sizes, self.pruner), model)
        extra = {}
        if clips and self.pruner is not None:
            extra = told | {
                "video_timestamps": [torch.tensor(clip.timestamps, dtype=torch.float64) for clip in clips],
                "video_keys": keys,
            }
        if "video_second_per_grid" in inputs:  # Qwen3-Omni's processor has one for all videos, whatever their times
            pair = self.checkpoint.processor.video_processor.temporal_patch_size
            inputs["video_second_per_grid"] = torch.tensor([pair * _step(clip) for clip in clips])
        if self.times == "published" and "video_grid_thw" in inputs:
            for name in {"second_per_grid_ts", "video_second_per_grid"} & set(inputs):
                inputs[name] = torch.ones(len(clips), dtype=torch.float32)
            if extra:
                frames = inputs["video_grid_thw"][:, 0].tolist()
                extra["video_timestamps"] = [
                    torch.linspace(clip.timestamps[0], clip.timestamps[-1], count, dtype=torch.float64)
                    for clip, count in zip(clips, frames, strict=True)
                ]
        return Prepared(inputs, extra, sizes)

    def _check_seen(self, _: Any, __: Any, inputs: Mapping[str, Any]) -> None:
        """Called with what the language model is called with."""
        if (embeddings := inputs.get("inputs_embeds")) is not None:
            check_length(embeddings.shape[1], self.checkpoint.model)

    def _read(self, part: Mapping[str, Any]) -> Clip:
        """A video's frames; the last video is remembered, since benchmarks ask several questions in a row about one."""
        wanted = (str(part["video"]), part.get("start"), part.get("end"))
        if self._clip is None or self._clip[0] != wanted:
            sampling = self.sampling or self.max_frames
            with added(self.seconds, "read_s"):
                self._clip = (wanted, read_video(wanted[0], sampling, *wanted[1:], self._resized))
        return self._clip[1]

    def _resized(self, frames: int, frame: Picture) -> Picture:
        """A frame of a video of so many in the size it is to be shown in, (height, width, 3).

        This is the processor's own rule, applied early so that frames need not be held in the size they are stored in.
        """
        processor = self.checkpoint.processor.video_processor
        how = InterpolationMode.BICUBIC
        if self.limits is not None:
            factor = processor.patch_size * processor.merge_size
            size = self.limits.frame_size(frames, frame.shape[0], frame.shape[1], factor)
        elif processor.do_resize and processor.size["height"]:
            size, how = (processor.size["height"], processor.size["width"]), processor.resample
        else:
            return frame
        with added(self.seconds, "resize_s"):
            return resized(frame, size, how)

    def _videos(self, sizes: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """What became of each video of the last call, of (frames, tokens). Newlines are never counted."""
        if self._pruned is not None:
            return [
                {
                    "frames": record.frames,
                    "grid": list(record.grid),
                    "segment_sizes": list(record.segment_sizes),
                    "tokens_before": record.tokens_before,
                    "tokens_after": record.tokens_after,
                    "tokens_in_llm": record.tokens_in_llm,
                    "average_retention": record.average_retention,
                    "tower_computed": record.tower_computed,
                    "kept": hashlib.sha256(record.indices.numpy().tobytes()).hexdigest()[:16],
                }
                for record in self._pruned.videos
            ]
        return [{"frames": frames, "tokens_before": count, "tokens_after": count} for frames, count in sizes]


def _count_tokens(prompt: int, new: int, videos: Sequence[Mapping[str, Any]]) -> dict[str, int | float]:
    """input_tokens is the prompt as written, before pruning; video_tokens_average what a layer sees in the mean."""
    return {
        "input_tokens": prompt,
        "output_tokens": new,
        "video_tokens_before": sum(video["tokens_before"] for video in videos),
        "video_tokens_after": sum(video["tokens_after"] for video in videos),
        "video_tokens_average": sum(_average(video) for video in videos),
    }


def _average(video: Mapping[str, Any]) -> float:
    """A video's tokens at prefill in the mean over the language model's layers."""
    share = video.get("average_retention")
    return float(video["tokens_after"] if share is None else video["tokens_before"] * share)


def metadata_of(clip: Clip) -> dict[str, Any]:
    """What a processor that tells the model about time (Qwen's) must know of sampled frames."""
    rate = clip.total_frames / clip.duration if clip.duration > 0 else 1.0
    first = clip.timestamps[0]
    return {
        "total_num_frames": clip.total_frames,
        "fps": rate,
        "duration": clip.duration,
        "frames_indices": [round((time - first) * rate) for time in clip.timestamps],
    }


def _step(clip: Clip) -> float:
    """Seconds from one sampled frame to the next, as processors have it of the metadata above."""
    told = metadata_of(clip)
    return float(told["total_num_frames"] / told["fps"] / len(clip.frames))


def resized(frame: Picture, size: Sequence[int], how: InterpolationMode = InterpolationMode.BICUBIC) -> Picture:
    """A frame (height, width, 3) in another size."""
    pixels = torch.from_numpy(frame).permute(2, 0, 1)
    shown: Picture = resize(pixels, list(size), how, antialias=True).permute(1, 2, 0).numpy()
    return shown


def open_image(image: Any) -> Image.Image:
    """A PIL image or a file, in RGB."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, str | Path):
        with Image.open(image) as opened:
            return opened.convert("RGB")
    raise ValueError(f"an image must be a PIL image or a file, got {type(image).__name__}")
