"""The numbers of tables counted again from the rows and records of cells, for tango.results.verify: nothing here calls
what made the tables, but for the ends of intervals, which come from one seeded draw and are held against another.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

import numpy as np

from tango.results.cells import Cell, Row, Rows, answers, device, machine
from tango.results.statistics import CORNERS, Scores, bootstrap
from tango.runs.summary import WITH_UNITS

Table = dict[tuple[str, ...], dict[str, Any]]  # columns by what names a line
KEYS = {
    "accuracy": ("framework", "name"),
    "benchmarks": ("benchmark", "framework", "name"),
    "kinds": ("benchmark", "framework", "name", "kind"),
    "comparisons": ("framework", "against"),
    "agreement": ("benchmark", "name", "frameworks"),
    "efficiency": ("benchmark", "framework", "name"),
    "published": ("benchmark", "name", "quantity"),
}
Z2 = 3.841459  # 95 % of chi squared of one degree of freedom lie below it
PARTS = {"Avg_ViT_Time": "vit_s", "Avg_Other_Time": "other_s", "Avg_LLM_Prefill_Time": "prefill_s"}
SPED_UP = ("Total_runtime", "Total_GPU_runtime", "Avg_LLM_Prefill_Time", "Avg_Total_TTFT")
DRAWS, SEED = 2_000, 20_260  # of the second draw
APART = 0.5  # standard deviations that the ends of two draws may differ: many times what chance makes of 2,000 draws


def times(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The efficiency table of some records (tango.runs.runner.Record as JSON): what tango.runs.summary.TITLES says."""
    loops: dict[int, list[float]] = {}
    for record in records:
        loops.setdefault(record["rank"], []).append(record["wall_s"])
    timed = [record for record in records if record["failure"] is None and record["timing"] is not None]
    averaged = [record["timing"] for record in timed if not record["cold"]] or [record["timing"] for record in timed]
    each = {name: [1000 * timing[part] for timing in averaged] for name, part in PARTS.items()}
    each["Avg_Total_TTFT"] = [math.fsum(three) for three in zip(*each.values(), strict=True)]
    after_first = math.fsum(timing["decode_s"] for timing in averaged)
    later = sum(timing["new_tokens"] - 1 for timing in averaged)
    return {
        "Total_runtime": max(map(math.fsum, loops.values()), default=0.0),
        "Total_GPU_runtime": math.fsum(record["timing"]["generate_s"] for record in timed),
        "Peak_mem": max((record["peak_mem_gb"] for record in records), default=None),
        **{name: fmean(values) if averaged else None for name, values in each.items()},
        "Avg_Decoding_Throughput": later / after_first if after_first > 0 else None,
        "spread": {name: _deviation(values) for name, values in each.items()},
        "samples_timed": len(timed),
        "samples_averaged": len(averaged),
        "cold_samples": sum(record["cold"] for record in timed),
        "ranks": len(loops),
    }


def _deviation(values: Sequence[float]) -> float | None:
    """Of a sample: over one less than their number."""
    n = len(values)
    return pstdev(values) * math.sqrt(n / (n - 1)) if n > 1 else None


def tokens(records: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Video tokens over all records with an answer, and the share that was kept in the mean over layers."""
    answered = [record["tokens"] for record in records if record["failure"] is None]
    before, after = (sum(one.get(f"video_tokens_{when}", 0) for one in answered) for when in ("before", "after"))
    average = sum(one.get("video_tokens_average", one.get("video_tokens_after", 0)) for one in answered)
    return {
        "video_tokens_before": before,
        "video_tokens_after": after,
        "video_tokens_average": average,
        "share_kept": average / before if before else None,
        "samples": len(answered),
    }


def percent_right(samples: Sequence[Mapping[str, Any]]) -> float:
    """Right answers counted, of all, in percent."""
    return 100 * math.fsum(float(row["score"]) for row in samples) / len(samples)


def ends(percent: float, n: int) -> tuple[float, float]:
    """The ends of Wilson's interval in percent: the shares p from which so many right answers of n are 1.96 standard
    errors away, the roots of (share - p)^2 = 1.96^2 p (1 - p) / n.
    """
    share, z = percent / 100, Z2 / n
    middle, root = (2 * share + z) / (2 + 2 * z), math.sqrt((2 * share + z) ** 2 - 4 * (1 + z) * share**2) / (2 + 2 * z)
    return 100 * max(0.0, middle - root), 100 * min(1.0, middle + root)


def percent_kept(cell: Cell) -> float:
    """Video tokens kept, of all of a cell's, in percent; NaN without videos."""
    before = math.fsum(row["tokens_before"] for row in cell["samples"])
    kept = math.fsum(row.get("tokens_average", row["tokens_after"]) for row in cell["samples"])
    return 100 * kept / before if before else math.nan


def against(one: Row, other: Row | None, names: Sequence[str]) -> dict[str, float]:
    """difference and share_kept of a line against another on some benchmarks, each with _low and _high; empty where
    they cannot be compared.
    """
    if other is None or any(name not in row.cells for row in (one, other) for name in names):
        return {}
    if one is other:
        return {f"{name}{end}": value for name, value in (("difference", 0.0), ("share_kept", 100.0))
                for end in ("", "_low", "_high")}  # fmt: skip
    pairs = []
    for name in names:
        first, second = answers(one.cells[name]), answers(other.cells[name])
        if first.keys() != second.keys():
            return {}
        pairs.append((_scores(first, first), _scores(second, first)))
    mine, theirs = (fmean(percent_right(row.cells[name]["samples"]) for name in names) for row in (one, other))
    found = {"difference": mine - theirs, "share_kept": 100 * mine / theirs if theirs else math.nan}
    for quantity, interval, again in zip(found.copy(), bootstrap(pairs), drawn_again(pairs), strict=True):
        limits = interval.low, interval.high
        if math.isnan(found[quantity]):  # a share of nothing has no ends either
            limits = math.nan, math.nan
        else:
            low, high = np.percentile(again, [2.5, 97.5])
            if not all(abs(a - b) <= APART * float(again.std()) for a, b in zip(limits, (low, high), strict=True)):
                limits = float(low), float(high)  # the seeded draw is not to be believed
        found |= {f"{quantity}_low": limits[0], f"{quantity}_high": limits[1]}
    return found


def _scores(found: Mapping[str, Mapping[str, Any]], ids: Iterable[str]) -> Scores:
    return np.array([float(found[key]["score"]) for key in ids])


def drawn_again(pairs: Sequence[tuple[Scores, Scores]]) -> tuple[Scores, Scores]:
    """The bootstrap with another seed, question by question: DRAWS differences in points, and shares in percent.

    Each question has a weight of an exponential distribution, and half a question of each outcome one of Gamma(1/2).
    """
    rng = np.random.default_rng(SEED)
    accuracies = np.zeros((2, DRAWS))
    for pair in pairs:
        scores = np.hstack([np.stack(pair), CORNERS])
        for start in range(0, DRAWS, 200):  # 200 draws at a time, for memory
            weights = np.hstack([rng.standard_exponential((200, len(pair[0]))), rng.standard_gamma(0.5, (200, 4))])
            accuracies[:, start : start + 200] += scores @ (weights / weights.sum(axis=1, keepdims=True)).T / len(pairs)
    return 100 * (accuracies[0] - accuracies[1]), 100 * accuracies[0] / accuracies[1]


def recount(rows: Rows) -> dict[str, Table]:
    """The numbers of all tables of some lines, by the tables' names, lines (KEYS) and columns."""
    names, order = rows.benchmarks, rows.frameworks
    found: dict[str, Table] = {name: {} for name in KEYS}
    for row in rows:
        line: dict[str, Any] = _who(row)
        for name in names:
            line |= _right(name, row.cells[name]["samples"] if name in row.cells else [])
        line["questions"] = sum(len(cell["samples"]) for cell in row.cells.values())
        line["tokens_kept"] = fmean(map(percent_kept, row.cells.values()))
        line["average"] = fmean(line[name] for name in names)
        for end, sign in (("_low", -1), ("_high", 1)):  # distances from both ends, added in squares
            reach = math.hypot(*(line[name + end] - line[name] for name in names))
            line[f"average{end}"] = line["average"] + sign * reach / len(names)
        found["accuracy"][row.framework, row.name] = line | against(row, rows.reference(row), names)
    for name, row, cell in rows.by_benchmark():
        key, asked = (name, row.framework, row.name), cell["samples"]
        unpruned = rows.reference(row)
        found["benchmarks"][key] = {
            **_who(row),
            "questions": len(asked),
            **_right("accuracy", asked),
            "tokens_kept": percent_kept(cell),
            "unparsed": sum(answer["prediction"] is None for answer in asked),
            **against(row, unpruned, [name]),
        }
        for kind in {str(answer["kind"]) for answer in asked}:
            of_kind = [answer for answer in asked if str(answer["kind"]) == kind]
            found["kinds"][*key, kind] = {**_who(row), "questions": len(of_kind), **_right("accuracy", of_kind)}
        base = None if unpruned is None else unpruned.cells.get(name)
        found["efficiency"][key] = {**_who(row), **_efficiency(cell, base)}
        for other in rows:
            later = order.index(other.framework) > order.index(row.framework)
            if other.what == row.what and later and name in other.cells:
                pair = f"{row.framework}, {other.framework}"
                found["agreement"][name, row.name, pair] = _agreement(cell, other.cells[name])
    for row in rows:
        tango = rows.find(row.framework, "tango", row.retention_ratio)
        if not row.unpruned and tango is not None and tango is not row and (line := against(tango, row, names)):
            ours, theirs = (found["accuracy"][one.framework, one.name] for one in (tango, row))
            kept = {"tokens_kept_tango": ours["tokens_kept"], "tokens_kept_baseline": theirs["tokens_kept"]}
            what = {"retention_ratio": row.retention_ratio, "questions": theirs["questions"], "Tango is": verdict(line)}
            found["comparisons"][row.framework, row.name] = line | kept | what
    return found


def _who(row: Row) -> dict[str, Any]:
    return {"method": row.method, "variant": row.variant, "retention_ratio": row.retention_ratio}


def verdict(line: Mapping[str, float]) -> str:
    """What the interval of a difference says of the first of two."""
    low, high = line["difference_low"], line["difference_high"]
    return "better" if low > 0 else "worse" if high < 0 else "not distinguishable"


def _right(name: str, samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Right answers in percent, and the ends of their interval; NaN without any."""
    percent = percent_right(samples) if samples else math.nan
    low, high = ends(percent, len(samples)) if samples else (math.nan, math.nan)
    return {name: percent, f"{name}_low": low, f"{name}_high": high}


def _efficiency(cell: Cell, base: Cell | None) -> dict[str, Any]:
    """base: the unpruned model's."""
    times_of, load = cell["efficiency"], cell["provenance"].get("load") or {}
    line: dict[str, Any] = {"device": device(cell), "machine": machine(cell)}
    line |= {column: times_of[title] for title, column in WITH_UNITS.items()}
    line |= {f"{title} sd": value for title, value in times_of.get("spread", {}).items()}
    line |= {f"load_{key}": value for key, value in load.items()}
    for title in SPED_UP:
        mine, theirs = times_of[title], base["efficiency"][title] if base is not None else None
        same = base is not None and mine and theirs is not None and machine(base) == machine(cell)
        line[f"{title} speed-up"] = theirs / mine if same else math.nan
    return line


def _agreement(one: Cell, other: Cell) -> dict[str, int]:
    """What two frameworks made of the same questions."""
    mine, theirs = answers(one), answers(other)
    both = [(mine[key], theirs[key]) for key in mine.keys() & theirs.keys()]
    line = {"questions": len(both), "only_one": len(mine.keys() ^ theirs.keys())}
    line["answers_differ"] = sum(a["prediction"] != b["prediction"] for a, b in both)
    line["scores_differ"] = sum(a["score"] != b["score"] for a, b in both)
    if all(
        "kept" in row and (None not in row["kept"] or row["tokens_after"] == row["tokens_before"])
        for pair in both
        for row in pair
    ):
        line["kept_differ"] = sum((a["tokens_after"], a["kept"]) != (b["tokens_after"], b["kept"]) for a, b in both)
    return line
