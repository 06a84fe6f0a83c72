"""What Qwen2.5-VL and Qwen3-VL share: packed videos, the last block's attention, and M-RoPE positions that tokens keep.

Videos of any size come packed: `pixel_values_videos` holds the patches of all of them, and `video_grid_thw` (V, 3)
their grids, t x h x w patches each, where a patch spans temporal_patch_size sampled frames. A frame here is one of the
t, its tokens are the merger's output, h / 2 x w / 2, and patches lie in the order of the tokens they are merged into.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tango.models.attention import received_attention
from tango.models.family import Family, Video, joined, placeholders
from tango.models.prompt import take
from tango.models.segments import segments_together
from tango.pruners.base import full_precision

if TYPE_CHECKING:
    from tango.pruners.base import Pruned, Pruner

# The tower sees no more patches at once (at least a frame), so that its memory does not grow with the video.
PATCHES_PER_CALL = 1 << 15
ROTATED_BYTES = 128 << 20  # of the last block's queries, keys and values in fp32 at once, at least a frame's
SIGNALS = frozenset({"saliency", "segment_features", "frame_vectors", "keys", "key"})
SALIENCIES = ("global_query", "received_attention")


def vision_modules(model: Any) -> list[nn.Module]:
    """The modules whose calls are the vision tower's time; it ends in the merger, which is this family's projector."""
    return [model.model.visual]


def language_model(model: Any) -> nn.Module:
    """The decoder, without its output projection."""
    decoder: nn.Module = model.model.language_model
    return decoder


class QwenVL(Family):
    """Base of both families.

    Signals, from the last block of the tower: saliency (F, L), see `mean_query_saliency` (default) and
    `received_saliency`; keys (F, L, width of a head), see `mean_keys`. segment_features and frame_vectors are None, for
    which methods take the mean token of each frame. No sink tokens are known.
    """

    title: str
    inputs = (
        "pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts",
        "mm_token_type_ids",
    )  # fmt: skip
    video_inputs = ("pixel_values_videos",)

    def __init__(self, model: Any, pruner: "Pruner") -> None:
        self.core = model.model
        self.tower = self.core.visual
        self.merge: int = self.tower.spatial_merge_size
        self.width: int = self.core.config.text_config.hidden_size
        self.saliency = pruner.saliency or "global_query"
        if self.saliency not in SALIENCIES:
            raise ValueError(f"saliency={pruner.saliency!r}: {self.title} has {', '.join(SALIENCIES)}")
        self.needs = pruner.needs
        if unknown := self.needs - SIGNALS:
            raise ValueError(f"{pruner.name} needs {', '.join(sorted(unknown))}; {self.title} has {sorted(SIGNALS)}")
        # All videos of a prompt in one call, as the model itself does, where the result must equal its own to the bit.
        self.patches_per_call = PATCHES_PER_CALL if pruner.retention_ratio < 1 else None

    # -- videos --------------------------------------------------------------------------------------------------

    @classmethod
    def sizes(cls, config: Any, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
        grids, group = inputs.get("video_grid_thw"), config.vision_config.spatial_merge_size**2
        return [] if grids is None else [(t, h * w // group) for t, h, w in grids.tolist()]

    def videos(self, inputs: Mapping[str, Any]) -> Iterator[Video]:
        pixels: Tensor = inputs["pixel_values_videos"]
        grids = self._grids(pixels, inputs.get("video_grid_thw"))
        intervals = inputs.get("second_per_grid_ts")
        if intervals is not None and len(intervals) != len(grids):
            raise ValueError(f"second_per_grid_ts has {len(intervals)} entries for {len(grids)} videos")
        lengths = [frames * height * width for frames, height, width in self._token_grids(grids)]
        places = placeholders(self.core, inputs, self.core.config.video_token_id).nonzero()
        if len(places) != sum(lengths):
            raise ValueError(
                f"the prompt holds {len(places)} video placeholders, and {len(grids)} videos need {sum(lengths)} "
                f"({' + '.join('x'.join(map(str, grid)) for grid in self._token_grids(grids))})"
            )
        columns = torch.split(places, lengths)
        if any(bool((own[:, 0] != own[0, 0]).any()) for own in columns):
            raise ValueError("a video's placeholders are spread over several prompts of the batch")

        for index, encoded in enumerate(self._encode(pixels, grids)):
            signals: dict[str, Any] = dict(encoded)
            _, height, width = self._token_grids(grids[index : index + 1])[0]
            features, extra = torch.split(signals.pop("tokens"), [self.width, self.extra_width], dim=-1)
            interval = 1.0 if intervals is None else float(intervals[index])
            row, own = int(columns[index][0, 0]), columns[index][:, 1]
            yield Video(row, own, features, (height, width), extra=extra, interval=interval, **signals)

    def timestamps(self, video: Video, given: Sequence[float] | Tensor | None) -> Tensor:
        """Seconds of each frame (F,), from one a frame or one a sampled frame: a frame is at the mean of its samples.

        The last sampled frame counts for those that are missing to a multiple of temporal_patch_size, as the
        processors repeat it. Without times, frames are video.interval seconds apart.
        """
        samples = self.core.config.vision_config.temporal_patch_size
        frames = video.features.shape[0]
        if given is not None and len(given) != frames:
            missing = frames * samples - len(given)
            if not 0 <= missing < samples:
                raise ValueError(
                    f"{len(given)} timestamps for a video of {frames} frames of {samples} sampled ones each; one a "
                    "frame or one a sampled frame is needed"
                )
            times = torch.as_tensor(given, dtype=torch.float64).flatten()
            given = torch.cat((times, times[-1:].expand(missing))).view(frames, samples).mean(1)
        return super().timestamps(video, given)

    def lay_out(self, video: Video, pruned: "Pruned") -> tuple[Tensor, Tensor]:
        """Kept tokens in the places of their own placeholders; `extra` of a merged token is that of its place."""
        embeddings = pruned.features
        if video.extra is not None:
            extra = video.extra.flatten(0, 1)[pruned.indices.to(video.extra.device)]
            embeddings = torch.cat((embeddings, extra.to(embeddings)), dim=-1)
        return embeddings, video.columns[pruned.indices.to(video.columns.device)]

    def _grids(self, pixels: Tensor, grids: Tensor | None) -> Tensor:
        """The videos' patch grids (V, 3), checked against the packed patches."""
        if grids is None:
            raise ValueError("pixel_values_videos needs video_grid_thw, the patches t, h, w of each video")
        grids = torch.as_tensor(grids)
        if grids.dim() != 2 or grids.shape[1] != 3 or len(grids) == 0 or bool((grids < 1).any()):
            raise ValueError(f"video_grid_thw must be t, h, w of each video, shape (videos, 3), got {grids.tolist()}")
        if bool((grids[:, 1:] % self.merge).any()):
            raise ValueError(f"video_grid_thw {grids.tolist()}: h and w must be multiples of {self.merge}")
        if pixels.dim() != 2 or len(pixels) != int(grids.prod(1).sum()):
            raise ValueError(
                f"pixel_values_videos has shape {tuple(pixels.shape)}; video_grid_thw {grids.tolist()} needs "
                f"{int(grids.prod(1).sum())} rows, one a patch"
            )
        return grids

    def _token_grids(self, grids: Tensor) -> list[tuple[int, int, int]]:
        """Frames, rows and columns of tokens of each video."""
        return [(t, h // self.merge, w // self.merge) for t, h, w in grids.tolist()]

    def _encode(self, pixels: Tensor, grids: Tensor) -> Iterator[dict[str, Tensor]]:
        """`tokens` (F, L, D + X) of each video and the signals that are asked for, by their names in Video.

        Frames do not see each other in the tower.
        """
        if self.patches_per_call is None:
            yield from self._encode_chunk(pixels, grids)
            return
        for packed, grid in zip(torch.split(pixels, grids.prod(1).tolist()), grids, strict=True):
            frames, height, width = grid.tolist()
            step = max(1, self.patches_per_call // (height * width))
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
        wanted: dict[str, Callable[..., Tensor]] = {}
        if "saliency" in self.needs:
            wanted["saliency"] = mean_query_saliency if self.saliency == "global_query" else received_saliency
        if "keys" in self.needs:
            wanted["keys"] = mean_keys
        attention = self.tower.blocks[-1].attn
        recording: AbstractContextManager[dict[str, Tensor]] = (
            recorded_queries(attention) if wanted else contextlib.nullcontext({})
        )
        # Where the result must equal the model's own to the bit, its own loop over frames and windows.
        together = contextlib.nullcontext() if self.patches_per_call is None else segments_together(self.tower)
        with recording as states, together:
            output = self.core.get_video_features(pixels, grids, return_dict=True)
        shapes = self._token_grids(grids)
        tokens = torch.split(self._tokens(output), [t * h * w for t, h, w in shapes])
        encoded = [{"tokens": own.view(t, h * w, -1)} for own, (t, h, w) in zip(tokens, shapes, strict=True)]
        if not wanted:
            return encoded
        counts = grids.prod(1).tolist()
        packed = (torch.split(states[name], counts) for name in ("qkv", "cos", "sin"))
        for own, (frames, height, width), qkv, cos, sin in zip(encoded, shapes, *packed, strict=True):
            settings = attention.num_heads, attention.scaling, frames, self.merge**2
            order = self._order(height, width)
            raster = slice(None) if order is None else order.argsort().to(qkv.device)
            with full_precision(qkv.device):
                own |= {name: tell(qkv, cos, sin, *settings)[:, raster] for name, tell in wanted.items()}
        return encoded

    def _order(self, height: int, width: int) -> Tensor | None:
        """Raster indices (L,) of a frame's tokens in the order in which the tower works; None: in raster order."""
        return None

    def _tokens(self, output: Any) -> Tensor:
        """What the language model receives of each token: (N, D + X), from the output of get_*_features()."""
        return torch.cat(output.pooler_output)

    # -- the prompt ----------------------------------------------------------------------------------------------

    def embed(self, ids: Tensor | None, embeds: Tensor | None, real: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        prompt = {"input_ids": ids, "inputs_embeds": embeds}
        out: Tensor = self.core.get_input_embeddings()(ids) if embeds is None else embeds
        out = F.pad(out, (0, self.extra_width)) if self.extra_width else out
        pixels = inputs.get("pixel_values")
        if pixels is None:
            return out
        output = self.core.get_image_features(pixels, inputs.get("image_grid_thw"), return_dict=True)
        features = self._tokens(output).to(out)
        mask = placeholders(self.core, prompt, self.core.config.image_token_id) & real
        if (places := int(mask.sum())) != len(features):
            raise ValueError(f"the prompt holds {places} image placeholders for {len(features)} image features")
        return out.masked_scatter(mask.unsqueeze(-1).to(out.device), features)

    def positions(self, inputs: Mapping[str, Any], source: Tensor, attended: Tensor) -> Tensor:
        """Temporal, row and column positions (3, B, W), as the model gives them to the unpruned prompt.

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
        return take(positions.permute(1, 2, 0), source).permute(2, 0, 1)

    def _whole_positions(self, inputs: Mapping[str, Any]) -> Tensor:
        """(3, B, N) of the unpruned prompt; as in the model itself, without ids or their types text's: one a token."""
        ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
        positions: Tensor
        if ids is not None and inputs.get("mm_token_type_ids") is not None:
            names = ("mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts", "attention_mask")
            # On the host: from a GPU the model's way asks for some numbers of every image, video or pair of frames.
            told = {name: x.cpu() if isinstance(x := inputs.get(name), Tensor) else x for name in names}
            positions, _ = self.core.get_rope_index(ids.cpu(), **told)
            return positions.to(ids.device, non_blocking=True)
        given: Tensor = inputs["inputs_embeds"][..., 0] if ids is None else ids
        shown = torch.ones_like(given, dtype=torch.long) if mask is None else mask.long()
        return (shown.cumsum(1) - 1).masked_fill(shown == 0, 0).expand(3, *shown.shape)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        before = self.core.rope_deltas
        try:
            yield
        finally:
            self.core.rope_deltas = before


@contextlib.contextmanager
def recorded_queries(attention: Any) -> Iterator[dict[str, Tensor]]:
    """While open, a call of a vision attention leaves `qkv` (P, 3*E) and its rotation, `cos` and `sin` (P, E/heads)."""
    states: dict[str, Tensor] = {}

    def keep_rotation(_: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        states["cos"], states["sin"] = kwargs["position_embeddings"]

    def keep_queries(_: Any, args: Any, output: Tensor) -> None:
        states["qkv"] = output

    hooks = [
        attention.register_forward_pre_hook(keep_rotation, with_kwargs=True),
        attention.qkv.register_forward_hook(keep_queries),
    ]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def mean_query_saliency(
    qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, scaling: float, frames: int, group: int
) -> Tensor:
    """Attention (F, L) of each frame's mean query to its tokens' mean keys, in fp32 (Tango, arXiv 2604.09547).

    qkv (F*L*group, 3*E) before rotation, patches of a token side by side; cos, sin (F*L*group, E/heads). Queries are
    averaged over a frame, keys over each token's patches, both rotated; weights are a softmax over the frame's tokens,
    averaged over heads.
    """

    rows = []
    for query, key in rotated(qkv, cos, sin, heads, frames):
        keys = key.view(len(key), -1, group, *key.shape[2:]).mean(2)
        scores = torch.einsum("fhd,flhd->fhl", query.mean(1), keys) * scaling
        rows.append(scores.softmax(-1).mean(1))
    return torch.cat(rows)


def received_saliency(
    qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, scaling: float, frames: int, group: int
) -> Tensor:
    """Attention (F, L) that a token's patches receive on average from all patches of their frame, mean over heads.

    FlashVID, arXiv 2602.08024. Inputs as in mean_query_saliency().
    """
    received = [
        received_attention(query.transpose(0, 1), key.transpose(0, 1), scaling)
        for queries, keys in rotated(qkv, cos, sin, heads, frames)
        for query, key in zip(queries, keys, strict=True)
    ]
    return torch.stack(received).view(frames, -1, group).mean(2)


def mean_keys(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, scaling: float, frames: int, group: int) -> Tensor:
    """Rotated keys (F, L, E/heads), mean over heads and over each token's patches; inputs as above."""
    keys = [key.mean(2) for _, key in rotated(qkv, cos, sin, heads, frames)]
    return torch.cat(keys).view(frames, -1, group, keys[0].shape[-1]).mean(2)


def rotated(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, frames: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Queries and keys (n, P, heads, d), rotated, in fp32, of some frames at a time, so that no copy of all is made."""
    step = max(1, ROTATED_BYTES * frames // (4 * qkv.numel()))
    parts = (torch.split(tensor.view(frames, -1, *tensor.shape[1:]), step) for tensor in (qkv, cos, sin))
    for x, c, s in zip(*parts, strict=True):
        query, key = x.unflatten(2, (3, heads, -1))[:, :, :2].float().unbind(2)
        c, s = c.float()[:, :, None], s.float()[:, :, None]
        query, key = (y * c + torch.cat((-y.chunk(2, -1)[1], y.chunk(2, -1)[0]), -1) * s for y in (query, key))
        yield query, key
