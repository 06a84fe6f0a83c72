"""VideoLLaMA3 (arXiv 2501.13106): a SigLIP tower for any size, bilinear merging, a Qwen2 decoder, tokens left out.

A frame stands in the prompt as its time, as text, and its placeholders. The processor leaves out tokens by itself:
those whose pixels are nearly those of the frame before at the same place (`video_compression_mask`). Pruning comes
after that. A method sees all frames whole, since a token that was left out is the picture of the last one before it at
its place that was not; its budget is the share of the tokens that were left. Where it keeps a token that was left out,
that last one before it stands in; where that one is kept already, another that was left is kept, spread evenly.
Kept tokens take the places of their placeholders, and the language model numbers the shorter prompt without gaps.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tango.models.family import PlacedVideo
from tango.models.packed import Packed
from tango.models.positions import Grid
from tango.pruners.base import Pruner
from tango.pruners.video import Pruned


@dataclass(frozen=True)
class CompressedVideo(PlacedVideo):
    """A video of which the processor left some tokens out; present (F, L): those that have a placeholder.

    columns (F * L,): of a token that has none, that of the last before it that has.
    """

    present: Tensor

    def prune(self, pruner: Pruner) -> tuple[Pruned, int]:
        left, total = int(self.present.sum()), self.present.numel()
        if left == total:
            return super().prune(pruner)
        if pruner.retention_ratio < 1:
            pruner = copy.copy(pruner)
            pruner.retention_ratio *= left / total
        return survivors(pruner.prune_tokens(self.tokens), self.tokens.features, self.present), left


def survivors(pruned: Pruned, features: Tensor, present: Tensor) -> Pruned:
    """What was kept of a whole video as tokens that are present, as many as there were, in ascending order.

    Args:
        pruned: of features (F, L, D). present: (F, L) bool.

    Raises:
        ValueError: a place at which no token is present in the first frame.
    """
    frames, tokens = present.shape
    if not bool(present[0].all()):
        raise ValueError("video_compression_mask leaves out tokens of a video's first frame, which no frame before "
                         "could stand in for; pass the processor's")  # fmt: skip
    own = torch.arange(frames * tokens).view(frames, tokens)
    stand_in = own.masked_fill(~present.cpu(), 0).cummax(0).values.flatten().tolist()
    kept = pruned.indices.tolist()
    rows: dict[int, int] = {}  # token -> its row of pruned.features; what is present itself goes first
    for row in sorted(range(len(kept)), key=lambda row: stand_in[kept[row]] != kept[row]):
        rows.setdefault(stand_in[kept[row]], row)
    free = [token for token in own[present.cpu()].tolist() if token not in rows]
    missing = min(len(kept) - len(rows), len(free))
    added = [free[step * len(free) // missing] for step in range(missing)]
    indices, order = torch.tensor([*rows, *added]).sort()
    device = pruned.features.device
    chosen = pruned.features[torch.tensor([*rows.values()], device=device)]
    others = features.flatten(0, 1)[torch.tensor(added, dtype=torch.long, device=device)].to(chosen)
    return replace(
        pruned, indices=indices.to(pruned.indices.device), features=torch.cat((chosen, others))[order.to(device)]
    )


class VideoLlama3(Packed):
    """VideoLlama3ForConditionalGeneration."""

    title = "VideoLLaMA3"
    vision = "vision_model"
    inputs = (
        "pixel_values", "image_grid_thw", "image_merge_sizes", "pixel_values_videos", "video_grid_thw",
        "video_merge_sizes", "video_compression_mask",
    )  # fmt: skip
    shapes = ("grid_thw", "merge_sizes")

    @staticmethod
    def token_grids(*shapes: Any) -> list[Grid]:
        grids, merges = (torch.as_tensor(own).tolist() for own in shapes)
        return [(t, h // merge, w // merge) for (t, h, w), merge in zip(grids, merges, strict=True)]

    @classmethod
    def present(cls, inputs: Mapping[str, Any]) -> list[Tensor]:
        """Which tokens of each video have a placeholder, (F, L) bool."""
        shapes, mask = [inputs.get(f"video_{name}") for name in cls.shapes], inputs.get("video_compression_mask")
        if any(own is None for own in shapes):
            raise ValueError("pixel_values_videos needs video_grid_thw and video_merge_sizes, as the processor makes "
                             "them")  # fmt: skip
        grids = cls.token_grids(*shapes)
        counts = [frames * height * width for frames, height, width in grids]
        mask = torch.ones(sum(counts), dtype=torch.bool) if mask is None else torch.as_tensor(mask).bool()
        if mask.shape != (sum(counts),):
            raise ValueError(f"video_compression_mask has shape {tuple(mask.shape)}; the videos need ({sum(counts)},)")
        return [own.view(frames, -1) for own, (frames, _, _) in zip(torch.split(mask, counts), grids, strict=True)]

    @classmethod
    def sizes(cls, config: Any, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
        if inputs.get("pixel_values_videos") is None:
            return []
        return [(len(present), int(present.sum())) for present in cls.present(inputs)]

    def placeholders(self, inputs: Mapping[str, Any]) -> tuple[list[int], str]:
        told = super().placeholders(inputs)
        patches, pixels = int(torch.as_tensor(inputs["video_grid_thw"]).prod(1).sum()), inputs["pixel_values_videos"]
        if pixels.dim() != 2 or len(pixels) != patches:
            raise ValueError(f"pixel_values_videos has shape {tuple(pixels.shape)}; video_grid_thw needs {patches} "
                             "rows, one a patch")  # fmt: skip
        return told

    def videos(self, inputs: Mapping[str, Any]) -> Iterator[PlacedVideo]:
        for video, present in zip(super().videos(inputs), self.present(inputs), strict=True):
            columns = video.columns[present.flatten().long().cumsum(0).to(video.columns.device) - 1]
            yield CompressedVideo(video.row, columns, video.tokens, video.extra, video.computed, present)


FAMILY = VideoLlama3
