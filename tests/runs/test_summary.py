"""The efficiency table: how the records of all ranks add up."""

import io
from typing import Any

import pytest
from rich.console import Console

from tango.runs.summary import TITLES, efficiency, efficiency_table


def record(rank: int, wall: float, cold: bool, failure: str | None = None, **timing: float) -> dict[str, Any]:
    full = {
        "vit_s": 0.1,
        "other_s": 0.02,
        "prefill_s": 0.03,
        "decode_s": 0.5,
        "generate_s": 0.7,
        "new_tokens": 6,
    } | timing
    return {
        "rank": rank,
        "wall_s": wall,
        "timing": None if failure else full,
        "cold": cold,
        "failure": failure,
        "peak_mem_gb": 1.0 + rank,
    }


def test_the_table_covers_all_ranks_and_leaves_cold_samples_out_of_averages() -> None:
    table = efficiency(
        [
            record(0, 9.0, True, vit_s=5.0, generate_s=6.0),
            record(0, 1.0, False),
            record(1, 2.0, False, vit_s=0.3, decode_s=1.5, new_tokens=16),
            record(1, 1.0, False, failure="ValueError"),
        ]
    )
    assert table["Total_runtime"] == 10.0
    assert table["Total_GPU_runtime"] == pytest.approx(6.0 + 0.7 + 0.7)
    assert table["Peak_mem"] == 2.0
    assert table["Avg_ViT_Time"] == pytest.approx(200)
    assert table["Avg_Other_Time"] == pytest.approx(20)
    assert table["Avg_LLM_Prefill_Time"] == pytest.approx(30)
    assert table["Avg_Total_TTFT"] == pytest.approx(250)
    assert table["Avg_Decoding_Throughput"] == pytest.approx((5 + 15) / 2.0)
    assert (table["samples_timed"], table["samples_averaged"], table["cold_samples"], table["ranks"]) == (3, 2, 1, 2)


def test_the_spread_is_that_of_samples_and_stands_below_the_mean() -> None:
    table = efficiency([record(0, 1.0, False, vit_s=vit) for vit in (0.1, 0.2, 0.3)])
    assert table["Avg_ViT_Time"] == pytest.approx(200) and table["Avg_Total_TTFT"] == pytest.approx(250)
    assert table["spread"] == pytest.approx(
        {"Avg_ViT_Time": 100, "Avg_Other_Time": 0, "Avg_LLM_Prefill_Time": 0, "Avg_Total_TTFT": 100}, abs=1e-9
    )
    assert set(efficiency([record(0, 1.0, False)])["spread"].values()) == {None}  # of one sample there is none
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(efficiency_table({"[b]a[/b]": table}))
    text = console.export_text()
    assert "[b]a[/b]" in text and text.count("±100.00") == 2 and "…" not in text


def test_cold_samples_are_better_than_none() -> None:
    table = efficiency([record(0, 1.0, True)])
    assert (table["samples_averaged"], table["cold_samples"]) == (1, 1)
    assert table["Avg_ViT_Time"] == pytest.approx(100)


def test_nothing_to_average_gives_no_numbers() -> None:
    table = efficiency([record(0, 1.0, True, failure="ValueError")])
    assert table["Avg_ViT_Time"] is None and table["Avg_Decoding_Throughput"] is None
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(efficiency_table({"vanilla": table}))
    text = console.export_text()
    assert "Total_runtime" in text and all(unit in text for unit, _ in TITLES.values())
