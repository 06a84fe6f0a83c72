"""The vision tower computes what changes: patches whose pixels hardly changed take over the states of earlier frames.

What is computed is decided once for a video, from its pixels (`Rule`). In the tower's first layers only those
patches go through the layer; a frame's other keys, values and states are those of the frames that they come from. Later
layers compute every patch, because there still patches carry what moves elsewhere in their frame.

Nothing here runs, or is imported, unless a method's `tower_reuse` asks for it. A layer's forward() is replaced while a
video is encoded, so the tower's own loop, its hooks and all that reads them stay as they are. STC-Cacher (arXiv
2512.00891), which decides in each layer anew, is written from the paper's rules.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tango.models.attention import rotate
from tango.models.family import Family
from tango.models.llava_onevision import FRAMES_PER_CALL, LlavaOnevision
from tango.models.packed import PATCHES_PER_CALL, layers_of
from tango.models.qwen_vl import QwenVL
from tango.pruners.base import Pruner

CUT = 0.5  # a frame of which a greater share has changed is computed whole
BUCKETS = 8  # sizes that the numbers of computed patches in a frame are rounded up to, to be attended to together
LAYERS = {"pixels": 1 / 3, "stc": 1.0}  # share of them; a third costs little accuracy (results/tower/)
INTERVAL = {"pixels": 16, "stc": 2}


@dataclass
class Rule:
    """Which patches of a frame are computed, as frames come one after another.

    A patch is computed if its pixels differ from those that its states came from by more than a threshold (root mean
    square); so are all of frame 0, of each frame at a multiple of `interval`, of a frame of which more than half
    changed, and of a frame with, or after one with, a value that is not finite, so that it spreads no further.

    frame: the next one's number. pixels: of each patch (P, X), those that its states came from. states: where frames
    come to the tower one at a time, all that layers which reuse patches asked for in the newest (Plan.spread()).
    """

    threshold: float
    interval: int
    frame: int = 0
    pixels: Tensor | None = None
    broken: Tensor | None = None  # whether the frame before had a value that is not finite
    states: list[Tensor] = field(default_factory=list)

    def changed(self, patches: Tensor) -> Tensor:
        """Which of the next frame's patches (P, X) are computed (P,); nothing here waits for a GPU."""
        patches = patches.float()
        before, self.broken = self.broken, ~patches.isfinite().all()
        found = torch.ones(len(patches), dtype=torch.bool, device=patches.device)
        if self.pixels is not None and before is not None and self.frame % self.interval:
            found = ~((patches - self.pixels).square().mean(-1).sqrt() <= self.threshold)
            found |= self.broken | before | (found.float().mean() > CUT)
            patches = torch.where(found[:, None], patches, self.pixels)
        self.pixels, self.frame = patches, self.frame + 1
        return found


def sources(patches: Tensor, threshold: float, interval: int) -> Tensor:
    """The frame (F, P) int64 from which each patch takes its states, by the rule; its own where it is computed.

    Args:
        patches: (F, P, X) pixels of each patch.
    """
    rule = Rule(threshold, interval)
    source = torch.zeros(patches.shape[:2], dtype=torch.int64, device=patches.device)
    for frame, own in enumerate(patches):
        source[frame] = torch.where(rule.changed(own), frame, source[frame - 1])
    return source


@dataclass
class Plan:
    """Which of a video's P patches, frame after frame, are computed, for all layers in which patches are reused.

    rows: (N,) flat indices of the computed ones, ascending. slot: (P,) the row, 0 .. N - 1, whose states a patch has.
    Of a frame of a stream, rows are those of the frame before, what spread() gave there, `before`, and then its own;
    `states` takes what it gives here.
    """

    rows: Tensor
    slot: Tensor
    before: Iterator[Tensor] | None = None
    states: list[Tensor] | None = None
    _groups: dict[tuple[int, ...], list[tuple[Tensor, Tensor, Tensor]]] = field(default_factory=dict)

    @classmethod
    def of(cls, source: Tensor) -> "Plan":
        """From the frames (F, P) that patches take their states from."""
        frames, patches = source.shape
        flat = (source * patches + torch.arange(patches, device=source.device)).flatten()
        rows = (flat == torch.arange(frames * patches, device=source.device)).nonzero()[:, 0]
        return cls(rows, torch.searchsorted(rows, flat))

    @classmethod
    def following(cls, stream: Rule, changed: Tensor) -> "Plan":
        """Of the next frame of a stream, by which patches (P,) changed, in the order in which the tower has them."""
        before, stream.states = stream.states, []
        own = changed.cumsum(0) - 1 + (len(changed) if before else 0)
        slot = torch.where(changed, own, torch.arange(len(changed), device=changed.device))
        return cls(changed.nonzero()[:, 0], slot, iter(before) if before else None, stream.states)

    def spread(self, own: Tensor) -> Tensor:
        """What each patch has (P, ..), from that of the computed ones (N, ..)."""
        whole = (own if self.before is None else torch.cat((next(self.before), own)))[self.slot]
        if self.states is not None:
            self.states.append(whole)
        return whole

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bounds: Sequence[int], scale: float) -> Tensor:
        """Attention (N, heads, d) of the computed patches' queries, each within its segment.

        query, key, value: (N, heads, d) of the computed patches; the segments' other keys and values are those that
        they reuse. bounds: where segments (frames or windows) begin, and the end of the last.
        """
        key, value, out = self.spread(key), self.spread(value), torch.empty_like(query)
        for asked, real, seen in self._groups_of(bounds):
            q, k, v = (x.transpose(1, 2) for x in (query[asked], key[seen], value[seen]))
            out[asked[real]] = F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)[real]
        return out

    def _groups_of(self, bounds: Sequence[int]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Segments of one length and nearly as many queries, together: rows asked for (G, Q), which of these are no
        padding (G, Q) bool, and patches seen (G, length).
        """
        if (known := self._groups.get(tuple(bounds))) is not None:
            return known
        edges = torch.tensor(bounds, device=self.rows.device)
        first = torch.searchsorted(self.rows, edges)
        counts, lengths = first.diff(), edges.diff()
        step = (lengths // BUCKETS).clamp(min=1)
        padded = torch.minimum((counts + step - 1) // step * step, lengths)
        groups = []
        for length, asked in sorted(set(zip(lengths.tolist(), padded.tolist(), strict=True))):
            own = ((lengths == length) & (padded == asked) & (counts > 0)).nonzero()[:, 0]
            place = torch.arange(asked, device=edges.device)
            real = place < counts[own, None]
            rows = first[own, None] + torch.minimum(place, counts[own, None] - 1)
            groups.append((rows, real, edges[own, None] + torch.arange(length, device=edges.device)))
        groups = self._groups[tuple(bounds)] = [group for group in groups if group[1].numel()]
        return groups


def siglip_layer(layer: Any, plan: Plan, hidden: Tensor) -> Tensor:
    """States (F, P, D) after a layer of SigLIP, those of computed patches computed."""
    frames, patches, _ = hidden.shape
    attention, own = layer.self_attn, hidden.flatten(0, 1)[plan.rows]
    normed = layer.layer_norm1(own)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    query, key, value = (project(normed).unflatten(-1, (attention.num_heads, -1)) for project in projections)
    bounds = range(0, frames * patches + 1, patches)
    own = own + attention.out_proj(plan.attend(query, key, value, bounds, attention.scale).flatten(1))
    out: Tensor = own + layer.mlp(layer.layer_norm2(own))
    return plan.spread(out).view(hidden.shape)


def qwen_block(block: Any, plan: Plan, hidden: Tensor, cu_seqlens: Tensor, position_embeddings: Any) -> Tensor:
    """States (F * P, D) after a block of a Qwen tower, those of computed patches computed."""
    attention, own = block.attn, hidden[plan.rows]
    query, key, value = attention.qkv(block.norm1(own)).unflatten(-1, (3, attention.num_heads, -1)).unbind(1)
    cos, sin = (x[plan.rows, None].float() for x in position_embeddings)
    query, key = (rotate(x.float(), cos, sin).to(x.dtype) for x in (query, key))
    mixed = plan.attend(query, key, value, cu_seqlens.tolist(), attention.scaling)
    own = own + attention.proj(mixed.flatten(1))
    out: Tensor = own + block.mlp(block.norm2(own))
    return plan.spread(out)


def stc_layer(
    layer: Any, hidden: Tensor, reference: Tensor, count: int, all_queries: bool = False
) -> tuple[Tensor, Tensor]:
    """States (F, P, D) after a layer of SigLIP by STC-Cacher, and the patches (C, count) that it computed, ascending.

    reference: (F,) int64, the frame whose values and additions to the residual a frame reuses; itself where it is
    computed whole. C: the others, in order. all_queries: project them in one call, from which a saliency is read.
    """
    attention, heads = layer.self_attn, layer.self_attn.num_heads
    own = reference == torch.arange(len(reference), device=reference.device)
    whole, other = own.nonzero()[:, 0], (~own).nonzero()[:, 0]
    slot = torch.searchsorted(whole, reference[other])
    normed = layer.layer_norm1(hidden)
    key, value = attention.k_proj(normed), attention.v_proj(normed[whole])
    query = attention.q_proj(normed) if all_queries else None

    def attend(*asked_of: Tensor) -> Tensor:
        q, k, v = (x.view(*x.shape[:2], heads, -1).transpose(1, 2) for x in asked_of)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=attention.scale)
        attended: Tensor = attention.out_proj(mixed.transpose(1, 2).flatten(2))
        return attended

    out = torch.empty_like(hidden)
    attended = attend(attention.q_proj(normed[whole]) if query is None else query[whole], key[whole], value)
    between = hidden[whole] + attended
    added = layer.mlp(layer.layer_norm2(between))
    out[whole] = between + added

    likeness = F.cosine_similarity(key[other].float(), key[reference[other]].float(), dim=-1)
    chosen = likeness.sort(dim=1, stable=True).indices[:, :count].sort(dim=1).values
    if len(other):
        place = chosen[..., None].expand(-1, -1, hidden.shape[-1])
        changed = normed[other].gather(1, place)
        values = value[slot].scatter(1, place, attention.v_proj(changed))
        asked = attention.q_proj(changed) if query is None else query[other].gather(1, place)
        fresh = attend(asked, key[other], values)
        between = hidden[other] + attended[slot].scatter(1, place, fresh)
        fresh = layer.mlp(layer.layer_norm2(between.gather(1, place)))
        out[other] = between + added[slot].scatter(1, place, fresh)
    return out, chosen


def stc_references(frames: int, interval: int, chunk: int = 1) -> Tensor:
    """(F,) the frame that each frame reuses: the last of the latest chunk whose number is a multiple of `interval`.

    Frames of such a chunk reuse nothing. Those behind the last full chunk count as of the chunk before them.
    """
    number = (torch.arange(frames) // chunk).clamp(max=max(0, frames // chunk - 1))
    last = (number // interval * interval + 1) * chunk - 1
    return torch.where(number % interval == 0, torch.arange(frames), last)


@contextlib.contextmanager
def replaced(layers: Mapping[Any, Callable[..., Tensor]]) -> Iterator[None]:
    """While open, these functions stand in for the layers' forward().

    Raises ValueError where gradient checkpointing would run a layer again when this is over.
    """
    if torch.is_grad_enabled() and any(x.training and getattr(x, "gradient_checkpointing", False) for x in layers):
        raise ValueError("a vision tower with gradient checkpointing runs its layers again, as they were: switch "
                         "gradient checkpointing off, or leave out tower_reuse (and EarlyTom)")  # fmt: skip
    before = {layer: vars(layer)["forward"] for layer in layers if "forward" in vars(layer)}
    try:
        for layer, forward in layers.items():
            layer.forward = forward
        yield
    finally:
        for layer in layers:
            del layer.forward
            vars(layer).update({"forward": before[layer]} if layer in before else {})


class Reusing(Family):
    """What is mixed into a family whose tower reuses patches.

    Raises TypeError for a tower whose layers are of another kind, ValueError for "stc" where it is not to be had.
    """

    parts_of_layer: tuple[str, ...]  # what a layer must have to be taken apart
    stream: Rule | None = None  # the one whose next frame is encoded

    def __init__(self, model: Any, pruner: Pruner) -> None:
        super().__init__(model, pruner)
        self.in_one_call = False  # nothing here is the model's own to the bit, and a video's frames know no other video
        self.method, self.settings = str(pruner.tower_reuse), pruner
        self.rule = Rule(pruner.tower_reuse_threshold, pruner.tower_reuse_interval or INTERVAL[self.method])
        self.layers: list[Any] = list(layers_of(self.tower))
        for layer in self.layers:
            if lacking := [part for part in self.parts_of_layer if not hasattr(layer, part)]:
                raise TypeError(
                    f"tower_reuse={self.method!r} does not know the layers of this tower, {type(layer).__name__} "
                    f"(without {', '.join(lacking)}); set tower_reuse to None"
                )
            if hasattr(layer, "_hf_hook"):
                raise ValueError(
                    f"tower_reuse={self.method!r} does not work with a vision tower that accelerate spreads over "
                    "devices; keep the tower on one (device_map)"
                )
        share, most = pruner.tower_reuse_layers, len(self.layers) - (self.method == "pixels")
        share = LAYERS[self.method] if share is None else share
        self.reusing = self.layers[: min(most, int(share * len(self.layers) + 1e-9))]

    @contextlib.contextmanager
    def following(self, stream: Rule) -> Iterator[None]:
        """While open, the frame that encode() gets is a stream's next, and takes from it what it would in a clip."""
        self.stream = stream
        try:
            yield
        finally:
            self.stream = None

    def plan(self, patches: Tensor, call: int, order: Tensor | None = None) -> tuple[Plan, Tensor]:
        """What is computed of frames' pixels (F, P, X), and which share of each (F,).

        call: frames that the tower sees at once, of which the first is computed whole. order (P,): of the tower's
        patches, where it is another.
        """
        places = slice(None) if order is None else order.to(patches.device)
        if self.stream is None:
            source = sources(patches, self.rule.threshold, self.rule.interval)
            return Plan.of(source[:, places]), computed(source)
        self.stream.frame %= call
        changed = self.stream.changed(patches[0])
        return Plan.following(self.stream, changed[places]), changed.float().mean()[None]

    def work(self, share: Tensor) -> Tensor:
        """Share of its work that the whole tower does for each frame (F,), from that of layers that reuse patches."""
        return 1 - (1 - share.float()) * len(self.reusing) / len(self.layers)


class ReusingSiglip(Reusing, LlavaOnevision):
    """LLaVA-OneVision and LLaVA-Video."""

    parts_of_layer = ("layer_norm1", "layer_norm2", "mlp", "self_attn")

    def _encode_frames(self, pixels: Tensor, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        size, config = self.tower.config.patch_size, self.tower.config
        patches = pixels.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        layers: dict[Any, Callable[..., Tensor]] = {}
        if self.method == "stc":
            reference = stc_references(len(pixels), self.rule.interval).to(pixels.device)
            count = max(1, int(patches.shape[1] * self.settings.tower_reuse_ratio))
            for layer in self.reusing:
                settings = reference, count, layer is self.layers[-1]
                layers[layer] = lambda hidden, *_, own=layer, with_=settings, **__: stc_layer(own, hidden, *with_)[0]
            width, inner, total = config.hidden_size, config.intermediate_size, patches.shape[1]
            keys, all_of_it = width, 4 * width + 2 * inner + 2 * total
            share = torch.ones(len(pixels), device=pixels.device)
            share[reference != torch.arange(len(pixels), device=pixels.device)] = (
                keys + (all_of_it - keys) * count / total
            ) / all_of_it
        else:
            plan, share = self.plan(patches, FRAMES_PER_CALL)
            for layer in self.reusing:
                layers[layer] = lambda hidden, *_, own=layer, **__: siglip_layer(own, plan, hidden)
        with replaced(layers):
            return super()._encode_frames(pixels, inputs) | {"computed": self.work(share)}


class ReusingQwen(Reusing, QwenVL):
    """Qwen2.5-VL and Qwen3-VL."""

    parts_of_layer = ("norm1", "norm2", "mlp", "attn")

    def __init__(self, model: Any, pruner: Pruner) -> None:
        super().__init__(model, pruner)
        if self.method == "stc":
            raise ValueError(f"tower_reuse='stc' is published for SigLIP towers; {self.title} has tower_reuse='pixels'")

    def _encode_chunk(self, pixels: Tensor, *shapes: Tensor) -> list[dict[str, Tensor]]:
        ((frames, height, width),) = shapes[0].tolist()
        order, group = self.order(height // self.merge, width // self.merge), self.merge**2
        if order is not None:  # patches of a token lie together
            order = (order[:, None] * group + torch.arange(group)).flatten()
        call = max(1, PATCHES_PER_CALL // (height * width))
        plan, share = self.plan(pixels.view(frames, height * width, -1), call, order)

        def forward(block: Any) -> Callable[..., Tensor]:
            return lambda hidden, cu_seqlens, position_embeddings, **_: qwen_block(
                block, plan, hidden, cu_seqlens, position_embeddings
            )

        with replaced({block: forward(block) for block in self.reusing}):
            (encoded,) = super()._encode_chunk(pixels, *shapes)
        return [encoded | {"computed": self.work(share)}]


def computed(source: Tensor) -> Tensor:
    """Share of each frame's patches that are computed (F,), from the frames (F, P) that their states come from."""
    return (source == torch.arange(len(source), device=source.device)[:, None]).float().mean(1)


def reusing(family: type[Family]) -> type[Family]:
    """The family, its tower reusing patches. Raises TypeError for one whose tower is not known here."""
    for mixin, base in ((ReusingSiglip, LlavaOnevision), (ReusingQwen, QwenVL)):
        if issubclass(family, base):
            return type(f"Reusing{family.__name__}", (mixin, family), {})
    raise TypeError(f"tower_reuse does not know the vision tower of {family.title}; set it to None")
