"""What VideoTokens cannot be, each with the sentence that says so; video.py raises what it gets."""

from collections.abc import Sequence

import torch
from torch import Tensor

MISSING = {
    "saliency": "one number a token, shape (frames, tokens)",
    "grid": "the rows and columns of a frame's tokens, (H, W)",
    "timestamps": "the time of each frame in seconds",
    "keys": "the key of each token, shape (frames, tokens, width)",
}


def missing(name: str) -> ValueError:
    """A part that a method needs is None."""
    return ValueError(f"{name} {'are' if name.endswith('s') else 'is'} missing: this method needs {MISSING[name]}")


def no_tensor(name: str, values: object, floating: bool) -> ValueError:
    """Something else than a tensor."""
    return ValueError(f"{name} must be a {'floating-point ' if floating else ''}tensor, got {type(values).__name__}")


def other_dtype(name: str, dtype: torch.dtype, dtypes: Sequence[torch.dtype]) -> ValueError:
    """Neither one of these floating dtypes nor, where they will do, whole numbers."""
    names = ", ".join(str(each).removeprefix("torch.") for each in dtypes)
    return ValueError(f"{name} must be a floating-point tensor of {names}, got {dtype}")


def not_dense(name: str, values: Tensor) -> ValueError:
    """A sparse tensor, or one without values."""
    kind = "without values (meta)" if values.is_meta else str(values.layout)
    return ValueError(f"{name} must be a dense tensor, got one {kind}")


def other_shape(name: str, values: Tensor, shape: Sequence[int | None]) -> ValueError:
    """A tensor of another shape than this one, in which None is any width of at least 1."""
    expected = ", ".join("width" if size is None else str(size) for size in shape)
    expected += "," if len(shape) == 1 else ""
    return ValueError(f"{name} must have shape ({expected}), got {tuple(values.shape)}")


def out_of_range(name: str, values: Tensor, largest: float) -> ValueError:
    """NaN or infinite values, with their number and the first place, else values beyond the largest."""
    bad = (~torch.isfinite(values)).nonzero()
    if not len(bad):
        least, most = (float(extreme) for extreme in values.detach().aminmax())
        return ValueError(f"{name} must lie within {largest:g} of 0, got values from {least:g} to {most:g}")
    place = ", ".join(map(str, bad[0].tolist()))
    return ValueError(f"{name} must be finite: {len(bad)} values are NaN or infinite, the first at [{place}]")
