"""What goes into a pruning method and what comes out of it: one video's tokens, and those that are kept.

`VideoTokens` is the one description of a video after the vision encoder. A model family makes it, prune() makes it of
its arguments, and a method reads it; everything is checked here, once, so that nobody has to check it again.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from tango.pruners import refusals

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LARGEST = 1e16  # in size, of any value: squares of larger ones, summed, leave fp32


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
        frame_groups: (F,) int64 the group of each frame, ascending, where the tower has merged frames; -1: merged away.
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
    frame_groups: Tensor | None = None
    key: str = "0"

    def __post_init__(self) -> None:
        check_tensor("features", self.features, floating=True)
        if self.features.dim() != 3 or 0 in self.features.shape:
            raise ValueError(f"features must have shape (frames, tokens, width), none 0, got {(*self.features.shape,)}")
        frames, tokens, _ = self.features.shape
        if self.grid is not None:
            check_grid(self.grid, tokens)
        self._take("timestamps", as_times(self.timestamps), (frames,), torch.float64)
        self._take("saliency", self.saliency, (frames, tokens), torch.float32)
        self._take("segment_features", self.segment_features, (frames, None))
        self._take("frame_vectors", self.frame_vectors, (frames, None))
        self._take("keys", self.keys, (frames, tokens, None))
        self._take("frame_groups", self.frame_groups, (frames,))
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
            raise refusals.other_shape(name, values, shape)
        # The fields are frozen for everyone else.
        object.__setattr__(self, name, values.detach().to(self.features.device, dtype, non_blocking=True))

    def required(self, name: str) -> Tensor:
        """A part that a method cannot do without; ValueError where it is None."""
        values: Tensor | None = getattr(self, name)
        if values is None:
            raise refusals.missing(name)
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
        raise refusals.no_tensor(name, values, floating)
    whole = not (floating or values.is_floating_point() or values.is_complex())
    if not (whole or values.dtype in FLOATS):
        raise refusals.other_dtype(name, values.dtype, FLOATS)
    if values.layout != torch.strided or values.is_meta:
        raise refusals.not_dense(name, values)


def check_finite(tensors: dict[str, Tensor]) -> None:
    """Raise ValueError with the number and first place of NaN or infinite values, and for values beyond LARGEST."""
    # Extremes carry any NaN or infinity, and take no memory. One stack, so that a GPU is waited for once.
    extremes = torch.stack([torch.stack(values.detach().aminmax()).double() for values in tensors.values()])
    for name, (least, most) in zip(tensors, extremes.tolist(), strict=True):
        if not (abs(least) <= LARGEST and abs(most) <= LARGEST):
            raise refusals.out_of_range(name, tensors[name], LARGEST)
