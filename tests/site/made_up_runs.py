"""Sweeps with known answers, with what the frameworks log beside them, in a folder."""

import json

from made_up import made_up

NASTY = "</script><script>console.error(1)</script><!-- <img src=x onerror=alert(1)> {{title}} \u2028 \" ' &amp; <b>é"


def log(place, cell, question="What is it?\nA. one\nB. two", reply=None, video=""):
    """As lmms-eval leaves them below a cell's folder: texts of each sample."""
    folder = place / "run" / "tiny"
    folder.mkdir(parents=True)
    (folder / "1_efficiency.json").write_text("{}")
    lines = [
        {"doc_id": number, "filtered_resps": reply or f"reply {row['prediction']}", "input": question,
         "accuracy": {name: row[name] for name in ("id", "kind", "prediction", "answer", "score")} | {"video": video}}
        for number, row in enumerate(cell["samples"])
    ]  # fmt: skip
    (folder / "1_samples_motionqa.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_runs(folder, cells, **texts):
    """By the names of their folders."""
    for name, cell in cells.items():
        place = folder / "cells" / name
        place.mkdir(parents=True)
        (place / "cell.json").write_text(json.dumps(cell))
        if cell["cell"]["framework"] == "lmms-eval":
            log(place, cell, **texts)


def example():
    """unpruned 32 of 40 right, Tango 28 (all but 28 to 31), random 14; another model and benchmark, nasty names."""
    cells = {
        "vanilla": made_up("vanilla", None, list(range(32)), 512, ttft=20.0),
        "tango-0.1": made_up("tango", 0.1, list(range(28)), ttft=10.0),
        "tango-0.2": made_up("tango", 0.2, list(range(30)), 104, ttft=12.0),
        "random-0.1": made_up("random", 0.1, list(range(0, 28, 2)), ttft=8.0),
        "vlmeval-tango-0.1": made_up("tango", 0.1, list(range(28)), ttft=10.0, framework="VLMEvalKit",
                                     benchmark="MotionQA_8frame"),
        "other": made_up("tango", 0.3, list(range(20)), 154, model="other", benchmark="mvbench"),
        "nasty": made_up("topk", 0.1, [0, 39], model=NASTY, benchmark="mvbench", variant=NASTY),
    }  # fmt: skip
    for number, row in enumerate(cells["nasty"]["samples"]):
        row |= {"kind": NASTY, "prediction": NASTY, "answer": NASTY, "id": f"{NASTY}{number}"}
    cells["nasty"]["provenance"]["command"] = NASTY
    cells["tango-0.1"]["provenance"]["command"] = "WRAPPER=tango python -m lmms_eval --tasks motionqa"
    return cells
