"""What is read back from lmms-eval's files, in the form in which upstream's own tasks write them."""

import json
from pathlib import Path
from typing import Any

import pytest
from lmms_eval.tasks.longvideobench.utils import longvideobench_aggregate_results, longvideobench_process_results
from lmms_eval.tasks.mlvu.utils import mlvu_aggregate_results_dev, mlvu_process_results
from lmms_eval.tasks.mvbench.utils import mvbench_aggregate_results, mvbench_process_results
from lmms_eval.tasks.videomme.utils import videomme_aggregate_results, videomme_process_results
from tango_lmms_eval.tasks.motionqa import utils as motionqa

from tango.sweeps.lmms_cells import collect, collect_by_hand
from tango.sweeps.sweep import CellError

TOKENS = {"video_tokens_before": 100, "video_tokens_after": 10, "video_tokens_average": 8.0}
MME = {
    "duration": "short",
    "domain": "Knowledge",
    "sub_category": "Biology & Medicine",
    "task_type": "Counting Problem",
}


def write_run(run: Path, tasks: dict[str, list[dict[str, Any]]], scores: dict[str, Any], n_failed: int = 0) -> None:
    """The files of a run: for each task the metrics of its samples, and the aggregated ones."""
    folder = run / "model"
    folder.mkdir(parents=True)
    summary = {
        "method": "tango",
        "n_failed": n_failed,
        "failed": [{"reason": "ValueError: odd"}] * n_failed,
        "efficiency": {"Peak_mem": 1.0},
        "tokens": TOKENS,
        "samples": [
            {"task": task, "doc_id": i, "tokens": TOKENS, "videos": [{"kept": f"{task}{i}"}]}
            for task, samples in tasks.items()
            for i in range(len(samples))
        ],
    }
    (folder / "1_efficiency.json").write_text(json.dumps(summary))
    (folder / "1_results.json").write_text(json.dumps({"results": scores}))
    for task, samples in tasks.items():
        lines = [json.dumps({"doc_id": i, "target": "A", **metrics}) for i, metrics in enumerate(samples)]
        (folder / f"1_samples_{task}.jsonl").write_text("\n".join(reversed(lines)) + "\n")


def run_of(run: Path, tasks: dict[str, list[dict[str, Any]]], metric: str, aggregate: Any) -> dict[str, Any]:
    """What is collected of tasks whose samples were scored, and aggregated, by upstream."""
    scores = {task: {f"{metric},none": aggregate([one[metric] for one in samples])} for task, samples in tasks.items()}
    write_run(run, tasks, scores)
    return collect(run)


def test_video_mme(tmp_path: Path) -> None:
    docs = [{"question_id": f"001-{i}", "videoID": "v", "answer": "A", **MME} for i in range(1, 5)]
    replies = ["A", "B. because", "The answer is A.", ""]
    samples = [videomme_process_results(doc, [reply]) for doc, reply in zip(docs, replies, strict=True)]
    found = run_of(tmp_path, {"videomme": samples}, "videomme_perception_score", videomme_aggregate_results)
    rows = found["samples"]
    assert [row["id"] for row in rows] == ["001-1", "001-2", "001-3", "001-4"]
    assert [row["score"] for row in rows] == [1, 0, 1, 0] and found["reported"] == 50
    assert [row["prediction"] for row in rows] == ["A", "B", "A", None]
    assert {row["kind"] for row in rows} == {"Counting Problem"}
    assert rows[0]["tokens_average"] == 8 and rows[1]["kept"] == ["videomme1"]


def test_mvbench_is_twenty_tasks(tmp_path: Path) -> None:
    doc = {"candidates": ["red", "blue"], "answer": "blue"}
    tasks = {
        "mvbench_action_count": [mvbench_process_results(doc, [reply]) for reply in ("B", "A")],
        "mvbench_state_change": [mvbench_process_results(doc, ["(B) blue"]), mvbench_process_results(doc, ["B."])],
    }
    found = run_of(tmp_path, tasks, "mvbench_accuracy", mvbench_aggregate_results)
    by_id = {row["id"]: (row["kind"], row["score"]) for row in found["samples"]}
    assert by_id["mvbench_action_count/0"] == ("mvbench_action_count", 1) and len(by_id) == 4
    assert by_id["mvbench_action_count/1"][1] == 0 and by_id["mvbench_state_change/1"][1] == 1
    assert found["reported"] == 75 == 25 * sum(score for _, score in by_id.values())


def test_longvideobench_and_mlvu_log_no_scores(tmp_path: Path) -> None:
    doc = {"duration_group": 15, "question_category": "S2E", "correct_choice": 1, "option0": "a", "option1": "b"}
    samples = [
        longvideobench_process_results({"id": f"x_{i}", "option2": "N/A", **doc}, [reply])
        for i, reply in enumerate("BA")
    ]
    found = run_of(tmp_path / "lvb", {"longvideobench_val_v": samples}, "lvb_acc", longvideobench_aggregate_results)
    rows = [(row["id"], row["kind"], row["score"], row["prediction"]) for row in found["samples"]]
    assert rows == [("x_0", "S2E", 1, "B"), ("x_1", "S2E", 0, "A")] and found["reported"] == 50

    asked = [("count", "A", "A"), ("count", "B", "A"), ("needle", "C", "C")]
    docs = [({"question": "the same", "task_type": kind, "answer": answer}, reply) for kind, reply, answer in asked]
    samples = [mlvu_process_results(doc, [reply]) for doc, reply in docs]
    found = run_of(tmp_path / "mlvu", {"mlvu_dev": samples}, "mlvu_percetion_score", mlvu_aggregate_results_dev)
    rows = [(row["id"], row["kind"], row["score"]) for row in found["samples"]]
    assert rows == [("mlvu_dev/0", "count", 1), ("mlvu_dev/1", "count", 0), ("mlvu_dev/2", "needle", 1)]
    assert found["reported"] == pytest.approx((50 + 100) / 7)  # of seven kinds, five without questions here


def test_motionqa(tmp_path: Path) -> None:
    doc = {"video": "v", "kind": "count", "answer": "A", "options": ["one", "two", "three", "four"]}
    samples = [motionqa.process_results({"id": f"q{i}", **doc}, [reply]) for i, reply in enumerate(("A", "what?"))]
    found = run_of(tmp_path, {"motionqa": samples}, "accuracy", motionqa.accuracy)
    assert [(row["id"], row["score"], row["prediction"]) for row in found["samples"]] == [
        ("q0", 1, "A"),
        ("q1", 0, None),
    ]
    assert found["provenance"] == {"method": "tango", "n_failed": 0, "failed": []} and found["reported"] == 50
    assert found["efficiency"] == {"Peak_mem": 1.0} and found["tokens"] == TOKENS


def test_runs_that_are_no_result(tmp_path: Path) -> None:
    with pytest.raises(CellError, match="found 0"):
        collect(tmp_path)
    metrics = {"lvb_acc": {"id": "a", "question_category": "x", "answer": "A", "parsed_pred": "A"}}
    scores = {"t": {"lvb_acc,none": 1.0}}
    write_run(tmp_path / "failed", {"t": [metrics]}, scores, n_failed=1)
    with pytest.raises(CellError, match="1 samples failed, the first: ValueError: odd"):
        collect(tmp_path / "failed")
    write_run(tmp_path / "another", {"t": [{"bleu": 0.5}]}, {})
    with pytest.raises(CellError, match="none of the metrics accuracy, videomme_perception_score"):
        collect(tmp_path / "another")
    write_run(tmp_path / "short", {"t": [metrics, metrics]}, scores)
    file = tmp_path / "short" / "model" / "1_samples_t.jsonl"
    file.write_text(file.read_text().splitlines()[0])
    with pytest.raises(CellError, match="1 samples were scored, 2 were answered"):
        collect(tmp_path / "short")
    file.unlink()
    with pytest.raises(CellError, match="--log_samples"):
        collect(tmp_path / "short")


def test_what_lmms_eval_wrote_when_it_was_run_by_hand(tmp_path: Path) -> None:
    """Two benchmarks of one run; a reply with a line separator in it; a question that failed."""
    one = {"question_id": "1-1", "duration": "short", "category": "K", "sub_category": "L", "task_category": "T"}
    tasks = {
        "videomme": [{"videomme_perception_score": one | {"pred_answer": "A\u2028", "answer": "A\u2028"}}],
        "mvbench_state_change": [{"mvbench_accuracy": {"pred_answer": "b", "gt_answer": "b"}}],
        "mvbench_moving_count": [{"mvbench_accuracy": {"pred_answer": "b", "gt_answer": "a"}}],
    }
    scores = {"videomme": {"videomme_perception_score,none": 100.0}}
    scores |= {name: {"mvbench_accuracy,none": 50.0} for name in tasks if name != "videomme"}
    write_run(tmp_path, tasks, scores)
    file = tmp_path / "model" / "1_efficiency.json"
    summary = json.loads(file.read_text())
    lost = {"task": "videomme", "doc_id": 1, "failure": "gone", "tokens": {}, "videos": []}
    told = {"timing": None, "rank": 0, "wall_s": 1.0, "peak_mem_gb": 1.0, "cold": False, "failure": None}
    summary["samples"] = [sample | told for sample in [*summary["samples"], lost]]
    summary["samples"][-1]["failure"] = "gone"
    summary |= {"failed": [{"task": "videomme", "doc_id": 1, "reason": "gone"}], "n_failed": 1}
    summary |= {"settings": {"retention_ratio": 0.1}, "model": {"pretrained": "lmms-lab/ov"}}
    file.write_text(json.dumps(summary))
    found = {cell["cell"]["benchmark"]: cell for cell in collect_by_hand(file)}
    assert set(found) == {"videomme", "mvbench"}
    assert found["videomme"]["cell"] | {"benchmark": ""} == found["mvbench"]["cell"] | {"benchmark": ""} == {
        "framework": "lmms-eval", "model": "ov", "benchmark": "", "method": "tango", "ratio": 0.1, "variant": None
    }  # fmt: skip
    assert [len(found[name]["samples"]) for name in ("videomme", "mvbench")] == [1, 2]
    assert [found[name]["provenance"]["n_failed"] for name in ("videomme", "mvbench")] == [1, 0]
