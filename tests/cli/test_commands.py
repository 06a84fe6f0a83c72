"""What each command does, on the shipped model and video."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from made_up import made_up, write_sweep
from safetensors.torch import load_file

from tango.cli import demo, doctor, main, profile
from tango.inference.chat import Chat
from tango.inference.checkpoints import load
from tango.models import FAMILIES
from tango.pruners import REGISTRY
from tango.runs.summary import TITLES
from tango.sweeps.cells import Evaluation
from tango.sweeps.expand import LMMS_MODELS
from tango.sweeps.sweep import Cell

ROOT = Path(__file__).parents[2]
VIDEO = "data/motionqa/videos/1.mp4"
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def told(capsys: Captured, *words: str, code: int = 0) -> Any:
    """What a command prints with --json: JSON and nothing else."""
    assert main([*words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_ask_answers_as_the_model_does(capsys: Captured) -> None:
    question = "What colour is the square?"
    found = told(capsys, "ask", VIDEO, question, "--method", "tango", "--method", "topk", "--ratio", "0.15")
    assert [way["name"] for way in found["answers"]] == ["unpruned", "tango 0.15", "topk 0.15"]
    content = [{"type": "video", "video": VIDEO}, {"type": "text", "text": question}]
    checkpoint = load("checkpoints/tango-tiny")
    for way, pruner in zip(found["answers"], (None, REGISTRY["tango"](0.15), REGISTRY["topk"](0.15)), strict=True):
        with Chat(checkpoint, pruner, max_frames=8).session() as chat:
            answer = chat.generate([{"role": "user", "content": content}], {"max_new_tokens": 64}, VIDEO)
        assert (way["answer"], way["tokens"], way["videos"]) == (answer.response, answer.tokens, answer.videos)
        assert way["seconds"]["vit_s"] > 0 and way["seconds"]["prefill_s"] > 0


def test_ask_for_people(capsys: Captured) -> None:
    assert main(["ask", "--frames", "4", "--set", "segmentation=none", "--config", "configs/tango_tiny.yaml"]) == 0
    said = capsys.readouterr().out
    assert "What colour is the ring?\nA. orange" in said  # the first question about the shipped video
    rows = {line.split("│")[1].strip(): line.split("│")[2:4] for line in said.splitlines() if line.startswith("│")}
    assert [cell.strip() for cell in rows["video tokens"]] == ["256", "256"]
    assert int(rows["into the language model"][0]) == 256 > int(rows["into the language model"][1])
    assert {"answer", "vision tower (ms)", "prefill (ms)", "decoding (ms)"} <= set(rows)


@pytest.mark.parametrize(
    "question", ["What is in [/box]?", "[red] or [option]? :smile:", "<video> [bold]<|im_end|>[/]"]
)
def test_text_is_no_markup(question: str, capsys: Captured, tmp_path: Path) -> None:
    video = tmp_path / "[x] [red]a :boom:.mp4"
    shutil.copy(VIDEO, video)
    assert main(["ask", str(video), question, "--frames", "2", "--max-new-tokens", "1"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert question in lines and any(line.endswith(video.name) for line in lines)
    short = ["--repeats", "1", "--warmup", "0", "--new-tokens", "2", "--frames", "2", "--question", question]
    assert main(["profile", str(video), *short, "--output", str(tmp_path / "[red]a.md")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert video.name in said and "[red]a.md" in said
    assert main(["visualize", str(video), "--frames", "2", "--ratio", "0.5", "--output", str(tmp_path / "[bold]")]) == 0
    assert "[bold]" in capsys.readouterr().out


def test_names_that_are_no_text(capsys: Captured, tmp_path: Path) -> None:
    shutil.copy(VIDEO, video := tmp_path / "\udcff.mp4")
    assert told(capsys, "ask", str(video), "What?", "--frames", "1", "--max-new-tokens", "1")["video"] == str(video)


def test_ask_leaves_out_what_does_not_fit(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """540 positions for 512 tokens of the video and a question of as many letters as leave room where it is pruned."""
    words = [
        "ask",
        VIDEO,
        "a" * 100,
        "--method",
        "topk",
        "--method",
        "fastv",
        "--ratio",
        "0.6",
        "--max-new-tokens",
        "1",
    ]
    shipped = load

    def smaller(*args: Any, **kwargs: Any) -> Any:
        checkpoint = shipped(*args, **kwargs)
        checkpoint.model.config.get_text_config().max_position_embeddings = 540
        return checkpoint

    monkeypatch.setattr("tango.inference.checkpoints.load", smaller)
    found = told(capsys, *words)
    assert [way["name"] for way in found["answers"]] == ["topk 0.6"]
    assert list(found["left_out"]) == ["unpruned", "fastv 0.6"] and "positions for 540" in found["left_out"]["unpruned"]
    assert main(words) == 0
    assert "left out: unpruned: the prompt is" in capsys.readouterr().out


def test_profile_measures_every_stage_of_every_run(capsys: Captured) -> None:
    words = ["profile", VIDEO, "--repeats", "3", "--warmup", "0", "--new-tokens", "4", "--set", "pruned_layer=2"]
    found = told(capsys, *words)
    assert [way["name"] for way in found["ways"]] == ["unpruned", "tango 0.1"]
    for way in found["ways"]:
        assert way["tokens"]["output_tokens"] == 4  # always that many, whatever the model would say
        for stage in ("read_s", "vit_s", "other_s", "prefill_s", "decode_s", "first_token_s", "whole_s"):
            one = way[stage]
            assert len(one["all"]) == 3 and one["min"] == min(one["all"]) and one["median"] == sorted(one["all"])[1]
        parts = [way[name]["all"] for name in ("read_s", "vit_s", "other_s", "prefill_s", "decode_s")]
        assert all(sum(run) <= whole for *run, whole in zip(*parts, way["whole_s"]["all"], strict=True))
        before = [way[name]["all"] for name in profile.READING]
        for *run, read in zip(*before, way["read_s"]["all"], strict=True):
            assert min(run) > 0 and sum(run) == pytest.approx(read)
        assert way["peak_memory_gib"]["min"] > 0.1 if "peak_memory_gib" in way else not profile.reset_peak()
    after = [way["tokens"]["video_tokens_after"] for way in found["ways"]]
    assert after[0] == 512 > after[1]


def test_profile_for_people(capsys: Captured) -> None:
    assert main(["profile", "--repeats", "1", "--warmup", "0", "--new-tokens", "2"]) == 0
    said = capsys.readouterr().out
    rows = *profile.READING.values(), "vision tower", "prefill", "time to first token", "peak memory", "times faster"
    for row in (*rows, "before the model", "all of it"):
        assert row in said


def test_profile_of_several_ways(capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    output = tmp_path / "new" / "profile.md"
    words = ["profile", "--method", "topk", "--method", "random", "--repeats", "2", "--new-tokens", "2"]
    assert main([*words, "--warmup", "0", "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "random 0.1" in said and "…" not in said and "written:" in said
    lines = output.read_text().splitlines()
    assert any(line.startswith("- made by:") for line in lines) and any("commit" in line for line in lines)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    (header, _, *rows), (parts, _, *shares) = cells[:5], cells[5:]
    assert parts[2:] == [*profile.READING.values(), *header[2:-2]] and [row[0] for row in shares] == [
        row[0] for row in rows
    ]
    assert all(sum(map(float, row[2:])) == pytest.approx(100, abs=25) for row in shares)  # medians of two runs
    assert [row[0] for row in rows] == ["unpruned", "topk 0.1", "random 0.1"]
    assert header[-2:] == ["time to first token", "times faster"] and rows[0][1] == "512" and rows[1][1] == "52"
    assert main([*words, "--output", str(tmp_path)]) == main([*words, "--output", f"{output}/under/a/file.md"]) == 2
    assert rows[0][-1] == "" and float(rows[1][-1]) > 0 and re.fullmatch(r"[\d.]+ \([\d.]+ to [\d.]+\)", rows[2][2])


def test_visualize_writes_page_and_sheets(capsys: Captured, tmp_path: Path) -> None:
    words = ["--ratio", "0.1", "--frames", "2", "--set", "segmentation=none", "--config", "configs/tango_tiny.yaml"]
    found = told(capsys, "visualize", *words, "--output", str(tmp_path / "pictures"))
    assert "segmentation=none" in Path(found["page"]).read_text(encoding="utf-8")
    assert Path(found["page"]).is_file() and [Path(sheet).suffix for sheet in found["sheets"]] == [".png"]


def test_methods_are_those_of_the_registry(capsys: Captured) -> None:
    found = {row["name"]: row for row in told(capsys, "methods")}
    assert list(found) == list(REGISTRY)
    for name, method in REGISTRY.items():
        row = found[name]
        assert row["settings"] == method().settings() and set(row["needs"]) == {"features", *method().needs}
        assert row["paper"] is None or row["paper"] in method.__doc__
    assert found["tango"]["paper"] == "2604.09547"
    where = {name: row["acts"] for name, row in found.items()}
    assert where["fastv"] == "inside the language model" and where["topk"] == "before the language model"
    assert where["flashvid"] == "before the language model; with pruning_layer inside it too"
    assert main(["methods"]) == 0 and main(["methods", "fastvid"]) == 0
    said = capsys.readouterr().out
    assert "anchor_interval=4" in said and "arXiv 2503.11187, as published for LLaVA-OneVision" in said


def test_doctor_finds_the_shipped_things_well(capsys: Captured) -> None:
    found = told(capsys, "doctor")
    assert found["ok"] and all(one["status"] == "ok" for one in found["findings"] if one["needed"])
    names = {(one["group"], one["name"]) for one in found["findings"]}
    assert {("Python", "torch"), ("PyTorch", "flash-attn"), ("Disk", "hub cache"), ("Data sets", "MotionQA")} <= names
    assert all(one["advice"] for one in found["findings"] if one["status"] != "ok")
    tensors = load_file("checkpoints/tango-tiny/model.safetensors")
    count, size = doctor.weights("checkpoints/tango-tiny")
    assert count == sum(tensor.numel() for tensor in tensors.values())
    assert size == pytest.approx(4 * count / 2**30, rel=0.01)  # float32, and a header


def test_doctor_of_a_named_model(capsys: Captured) -> None:
    assert told(capsys, "doctor", "--model", "checkpoints/tango-tiny")["ok"]
    found = told(capsys, "doctor", "--model", "checkpoints/tango-tiny", "--model", "owner/name", code=2)
    assert not found["ok"] and {one["name"]: one["status"] for one in found["findings"]}["owner/name"] == "missing"


def test_doctor_names_a_driver_that_torch_cannot_use(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(doctor, "DRIVER", tmp_path / "version")
    gpu = next(one for one in doctor.accelerators() if one.name == "GPU")
    assert gpu.found == "built for CUDA 13.0" and "driver" not in gpu.advice
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 2023\n")
    gpu = next(one for one in doctor.accelerators() if one.name == "GPU")
    assert gpu.found == "built for CUDA 13.0; NVIDIA driver 535.104.05" and "must show CUDA 13 or later" in gpu.advice


def test_doctor_says_what_is_too_little(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "memory", lambda: ("main memory", 1e-3))
    monkeypatch.setattr(doctor, "free_at", lambda folder: 0.5)
    found = told(capsys, "doctor", "--model", "checkpoints/tango-tiny", "--model", next(iter(doctor.PUBLISHED)), code=1)
    by_name = {(one["group"], one["name"]): one for one in found["findings"]}
    memory = by_name["Memory", "checkpoints/tango-tiny"]
    assert memory["status"] == "too little" and memory["needed"]
    download = by_name["Models", next(iter(doctor.PUBLISHED))]
    assert download["status"] == "too little" and "HF_HOME" in download["advice"] and not found["ok"]


def test_doctor_without_a_checkout(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "checkout", lambda: None)
    assert main(["doctor", "--model", "checkpoints/tango-tiny"]) == 1
    assert "run this in a checkout" in capsys.readouterr().out


def test_doctor_names_a_package_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "declared", lambda: (">=3.99", ["rich>=999", "no-such-package>=1", "numpy"]))
    python, rich, absent, numpy = doctor.packages()
    assert (python.status, rich.status, absent.status, numpy.status) == ("too little", "too little", "missing", "ok")
    assert "rich>=999" in rich.advice and "pip install 'no-such-package>=1'" in absent.advice


def test_doctor_names_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    properties = SimpleNamespace(name="Made-up 3000", total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    _, gpu, _ = doctor.accelerators()
    assert gpu.found == "Made-up 3000, 24 GiB"


def test_demo_is_the_scripts_demo(capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    script = "import os, sys; print(os.getcwd(), sys.argv); sys.exit(int(sys.argv[-1]))"
    (tmp_path / "scripts" / "demo.py").write_text(script)
    monkeypatch.setattr(demo, "checkout", lambda: tmp_path)
    before = list(sys.argv)
    assert main(["demo", "--limit", "3", "--jobs", "0"]) == 0
    assert capsys.readouterr().out == f"{tmp_path} ['scripts/demo.py', '--limit', '3', '--jobs', '0']\n"
    assert told(capsys, "demo", "7", code=7)["exit_code"] == 7
    assert sys.argv == before and Path.cwd() == ROOT
    monkeypatch.setattr(demo, "checkout", lambda: None)
    assert main(["demo"]) == 2
    assert "clone the repository" in capsys.readouterr().err


def test_sweep_prints_its_commands(capsys: Captured) -> None:
    words = ["sweep", "configs/sweeps/tango_tiny.yaml", "--ratio", "0.1", "--method", "tango", "--method", "fastv"]
    found = told(capsys, *words, "--dry-run")
    frameworks = [cell["command"][2] for cell in found["cells"]]
    assert frameworks == ["lmms_eval", "lmms_eval", "tango_vlmeval", "tango_vlmeval"]
    assert [cell["environment"]["WRAPPER"] for cell in found["cells"]] == ["vanilla", "tango"] * 2
    assert all("60" in cell["command"] for cell in found["cells"]) and not found["missing"]
    assert "FastV" in found["left_out"][0] and "above 0.500" in found["left_out"][0]
    assert main([*words, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all(line.startswith("WRAPPER=") for line in lines)
    config = ROOT / "configs/tango_tiny.yaml"
    assert lines[0].startswith("WRAPPER=vanilla TANGO_CONFIG= TANGO_ARGS= HF_HUB_OFFLINE=1")  # whatever is exported
    assert lines[1].startswith(f"WRAPPER=tango TANGO_CONFIG={config} TANGO_ARGS=retention_ratio=0.1 ")
    for line in lines:  # nothing that depends on the folder it is pasted in
        words_of = shlex.split(line)
        assert str(ROOT / "checkpoints/tango-tiny") in line and not [
            w for w in words_of if w.startswith((".", "build"))
        ]


def test_a_printed_command_commands_no_terminal(capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "a\x1b[31mb").symlink_to(ROOT / "checkpoints/tango-tiny")
    assert main(["sweep", "--model", str(tmp_path / "a\x1b[31mb"), "--ratio", "0.1", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.count("pretrained=") == 2 and "a\\x1b[31mb," in said and "\x1b" not in said


def test_sweep_of_ablations(capsys: Captured, tmp_path: Path) -> None:
    """Each file is Tango once more, at the smallest ratio, in each framework."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "topk.yaml").write_text("tango: {selection: topk}\n")
    (tmp_path / "parts" / "plain.yaml").write_text("tango: {merging: cosine}\n")
    (tmp_path / "grid.yaml").write_text("ablations: parts\nratios: [0.2, 0.1]\nframeworks: [lmms-eval, VLMEvalKit]\n")
    found = told(capsys, "sweep", str(tmp_path / "grid.yaml"), "--method", "tango", "--method", "topk", "--dry-run")
    names = [cell["name"].removeprefix("motionqa-").removeprefix("vlmeval-MotionQA_8frame-") for cell in found["cells"]]
    every = ["vanilla", "tango-0.2", "tango-0.1", "topk-0.2", "topk-0.1", "tango-0.1-plain", "tango-0.1-topk"]
    assert names == 2 * every
    plain, topk = (cell["environment"] for cell in found["cells"][5:7])
    assert plain["TANGO_CONFIG"] == str(tmp_path / "parts" / "plain.yaml")
    assert (topk["WRAPPER"], topk["TANGO_ARGS"]) == ("tango", "retention_ratio=0.1")
    one = str(tmp_path / "parts" / "topk.yaml")
    found = told(capsys, "sweep", "--ratio", "0.1", "--ablations", one, "--dry-run")
    assert [cell["name"] for cell in found["cells"]][2:] == ["motionqa-tango-0.1-topk"]
    (tmp_path / "parts" / "wrong.yaml").write_text("tango: {selction: topk}\n")
    for given, says in ((tmp_path / "none", "a folder of such"), (tmp_path / "parts", "selction")):
        assert main(["sweep", "--ablations", str(given), "--dry-run"]) == 2
        assert says in capsys.readouterr().err


def test_a_grid_means_paths_as_its_file(capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "grids").mkdir()
    grid = tmp_path / "grids" / "mine.yaml"
    grid.write_text("config: ../settings.yaml\nratios: 0.1\n")
    (tmp_path / "settings.yaml").write_text("expansion: 2\n")
    monkeypatch.chdir(tmp_path / "grids")
    for name in ("mine.yaml", str(grid)):
        found = told(capsys, "sweep", name, "--dry-run")
        assert found["cells"][1]["environment"]["TANGO_CONFIG"] == str(tmp_path / "settings.yaml")
    assert main(["sweep", "mine.yaml", "--config", "../settings.yml", "--dry-run"]) == 2  # an option: from here


def test_how_models_are_loaded_reaches_the_cells(capsys: Captured) -> None:
    words = ["sweep", "--framework", "lmms-eval", "--framework", "VLMEvalKit", "--ratio", "0.1", "--dry-run"]
    found = told(capsys, *words, "--dtype", "float32", "--attn-implementation", "eager")
    lmms, vlm = found["cells"][0]["command"], found["cells"][2]["command"]
    assert any(word.endswith(",dtype=float32,attn_implementation=eager") for word in lmms)
    assert " ".join(vlm).partition("--dtype ")[2].startswith("float32 --attn-implementation eager --data ")
    assert main([*words, "--dtype", "int3"]) == 2 and "float32, float16, bfloat16" in capsys.readouterr().err


def test_bfloat16_on_a_processor_without_it(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    for has in (True, False):
        monkeypatch.setattr("tango.sweeps.expand.cpu_has_bfloat16", lambda has=has: has)
        assert main(["sweep", "--ratio", "0.1", "--dtype", "bfloat16", "--dry-run"]) == 0
        assert ("no instructions for" in capsys.readouterr().err) != has


def test_a_mistyped_model_is_told_at_once(capsys: Captured) -> None:
    for name, near in (("checkpoints/tango-tny", "there is 'checkpoints/tango-tiny'"), ("nope", "no such folder")):
        assert main(["sweep", "--model", name, "--dry-run"]) == 2
        assert near in capsys.readouterr().err


def test_sweep_of_one_cell_by_its_number(capsys: Captured) -> None:
    words = ["sweep", "configs/sweeps/tango_tiny.yaml", "--dry-run"]
    every = told(capsys, *words)["cells"]
    assert [told(capsys, *words, "--cell", str(n))["cells"] for n in (1, 9)] == [[every[0]], [every[8]]]
    assert main([*words, "--cell", str(len(every) + 1)]) == 2
    assert f"--cell {len(every) + 1}: this grid has cells 1 to {len(every)}" in capsys.readouterr().err
    assert main([*words, "--cell", "0"]) == 2


def test_sweep_names_what_is_missing(capsys: Captured) -> None:
    words = ["sweep", "--framework", "VLMEvalKit", "--benchmark", "MVBench", "--model", "owner/name", "--dry-run"]
    found = told(capsys, *words, code=2)
    assert len(found["cells"]) == 4 and all("owner/name" in cell["command"] for cell in found["cells"])
    assert [line.partition(":")[0] for line in found["missing"]] == ["owner/name", "OpenGVLab/MVBench"]


def test_sweep_knows_models_and_benchmarks_in_both_frameworks(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(LMMS_MODELS) == set(FAMILIES)
    monkeypatch.setenv("NPROC", "2")
    words = ["sweep", "--framework", "lmms-eval", "--framework", "VLMEvalKit", "--frames", "16", "--ratio", "0.1"]
    words += ["--model", "Qwen/Qwen2.5-VL-7B-Instruct", "--model", "lmms-lab/LLaVA-Video-7B-Qwen2", "--limit", "5"]
    found = told(capsys, *words, "--benchmark", "mlvu_dev", "--benchmark", "MVBench", "--dry-run", code=2)
    lines = [" ".join(cell["command"]) for cell in found["cells"]]
    assert len(lines) == 16 and all("--nproc-per-node=2 -m " in line for line in lines)
    for model, lmms in (("Qwen2.5-VL", "qwen2_5_vl"), ("LLaVA-Video", "llava_vid")):
        ours = [line for line in lines if "pretrained=" in line and model in line]
        frames = "max_num_frames=16" if lmms == "qwen2_5_vl" else "max_frames_num=16"
        assert all(f"--model {lmms} " in line and frames in line for line in ours)
        assert [line.partition("--tasks ")[2].split()[0] for line in ours] == ["mlvu_dev"] * 2 + ["mvbench"] * 2
    assert [line.partition("--data ")[2].split()[0] for line in lines[4:8:2]] == ["MLVU_MCQ_16frame", "MVBench_16frame"]
    needed = [line.partition(":")[0] for line in found["missing"]]
    assert "google/siglip-so400m-patch14-384" in needed and "sy1998/MLVU_dev" in needed and "MLVU/MVLU" in needed


def test_sweep_runs_its_cells(capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def cell(folder: Path, given: Evaluation, **_: Any) -> Cell:
        method, ratio = given.method, given.ratio
        status = "import sys; sys.exit(1)" if method == "topk" else "pass"
        result = made_up(method, ratio, list(range(30)), 512 if ratio is None else 52)
        result["tokens"] = {"share_kept": 1.0 if ratio is None else 0.1}
        name = f"{method}-{ratio}"
        return Cell(name, name, [sys.executable, "-c", status], {}, given.samples, lambda run: result)

    monkeypatch.setattr("tango.sweeps.expand.lmms_cell", cell)
    words = ["sweep", "--ratio", "0.1", "--jobs", "2", "--output", str(tmp_path)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "unpruned" in said and "Tango 10 %" in said and f"tango results {tmp_path}" in said
    found = told(capsys, *words, "--method", "tango", "--method", "topk", code=1)
    assert [(one["method"], one["accuracy"]) for one in found["cells"]] == [("vanilla", 0.75), ("tango", 0.75)]
    assert (
        list(found["failed"]) == ["tango-tiny/topk-0.1"] and "exit status 1" in found["failed"]["tango-tiny/topk-0.1"]
    )
    assert set(found["cells"][0]["efficiency"]) >= set(TITLES)


def test_results_writes_tables(capsys: Captured, tmp_path: Path) -> None:
    cells = [made_up("vanilla", None, list(range(32)), 512), made_up("tango", 0.1, list(range(30)))]
    write_sweep(tmp_path / "sweep", cells)
    found = told(capsys, "results", str(tmp_path / "sweep"), "--output", str(tmp_path / "tables"))
    assert all(Path(file).is_file() for file in found["files"])
    assert {"README.md", "accuracy.csv"} <= {Path(file).name for file in found["files"]}


def test_memory_is_counted_from_the_last_reset() -> None:
    if not profile.reset_peak():
        pytest.skip("this system cannot count anew")
    before = profile.peak_since_reset()
    big = torch.ones(200 << 18)  # 200 MiB
    with_it = profile.peak_since_reset()
    del big
    assert with_it > before + 0.15 and profile.reset_peak()
    assert profile.peak_since_reset() < with_it
