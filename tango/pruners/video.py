"""What goes into a pruning method and what comes out of it: one video's tokens, and those that are kept.

`VideoTokens` is the one description of a video after the vision encoder. A model family makes it, prune() makes it of
its arguments, and a method reads it; everything is checked here, once, so that nobody has to check it again.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LARGEST = 1e16  # in size, of any value: squares of larger ones, summed, leave fp32
MISSING = {
    "saliency": "one number a token, shape (frames, tokens)",
    "grid": "the rows and columns of a frame's tokens, (H, W)",
    "timestamps": "the time of each frame in seconds",
    "keys": "the key of each token, shape (frames, tokens, width)",
}


@dataclass(frozen=True)
class VideoTokens:
    """The tokens of one video of F frames of L tokens, and what the encoder can say about them.

    Args:
        features: (F, L, D) tokens as the language model would receive them, of any floating dtype.
        grid: (H, W), rows and columns of a frame's tokens, H * W = L.
        timestamps: (F,) seconds on any clock, of which differences count alone.
        saliency: (F, L) the vision encoder's attention to each token.
        segment_features: (F, E) one vector a frame, for segmentations that compare frames.
        frame_vectors: (F, E) the same for FastVID.
        keys: (F, L, K) each token's key in the last vision layer in use, mean over heads.
        key: the video's id, or its ordinal in its prompt.

    All but features and key may be None. Saliency becomes fp32 and timestamps double precision, which tells frames
    apart on a clock since 1970; everything but the features is detached and moved to their device.

    Raises:
        ValueError: something is of the wrong type or shape, not finite, or beyond 1e16; the message names it.
    """

    features: Tensor
    grid: tuple[int, int] | None = None
    timestamps: Tensor | None = None
    saliency: Tensor | None = None
    segment_features: Tensor | None = None
    frame_vectors: Tensor | None = None
    keys: Tensor | None = None
    key: str = "0"

    def __post_init__(self) -> None:
        check_tensor("features", self.features, floating=True)
        if self.features.dim() != 3 or 0 in self.features.shape:
            shape = tuple(self.features.shape)
            raise ValueError(f"features must have shape (frames, tokens, width), none 0, got {shape}")
        frames, tokens, _ = self.features.shape
        if self.grid is not None:
            check_grid(self.grid, tokens)
        self._take("timestamps", as_times(self.timestamps), (frames,), torch.float64)
        self._take("saliency", self.saliency, (frames, tokens), torch.float32)
        self._take("segment_features", self.segment_features, (frames, None))
        self._take("frame_vectors", self.frame_vectors, (frames, None))
        self._take("keys", self.keys, (frames, tokens, None))
        if not isinstance(self.key, str):
            raise ValueError(f"key must be text, got {self.key!r}")
        check_finite({f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)})

    def _take(
        self, name: str, values: Tensor | None, shape: tuple[int | None, ...], dtype: torch.dtype | None = None
    ) -> None:
        """Check an optional part and keep it on the features' device; a None in `shape` is any width of at least 1."""
        if values is None:
            return
        check_tensor(name, values)
        fits = len(values.shape) == len(shape)
        if not fits or any(have != want and (want or not have) for have, want in zip(values.shape, shape, strict=True)):
            expected = ", ".join("width" if size is None else str(size) for size in shape)
            expected += "," if len(shape) == 1 else ""
            raise ValueError(f"{name} must have shape ({expected}), got {tuple(values.shape)}")
        values = values.detach().to(self.features.device, dtype, non_blocking=True)
        object.__setattr__(self, name, values)  # the fields are frozen for everyone else

    def required(self, name: str) -> Tensor:
        """A part that a method cannot do without.

        Raises:
            ValueError: it is None.
        """
        values: Tensor | None = getattr(self, name)
        if values is None:
            raise ValueError(
                f"{name} {'are' if name.endswith('s') else 'is'} missing: this method needs {MISSING[name]}"
            )
        return values


@dataclass(frozen=True)
class Pruned:
    """The tokens a method keeps of one video of F frames of L tokens.

    indices: (K,) int64, flat indices frame * L + row * W + column; unique and ascending unless a method says otherwise.
    features: (K, D), dtype and device of the input; row i stands at indices[i].
    segment_sizes: (S,) int64 on the CPU, frames in each segment; they sum to F.
    """

    indices: Tensor
    features: Tensor
    segment_sizes: Tensor


def as_times(timestamps: Tensor | Sequence[float] | None) -> Tensor | None:
    """Timestamps as a tensor; ValueError for what is no list of numbers."""
    try:
        if timestamps is None or isinstance(timestamps, Tensor):
            return timestamps
        return torch.as_tensor(timestamps, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"timestamps must be numbers, one a frame: {error}") from error


def check_grid(grid: tuple[int, int], tokens: int) -> None:
    """Raise ValueError unless a grid is two positive integers whose product is the tokens of a frame."""
    try:
        height, width = (operator.index(length) for length in grid)
    except (TypeError, ValueError) as error:
        raise ValueError(f"grid must be two integers, rows and columns of tokens, got {grid!r}") from error
    if height < 1 or width < 1 or height * width != tokens:
        raise ValueError(f"grid {height} x {width} does not hold the {tokens} tokens of a frame")


def check_tensor(name: str, values: object, floating: bool = False) -> None:
    """Raise ValueError unless this is a dense tensor of real numbers, or of floating-point ones."""
    if not isinstance(values, Tensor):
        raise ValueError(f"{name} must be a {'floating-point ' if floating else ''}tensor, got {type(values).__name__}")
    whole = not (floating or values.is_floating_point() or values.is_complex())
    if not (whole or values.dtype in FLOATS):
        names = ", ".join(str(dtype)[6:] for dtype in FLOATS)
        raise ValueError(f"{name} must be a floating-point tensor of {names}, got {values.dtype}")
    if values.layout != torch.strided or values.is_meta:
        kind = "without values (meta)" if values.is_meta else str(values.layout)
        raise ValueError(f"{name} must be a dense tensor, got one {kind}")


def check_finite(tensors: dict[str, Tensor]) -> None:
    """Raise ValueError with the number and first place of NaN or infinite values, and for values beyond LARGEST."""
    # Extremes carry any NaN or infinity, and take no memory. One stack, so that a GPU is waited for once.
    extremes = torch.stack([torch.stack(values.detach().aminmax()).double() for values in tensors.values()])
    for name, (least, most) in zip(tensors, extremes.tolist(), strict=True):
        if abs(least) <= LARGEST and abs(most) <= LARGEST:
            continue
        bad = (~torch.isfinite(tensors[name])).nonzero()
        if not len(bad):
            raise ValueError(f"{name} must lie within {LARGEST:g} of 0, got values from {least:g} to {most:g}")
        place = ", ".join(map(str, bad[0].tolist()))
        raise ValueError(f"{name} must be finite: {len(bad)} values are NaN or infinite, the first at [{place}]")
