"""`tango verify` on runs whose numbers were reckoned by hand, whole and with one thing changed at a time."""

import json
import math
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up import made_up, write_sweep

from tango.cli import main
from tango.results import ResultsError, report
from tango.results.claims import Outcome
from tango.results.recount import drawn_again, ends, times, tokens
from tango.results.verify import verify
from tango.runs.provenance import code_fingerprint
from tango.runs.summary import TITLES
from tango.sweeps import lmms_cells, vlmeval_cells

ROOT = Path(__file__).parents[1]
QUESTIONS = 8
RIGHT = {None: {0, 1, 2, 3, 4, 5}, 0.1: {0, 1, 2, 3}}  # by retention ratio: 75 and 50 % of the answers
# By hand of the records below: 8 of .25 s each, the first (1 s of vision) not in the averages, 3 tokens in .02 s.
TIMES = {
    "Total_runtime": 2.0, "Total_GPU_runtime": 8 * 0.2, "Peak_mem": 1.5, "Avg_ViT_Time": 100.0, "Avg_Other_Time": 20.0,
    "Avg_LLM_Prefill_Time": 30.0, "Avg_Total_TTFT": 150.0, "Avg_Decoding_Throughput": 100.0,
}  # fmt: skip
COUNTS = {"samples_timed": 8, "samples_averaged": 7, "cold_samples": 1, "ranks": 1}


def record(place: int, name: Any, task: str, ratio: float | None) -> dict[str, Any]:
    after = 100 if ratio is None else 10
    timing = {"vit_s": 0.1 if place else 1.0, "other_s": 0.02, "prefill_s": 0.03, "decode_s": 0.02, "generate_s": 0.2}
    video = {"frames": 4, "tokens_before": 100, "tokens_after": after} | ({"kept": f"k{place}"} if ratio else {})
    counts = {"video_tokens_before": 100, "video_tokens_after": after, "video_tokens_average": float(after)}
    return {
        "task": task, "doc_id": name, "repeat": 0, "response": f"reply {place}", "failure": None, "tries": 1,
        "timing": timing | {"new_tokens": 3}, "tokens": {"input_tokens": 120, "output_tokens": 3, **counts},
        "videos": [video], "rank": 0, "wall_s": 0.25, "peak_mem_gb": 1.5 if place else 1.25, "cold": place == 0,
        "resumed": False,
    }  # fmt: skip


def write_cell(sweep: Path, framework: str, ratio: float | None) -> Path:
    """A finished cell with all the files that its run leaves; returns its folder."""
    ours = framework == "lmms-eval"
    method = "vanilla" if ratio is None else "tango"
    place = sweep / "cells" / f"{framework}-{method}"
    folder = place / "run" / "tiny"
    (place / "run" / "journal").mkdir(parents=True)
    folder.mkdir()
    ids = [f"q{i}" for i in range(QUESTIONS)]
    records = [record(i, i if ours else ids[i], "motionqa", ratio) for i in range(QUESTIONS)]
    lines = [json.dumps({"key": str(i), **one}) + "\n" for i, one in enumerate(records)]
    (place / "run" / "journal" / f"run{ratio}-rank0.jsonl").write_text("".join(lines))
    summary = made_up(method, ratio, [], framework=framework)["provenance"]
    summary |= {"method": method, "code": code_fingerprint(), "run": f"run{ratio}", "n_samples": 8, "n_failed": 0}
    summary |= {"n_resumed": 0, "failed": [], "efficiency": TIMES | COUNTS, "samples": records}
    after = 8 * (100 if ratio is None else 10)
    summary["tokens"] = {"video_tokens_before": 800, "video_tokens_after": after, "video_tokens_average": float(after)}
    summary["tokens"] |= {"share_kept": after / 800, "samples": 8}
    (folder / "1_efficiency.json").write_text(json.dumps(summary))
    scored = [
        {
            "id": ids[i],
            "kind": ("colour", "count")[i % 2],
            "answer": "B",
            "prediction": "B" if i in RIGHT[ratio] else "C",
        }
        for i in range(QUESTIONS)
    ]
    scores = [float(i in RIGHT[ratio]) for i in range(QUESTIONS)]
    if ours:
        logs = [
            {"doc_id": i, "filtered_resps": f"reply {i}", "accuracy": one | {"score": score}, "token_counts":
             [{name: records[i]["tokens"][name] for name in ("output_tokens", "video_tokens_after")}]}
            for i, (one, score) in enumerate(zip(scored, scores, strict=True))
        ]  # fmt: skip
        (folder / "1_samples_motionqa.jsonl").write_text("".join(json.dumps(log) + "\n" for log in logs))
        share = len(RIGHT[ratio]) / QUESTIONS
        (folder / "1_results.json").write_text(json.dumps({"results": {"motionqa": {"accuracy,none": share}}}))
    else:
        table = pd.DataFrame(scored).rename(columns={"id": "index", "prediction": "choice"})
        table.assign(prediction=[f"reply {i}" for i in range(QUESTIONS)], score=scores).to_excel(
            folder / "1_score.xlsx", index=False
        )
    what = {"framework": framework, "model": "tiny", "benchmark": "motionqa" if ours else "MotionQA_8frame"}
    what |= {"method": method, "ratio": ratio, "variant": None}
    collect = lmms_cells.collect if ours else vlmeval_cells.collect
    cell = {"identity": f"identity {ratio}", "cell": what, **collect(place / "run")}
    (place / "cell.json").write_text(json.dumps(cell))
    (place / "identity").write_text(f"identity {ratio}")
    return place


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep of two frameworks, and its tables."""
    folder = tmp_path_factory.mktemp("whole")
    for framework in ("lmms-eval", "VLMEvalKit"):
        for ratio in (None, 0.1):
            write_cell(folder / "sweep", framework, ratio)
    report([folder / "sweep"], folder / "tables")
    return folder


@pytest.fixture
def results(whole: Path, tmp_path: Path) -> Path:
    """A copy of it to be changed. The tables still name the sweep that they were made of; it is the copy's here."""
    copy = shutil.copytree(whole, tmp_path / "copy")
    for file in copy.glob("tables/*/*.*"):
        if file.suffix != ".png":
            file.write_text(file.read_text().replace(str(whole), str(copy)))
    return copy


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text, f"{file} has no {old!r}"
    file.write_text(text.replace(old, new, 1))


def change_json(file: Path, make: Callable[[Any], Any]) -> None:
    content = json.loads(file.read_text())
    make(content)
    file.write_text(json.dumps(content))


def differing(outcome: Outcome) -> list[tuple[str, str, str, str]]:
    return [(Path(one.file).name, one.what, one.says, one.gives) for one in outcome.differ]


def test_all_agrees(results: Path) -> None:
    found = verify([results])
    assert not found.differ and not found.unchecked
    # 4 cells of 8 records of 14 fields against journals alone are 448, and each is compared in other ways too.
    assert found.agree > 1_000
    assert any("accuracy.png" in note for note in found.notes)
    alone = verify([results / "tables"])  # the cells are those of the sweep that the tables name
    assert not alone.differ and alone.agree == found.agree


def test_arithmetic_by_hand() -> None:
    records = [record(i, i, "t", 0.1) for i in range(8)]
    found = times(records)
    assert all(sd < 1e-9 for sd in found.pop("spread").values())
    assert found == pytest.approx(TIMES | COUNTS)
    for one, seconds in zip(records[1:4], (0.1, 0.2, 0.3), strict=True):
        one["timing"]["vit_s"] = seconds
    spread = times(records[1:4])["spread"]  # of three numbers a tenth of a second apart, over two
    assert spread["Avg_ViT_Time"] == spread["Avg_Total_TTFT"] == pytest.approx(100)
    assert times(records[:1])["spread"]["Avg_ViT_Time"] is None
    assert tokens(records)["share_kept"] == 0.1
    failed = records[1] | {"failure": "it broke", "timing": None, "tokens": {}, "wall_s": 5.0}
    assert times([records[0], failed])["Total_runtime"] == 5.25  # time that was lost counts
    assert times([records[0], failed])["Avg_ViT_Time"] == 1000  # without another one the cold sample is all there is
    nothing = dict.fromkeys((*TITLES, *COUNTS), None) | dict.fromkeys(COUNTS, 0)
    empty = times([])
    assert set(empty.pop("spread").values()) == {None} and empty == nothing | {
        "Total_runtime": 0.0,
        "Total_GPU_runtime": 0.0,
    }


def test_the_second_draw_is_a_paired_bootstrap() -> None:
    rng = np.random.default_rng(2)
    other = (rng.random(900) < 0.7).astype(float)
    one = np.where(rng.random(900) < 0.1, 1 - other, other)
    differences, shares = drawn_again([(one, other)])  # four corners of half a question say little beside 900
    assert differences.std() == pytest.approx(100 * (one - other).std() / 30, rel=0.08)
    assert shares.mean() == pytest.approx(100 * one.mean() / other.mean(), rel=0.005)


LMMS, VLM = "sweep/cells/lmms-eval-tango", "sweep/cells/VLMEvalKit-tango"


def flip(file: Path) -> None:
    change_json(file, lambda cell: cell["samples"][6].update(score=1.0))


@pytest.mark.parametrize("unpruned, pruned", [((), (1, 2)), ((), ()), (range(QUESTIONS), ()), (range(QUESTIONS),) * 2])
def test_all_right_and_all_wrong(unpruned: Any, pruned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share of nothing is left empty, with its interval, in the tables and when they are counted again."""
    monkeypatch.setitem(RIGHT, None, set(unpruned))
    monkeypatch.setitem(RIGHT, 0.1, set(pruned))
    for framework in ("lmms-eval", "VLMEvalKit"):
        for ratio in (None, 0.1):
            write_cell(tmp_path / "sweep", framework, ratio)
    report([tmp_path / "sweep"], tmp_path / "tables")
    found = verify([tmp_path])
    assert not found.differ and not found.unchecked


def test_a_changed_sample(results: Path) -> None:
    change(results / LMMS / "run/tiny/1_samples_motionqa.jsonl", '"score": 0.0', '"score": 1.0')
    found = differing(verify([results]))
    assert ("1_samples_motionqa.jsonl", "sample q4: score", "1.0", "0.0") in found  # it chose C, and B is right
    assert ("cell.json", "sample q4: score", "0.0", "1.0") in found
    assert ("1_results.json", "motionqa: accuracy", "50.0", "62.5") in found
    assert ("accuracy.csv", "lmms-eval, Tango 10 %: MotionQA", "50.0000", "62.5000") in found
    shown = [
        (says[:6], gives[:9]) for name, what, says, gives in found if what == "Tango 10 %, lmms-eval: accuracy (%)"
    ]
    assert shown == [("50.0 [", "62.5000 [")] * 2  # in README.md and accuracy.tex


def test_a_changed_reply_choice_or_time(results: Path) -> None:
    change(results / LMMS / "run/tiny/1_samples_motionqa.jsonl", "reply 3", "another")
    table = results / VLM / "run/tiny/1_score.xlsx"
    sheet = pd.read_excel(table)
    sheet.loc[2, "choice"] = "A"
    sheet.to_excel(table, index=False)
    change(results / LMMS / "run/journal/run0.1-rank0.jsonl", '"prefill_s": 0.03', '"prefill_s": 0.01')
    found = differing(verify([results / "sweep"]))
    assert ("1_samples_motionqa.jsonl", "sample q3: reply", "another", "reply 3") in found
    assert ("1_score.xlsx", "sample q2: score", "1.0", "0.0") in found
    assert ("cell.json", "sample q2: prediction", "B", "A") in found
    assert any("sample motionqa 0: timing, against the journal" in what for _, what, *_ in found)
    assert len(found) == 4


@pytest.mark.parametrize(
    "path, make, what",
    [
        ("cell.json", lambda cell: cell["samples"][6].update(score=1.0), "sample q6: score"),
        ("cell.json", lambda cell: cell["samples"][1].update(kept=["other"]), "sample q1: kept"),
        ("cell.json", lambda cell: cell["samples"][1].update(tokens_after=9), "sample q1: tokens_after"),
        ("cell.json", lambda cell: cell["efficiency"].update(Peak_mem=1.4), "efficiency: Peak_mem"),
        ("cell.json", lambda cell: cell["tokens"].update(share_kept=0.2), "tokens: share_kept"),
        ("cell.json", lambda cell: cell["provenance"].update(seed=7), "provenance: seed"),
        ("cell.json", lambda cell: cell["cell"].update(ratio=0.2), "ratio, against its own provenance"),
        ("cell.json", lambda cell: cell.update(identity="of another"), "fingerprint"),
        ("run/tiny/1_efficiency.json", lambda run: run["efficiency"].update(Avg_Total_TTFT=1.0), "efficiency: Avg_Tot"),
        ("run/tiny/1_efficiency.json", lambda run: run["samples"][2]["videos"][0].update(kept="x"), "sample q2: kept"),
        ("run/tiny/1_efficiency.json", lambda run: run["samples"][2]["tokens"].update(video_tokens_after=9), "q2: tok"),
    ],
)  # fmt: skip
def test_a_changed_cell_or_summary(path: str, make: Callable[[Any], Any], what: str, results: Path) -> None:
    for folder in (LMMS, VLM):
        shutil.copy(results / folder / path, results / "before")
        change_json(results / folder / path, make)
        found = verify([results / "sweep"])
        assert any(what in one.what for one in found.differ), found.differ
        assert all(folder in one.file for one in found.differ)
        shutil.copy(results / "before", results / folder / path)
    assert not verify([results / "sweep"]).differ


def test_a_fingerprint_that_changed(results: Path) -> None:
    (results / LMMS / "identity").write_text("of another run")
    (results / VLM / "run/journal/run0.1-rank0.jsonl").rename(other := results / VLM / "run/journal/run7-rank0.jsonl")
    there = f"run7-rank0.jsonl ({other.stat().st_size} bytes)"
    found = differing(verify([results / "sweep"]))
    assert found == [
        ("journal", "journal of the run", there, "samples in run0.1-rank0.jsonl"),
        ("identity", "fingerprint", "of another run", "identity 0.1"),
    ]


def drop_line(file: Path, number: int) -> None:
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:number] + lines[number + 1 :]))


def test_a_missing_sample_in_each_place(results: Path) -> None:
    drop_line(results / LMMS / "run/tiny/1_samples_motionqa.jsonl", 5)
    drop_line(results / LMMS / "run/journal/run0.1-rank0.jsonl", 7)
    sheet = pd.read_excel(results / VLM / "run/tiny/1_score.xlsx")
    sheet.drop(index=0).to_excel(results / VLM / "run/tiny/1_score.xlsx", index=False)
    vanilla = results / "sweep/cells/lmms-eval-vanilla"
    change_json(vanilla / "cell.json", lambda cell: cell["samples"].pop(3))
    change_json(
        results / "sweep/cells/VLMEvalKit-vanilla/run/tiny/1_efficiency.json", lambda run: run["samples"].pop(3)
    )
    found = differing(verify([results / "sweep"]))
    assert ("1_efficiency.json", "sample motionqa 5", "a record", "none in 1_samples_motionqa.jsonl") in found
    assert ("journal", "sample motionqa 7", "missing", "a record in 1_efficiency.json") in found
    assert ("1_efficiency.json", "sample motionqa q0", "a record", "none in 1_score.xlsx") in found
    assert ("cell.json", "sample q3", "nothing", "a row") in found
    assert ("1_score.xlsx", "sample q3", "a score", "no record in 1_efficiency.json") in found
    assert ("1_efficiency.json", "n_samples", "8", "7") in found


def test_a_sample_twice_in_each_place(results: Path) -> None:
    log = results / LMMS / "run/tiny/1_samples_motionqa.jsonl"
    log.write_text(log.read_text() + log.read_text().splitlines()[2] + "\n")
    sheet = pd.read_excel(results / VLM / "run/tiny/1_score.xlsx")
    pd.concat([sheet, sheet[:1]]).to_excel(results / VLM / "run/tiny/1_score.xlsx", index=False)
    vanilla = results / "sweep/cells/lmms-eval-vanilla/cell.json"
    change_json(vanilla, lambda cell: cell["samples"].append(cell["samples"][0]))
    run = results / "sweep/cells/VLMEvalKit-vanilla/run/tiny/1_efficiency.json"
    change_json(run, lambda content: content["samples"].append(content["samples"][0]))
    found = differing(verify([results / "sweep"]))
    assert ("1_samples_motionqa.jsonl", "sample q2", "twice", "once") in found
    assert ("1_score.xlsx", "sample q0", "twice", "once") in found
    assert ("1_efficiency.json", "sample motionqa q0 0", "twice", "once") in found
    assert any(what == "the cell" and "answers a question twice" in gives for _, what, _, gives in found)


def tables(results: Path) -> Path:
    return next((results / "tables").iterdir())


@pytest.mark.parametrize(
    "name, old, new, what",
    [
        ("accuracy.csv", "VLMEvalKit,Tango 10 %,tango,,0.1000,10.0000,50.0000", "VLMEvalKit,Tango 10 %,tango,,0.1000,"
         "10.0000,50.0001", "VLMEvalKit, Tango 10 %: MotionQA"),
        ("accuracy.csv", ",-25.0000,", ",-24.0000,", "lmms-eval, Tango 10 %: difference"),
        ("benchmarks.csv", ",8,50.0000", ",9,50.0000", "MotionQA, lmms-eval, Tango 10 %: questions"),
        ("kinds.csv", "count,4,75.0000", "count,4,70.0000", "MotionQA, lmms-eval, unpruned, count: accuracy"),
        ("agreement.csv", ",8,0,0,0,", ",8,0,1,0,", ": answers_differ"),
        ("efficiency.csv", "150.0000", "150.0010", ": Avg_Total_TTFT (ms)"),
        ("efficiency.csv", ",tango,,0.1000,", ",tango,,0.2000,", "lmms-eval, Tango 10 %: retention_ratio"),
        ("kinds.csv", ",tango,,0.1000,", ",topk,,0.1000,", "lmms-eval, Tango 10 %, colour: method"),
        ("accuracy.csv", ",tango,,0.1000,", ",tango,odd,0.1000,", "lmms-eval, Tango 10 %: variant"),
        ("README.md", "10.0 |", "10.1 |", "Tango 10 %, lmms-eval: tokens kept (%)"),
        ("README.md", "| 75.0 |", "| 75.1 |", "unpruned, lmms-eval"),
        ("README.md", " 150.00 |", " 150.01 |", "Avg_Total_TTFT (ms)"),
        ("README.md", " 1.00x |", " 1.10x |", "speed-up"),
        ("README.md", "over 8 questions of", "over 9 questions of", "questions of MotionQA"),
        ("README.md", "of 8 questions, 0 answers", "of 8 questions, 1 answers", "unpruned on MotionQA: answers_differ"),
        ("README.md", "(4 in all)", "(5 in all)", "first samples"),
        ("README.md", "seed 1234", "seed 1235", "where it comes from: model"),
        ("accuracy.tex", "-25.0 [", "-25.1 [", "difference (points)"),
        ("efficiency.tex", "100.00 ", "101.00 ", ": Avg_"),
    ],
)  # fmt: skip
def test_a_changed_digit_of_a_table(name: str, old: str, new: str, what: str, results: Path) -> None:
    file = tables(results) / name
    if old[:1] == "|":
        text, count = re.subn(r"\|( +)75\.0 \|", r"|\g<1>75.1 |", file.read_text(), count=1)
        assert count
        file.write_text(text)
    else:
        change(file, old, new)
    found = verify([results])
    assert len(found.differ) == 1 and what in found.differ[0].what and found.differ[0].file == str(file), found.differ


def test_an_end_of_an_interval(results: Path) -> None:
    text = (tables(results) / "accuracy.csv").read_text()
    low = re.search(r"-25\.0000,(-\d+\.\d+),", text)
    assert low is not None
    change(tables(results) / "accuracy.csv", low[1], f"{float(low[1]) + 0.01:.4f}")
    assert [what for _, what, *_ in differing(verify([results]))] == ["lmms-eval, Tango 10 %: difference_low"]


def test_a_bootstrap_that_is_wrong_is_seen(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tango.results import recount
    from tango.results.statistics import Interval

    def narrow(pairs: Any) -> tuple[Interval, Interval]:
        return Interval(-25.0, -25.1, -24.9), Interval(66.7, 66.6, 66.8)

    monkeypatch.setattr(recount, "bootstrap", narrow)
    monkeypatch.setattr("tango.results.tables.bootstrap", narrow)
    report([results / "sweep"], results / "tables")
    found = differing(verify([results]))
    assert any(what == "lmms-eval, Tango 10 %: difference_low" and float(gives) < -40 for _, what, _, gives in found)


def test_a_line_twice_or_left_out(results: Path) -> None:
    file = tables(results) / "kinds.csv"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines[:-1], lines[-2]]))
    found = differing(verify([results]))
    assert [(what, says) for _, what, says, _ in found] == [
        ("MotionQA, VLMEvalKit, Tango 10 %, colour", "this line twice"),
        ("MotionQA, VLMEvalKit, Tango 10 %, count", "nothing"),
    ]
    (tables(results) / "agreement.csv").unlink()
    assert ("agreement.csv", "the file", "is missing", "2 lines") in differing(verify([results]))


def test_a_table_older_than_its_cells(results: Path) -> None:
    for path in ("cell.json", "run/tiny/1_efficiency.json"):
        change(results / LMMS / path, "2026-01-01T00:00:00", "2026-03-01T00:00:00")
    found = verify([results])
    # In the comment of each of 5 CSV and 2 LaTeX files, and in README.md.
    assert len(found.differ) == 8 and all("when its cells ran" in one.what for one in found.differ)
    assert "to 2026-01-01" in found.differ[0].says and "to 2026-03-01" in found.differ[0].gives
    assert not verify([results / "sweep"]).differ


def test_a_cell_that_the_tables_lack_or_that_is_gone(results: Path) -> None:
    shutil.move(results / LMMS, results / "aside")
    found = verify([results])
    gone = [one for one in found.unchecked if Path(one.file).name == "accuracy.csv"]
    assert [(one.what, one.gives) for one in gone] == [("lmms-eval, Tango 10 %", "no finished cell of it is there")]
    shutil.move(results / "aside", results / LMMS)
    shutil.rmtree(tables(results))
    report([results / "sweep"], results / "tables")
    write_cell(results / "more", "lmms-eval", 0.1)
    for file in (results / "more").glob("cells/*/**/*.json"):
        file.write_text(file.read_text().replace('"tango"', '"topk"'))
    shutil.move(results / "more/cells/lmms-eval-tango", results / "sweep/cells/lmms-eval-topk")
    said = [(Path(one.file).name, one.what, one.gives) for one in verify([results]).differ]
    later = "a finished cell: the table is older, or lacks it"
    assert ("accuracy.csv", "lmms-eval, top-k saliency 10 %", later) in said


def test_another_version_is_told_and_still_counted(results: Path) -> None:
    for path in ("cell.json", "run/tiny/1_efficiency.json"):
        change(results / LMMS / path, code_fingerprint(), "0123456789")
        change(results / LMMS / path, '"tango": "0.1.0"', '"tango": "0.0.9"')
    found = verify([results / "sweep"])
    assert not found.differ and any("made by another code than this one (tango 0.0.9)" in note for note in found.notes)
    said = [what for name, what, *_ in differing(verify([results])) if name == "README.md"]
    assert said == ["where it comes from: commit"]  # the tables name another version


def shift(file: Path, key: list[str], column: str) -> None:
    """Add 0.01 to a number of a CSV file, in the line that holds these words."""
    comment = "".join(line for line in file.read_text().splitlines(keepends=True) if line.startswith("#"))
    frame = pd.read_csv(file, comment="#", dtype=str, keep_default_na=False)
    place = next(i for i, words in enumerate(frame.values.tolist()) if set(key) <= set(words))
    frame.loc[place, column] = f"{float(frame.loc[place, column]) + 0.01:.4f}"
    file.write_text(comment + frame.to_csv(index=False))


def test_without_samples_nothing_is_called_right(results: Path, tmp_path: Path) -> None:
    shutil.rmtree(results / "sweep")
    found = verify([results])
    assert not found.differ and [one.what for one in found.unchecked] and "no samples" in found.unchecked[0].gives
    change(tables(results) / "README.md", "10.0 |", "10.1 |")  # what is in several files is held against one another
    for name in ("accuracy.csv", "benchmarks.csv"):
        change(tables(results) / name, ",-25.0000,", ",-24.0000,")
    said = {(name, what) for name, what, *_ in differing(verify([results]))}
    assert ("README.md", "Tango 10 %, lmms-eval: tokens kept (%)") in said
    assert ("accuracy.csv", "lmms-eval, Tango 10 %: difference") in said
    assert ("benchmarks.csv", "MotionQA, lmms-eval, Tango 10 %: difference") in said
    line = "MotionQA, lmms-eval, Tango 10 %"
    for name, column, key, where in (
        ("kinds", "accuracy_low", f"{line}, count", f"{line}, count"),
        ("benchmarks", "accuracy_high", line, line),
        ("benchmarks", "tokens_kept", line, "lmms-eval, Tango 10 %"),  # in accuracy.csv
    ):
        file = tables(results) / f"{name}.csv"
        before = file.read_text()
        shift(file, key.split(", "), column)
        changed = [what for _, what, *_ in differing(verify([results]))]
        assert f"{where}: {column}" in changed
        file.write_text(before)
    write_sweep(tmp_path / "bare", [made_up("vanilla", None, [1]), made_up("tango", 0.1, [1, 2])])
    report([tmp_path / "bare"], tmp_path / "of_bare")
    bare = verify([tmp_path / "bare", tmp_path / "of_bare"])
    assert not bare.differ and sum("no records of a run" in one.gives for one in bare.unchecked) == 2
    shutil.rmtree(tmp_path / "bare")


def test_wilsons_ends_by_their_equation() -> None:
    assert ends(100, 6) == pytest.approx((61.0, 100.0), abs=0.05) and ends(0, 6) == pytest.approx((0, 39.0), abs=0.05)
    for percent, n in ((37.5, 8), (90.0, 720)):
        for end in ends(percent, n):
            share, p = percent / 100, end / 100
            assert abs(share - p) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / n), rel=1e-6)


def test_the_table_over_several_models(results: Path) -> None:
    for framework in ("lmms-eval", "VLMEvalKit"):
        for ratio in (None, 0.1):
            place = write_cell(results / "second", framework, ratio)
            for file in (place / "cell.json", place / "run/tiny/1_efficiency.json"):
                change(file, '"dtype": "float32"', '"dtype": "bfloat16"')
    shutil.rmtree(results / "tables")
    report([results / "sweep", results / "second"], results / "tables")
    assert not verify([results / "tables"]).differ
    for name, old, new in (
        ("README.md", "50.0", "50.1"),
        ("accuracy.csv", "66.7 [", "66.8 ["),
        ("accuracy.tex", "10.0", "11.0"),
    ):
        file = results / "tables" / name
        before = file.read_text()
        change(file, old, new)
        found = verify([results])
        assert [Path(one.file) for one in found.differ] == [file] and "tiny, 8 frames, bfloat16" in found.differ[0].what
        file.write_text(before)
    lines = (results / "tables" / "accuracy.csv").read_text().splitlines(keepends=True)
    (results / "tables" / "accuracy.csv").write_text("".join(lines[:-1]))
    assert [one.gives for one in verify([results]).differ] == ["a finished cell"]
    shutil.rmtree(results / "second")
    gone = verify([results])
    assert {Path(one.file).name for one in gone.unchecked} >= {"README.md", "accuracy.csv", "accuracy.tex"}


def test_runs_by_hand_are_followed(results: Path) -> None:
    for folder in (LMMS, VLM):
        shutil.copytree(results / folder / "run", results / "by_hand" / Path(folder).name)
    outcome = verify([results / "by_hand"])
    assert not outcome.differ and not outcome.unchecked and outcome.agree > 400
    report([results / "by_hand"], results / "of_by_hand")
    assert not verify([results / "of_by_hand"]).differ
    change(results / "by_hand" / Path(LMMS).name / "tiny/1_samples_motionqa.jsonl", '"score": 0.0', '"score": 1.0')
    assert ("1_samples_motionqa.jsonl", "sample q4: score", "1.0", "0.0") in differing(verify([results / "by_hand"]))
    (results / "by_hand" / Path(VLM).name / "tiny/1_score.xlsx").unlink()
    unread = [one for one in verify([results / "by_hand", results / "of_by_hand"]).differ if one.what == "it"]
    assert len(unread) == 1 and "1_score.xlsx is missing" in unread[0].gives  # once, though tables name its folder too


def test_failed_samples_have_no_row(results: Path) -> None:
    place = results / LMMS
    run = json.loads((place / "run/tiny/1_efficiency.json").read_text())
    run["samples"][7] |= {"failure": "ValueError: odd", "response": None, "timing": None, "tokens": {}, "videos": []}
    run |= {"n_failed": 1, "failed": [{"task": "motionqa", "doc_id": 7, "reason": "ValueError: odd", "tries": 2}]}
    run["efficiency"] |= times(run["samples"])
    run["tokens"] |= tokens(run["samples"])
    (place / "run/tiny/1_efficiency.json").write_text(json.dumps(run))
    lines = [json.dumps({"key": str(i), **one}) + "\n" for i, one in enumerate(run["samples"])]
    (place / "run/journal/run0.1-rank0.jsonl").write_text("".join(lines))
    drop_line(place / "run/tiny/1_samples_motionqa.jsonl", 7)
    (place / "run/tiny/1_results.json").write_text(json.dumps({"results": {"motionqa": {"accuracy,none": 4 / 7}}}))
    what = json.loads((place / "cell.json").read_text())["cell"]
    cell = {"identity": "identity 0.1", "cell": what, **lmms_cells.collect(place / "run")}
    (place / "cell.json").write_text(json.dumps(cell))
    assert not verify([results / "sweep"]).differ
    change_json(place / "run/tiny/1_efficiency.json", lambda content: content.update(n_failed=0))
    assert [what for _, what, *_ in differing(verify([results / "sweep"]))] == ["n_failed", "provenance: n_failed"]


def test_names_that_look_like_markup(results: Path) -> None:
    for framework in ("lmms-eval", "VLMEvalKit"):
        for ratio in (None, 0.1):
            place = results / "sweep/cells" / f"{framework}-{'vanilla' if ratio is None else 'tango'}"
            if framework == "lmms-eval":
                log = place / "run/tiny/1_samples_motionqa.jsonl"
                log.write_text(log.read_text().replace('"kind": "colour"', '"kind": "a|b & <c>_d #1"'))
            else:
                sheet = pd.read_excel(place / "run/tiny/1_score.xlsx")
                sheet["kind"] = sheet["kind"].replace("colour", "a|b & <c>_d #1")
                sheet.to_excel(place / "run/tiny/1_score.xlsx", index=False)
            change_json(place / "cell.json", lambda cell: [row.update(kind="a|b & <c>_d #1") for row in cell["samples"]
                                                           if row["kind"] == "colour"])  # fmt: skip
    shutil.rmtree(results / "tables")
    report([results / "sweep"], results / "tables")
    found = verify([results])
    assert not found.differ and not found.unchecked


@pytest.mark.parametrize("name", ["a|b & <c>_d #1", "x, y; z", "$\\frac{1}{2}$ 7 questions of m"])
def test_benchmarks_that_look_like_markup(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With their samples and without, where words of a table are held against those of another."""
    monkeypatch.setattr(sys.modules["tango.results.report"], "plot_all", lambda *_: [])
    cells = [made_up("vanilla", None, [1, 2], 512, benchmark=benchmark) for benchmark in (name, "mvbench")]
    cells += [made_up("tango", 0.1, [1], benchmark=benchmark) for benchmark in (name, "mvbench")]
    for cell in cells:
        cell["cell"]["framework"] = "VLMEvalKit & <sons>" if cell["cell"]["ratio"] else cell["cell"]["framework"]
    write_sweep(tmp_path / "sweep", cells)
    report([tmp_path / "sweep"], tmp_path / "tables")
    assert verify([tmp_path]).differ == []
    shutil.rmtree(tmp_path / "sweep")
    found = verify([tmp_path])
    assert found.differ == [] and found.agree > 50


def test_what_cannot_be_read_is_a_difference(results: Path) -> None:
    (results / LMMS / "run/tiny/1_efficiency.json").write_text("[1")
    (results / VLM / "cell.json").write_text("{}")
    (tables(results) / "kinds.csv").write_bytes(b"# made by: x\nkind\n\xff\n")
    said = [(name, what) for name, what, *_ in differing(verify([results]))]
    assert said[:2] == [("cell.json", "the cell")] * 2 and (tables(results).name, "the tables") in said
    with pytest.raises(ResultsError, match="there is no folder"):
        verify([results / "nowhere"])
    (results / "empty").mkdir()
    with pytest.raises(ResultsError, match="neither cells nor tables"):
        verify([results / "empty"])


def test_the_command(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(results)]) == 0
    assert "values agree, 0 differ, 0 entries cannot be checked" in capsys.readouterr().out
    change(tables(results) / "accuracy.tex", "-25.0 [", "-25.1 [")
    assert main(["verify", str(results), "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert told["differ"][0]["file"].endswith("accuracy.tex") and told["differ"][0]["gives"].startswith("-25.0000 [")
    assert main(["verify", str(results)]) == 2
    assert "accuracy.tex: Tango 10 %, lmms-eval: difference (points): it says -25.1 [" in capsys.readouterr().out
    assert main(["verify", str(results / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_the_shipped_results_agree_with_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of results/motionqa with their samples; of the others nobody can say that they are right."""
    assert main(["verify", str(ROOT / "results"), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["differ"] == [] and told["agree"] > 200_000
    unchecked = {Path(one["file"]).relative_to(ROOT / "results").as_posix(): one for one in told["unchecked"]}
    assert {"motionqa_all", "performance/vision.md"} <= set(unchecked) and "motionqa" not in unchecked
    digits = re.compile(r"^\|.*\| *[-+]?\d", re.MULTILINE)  # no file with numbers in a table is passed over in silence
    tables = {file.relative_to(ROOT / "results").as_posix(): file for file in (ROOT / "results").rglob("*.md")}
    own = {"motionqa/README.md", "motionqa_all/README.md", "motionqa_positions/README.md"}  # held, with their folders
    assert {name for name, file in tables.items() if digits.search(file.read_text())} - own == {
        name for name in unchecked if name.endswith(".md")
    }
    silent = {name for name, one in unchecked.items() if "names no command" in one["gives"]}
    assert silent == {
        "motionqa_all/reading.md",
        "performance/ways_cuda.md",
    }  # picked from front.md; of code that is gone


def test_tables_that_nobody_signed_are_named(results: Path) -> None:
    foreign = results / "notes" / "README.md"
    foreign.parent.mkdir()
    foreign.write_bytes(b"# \xff\n\n| a | b |\n|---|---|\n| Tango 7 | 91.2 |\n")
    (results / "notes" / "words.md").write_text("91.2 stands here, in no table\n")
    (tables(results) / "other.md").write_text("Eight. Made by: hand\n\n| a |\n|---|\n| 91.2 |\n")
    said = {Path(one.file).name: (one.what, one.gives.partition("; ")[2]) for one in verify([results]).unchecked}
    assert said == {
        "README.md": ("1 numbers", "it names no command that makes them"),
        "other.md": ("1 numbers", "made by: hand"),
    }
