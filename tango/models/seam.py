"""The seam between a pruning method and a model: encode, prune, splice, then let the model go on by itself.

Nothing here knows a model family or a pruning method. A family (one file each) says where features, saliency, grid and
placeholders are; a pruner turns one video's features into fewer. Data goes one way:

    prompt -> family.videos() -> pruner.prune_tokens() -> family.lay_out() -> family.shorten() -> the model

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tango.models.family import Family
from tango.models.in_llm import DecoderPruner
from tango.models.prompt import PaddingSide, Prompt, cache_of, written
from tango.models.session import Session, VideoRecord
from tango.pruners.base import Pruner

# Ways of generating that read the prompt's ids where ours needs its embeddings, or that replace generate() altogether.
UNSUPPORTED = (
    "assistant_model", "prompt_lookup_num_tokens", "custom_generate", "prefill_chunk_size", "token_healing",
    "encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "penalty_alpha", "dola_layers", "force_words_ids",
    "constraints",
)  # fmt: skip
# Keyword arguments that only exist while a pruner is attached.
OURS = ("video_timestamps", "video_keys", "video_metadata")


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
    def generate(self, original: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        """Run the replaced method on the pruned prompt. Sequences come back as without pruning: prompt, new tokens.

        Takes two more keyword arguments, both one entry per video in prompt order: `video_timestamps` (each (F,)
        seconds; else the processor's `video_metadata`; else frame f is at second f) and `video_keys` (ids as text).
        Hidden states, attentions and caches that are asked for are those of the pruned prompt. Lengths (`max_length`,
        `min_length`) count the unpruned prompt. Raises ValueError for modes that cannot work on embeddings.
        """
        self.session.videos = []
        self._arm(None)  # a call of forward() that failed may have left its prompt
        self._generating = True
        try:
            if not self._has_video(inputs):
                return original(**without(inputs, OURS))
            return original(**self._pruned_call(inputs))
        finally:
            self._generating = False
            self._uncached = None
            self._arm(None)

    def _arm(self, prompt: Prompt | None) -> None:
        """The next call of the language model is on this prompt: for what is to be done inside of it."""
        self.family.begin(prompt)
        if self.decoder_pruner is not None:
            self.decoder_pruner.arm(prompt)

    def _pruned_call(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of generate() for a prompt with videos."""
        if inputs.get("inputs") is not None:
            if inputs.get("input_ids") is not None:
                raise ValueError("generate() got the prompt twice, as `inputs` and as `input_ids`; pass one of them")
            inputs["input_ids"] = inputs["inputs"]
        inputs.pop("inputs", None)
        for name in UNSUPPORTED:
            if asked_for(value := self._setting(inputs, name)):
                raise ValueError(f"{name}={value!r} does not work while a pruner is attached; leave it out")
        if self._setting(inputs, "cache_implementation") == "paged":
            raise ValueError("cache_implementation='paged' does not work while a pruner is attached; leave it out")
        ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
        check_prompt(inputs)
        if inputs.get("attention_mask") is None:
            inputs["attention_mask"] = self._infer_mask(inputs)
        prompt = self.prune(inputs, side="left")
        call = without(inputs, OURS + self.family.inputs)
        if ids is not None and embeds is None and self._setting(inputs, "use_cache") is False:
            # transformers only takes embeddings with a cache, so here the forward hook puts the prompt in at each step.
            if asked_for(self._setting(inputs, "guidance_scale")):
                raise ValueError("guidance_scale with use_cache=False does not work while a pruner is attached")
            self._uncached = (prompt, ids.shape[1])
            return call
        call |= {"inputs_embeds": prompt.inputs_embeds, "attention_mask": prompt.attention_mask}
        if prompt.position_ids is not None:
            call["position_ids"] = prompt.position_ids
        full, width = inputs["attention_mask"].shape[1], prompt.source.shape[1]
        self._shift_lengths(call, 0 if ids is None else ids.shape[1], full, width)
        return call

    def _setting(self, inputs: Mapping[str, Any], name: str) -> Any:
        """A generation setting as transformers resolves it: keyword, then generation_config, then the model's."""
        configs = (inputs.get("generation_config"), self.model.generation_config)
        sources = (inputs, *(vars(config) for config in configs if config is not None))
        return next((source[name] for source in sources if source.get(name) is not None), None)

    def _infer_mask(self, inputs: Mapping[str, Any]) -> Tensor:
        """The mask generate() would make of the unpruned prompt: pads are masked unless eos is the pad."""
        if (ids := inputs.get("input_ids")) is None:
            return torch.ones_like(inputs["inputs_embeds"][..., 0], dtype=torch.long)
        pad, eos = self._setting(inputs, "pad_token_id"), self._setting(inputs, "eos_token_id")
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
        inputs = by_name(type(module).forward, args, kwargs)
        if self._uncached is not None:
            return (), self._step_without_cache(inputs, *self._uncached)
        self.session.videos = []
        self._arm(None)
        if not self._has_video(inputs):
            return (), without(inputs, OURS)
        if self.decoder_pruner is not None and inputs.get("labels") is not None:
            raise ValueError("labels do not work with pruning inside the language model: their tokens may be dropped "
                             "there; compute the loss from the logits, or unset pruned_layer")  # fmt: skip
        prompt = self.prune(inputs, side=None)
        call = without(inputs, OURS + self.family.inputs + ("input_ids",))
        whole = prompt.unchanged and self.decoder_pruner is None
        if not whole and isinstance(inputs.get("logits_to_keep"), Tensor):
            raise ValueError("logits_to_keep as a tensor of positions does not work while a pruner is attached: "
                             "positions move; pass a number of last positions")  # fmt: skip
        for name, padding in (("labels", -100), ("token_type_ids", 0), ("mm_token_type_ids", 0)):
            if inputs.get(name) is not None:
                call[name] = prompt.align(inputs[name], padding)
        call |= {name: getattr(prompt, name) for name in ("inputs_embeds", "attention_mask", "position_ids")}
        return (), call

    def _step_without_cache(self, inputs: dict[str, Any], prompt: Prompt, full: int) -> dict[str, Any]:
        """One step of generation without a cache: the pruned prompt, then the tokens generated so far."""
        self._arm(prompt)
        new = inputs.pop("input_ids")[:, full:]
        times = len(new) // len(prompt.inputs_embeds)  # beams, returned sequences: rows of one prompt lie together
        mask, positions = prompt.attended().long(), prompt.position_ids
        if positions is None:
            positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 0)
        mask, positions = mask.repeat_interleave(times, 0), positions.repeat_interleave(times, -2)
        later = positions[..., -1:] + torch.arange(1, new.shape[1] + 1, device=positions.device)
        embeds = prompt.inputs_embeds.repeat_interleave(times, 0)
        return inputs | {
            "inputs_embeds": torch.cat((embeds, self.model.get_input_embeddings()(new)), 1),
            "attention_mask": torch.cat((mask, mask.new_ones(new.shape)), 1),
            "position_ids": torch.cat((positions, later), -1),
        }

    # -- both ----------------------------------------------------------------------------------------------------

    def _has_video(self, inputs: Mapping[str, Any]) -> bool:
        found = any(inputs.get(name) is not None for name in self.family.video_inputs)
        encoded = inputs.get("mm_encoder_outputs") or {}
        if encoded.get("video") is not None or (found and encoded):
            raise ValueError(
                "mm_encoder_outputs does not work while a pruner is attached: videos are pruned as they are encoded; "
                "pass pixel_values_videos, and images as pixel_values"
            )
        return found

    def prune(self, inputs: Mapping[str, Any], side: PaddingSide | None) -> Prompt:
        """Encode and prune the videos of a prompt and embed what is left; fills the session's records.

        side: where rows that end up shorter than others are padded; None: where the prompt is padded already, or left.
        """
        check_prompt(inputs)
        edits, records = [], []
        for video in self.family.videos(inputs):
            grid: Any = video.tokens.grid
            pruned = self._pruner_for(grid).prune_tokens(video.tokens)
            edits.append(self.family.lay_out(video, pruned))
            frames, length, _ = video.tokens.features.shape
            before, after, sizes = frames * length, len(pruned.indices), pruned.segment_sizes.tolist()
            records.append(VideoRecord(before, after, grid, frames, sizes, pruned.indices.cpu(), after, after / before))
        prompt = self.family.shorten(inputs, edits, side, self.pruner.keep_positions)
        self.session.videos = records
        self._arm(prompt)
        return prompt

    def _pruner_for(self, grid: tuple[int, int]) -> Pruner:
        """The pruner, with the family's attention sinks where it has a field for them that is not set."""
        sinks = self.family.sinks.get(grid)
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


def without(inputs: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The arguments of a call but for those of these names."""
    return {name: value for name, value in inputs.items() if name not in names}


def check_prompt(inputs: Mapping[str, Any]) -> None:
    """Raise ValueError unless a prompt has ids or embeddings, a mask that fits them, and an empty cache.

    Videos are pruned at prefill: columns of an earlier prompt could not be told apart from those of this one.
    """
    shape, cache, mask = written(inputs).shape[:2], cache_of(inputs), inputs.get("attention_mask")
    if cache is not None and cache.get_seq_length() > 0:
        raise ValueError(
            f"the cache holds {cache.get_seq_length()} tokens and the prompt a video: while a pruner is attached "
            "videos must come in the first prompt; pass an empty cache"
        )
    if mask is not None and mask.shape != shape:
        raise ValueError(f"attention_mask has shape {tuple(mask.shape)}; the prompt needs {tuple(shape)}")
