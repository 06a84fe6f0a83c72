"""What a method's settings may be: types that carry their range, checked whenever a method is made.

context_ratio: Share = 0.4                                            # a number in [0, 1]
segmentation: Annotated[str, OneOf("holitom", "fastvid")] = "holitom"
similarity_threshold: Cosine | None = None
"""

import functools
import math
import types
import typing
from dataclasses import dataclass, fields
from typing import Annotated, Any

LARGEST = 10**9  # of any setting: beyond what any means, and products with counts of tokens stay numbers


@dataclass(frozen=True)
class Number:
    """A number with least <= value <= most and value > above."""

    least: float = -math.inf
    above: float = -math.inf
    most: float = LARGEST

    def holds(self, value: Any) -> bool:
        """Whether a value is one."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.least <= value <= self.most and self.above < value

    def __str__(self) -> str:
        low = f"({self.above}" if self.above > -math.inf else f"[{self.least}"
        return f"a finite number in {low}, {self.most}]"


@dataclass(frozen=True)
class Integer:
    """An integer of at least so much, and of at most."""

    least: int
    most: int = LARGEST

    def holds(self, value: Any) -> bool:
        """Whether a value is one."""
        return isinstance(value, int) and not isinstance(value, bool) and self.least <= value <= self.most

    def __str__(self) -> str:
        return f"an integer of at least {self.least}, at most {self.most}"


class OneOf:
    """One of these texts."""

    def __init__(self, *choices: str) -> None:
        self.choices = choices

    def holds(self, value: Any) -> bool:
        """Whether a value is one."""
        return value in self.choices

    def __str__(self) -> str:
        return "one of " + ", ".join(map(repr, self.choices))


class Positions:
    """Positions of tokens in a frame."""

    def holds(self, value: Any) -> bool:
        """Whether a value is a tuple of them."""
        return isinstance(value, tuple) and all(Integer(0).holds(position) for position in value)

    def __str__(self) -> str:
        return "token positions of a frame, integers of at least 0"


Share = Annotated[float, Number(least=0, most=1)]
PositiveShare = Annotated[float, Number(above=0, most=1)]
Cosine = Annotated[float, Number(least=-1, most=1)]
Positive = Annotated[float, Number(above=0)]
Count = Annotated[int, Integer(1, 10_000)]  # of layers, frames, tokens of a frame, neighbours: some make room for each
TokenPositions = Annotated[tuple[int, ...], Positions()]
Saliency = Annotated[str, OneOf("pooling_head", "global_query", "received_attention")]
PLAIN = {bool: "True or False", str: "text"}


def check_settings(method: Any) -> None:
    """Raise ValueError, with the field, the value and the range, unless all fields of a dataclass are in theirs.

    Lists (from YAML) become tuples.
    """
    for field, hint in _hints(method.__class__).items():  # mypy holds that type(method) has no hash
        value = getattr(method, field)
        if isinstance(value, list):
            value = tuple(value)
            setattr(method, field, value)
        union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        options = typing.get_args(hint) if union else (hint,)
        optional, kind = type(None) in options, options[0]
        rule = typing.get_args(kind)[1] if typing.get_origin(kind) is Annotated else None
        fits = isinstance(value, kind) if rule is None else rule.holds(value)
        if not fits and not (optional and value is None):
            expected = PLAIN[kind] if rule is None else str(rule)
            reject(method, field, expected + (" or None" if optional else ""))


def reject(method: Any, field: str, expected: str) -> None:
    """Raise ValueError for a field that is not as expected; what does not fit in a line is shown by its class."""
    value = getattr(method, field)
    shown = text if len(text := repr(value)) < 200 and "\n" not in text else f"<{type(value).__name__}>"
    raise ValueError(f"{type(method).__name__}.{field} = {shown}: expected {expected}")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls)}
