"""Made-up cells of sweeps, with known answers."""

import json
from pathlib import Path
from typing import Any

from tango.runs.summary import TITLES

KINDS = ("colour", "count")


def made_up(method: str, ratio: float | None, right: list[int], kept: int = 52, **what: Any) -> dict[str, Any]:
    """A cell of 40 questions, half of each kind; `right` are the numbers of those answered correctly.

    what: framework, model, benchmark, variant; frames, device, time, ttft (ms).
    """
    frames, device, ttft = what.pop("frames", 8), what.pop("device", "A processor"), what.pop("ttft", 10.0)
    time = what.pop("time", "2026-01-01T00:00:00+00:00")
    samples = [
        {
            "id": f"q{i}",
            "kind": KINDS[i % 2],
            "score": float(i in right),
            "prediction": "A" if i in right else "B",
            "answer": "A",
            "tokens_before": 512,
            "tokens_after": kept,
            "kept": [f"{method}{ratio}-{i}"],
        }
        for i in range(40)
    ]
    cell = {"method": method, "ratio": ratio, "model": "tiny", "benchmark": "motionqa", "framework": "lmms-eval"}
    times = {"Avg_ViT_Time": 0.5 * ttft, "Avg_Other_Time": 0.25 * ttft, "Avg_LLM_Prefill_Time": 0.25 * ttft}
    return {
        "cell": cell | {"variant": None} | what,
        "provenance": {
            "settings": {"retention_ratio": ratio},
            "sources": {"TANGO_CONFIG": "configs/tiny.yaml"} if ratio else {},
            "model": {"pretrained": "checkpoints/tiny", "dtype": "float32", "max_frames_num": frames},
            "seed": 1234,
            "commit": {"hash": "0123456789abcdef", "dirty": False},
            "versions": {"tango": "0.1.0", "torch": "2.11.0"},
            "device": {"name": device, "type": "cpu", "threads": 2},
            "processes": 1,
            "time": time,
        },
        "efficiency": dict.fromkeys(TITLES, 2.5)
        | times
        | {"Avg_Total_TTFT": ttft, "cold_samples": 1, "Avg_Decoding_Throughput": None},
        "samples": samples,
    }


def write_sweep(folder: Path, cells: list[dict[str, Any]]) -> None:
    """As a sweep leaves them, in folders whose names' order is that of the cells."""
    for number, cell in enumerate(cells):
        place = folder / "cells" / f"{number:02}"
        place.mkdir(parents=True)
        (place / "cell.json").write_text(json.dumps(cell))
