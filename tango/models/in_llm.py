"""Pruning inside the decoder of a model: hooks that drop video tokens before a layer, and what follows from it.

For decoders of the Qwen2 kind (LLaVA's Qwen2, Qwen2.5-VL, Qwen3-VL). What is computed is in `tango/pruners/in_llm.py`;
here is where it is taken from, and how the layers after the drop get along with fewer tokens than the ones before:

- scores: before layer K-1's attention, the row of the last prompt token is computed from that layer's rotated queries
  and keys: one query against the keys, in any attention implementation, and nothing that the layer does is changed;
- before layer K the residual stream, the rotary embeddings and the mask shrink to what stays. Rows of a batch rank
  themselves; those that become shorter than others are padded where the prompt is padded, else on the left;
- positions stay what they were, so that rows have gaps. The mask is therefore built from places, not from positions:
  transformers takes a jump of positions for the start of another sequence;
- visual features that the decoder adds after its first layers (deepstack) go with their tokens: those of layer K and
  later are kept back from the decoder and added here;
- settings.causal False: layer K-1 gets, at prefill, a mask in which the prompt's tokens all see each other;
- a cache holds fewer entries from layer K on. Layer 0, which transformers asks for the length, has them all, so new
  tokens are numbered as if nothing had been dropped at K. The mask of the later layers is kept on the cache.
"""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask

from tango.models import refusals
from tango.models.attention import rotate
from tango.models.prompt import Prompt, Session, cache_of, pad, side_of_padding, take
from tango.models.versions import hooks_run_again
from tango.pruners.base import full_precision
from tango.pruners.in_llm import LayerPruning, attention_row, average_ratio

ROUTERS = "output_router_logits"  # of mixtures of experts
MARK = "tango_layout"  # the attribute of a cache that holds its Layout


@dataclass(frozen=True)
class Layout:
    """What a cache of a pruned prompt holds: `width` entries of the prompt before `layer`, and `mask` from it on.

    mask: (B, n') bool, False where a row is padded.
    """

    layer: int
    width: int
    mask: Tensor


class DecoderPruner:
    """One `LayerPruning` on one decoder.

    `arm()` names the prompt that the decoder's next call prefills (or recomputes, without a cache); other calls are
    left alone, but for those that go on from a cache which a pruned prompt has filled.

    Raises TypeError for a decoder whose attention is not of the Qwen2 kind, ValueError for sliding windows.
    """

    __reduce_ex__ = refusals.part_copied

    def __init__(self, decoder: Any, settings: LayerPruning) -> None:
        self.decoder = decoder
        self.settings = settings
        self.layers: list[Any] = list(decoder.layers)
        kinds = getattr(decoder.config, "layer_types", None) or ()
        if "linear_attention" in kinds:
            raise ValueError(
                f"no pruning inside {type(decoder).__name__}: tokens are ranked by the attention weights of a layer, "
                "which its layers of linear attention do not have; take a method that prunes before it, or unset "
                "pruned_layer"
            )
        if "sliding_attention" in kinds:
            raise ValueError("no pruning inside a language model with sliding windows; unset use_sliding_window")
        attention = getattr(self.layers[settings.layer - 1], "self_attn", None)
        if not all(hasattr(attention, name) for name in ("q_proj", "k_proj", "head_dim", "scaling")):
            raise TypeError(f"no pruning inside {type(decoder).__name__}: it has no attention of the Qwen2 kind")
        self._prompt: Prompt | None = None
        self._scores: Tensor | None = None  # (B, N) of the prompt that is under way
        self._given: Tensor | None = None  # the mask (B, N) of the call that is under way, where it has one
        self._changes: dict[str, Any] | None = None  # arguments of layers K and later in this call
        self._deepstack: list[Tensor] = []  # (B, N, D), later (B, n', D): to be added after layers K, K + 1, ..

    @contextlib.contextmanager
    def installed(self, session: Session) -> Iterator[None]:
        """Hook the decoder; `session` is told what stayed. Unhooked at the end, whatever happened."""
        self.session = session
        before, layer, *behind = self.layers[self.settings.layer - 1 :]
        hooks = [(self.decoder, self._start), (before.self_attn, self._score), (layer, self._enter)]
        if not self.settings.causal:
            hooks.append((before, self._look_both_ways))
        hooks += [(each, functools.partial(self._follow, index)) for index, each in enumerate(behind)]
        with contextlib.ExitStack() as installed:
            for module, hook in hooks:
                installed.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
            yield

    def arm(self, prompt: Prompt | None) -> None:
        """Prune this prompt in the decoder's next call, whose tokens after the prompt's width are new ones."""
        self._prompt = prompt
        self._scores = self._given = self._changes = None
        self._deepstack = []

    def check(self) -> None:
        """Raise RuntimeError if the prompt went through other layers than those that are hooked."""
        if self._prompt is not None:
            raise refusals.replaced_since("language model")

    # -- hooks ---------------------------------------------------------------------------------------------------

    def _start(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the decoder: forget the last call, and see that a cache that goes on is one of ours."""
        self._scores = self._changes = None
        self._deepstack = []
        mask: Any = kwargs.get("attention_mask")
        cache: Any = cache_of(kwargs)
        self._given = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        asked = kwargs.get(ROUTERS)
        if self._prompt is not None and (asked or (asked is None and vars(self.decoder.config).get(ROUTERS))):
            raise ValueError(
                "output_router_logits does not work with pruning inside the language model: its layers route unlike "
                "many tokens; leave it out, also of the model's config, or unset pruned_layer"
            )
        layout, layer = getattr(cache, MARK, None), self.settings.layer
        if layout is not None and int(cache.get_seq_length()) == 0:  # emptied since, as static caches are
            delattr(cache, MARK)
        elif layout is not None and layout.layer != layer:
            raise ValueError(
                f"the cache holds a prompt pruned before layer {layout.layer}, and the attached method prunes "
                f"before layer {layer}: go on from it with the method that filled it"
            )
        checkpointing = self.decoder.training and getattr(self.decoder, "is_gradient_checkpointing", False)
        # Else only a layer's forward() is computed again, with what the hooks here have made of its arguments.
        if self._prompt is not None and checkpointing and hooks_run_again() and torch.is_grad_enabled():
            raise ValueError(
                f"transformers {transformers.__version__} computes hooks again with gradient checkpointing, which does "
                "not work with pruning inside the language model: install 5.23 or newer, call "
                "gradient_checkpointing_disable(), or unset pruned_layer"
            )
        features = kwargs.get("deepstack_visual_embeds")
        if self._prompt is None or features is None or len(features) <= layer:
            return None
        places: Tensor = kwargs["visual_pos_masks"]
        empty = features[0].new_zeros(*places.shape, features[0].shape[-1])
        self._deepstack = [empty.masked_scatter(places[..., None], each) for each in features[layer:]]
        return args, kwargs | {"deepstack_visual_embeds": features[:layer]}

    def _look_both_ways(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before layer K-1: all tokens of the prompt see each other; new ones after it, without a cache, don't."""
        if self._prompt is None:
            return None
        hidden: Tensor = args[0]
        seen = self._visible(self._prompt, hidden)[0]
        width, length = self._prompt.source.shape[1], hidden.shape[1]
        if "flash" in self.decoder.config._attn_implementation:
            if length > width:
                raise ValueError("causal=False needs use_cache=True with flash attention; or take sdpa")
            return args, kwargs | {"is_causal": False, "attention_mask": None if bool(seen.all()) else seen}
        cache = cache_of(kwargs)
        room = length if cache is None else cache.get_mask_sizes(length, self.settings.layer - 1)[0]
        queries, keys = (torch.arange(size, device=hidden.device) for size in (length, room))
        new = (keys >= width) & (keys <= queries[:, None])
        unseen = ~(nn.functional.pad(seen, (0, room - length))[:, None] | new)
        mask = hidden.new_zeros(unseen.shape).masked_fill(unseen, torch.finfo(hidden.dtype).min)
        return args, kwargs | {"attention_mask": mask[:, None]}

    def _score(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before layer K-1's attention: rank the tokens by its row of the last prompt token."""
        if self._prompt is not None:
            hidden = args[0] if args else kwargs["hidden_states"]
            visible, last = self._visible(self._prompt, hidden)
            self._scores = last_row(module, hidden, kwargs["position_embeddings"], visible, last)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before layer K: drop what does not stay, or make the mask of a call that goes on from a pruned prompt."""
        hidden: Tensor = args[0]
        cache: Any = cache_of(kwargs)
        layout: Layout | None = getattr(cache, MARK, None)
        if self._prompt is not None and self._scores is not None:
            source, hidden = self._drop(self._prompt, self._scores, hidden)
            if source is not None:
                layout = Layout(self.settings.layer, self._prompt.source.shape[1], source >= 0)
                if cache is not None:
                    setattr(cache, MARK, layout)
                cos, sin = kwargs["position_embeddings"]
                self._changes = {
                    "attention_mask": self._mask(hidden, layout.mask, cache),
                    "position_embeddings": (take_rows(cos, source), take_rows(sin, source)),
                    "position_ids": None,
                }
                self._deepstack = [take(features, source) for features in self._deepstack]
            self._prompt = self._scores = None
        elif layout is not None:
            mask = layout.mask.to(hidden.device)
            if self._given is not None:
                mask = torch.cat((mask, self._given[:, layout.width :].to(hidden.device).bool()), 1)
            self._changes = {"attention_mask": self._mask(hidden, mask, cache), "position_ids": None}
        return None if self._changes is None else ((hidden, *args[1:]), kwargs | self._changes)

    def _follow(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before layer K + 1 + index."""
        if index < len(self._deepstack):
            args = (args[0] + self._deepstack[index].to(args[0]), *args[1:])
        return args, kwargs if self._changes is None else kwargs | self._changes

    # -- steps ---------------------------------------------------------------------------------------------------

    def _visible(self, prompt: Prompt, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """What the last prompt token of each row sees of the call (B, N), bool, and its place (B,)."""
        rows, width = prompt.source.shape
        if len(hidden) % rows or hidden.shape[1] < width:
            raise RuntimeError(
                f"the prompt to prune has {rows} rows of {width} tokens, and the decoder was called with "
                f"{tuple(hidden.shape[:2])}"
            )
        mask = prompt.attended().to(hidden.device).repeat_interleave(len(hidden) // rows, 0)
        last = width - 1 - mask.flip(1).int().argmax(1)
        return nn.functional.pad(mask, (0, hidden.shape[1] - width)), last

    def _drop(self, prompt: Prompt, scores: Tensor, hidden: Tensor) -> tuple[Tensor | None, Tensor]:
        """The columns (B, n') that stay, -1 for padding, or None for all; and the hidden states (B, n', D) of these."""
        times, length = len(hidden) // len(prompt.source), hidden.shape[1]
        stay = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        merges: list[tuple[int, Tensor, Tensor]] = []
        for row, spans in enumerate(prompt.spans.to(hidden.device).repeat_interleave(times, 0)):
            visual = prompt.visual[row // times].to(hidden.device)
            for video in spans.unique().tolist():
                if video < 0:
                    continue
                places = (spans == video if self.settings.newlines else (spans == video) & visual).nonzero()[:, 0]
                kept = self.settings.keep(scores[row, places])
                stay[row, places] = False
                stay[row, places[kept]] = True
                merges.append((row, places, kept))
                if row % times == 0:
                    left = int(visual[places[kept]].sum())
                    self._record(video, left)
        if bool(stay.all()):
            return None, hidden
        attended = nn.functional.pad(
            prompt.attended().to(hidden.device).repeat_interleave(times, 0),
            (0, length - prompt.source.shape[1]),
            value=True,
        )
        columns = torch.arange(length, device=hidden.device)
        source = pad([columns[row] for row in stay & attended], side_of_padding(attended))
        shorter = take(hidden, source)
        for row, places, kept in merges:
            slots = torch.isin(source[row], places[kept]).nonzero()[:, 0]
            with full_precision(hidden.device, gradients=True):
                shorter[row, slots] = self.settings.merge(hidden[row, places], kept)
        return source, shorter

    def _record(self, video: int, left: int) -> None:
        record, layers = self.session.videos[video], len(self.layers)
        before, inside = record.tokens_after / record.tokens_before, left / record.tokens_before
        average = average_ratio(before, inside, layers, self.settings.layer)
        self.session.videos[video] = replace(record, tokens_in_llm=left, average_retention=average)

    def _mask(self, hidden: Tensor, mask: Tensor, cache: Any) -> Any:
        """The mask of layers K and later, as the attention implementation wants it; tokens beyond (B, ..) are seen."""
        config, layer = self.decoder.config, self.settings.layer
        length = hidden.shape[1]
        if cache is not None and "flash" in config._attn_implementation:
            length += int(cache.get_seq_length(layer))
        elif cache is not None:
            length = cache.get_mask_sizes(length, layer)[0]  # with a static cache's empty room: causality masks it
        mask = nn.functional.pad(mask, (0, max(0, length - mask.shape[1])), value=True)
        return create_causal_mask(config, hidden, mask, cache, layer_idx=layer)  # the fourth argument has two names


def last_row(attention: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor], visible: Tensor, last: Tensor) -> Tensor:
    """Softmax weights of one query a row, mean over the heads: (B, N), fp32.

    attention: the module; hidden (B, N, D): what it is given; rotary: cosines and sines (B or 1, N, d); visible (B, N):
    which keys the query may see (those after it excluded); last (B,): the query's place.
    """
    rows = torch.arange(len(hidden), device=hidden.device)
    with torch.no_grad():
        cos, sin = (part.expand(len(hidden), -1, -1) for part in rotary)
        query = heads(attention, "q", hidden[rows, last][:, None])
        keys = heads(attention, "k", hidden)
        query = rotate(query, cos[rows, last][:, None, None], sin[rows, last][:, None, None])
        keys = rotate(keys, cos[:, None], sin[:, None])
        with full_precision(hidden.device):
            return attention_row(query[:, :, 0], keys, visible, attention.scaling).mean(1)


def heads(attention: Any, which: str, hidden: Tensor) -> Tensor:
    """Queries ("q") or keys ("k") of (B, N, D) by head, normalised where the model does so: (B, H, N, d)."""
    states = getattr(attention, f"{which}_proj")(hidden).unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{which}_norm", None)
    split: Tensor = states if norm is None else norm(states)
    return split.transpose(1, 2)


def take_rows(tensor: Tensor, source: Tensor) -> Tensor:
    """Rows of (B or 1, N, d) at source (B, n')."""
    return take(tensor.expand(len(source), -1, -1), source)
