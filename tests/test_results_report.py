"""Files of tables and plots from made-up sweeps."""

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_up import made_up, write_sweep
from rich.console import Console

from tango.cli import main
from tango.results import ResultsError, report, summaries, write_results

FILES = {"accuracy.csv", "accuracy.tex", "benchmarks.csv", "kinds.csv", "comparisons.csv", "efficiency.csv"}
FILES |= {"efficiency.tex", "README.md", "accuracy.png", "time.png", "parts.png"}


@pytest.fixture
def cells() -> list[dict[str, Any]]:
    return [
        made_up("vanilla", None, list(range(32)), 512, ttft=25.0),
        made_up("tango", 0.1, list(range(28))),
        made_up("random", 0.1, list(range(0, 28, 2))),
    ]


def read(file: Path) -> pd.DataFrame:
    return pd.read_csv(file, comment="#")


def test_folders_of_this_machine_stay_out_of_tables(tmp_path: Path, cells: list[dict[str, Any]]) -> None:
    for cell in cells:
        cell["provenance"]["model"]["pretrained"] = "/home/somebody/checkpoints/tiny"
        cell["provenance"]["sources"] = {"TANGO_CONFIG": "/home/somebody/tiny.yaml"}
    for file in write_results(cells, tmp_path, "tango results x").files:
        assert b"somebody" not in file.read_bytes(), file
    readme = (tmp_path / "README.md").read_text()
    assert "- model: tiny in float32, 8 frames; seed 1234; settings: tiny.yaml\n" in readme


def test_files_of_one_model(tmp_path: Path, cells: list[dict[str, Any]]) -> None:
    made = write_results(cells, tmp_path, "python scripts/demo.py", ["no result of motionqa-tango-0.2"], "MotionQA")
    assert {file.name for file in made.files} == FILES == {file.name for file in tmp_path.iterdir()}
    for name in ("accuracy", "benchmarks", "kinds", "efficiency", "comparisons"):
        text = (tmp_path / f"{name}.csv").read_text()
        assert text.startswith("# made by: python scripts/demo.py\n# model: checkpoints/tiny in float32, 8 frames")
    assert read(tmp_path / "accuracy.csv")["MotionQA"].tolist() == [80, 70, 35]
    times = read(tmp_path / "efficiency.csv")
    assert times["Peak_mem (GB)"].tolist() == [2.5] * 3 and times["Avg_Total_TTFT speed-up"].tolist() == [1, 2.5, 2.5]
    readme = (tmp_path / "README.md").read_text()
    for said in (
        "# MotionQA\n",
        "made by: python scripts/demo.py",
        "settings: configs/tiny.yaml",
        "commit: 0123456789ab;",
        "A processor (cpu, 2 threads)",
        "40 questions of MotionQA",
        "87.5 [",
        "-10.0 [",
        "against random 10 %: +35.0 [",
        "(10.2 % of the tokens kept against 10.2 %): Tango is better",
        "no result of motionqa-tango-0.2",
        "(3 in all)",
        "2.50x",
    ):
        assert said in readme, said
    assert "framework |" not in readme and "Both frameworks" not in readme and "ublished" not in readme
    tex = (tmp_path / "accuracy.tex").read_text()
    assert tex.startswith("% made by: python scripts/demo.py") and "\\toprule" in tex and "Tango 10 \\%" in tex
    for name in ("accuracy", "time", "parts"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_both_frameworks_in_one_table(tmp_path: Path, cells: list[dict[str, Any]]) -> None:
    other = [made_up("vanilla", None, list(range(32)), 512), made_up("tango", 0.1, list(range(28)))]
    for cell in other:
        cell["cell"] |= {"framework": "VLMEvalKit", "benchmark": "MotionQA_8frame"}
    made = write_results(cells + other, tmp_path, "x")
    assert {file.name for file in made.files} == FILES | {"agreement.csv"}
    readme = (tmp_path / "README.md").read_text()
    assert "lmms-eval and VLMEvalKit gave the same answers and scores and kept the same tokens" in readme
    assert "in all 2 cells that both ran" in readme and "| VLMEvalKit" in readme
    other[1]["samples"][3] |= {"prediction": "C", "kept": ["others"]}
    write_results(cells + other, tmp_path, "x")
    del other[0]["samples"][0]["kept"]
    write_results(cells + other, tmp_path, "x")
    readme = (tmp_path / "README.md").read_text()
    assert "gave the same" not in readme and "the kept tokens of unknown differ" in readme
    assert "Tango 10 % on MotionQA: of 40 questions, 1 answers, 0 scores and the kept tokens of 1 differ" in readme
    console = Console(file=io.StringIO(), width=80, record=True)
    console.print(*summaries(cells + other))
    text = console.export_text()
    assert "VLMEvalKit" in text and "10.2" in text and "-10.0 [" in text and "87.5 [" in text
    assert "…" not in text  # all of it in a terminal of 80 columns
    write_results(cells, tmp_path, "x")
    assert not (tmp_path / "agreement.csv").exists()  # of what is not there any more


def test_times_of_a_busy_machine_are_told(tmp_path: Path, cells: list[dict[str, Any]]) -> None:
    quiet = {"start": 0.2, "end": 1.9, "cores": 2, "waited": 0.01}
    for cell in cells[:2]:
        cell["provenance"]["load"] = quiet
        cell["efficiency"]["spread"] = {"Avg_Total_TTFT": 1.25, "Avg_ViT_Time": None}
    made = write_results(cells, tmp_path, "x")
    readme = (tmp_path / "README.md").read_text()
    assert (
        "load at the start and end of cells was 0.2 to 1.9 on 2 cores, and they waited for a core for up to 1 %"
        in readme
    )
    assert not made.remarks and "25.00 ± 1.25" in readme and "10.00 ± 1.25" in readme
    times = read(tmp_path / "efficiency.csv")
    assert times["Avg_Total_TTFT sd"].tolist()[:2] == [1.25, 1.25] and times["load_waited"].tolist()[:2] == [0.01, 0.01]
    cells[1]["provenance"]["load"] = {"start": 9.1, "end": 14.2, "cores": 2, "waited": 0.43}
    made = write_results(cells, tmp_path, "x")
    assert made.remarks == [
        "ran on a busy machine, so that times say little: Tango 10 % on MotionQA in lmms-eval (load 9.1 to 14.2 on 2 "
        "cores, 43 % of the time waiting for a core)"
    ]
    assert made.remarks[0] in (tmp_path / "README.md").read_text()
    for cell in cells:
        cell["provenance"]["load"] = cells[1]["provenance"]["load"]
    (remark,) = write_results(cells, tmp_path, "x").remarks  # one, however many there are
    assert remark.count("43 %") == 2 and f"and {len(cells) - 2} more cells, see load_waited in eff" in remark
    assert (read(tmp_path / "efficiency.csv")["load_waited"] == 0.43).sum() == len(cells)


def test_frameworks_whose_times_are_far_apart_are_told(tmp_path: Path) -> None:
    cells = [made_up("tango", 0.1, [1], ttft=1792.0), made_up("tango", 0.1, [1], framework="VLMEvalKit", ttft=367.0)]
    assert write_results(cells, tmp_path, "x").remarks == [
        "Tango 10 % on MotionQA: lmms-eval took 1792 ms to the first token, VLMEvalKit 367 ms on the same machine, so "
        "one of them was disturbed or did something else"
    ]
    cells[1]["provenance"]["device"]["name"] = "Another"  # times of different machines say nothing
    assert not write_results(cells, tmp_path, "x").remarks
    cells[1] = made_up("tango", 0.1, [1], framework="VLMEvalKit", ttft=1500.0)
    assert not write_results(cells, tmp_path, "x").remarks


def test_numbers_stand_beside_every_interval(tmp_path: Path, cells: list[dict[str, Any]]) -> None:
    for cell in cells:
        cell["samples"] = [row | {"score": 1.0} for row in cell["samples"][:6]]
    write_results(cells, tmp_path, "x")
    readme = (tmp_path / "README.md").read_text()
    assert "100.0 [100.0, 100.0]" not in readme and "[+0.0, +0.0]" not in readme
    assert readme.count("| 100.0 [61.0, 100.0] |") == 3 and "Tango is not distinguishable (n = 6)" in readme
    assert readme.count("|   6 |") == 3 and "colour (n = 3)" in readme
    assert "& 6 & 100.0 [61.0, 100.0] &" in (tmp_path / "accuracy.tex").read_text()
    for name in ("accuracy", "benchmarks", "kinds", "comparisons"):
        assert (read(tmp_path / f"{name}.csv")["questions"] == (3 if name == "kinds" else 6)).all()


def test_without_the_unpruned_model_there_is_nothing_to_compare_with(tmp_path: Path, cells: list[Any]) -> None:
    write_results(cells[1:2], tmp_path, "x")
    assert "share_kept" not in read(tmp_path / "accuracy.csv")
    readme = (tmp_path / "README.md").read_text()
    assert "share kept (%)" not in readme and "nothing of that kind for Tango 10 % on MotionQA" in readme


def test_a_folder_of_several_models_and_benchmarks(tmp_path: Path, cells: list[dict[str, Any]]) -> None:
    write_sweep(tmp_path / "in" / "a", cells)
    large = {"model": "llava-onevision-qwen2-7b-ov", "framework": "VLMEvalKit", "frames": 32}
    names = ("Video-MME_32frame", "MVBench_32frame", "LongVideoBench_32frame", "MLVU_MCQ_32frame")
    runs = [("vanilla", None, 36), ("tango", 0.1, 34), ("tango", 0.2, 35)]
    write_sweep(
        tmp_path / "in" / "b",
        [
            made_up(m, r, list(range(n)), 512 if r is None else 52, benchmark=b, **large)
            for b in names
            for m, r, n in runs
        ],
    )
    made = report([tmp_path / "in"], tmp_path / "out")
    folders = {file.parent.name for file in made.files}
    assert folders == {"out", "tiny_8frame_float32", "llava-onevision-qwen2-7b-ov_32frame_float32"} and not made.remarks
    every = (tmp_path / "out" / "README.md").read_text()
    (unpruned,) = [line for line in every.splitlines() if line.startswith("| llava") and "unpruned" in line]
    assert [cell.strip() for cell in unpruned.split("|")[-8:-1]] == ["90.0"] * 4 + ["-", "-", ""], unpruned
    folder = tmp_path / "out" / "llava-onevision-qwen2-7b-ov_32frame_float32"
    found = read(folder / "accuracy.csv").set_index("name")
    assert found.columns.tolist()[5:10] == ["Video-MME", "MVBench", "LongVideoBench", "MLVU", "average"]
    assert found["average"].tolist() == [90, 85, 87.5]
    assert found.loc["Tango 10 %", "share_kept"] == pytest.approx(100 * 34 / 36, abs=1e-4)
    published = read(folder / "published.csv").set_index("quantity")
    assert published.loc["Avg_Total_TTFT", ["VLMEvalKit", "published"]].tolist() == [10, 562.8]
    readme = (folder / "README.md").read_text()
    assert "562.80 (8 x A800, lmms-eval)" in readme and "of MLVU" in readme and "## MVBench by kind" in readme
    assert f"made by: tango results {tmp_path / 'in'} --output {tmp_path / 'out'}" in readme
    assert "8 x A800" in (folder / "published.tex").read_text()


def test_what_cannot_be_read_is_named(tmp_path: Path, cells: list[dict[str, Any]]) -> None:
    write_sweep(tmp_path / "good", cells)
    short = made_up("topk", 0.1, [1])
    short["samples"] = short["samples"][:2]
    twice = made_up("dycoke", 0.1, [1])
    twice["samples"][1]["id"] = "q0"
    odd = made_up("random", 0.1, [1])
    odd["samples"][3]["score"] = "x"
    write_sweep(
        tmp_path / "bad", [made_up("topk", 0.2, [1]), short, twice, {"cell": {}}, [], made_up("vanilla", None, []), odd]
    )
    place = tmp_path / "bad" / "cells"
    file = place / "00" / "cell.json"
    file.write_text(file.read_text()[:100])
    (place / "05" / "cell.json").rename(place / "05" / "cell.json.partial")
    made = report([tmp_path / "good", tmp_path / "good", tmp_path / "bad"], tmp_path / "out")
    said = "\n".join(made.remarks)
    assert len(made.remarks) == 7
    for expected in (
        "00/cell.json: damaged (",
        "top-k saliency 10 % on MotionQA in lmms-eval answered 2 questions, unpruned 40",
        "02/cell.json: it answers a question twice",
        "03/cell.json: not a finished cell: it lacks cell.framework, cell.model",
        "04/cell.json: not a finished cell: []: expected a mapping",
        "06/cell.json: not a finished cell: samples[3].score = 'x': expected a number; run its sweep again",
        "05: not finished, or failed",
    ):
        assert expected in said, expected
        assert expected in (tmp_path / "out" / "tiny_8frame_float32" / "README.md").read_text()
    console = Console(file=io.StringIO(), width=100, record=True)
    made.show(console)
    assert "note: top-k saliency 10 %" in console.export_text(clear=False) and "written:" in console.export_text()


def test_folders_without_cells(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="there is no folder"):
        report([tmp_path / "nowhere"], tmp_path / "out")
    (tmp_path / "cells" / "a").mkdir(parents=True)
    (tmp_path / "cells" / "a" / "cell.json").write_text("{")
    with pytest.raises(ResultsError, match=r"no finished cells below .*cells/<name>/cell.json\n.*damaged"):
        report([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(
    tmp_path: Path, cells: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sweep(tmp_path / "sweep", cells)
    monkeypatch.chdir(tmp_path)

    assert (
        main(["results", "sweep", "--output", "out"]) == 0
        and "written: out/tiny_8frame_float32/" in capsys.readouterr().out
    )
    assert json.loads((tmp_path / "sweep" / "cells" / "00" / "cell.json").read_text()) == cells[0]
    assert main(["results", "nowhere"]) == 2 and capsys.readouterr().err == "tango: there is no folder 'nowhere'\n"
