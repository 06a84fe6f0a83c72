"""Intervals: Wilson's of an accuracy, and of two methods' difference by the paired bootstrap, on the same questions.

Both hold at the edges: six right of six are no proof of 100 %, nor two methods that answered alike of no difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

DRAWS = 10_000
Z = 1.959964  # of the normal distribution, 95 % lie within so many standard deviations
CORNERS = np.array([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]])  # wrong or right in one and in the other

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


def wilson(share: float, n: int) -> Interval:
    """A share of n questions, in percent, with Wilson's interval (Wilson 1927): 6 of 6 are 100.0 [61.0, 100.0]."""
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return Interval(100 * share, 100 * max(0.0, middle - half), 100 * min(1.0, middle + half))


def average(intervals: Sequence[Interval]) -> Interval:
    """The mean of independent values, with their distances from both ends added in squares."""
    value = float(np.mean([one.value for one in intervals]))
    low, high = (
        sqrt(sum((one.value - end) ** 2 for one, end in zip(intervals, ends, strict=True))) / len(intervals)
        for ends in ([one.low for one in intervals], [one.high for one in intervals])
    )
    return Interval(value, value - low, value + high)


def bootstrap(pairs: Sequence[tuple[Scores, Scores]], draws: int = DRAWS, seed: int = 0) -> tuple[Interval, Interval]:
    """Paired bootstrap of two methods on some benchmarks, each a pair of their scores (n,) on the same questions.

    Questions are weighted at random within each benchmark (Rubin 1981), together with half a question of each outcome:
    both right, one right, the other right, none. Without these nothing would vary where all questions turned out alike,
    and the interval would miss the true difference most of the time. A method's accuracy is the mean over benchmarks of
    its mean score, as in the papers' tables.

    Returns:
        In percent: the difference of their accuracies in points (one - other), and the share that one has of other's.

    Raises:
        ValueError: no benchmark, no scores, or of different number.
    """
    if not pairs:
        raise ValueError("no scores; a paired bootstrap needs those of at least one benchmark")
    rng = np.random.default_rng(seed)
    # Row 0 is the questions as they are, the value itself; the others are draws.
    accuracy = np.zeros((2, draws + 1))
    for pair in pairs:
        n = len(pair[0])
        if n != len(pair[1]) or n == 0:
            raise ValueError(f"{n} and {len(pair[1])} scores; a paired bootstrap needs the same number, at least one")
        # Questions with the same two scores are alike: a draw is the weight of each pair of scores, few numbers.
        values, counts = np.unique(np.hstack([np.stack(pair), CORNERS]), axis=1, return_counts=True)
        corner = np.isin(values, (0, 1)).all(axis=0)
        weights = rng.dirichlet(counts - 0.5 * corner, size=draws)
        accuracy += np.stack([np.vstack([(counts - corner) / n, weights]) @ scores for scores in values]) / len(pairs)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = accuracy[0] / accuracy[1]
    return _interval(accuracy[0] - accuracy[1]), _interval(share)


def by_group(values: Sequence[float], groups: Sequence[str]) -> Interval:
    """The mean of some values, those of one group (a video's questions, say) depending on each other.

    The interval is that of the Bayesian bootstrap over groups (Rubin 1981), or over values where all are of one group.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no values; a mean needs at least one")
    of = np.unique(groups, return_inverse=True)[1] if len(set(groups)) > 1 else np.arange(len(values))
    sums, counts = (np.bincount(of, weights) for weights in (values, np.ones(len(values))))
    weights = np.random.default_rng(0).dirichlet(np.ones(len(sums)), size=DRAWS)
    low, high = np.percentile(weights @ sums / (weights @ counts), [2.5, 97.5])
    value = float(np.mean(values))
    return Interval(value, min(value, float(low)), max(value, float(high)))


def _interval(values: Scores) -> Interval:
    value = float(values[0])
    if not np.isfinite(value):
        return Interval(value, np.nan, np.nan)
    low, high = np.percentile(values[1:], [2.5, 97.5])  # at an edge no draw is as far out as the value
    return Interval(100 * value, 100 * min(value, float(low)), 100 * max(value, float(high)))
