"""Frames that a method merges inside the vision tower of LLaVA-OneVision and LLaVA-Video (EarlyTom, arXiv 2605.30010).

The method says after which layers, and how; here those layers' forward() is replaced while a video is encoded. Fewer
frames leave the tower; so that indices, times and records go on counting the video's own frames, the family hands over
as many as came, each frame that was merged away as a copy of the one before it, and `frame_groups` tells which.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tango.models.attention import from_attention, received_saliency
from tango.models.family import Family
from tango.models.llava_onevision import LlavaOnevision
from tango.models.reuse import replaced
from tango.models.tower import recorded
from tango.pruners.base import Pruner


class MergedFrames:
    """What becomes of a tower's frames while it runs; `layers` are to stand in for its layers, see replaced()."""

    def __init__(self, tower: Any, pruner: Any, frames: int) -> None:
        self.pruner, self.depth = pruner, len(tower.encoder.layers)
        self.at = pruner.tower_layers(self.depth)
        self.stands = torch.arange(frames)  # (F',), the frames that are left
        self.attention: Tensor | None = None  # (F', P) received in the last of these layers
        self.groups: list[tuple[int, int]] = []
        self.seen = [frames]  # by the layers up to the first of `at`, up to the second, ..
        last = tower.encoder.layers[self.at[-1]]
        self.layers = {
            layer: lambda hidden, *rest, own=layer, before=layer.forward, **named: self._run(
                before, own is last, own.self_attn, hidden, *rest, **named
            )
            for layer in (tower.encoder.layers[index] for index in self.at)
        }

    def _run(self, layer: Any, last: bool, attention: Any, *rest: Any, **named: Any) -> Tensor:
        with recorded({"queries": attention.q_proj, "keys": attention.k_proj} if last else {}) as states:
            hidden: Tensor = layer(*rest, **named)
        if last:
            parts, scaling = {"saliency": received_saliency}, attention.head_dim**-0.5
            found = from_attention(parts, states["queries"], states["keys"], attention.num_heads, scaling)
            self.attention = found["saliency"]
        if len(hidden) > 1:
            hidden, self.attention, stands = self.pruner.merge(hidden, self.attention)
            self.stands = self.stands.to(stands.device)[stands]
        self.seen.append(len(hidden))
        if last:
            self.groups = self.pruner.group(hidden)
        return hidden

    def computed(self) -> float:
        """Share of its work that the tower did."""
        layers = torch.tensor([*self.at, self.depth - 1]).diff(prepend=torch.tensor([-1]))
        return float((layers * torch.tensor(self.seen)).sum()) / (self.depth * self.seen[0])


class Merging(LlavaOnevision):
    """What is mixed into LLaVA-OneVision's and LLaVA-Video's family."""

    def __init__(self, model: Any, pruner: Any) -> None:
        super().__init__(model, pruner)
        pruner.tower_layers(len(self.tower.encoder.layers))  # refuses those that are not there
        self.in_one_call, self.pruner = False, pruner
        self.parts, self.head, self.head_saliency = {}, None, False  # the saliency is that of another layer

    def _encode_frames(self, pixels: Tensor, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        frames = MergedFrames(self.tower, self.pruner, len(pixels))
        with replaced(frames.layers):
            parts = super()._encode_frames(pixels, inputs)
        attention: Any = frames.attention
        saliency = self.core.apply_pooling(attention[..., None])[..., 0]
        stands = frames.stands.to(pixels.device)
        every = torch.arange(len(pixels), device=pixels.device)
        copied = torch.searchsorted(stands, every, right=True) - 1
        number = torch.full_like(every, -1)
        for group, (start, end) in enumerate(frames.groups):
            number[stands[start : end + 1]] = group
        whole = {"features": parts["features"][copied], "saliency": saliency[copied]}
        return whole | {"frame_groups": number, "computed": torch.full((len(pixels),), frames.computed())}


def merging(family: type[Family], pruner: Pruner) -> type[Family]:
    """The family, its frames merged in the tower; one whose tower takes no part, or no pruning at all, as it is."""
    if not issubclass(family, LlavaOnevision) or pruner.retention_ratio == 1:
        return family
    return type(f"Merging{family.__name__}", (Merging, family), {})
