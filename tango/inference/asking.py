"""One question about one video, and the numbers that its answers are compared by. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tango.inference.chat import Answer

# The parts of timing.Timing, and the numbers of Answer.tokens, as people read them.
STAGES = {"vit_s": "vision tower", "other_s": "projector, pruning", "prefill_s": "prefill", "decode_s": "decoding"}
TOKENS = {
    "video_tokens_before": "video tokens",
    "video_tokens_after": "  into the language model",
    "video_tokens_average": "  mean over its layers",
    "output_tokens": "answer's tokens",
}


def conversation(video: str, question: str) -> list[dict[str, Any]]:
    """One user's turn: the video file, then the question."""
    return [{"role": "user", "content": [{"type": "video", "video": video}, {"type": "text", "text": question}]}]


def rows(answers: Iterable[Answer]) -> list[tuple[str, list[str]]]:
    """Tokens and milliseconds of answers: what is counted, and the number of each answer."""
    answers = list(answers)
    timings = [answer.timing or {} for answer in answers]
    first = [sum(timing[key] for key in ("vit_s", "other_s", "prefill_s")) for timing in timings]
    seconds = {f"{title} (ms)": [timing[key] for timing in timings] for key, title in STAGES.items()}
    seconds["time to first token (ms)"] = first
    counted = [(title, [f"{answer.tokens[key]:.0f}" for answer in answers]) for key, title in TOKENS.items()]
    return counted + [(title, [f"{1000 * one:.1f}" for one in each]) for title, each in seconds.items()]
