"""What the Qwen families share: packed videos, M-RoPE positions that tokens keep, and what those are.

A frame of theirs spans temporal_patch_size sampled frames, and m is 2.
"""

import contextlib
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tango.models.packed import Packed
from tango.models.positions import AUDIO, IMAGE, VIDEO, Grid, trained_positions
from tango.models.prompt import take, written
from tango.pruners.base import Pruner


class QwenVL(Packed):
    """Base of Qwen2.5-VL, Qwen3-VL, Qwen3.5 and Qwen3-Omni."""

    vision = "visual"
    inputs: tuple[str, ...] = (
        "pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts",
        "mm_token_type_ids",
    )  # fmt: skip
    seconds = "second_per_grid_ts"  # the argument that says how many from one frame of each video to the next

    def __init__(self, model: Any, pruner: Pruner) -> None:
        super().__init__(model, pruner)
        self.merge: int = self.tower.spatial_merge_size
        self.trained = pruner.positions == "trained"

    # -- videos --------------------------------------------------------------------------------------------------

    @classmethod
    def sizes(cls, config: Any, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
        grids, group = inputs.get("video_grid_thw"), config.vision_config.spatial_merge_size**2
        return [] if grids is None else [(t, t * h * w // group) for t, h, w in torch.as_tensor(grids).tolist()]

    def placeholders(self, inputs: Mapping[str, Any]) -> tuple[list[int], str]:
        grids = self._grids(inputs["pixel_values_videos"], inputs.get("video_grid_thw"))
        intervals = inputs.get(self.seconds)
        if intervals is not None and len(intervals) != len(grids):
            raise ValueError(f"{self.seconds} has {len(intervals)} entries for {len(grids)} videos")
        lengths, words = super().placeholders(inputs)
        each = " + ".join("x".join(map(str, grid)) for grid in self.token_grids(grids))
        return lengths, f"{words} ({each})"

    def encode(self, inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        intervals = inputs.get(self.seconds)
        for index, parts in enumerate(super().encode(inputs)):
            if intervals is not None:
                frames = torch.arange(len(parts["features"]), dtype=torch.float32)
                parts["timestamps"] = frames * float(intervals[index])
            yield parts

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

    def token_grids(self, *shapes: Any) -> list[Grid]:
        grids: Any = [] if shapes[0] is None else torch.as_tensor(shapes[0]).tolist()
        return [(t, h // self.merge, w // self.merge) for t, h, w in grids]

    # -- the prompt ----------------------------------------------------------------------------------------------

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
        """(3, B, N) of the unpruned prompt."""
        videos = self.token_grids(inputs.get("video_grid_thw"))
        times = self.moments(videos, inputs) if self.trained else None
        if times is None:
            return self._positions_of_transformers(inputs)
        text, types, shown = written(inputs), self._types(inputs).cpu(), inputs.get("attention_mask")
        seen = torch.ones_like(types) if shown is None else shown.cpu()
        images = self.token_grids(inputs.get("image_grid_thw"))
        return trained_positions(types, seen.bool(), images, videos, times).to(text.device, non_blocking=True)

    def moments(self, videos: Sequence[Grid], inputs: Mapping[str, Any]) -> list[Tensor] | None:
        """Temporal positions of each video's frames (F,), from its first, as the model was trained with them.

        None: as transformers has them, with all other positions.
        """
        return None

    def _types(self, inputs: Mapping[str, Any]) -> Tensor:
        """TEXT, IMAGE, VIDEO or AUDIO of each token (B, N)."""
        config, text = self.core.config, written(inputs)
        kinds = {"image_token_id": IMAGE, "video_token_id": VIDEO, "audio_token_id": AUDIO}
        found = [kind * self.find(getattr(config, name), text) for name, kind in kinds.items() if hasattr(config, name)]
        return torch.stack(found).sum(0)

    def _positions_of_transformers(self, inputs: Mapping[str, Any]) -> Tensor:
        """(3, B, N) as in the model itself, without ids or their types text's: one a token."""
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
