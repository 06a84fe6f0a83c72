"""How well the choice of `tango calibrate`, which sees no labels, predicts the one that labels would make, on MotionQA.

    python benchmarks/calibrate_motionqa.py

Of what benchmarks/front.py answered: some videos are drawn as somebody's own clips, a ratio is chosen for each method
by its answers' agreement with the unpruned model's, and another by their accuracy; what either costs is seen on all
videos that were not drawn.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tango.calibrate import Way, smallest
from tango.calibrate.ask import plain
from tango.pruners import REGISTRY
from tango.results.statistics import Interval

CLIPS, TOLERANCES = (5, 10, 20, 40), (0.02, 0.05, 0.1)
LEFT_OUT = ("dycoke",)  # keeps no share that is asked for


def read(folder: Path) -> tuple[list[str], dict[tuple[str, float], dict[str, np.ndarray]]]:
    """The videos, and of each method and ratio, as it is by default: arrays (videos, questions of one) by name.

    same: as the unpruned model's answer; right; lost: right without pruning, less right with it; kl.
    """
    found: dict[tuple[str, float], dict[str, list[Any]]] = {}
    for file in sorted(folder.glob("*.json")):
        one = json.loads(file.read_bytes())
        usual = REGISTRY[one["method"]](retention_ratio=one["settings"]["retention_ratio"]).settings()
        if one["half"] in ("development", "held") and one["settings"] == usual:
            found.setdefault((one["method"], one["settings"]["retention_ratio"]), {}).update(one["answers"])
    whole = found.pop(("uniform", 1.0))
    found = {key: answers for key, answers in found.items() if set(answers) == set(whole)}
    videos = sorted({key.split("-")[0] for key in whole})
    ids = [[key for key in sorted(whole) if key.split("-")[0] == video] for video in videos]

    def array(answers: dict[str, list[Any]], what: Any) -> np.ndarray:
        return np.array([[what(key, answers[key]) for key in of] for of in ids], float)

    return videos, {
        key: {
            "same": array(answers, lambda key, one: plain(one[1]) == plain(whole[key][1])),
            "right": array(answers, lambda _, one: one[0]),
            "lost": array(answers, lambda key, one: whole[key][0] - one[0]),
            "kl": array(answers, lambda _, one: np.nan if one[2] is None else one[2]),
        }
        for key, answers in found.items()
    }


def chosen(method: str, values: dict[float, float], tolerance: float) -> float | None:
    """The ratio that tango.calibrate.smallest() takes for a share of answers by ratio that is to stay near 1."""
    ways = []
    for ratio, share in values.items():
        exact = Interval(100 * share, 100 * share, 100 * share)
        ways.append(Way(REGISTRY[method](retention_ratio=ratio), 100 * ratio, exact, exact, 1))
    way = smallest(ways, tolerance)
    return None if way is None else way.pruner.retention_ratio


def draw(
    found: dict[tuple[str, float], dict[str, np.ndarray]], videos: int, clips: int, tolerance: float, rng: Any
) -> list[dict[str, Any]]:
    """What one draw of clips comes to, a row a method: both choices, and what they cost on the other videos."""
    own = np.zeros(videos, bool)
    own[rng.permutation(videos)[:clips]] = True
    rows = []
    for method in dict.fromkeys(name for name, _ in found):
        ratios = sorted(ratio for name, ratio in found if name == method)
        blind = chosen(method, {r: float(found[method, r]["same"][own].mean()) for r in ratios}, tolerance)
        seeing = chosen(method, {r: float(1 - found[method, r]["lost"][own].mean()) for r in ratios}, tolerance)
        row: dict[str, Any] = {"blind": blind, "seeing": seeing}
        for name in ("blind", "seeing"):
            row[f"{name} lost"] = np.nan if row[name] is None else found[method, row[name]]["lost"][~own].mean()
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/front/tango-tiny/8"), help="answers of front.py")
    parser.add_argument("--output", type=Path, default=Path("results/calibrate"))
    parser.add_argument("--draws", type=int, default=200)
    args = parser.parse_args()
    videos, found = read(args.work)
    found = {key: arrays for key, arrays in found.items() if key[0] not in LEFT_OUT}
    methods, ratios = sorted({name for name, _ in found}), sorted({ratio for _, ratio in found})
    means = pd.DataFrame({name: [arrays[name].mean() for arrays in found.values()] for name in ("same", "kl", "right")})
    ranks = means.rank().corr()["right"]
    listed = ", ".join(f"{ratio:g}" for ratio in ratios)
    lines = [
        f"{len(methods)} methods at {listed}; {len(videos)} videos of six questions, {args.draws} draws a row. "
        "Made by: python benchmarks/calibrate_motionqa.py, of what benchmarks/front.py answered with "
        f"{args.work.parent.name} at {args.work.name} frames (both halves, all methods, default positions).",
        f"Over the {len(means)} pairs of method and ratio the rank correlation with accuracy is {ranks['same']:.3f} of "
        f"agreement and {ranks['kl']:.3f} of KL.",
        "| tolerance | clips | a choice: without labels, with | same ratio | lower | higher | lost on other videos, "
        "points: without labels | with | within tolerance there: without labels | with |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for tolerance in TOLERANCES:
        for clips in CLIPS:
            rng = np.random.default_rng(0)
            rows = [row for _ in range(args.draws) for row in draw(found, len(videos), clips, tolerance, rng)]
            frame = pd.DataFrame(rows).astype(float)
            both = frame.dropna(subset=["blind", "seeing"])
            sign = np.sign(both["blind"] - both["seeing"])
            shares = [100 * float(np.mean(sign == which)) for which in (0, -1, 1)]
            cells = [f"{100 * tolerance:g} %", f"{clips}"]
            cells.append(", ".join(f"{100 * frame[name].notna().mean():.0f} %" for name in ("blind", "seeing")))
            cells += [f"{share:.0f} %" for share in shares]
            cells += [f"{100 * frame[f'{name} lost'].mean():.1f}" for name in ("blind", "seeing")]
            for name in ("blind", "seeing"):
                lost = frame[f"{name} lost"].dropna()
                cells.append(f"{100 * float(np.mean(lost <= tolerance + 1e-9)):.0f} %")
            lines.append("| " + " | ".join(cells) + " |")
    args.output.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:]) + "\n"
    (args.output / "motionqa.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
