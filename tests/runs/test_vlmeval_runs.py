"""VLMEvalKit's command line as processes: the same as lmms-eval's; several processes, killed and resumed; the sweep."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from tiny import REPOSITORY, write_benchmark

from tango.results import report
from tango.sweeps.cells import Evaluation
from tango.sweeps.lmms_cells import lmms_cell
from tango.sweeps.sweep import Sweep
from tango.sweeps.vlmeval_cells import vlmeval_cell

TINY = REPOSITORY / "checkpoints" / "tango-tiny"
DATA = REPOSITORY / "data" / "motionqa"
ASKED, MANY = 7, 40


@pytest.mark.skipif(not (TINY / "model.safetensors").is_file(), reason="checkpoints/tango-tiny is not there")
def test_both_frameworks_agree_sample_by_sample(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same questions through both: tokens, kept indices, replies and scores. A sweep runs both."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = str(REPOSITORY / "configs" / "tango_tiny.yaml")
    asked = Evaluation(str(TINY), 720, [DATA / "test.json"], "tango", 0.15, config, limit=ASKED)
    cells = [lmms_cell(tmp_path, asked, task="motionqa"), vlmeval_cell(tmp_path, asked, dataset="MotionQA_8frame")]
    sweep = Sweep(tmp_path, cells)
    assert sweep.run() == {}
    one, other = sweep.results()
    assert (one["cell"]["framework"], other["cell"]["framework"]) == ("lmms-eval", "VLMEvalKit")
    assert len(one["samples"]) == ASKED and one["samples"] == other["samples"]
    assert any(row["score"] for row in one["samples"])
    assert one["provenance"]["settings"] == other["provenance"]["settings"]
    assert one["tokens"] == other["tokens"]

    ids = [row["id"] for row in json.loads((DATA / "test.json").read_text())]
    known = []
    for cell in cells:
        (file,) = sweep.place(cell).run.glob("*/*_efficiency.json")
        samples = json.loads(file.read_text())["samples"]
        name = {entry["doc_id"]: entry["doc_id"] for entry in samples}
        if isinstance(samples[0]["doc_id"], int):
            name = {place: ids[place] for place in range(ASKED)}
        known.append(
            {name[e["doc_id"]]: (e["response"], e["videos"], e["tokens"]) for e in samples}  # videos: hash of the kept
        )
    assert known[0] == known[1] and set(known[0]) == set(ids[:ASKED])


def words(checkpoint: Path, data: Path, output: Path) -> list[str]:
    model = {"class": "TangoLlavaOnevision", "pretrained": str(checkpoint), "device": "cpu"}
    dataset = {"class": "MotionQA", "dataset": "MotionQA", "root": str(data), "nframe": 6}
    config = data / "config.json"
    config.write_text(json.dumps({"model": {"tiny": model}, "data": {"Mine": dataset}}))
    run = ["run.py", "--config", str(config), "--work-dir", str(output), "--retain-ratio", "0.2"]
    return [*run, "--context-ratio", "0.3"]


def test_processes_that_are_killed_lose_at_most_what_was_in_flight(
    checkpoint: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """Two processes by torchrun on the CPU, killed; one process goes on."""
    write_benchmark(tmp_path / "data", videos=4, each=MANY // 4)
    tango = environment | {"WRAPPER": "tango", "LMUData": str(tmp_path)}
    command, folder = words(checkpoint, tmp_path / "data", tmp_path / "out"), REPOSITORY / "VLMEvalKit"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    with (tmp_path / "first.log").open("w") as log:
        first = subprocess.Popen([*torchrun, *command], env=tango, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 500
    journals = tmp_path / "out" / "journal"
    # Until both have answered something, and four questions have been.
    while (
        len(lines := [len(p.read_bytes().splitlines()) for p in journals.glob("*")]) < 2
        or min(lines) < 1
        or sum(lines) < 4
    ):
        assert first.poll() is None and time.monotonic() < deadline, (tmp_path / "first.log").read_text()[-2000:]
        time.sleep(0.01)
    workers = psutil.Process(first.pid).children(recursive=True)
    for process in (first, *workers):
        os.kill(process.pid, signal.SIGKILL)
    first.wait()
    psutil.wait_procs(workers)
    finished = sum(p.read_bytes().count(b"\n") for p in journals.glob("*"))
    assert 4 <= finished < MANY

    second = subprocess.run([sys.executable, *command], env=tango, cwd=folder, capture_output=True, text=True)
    assert second.returncode == 0, second.stdout[-2000:] + second.stderr[-2000:]
    (file,) = (tmp_path / "out").glob("tiny/*_efficiency.json")
    summary = json.loads(file.read_text())
    assert summary["n_resumed"] == finished and summary["n_failed"] == 0 and summary["processes"] == 1
    assert len({entry["doc_id"] for entry in summary["samples"]}) == len(summary["samples"]) == MANY
    assert summary["settings"]["context_ratio"] == 0.3 and summary["settings"]["retention_ratio"] == 0.2
    assert summary["command"].startswith("WRAPPER=tango TANGO_ARGS=") and "run.py" in summary["command"]

    # One process gives what two gave: all questions about a video keep the same of it, whoever answered them.
    kept = {(entry["doc_id"].split("-")[0], json.dumps(entry["videos"])) for entry in summary["samples"]}
    assert {entry["rank"] for entry in summary["samples"]} == {0, 1} and len(kept) == 4
    assert len(list((tmp_path / "out").glob("tiny/tiny_Mine*.xlsx"))) == 2
    assert not list((tmp_path / "out").glob("tiny/*.pkl"))


def script(name: str, environment: dict[str, str], *given: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = environment | {"PYTHON": sys.executable} | variables
    return subprocess.run(["bash", str(REPOSITORY / name), *given], env=env, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("name", "frames", "benchmarks"),
    [
        ("run_eval_qwen.sh", 64, 4),
        ("run_eval_video.sh", 64, 4),
        ("VLMEvalKit/run_eval_ov.sh", 32, 4),
        ("run_profile.sh", 32, 1),
    ],
)
def test_scripts_print_their_commands_and_name_what_is_missing(
    name: str, frames: int, benchmarks: int, environment: dict[str, str]
) -> None:
    """Those of the root hand over to the others."""
    dry = script(name, environment, "--dry-run", NPROC="2")
    assert dry.returncode == 2 and "the checkpoint is not on this machine" in dry.stderr, dry.stderr
    commands = dry.stdout.splitlines()
    assert len(commands) == 4 * benchmarks and all(str(frames) in line for line in commands)
    assert sum("WRAPPER=vanilla" in line for line in commands) == benchmarks
    for ratio in ("0.1", "0.15", "0.2"):
        assert sum(f"TANGO_ARGS=retention_ratio={ratio} " in line for line in commands) == benchmarks
    assert all("--nproc-per-node=2" in line for line in commands)
    real = script(name, environment)
    assert real.returncode == 2
    said = real.stdout + real.stderr
    assert "the checkpoint is not on this machine" in said and "Video-MME: the data set is not on this machine" in said


@pytest.mark.skipif(not (TINY / "model.safetensors").is_file(), reason="checkpoints/tango-tiny is not there")
def test_the_efficiency_table_comes_out_of_run_profile(environment: dict[str, str], tmp_path: Path) -> None:
    given = ("--benchmark", "MotionQA", "--limit", "3", "--ratio", "0.1", "--config", "configs/tango_tiny.yaml")
    variables = {"MODEL": str(TINY), "OUTPUT": str(tmp_path / "logs"), "FRAMES": "8"}
    offline = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}
    logged = ("--wandb-args", "project=tango")  # lmms-eval's own; the table does not follow from them
    run = script("lmms-eval/run_profile.sh", environment, *given, *logged, **variables, **offline)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    assert "unpruned" in run.stdout and "Avg_Total_TTFT" in run.stdout
    written = sorted(file.read_bytes() for file in (tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(written) == 2 and all(b"motionqa/accuracy" in one for one in written)
    assert {name for name in (b"motionqa-vanilla", b"motionqa-tango-0.1") for one in written if name in one} == {
        b"motionqa-vanilla",
        b"motionqa-tango-0.1",
    }
    again = script("lmms-eval/run_profile.sh", environment, *given, **variables)
    assert again.returncode == 0 and "2 of 2 cells are finished already" in again.stderr
    made = report([tmp_path / "logs"], tmp_path / "tables")
    (file,) = (file for file in made.files if file.name == "efficiency.csv")
    table = pd.read_csv(file, comment="#").set_index("name")
    parts = table.loc["Tango 10 %", ["Avg_ViT_Time (ms)", "Avg_Other_Time (ms)", "Avg_LLM_Prefill_Time (ms)"]]
    assert parts.sum() == pytest.approx(table.loc["Tango 10 %", "Avg_Total_TTFT (ms)"], abs=1e-3)
    times = table["Avg_Total_TTFT (ms)"]
    assert table.loc["Tango 10 %", "Avg_Total_TTFT speed-up"] == pytest.approx(times.iloc[0] / times.iloc[1], abs=1e-3)
