"""What every pruning method shares: its settings, its two public calls, and what it returns.

A method is one dataclass in one file beside this one. Its fields are its settings, `prune()` works on plain tensors,
and `with method(model):` attaches it to a model. Nothing here, or in any method, knows a model class.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from tango.pruners.budget import fit
from tango.pruners.trace import Fates, is_asked, record
from tango.ragged import on_device

if TYPE_CHECKING:
    from torch import nn

    from tango.pruners.in_llm import LayerPruning

SALIENCY_SIGNALS = ("pooling_head", "global_query", "received_attention")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LARGEST = 1e16  # in size, of anything prune() is given: squares of larger values, summed, leave fp32


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


@dataclass(frozen=True)
class Given:
    """What prune() was given of one video, under the names it has there. Only features and grid have been checked.

    fates: to be told what becomes of each token; None where nobody asks (see tango.pruners.trace).
    """

    features: Tensor
    saliency: Tensor | None
    grid: tuple[int, int] | None
    timestamps: Tensor | Sequence[float] | None
    segment_features: Tensor | None
    frame_vectors: Tensor | None
    keys: Tensor | None
    key: str
    fates: Fates | None = None


@dataclass
class Pruner(ABC):
    """A method that keeps a share of a video's tokens.

    Args:
        retention_ratio: share of the tokens to keep, in (0, 1]; 1 keeps every token as it is.
        saliency: which saliency the model side computes: "pooling_head", "global_query", "received_attention" (what
            each patch receives from all of its frame in the last vision layer in use), or None for the choice of the
            model family.
        saliency_weights: where to read the pooling head: a path or a hub id; None looks beside the checkpoint, then
            takes the family's default.
        exact_budget: keep exactly budget() tokens of every video, a number known before it is encoded; False leaves
            each method the rounding, and the dependence on content, that it was published with.
        keep_positions: the language model sees kept tokens, and all text, at the positions they had in the unpruned
            prompt, also in a model family that numbers a pruned prompt without gaps. prune() gives the same either way.

    Raises:
        ValueError: a field is out of its range; the message names the field, the value and the range.
    """

    name: ClassVar[str]

    retention_ratio: float = 0.1
    saliency: str | None = None
    saliency_weights: str | None = None
    exact_budget: bool = False
    keep_positions: bool = False

    def __post_init__(self) -> None:
        self._number("retention_ratio", above=0, most=1)
        self._choice("saliency", (*SALIENCY_SIGNALS, None))
        if self.saliency_weights is not None and not isinstance(self.saliency_weights, str):
            self._reject("saliency_weights", "a path or a hub id as text, or None")
        self._flag("exact_budget")
        self._flag("keep_positions")

    @property
    def signals(self) -> frozenset[str]:
        """Keyword arguments of prune() that the model side must supply beyond features, grid and timestamps."""
        return frozenset()

    def in_llm(self, layers: int) -> LayerPruning | None:
        """What happens inside a language model of so many layers; None where nothing is pruned there.

        Raises:
            ValueError: the settings do not fit that many layers.
        """
        return None

    def before_llm(self, layers: int) -> Pruner:
        """The pruner to apply before such a language model, where pruning inside it takes part of the budget."""
        return self

    def prune(
        self,
        features: Tensor,
        saliency: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        timestamps: Tensor | Sequence[float] | None = None,
        segment_features: Tensor | None = None,
        *,
        frame_vectors: Tensor | None = None,
        keys: Tensor | None = None,
        key: str = "0",
    ) -> Pruned:
        """Prune one video of F frames of L tokens. A method uses what `signals` names, and Tango the grid and times.

        Args:
            features: (F, L, D) tokens as the language model would receive them, any floating dtype; D even for Tango.
            saliency: (F, L) the vision encoder's attention to each token.
            grid: (H, W), H * W = L in row order.
            timestamps: (F,) seconds.
            segment_features: (F, E) one vector a frame, for segmentations that compare frames; None: its mean token.
            frame_vectors: (F, E) the same for FastVID; None: segment_features.
            keys: (F, L, K) each token's key in the last vision layer in use, mean over heads.
            key: the video's id, or its ordinal in its prompt, as text.

        Returns:
            Pruned. Indices ascend and are unique unless the method says otherwise. A retention ratio of 1 returns
            every token as it came, in one segment.

        Raises:
            ValueError: an input is missing, not finite or beyond 1e16, or of the wrong type or shape.
        """
        check_features(features, grid)
        if not isinstance(key, str):
            raise ValueError(f"key must be text, got {key!r}")
        frames, tokens, dim = features.shape
        fates = Fates.of(frames * tokens, features.device) if is_asked() else None
        given = Given(features, saliency, grid, timestamps, segment_features, frame_vectors, keys, key, fates)
        if self.retention_ratio == 1:
            everything = torch.arange(frames * tokens, device=features.device)
            pruned = Pruned(everything, features.reshape(-1, dim), torch.tensor([frames]))
        else:
            pruned = self._prune(given)
        record(self, given, pruned)
        return pruned

    @abstractmethod
    def _prune(self, video: Given) -> Pruned:
        """The method itself, at a retention ratio below 1."""

    def budget(self, frames: int, tokens: int) -> int:
        """Tokens that prune() returns of `frames` frames of `tokens` tokens with exact_budget.

        round(r * (frames * tokens)), halves to the even number, and at least 1.
        """
        return max(1, round(self.retention_ratio * (frames * tokens)))

    def exactly(self, pruned: Pruned, features: Tensor, ranking: Tensor) -> Pruned:
        """What was pruned; with exact_budget, less its tokens that rank lowest or with the highest of the others.

        For methods whose steps do not give budget() tokens. Tokens that are added are not merged.

        Args:
            pruned: what the method keeps of features (F, L, D).
            ranking: (F, L) what the method tells tokens apart by, the higher the sooner kept.
        """
        frames, tokens, _ = features.shape
        return fit(pruned, features, ranking, self.budget(frames, tokens)) if self.exact_budget else pruned

    def __call__(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Attach to a model for the length of a `with` block; gives the session that records what was pruned."""
        from tango.models import attach  # here, so that prune() works without transformers

        return attach(model, self)

    def settings(self) -> dict[str, Any]:
        """All fields as plain JSON values, for the files that hold results."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    def _reject(self, field: str, expected: str) -> None:
        raise ValueError(f"{type(self).__name__}.{field} = {getattr(self, field)!r}: expected {expected}")

    def _number(
        self, field: str, *, least: float = -math.inf, above: float = -math.inf, most: float = math.inf
    ) -> None:
        """Check that a field is a finite number with least <= value <= most and value > above."""
        value = getattr(self, field)
        low = f"({above}" if above > -math.inf else f"[{least}"
        expected = f"a finite number in {low}, {most}{']' if most < math.inf else ')'}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._reject(field, expected)
        if not (least <= value <= most and above < value < math.inf):
            self._reject(field, expected)

    def _integer(self, field: str, *, least: int) -> None:
        value = getattr(self, field)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            self._reject(field, f"an integer of at least {least}")

    def _flag(self, field: str) -> None:
        if not isinstance(getattr(self, field), bool):
            self._reject(field, "True or False")

    def _choice(self, field: str, choices: Sequence[str | None]) -> None:
        if getattr(self, field) not in choices:
            self._reject(field, "one of " + ", ".join(repr(choice) for choice in choices))

    def _positions(self, field: str) -> None:
        """Check a field of token positions: None or integers of at least 0; lists (from YAML) become tuples."""
        value = getattr(self, field)
        if isinstance(value, list):
            value = tuple(value)
            setattr(self, field, value)
        if value is None:
            return
        if not isinstance(value, tuple) or any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in value):
            self._reject(field, "None or token positions of a frame, integers of at least 0")


def check_features(features: Tensor, grid: tuple[int, int] | None) -> None:
    """Raise ValueError unless features are finite floats of shape (F, L, D), none of them 0, and L = H * W if given."""
    check_tensor("features", features, FLOATS)
    if features.dim() != 3 or 0 in features.shape:
        raise ValueError(f"features must have shape (frames, tokens, width), none 0, got {tuple(features.shape)}")
    if grid is not None:
        try:
            height, width = (operator.index(side) for side in grid)
        except (TypeError, ValueError) as error:
            raise ValueError(f"grid must be two integers, rows and columns of tokens, got {grid!r}") from error
        if height < 1 or width < 1 or height * width != features.shape[1]:
            raise ValueError(f"grid {height} x {width} does not hold the {features.shape[1]} tokens of a frame")
    check_finite("features", features)


def check_saliency(saliency: Tensor | None, features: Tensor, finite: bool = True) -> Tensor:
    """Return the saliency in fp32 on the device of features; ValueError unless it is finite and of shape (F, L).

    finite: False leaves the look at its values, for which a GPU is waited for, to the caller.
    """
    if saliency is None:
        raise ValueError("saliency is missing: this method needs one number a token, shape (frames, tokens)")
    check_tensor("saliency", saliency)
    if tuple(saliency.shape) != tuple(features.shape[:2]):
        raise ValueError(f"saliency must have shape {tuple(features.shape[:2])}, got {tuple(saliency.shape)}")
    if finite:
        check_finite("saliency", saliency)
    return on_device(saliency.detach(), features.device).float()


def check_vectors(name: str, vectors: Tensor, features: Tensor) -> Tensor:
    """Return one vector a frame; ValueError unless they are finite and of shape (F, E)."""
    check_tensor(name, vectors)
    if vectors.dim() != 2 or vectors.shape[0] != features.shape[0] or vectors.shape[1] == 0:
        raise ValueError(f"{name} must have shape ({features.shape[0]}, width), got {tuple(vectors.shape)}")
    check_finite(name, vectors)
    return vectors.detach().to(features.device)


def check_timestamps(timestamps: Tensor | Sequence[float] | None, features: Tensor, finite: bool = True) -> Tensor:
    """Return the timestamps in fp32 on the device of features; ValueError unless they are F finite numbers.

    finite: see check_saliency().
    """
    if timestamps is None:
        raise ValueError("timestamps are missing: this method needs the time of each frame in seconds")
    try:
        times = torch.as_tensor(timestamps)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"timestamps must be numbers, one a frame: {error}") from error
    check_tensor("timestamps", times)
    times = on_device(times.detach(), features.device).float()
    if tuple(times.shape) != (features.shape[0],):
        raise ValueError(f"timestamps must have shape ({features.shape[0]},), one a frame, got {tuple(times.shape)}")
    if finite:
        check_finite("timestamps", times)
    return times


def check_tensor(name: str, values: object, kinds: Sequence[torch.dtype] = ()) -> None:
    """Raise ValueError unless this is a dense tensor of one of these types; by default of FLOATS, integers or bool."""
    if not isinstance(values, Tensor):
        raise ValueError(f"{name} must be a {'floating-point ' if kinds else ''}tensor, got {type(values).__name__}")
    whole = not (kinds or values.is_floating_point() or values.is_complex())
    if not (whole or values.dtype in FLOATS):
        raise ValueError(
            f"{name} must be a floating-point tensor of {', '.join(str(kind)[6:] for kind in FLOATS)}, "
            f"got {values.dtype}"
        )
    if values.layout != torch.strided or values.is_meta:
        kind = "without values (meta)" if values.is_meta else str(values.layout)
        raise ValueError(f"{name} must be a dense tensor, got one {kind}")


def check_finite(name: str, values: Tensor) -> None:
    """Raise ValueError with the number and first place of NaN or infinite values, and for values beyond LARGEST."""
    # The extremes carry any NaN or infinity, and take no memory of the size of the values.
    extremes = torch.stack(values.detach().aminmax())
    if bool((extremes.double().abs() <= LARGEST).all()):
        return
    bad = (~torch.isfinite(values)).nonzero()
    if not len(bad):
        least, most = extremes.tolist()
        raise ValueError(f"{name} must lie within {LARGEST:g} of 0, got values from {least:g} to {most:g}")
    place = ", ".join(str(int(i)) for i in bad[0])
    raise ValueError(f"{name} must be finite: {len(bad)} values are NaN or infinite, the first at [{place}]")


def zero_sinks(saliency: Tensor, sink_tokens: Sequence[int] | None) -> Tensor:
    """Set the saliency (F, L) of attention sinks to 0 in every frame, in a copy; positions are within a frame."""
    if not sink_tokens:
        return saliency
    if max(sink_tokens) >= saliency.shape[1]:
        raise ValueError(f"sink_tokens {tuple(sink_tokens)}: a frame has positions 0 to {saliency.shape[1] - 1} only")
    return saliency.index_fill(1, on_device(sink_tokens, saliency.device), 0.0)


def token_budget(count: int, ratio: float) -> int:
    """Tokens a trivial baseline keeps of `count`: min(count, max(1, ceil(count * ratio - 1e-9)))."""
    return min(count, max(1, math.ceil(count * ratio - 1e-9)))


def keep(features: Tensor, indices: Tensor) -> Pruned:
    """Keep tokens unmerged at their places: features (F, L, D), indices (K,) flat; the video is one segment."""
    indices = indices.to(features.device)
    frames, _, dim = features.shape
    return Pruned(indices, features.reshape(-1, dim)[indices], torch.tensor([frames]))


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No gradients, no autocast, no TF32 inside: distances decide which tokens stay, so they are true fp32."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
