"""What comparing with the unpruned model comes to: agreement and divergence, the smallest ratio, its settings file."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import yaml

from tango.calibrate.ask import Asked
from tango.pruners import REGISTRY, Pruner
from tango.results.statistics import Interval, by_group, wilson


@dataclass(frozen=True)
class Way:
    """A method at a ratio against the unpruned model.

    kept: mean share of the video's tokens, in percent. agreement: percent of questions with the same answer; kl: mean
    divergence of the first token's distribution in nats; both with 95 % intervals. questions: that were answered.
    failures: of those that were not, one reason a question.
    """

    pruner: Pruner
    kept: float
    agreement: Interval
    kl: Interval
    questions: int
    failures: tuple[str, ...] = ()

    def within(self, tolerance: float) -> bool:
        """Whether at most this share of the answers, in [0, 1), is another than without pruning."""
        return 100 - self.agreement.value <= 100 * tolerance + 1e-9

    def surely(self, tolerance: float) -> bool:
        """Whether so does the whole interval."""
        return 100 - self.agreement.low <= 100 * tolerance + 1e-9


def summaries(pruners: Sequence[Pruner], found: Sequence[Sequence[Asked]]) -> list[Way]:
    """A Way for each pruner and what it answered; one without any answer has no numbers (NaN)."""
    ways = []
    for pruner, asked in zip(pruners, found, strict=True):
        answered = [one for one in asked if one.failure is None]
        failures = tuple(one.failure for one in asked if one.failure is not None)
        if not answered:
            nothing = Interval(np.nan, np.nan, np.nan)
            ways.append(Way(pruner, np.nan, nothing, nothing, 0, failures))
            continue
        videos, same = [one.video for one in answered], [float(one.same) for one in answered]
        # Questions about one video depend on each other, and answers all alike have no spread: the wider end counts.
        ends = wilson(float(np.mean(same)), len(same)), by_group([100 * value for value in same], videos)
        agreement = Interval(ends[0].value, min(end.low for end in ends), max(end.high for end in ends))
        kl = by_group([one.kl for one in answered], videos)
        kept = 100 * float(np.mean([one.kept for one in answered]))
        ways.append(Way(pruner, kept, agreement, kl, len(answered), failures))
    return ways


def smallest(ways: Sequence[Way], tolerance: float) -> Way | None:
    """Of one method's ways: that of the smallest ratio from which on all are within the tolerance; None if none is."""
    chosen = None
    for way in sorted(ways, key=lambda way: -way.pruner.retention_ratio):
        if not way.within(tolerance):
            break
        chosen = way
    return chosen


def best(ways: Sequence[Way], tolerance: float) -> Way | None:
    """Of several methods' smallest() ones that which keeps the fewest tokens; of equal ones that which agrees best."""
    methods = dict.fromkeys(way.pruner.name for way in ways)
    chosen = [smallest([way for way in ways if way.pruner.name == name], tolerance) for name in methods]
    found = [way for way in chosen if way is not None]
    return min(found, key=lambda way: (round(way.kept, 1), -way.agreement.value, way.kl.value)) if found else None


def settings_file(way: Way, tolerance: float, command: str) -> str:
    """A settings file (TANGO_CONFIG) for both frameworks with this method at this ratio; says how it came to be."""
    pruner = way.pruner
    usual = REGISTRY[pruner.name]().settings()
    changed = {name: value for name, value in pruner.settings().items() if value != usual[name]}
    changed["retention_ratio"] = pruner.retention_ratio
    lines = [
        f"WRAPPER={pruner.name} TANGO_CONFIG=<this file>, in lmms-eval and in VLMEvalKit.",
        f"Made by: {command}",
        f"{way.agreement.text()} % of {way.questions} answers are the unpruned model's, {way.kept:.1f} % of the tokens",
        f"are kept. At most {100 * tolerance:g} % may be others"
        + (", and the whole interval says so." if way.surely(tolerance) else "; the interval reaches beyond that."),
    ]
    body: str = yaml.safe_dump({pruner.name: changed}, sort_keys=True)
    return "".join(f"# {' '.join(line.split())}\n" for line in lines) + body
