"""What the Qwen families share: packed videos, the last block's attention, and M-RoPE positions that tokens keep.

Videos of any size come packed: `pixel_values_videos` holds the patches of all of them, and `video_grid_thw` (V, 3)
their grids, t x h x w patches each, where a patch spans temporal_patch_size sampled frames. A frame here is one of the
t, its tokens are the merger's output, h / 2 x w / 2, and patches lie in the order of the tokens they are merged into.
"""

import contextlib
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from tango.models.attention import from_attention
from tango.models.family import Family, PlacedVideo
from tango.models.prompt import Edit, take
from tango.models.segments import segments_together
from tango.models.tower import joined, recorded
from tango.pruners.base import Pruner
from tango.pruners.video import Pruned

# The tower sees no more patches at once (at least a frame), so that its memory does not grow with the video.
PATCHES_PER_CALL = 1 << 15


def vision_modules(model: Any) -> list[nn.Module]:
    """The modules whose calls are the vision tower's time; it ends in the merger, which is this family's projector."""
    return [model.model.visual]


class QwenVL(Family):
    """Base of Qwen2.5-VL, Qwen3-VL and Qwen3.5.

    saliency (F, L) and keys (F, L, width of a head) are those of the last block of the tower. There are no
    segment_features and frame_vectors, for which methods take the mean token of each frame. No sink tokens are known.
    """

    inputs: tuple[str, ...] = (
        "pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts",
        "mm_token_type_ids",
    )  # fmt: skip
    seconds = "second_per_grid_ts"  # the argument that says how many from one frame of each video to the next

    def __init__(self, model: Any, pruner: Pruner) -> None:
        super().__init__(model, pruner)
        self.tower = self.core.visual
        self.merge: int = self.tower.spatial_merge_size
        self.width: int = self.core.config.text_config.hidden_size

    # -- videos --------------------------------------------------------------------------------------------------

    @classmethod
    def sizes(cls, config: Any, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
        grids, group = inputs.get("video_grid_thw"), config.vision_config.spatial_merge_size**2
        return [] if grids is None else [(t, t * h * w // group) for t, h, w in grids.tolist()]

    def placeholders(self, inputs: Mapping[str, Any]) -> tuple[list[int], str]:
        grids = self._grids(inputs["pixel_values_videos"], inputs.get("video_grid_thw"))
        intervals = inputs.get(self.seconds)
        if intervals is not None and len(intervals) != len(grids):
            raise ValueError(f"{self.seconds} has {len(intervals)} entries for {len(grids)} videos")
        shapes = self._token_grids(grids)
        lengths = [frames * height * width for frames, height, width in shapes]
        each = " + ".join("x".join(map(str, shape)) for shape in shapes)
        return lengths, f"{len(grids)} videos need {sum(lengths)} ({each})"

    def encode(self, inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        grids, intervals = torch.as_tensor(inputs["video_grid_thw"]), inputs.get(self.seconds)
        encoded = self._encode_videos(inputs["pixel_values_videos"], grids)
        for index, (parts, shape) in enumerate(zip(encoded, self._token_grids(grids), strict=True)):
            features, extra = torch.split(parts.pop("tokens"), [self.width, self.extra_width], dim=-1)
            found: dict[str, Any] = parts | {"features": features, "extra": extra, "grid": shape[1:]}
            if intervals is not None:
                found["timestamps"] = torch.arange(shape[0], dtype=torch.float32) * float(intervals[index])
            yield found

    def timestamps(self, timestamps: Sequence[float] | Tensor, frames: int) -> Tensor:
        """Seconds of each frame (F,), from one a frame or one a sampled frame: a frame is at the mean of its samples.

        The last sampled frame counts for those that are missing to a multiple of temporal_patch_size, as the
        processors repeat it.
        """
        samples = self.core.config.vision_config.temporal_patch_size
        if len(timestamps) != frames:
            missing = frames * samples - len(timestamps)
            if not 0 <= missing < samples:
                raise ValueError(
                    f"{len(timestamps)} timestamps for a video of {frames} frames of {samples} sampled ones each; one "
                    "a frame or one a sampled frame is needed"
                )
            times = torch.as_tensor(timestamps, dtype=torch.float64).flatten()
            timestamps = torch.cat((times, times[-1:].expand(missing))).view(frames, samples).mean(1)
        return super().timestamps(timestamps, frames)

    def lay_out(self, video: PlacedVideo, pruned: Pruned) -> Edit:
        """Kept tokens in the places of their own placeholders; `extra` of a merged token is that of its place."""
        embeddings = pruned.features
        if video.extra is not None:
            extra = video.extra.flatten(0, 1)[pruned.indices.to(video.extra.device)]
            embeddings = torch.cat((embeddings, extra.to(embeddings)), dim=-1)
        columns = video.columns[pruned.indices.to(video.columns.device)]
        return Edit(video.row, video.columns, columns, embeddings, torch.ones_like(columns, dtype=torch.bool))

    def _grids(self, pixels: Tensor, grids: Tensor | None) -> Tensor:
        """The videos' patch grids (V, 3), checked against the packed patches."""
        if grids is None:
            raise ValueError("pixel_values_videos needs video_grid_thw, the patches t, h, w of each video")
        grids = torch.as_tensor(grids)
        shown = reprlib.repr(grids.tolist())
        if grids.dim() != 2 or grids.shape[1] != 3 or len(grids) == 0 or bool((grids < 1).any()):
            raise ValueError(f"video_grid_thw must be t, h, w of each video, shape (videos, 3), got {shown}")
        if bool((grids[:, 1:] % self.merge).any()):
            raise ValueError(f"video_grid_thw {shown}: h and w must be multiples of {self.merge}")
        if pixels.dim() != 2 or len(pixels) != int(grids.prod(1).sum()):
            raise ValueError(
                f"pixel_values_videos has shape {tuple(pixels.shape)}; video_grid_thw {shown} needs "
                f"{int(grids.prod(1).sum())} rows, one a patch"
            )
        return grids

    def _all_token_grids(self, grids: Any) -> list[tuple[int, int, int]]:
        return [] if grids is None else self._token_grids(torch.as_tensor(grids))

    def _token_grids(self, grids: Tensor) -> list[tuple[int, int, int]]:
        """Frames, rows and columns of tokens of each video."""
        return [(t, h // self.merge, w // self.merge) for t, h, w in grids.tolist()]

    def _encode_videos(self, pixels: Tensor, grids: Tensor) -> Iterator[dict[str, Tensor]]:
        """`tokens` (F, L, D + X) of each video and the parts of VideoTokens that are needed.

        Frames do not see each other in the tower.
        """
        if self.in_one_call:
            yield from self._encode_chunk(pixels, grids)
            return
        for packed, grid in zip(torch.split(pixels, grids.prod(1).tolist()), grids, strict=True):
            frames, height, width = grid.tolist()
            step = max(1, PATCHES_PER_CALL // (height * width))
            chunks = torch.split(packed, step * height * width)
            counts = [min(step, frames - start) for start in range(0, frames, step)]
            yield joined(
                (
                    self._encode_chunk(chunk, torch.tensor([[count, height, width]], device=grids.device))[0]
                    for chunk, count in zip(chunks, counts, strict=True)
                ),
                frames,
            )

    def _encode_chunk(self, pixels: Tensor, grids: Tensor) -> list[dict[str, Tensor]]:
        attention = self.tower.blocks[-1].attn
        # Where the result must equal the model's own to the bit, its own loop over frames and windows.
        together = contextlib.nullcontext() if self.in_one_call else segments_together(self.tower)
        recording: AbstractContextManager[Any] = (
            recorded_attention(attention) if self.parts else contextlib.nullcontext()
        )
        with recording as states, together:
            output = self.core.get_video_features(pixels, grids, return_dict=True)
        shapes = self._token_grids(grids)
        tokens = torch.split(self._tokens(output), [t * h * w for t, h, w in shapes])
        encoded = [{"tokens": own.view(t, h * w, -1)} for own, (t, h, w) in zip(tokens, shapes, strict=True)]
        if not self.parts:
            return encoded
        counts = grids.prod(1).tolist()
        packed = (torch.split(states[name], counts) for name in ("qkv", "cos", "sin"))
        for own, (frames, height, width), *states_of in zip(encoded, shapes, *packed, strict=True):
            qkv, *rotation = (x.unflatten(0, (frames, -1)) for x in states_of)
            queries, keys, _ = qkv.chunk(3, -1)
            heads, group = attention.num_heads, self.merge**2
            found = from_attention(self.parts, queries, keys, heads, attention.scaling, group, tuple(rotation))
            order = self._order(height, width)
            raster = slice(None) if order is None else order.argsort().to(qkv.device)
            own |= {name: part[:, raster] for name, part in found.items()}
        return encoded

    def _order(self, height: int, width: int) -> Tensor | None:
        """Raster indices (L,) of a frame's tokens in the order in which the tower works; None: in raster order."""
        return None

    def _tokens(self, output: Any) -> Tensor:
        """What the language model receives of each token: (N, D + X), from the output of get_*_features()."""
        return torch.cat(output.pooler_output)

    # -- the prompt ----------------------------------------------------------------------------------------------

    def image_features(self, inputs: Mapping[str, Any]) -> Tensor:
        pixels, grids = inputs["pixel_values"], inputs.get("image_grid_thw")
        return self._tokens(self.core.get_image_features(pixels, grids, return_dict=True))

    def positions(
        self, inputs: Mapping[str, Any], source: Tensor, attended: Tensor, unchanged: bool
    ) -> tuple[Tensor, Tensor]:
        """Temporal, row and column positions (3, B, W), as the model gives them to the unpruned prompt, and the next.

        Where the caller gave positions, tokens keep those; of four rows, the first (a count of tokens, by which the
        model tells packed prompts apart) is left out. Also sets what the model adds to the number of tokens in a cache
        to go on from it (rope_deltas), so that the text after a pruned prompt is numbered as after the whole one.
        """
        positions = inputs.get("position_ids")
        if positions is None:
            positions = self._whole_positions(inputs)
        elif positions.dim() == 3:
            positions = positions[-3:]
        else:
            positions = positions.expand(3, *positions.shape)
        positions = positions.expand(-1, source.shape[0], -1)
        after = positions.amax((0, 2)) + 1
        self.core.rope_deltas = (after - attended.sum(1).to(after.device))[:, None]
        return take(positions.permute(1, 2, 0), source).permute(2, 0, 1), after.expand(3, -1)

    def _whole_positions(self, inputs: Mapping[str, Any]) -> Tensor:
        """(3, B, N) of the unpruned prompt; as in the model itself, without ids or their types text's: one a token."""
        ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
        positions: Tensor
        if ids is not None and inputs.get("mm_token_type_ids") is not None:
            names = ("mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts", "attention_mask")
            # On the host: from a GPU the model's way asks for some numbers of every image, video or pair of frames.
            on_host = {name: x.cpu() if isinstance(x := inputs.get(name), Tensor) else x for name in names}
            positions, _ = self.core.get_rope_index(ids.cpu(), **on_host)
            return positions.to(ids.device, non_blocking=True)
        whole: Tensor = inputs["inputs_embeds"][..., 0] if ids is None else ids
        shown = torch.ones_like(whole, dtype=torch.long) if mask is None else mask.long()
        return (shown.cumsum(1) - 1).masked_fill(shown == 0, 0).expand(3, *shown.shape)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        before = self.core.rope_deltas
        try:
            yield
        finally:
            self.core.rope_deltas = before


@contextlib.contextmanager
def recorded_attention(attention: Any) -> Iterator[dict[Any, Tensor]]:
    """While open, a call of a vision attention leaves `qkv` (P, 3*E) and its rotation, `cos` and `sin` (P, E/heads)."""
    with recorded({"qkv": attention.qkv}) as states:

        def keep_rotation(_: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
            states["cos"], states["sin"] = kwargs["position_embeddings"]

        with attention.register_forward_pre_hook(keep_rotation, with_kwargs=True):
            yield states
