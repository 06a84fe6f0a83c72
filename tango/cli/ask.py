"""`tango ask`: one question about a video, answered with and without pruning, with the tokens and time of each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tango.cli import common
from tango.cli.answering import attached, check_asked, choose_pruners, frames_for, label, load
from tango.cli.common import InputError, console, print_json, stdout_for_json, steps
from tango.inference.asking import conversation, rows
from tango.motionqa.shipped import DATA, shipped

if TYPE_CHECKING:
    from tango.inference.chat import Answer

EXAMPLES = (
    "tango ask",
    'tango ask clip.mp4 "What happens?" --model llava-hf/llava-onevision-qwen2-7b-ov-hf --ratio 0.15',
    "tango ask --method tango --method topk --set saliency=global_query --json",
)


def ask(
    video: common.Video = None,
    question: Annotated[str | None, typer.Argument(show_default="one about the shipped video")] = None,
    model: common.Model = None,
    method: common.Methods = ["tango"],  # noqa: B006 (read by typer, changed by nobody)
    ratio: common.Ratio = 0.1,
    frames: common.Frames = None,
    config: common.Config = None,
    fields: common.Fields = None,
    max_new_tokens: common.MaxNewTokens = 64,
    device: common.Device = None,
    dtype: common.Dtype = "auto",
    as_json: common.Json = False,
) -> None:
    """Ask about a video: the answer with and without pruning, and the tokens and time of each.

    Each way is run once for warming up, so the times are comparable; `tango profile` measures them with their spread.
    """
    if video is not None and question is None:
        raise InputError(f"a question about {video!r} is missing: tango ask VIDEO QUESTION")
    answers: dict[str, Answer] = {}
    left_out: dict[str, str] = {}
    with stdout_for_json(as_json), steps(2 + 2 * (1 + len(set(method)))) as step:
        step("starting up")
        path = check_asked(model, video, question)
        pruners = choose_pruners(method, ratio, config, fields)
        step("loading the model")
        checkpoint = load(model, device, dtype, pruners)
        question = shipped_question(path) if question is None else question
        from tango.inference.prompt import PromptTooLong

        messages = conversation(path, question)
        for pruner in (None, *pruners):
            name = label(pruner)
            try:
                with attached(checkpoint, pruner, frames_for(frames, model)) as chat:
                    step(f"{name}: warming up")
                    chat.generate(messages, {"max_new_tokens": min(2, max_new_tokens)}, path)
                    step(f"{name}: answering")
                    answers[name] = chat.generate(messages, {"max_new_tokens": max_new_tokens}, path)
            except InputError as error:
                if not isinstance(error.__cause__, PromptTooLong):
                    raise
                left_out[name] = str(error)
        if not answers:
            raise InputError(next(iter(left_out.values())))
    if as_json:
        settings = {label(pruner): pruner.settings() for pruner in pruners}
        ways = [
            {"name": name, "settings": settings.get(name), "answer": answer.response, "tokens": answer.tokens,
             "seconds": answer.timing, "videos": answer.videos}
            for name, answer in answers.items()
        ]  # fmt: skip
        print_json(
            {"video": path, "question": question, "model": checkpoint.described, "answers": ways, "left_out": left_out}
        )
        return
    screen = console()
    screen.print(path, style="bold", highlight=False)
    screen.print(f"{question}\n", highlight=False)
    screen.print(table(answers))
    for name, reason in left_out.items():
        screen.say(f"left out: {name}: {reason}")


def shipped_question(video: str) -> str:
    """The first of MotionQA's questions about one of its videos, with its options."""
    from tango.motionqa.questions import prompt, read_questions

    row = next(row for row in read_questions(Path(shipped(DATA))) if Path(row["video"]).name == Path(video).name)
    return prompt(row["question"], row["options"])


def table(answers: dict[str, Answer]) -> Table:
    """A column for each way of answering."""
    shown = Table(show_header=True)
    shown.add_column("")
    for name in answers:
        shown.add_column(name, justify="right")
    shown.add_row("answer", *(str(answer.response) for answer in answers.values()), end_section=True)
    for title, numbers in rows(answers.values()):
        shown.add_row(title, *numbers, end_section="ans" in title)
    return shown
