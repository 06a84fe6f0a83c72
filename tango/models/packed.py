"""Packed videos, for the families whose vision tower takes frames of any size.

`pixel_values_videos` holds the patches of all videos one after another, and `video_grid_thw` (V, 3) their grids, t x h
x w patches each. A frame here is one of the t, and has h / m x w / m tokens, of m x m patches that lie side by side.
Frames do not see each other in the tower, so that a long video goes through it in parts.
"""

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tango.models.attention import from_attention
from tango.models.family import Family, PlacedVideo
from tango.models.positions import Grid
from tango.models.prompt import Edit
from tango.models.segments import segments_together
from tango.models.tower import in_this_thread, joined, recorded
from tango.pruners.base import Pruner
from tango.pruners.video import Pruned

# The tower sees no more patches at once (at least a frame), so that its memory does not grow with the video.
PATCHES_PER_CALL = 1 << 15


class Packed(Family):
    """Base of Qwen's families and VideoLLaMA3's.

    saliency (F, L) and keys (F, L, width of a head) are those of the tower's last attention. There are no
    segment_features and frame_vectors, for which methods take the mean token of each frame. No sink tokens are known.
    """

    shapes: tuple[str, ...] = ("grid_thw",)  # arguments that say what patches are of, behind `image_` or `video_`

    def __init__(self, model: Any, pruner: Pruner) -> None:
        super().__init__(model, pruner)
        self.width: int = self.core.config.text_config.hidden_size

    @abstractmethod
    def token_grids(self, *shapes: Tensor) -> list[Grid]:
        """Frames, rows and columns of tokens of each video or image."""

    def tokens(self, kind: str, pixels: Tensor, *shapes: Tensor) -> Tensor:
        """What the language model receives of each token of "image" or "video" patches: (N, D + X)."""
        return self._tokens(getattr(self.core, f"get_{kind}_features")(pixels, *shapes, return_dict=True))

    def _tokens(self, output: Any) -> Tensor:
        return torch.cat(output.pooler_output)

    def image_features(self, inputs: Mapping[str, Any]) -> Tensor:
        shapes: list[Any] = [inputs.get(f"image_{name}") for name in self.shapes]
        return self.tokens("image", inputs["pixel_values"], *shapes)

    def order(self, height: int, width: int) -> Tensor | None:
        """Raster indices (L,) of a frame's tokens in the order in which the tower works; None: in raster order."""
        return None

    def encode(self, inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        shapes = [torch.as_tensor(inputs[f"video_{name}"]) for name in self.shapes]
        encoded = self._encode_videos(inputs["pixel_values_videos"], *shapes)
        for parts, (_, height, width) in zip(encoded, self.token_grids(*shapes), strict=True):
            features, extra = torch.split(parts.pop("tokens"), [self.width, self.extra_width], dim=-1)
            yield parts | {"features": features, "extra": extra, "grid": (height, width)}

    def lay_out(self, video: PlacedVideo, pruned: Pruned) -> Edit:
        """Each kept token with its extra, a merged one with that of its place."""
        extra: Any = video.extra
        extra = extra.flatten(0, 1)[pruned.indices.to(extra.device)].to(pruned.features)
        return super().lay_out(video, replace(pruned, features=torch.cat((pruned.features, extra), dim=-1)))

    def _encode_videos(self, pixels: Tensor, grids: Tensor, *others: Tensor) -> Iterator[dict[str, Tensor]]:
        """`tokens` (F, L, D + X) of each video and the parts of VideoTokens that are needed."""
        if self.in_one_call:
            yield from self._encode_chunk(pixels, grids, *others)
            return
        videos = torch.split(pixels, grids.prod(1).tolist())
        for packed, (frames, height, width), *own in zip(videos, grids.tolist(), *others, strict=True):
            step = max(1, PATCHES_PER_CALL // (height * width))
            chunks = torch.split(packed, step * height * width)
            parts = [[min(step, frames - start), height, width] for start in range(0, frames, step)]
            calls = zip(chunks, torch.split(torch.tensor(parts, device=grids.device), 1), strict=True)
            rest = [other[None] for other in own]
            yield joined((self._encode_chunk(chunk, shape, *rest)[0] for chunk, shape in calls), frames)

    def _encode_chunk(self, pixels: Tensor, *shapes: Tensor) -> list[dict[str, Tensor]]:
        last = layers_of(self.tower)[-1]
        attention = last.attn if hasattr(last, "attn") else last.self_attn
        with contextlib.ExitStack() as stack:
            if not self.in_one_call:  # else the model's own loop over frames and windows, to equal it to the bit
                stack.enter_context(segments_together(self.tower))
            states = stack.enter_context(recorded_attention(attention)) if self.parts else {}
            packed = self.tokens("video", pixels, *shapes)
        grids = self.token_grids(*shapes)
        tokens = torch.split(packed, [t * h * w for t, h, w in grids])
        encoded = [{"tokens": own.view(t, h * w, -1)} for own, (t, h, w) in zip(tokens, grids, strict=True)]
        if not self.parts:
            return encoded
        counts = shapes[0].prod(1).tolist()
        split = (torch.split(states[name], counts) for name in ("queries", "keys", "cos", "sin"))
        for own, (frames, height, width), count, *states_of in zip(encoded, grids, counts, *split, strict=True):
            queries, keys, *rotation = (x.unflatten(0, (frames, -1)) for x in states_of)
            heads, group = attention.num_heads, count // (frames * height * width)
            found = from_attention(self.parts, queries, keys, heads, attention.scaling, group, tuple(rotation))
            order = self.order(height, width)
            raster = slice(None) if order is None else order.argsort().to(queries.device)
            own |= {name: part[:, raster] for name, part in found.items()}
        return encoded


def layers_of(tower: Any) -> Any:
    """The layers of a tower of Qwen's kind or SigLIP's, first to last."""
    return tower.blocks if hasattr(tower, "blocks") else tower.encoder.layers


@contextlib.contextmanager
def recorded_attention(attention: Any) -> Iterator[dict[Any, Tensor]]:
    """While open, a call of a vision attention leaves its `queries` and `keys` (P, E), and their rotation, `cos` and
    `sin` (P, E / heads).
    """
    whole = {"qkv": attention.qkv} if hasattr(attention, "qkv") else {}
    with recorded(whole or {"queries": attention.q_proj, "keys": attention.k_proj}) as states:

        def keep_rotation(_: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
            states["cos"], states["sin"] = kwargs["position_embeddings"]

        with attention.register_forward_pre_hook(in_this_thread(keep_rotation), with_kwargs=True):
            yield states
    if whole:
        states["queries"], states["keys"], _ = states.pop("qkv").chunk(3, -1)
