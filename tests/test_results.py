"""Tables from made-up cells with known answers."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from tango.evaluation.timing import TITLES
from tango.results import (
    accuracy_table,
    bootstrap,
    comparisons,
    paired_scores,
    read_cells,
    summary,
    tokens_kept,
    write_results,
)

KINDS = ("colour", "count")


def made_up(method: str, ratio: float | None, right: list[int], kept: int, parsed: bool = True) -> dict[str, Any]:
    """A cell of 40 questions, half of each kind; `right` are the numbers of those answered correctly."""
    samples = [
        {
            "id": f"q{i}",
            "kind": KINDS[i % 2],
            "score": float(i in right),
            "prediction": "A" if parsed or i else None,
            "answer": "A",
            "tokens_before": 512,
            "tokens_after": kept,
        }
        for i in range(40)
    ]
    return {
        "cell": {"method": method, "ratio": ratio, "model": "tiny", "benchmark": "motionqa", "framework": "lmms-eval"},
        "provenance": {
            "model": {"pretrained": "checkpoints/tiny", "dtype": "float32", "max_frames_num": 8},
            "seed": 1234,
            "commit": {"hash": "0123456789abcdef", "dirty": False},
            "versions": {"tango": "0.1.0", "torch": "2.11.0"},
            "device": {"name": "A processor", "type": "cpu", "threads": 2},
            "processes": 1,
            "time": "2026-01-01T00:00:00+00:00",
        },
        "efficiency": dict.fromkeys(TITLES, 2.5) | {"cold_samples": 1, "Avg_Decoding_Throughput": None},
        "samples": samples,
    }


@pytest.fixture
def cells() -> list[dict[str, Any]]:
    return [
        made_up("vanilla", None, list(range(32)), 512),
        made_up("tango", 0.1, list(range(28)), 52),
        made_up("random", 0.1, list(range(0, 28, 2)), 52, parsed=False),
        made_up("topk", 0.1, list(range(4, 32)), 52),
    ]


def test_accuracy_by_kind_and_against_the_unpruned_model(cells: list[dict[str, Any]]) -> None:
    table = accuracy_table(cells).set_index("name")
    assert table.loc["unpruned", "accuracy"] == 80 and table.loc["Tango 10 %", "accuracy"] == 70
    assert table.loc["random 10 %", "colour"] == 70 and table.loc["random 10 %", "count"] == 0
    assert table.loc["Tango 10 %", "share_kept"] == pytest.approx(87.5)
    assert table.loc["Tango 10 %", "difference"] == pytest.approx(-10)
    assert table.loc["unpruned", ["difference_low", "difference_high"]].tolist() == [0, 0]
    assert table.loc["Tango 10 %", "tokens_kept"] == pytest.approx(100 * 52 / 512)
    assert table["unparsed"].tolist() == [0, 0, 1, 0]


def test_kinds_are_read_from_the_data(cells: list[dict[str, Any]]) -> None:
    for cell in cells:
        cell["samples"][0]["kind"] = "smell"
    assert "smell" in accuracy_table(cells).columns


def test_the_interval_is_that_of_paired_differences() -> None:
    rng = np.random.default_rng(1)
    other = (rng.random(4000) < 0.8).astype(float)
    one = np.where(rng.random(4000) < 0.1, 1 - other, other)  # mostly the same answers
    difference, share = bootstrap(one, other, draws=4000)
    error = 100 * (one - other).std() / np.sqrt(4000)
    assert difference.value == pytest.approx(100 * (one.mean() - other.mean()))
    assert difference.low == pytest.approx(difference.value - 1.96 * error, abs=0.15)
    assert difference.high == pytest.approx(difference.value + 1.96 * error, abs=0.15)
    assert share.value == pytest.approx(100 * one.mean() / other.mean())
    assert share.low < share.value < share.high
    assert bootstrap(one, other, draws=100) == bootstrap(one, other, draws=100)


def test_extremes_of_the_bootstrap() -> None:
    same, _ = bootstrap(np.ones(5), np.ones(5))
    assert (same.value, same.low, same.high) == (0, 0, 0)
    _, share = bootstrap(np.ones(5), np.zeros(5))  # nothing to keep a share of
    assert not np.isfinite(share.value) and np.isnan(share.low)
    with pytest.raises(ValueError, match="3 and 2 scores"):
        bootstrap(np.ones(3), np.ones(2))


def test_only_answers_to_the_same_questions_are_compared(cells: list[dict[str, Any]]) -> None:
    cells[1]["samples"][3]["id"] = "another"
    with pytest.raises(ValueError, match="Tango 10 % and unpruned answered different questions: another, q3"):
        paired_scores(cells[1], cells[0])


def test_tango_against_baselines(cells: list[dict[str, Any]]) -> None:
    table = comparisons(cells).set_index("against")
    assert table.loc["random 10 %", "Tango is"] == "better" and table.loc["random 10 %", "difference"] == 35
    assert table.loc["top-k saliency 10 %", "Tango is"] == "not distinguishable"
    worse = comparisons([*cells[1:2], made_up("random", 0.1, list(range(40)), 52)])
    assert worse["Tango is"].tolist() == ["worse"]


def test_files(tmp_path: Path, cells: list[dict[str, Any]]) -> None:
    files = write_results(cells, tmp_path, "python scripts/demo.py", missing=["motionqa-tango-0.2"])
    assert {f.name for f in files} == {
        "accuracy.csv",
        "efficiency.csv",
        "comparisons.csv",
        "README.md",
        "accuracy.png",
        "time.png",
    }
    for name in ("accuracy", "efficiency", "comparisons"):
        text = (tmp_path / f"{name}.csv").read_text()
        assert text.startswith("# made by: python scripts/demo.py\n# model: checkpoints/tiny in float32, 8 frames")
    assert pd.read_csv(tmp_path / "accuracy.csv", comment="#")["accuracy"].tolist() == [80, 70, 35, 70]
    assert pd.read_csv(tmp_path / "efficiency.csv", comment="#")["Peak_mem (GB)"].tolist() == [2.5] * 4
    readme = (tmp_path / "README.md").read_text()
    for said in (
        "made by: python scripts/demo.py",
        "commit: 0123456789ab;",
        "A processor (cpu, 2 threads)",
        "87.5 [",
        "-10.0 [",
        "against random 10 %: +35.0 [",
        "(10.2 % of the tokens kept against 10.2 %): Tango is better",
        "Without a result:** motionqa-tango-0.2",
        "(4 in all)",
    ):
        assert said in readme, said
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_the_summary_fits_a_terminal(cells: list[dict[str, Any]]) -> None:
    console = Console(file=io.StringIO(), width=100, record=True)
    console.print(summary(cells))
    text = console.export_text()
    assert "Tango 10 %" in text and "10.2" in text and "-10.0 [" in text and "87.5 [" in text


def test_without_the_unpruned_model_there_is_nothing_to_compare_with(tmp_path: Path, cells: list[Any]) -> None:
    assert "share_kept" not in accuracy_table(cells[1:])
    write_results(cells[1:2], tmp_path, "x")
    assert "share" not in (tmp_path / "README.md").read_text()
    with pytest.raises(ValueError, match="no finished cells"):
        write_results([], tmp_path, "x")


def test_cells_are_found(tmp_path: Path) -> None:
    (tmp_path / "cells" / "a").mkdir(parents=True)
    (tmp_path / "cells" / "a" / "cell.json").write_text('{"cell": {}}')
    (tmp_path / "cells" / "b").mkdir()
    assert read_cells(tmp_path) == [{"cell": {}}]


def test_tokens_count_in_the_mean_over_layers() -> None:
    cell = made_up("fastv", 0.5, [1, 2, 3], 100)
    assert tokens_kept(cell) == pytest.approx(100 * 100 / 512)
    for row in cell["samples"]:
        row["tokens_average"] = 64.0
    assert tokens_kept(cell) == pytest.approx(100 * 64 / 512)
