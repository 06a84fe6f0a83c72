"""Tables from made-up cells with known answers."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up import made_up

from tango.results import ResultsError
from tango.results.cells import arrange, tokens_kept
from tango.results.statistics import bootstrap, wilson
from tango.results.tables import (
    accuracy_table,
    agreement_table,
    benchmark_table,
    comparison_table,
    efficiency_table,
    kind_table,
    paired_scores,
    published_table,
)


@pytest.fixture
def cells() -> list[dict[str, Any]]:
    return [
        made_up("random", 0.1, list(range(0, 28, 2))),
        made_up("tango", 0.1, list(range(28))),
        made_up("vanilla", None, list(range(32)), 512),
        made_up("topk", 0.1, list(range(4, 32))),
    ]


def table(make: Any, cells: list[dict[str, Any]]) -> pd.DataFrame:
    return make(arrange(cells)[0])


def elsewhere(cells: list[dict[str, Any]], **what: Any) -> list[dict[str, Any]]:
    """The same cells in another framework or on another benchmark."""
    return [cell | {"cell": cell["cell"] | what} for cell in cells]


def test_accuracy_against_the_unpruned_model(cells: list[dict[str, Any]]) -> None:
    found = table(accuracy_table, cells)
    assert found["name"].tolist() == ["unpruned", "Tango 10 %", "random 10 %", "top-k saliency 10 %"]
    found = found.set_index("name")
    assert found.loc["unpruned", "MotionQA"] == 80 and found.loc["Tango 10 %", "MotionQA"] == 70
    assert found.loc["Tango 10 %", "share_kept"] == pytest.approx(87.5)
    assert found.loc["Tango 10 %", "difference"] == pytest.approx(-10)
    assert found.loc["unpruned", ["difference_low", "difference_high"]].tolist() == [0, 0]
    assert found.loc["Tango 10 %", "tokens_kept"] == pytest.approx(100 * 52 / 512)
    cells[1]["samples"][30]["prediction"] = None
    assert table(benchmark_table, cells)["unparsed"].tolist() == [0, 1, 0, 0]


def test_kinds_are_read_from_the_data(cells: list[dict[str, Any]]) -> None:
    found = table(kind_table, cells).set_index(["name", "kind"])["accuracy"]
    assert found["random 10 %", "colour"] == 70 and found["random 10 %", "count"] == 0
    for cell in cells:
        cell["samples"][0]["kind"] = "smell"
    assert table(kind_table, cells)["kind"].unique().tolist() == ["colour", "count", "smell"]


def test_the_average_is_that_of_benchmarks_and_only_of_all_of_them() -> None:
    cells = [made_up("vanilla", None, list(range(40)), 512, benchmark=name) for name in ("MVBench_8frame", "videomme")]
    cells += [made_up("tango", 0.1, list(range(n)), benchmark=b) for n, b in ((30, "MVBench_8frame"), (20, "videomme"))]
    cells += [made_up("topk", 0.1, list(range(40)), benchmark="videomme")]
    found = table(accuracy_table, cells).set_index("name")
    assert found.columns.tolist()[4:8] == ["tokens_kept", "Video-MME", "MVBench", "average"][:4]
    assert found.loc["Tango 10 %", ["Video-MME", "MVBench", "average"]].tolist() == [50, 75, 62.5]
    assert found.loc["Tango 10 %", "difference"] == -37.5 and found.loc["Tango 10 %", "share_kept"] == 62.5
    assert found.loc["top-k saliency 10 %", "Video-MME"] == 100
    assert found.loc["top-k saliency 10 %", ["MVBench", "average", "share_kept", "difference"]].isna().all()
    assert table(comparison_table, cells).empty  # top-k lacks a benchmark
    alone = table(benchmark_table, cells).set_index(["name", "benchmark"])
    assert alone.loc[("top-k saliency 10 %", "Video-MME"), "difference"] == 0


def test_the_interval_is_that_of_paired_differences() -> None:
    rng = np.random.default_rng(1)
    other = (rng.random(4000) < 0.8).astype(float)
    one = np.where(rng.random(4000) < 0.1, 1 - other, other)  # mostly the same answers
    difference, share = bootstrap([(one, other)], draws=4000)
    error = 100 * (one - other).std() / np.sqrt(4000)
    assert difference.value == pytest.approx(100 * (one.mean() - other.mean()))
    assert difference.low == pytest.approx(difference.value - 1.96 * error, abs=0.15)
    assert difference.high == pytest.approx(difference.value + 1.96 * error, abs=0.15)
    assert share.value == pytest.approx(100 * one.mean() / other.mean())
    assert share.low < share.value < share.high
    assert bootstrap([(one, other)], draws=100) == bootstrap([(one, other)], draws=100)


def test_benchmarks_count_alike_whatever_their_size() -> None:
    rng = np.random.default_rng(2)
    small = ((rng.random(100) < 0.5).astype(float), (rng.random(100) < 0.5).astype(float))
    large = (np.ones(5000), np.ones(5000))  # nothing varies here
    alone, _ = bootstrap([small], draws=4000)
    both, _ = bootstrap([small, large], draws=4000)
    assert both.value == pytest.approx(alone.value / 2)
    assert both.high - both.low == pytest.approx((alone.high - alone.low) / 2, rel=0.05)


def test_extremes_of_the_bootstrap() -> None:
    same, share = bootstrap([(np.ones(6), np.ones(6))])
    assert (same.value, share.value) == (0, 100)
    # Six of six in both are no proof of no difference. Among six questions, half a question of each of four outcomes
    # added, one method is better by a Beta(1/2, 7 1/2) of them, 97.5 % of which lie below 29 points.
    assert same.low == pytest.approx(-26, abs=2) and same.high == pytest.approx(26, abs=2) and share.low < 80
    worse, _ = bootstrap([(np.zeros(6), np.ones(6))])
    assert worse.value == worse.low == -100 and -40 < worse.high < -20
    _, share = bootstrap([(np.ones(5), np.zeros(5))])  # nothing to keep a share of
    assert not np.isfinite(share.value) and np.isnan(share.low)
    with pytest.raises(ValueError, match="3 and 2 scores"):
        bootstrap([(np.ones(3), np.ones(2))])
    with pytest.raises(ValueError, match="at least one benchmark"):
        bootstrap([])


@pytest.mark.parametrize(
    "n, shares",
    [(6, (0.9, 0.05, 0, 0.05)), (6, (0.96, 0.02, 0.01, 0.01)), (20, (0.85, 0.1, 0.05, 0)), (40, (0.9, 0.05, 0, 0.05)),
     (300, (0.7, 0.1, 0.1, 0.1))],
)  # fmt: skip
def test_the_interval_holds_the_true_difference(n: int, shares: tuple[float, ...]) -> None:
    """As often as it says, near the edges too: 95 of 100 times, here in 300 tries, of which 16 more may fail."""
    rng = np.random.default_rng(3)
    true, missed = 100 * (shares[1] - shares[2]), 0
    for counts in rng.multinomial(n, shares, size=300):
        one, other = (np.repeat(scores, counts) for scores in ([1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]))
        found, _ = bootstrap([(one, other)], draws=500, seed=int(rng.integers(1 << 30)))
        missed += not found.low <= true <= found.high
    assert missed <= 15 + 16


def test_wilsons_interval() -> None:
    """By hand, with z = 1.959964: of n of n the lower end is n / (n + z²), of 0 of n the upper z² / (n + z²); 15 of 50
    are (0.3 + 0.038415) / 1.076829 +- 1.959964 / 1.076829 * sqrt(0.0042 + 0.00038415) = 0.31427 +- 0.12324.
    """
    for share, n, low, high in ((1.0, 6, 60.966, 100), (0.0, 6, 0, 39.034), (1.0, 1, 20.655, 100), (0.0, 100, 0, 3.699),
                                (0.3, 50, 19.103, 43.751), (0.5, 10, 23.659, 76.341)):  # fmt: skip
        found = wilson(share, n)
        assert (found.value, found.low, found.high) == pytest.approx((100 * share, low, high), abs=2e-3)
    assert wilson(1.0, 6).text() == "100.0 [61.0, 100.0]"


def test_intervals_of_accuracies_stand_beside_them() -> None:
    cells = [made_up("vanilla", None, list(range(40)), 512, benchmark=name) for name in ("MVBench", "videomme")]
    cells.append(made_up("topk", 0.1, list(range(40)), benchmark="videomme"))
    found = table(accuracy_table, cells).set_index("name")
    ends = [f"{name}{end}" for name in ("Video-MME", "MVBench", "average") for end in ("_low", "_high")]
    low = 40 / (40 + 1.959964**2)
    assert found.loc["unpruned", ends].tolist() == pytest.approx(
        [100 * low, 100, 100 * low, 100, 100 - 100 * (1 - low) / np.sqrt(2), 100]
    )
    assert found["questions"].tolist() == [80, 40] and np.isnan(found.loc["top-k saliency 10 %", "MVBench_low"])
    kinds = table(kind_table, cells)
    assert kinds["questions"].unique().tolist() == [20] and kinds["accuracy_low"].min() == pytest.approx(
        83.887, abs=2e-3
    )
    assert table(benchmark_table, cells)["accuracy_low"].tolist() == pytest.approx([100 * low] * 3)


def test_only_answers_to_the_same_questions_are_compared(cells: list[dict[str, Any]]) -> None:
    cells[1]["samples"][3]["id"] = "another"
    with pytest.raises(ResultsError, match="Tango 10 % and unpruned answered different questions: another, q3"):
        paired_scores(cells[1], cells[2])
    rows, remarks = arrange(cells)
    assert "Tango 10 %" not in [row.name for row in rows] and len(rows) == 3
    (remark,) = remarks
    assert "Tango 10 % on MotionQA in lmms-eval answered 40 questions, unpruned 40 and not the same" in remark


def test_tango_against_baselines(cells: list[dict[str, Any]]) -> None:
    found = table(comparison_table, cells).set_index("against")
    assert found.loc["random 10 %", "Tango is"] == "better" and found.loc["random 10 %", "difference"] == 35
    assert found.loc["top-k saliency 10 %", "Tango is"] == "not distinguishable"
    worse = table(comparison_table, [cells[1], made_up("random", 0.1, list(range(40)))])
    assert worse["Tango is"].tolist() == ["worse"]
    varied = table(comparison_table, [cells[1], made_up("tango", 0.1, list(range(14)), variant="no-context")])
    assert varied["against"].tolist() == ["Tango 10 %, no-context"]


def test_what_cannot_stand_in_one_table(cells: list[dict[str, Any]]) -> None:
    with pytest.raises(ResultsError, match="no finished cells"):
        arrange([])
    with pytest.raises(ResultsError, match="one model, frames and dtype"):
        arrange([*cells, made_up("tango", 0.2, [], frames=16)])


def test_of_several_runs_the_fullest_and_latest_is_shown(cells: list[dict[str, Any]]) -> None:
    again = made_up("tango", 0.1, list(range(20)), time="2026-01-02T00:00:00+00:00")
    short = made_up("tango", 0.1, [], time="2026-01-03T00:00:00+00:00")
    short["samples"] = short["samples"][:3]
    short["provenance"]["settings"]["alpha"] = 2
    rows, remarks = arrange([again, *cells, short])
    assert accuracy_table(rows)["MotionQA"].tolist() == [80, 50, 35, 70]
    assert remarks == [
        "Tango 10 % on MotionQA in lmms-eval was run 3 times with different settings; shown is the run of "
        "2026-01-02T00:00:00+00:00"
    ]


def test_settings_that_differ_are_told(cells: list[dict[str, Any]]) -> None:
    cells[1]["provenance"]["settings"]["alpha"] = 2
    _, remarks = arrange([*cells, made_up("tango", 0.1, [], framework="VLMEvalKit")])
    assert remarks == ["Tango 10 % was not run with the same alpha everywhere"]


def test_a_score_that_the_framework_weighs_otherwise_is_told(cells: list[dict[str, Any]]) -> None:
    cells[1]["reported"], cells[2]["reported"] = 68.4, 80.0
    _, remarks = arrange(cells)
    assert remarks == [
        "Tango 10 % on MotionQA: lmms-eval itself reports 68.4 %, since it weighs questions otherwise; 70.0 % of the "
        "answers are right"
    ]


def test_speed_ups_only_on_the_same_machine() -> None:
    cells = [
        made_up("vanilla", None, [1], 512, ttft=30.0),
        made_up("tango", 0.1, [1], ttft=10.0),
        made_up("tango", 0.2, [1], ttft=20.0, device="Another"),
        made_up("vanilla", None, [1], 512, ttft=50.0, framework="VLMEvalKit"),
        made_up("tango", 0.1, [1], ttft=20.0, framework="VLMEvalKit"),
    ]
    cells[1]["provenance"]["processes"] = 2
    found = table(efficiency_table, cells)["Avg_Total_TTFT speed-up"]
    assert found.iloc[[0, 3, 4]].tolist() == [1, 1, 2.5] and found.iloc[[1, 2]].isna().all()
    cells[1]["provenance"]["processes"] = 1
    assert table(efficiency_table, cells)["Avg_Total_TTFT speed-up"].iloc[1] == 3
    assert table(efficiency_table, cells[1:2])["Avg_Total_TTFT speed-up"].isna().all()


def test_both_frameworks_sample_by_sample(cells: list[dict[str, Any]]) -> None:
    other = [
        made_up("vanilla", None, list(range(32)), 512, framework="VLMEvalKit", benchmark="MotionQA_8frame"),
        made_up("tango", 0.1, [0, *range(3, 28)], framework="VLMEvalKit", benchmark="MotionQA_8frame"),
    ]
    other[1]["samples"][5]["kept"] = ["something else"]
    other[1]["samples"][6]["tokens_after"] = 51
    found = table(agreement_table, cells + other).set_index("name")
    differ = ["answers_differ", "scores_differ", "kept_differ"]
    assert found.index.tolist() == ["unpruned", "Tango 10 %"] and found["questions"].tolist() == [40, 40]
    assert found.loc["unpruned", differ].tolist() == [0, 0, 0] and found.loc["Tango 10 %", differ].tolist() == [2, 2, 2]
    del other[0]["samples"][7]["kept"]
    assert table(agreement_table, cells + other)["kept_differ"].isna().tolist() == [True, False]
    assert table(agreement_table, cells).empty
    for cell in other:
        cell["samples"] = cell["samples"][:30]
    assert table(agreement_table, cells + other)[["questions", "only_one"]].values.tolist() == [[30, 10], [30, 10]]


def test_published_figures_stand_beside_measured_ones(cells: list[dict[str, Any]]) -> None:
    assert table(published_table, cells).empty  # of another model
    theirs = elsewhere(
        cells, model="llava-onevision-qwen2-7b-ov", benchmark="Video-MME_32frame", framework="VLMEvalKit"
    )
    found = table(published_table, theirs).set_index("quantity")
    assert found.loc["Total_runtime", "published"] == 1315.02 and found.loc["Total_runtime", "VLMEvalKit"] == 2.5
    assert found.loc["share_kept", "published"] == 98.9 and found.loc["share_kept", "VLMEvalKit"] == pytest.approx(87.5)
    assert found["published_on"].unique().tolist() == ["8 x A800, lmms-eval"]
    assert found["source"].str.contains("arXiv").all()
    # Nothing is reckoned from them: no other table changes with them, and no column mixes the two.
    assert set(found.columns) == {"benchmark", "name", "VLMEvalKit", "published", "published_on", "source"}
    not_run = table(published_table, [theirs[2]])
    assert not_run["VLMEvalKit"].isna().all() and not_run["published"].notna().all()


def test_tokens_count_in_the_mean_over_layers() -> None:
    cell = made_up("fastv", 0.5, [1, 2, 3], 100)
    assert tokens_kept(cell) == pytest.approx(100 * 100 / 512)
    for row in cell["samples"]:
        row["tokens_average"] = 64.0
    assert tokens_kept(cell) == pytest.approx(100 * 64 / 512)
