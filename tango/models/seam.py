"""The seam between a pruning method and a model: encode, prune, splice, then let the model go on by itself.

Nothing here knows a model family or a pruning method. A family (one file each) says where features, saliency, grid and
placeholders are; a pruner turns one video's features into fewer. Data goes one way:

    prompt -> family.videos() -> pruner.prune() -> family.lay_out() -> a shorter prompt as embeddings -> the model

Two places of a model are covered while a `Seam` is installed. `generate()` is replaced on the instance: it prunes once
and calls the original with the caller's full `input_ids` *and* the shorter `inputs_embeds`. transformers reads the
prompt from the embeddings and does its bookkeeping on the ids, so returned sequences, streamers, logits processors and
stopping criteria see the prompt as it was written. `forward()` is covered by a pre-hook, which also serves generation
without a cache. Both are undone when the context ends.
"""

import contextlib
import copy
import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from tango.models.family import Family, Video
from tango.models.in_llm import DecoderPruner
from tango.models.prompt import Edit, Prompt, Side, cache_of, shorten
from tango.pruners.base import Pruner
from tango.pruners.video import Pruned, VideoTokens

# Ways of generating that read the prompt's ids where ours needs its embeddings, or that replace generate() altogether.
UNSUPPORTED = (
    "assistant_model", "prompt_lookup_num_tokens", "custom_generate", "prefill_chunk_size", "token_healing",
    "encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "penalty_alpha", "dola_layers", "force_words_ids",
    "constraints",
)  # fmt: skip
# Keyword arguments that only exist while a pruner is attached.
OURS = ("video_timestamps", "video_keys", "video_metadata")


@dataclass(frozen=True)
class VideoRecord:
    """What became of one video. Token counts are visual tokens; newline embeddings are not counted.

    `indices` (tokens_after,) are flat indices f*H*W + h*W + w on the CPU, in the order the method
    gives them, in which the language model sees them unless its family lays tokens out in rows (LLaVA-Video).
    tokens_in_llm: those that its last layers still see, where they are pruned inside it too, and average_retention:
    the share of tokens_before that its layers see at prefill, in the mean over all of them.
    """

    tokens_before: int
    tokens_after: int
    grid: tuple[int, int]
    frames: int
    segment_sizes: list[int]
    indices: Tensor
    tokens_in_llm: int
    average_retention: float


@dataclass
class Session:
    """What the caller of attach() gets: `videos`, one record per video of the last call, in prompt order."""

    videos: list[VideoRecord] = field(default_factory=list)


class Seam:
    """One pruner on one model: what generate() and forward() do while they are attached."""

    def __init__(
        self, model: nn.Module, family: Family, pruner: Pruner, decoder_pruner: DecoderPruner | None = None
    ) -> None:
        self.model: Any = model
        self.family = family
        self.pruner = pruner
        self.decoder_pruner = decoder_pruner
        self.session = Session()
        self._generating = False
        self._uncached: tuple[Prompt, int] | None = None  # the pruned prompt and its unpruned width N

    @contextlib.contextmanager
    def installed(self) -> Iterator[Session]:
        """Cover the model's generate() and forward(); uncover them at the end, whatever happened."""
        before = vars(self.model).get("generate")
        if hasattr(before, "seam"):
            raise RuntimeError(
                f"a pruner ({before.seam.pruner.name}) is attached to this {type(self.model).__name__} already; "
                f"leave its context before you attach {self.pruner.name}"
            )
        original = self.model.generate

        @functools.wraps(original)
        def generate(*args: Any, **kwargs: Any) -> Any:
            return self.generate(original, by_name(type(self.model).generate, args, kwargs))

        generate.seam = self  # type: ignore[attr-defined]
        hook = self.model.register_forward_pre_hook(self.before_forward, with_kwargs=True)
        self.model.generate = generate
        inside = self.decoder_pruner.installed(self.session) if self.decoder_pruner else contextlib.nullcontext()
        try:
            with self.family.installed(), inside:  # the decoder's hooks run in this order
                yield self.session
        finally:
            hook.remove()
            del self.model.generate
            if before is not None:  # somebody else's replacement on the instance
                self.model.generate = before

    # -- generate ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, original: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """The original generate() on the pruned prompt. Sequences come back as without pruning: prompt, new tokens.

        Takes two more keyword arguments, both one entry per video in prompt order: `video_timestamps` (each (F,)
        seconds; else the processor's `video_metadata`; else frame f is at second f) and `video_keys` (ids as text).
        Hidden states, attentions and caches that are asked for are those of the pruned prompt. Lengths (`max_length`,
        `min_length`) count the unpruned prompt. Raises ValueError for modes that cannot work on embeddings.
        """
        self.session.videos = []
        self._arm(None)  # a call of forward() that failed may have left its prompt
        self._generating = True
        try:
            if not self._has_video(kwargs):
                return original(**without(kwargs, OURS))
            return original(**self._pruned_call(kwargs))
        finally:
            self._generating = False
            self._uncached = None
            self._arm(None)

    def _arm(self, prompt: Prompt | None) -> None:
        """The next call of the language model is on this prompt: for what is to be done inside of it."""
        self.family.begin(prompt)
        if self.decoder_pruner is not None:
            self.decoder_pruner.arm(prompt)

    def _pruned_call(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of generate() for a prompt with videos."""
        if kwargs.get("inputs") is not None:
            if kwargs.get("input_ids") is not None:
                raise ValueError("generate() got the prompt twice, as `inputs` and as `input_ids`; pass one of them")
            kwargs["input_ids"] = kwargs["inputs"]
        kwargs.pop("inputs", None)
        for name in UNSUPPORTED:
            if asked_for(value := self._setting(kwargs, name)):
                raise ValueError(f"{name}={value!r} does not work while a pruner is attached; leave it out")
        if self._setting(kwargs, "cache_implementation") == "paged":
            raise ValueError("cache_implementation='paged' does not work while a pruner is attached; leave it out")
        ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
        if ids is None and embeds is None:
            raise ValueError("a prompt with videos needs input_ids or inputs_embeds")
        if kwargs.get("attention_mask") is None:
            kwargs["attention_mask"] = self._infer_mask(kwargs)
        prompt = self.prune(kwargs, side="left")
        call = without(kwargs, OURS + self.family.inputs)
        if ids is not None and embeds is None and self._setting(kwargs, "use_cache") is False:
            # transformers only takes embeddings with a cache, so here the forward hook puts the prompt in at each step.
            if asked_for(self._setting(kwargs, "guidance_scale")):
                raise ValueError("guidance_scale with use_cache=False does not work while a pruner is attached")
            self._uncached = (prompt, ids.shape[1])
            return call
        call |= {"inputs_embeds": prompt.inputs_embeds, "attention_mask": prompt.attention_mask}
        if prompt.position_ids is not None:
            call["position_ids"] = prompt.position_ids
        full, width = kwargs["attention_mask"].shape[1], prompt.source.shape[1]
        self._shift_lengths(call, 0 if ids is None else ids.shape[1], full, width)
        return call

    def _setting(self, kwargs: Mapping[str, Any], name: str) -> Any:
        """A generation setting as transformers resolves it: keyword, then generation_config, then the model's."""
        configs = (kwargs.get("generation_config"), self.model.generation_config)
        sources = (kwargs, *(vars(config) for config in configs if config is not None))
        return next((source[name] for source in sources if source.get(name) is not None), None)

    def _infer_mask(self, kwargs: Mapping[str, Any]) -> Tensor:
        """The mask generate() would make, told on the unpruned prompt: pads are masked unless eos is the pad."""
        if (ids := kwargs.get("input_ids")) is None:
            embeds: Tensor = kwargs["inputs_embeds"]
            return torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        pad, eos = self._setting(kwargs, "pad_token_id"), self._setting(kwargs, "eos_token_id")
        if pad is None or pad in (eos if isinstance(eos, list | tuple) else [eos]):
            return torch.ones_like(ids)
        mask: Tensor = ids != pad
        return mask.long()

    def _shift_lengths(self, call: dict[str, Any], counted: int, full: int, width: int) -> None:
        """Make max_length and min_length mean what they mean without pruning, where the prompt is `full` wide.

        generate() takes the embeddings' width off both when it differs from the number of ids, `counted`.
        """
        shift = (width if width != counted else 0) - (full if full != counted else 0)
        if not shift:
            return
        config = call.get("generation_config")
        if config is not None:
            call["generation_config"] = config = copy.deepcopy(config)
        for name, stronger in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
            if (value := self._setting(call, name)) and self._setting(call, stronger) is None:
                if config is None or call.get(name) is not None:
                    call[name] = value + shift
                else:
                    setattr(config, name, value + shift)

    # -- forward -------------------------------------------------------------------------------------------------

    def before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Forward pre-hook: a call with videos runs on the pruned prompt and returns its logits (B, W, vocabulary).

        `labels` follow their tokens. Takes the two extra keyword arguments of generate(). A cache that the call returns
        holds the pruned prompt: whoever goes on from it by hand gives a mask of that length.
        """
        if self._generating and self._uncached is None:
            return None
        kwargs = by_name(type(module).forward, args, kwargs)
        if self._uncached is not None:
            return (), self._step_without_cache(kwargs, *self._uncached)
        self.session.videos = []
        self._arm(None)
        if not self._has_video(kwargs):
            return (), without(kwargs, OURS)
        if self.decoder_pruner is not None and kwargs.get("labels") is not None:
            raise ValueError("labels do not work with pruning inside the language model: their tokens may be dropped "
                             "there; compute the loss from the logits, or unset pruned_layer")  # fmt: skip
        prompt = self.prune(kwargs, side=None)
        call = without(kwargs, OURS + self.family.inputs + ("input_ids",))
        whole = prompt.unchanged and self.decoder_pruner is None
        if not whole and isinstance(kwargs.get("logits_to_keep"), Tensor):
            raise ValueError("logits_to_keep as a tensor of positions does not work while a pruner is attached: "
                             "positions move; pass a number of last positions")  # fmt: skip
        for name, padding in (("labels", -100), ("token_type_ids", 0), ("mm_token_type_ids", 0)):
            if kwargs.get(name) is not None:
                call[name] = prompt.align(kwargs[name], padding)
        call |= {
            "inputs_embeds": prompt.inputs_embeds,
            "attention_mask": prompt.attention_mask,
            "position_ids": prompt.position_ids,
        }
        return (), call

    def _step_without_cache(self, kwargs: dict[str, Any], prompt: Prompt, full: int) -> dict[str, Any]:
        """One step of generation without a cache: the pruned prompt, then the tokens generated so far."""
        self._arm(prompt)
        new = kwargs.pop("input_ids")[:, full:]
        times = len(new) // len(prompt.inputs_embeds)  # beams, returned sequences: rows of one prompt lie together
        mask = prompt.attention_mask
        if mask is None:
            mask = prompt.inputs_embeds.new_ones(prompt.inputs_embeds.shape[:2], dtype=torch.long)
        positions = prompt.position_ids
        if positions is None:
            positions = (mask.long().cumsum(1) - 1).masked_fill(mask == 0, 0)
        mask, positions = mask.repeat_interleave(times, 0), positions.repeat_interleave(times, -2)
        later = positions[..., -1:] + torch.arange(1, new.shape[1] + 1, device=positions.device)
        embeds = prompt.inputs_embeds.repeat_interleave(times, 0)
        return kwargs | {
            "inputs_embeds": torch.cat((embeds, self.model.get_input_embeddings()(new)), 1),
            "attention_mask": torch.cat((mask, mask.new_ones(new.shape)), 1),
            "position_ids": torch.cat((positions, later), -1),
        }

    # -- both ----------------------------------------------------------------------------------------------------

    def _has_video(self, kwargs: Mapping[str, Any]) -> bool:
        found = any(kwargs.get(name) is not None for name in self.family.video_inputs)
        encoded = kwargs.get("mm_encoder_outputs") or {}
        if encoded.get("video") is not None or (found and encoded):
            raise ValueError(
                "mm_encoder_outputs does not work while a pruner is attached: videos are pruned as they are encoded; "
                "pass pixel_values_videos, and images as pixel_values"
            )
        return found

    def prune(self, inputs: Mapping[str, Any], side: Side | None) -> Prompt:
        """Encode and prune the videos of a prompt and embed what is left.

        side: where rows that end up shorter than others are padded; None: where the prompt is padded already, or left.
        """
        embeds = inputs.get("inputs_embeds")
        ids = inputs.get("input_ids") if embeds is None else None
        given = embeds if ids is None else ids
        if given is None:
            raise ValueError("a prompt with videos needs input_ids or inputs_embeds")
        check_prefill(inputs)
        mask = inputs.get("attention_mask")
        batch, width = given.shape[:2]
        if mask is not None and tuple(mask.shape) != (batch, width):
            raise ValueError(f"attention_mask has shape {tuple(mask.shape)}; the prompt needs {(batch, width)}")

        edits = []
        for video, pruned in self._prune_videos(inputs):
            embeddings, columns = self.family.lay_out(video, pruned)
            visual = torch.isin(columns, self.family.token_columns(video).to(columns.device))
            edits.append(Edit(video.row, video.columns, columns, embeddings, visual))
        prompt = shorten(self.family, inputs, edits, side, self.pruner.keep_positions)
        self._arm(prompt)
        return prompt

    def _prune_videos(self, inputs: Mapping[str, Any]) -> Iterator[tuple[Video, Pruned]]:
        """Every video of a prompt with its pruned tokens; fills the session's records on the way."""
        times, keys = inputs.get("video_timestamps"), inputs.get("video_keys")
        if times is None:
            times = metadata_timestamps(inputs.get("video_metadata"))
        records: list[VideoRecord] = []
        seen: Counter[int] = Counter()
        for index, video in enumerate(self.family.videos(inputs)):
            # The ordinal counts within the prompt, so that a prompt is pruned alike in any batch.
            key = str(entry(keys, index, "video_keys")) if keys is not None else str(seen[video.row])
            seen[video.row] += 1
            frames, length, _ = video.features.shape
            given = None if times is None else entry(times, index, "video_timestamps")
            seconds = self.family.timestamps(video, given)
            vectors = video.segment_features
            parts = {"saliency": video.saliency, "keys": video.keys, "key": key}
            parts |= {"segment_features": vectors, "frame_vectors": vectors}
            needed: dict[str, Any] = {name: parts[name] for name in self.pruner.needs}
            try:
                tokens = VideoTokens(video.features, video.grid, seconds, **needed)
            except ValueError as error:
                raise ValueError(f"video {index} (key {key!r}): its {error}") from error
            pruned = self._pruner_for(video).prune_tokens(tokens)
            indices, sizes = pruned.indices.cpu(), [int(size) for size in pruned.segment_sizes]
            before, after = frames * length, len(indices)
            records.append(VideoRecord(before, after, video.grid, frames, sizes, indices, after, after / before))
            yield video, pruned
        for name, values in (("video_keys", keys), ("video_timestamps", times)):
            if values is not None and len(values) != len(records):
                raise ValueError(f"{name} has {len(values)} entries for {len(records)} videos")
        self.session.videos = records

    def _pruner_for(self, video: Video) -> Pruner:
        """The pruner, with the family's attention sinks where it has a field for them that is not set."""
        sinks = self.family.sink_tokens(video.grid)
        if sinks is None or getattr(self.pruner, "sink_tokens", sinks) is not None:
            return self.pruner
        settings: dict[str, Any] = {"sink_tokens": sinks}
        return replace(self.pruner, **settings)


def asked_for(value: Any) -> bool:
    """Whether a generation setting asks for anything; 1.0 is a penalty or scale that does nothing."""
    return value is True or value not in (None, False, 1.0)


def by_name(method: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a call of a class's method by their names, without `self`."""
    names = list(inspect.signature(method).parameters)[1:]
    return dict(zip(names, args, strict=False)) | dict(kwargs)


def without(kwargs: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in names}


def entry(values: Sequence[Any], index: int, name: str) -> Any:
    if index >= len(values):
        raise ValueError(f"{name} has {len(values)} entries, and video {index} (from 0) has none")
    return values[index]


def check_prefill(inputs: Mapping[str, Any]) -> None:
    """Videos are pruned at prefill, into an empty cache: columns of an earlier prompt could not be told apart."""
    cache = cache_of(inputs)
    if cache is not None and cache.get_seq_length() > 0:
        raise ValueError(
            f"the cache holds {cache.get_seq_length()} tokens and the prompt a video: while a pruner is attached "
            "videos must come in the first prompt; pass an empty cache"
        )


def metadata_timestamps(metadata: Sequence[Any] | None) -> list[list[float] | None] | None:
    """Seconds of the sampled frames from a processor's `video_metadata`; None for a video without frame rate."""
    if metadata is None:
        return None
    times: list[list[float] | None] = []
    for video in metadata:
        video = video[0] if isinstance(video, list | tuple) else video
        rate, frames = video["fps"], video["frames_indices"]
        times.append(None if rate is None or frames is None else [float(frame) / rate for frame in frames])
    return times
