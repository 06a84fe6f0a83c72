"""`tango calibrate`: how few tokens leave a model's answers to one's own questions as they are, without labels."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from tango.cli import common
from tango.cli.answering import check_model, check_question, check_video, choose_pruners, frames_for, input_errors, load
from tango.cli.common import FAILED, OK, CommandFailed, InputError, console, print_json, stdout_for_json, steps
from tango.motionqa.shipped import DATA, MODEL, shipped

if TYPE_CHECKING:
    from tango.calibrate import Clip, Way

EXAMPLES = (
    "tango calibrate",
    'tango calibrate llava-hf/llava-onevision-qwen2-7b-ov-hf cam1.mp4 cam2.mp4 --question "Is the door open?"',
    "tango calibrate ./my-model --questions mine/questions.json --method tango --ratio 0.1 --tolerance 0.02 --json",
)
SHIPPED_VIDEOS = 10  # of MotionQA, where no videos are given


def calibrate(
    model: Annotated[str | None, typer.Argument(help="Folder or hub id.", show_default=MODEL)] = None,
    videos: Annotated[list[str] | None, typer.Argument(help="Video files.", show_default="some of MotionQA's")] = None,
    question: Annotated[
        list[str] | None, typer.Option(help="Asked about each video; may be repeated.", show_default=False)
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help='JSON: [{"video": .., "question": .., "options": [..]}, ..], options optional.'
        ),
    ] = None,
    method: common.Methods = ["tango", "flashvid", "divprune"],  # noqa: B006 (read by typer, changed by nobody)
    ratio: common.Ratios = [0.05, 0.1, 0.15, 0.2, 0.3, 0.5],  # noqa: B006
    tolerance: Annotated[float, typer.Option(help="Share of the answers that may change.")] = 0.05,
    output: Annotated[Path, typer.Option(help="Folder for table, plot, settings and finished answers.")] = Path(
        "build/calibrate"
    ),
    frames: common.Frames = None,
    config: common.Config = None,
    fields: common.Fields = None,
    max_new_tokens: common.MaxNewTokens = 32,
    device: common.Device = None,
    dtype: common.Dtype = "auto",
    as_json: common.Json = False,
) -> int:
    """Find how few tokens leave a model's answers as they are: your videos and your questions, no labels.

    Each answer is compared with the unpruned model's: is it the same, and how far is the distribution of its first
    token. Ask what has short answers; long ones are seldom the same word for word. A run that was stopped goes on.
    """
    if not 0 <= tolerance < 1:
        raise InputError(
            f"--tolerance {tolerance:g}: give the share of the answers that may change, in [0, 1), as 0.05"
        )
    if 1 in ratio:
        raise InputError("--ratio 1 keeps every token, which the others are compared with; give ratios below 1")
    with stdout_for_json(as_json):
        clips = clips_of(model, videos or [], question or [], questions)
        ratios = sorted(set(ratio))
        check_model(model)
        pruners = [one for share in ratios for one in choose_pruners(method, share, config, fields)]
        with steps(2 + len(clips) * (1 + len(pruners))) as step:
            step("loading the model")
            checkpoint = load(model, device, dtype, pruners)
            from tango.calibrate import best, compare, settings_file, summaries
            from tango.calibrate.plot import plot
            from tango.inference.chat import Chat
            from tango.runs.journal import JournalError, write_json
            from tango.runs.provenance import command, provenance

            chat = Chat(checkpoint, max_frames=frames_for(frames, model))
            try:
                with input_errors():
                    found = compare(
                        chat, clips, pruners, journal=output / "journal", new_tokens=max_new_tokens, step=step
                    )
            except JournalError as error:
                raise CommandFailed(str(error)) from error
        ways = summaries(pruners, found)
        answered = [way for way in ways if way.questions]
        if not answered:
            raise CommandFailed(f"none of the questions has an answer: {ways[0].failures[0]}")
        chosen = best(answered, tolerance)
        told = {
            "tolerance": tolerance,
            "chosen": None if chosen is None else row(chosen, tolerance),
            "ways": [row(way, tolerance) for way in ways],
            "answers": [[asdict(one) for one in asked] for asked in found],
        }
        write_json(output / "calibrate.json", told | provenance(checkpoint.device, model=checkpoint.described))
        plot(ways, tolerance, chosen, output / "calibrate.png", command())
        settings = output / "calibrate.yaml"
        settings.unlink(missing_ok=True)  # of another tolerance
        if chosen is not None:
            settings.write_text(settings_file(chosen, tolerance, command()), encoding="utf-8")
    if as_json:
        print_json({name: value for name, value in told.items() if name != "answers"} | {"folder": str(output)})
    else:
        screen = console()
        screen.print(table(ways, tolerance))
        if failed := sum(len(way.failures) for way in ways):
            first = next(way.failures[0] for way in ways if way.failures)
            screen.say(f"{failed} answers are missing: {first}")
        screen.say(sentence(chosen, tolerance, output))
    return FAILED if chosen is None else OK


def clips_of(model: str | None, videos: list[str], question: list[str], file: Path | None) -> list[Clip]:
    """The videos and the questions about each, all looked at.

    Raises:
        InputError: there are none, they are given twice, or cannot be read.
    """
    from tango.calibrate import Clip

    if file is not None and (videos or question):
        raise InputError(f"--questions {file} names videos and questions: leave VIDEOS and --question out")
    if videos and not question:
        raise InputError('no question: give --question ".." for what to ask about each video, or --questions FILE')
    if question and not videos:
        raise InputError('no video: tango calibrate MODEL VIDEOS.. --question ".."')
    if not videos and file is None:
        if model is not None:
            raise InputError('no videos: tango calibrate MODEL VIDEOS.. --question "..", or --questions FILE')
        file = Path(shipped(DATA)) / "test.json"
        rows = rows_of(file)
        names = sorted({row["video"] for row in rows})[:SHIPPED_VIDEOS]
        rows = [row for row in rows if row["video"] in names]
    elif file is not None:
        rows = rows_of(file)
    else:
        rows = [
            {"video": video, "question": text} for video in dict.fromkeys(videos) for text in dict.fromkeys(question)
        ]
    from tango.motionqa.questions import prompt

    asked: dict[str, dict[str, None]] = {}
    for row in rows:
        video = str(row["video"] if file is None else file.parent / row["video"])
        text = prompt(row["question"], row["options"]) if row.get("options") else row["question"]
        check_question(text)
        asked.setdefault(video, {})[text] = None
    for video in asked:
        check_video(video)
    return [Clip(video, tuple(texts)) for video, texts in asked.items()]


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of questions, checked.

    Raises:
        InputError: it is not there, not JSON, or has not what a question needs.
    """
    from tango.motionqa.questions import LETTERS
    from tango.runs.reading import read_json

    try:
        rows = read_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"--questions {file} cannot be read: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise InputError(f'--questions {file}: expected a list of {{"video": .., "question": ..}}, not empty')
    for number, row in enumerate(rows):
        options = row.get("options") if isinstance(row, dict) else None
        texts = [row.get("video"), row.get("question"), *(options or [])] if isinstance(row, dict) else [None]
        if not all(isinstance(text, str) and text for text in texts) or not isinstance(options, list | None):
            raise InputError(
                f"--questions {file}: entry {number} needs texts as video and question, options a list of texts"
            )
        if options and len(options) != len(LETTERS):
            raise InputError(f"--questions {file}: entry {number} has {len(options)} options; give {len(LETTERS)}, "
                             "or none and write them into the question")  # fmt: skip
    return rows


def row(way: Way, tolerance: float) -> dict[str, Any]:
    """A way as --json prints it."""
    return {
        "method": way.pruner.name,
        "retention_ratio": way.pruner.retention_ratio,
        "settings": way.pruner.settings(),
        "kept_percent": way.kept,
        "agreement_percent": asdict(way.agreement),
        "kl_nats": asdict(way.kl),
        "questions": way.questions,
        "failures": way.failures,
        "within": way.within(tolerance),
        "surely": way.surely(tolerance),
    }


def table(ways: list[Way], tolerance: float) -> Table:
    """A row a method and ratio."""
    shown = Table(show_header=True)
    for title in ("method", "ratio", "kept (%)", "same answer (%)", "KL (nats)", "questions", "within tolerance"):
        shown.add_column(title, justify="left" if title == "method" else "right")
    before = ways[0].pruner.name
    for way in sorted(ways, key=lambda way: (way.pruner.name, way.pruner.retention_ratio)):
        if way.pruner.name != before:
            shown.add_section()
        before = way.pruner.name
        word = "surely" if way.surely(tolerance) else "yes" if way.within(tolerance) else "no"
        shown.add_row(
            before, f"{way.pruner.retention_ratio:g}", f"{way.kept:.1f}", way.agreement.text(), way.kl.text(3),
            str(way.questions), word,
        )  # fmt: skip
    return shown


def sentence(chosen: Way | None, tolerance: float, output: Path) -> str:
    """What came out, for people."""
    if chosen is None:
        return (
            f"no method at these ratios leaves {100 - 100 * tolerance:g} % of the answers as they are: try higher "
            f"ratios, other methods or a larger --tolerance; all numbers are in {output}"
        )
    sure = "" if chosen.surely(tolerance) else "; the interval reaches beyond the tolerance, more questions narrow it"
    return (
        f"fewest tokens within {100 * tolerance:g} % of changed answers: {chosen.pruner.name} at "
        f"{chosen.pruner.retention_ratio:g}, {chosen.kept:.1f} % kept{sure}\n"
        f"use it: WRAPPER={chosen.pruner.name} TANGO_CONFIG={output / 'calibrate.yaml'}"
    )
