"""EarlyTom: frames that are alike are merged inside the vision tower, and the most attended tokens of the others kept.

The steps are here, on tensors; where a model's tower takes part, tango/models/merging.py calls them between its layers.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from tango.pruners.base import Pruner, full_precision
from tango.pruners.in_llm import LayerPruning, before_layer
from tango.pruners.settings import Cosine, Count, Saliency, Share, TokenPositions, reject
from tango.pruners.video import Pruned, VideoTokens

PUBLISHED_LAYERS, PUBLISHED_DEPTH = (6, 21, 23), 26  # of SigLIP as LLaVA uses it


@dataclass
class EarlyTom(Pruner):
    """EarlyTom, arXiv 2605.30010; its part inside the vision tower with LLaVA-OneVision and LLaVA-Video.

    After some of the tower's layers frames are grouped: a group ends where the running mean of similarities to its
    first frame falls below the threshold, or at max_window - 1 frames. Of a group of three or more the first and last
    frame stay; of those between, two neighbours that are more alike than the first and the last are, and than the next
    two, become one, weighted by both similarities; and the last of them is never put out (as published). The layers
    behind see fewer frames. After the last of these layers the merged frames are grouped once more.

    So many tokens are gone that the ratio of the others rises to r' = min(1, r F / F'). Frames in groups of one or two,
    and the first and last of others, keep their ceil(L r') most attended tokens; those between are cut into
    max(1, round(L r')) runs of places, and of each the most attended stays. Attention is what a patch receives in the
    last of those layers. Features are as the tower gives them; a merged frame stands at the first of its two.

    prune(), and models whose tower takes no part (Qwen's), merge the frames of the features once. With videos of more
    frames than the tower sees at once (64), each 64 are merged by themselves.

    Args:
        retention_ratio, saliency_weights: see Pruner. 1 keeps every token as it is, and merges no frames.
        saliency: see Pruner; for models whose tower takes no part.
        exact_budget: see Pruner. The least attended of the kept tokens go, or the most attended of the others come
            back, those of frames that were merged away last.
        similarity_threshold: see above; published from 0.3 to 0.8 by benchmark and ratio.
        max_window: one more than the most frames of a group.
        ema: weight of the newest similarity in the running mean.
        prune_layers: layers of the tower, counted from 0, after which frames are merged. None: 6, 21 and 23 of 26, and
            at the same depth of other towers.
        pruned_layer: layer of the language model, counted from 0, before which the dropped share of tokens is merged
            into the rest, as in HoliTom; None for no such step. The published runs have 18.
        llm_drop_ratio: share that is dropped there.

    Raises:
        ValueError: a field is out of its range; or, on a model, its tower or language model has no such layer.
    """

    name: ClassVar[str] = "earlytom"
    in_tower: ClassVar[bool] = True
    needs = frozenset({"saliency"})

    saliency: Saliency | None = "received_attention"
    similarity_threshold: Cosine = 0.6
    max_window: Count = 6
    ema: Share = 0.9
    prune_layers: TokenPositions | None = None
    pruned_layer: Count | None = None
    llm_drop_ratio: Share = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.llm_drop_ratio == 1:
            reject(self, "llm_drop_ratio", "a finite number in [0, 1)")
        if self.prune_layers is not None and sorted(set(self.prune_layers)) != list(self.prune_layers):
            reject(self, "prune_layers", "layers of the vision tower, ascending")
        if self.tower_reuse is not None:
            reject(self, "tower_reuse", "None, for this method merges frames in the vision tower itself")

    def in_llm(self, layers: int) -> LayerPruning | None:
        """See Pruner.in_llm; the step is HoliTom's."""
        at, kept = ("EarlyTom.pruned_layer", self.pruned_layer, layers), 1 - self.llm_drop_ratio
        return before_layer(*at, self.retention_ratio, kept, merging="sequential")

    def tower_layers(self, layers: int) -> list[int]:
        """The layers of a tower of so many after which frames are merged; ValueError where it lacks one."""
        if self.prune_layers is None:
            return sorted({max(1, round((at + 1) * layers / PUBLISHED_DEPTH)) - 1 for at in PUBLISHED_LAYERS})
        if not self.prune_layers or self.prune_layers[-1] >= layers:
            reject(self, "prune_layers", f"layers of this vision tower, at least one, each from 0 to {layers - 1}")
        return list(self.prune_layers)

    def group(self, states: Tensor) -> list[tuple[int, int]]:
        """The first and last frame of each group of frames (F, S, D)."""
        with full_precision(states.device):
            return groups(likeness(states), self.similarity_threshold, self.ema, self.max_window)

    def merge(self, states: Tensor, attention: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
        """Frames (F', S, D) and their attention (F', S) after merging, and where they stand (F',); see _prune."""
        with full_precision(states.device, gradients=True):
            alike = likeness(states.detach())
            found = groups(alike, self.similarity_threshold, self.ema, self.max_window)
            merged = [pair for start, end in found for pair in pairs(alike, start, end)]
            first, second, share = (torch.tensor(x, device=states.device) for x in zip(*merged, strict=True))

            def mixed(of: Tensor) -> Tensor:
                weight = share.view(-1, *[1] * (of.dim() - 1)).to(torch.float32)
                return (weight * of[first].float() + (1 - weight) * of[second].float()).to(of.dtype)

            return mixed(states), None if attention is None else mixed(attention), first

    def _prune(self, video: VideoTokens) -> Pruned:
        features, attention = video.features, video.required("saliency")
        frames, tokens, _ = features.shape
        if video.frame_groups is None:
            states, merged, stands = self.merge(features, attention)
            weights = attention if merged is None else merged
            found = self.group(states)
            ranking = torch.full_like(attention, -1.0).index_copy_(0, stands, attention[stands])
        else:
            stands = (video.frame_groups >= 0).nonzero()[:, 0]
            states, weights = features[stands], attention[stands]
            number = video.frame_groups[stands].cpu()
            ends = torch.unique_consecutive(number, return_counts=True)[1].cumsum(0)
            found = [
                (end - count, end - 1)
                for end, count in zip(ends.tolist(), ends.diff(prepend=ends[:1] * 0).tolist(), strict=True)
            ]
            ranking = attention.masked_fill(video.frame_groups[:, None] < 0, -1.0)
        total = frames * tokens
        ratio = min(1.0, self.retention_ratio / ((total - (frames - len(states)) * tokens) / total))
        kept = torch.zeros(weights.shape, dtype=torch.bool, device=features.device)
        for start, end in found:
            middle = range(start + 1, end)
            for frame in range(start, end + 1):
                kept[frame] = in_runs(weights[frame], ratio) if frame in middle else highest(weights[frame], ratio)
        where, place = kept.nonzero(as_tuple=True)
        begins = [int(stands[start]) for start, _ in found]
        sizes = torch.tensor([*begins, frames]).diff()
        pruned = Pruned(stands[where] * tokens + place, states[where, place], sizes)
        return self.exactly(pruned, features, ranking)


def likeness(states: Tensor) -> Tensor:
    """Mean cosine (F, F), on the CPU, of the tokens of every two frames of (F, S, D) at the same place."""
    unit = F.normalize(states.float(), dim=-1, eps=1e-8).flatten(1)
    return (unit @ unit.mT / states.shape[1]).cpu()


def groups(alike: Tensor, threshold: float, ema: float, max_window: int) -> list[tuple[int, int]]:
    """First and last frame of each group, from the frames' likeness (F, F), in one pass."""
    found, start, mean = [], 0, 1.0
    for frame in range(1, len(alike)):
        mean = ema * float(alike[start, frame]) + (1 - ema) * mean
        if mean < threshold or frame - start + 1 >= max_window:
            found.append((start, frame - 1))
            start, mean = frame, 1.0
    return [*found, (start, len(alike) - 1)]


def pairs(alike: Tensor, start: int, end: int) -> list[tuple[int, int, float]]:
    """What a group puts out: share * one frame + (1 - share) * another, as (one, other, share)."""
    if end - start < 3:
        return [(frame, frame, 1.0) for frame in range(start, end + 1)]
    out, frame, last = [(start, start, 1.0)], start + 1, end - 1
    most, beside = float(alike[start, end]), [float(alike[i, i + 1]) for i in range(start, end)]
    while frame < last:
        own, following = beside[frame - start], beside[frame + 1 - start]
        if frame < last - 1 and own > most and own > following:
            out.append((frame, frame + 1, own / (own + following) if following != 0 else 1.0))
            frame += 2
        else:
            out.append((frame, frame, 1.0))
            frame += 1
    return [*out, (end, end, 1.0)]


def highest(attention: Tensor, ratio: float) -> Tensor:
    """Where a frame's ceil(L ratio) most attended tokens are, (L,) bool."""
    count = math.ceil(len(attention) * ratio)
    chosen = attention.sort(descending=True, stable=True).indices[:count]
    return torch.zeros_like(attention, dtype=torch.bool).index_fill_(0, chosen, True)


def in_runs(attention: Tensor, ratio: float) -> Tensor:
    """Where the most attended token of each of max(1, round(L ratio)) runs of a frame's places is, (L,) bool."""
    chosen = torch.zeros_like(attention, dtype=torch.bool)
    at = 0
    for run in attention.tensor_split(max(1, round(len(attention) * ratio))):  # the first are longer by one
        chosen[at + run.argmax()] = True
        at += len(run)
    return chosen
