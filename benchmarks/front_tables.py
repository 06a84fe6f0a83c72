"""Tables and the Pareto plot of what benchmarks/front.py answered: accuracy against tokens kept, setting by setting.

    python benchmarks/front_tables.py --output results/motionqa_all

Writes front.md, front.csv and, of eight frames, front.png. Accuracies have Wilson's intervals, differences those of the
paired bootstrap, 95 % both. A method is on the front at a ratio if no method that was asked for the same ratio is
better by more than chance; DyCoke, which keeps half of the tokens whatever it is asked for, is left out of that.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tango.pruners import REGISTRY
from tango.results.cells import LABELS
from tango.results.statistics import bootstrap, wilson

HALVES = ("development", "held", "both")
FULL = "uniform", 1.0  # the unpruned model
PUBLISHED, KEPT = "as published (without gaps; FastVID: kept)", "kept, by every method"
FASTV = "fastv", "pruned_layer 1"  # of a language model of four layers; as published it keeps half at the least
LEFT_OUT = ("dycoke",)  # of comparisons at a ratio: it keeps no share that is asked for


@dataclass(frozen=True)
class Result:
    """A setting's answers to a half's questions: right (n,), in the order of their ids."""

    method: str
    name: str
    settings: dict[str, Any]
    half: str
    frames: int
    kept: float
    right: np.ndarray

    @property
    def ratio(self) -> float:
        """What was asked for."""
        return float(self.settings["retention_ratio"])

    def numbered(self, positions: str) -> bool:
        """Whether kept tokens are numbered as the method was published, or keep the positions they had."""
        usual = REGISTRY[self.method]().keep_positions
        return bool(self.settings["keep_positions"] == (usual if positions == PUBLISHED else True))

    @property
    def usual(self) -> bool:
        """Whether this is a method as it is, its ratio and its positions aside; FastV before the first layer it can."""
        return not self.name or (self.method, self.name) == FASTV

    @property
    def label(self) -> str:
        """The method as tables have it, and what is changed."""
        if (self.method, self.ratio) == FULL:
            return "unpruned"
        label = LABELS.get(self.method, self.method)
        return f"{label}, {self.name}" if self.name else label


def read(folder: Path) -> list[Result]:
    """All results below a folder of one checkpoint; of those of both halves, also the two together."""
    found: dict[str, dict[str, Any]] = {}
    results = []
    for file in sorted(folder.glob("*/*.json")):
        one = json.loads(file.read_bytes())
        key = json.dumps([one["method"], one["settings"], one["frames"]], sort_keys=True)
        found.setdefault(key, {})[one["half"]] = one
    for halves in found.values():
        one = next(iter(halves.values()))
        if {"development", "held"} <= set(halves) and "both" not in halves:
            answers = halves["development"]["answers"] | halves["held"]["answers"]
            halves["both"] = one | {"answers": answers, "half": "both"}
            halves["both"]["kept"] = sum(halves[half]["kept"] for half in HALVES[:2]) / 2
        for half, made in halves.items():
            right = np.array([made["answers"][key][0] for key in sorted(made["answers"])], float)
            results.append(
                Result(one["method"], one["name"], one["settings"], half, one["frames"], made["kept"], right)
            )
    return results


def accuracy(result: Result) -> str:
    """Accuracy with its interval, and the tokens kept, in percent."""
    return f"{wilson(float(result.right.mean()), len(result.right)).text()} ({100 * result.kept:.1f})"


def difference(one: Result, other: Result) -> tuple[str, int]:
    """Points between two settings on the same questions with the interval, and its sign, 0 where it is not certain."""
    found, _ = bootstrap([(one.right, other.right)])
    return found.text(signed=True), int(found.low > 0) - int(found.high < 0)


def grid(results: Sequence[Result], order: Sequence[str]) -> str:
    """A table: a row a setting, a column a ratio."""
    ratios = sorted({one.ratio for one in results if one.ratio < 1})
    lines = ["| | " + " | ".join(f"{100 * ratio:g} %" for ratio in ratios) + " |", "|---|" + "---:|" * len(ratios)]
    for label in order:
        cells = {one.ratio: accuracy(one) for one in results if one.label == label}
        lines.append(f"| {label} | " + " | ".join(cells.get(ratio, "") for ratio in ratios) + " |")
    return "\n".join(lines)


def labels(results: Iterable[Result]) -> list[str]:
    """Labels, methods in the registry's order, a method before its changes."""
    names = list(REGISTRY)
    ordered = sorted(results, key=lambda one: (names.index(one.method), one.name))
    return list(dict.fromkeys(one.label for one in ordered if one.label != "unpruned"))


def fronts(results: Sequence[Result], label: str) -> str:
    """A setting against the best other method, and who is better and worse for certain, at each ratio."""
    lines = ["| ratio | accuracy | best other method | difference, points | better for certain | worse for certain |",
             "|---:|---:|---|---:|---|---|"]  # fmt: skip
    for own in sorted((one for one in results if one.label == label), key=lambda one: one.ratio):
        others = [
            one for one in results
            if one.ratio == own.ratio and one.usual and one.label != label and one.method not in LEFT_OUT
        ]  # fmt: skip
        best = max(others, key=lambda one: one.right.mean())
        signs = {one.label: difference(own, one)[1] for one in others}
        better, worse = (
            ", ".join(name for name, sign in signs.items() if sign == which) or "none" for which in (-1, 1)
        )
        said = f"{best.label}, {100 * best.right.mean():.1f}"
        lines.append(
            f"| {100 * own.ratio:g} % | {accuracy(own)} | {said} | {difference(own, best)[0]} | {better} | {worse} |"
        )
    return "\n".join(lines)


def pick(results: Sequence[Result], half: str, frames: int, positions: str, usual: bool) -> list[Result]:
    """Results of a half, of so many frames, with such positions; usual: methods as they are, else changed ones too."""
    chosen = [one for one in results if (one.half, one.frames) == (half, frames) and one.numbered(positions)]
    return [one for one in chosen if one.ratio < 1 and (one.usual or not usual)]


def unpruned(results: Sequence[Result], half: str, frames: int) -> str:
    """The unpruned model's accuracy."""
    for one in results:
        if (one.method, one.ratio, one.half, one.frames) == (*FULL, half, frames):
            return f"Unpruned: {accuracy(one)}, {len(one.right)} questions."
    return "Unpruned: not run."


def plot(results: Sequence[Result], frames: int, path: Path, sibling: str | None) -> None:
    """Accuracy against tokens kept with bands of Wilson's intervals: as published on all questions; with positions
    kept, and the sibling, on the held half. No file if there is neither.
    """
    panels = [(positions, half) for positions, half in ((PUBLISHED, "both"), (KEPT, "held"))
              if pick(results, half, frames, positions, usual=True)]  # fmt: skip
    if not panels:
        return
    figure = Figure(figsize=(7.5 * len(panels), 6.2), layout="constrained")
    drawn = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (positions, half) in zip(drawn, panels, strict=True):
        shown = pick(results, half, frames, positions, usual=False)
        for number, label in enumerate(labels([one for one in shown if one.usual or one.label == sibling])):
            line = sorted((one for one in shown if one.label == label), key=lambda one: one.kept)
            if line[0].method in LEFT_OUT:
                continue
            bars = [wilson(float(one.right.mean()), len(one.right)) for one in line]
            kept, own = [100 * one.kept for one in line], line[0].method == "tango"
            colour = ("black" if line[0].usual else "crimson") if own else f"C{number % 10}"
            axes.plot(kept, [bar.value for bar in bars], marker="o", markersize=4, color=colour, label=label,
                      linewidth=3 if own else 1.2, linestyle="-" if own or number < 10 else "--")  # fmt: skip
            axes.fill_between(kept, [bar.low for bar in bars], [bar.high for bar in bars], color=colour,
                              alpha=0.2 if own else 0.06)  # fmt: skip
        questions = len(shown[0].right)
        for one in results:
            if (one.method, one.ratio, one.half, one.frames) == (*FULL, half, frames):
                axes.axhline(100 * one.right.mean(), color="grey", linestyle=":", label="unpruned")
        axes.set(xlabel="video tokens kept (%)", xlim=(0, 34), ylim=(45, 100))
        axes.set_title(f"positions {positions}; {half} half, n = {questions}".replace("both half", "all questions"))
        axes.grid(alpha=0.3)
        axes.set_ylabel("accuracy (%), bands: 95 % intervals")
        axes.legend(fontsize="x-small", ncols=2, loc="lower right")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/front/tango-tiny"), help="answers of one checkpoint")
    parser.add_argument("--output", type=Path, default=Path("results/motionqa_all"))
    parser.add_argument("--sibling", help="the changed Tango to compare on the held half, as front.py names it")
    args = parser.parse_args()
    results = read(args.work)
    sibling = None if args.sibling is None else f"{LABELS.get('tango', 'tango')}, {args.sibling}"
    text = [
        f"# All methods on MotionQA, {args.work.name}",
        f"Made by: {shlex.join(['python', *sys.argv])}, of what benchmarks/front.py answered (its head says how). "
        "Cells: accuracy in percent with its 95 % interval, and in parentheses the share of the tokens that was kept.",
    ]
    if "qwen" in args.work.name:
        text.append("Kept tokens of a Qwen have the M-RoPE positions that they had, in every table here.")
    whole = {one.frames for one in results if one.half == "both" and one.frames == 8}  # has tables of its own
    for positions in (PUBLISHED, KEPT):
        chosen = pick(results, "both", 8, positions, usual=True)
        if chosen:
            text += [f"## 8 frames, all questions, positions {positions}", unpruned(results, "both", 8)]
            text += [
                grid(chosen, labels(chosen)),
                "Tango against the others:",
                fronts(chosen, LABELS.get("tango", "tango")),
            ]
    for positions in (PUBLISHED, KEPT):
        held = pick(results, "held", 8, positions, usual=False)
        if whole and sibling is not None and any(one.label == sibling for one in held):
            text += [
                f"## The held half: Tango with {args.sibling}, positions {positions}",
                unpruned(results, "held", 8),
                fronts(held, sibling),
            ]
    for frames in sorted({one.frames for one in results} - whole):
        for positions in (PUBLISHED, KEPT):
            held = pick(results, "held", frames, positions, usual=False)
            if len(held) > 5:
                title = f"## The held half: {frames} frames, positions {positions}"
                text += [title, unpruned(results, "held", frames), grid(held, labels(held))]
                for label in labels([one for one in held if one.method == "tango"]):
                    text += [f"{label} against the others:", fronts(held, label)]
    for frames in sorted({one.frames for one in results}):
        for positions in (PUBLISHED, KEPT):
            chosen = pick(results, "development", frames, positions, usual=False)
            if len(chosen) > 5:
                title = f"## The development half: {frames} frames, positions {positions}"
                text += [title, unpruned(results, "development", frames), grid(chosen, labels(chosen))]
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "front.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    rows = []
    for one in results:
        bar = wilson(float(one.right.mean()), len(one.right))
        rows.append(
            {
                "method": one.method,
                "change": one.name,
                "ratio": one.ratio,
                "keep_positions": one.settings["keep_positions"],
                "half": one.half,
                "frames": one.frames,
                "kept": round(100 * one.kept, 2),
                "accuracy": round(bar.value, 2),
                "low": round(bar.low, 2),
                "high": round(bar.high, 2),
                "questions": len(one.right),
            }
        )
    frame = pd.DataFrame(rows).sort_values(["frames", "half", "keep_positions", "method", "change", "ratio"])
    frame.to_csv(args.output / "front.csv", index=False)
    plot(results, 8, args.output / "front.png", sibling)


if __name__ == "__main__":
    main()
