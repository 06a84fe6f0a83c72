"""The seam between a pruning method and a model: encode, prune, splice, then let the model go on by itself.

Nothing here knows a model family or a pruning method. Data goes one way:

    prompt -> family.videos() -> pruner.prune_tokens() -> family.lay_out() -> family.shorten() -> the model

`generate()` is replaced on the instance: it prunes once and calls the original with the caller's full `input_ids` *and*
the shorter `inputs_embeds`. transformers reads the prompt from the embeddings and does its bookkeeping on the ids, so
returned sequences, streamers, logits processors and stopping criteria see the prompt as it was written. `forward()` is
replaced too: called by hand it is in calls.py, and going on from a pruned prompt's cache, for both, in cache.py.
"""

import functools
import inspect
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from tango.models import refusals
from tango.models.cache import continued, held_by, next_tokens
from tango.models.calls import by_hand, infer_mask, named, shift_length, without_cache
from tango.models.family import Family
from tango.models.in_llm import DecoderPruner
from tango.models.prompt import HELD, OURS, Held, PaddingSide, Prompt, Session, VideoRecord, cache_of, without, written
from tango.pruners.base import Pruner


class Seam:
    """One pruner on one model: what generate() and forward() do while they are attached.

    One call at a time: hooks, and Qwen's `rope_deltas` also without a pruner, hold what belongs to a call. A call of
    another thread waits, also while this one streams.
    """

    __reduce_ex__ = refusals.part_copied

    def __init__(self, model: Any, family: Family, pruner: Pruner, decoder_pruner: DecoderPruner | None) -> None:
        self.model, self.family, self.pruner, self.decoder_pruner = model, family, pruner, decoder_pruner
        self.session = Session()
        self.lock = threading.RLock()
        self.attached, self._generating = True, False
        self._uncached: tuple[Prompt, int] | None = None  # the pruned prompt and its unpruned width N
        self._filling: Held | None = None  # what the cache of the next forward() will hold

    def replacement(self, name: str) -> Callable[..., Any]:
        """What stands in for a method of the model; after `attached` is False it does what that did."""
        original: Any = getattr(self.model, name)

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            args = args[1:] if args and args[0] is self.model else args  # bound to the model, as accelerate does it
            if not self.attached:
                return original(*args, **kwargs)
            if ours := getattr(self, name, None):
                return ours(original, (named(self.model, name, original, args) if args else {}) | kwargs)
            self.past(self.model, args, kwargs)  # prepare_inputs_for_generation(), which any generate() calls
            return original(*args, **kwargs)

        del call.__wrapped__  # who unwraps a method, as accelerate does too, would go past the pruner
        call.__signature__, call.seam = inspect.signature(original), self  # type: ignore[attr-defined]
        return call

    @torch.no_grad()
    def generate(self, original: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        """Run the replaced method on the pruned prompt. Sequences come back as without pruning: prompt, new tokens.

        Takes two more keyword arguments, both one entry per video in prompt order: `video_timestamps` (each (F,)
        seconds; else the processor's `video_metadata`; else frame f is at second f) and `video_keys` (ids as text).
        Hidden states, attentions and caches that are asked for are those of the pruned prompt; a later call may go on
        from such a cache, with the whole conversation and no video. Lengths (`max_length`, `min_length`) count the
        unpruned prompt. Raises ValueError for modes that cannot work on embeddings.
        """
        with self.lock:
            outer = self._generating, self._uncached, self.session.videos  # where a bystander of generate() calls it
            self._begin()
            self.session.videos, self._generating = [], True
            try:
                return original(**self._call(inputs))
            finally:
                self._begin()
                self._generating, self._uncached, videos = outer
                self.session.videos = videos if self._generating else self.session.videos

    def forward(self, original: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        """Run the replaced method, on the pruned prompt where it is called by hand."""
        with self.lock:
            if not self._generating:
                self._begin()
                self.session.videos = []
                inputs = by_hand(inputs, self.family, self.decoder_pruner, self.prune)
            self.past(self.model, (), inputs)
            if self._uncached is not None and written(inputs).shape[1] >= self._uncached[1]:  # else of a bystander
                self._arm(self._uncached[0])
                inputs = without_cache(inputs, *self._uncached, self.model.get_input_embeddings())
            held, self._filling = self._filling, None
            output = original(**inputs)
            if self.decoder_pruner is not None:
                self.decoder_pruner.check()
            if held is not None:
                parts = output.values() if isinstance(output, dict) else output if isinstance(output, tuple) else ()
                for cache in (one for one in (*parts, cache_of(inputs)) if hasattr(one, "get_seq_length")):
                    setattr(cache, HELD, held)
            return output

    def past(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Raise ValueError if videos are among the arguments of what is called on pruned prompts alone."""
        if self.family.has_video(kwargs | ({"input_ids": args[0]} if args else {}), refusals.past):
            raise refusals.past()

    def _begin(self) -> None:
        """Forget what an earlier call has left, which may have failed."""
        self._uncached = self._filling = None
        self._arm(None)

    def _arm(self, prompt: Prompt | None) -> None:
        """The next call of the language model is on this prompt: for what is to be done inside of it."""
        self.family.begin(prompt)
        if self.decoder_pruner is not None:
            self.decoder_pruner.arm(prompt)

    def _call(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of generate() for a prompt with videos, or for one that goes on from such a prompt's cache."""
        if getattr(inputs.get("generation_config"), "is_assistant", False):
            raise refusals.assistant(self.model, self.pruner.name)
        found = self.family.has_video(inputs)
        held: Any = getattr(cache_of(inputs), HELD, None)
        if not found and (held is None or (held := held_by(inputs, self.decoder_pruner)) is None):
            return without(inputs, OURS)
        if "inputs_embeds" not in inspect.signature(self.model.prepare_inputs_for_generation).parameters:
            raise refusals.virtual_tokens()
        if (ids := inputs.pop("inputs", None)) is not None:
            if inputs.get("input_ids") is not None:
                raise ValueError("generate() got the prompt twice, as `inputs` and as `input_ids`; pass one of them")
            inputs["input_ids"] = ids
        settings = {name: self._setting(inputs, name) for name in (*refusals.UNSUPPORTED, "cache_implementation")}
        for name, value in settings.items():
            if value == "paged" if name == "cache_implementation" else asked_for(value):
                raise refusals.unsupported(name, value)
        call = without(inputs, OURS + self.family.inputs)
        ids, embeds, width = inputs.get("input_ids"), inputs.get("inputs_embeds"), written(inputs).shape[1]
        if not found:
            call |= continued(next_tokens(held, inputs, whole=True), self.model.get_input_embeddings())
        else:
            if inputs.get("attention_mask") is None:
                inputs["attention_mask"] = infer_mask(inputs, self._setting)
            prompt = self.prune(inputs, side="left")
            if ids is not None and embeds is None and self._setting(inputs, "use_cache") is False:
                # transformers only takes embeddings with a cache, so here forward() puts the prompt in at each step.
                if asked_for(self._setting(inputs, "guidance_scale")):
                    raise ValueError("guidance_scale with use_cache=False does not work while a pruner is attached")
                self._uncached = (prompt, width)
                return without(inputs, OURS + self.family.inputs)
            call |= {name: getattr(prompt, name) for name in ("inputs_embeds", "attention_mask", "position_ids")}
        if call["position_ids"] is None:
            del call["position_ids"]
        for name, stronger in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
            if (value := self._setting(call, name)) and self._setting(call, stronger) is None:
                shift_length(call, name, value, ids, width)
        return call

    def _setting(self, inputs: Mapping[str, Any], name: str) -> Any:
        """A generation setting as transformers resolves it: keyword, then generation_config, then the model's."""
        configs = (inputs.get("generation_config"), self.model.generation_config)
        sources = (inputs, *(vars(config) for config in configs if config is not None))
        return next((source[name] for source in sources if source.get(name) is not None), None)

    def prune(self, inputs: Mapping[str, Any], side: PaddingSide | None) -> Prompt:
        """Encode and prune the videos of a prompt and embed what is left; fills the session's records.

        side: where rows that end up shorter than others are padded; None: where the prompt is padded already, or left.
        """
        shape, cache, mask = written(inputs).shape[:2], cache_of(inputs), inputs.get("attention_mask")
        if cache is not None and cache.get_seq_length() > 0:
            raise refusals.cache_in_use(cache.get_seq_length())
        if mask is not None and mask.shape != shape:
            raise ValueError(f"attention_mask has shape {tuple(mask.shape)}; the prompt needs {tuple(shape)}")
        core = self.model if self.family.core is self.model else self.model.model
        if getattr(core, self.family.vision) is not self.family.tower:
            raise refusals.replaced_since("vision tower")
        edits, records = [], []
        for video in self.family.videos(inputs):
            grid: Any = video.tokens.grid
            pruned, before = video.prune(self.pruner_for(grid))
            edits.append(self.family.lay_out(video, pruned))
            frames, after, sizes = len(video.tokens.features), len(pruned.indices), pruned.segment_sizes.tolist()
            kept, shares = pruned.indices.cpu(), (after / before, video.computed)
            records.append(VideoRecord(before, after, grid, frames, sizes, kept, after, *shares))
        prompt = self.family.shorten(inputs, edits, side)
        self.session.videos = records
        shown = torch.ones(shape, dtype=torch.bool) if mask is None else mask.bool()
        bare = replace(prompt, inputs_embeds=torch.empty(0), extra=torch.empty(0))
        self._filling = Held(bare, inputs.get("input_ids"), shown, self._generating)
        self._arm(prompt)
        return prompt

    def pruner_for(self, grid: tuple[int, int]) -> Pruner:
        """The pruner, with the family's attention sinks where it has a field for them that is not set."""
        sinks = self.family.sinks.get(grid)
        if sinks is None or getattr(self.pruner, "sink_tokens", sinks) is not None:
            return self.pruner
        return replace(self.pruner, sink_tokens=sinks)  # type: ignore[call-arg]


def asked_for(value: Any) -> bool:
    """Whether a generation setting asks for anything; 1.0 is a penalty or scale that does nothing."""
    return value is True or value not in (None, False, 1.0)
