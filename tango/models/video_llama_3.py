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
from torch import Tensor, nn

from tango.models.attention import from_attention
from tango.models.family import Family, PlacedVideo
from tango.models.in_llm import language_model
from tango.models.prompt import Edit
from tango.models.segments import segments_together
from tango.models.tower import joined, recorded
from tango.pruners.base import Pruner
from tango.pruners.video import Pruned

__all__ = ["FAMILY", "VideoLlama3", "language_model", "survivors", "vision_modules"]

PATCHES_PER_CALL = 1 << 15  # that the tower sees at once (at least a frame), so that its memory does not grow


def vision_modules(model: Any) -> list[nn.Module]:
    """The modules whose calls are the vision tower's time."""
    return [model.model.vision_model]


@dataclass(frozen=True)
class CompressedVideo(PlacedVideo):
    """A video of which the processor left some tokens out; present (F, L): those that have a placeholder."""

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


class VideoLlama3(Family):
    """VideoLlama3ForConditionalGeneration.

    saliency (F, L) and keys (F, L, width of a head) are those of the tower's last layer. There are no segment_features
    and frame_vectors, for which methods take the mean token of each frame.
    """

    title = "VideoLLaMA3"
    inputs = (
        "pixel_values", "image_grid_thw", "image_merge_sizes", "pixel_values_videos", "video_grid_thw",
        "video_merge_sizes", "video_compression_mask",
    )  # fmt: skip

    def __init__(self, model: Any, pruner: Pruner) -> None:
        super().__init__(model, pruner)
        self.tower = self.core.vision_model

    @classmethod
    def shapes(cls, inputs: Mapping[str, Any]) -> list[tuple[int, int, int]]:
        """Frames, rows and columns of tokens of each video, before any are left out."""
        grids, merges = inputs.get("video_grid_thw"), inputs.get("video_merge_sizes")
        if grids is None or merges is None:
            raise ValueError("pixel_values_videos needs video_grid_thw and video_merge_sizes, as the processor makes "
                             "them")  # fmt: skip
        pairs = zip(torch.as_tensor(grids).tolist(), torch.as_tensor(merges).tolist(), strict=True)
        return [(t, h // merge, w // merge) for (t, h, w), merge in pairs]

    @classmethod
    def present(cls, inputs: Mapping[str, Any]) -> list[Tensor]:
        """Which tokens of each video have a placeholder, (F, L) bool."""
        shapes, mask = cls.shapes(inputs), inputs.get("video_compression_mask")
        counts = [frames * height * width for frames, height, width in shapes]
        mask = torch.ones(sum(counts), dtype=torch.bool) if mask is None else torch.as_tensor(mask).bool()
        if mask.shape != (sum(counts),):
            raise ValueError(f"video_compression_mask has shape {tuple(mask.shape)}; the videos need ({sum(counts)},)")
        return [own.view(shape[0], -1) for own, shape in zip(torch.split(mask, counts), shapes, strict=True)]

    @classmethod
    def sizes(cls, config: Any, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
        if inputs.get("pixel_values_videos") is None:
            return []
        return [(len(present), int(present.sum())) for present in cls.present(inputs)]

    def placeholders(self, inputs: Mapping[str, Any]) -> tuple[list[int], str]:
        lengths = [tokens for _, tokens in self.sizes(self.core.config, inputs)]
        patches, pixels = int(torch.as_tensor(inputs["video_grid_thw"]).prod(1).sum()), inputs["pixel_values_videos"]
        if pixels.dim() != 2 or len(pixels) != patches:
            raise ValueError(f"pixel_values_videos has shape {tuple(pixels.shape)}; video_grid_thw needs {patches} "
                             "rows, one a patch")  # fmt: skip
        return lengths, f"{len(lengths)} videos need {sum(lengths)}"

    def videos(self, inputs: Mapping[str, Any]) -> Iterator[PlacedVideo]:
        for video, present in zip(super().videos(inputs), self.present(inputs), strict=True):
            yield CompressedVideo(video.row, video.columns, video.tokens, None, video.computed, present)

    def encode(self, inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        pixels, shapes = inputs["pixel_values_videos"], self.shapes(inputs)
        grids, merges = (torch.as_tensor(inputs[name]) for name in ("video_grid_thw", "video_merge_sizes"))
        if self.in_one_call:  # as the model does
            encoded = iter(self._encode_chunk(pixels, grids, merges))
        else:
            packed = torch.split(pixels, grids.prod(1).tolist())
            encoded = (self._encode_video(*video) for video in zip(packed, grids, merges, strict=True))
        for parts, shape in zip(encoded, shapes, strict=True):
            yield parts | {"grid": shape[1:]}

    def _encode_video(self, pixels: Tensor, grid: Tensor, merge: Tensor) -> dict[str, Tensor]:
        """The parts of one video, whose frames do not see each other in the tower."""
        frames, patches = int(grid[0]), int(grid[1] * grid[2])
        step = max(1, PATCHES_PER_CALL // patches)
        chunks = ((chunk, len(chunk) // patches) for chunk in torch.split(pixels, step * patches))
        with segments_together(self.tower):
            return joined(
                (
                    self._encode_chunk(chunk, torch.cat((grid.new_tensor([count]), grid[1:]))[None], merge[None])[0]
                    for chunk, count in chunks
                ),
                frames,
            )

    def _encode_chunk(self, pixels: Tensor, grids: Tensor, merges: Tensor) -> list[dict[str, Tensor]]:
        """Features (F, L, D) of each video and the parts of VideoTokens that are needed."""
        attention, rotation = self.tower.encoder.layers[-1].self_attn, []
        hook = attention.register_forward_pre_hook(
            lambda _, __, inputs: rotation.append(inputs["position_embeddings"]), with_kwargs=True
        )
        modules = {"queries": attention.q_proj, "keys": attention.k_proj} if self.parts else {}
        with hook, recorded(modules) as outputs:
            features = self.core.get_video_features(pixels, grids, merges, return_dict=True).pooler_output
        encoded = []
        counts = grids.prod(1).tolist()
        packed = (torch.split(states, counts) for states in (*outputs.values(), *rotation[0]) if self.parts)
        states_of: Any = zip(*packed, strict=True) if self.parts else [()] * len(counts)
        for own, grid, merge, states in zip(features, grids, merges.tolist(), states_of, strict=True):
            frames = int(grid[0])
            parts = {"features": own.view(frames, -1, own.shape[-1])}
            if self.parts:
                queries, keys, *turned = (x.unflatten(0, (frames, -1)) for x in states)
                scaling, group = attention.scaling, merge**2
                parts |= from_attention(self.parts, queries, keys, attention.num_heads, scaling, group, tuple(turned))
            encoded.append(parts)
        return encoded

    def image_features(self, inputs: Mapping[str, Any]) -> Tensor:
        images = self.core.get_image_features(
            inputs["pixel_values"], inputs["image_grid_thw"], inputs["image_merge_sizes"], return_dict=True
        )
        return torch.cat(images.pooler_output)

    def lay_out(self, video: PlacedVideo, pruned: Pruned) -> Edit:
        present: Tensor = video.present  # type: ignore[attr-defined]  # of a CompressedVideo
        places = present.flatten().long().cumsum(0).to(video.columns.device) - 1  # among the placeholders
        columns = video.columns[places[pruned.indices.to(places.device)]]
        return Edit(video.row, video.columns, columns, pruned.features, torch.ones_like(columns, dtype=torch.bool))


FAMILY = VideoLlama3
