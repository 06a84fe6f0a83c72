"""The numbers of all tables, as data frames without any formatting; columns that end in _low and _high are the ends of
95 % confidence intervals.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
import yaml

from tango.results.cells import Cell, ResultsError, Row, Rows, accuracy, answers, device, label, machine, tokens_kept
from tango.results.statistics import Interval, Scores, average, bootstrap, wilson
from tango.runs.summary import TITLES, WITH_UNITS

SPEED_UPS = ("Total_runtime", "Total_GPU_runtime", "Avg_LLM_Prefill_Time", "Avg_Total_TTFT")


def paired_scores(one: Cell, other: Cell) -> tuple[Scores, Scores]:
    """Scores (n,) of two cells on the same questions, in the same order.

    Raises:
        ResultsError: they answered different questions.
    """
    first, second = answers(one), answers(other)
    if first.keys() != second.keys():
        differ = sorted(first.keys() ^ second.keys())
        raise ResultsError(f"{label(one)} and {label(other)} answered different questions: {', '.join(differ[:5])}, ..")
    ids = sorted(first)
    return np.array([float(first[i]["score"]) for i in ids]), np.array([float(second[i]["score"]) for i in ids])


def accuracy_table(rows: Rows) -> pd.DataFrame:
    """The paper's table, one row a line: accuracy in percent on each benchmark, their mean, and that against the
    unpruned model in the same framework.

    Columns: framework, name, method, variant, retention_ratio, tokens_kept (percent, mean over benchmarks), one for
    each benchmark, average; if there is an unpruned model share_kept (percent of its average) and difference (points);
    the ends of each benchmark's and the average's intervals, and questions, of all benchmarks together. A line that
    lacks a benchmark has no average and is not compared.
    """
    names = rows.benchmarks
    table = []
    for row in rows:
        scores = {name: _accuracy(row.cells.get(name)) for name in names}
        scores["average"] = average(list(scores.values()))
        line = _who(row) | {"tokens_kept": row.tokens_kept}
        line |= {name: score.value for name, score in scores.items()} | _against(rows, row, names)
        for name, score in scores.items():
            line |= _interval(name, score)
        table.append(line | {"questions": row.questions})
    return pd.DataFrame(table)


def benchmark_table(rows: Rows) -> pd.DataFrame:
    """One row a cell: what accuracy_table says, for each benchmark alone, with questions and unparsed replies."""
    table = []
    for name, row, cell in rows.by_benchmark():
        line = {"benchmark": name} | _who(row) | {"questions": len(cell["samples"])}
        line |= _interval("accuracy", _accuracy(cell))
        line |= {"tokens_kept": tokens_kept(cell)} | _against(rows, row, [name])
        table.append(line | {"unparsed": sum(answer["prediction"] is None for answer in cell["samples"])})
    return pd.DataFrame(table)


def kind_table(rows: Rows) -> pd.DataFrame:
    """One row a cell and kind of question: benchmark, framework, name, .., kind, questions, accuracy in percent, and
    the ends of its interval.
    """
    table = []
    for name, row, cell in rows.by_benchmark():
        who = {"benchmark": name} | _who(row)
        for kind, score in pd.DataFrame(cell["samples"]).groupby("kind")["score"]:
            what = {"kind": kind, "questions": len(score)}
            table.append(who | what | _interval("accuracy", wilson(score.mean(), len(score))))
    return pd.DataFrame(table)


def comparison_table(rows: Rows) -> pd.DataFrame:
    """Tango against each other method and each variant of itself at the same retention ratio in the same framework, on
    the mean over all benchmarks: difference in points, on so many questions.

    Budgets round differently, so the shares of tokens that both really kept stand beside it.
    """
    table = []
    for row in rows:
        tango = rows.find(row.framework, "tango", row.retention_ratio)
        if row.unpruned or tango is None or tango is row or not (found := compare(tango, row, rows.benchmarks)):
            continue
        difference, _ = found
        verdict = "better" if difference.low > 0 else "worse" if difference.high < 0 else "not distinguishable"
        line: dict[str, Any] = {"framework": row.framework, "against": row.name, "retention_ratio": row.retention_ratio}
        line |= _interval("difference", difference) | {"questions": row.questions}
        line |= {"tokens_kept_tango": tango.tokens_kept, "tokens_kept_baseline": row.tokens_kept}
        table.append(line | {"Tango is": verdict})
    return pd.DataFrame(table)


def agreement_table(rows: Rows) -> pd.DataFrame:
    """What two frameworks made of the same questions with the same method: one row for each pair of cells.

    Columns: benchmark, name, frameworks; questions: how many both were asked; answers_differ, scores_differ,
    kept_differ: for how many of these the choice, the score, and the tokens kept are not the same. Questions are the
    same if they have the same id. kept_differ is missing where a cell does not say which tokens it kept.
    """
    names = rows.frameworks
    shared = [(row, other, name) for row in rows for other in rows for name in rows.benchmarks
              if row.what == other.what and names.index(row.framework) < names.index(other.framework)
              and name in row.cells and name in other.cells]  # fmt: skip
    table = []
    for row, other, name in shared:
        one, two = answers(row.cells[name]), answers(other.cells[name])
        pairs = [(one[i], two[i]) for i in sorted(one.keys() & two.keys())]
        known = all(tells_kept(answer) for pair in pairs for answer in pair)
        line: dict[str, Any] = {"benchmark": name, "name": row.name}
        line |= {"frameworks": f"{row.framework}, {other.framework}"}
        line |= {"questions": len(pairs), "only_one": len(one.keys() ^ two.keys())}
        line |= {"answers_differ": _differ(pairs, "prediction"), "scores_differ": _differ(pairs, "score")}
        table.append(line | {"kept_differ": _differ(pairs, "tokens_after", "kept") if known else None})
    return pd.DataFrame(table).astype({"kept_differ": "Int64"}) if table else pd.DataFrame()


def tells_kept(answer: Mapping[str, Any]) -> bool:
    """Whether a row says which tokens were kept, as those of a server do not."""
    return "kept" in answer and (None not in answer["kept"] or answer["tokens_after"] == answer["tokens_before"])


def _differ(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], *fields: str) -> int:
    return sum(any(one[name] != other[name] for name in fields) for one, other in pairs)


def efficiency_table(rows: Rows) -> pd.DataFrame:
    """One row a cell, with the columns of the framework's efficiency table in their units, the standard deviations over
    its samples and the load of the machine (tango.runs.load) if the run noted them, where it ran, and how many times
    less it took than the unpruned model on the same questions, framework and machine (NaN if that is not there).
    """
    table = []
    for name, row, cell in rows.by_benchmark():
        line = {"benchmark": name} | _who(row) | {"device": device(cell), "machine": machine(cell)}
        line |= {title: _number(cell["efficiency"][key]) for key, title in WITH_UNITS.items()}
        line |= {f"{key} sd": _number(sd) for key, sd in cell["efficiency"].get("spread", {}).items() if key in TITLES}
        line |= {f"load_{key}": _number(value) for key, value in (cell["provenance"].get("load") or {}).items()}
        unpruned = rows.reference(row)
        base = None if unpruned is None else unpruned.cells.get(name)
        for key in SPEED_UPS:
            times = [np.nan if one is None else _number(one["efficiency"][key]) for one in (base, cell)]
            same = base is not None and machine(base) == machine(cell)
            line[f"{key} speed-up"] = times[0] / times[1] if same and times[1] else np.nan
        table.append(line)
    return pd.DataFrame(table)


def published_table(rows: Rows) -> pd.DataFrame:
    """Published figures of this model beside what was measured here, one row a figure; empty for other models.

    Columns: benchmark, name, quantity, published, published_on, source, and one column for each framework with what was
    measured in it: NaN where nothing was.
    """
    model = rows.cells[0]["cell"]["model"]
    entries = [entry for entry in published_figures() if model in entry["names"]]
    if not entries:
        return pd.DataFrame()
    keys = ["benchmark", "framework", "method", "variant", "retention_ratio"]
    measured = benchmark_table(rows).merge(efficiency_table(rows), on=keys).set_index(keys)
    table = []
    for entry in entries:
        for quantity, figure in entry["figures"].items():
            name, column = entry["benchmark"], measured.get(WITH_UNITS.get(quantity, quantity), {})
            line = {"benchmark": name, "name": entry["label"], "quantity": quantity}
            for framework in rows.frameworks:
                line[framework] = column.get((name, framework, entry["method"], "", entry["retention_ratio"]), np.nan)
            line |= {"published": figure, "published_on": f"{entry['machine']}, {entry['framework']}"}
            table.append(line | {"source": entry["source"]})
    return pd.DataFrame(table)


def published_figures() -> list[dict[str, Any]]:
    """The entries of published.yaml, each with the label of its method in tables."""
    entries = yaml.safe_load(files("tango.results").joinpath("published.yaml").read_text(encoding="utf-8"))
    return [
        {**entry, "label": label({"cell": {"method": entry["method"], "ratio": entry["retention_ratio"]}})}
        for entry in entries
    ]


def compare(one: Row, other: Row | None, names: Sequence[str]) -> tuple[Interval, Interval] | None:
    """bootstrap() of two lines over some benchmarks; None if one of them lacks one."""
    if other is None or any(name not in row.cells for row in (one, other) for name in names):
        return None
    if one is other:  # the same answers, not only alike
        return Interval(0.0, 0.0, 0.0), Interval(100.0, 100.0, 100.0)
    return bootstrap([paired_scores(one.cells[name], other.cells[name]) for name in names])


def _who(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in ("framework", "name", "method", "variant", "retention_ratio")}


def _against(rows: Rows, row: Row, names: Sequence[str]) -> dict[str, float]:
    """Columns that compare a line with the unpruned model; none without one."""
    found = compare(row, rows.reference(row), names)
    return {} if found is None else _interval("share_kept", found[1]) | _interval("difference", found[0])


def _interval(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _accuracy(cell: Cell | None) -> Interval:
    """Accuracy in percent with its interval; NaN without a cell."""
    if cell is None:
        return Interval(np.nan, np.nan, np.nan)
    return wilson(accuracy(cell) / 100, len(cell["samples"]))


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)
