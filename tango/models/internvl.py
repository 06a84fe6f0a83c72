"""InternVL3 and 3.5 (arXiv 2508.18265): a tower that sees tiles, pixel shuffle, a projector, a Qwen decoder.

An image is cut into tiles of one size, and a frame of a video is one tile: a span of L placeholders each, after its
number as text (`Frame1: `) that stays whatever is pruned. Kept tokens take the places of their placeholders, and the
language model numbers the shorter prompt without gaps.

Tiles of images and of videos come in one tensor, and their placeholders are the same token. What of a prompt is video
has to be said: by `video_frames`, the frames of each visual of the prompt, 0 for an image; or, where all of them are
videos, by their times.
"""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tango.models.attention import from_attention
from tango.models.family import Family
from tango.models.positions import timestamps_of
from tango.models.prompt import written
from tango.models.refusals import Refusal, encoded_already
from tango.models.tower import joined, recorded

TILES_PER_CALL = 64  # of a video that the tower sees at once, so that its memory does not grow with the video
OPTIONS = ("vision_feature_layer", "vision_feature_select_strategy")
UNTOLD = (
    "the prompt has several spans of one tile, which may be images or frames: they are left as they are. Pass "
    "video_frames, the frames of each visual of the prompt, 0 for an image, to have videos pruned"
)


class InternVL(Family):
    """InternVLForConditionalGeneration.

    saliency (F, L) and keys (F, L, width of a head) are those of the tower's last layer, over its patches without the
    class token. There are no segment_features and frame_vectors, for which methods take the mean token of each frame.
    """

    title = "InternVL"
    inputs = ("pixel_values", "image_sizes", *OPTIONS, "video_frames")

    @classmethod
    def side(cls, config: Any, pixels: Tensor) -> int:
        """Tokens along a side of a tile; ValueError for pixels that are no square tiles."""
        patch, step = config.vision_config.patch_size[0], int(1 / config.downsample_ratio)
        if pixels.dim() != 4 or pixels.shape[2] != pixels.shape[3] or pixels.shape[2] % (patch * step):
            raise ValueError(f"pixel_values has shape {tuple(pixels.shape)}, not (tiles, C, H, H), H a multiple of "
                             f"{patch * step}")  # fmt: skip
        side: int = pixels.shape[2] // (patch * step)
        return side

    @classmethod
    def visuals(cls, inputs: Mapping[str, Any]) -> list[int] | None:
        """Frames of each visual of a prompt, 0 for an image; None where nobody says what is video."""
        told, times = inputs.get("video_frames"), inputs.get("video_timestamps")
        if told is not None:
            return [int(frames) for frames in told]
        times = timestamps_of(inputs.get("video_metadata")) if times is None else times
        return None if times is None else [0 if own is None else len(own) for own in times]

    @classmethod
    def sizes(cls, config: Any, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
        frames = [count for count in cls.visuals(inputs) or () if count]
        return [(count, count * cls.side(config, inputs["pixel_values"]) ** 2) for count in frames]

    def has_video(self, inputs: Mapping[str, Any], refusal: Refusal = encoded_already) -> bool:
        visuals, pixels, encoded = self.visuals(inputs), inputs.get("pixel_values"), inputs.get("mm_encoder_outputs")
        if any(visuals or ()) and encoded:
            raise refusal()
        # In a generate() of the user's own transformers has encoded all tiles as images: (T, L, D).
        tiles: Any = getattr((encoded or {}).get("image"), "pooler_output", None)
        if visuals is None and (pixels is not None or tiles is not None):
            tokens = tiles.shape[1] if pixels is None else self.side(self.core.config, pixels) ** 2
            if sum(end - start == tokens for _, start, end in self._spans(inputs)) > 1:
                warnings.warn(UNTOLD, stacklevel=2)
        return pixels is not None and any(visuals or ())

    def places(self, kind: str, inputs: Mapping[str, Any]) -> Tensor:
        columns, _ = self._video_parts(inputs)
        return columns if kind == "video" else self._tokens(inputs) & ~columns

    def _tokens(self, inputs: Mapping[str, Any]) -> Tensor:
        """Where placeholders stand (B, N), of images and frames alike."""
        found = self.find(self.core.config.image_token_id, written(inputs))
        mask = inputs.get("attention_mask")
        return found if mask is None else found & mask.to(found.device).bool()

    def _spans(self, inputs: Mapping[str, Any]) -> list[tuple[int, int, int]]:
        """Row, first column and end of each span of placeholders, in the order of the prompt."""
        edges = F.pad(self._tokens(inputs).int(), (1, 1)).diff(dim=1).cpu()
        starts, ends = ((edges == step).nonzero().tolist() for step in (1, -1))
        return [(row, start, end) for (row, start), (_, end) in zip(starts, ends, strict=True)]

    def _video_parts(self, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """What belongs to videos: of the prompt (B, N) and of the tiles (T,), bool.

        Raises ValueError where the spans of the prompt are not those of the visuals and tiles that were given.
        """
        text, pixels, visuals = written(inputs), inputs["pixel_values"], self.visuals(inputs) or []
        tokens, spans = self.side(self.core.config, pixels) ** 2, self._spans(inputs)
        columns, tiles = torch.zeros(text.shape[:2], dtype=torch.bool), []
        wanted = [frames for frames in visuals for _ in range(frames or 1)]
        if len(wanted) != len(spans):
            raise ValueError(f"video_frames {visuals} stands for {len(wanted)} spans of placeholders, and the prompt "
                             f"has {len(spans)}: give the frames of each visual, 0 for an image")  # fmt: skip
        for frames, (row, start, end) in zip(wanted, spans, strict=True):
            if (end - start) % tokens or (frames and end - start != tokens):
                whose = "a frame" if frames else "each tile of an image"
                raise ValueError(f"row {row} of the prompt has {end - start} placeholders from column {start} on, "
                                 f"where {whose} needs {tokens}")  # fmt: skip
            columns[row, start:end] = frames > 0
            tiles += [frames > 0] * ((end - start) // tokens)
        if len(tiles) != len(pixels):
            raise ValueError(f"the prompt holds placeholders for {len(tiles)} tiles, and pixel_values {len(pixels)}")
        return columns.to(text.device), torch.tensor(tiles, device=pixels.device)

    def encode(self, inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        pixels, (_, tiles) = inputs["pixel_values"], self._video_parts(inputs)
        side, frames = self.side(self.core.config, pixels), [count for count in self.visuals(inputs) or () if count]
        whole = self._encode_tiles(pixels, inputs) if self.in_one_call else {}
        for own in torch.split(tiles.nonzero()[:, 0], frames):
            if whole:
                parts = {name: tensor[own] for name, tensor in whole.items()}
            else:
                chunks = torch.split(pixels[own], TILES_PER_CALL)
                parts = joined((self._encode_tiles(chunk, inputs) for chunk in chunks), len(own))
            yield parts | {"grid": (side, side)}

    def _encode_tiles(self, pixels: Tensor, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Features (T, L, D) and the parts of VideoTokens that are needed, of tiles (T, C, H, H)."""
        attention = self.core.vision_tower.encoder.layer[-1].attention
        with recorded({"queries": attention.q_norm, "keys": attention.k_norm} if self.parts else {}) as outputs:
            features = self._features(pixels, inputs)
        if not self.parts:
            return {"features": features}
        config = self.core.config
        return {"features": features} | self.attended(config, pixels, attention, outputs, self.parts)

    @classmethod
    def attended(
        cls, config: Any, pixels: Tensor, attention: Any, outputs: Mapping[str, Tensor], parts: Any
    ) -> dict[str, Tensor]:
        """Parts of VideoTokens from the `queries` and `keys` (T, 1 + P, E) of tiles' last attention."""
        step, side = int(1 / config.downsample_ratio), cls.side(config, pixels)
        # Without the class token, and the patches of a token side by side.
        grids = (outputs[name][:, 1:].view(-1, side, step, side, step, attention.embed_dim) for name in outputs)
        queries, keys = (grid.transpose(2, 3).flatten(1, 4) for grid in grids)
        return from_attention(parts, queries, keys, attention.num_heads, attention.scale, step**2)

    def _features(self, pixels: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        options = {name: inputs[name] for name in OPTIONS if inputs.get(name) is not None}
        features: Tensor = self.core.get_image_features(pixels, return_dict=True, **options).pooler_output
        return features

    def image_features(self, inputs: Mapping[str, Any]) -> Tensor:
        pixels, (_, tiles) = inputs["pixel_values"], self._video_parts(inputs)
        if bool(tiles.all()):
            return torch.empty(0, self.core.config.text_config.hidden_size)
        if self.in_one_call:  # images and frames together, as the model does
            return self._features(pixels, inputs)[~tiles].flatten(0, 1)
        return self._features(pixels[~tiles], inputs).flatten(0, 1)


FAMILY = InternVL
