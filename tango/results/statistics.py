"""The paired bootstrap: differences between methods are small, so both are compared on the same draws of questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 10_000

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def text(self, digits: int = 1, signed: bool = False) -> str:
        """Value and interval, as `91.2 [88.9, 93.1]`; `-` for a value that is not finite."""
        if not np.isfinite(self.value):
            return "-"
        sign = "+" if signed else ""
        return f"{self.value:{sign}.{digits}f} [{self.low:{sign}.{digits}f}, {self.high:{sign}.{digits}f}]"


def bootstrap(pairs: Sequence[tuple[Scores, Scores]], draws: int = DRAWS, seed: int = 0) -> tuple[Interval, Interval]:
    """Paired bootstrap of two methods on some benchmarks, each a pair of their scores (n,) on the same questions.

    Questions are drawn with replacement within each benchmark; a method's accuracy is the mean over benchmarks of its
    mean score, as in the papers' tables.

    Returns:
        In percent: the difference of their accuracies in points (one - other), and the share that one has of other's.

    Raises:
        ValueError: no benchmark, no scores, or of different number.
    """
    if not pairs:
        raise ValueError("no scores; a paired bootstrap needs those of at least one benchmark")
    rng = np.random.default_rng(seed)
    # Row 0 is all questions once, the value itself; the others are draws.
    accuracy = np.zeros((2, draws + 1))
    for pair in pairs:
        n = len(pair[0])
        if n != len(pair[1]) or n == 0:
            raise ValueError(f"{n} and {len(pair[1])} scores; a paired bootstrap needs the same number, at least one")
        # Questions with the same two scores are alike: a draw is how often each pair of scores comes up, few numbers.
        values, counts = np.unique(np.stack(pair), axis=1, return_counts=True)
        drawn = np.vstack([counts, rng.multinomial(n, counts / n, size=draws)])
        accuracy += np.stack([drawn @ scores for scores in values]) / n / len(pairs)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = accuracy[0] / accuracy[1]
    return _interval(accuracy[0] - accuracy[1]), _interval(share)


def _interval(values: Scores) -> Interval:
    finite = values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (np.nan, np.nan)
    return Interval(100 * float(values[0]), 100 * float(low), 100 * float(high))
