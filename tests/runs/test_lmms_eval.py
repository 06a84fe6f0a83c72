"""lmms-eval's own command line, end to end: kill and resume, several processes, failed samples. Four runs in all."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny import REPOSITORY, write_benchmark, write_video

QUESTIONS = 40  # enough that a kill falls in the middle


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "many"
    write_benchmark(folder, videos=4, each=QUESTIONS // 4)
    return folder


def command(checkpoint: Path, data: Path, output: Path, model: str = "llava_onevision") -> list[str]:
    arguments = f"pretrained={checkpoint},max_frames_num=6,conv_template=qwen_1_5,model_name=llava_qwen"
    words = ["-m", "lmms_eval", "--model", model, "--model_args", arguments, "--tasks", "motionqa_tiny"]
    words += ["--include_path", str(data / "tasks"), "--batch_size", "1", "--device", "cpu"]
    return [*words, "--log_samples", "--log_samples_suffix", model, "--output_path", str(output)]


def outputs(folder: Path) -> tuple[dict[str, Any], dict[int, dict[str, Any]], dict[str, Any]]:
    """Results, logged samples by document, and the efficiency file of the only run in a folder."""
    (results,) = folder.glob("*/*_results.json")
    (samples,) = folder.glob("*/*_samples_motionqa_tiny.jsonl")
    (efficiency,) = folder.glob("*/*_efficiency.json")
    logged = [json.loads(line) for line in samples.read_text().splitlines()]
    return json.loads(results.read_text()), {s["doc_id"]: s for s in logged}, json.loads(efficiency.read_text())


@pytest.fixture(scope="module")
def resumed(checkpoint: Path, data: Path, environment: dict[str, str], tmp_path_factory: Any) -> tuple[Path, int]:
    """A run with Tango that was killed and started again, and how many samples were finished at the kill."""
    folder = tmp_path_factory.mktemp("resumed")
    tango = environment | {"WRAPPER": "tango", "TANGO_ARGS": "retention_ratio=0.2"}
    words = [sys.executable, *command(checkpoint, data, folder)]
    with (folder / "first.log").open("w") as log:
        first = subprocess.Popen(words, env=tango, cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 500
    while sum(len(p.read_bytes().splitlines()) for p in folder.glob("journal/*")) < 5:
        assert first.poll() is None and time.monotonic() < deadline, (folder / "first.log").read_text()[-2000:]
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    (journal,) = folder.glob("journal/*.jsonl")
    finished = journal.read_bytes().count(b"\n")
    assert 5 <= finished < QUESTIONS
    second = subprocess.run(words, env=tango, cwd=REPOSITORY, capture_output=True, text=True)
    assert second.returncode == 0, second.stdout[-2000:] + second.stderr[-2000:]
    assert f"{finished} of {QUESTIONS} samples were finished by an earlier run" in second.stdout
    assert "Avg_Total_TTFT" in second.stdout
    return folder, finished


def test_a_killed_run_loses_at_most_the_sample_in_flight(resumed: tuple[Path, int]) -> None:
    folder, finished = resumed
    results, samples, efficiency = outputs(folder)
    assert results["tango"]["n_resumed"] == finished and results["tango"]["n_failed"] == 0
    assert set(samples) == set(range(QUESTIONS))
    (journal,) = folder.glob("journal/*.jsonl")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert len(lines) == len({line["key"] for line in lines}) == QUESTIONS
    # Time spent before the kill is in the table.
    assert results["tango"]["efficiency"]["samples_timed"] == QUESTIONS
    assert efficiency["efficiency"]["Total_runtime"] == pytest.approx(sum(line["wall_s"] for line in lines))


def test_every_result_says_where_it_comes_from(resumed: tuple[Path, int]) -> None:
    results, samples, efficiency = outputs(resumed[0])
    origin = results["tango"]
    assert origin["method"] == "tango" and origin["settings"]["retention_ratio"] == 0.2
    assert origin["sources"] == {"WRAPPER": "tango", "TANGO_ARGS": "retention_ratio=0.2"}
    assert origin["versions"]["lmms-eval"] == "0.7.3" and origin["device"]["type"] == "cpu" and origin["seed"] == 1234
    assert origin["command"].startswith("WRAPPER=tango TANGO_ARGS=retention_ratio=0.2 python")
    assert 0.15 < origin["tokens"]["share_kept"] < 0.3
    for sample in samples.values():
        (counts,) = sample["token_counts"]
        assert counts["video_tokens_before"] == 6 * 16 > counts["video_tokens_after"] > 0
    assert len(efficiency["samples"]) == QUESTIONS
    assert set(results["results"]["motionqa_tiny"]["accuracy_by_kind,none"]) == {"colour", "count"}


def test_two_processes_give_the_same_answers(
    resumed: tuple[Path, int], checkpoint: Path, data: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    tango = environment | {"WRAPPER": "tango", "TANGO_ARGS": "retention_ratio=0.2"}
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0"]
    words = [sys.executable, *launch, *command(checkpoint, data, tmp_path)]
    run = subprocess.run(words, env=tango, cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    results, samples, efficiency = outputs(tmp_path)
    assert results["tango"]["processes"] == results["tango"]["efficiency"]["ranks"] == 2
    assert {entry["rank"] for entry in efficiency["samples"]} == {0, 1}
    assert len(list(tmp_path.glob("journal/*"))) == 2
    _, alone, before = outputs(resumed[0])
    assert {i: s["filtered_resps"] for i, s in samples.items()} == {i: s["filtered_resps"] for i, s in alone.items()}
    kept = [[(e["doc_id"], e["videos"][0]["kept"]) for e in run["samples"]] for run in (efficiency, before)]
    assert kept[0] == kept[1]


def test_a_failed_sample_is_recorded_not_scored_and_ends_with_an_error(
    checkpoint: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    write_benchmark(tmp_path / "data", videos=2, each=2)
    video = tmp_path / "data" / "videos" / "1.mp4"
    write_video(video)
    video.write_bytes(video.read_bytes()[:300])
    words = [sys.executable, *command(checkpoint, tmp_path / "data", tmp_path / "out", model="llava_hf")]
    run = subprocess.run(words, env=environment, cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 1, run.stdout[-2000:] + run.stderr[-2000:]
    assert "2 of 4 samples failed and were not scored" in run.stderr
    results, samples, _ = outputs(tmp_path / "out")
    assert results["tango"]["method"] == "vanilla" and results["tango"]["settings"] == {}
    assert results["tango"]["n_failed"] == 2
    assert [(f["doc_id"], f["tries"]) for f in results["tango"]["failed"]] == [(2, 2), (3, 2)]
    assert all("1.mp4" in failure["reason"] and "1.mp4" in run.stdout for failure in results["tango"]["failed"])
    assert set(samples) == {0, 1} and all(sample["filtered_resps"] for sample in samples.values())
