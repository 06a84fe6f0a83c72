"""What a model family says of itself, and what all families share: placing videos, times, embedding a shorter prompt.

Each family file has one subclass of `Family`. Data goes from its `encode()` through `Family.videos()`, which makes the
VideoTokens that methods see, and its `lay_out()` of what a method kept, to `Family.shorten()`, the pruned prompt.
"""

import contextlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tango.models import refusals
from tango.models.attention import SALIENCIES, parts_of_attention
from tango.models.positions import numbered, timestamps_of
from tango.models.prompt import Edit, PaddingSide, Prompt, columns_left, take, written
from tango.models.versions import core_of
from tango.pruners.base import Pruner
from tango.pruners.video import Pruned, VideoTokens

# The parts of VideoTokens that a method may need beside features, grid and timestamps.
PARTS = frozenset({"saliency", "segment_features", "frame_vectors", "keys", "key"})


@dataclass(frozen=True)
class PlacedVideo:
    """One encoded video and its place in a prompt.

    row, columns: its row of the batch and the prompt columns (n,) of its placeholders, ascending.
    extra (F, L, X) or None: what else of each token the language model receives; pruners do not see it.
    computed: share of its work that the vision tower did.
    """

    row: int
    columns: Tensor
    tokens: VideoTokens
    extra: Tensor | None
    computed: float

    def prune(self, pruner: Pruner) -> tuple[Pruned, int]:
        """What a method keeps of the video, and of how many tokens."""
        return pruner.prune_tokens(self.tokens), self.tokens.features[..., 0].numel()


class Family(ABC):
    """One model family. Made once for each attachment, so whatever it loads lives as long as that.

    Raises ValueError for a saliency or a part of VideoTokens that the family does not have.
    """

    title: str
    vision = "vision_tower"  # the name that the core has for its vision tower
    inputs: tuple[str, ...]  # arguments of the model that are used up here; the language model sees none
    video_inputs = ("pixel_values_videos",)  # those of them whose presence means that the prompt holds a video
    saliencies: tuple[str, ...] = (*SALIENCIES,)  # those that a method may ask for, the default first
    sinks: Mapping[tuple[int, int], tuple[int, ...]] = {}  # attention sinks of a frame, by grid
    extra_width = 0  # X: columns of an Edit's embeddings (.., D + X) beyond the language model's width

    def __init__(self, model: Any, pruner: Pruner) -> None:
        self.core = core_of(model, self.vision)  # the model without its output projection
        self.tower: Any = getattr(self.core, self.vision)
        self.needs, self.reads_times = pruner.needs, pruner.reads_times
        self.saliency = pruner.saliency or self.saliencies[0]
        if self.saliency not in self.saliencies:
            raise ValueError(f"saliency={pruner.saliency!r}: {self.title} has {', '.join(self.saliencies)}")
        if unknown := self.needs - PARTS:
            raise ValueError(f"{pruner.name} needs {', '.join(sorted(unknown))}; {self.title} has {sorted(PARTS)}")
        self.parts = parts_of_attention(self.needs, self.saliency)
        # All videos of a prompt in one call, as the model itself does, where the result must equal its own to the bit.
        self.in_one_call = pruner.retention_ratio == 1
        self.keep_positions = pruner.keep_positions

    # -- what a family says of itself ----------------------------------------------------------------------------

    @classmethod
    def vision_modules(cls, model: Any) -> list[nn.Module]:
        """The modules whose calls are the vision tower's time, also of a model that nothing is attached to."""
        return [getattr(core_of(model, cls.vision), cls.vision)]

    @staticmethod
    def language_model(model: Any) -> Any:
        """The decoder that prefills and decodes, without its output projection; nothing need be attached."""
        return model.get_decoder()

    @classmethod
    @abstractmethod
    def sizes(cls, config: Any, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
        """Frames and tokens of each video of a prompt, without encoding it; `config` is the model's."""

    def placeholders(self, inputs: Mapping[str, Any]) -> tuple[list[int], str]:
        """How many placeholders each video has in a prompt, and the same in words; ValueError for malformed pixels."""
        lengths = [tokens for _, tokens in self.sizes(self.core.config, inputs)]
        return lengths, f"{len(lengths)} videos need {sum(lengths)}"

    @abstractmethod
    def encode(self, inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The parts of VideoTokens of each video by name, without its key; and `extra`, where there is any."""

    @abstractmethod
    def image_features(self, inputs: Mapping[str, Any]) -> Tensor:
        """What the language model receives of the images of a prompt: (n, D + X)."""

    def lay_out(self, video: PlacedVideo, pruned: Pruned) -> Edit:
        """What stands in the prompt for a pruned video; here kept tokens, each in the place of its own placeholder."""
        columns = video.columns[pruned.indices.to(video.columns.device)]
        return Edit(video.row, video.columns, columns, pruned.features, torch.ones_like(columns, dtype=torch.bool))

    def timestamps(self, timestamps: Sequence[float] | Tensor, frames: int) -> Tensor:
        """Seconds of each frame (F,), from those that the caller gives or that come with a video."""
        return torch.as_tensor(timestamps, dtype=torch.float64).flatten()

    def positions(
        self, inputs: Mapping[str, Any], source: Tensor, attended: Tensor, unchanged: bool
    ) -> tuple[Tensor, Tensor] | None:
        """Position ids (.., B, W) of a pruned prompt, and that of the token after it (.., B).

        inputs: the unpruned prompt of width N; source (B, W): its column at each place, -1 for padding; attended
        (B, W): what the pruned prompt's mask shows; unchanged: nothing was dropped. None: the model numbers the prompt
        itself, without gaps, as here where the caller gives no positions.
        """
        if inputs.get("position_ids") is None and (unchanged or not self.keep_positions):
            return None
        return numbered(inputs, source, attended, keep=unchanged or self.keep_positions)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Open while the pruner is attached, for hooks of the family's own."""
        yield

    def begin(self, prompt: Prompt | None) -> None:  # noqa: B027
        """Called before the model runs on a pruned prompt; None: nothing of an earlier one is to be used any more."""

    # -- what all families share ---------------------------------------------------------------------------------

    def has_video(self, inputs: Mapping[str, Any], refusal: refusals.Refusal = refusals.encoded_already) -> bool:
        """Whether a call has videos to encode. Raises refusal() for videos that are encoded already."""
        found = any(inputs.get(name) is not None for name in self.video_inputs)
        encoded = inputs.get("mm_encoder_outputs") or {}
        if encoded.get("video") is not None or (found and encoded):
            raise refusal()
        return found

    def videos(self, inputs: Mapping[str, Any]) -> Iterator[PlacedVideo]:
        """Encode the videos of a prompt, in prompt order."""
        video_timestamps, video_keys = inputs.get("video_timestamps"), inputs.get("video_keys")
        if video_timestamps is None:
            video_timestamps = timestamps_of(inputs.get("video_metadata"))
        lengths, words = self.placeholders(inputs)
        for name, values in (("video_keys", video_keys), ("video_timestamps", video_timestamps)):
            if values is not None and len(values) != len(lengths):
                raise ValueError(f"{name} has {len(values)} entries for {len(lengths)} videos")
        places = self.places("video", inputs).nonzero()
        if len(places) != sum(lengths):
            raise ValueError(f"the prompt holds {len(places)} video placeholders, and {words}")
        rows = [set(own.tolist()) for own in torch.split(places[:, 0].cpu(), lengths)]
        if any(len(own) > 1 for own in rows):
            raise ValueError("a video's placeholders are spread over several prompts of the batch")
        columns = torch.split(places[:, 1], lengths)
        for index, (parts, own, (row,)) in enumerate(zip(self.encode(inputs), columns, rows, strict=True)):
            # The ordinal counts within the prompt, so that a prompt is pruned alike in any batch.
            key = str(rows[:index].count({row}) if video_keys is None else video_keys[index])
            frames, extra = len(parts["features"]), parts.pop("extra", None)
            computed = float(parts.pop("computed", torch.ones(1)).mean())
            if video_timestamps is not None and (timestamps := video_timestamps[index]) is not None:
                parts["timestamps"] = self.timestamps(timestamps, frames)
            if "timestamps" not in parts:
                if self.reads_times and frames > 1:
                    warnings.warn(refusals.NO_TIMES, stacklevel=2)  # Python says it once
                parts["timestamps"] = torch.arange(frames)
            try:
                tokens = VideoTokens(**parts, key=key)
            except ValueError as error:
                raise ValueError(f"video {index} (key {key!r}): its {error}") from error
            yield PlacedVideo(row, own, tokens, extra, computed)

    def places(self, kind: str, inputs: Mapping[str, Any]) -> Tensor:
        """Where the placeholders of "image" or "video" stand in a prompt (B, N), bool."""
        return self.find(getattr(self.core.config, f"{kind}_token_id"), written(inputs))

    def find(self, token: int, text: Tensor) -> Tensor:
        """Where a placeholder stands (B, N), bool, in ids (B, N), or in embeddings (B, N, D), by its own embedding."""
        if text.dim() == 3:
            embedding: Tensor = self.core.get_input_embeddings()(torch.tensor(token, device=text.device))
            return (text == embedding.to(text.device)).all(-1)
        return text == token

    def embed(self, text: Tensor, images: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Embed ids (B, W) or take embeddings (B, W, D), images put in and videos not yet: (B, W, D + X).

        images: (B, W) bool, where placeholders of images stand.
        """
        out = F.pad(self.core.get_input_embeddings()(text) if text.dim() == 2 else text, (0, self.extra_width))
        if inputs.get("pixel_values") is None:
            return out
        features = self.image_features(inputs).to(out)
        if (places := images.sum()) != len(features):
            raise ValueError(f"the prompt holds {places} image placeholders for {len(features)} image features")
        return out.masked_scatter(images.unsqueeze(-1).to(out.device), features)

    def shorten(self, inputs: Mapping[str, Any], edits: Sequence[Edit], side: PaddingSide | None) -> Prompt:
        """The prompt (input_ids or inputs_embeds of `inputs`, its mask and positions) after the edits of its videos.

        side: where rows that end up shorter than others are padded; None: where the prompt is padded already, or left.
        A prompt of which nothing is dropped keeps its width, padding, mask and positions.
        """
        text, mask = written(inputs), inputs.get("attention_mask")
        shown = (torch.ones(text.shape[:2]) if mask is None else mask).to(text.device).bool()
        source, places = columns_left(shown, edits, side)
        unchanged = source.shape == shown.shape and bool((source == torch.arange(shown.shape[1]).to(source)).all())
        attended = take(shown, source)
        out = self.embed(take(text, source), take(self.places("image", inputs), source), inputs)
        spans, visual = torch.full_like(source, -1), torch.zeros_like(attended)
        for index, (edit, own) in enumerate(zip(edits, places, strict=True)):
            out[edit.row, own.to(out.device)] = edit.embeddings.to(out.device, out.dtype)
            spans[edit.row, own] = index
            visual[edit.row, own] = edit.visual.to(own.device)
        out, extra = torch.split(out, [out.shape[-1] - self.extra_width, self.extra_width], dim=-1)

        positions, following = self.positions(inputs, source, attended, unchanged) or (None, None)
        if mask is not None and not unchanged:
            mask = attended.to(mask.device, mask.dtype)
        elif not unchanged and (self.keep_positions or not bool((source >= 0).all())):
            mask = attended.long()  # without a mask, gaps would be taken for starts of other sequences
        return Prompt(out.contiguous(), extra, mask, positions, source, spans, visual, following, unchanged)
