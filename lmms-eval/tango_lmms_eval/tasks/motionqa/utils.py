"""MotionQA for lmms-eval: prompt, video, and scoring by rule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tango.motionqa.questions import prompt
from tango.runs.scoring import parse_choice

HERE = Path(__file__).parent


def doc_to_visual(doc: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """The video's path; `video_root` of the task's settings is relative to this folder."""
    return [str((HERE / settings["video_root"] / doc["video"]).resolve())]


def doc_to_text(doc: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> str:
    """The question, its options on lines of their own, and the instruction."""
    return prompt(doc["question"], doc["options"])


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Score one reply. One that chooses no option is wrong, and counted as unparsed too."""
    choice = parse_choice(results[0], doc["options"])
    entry = {"id": doc["id"], "video": doc["video"], "kind": doc["kind"], "answer": doc["answer"], "prediction": choice}
    scored = entry | {"score": float(choice == doc["answer"])}
    return {"accuracy": scored, "accuracy_by_kind": scored, "unparsed": entry | {"score": float(choice is None)}}


def accuracy(entries: Sequence[Mapping[str, Any]]) -> float:
    """Mean of the scores, 0 to 1."""
    return sum(float(entry["score"]) for entry in entries) / len(entries)


def accuracy_by_kind(entries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Accuracy for each kind of question there is."""
    kinds: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in entries:
        kinds[entry["kind"]].append(entry)
    return {kind: accuracy(kinds[kind]) for kind in sorted(kinds)}


def unparsed(entries: Sequence[Mapping[str, Any]]) -> float:
    """Fraction of answers in which no option was found: entries of those score 1, others 0."""
    return accuracy(entries)
