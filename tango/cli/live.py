"""`tango live`: watch a file, a camera or a stream, and ask about it while it goes on."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from tango.cli import common
from tango.cli.answering import check_model, check_question, choose_pruners, input_errors, load
from tango.cli.common import CommandFailed, InputError, stdout_for_json, steps
from tango.runs.screen import Screen, json_text
from tango.runs.screen import note as say

if TYPE_CHECKING:
    from tango.live.answer import Answer
    from tango.live.session import Live
    from tango.live.sources import Source

EXAMPLES = (
    'tango live data/motionqa/videos/0.mp4 --question "What colour is the ring?" --every 2',
    "tango live rtsp://camera.local/stream --model llava-hf/llava-onevision-qwen2-7b-ov-hf",
    "ffmpeg -i clip.mkv -f mpegts - | tango live - --question 'What happens?' --every 10",
)
POLICIES = ("fade", "oldest", "even")
SHORTEST = 0.001  # seconds between two rounds of questions


def live(
    source: Annotated[
        str, typer.Argument(help="A video file, a folder of images, an http(s) or rtsp(s) address, /dev/video0, or -.")
    ],
    question: Annotated[
        list[str] | None, typer.Option(help="Ask this again and again, and print JSON lines; may be repeated.")
    ] = None,
    every: Annotated[float, typer.Option(help="Seconds of the stream between two rounds of --question.")] = 5.0,
    model: common.Model = None,
    method: Annotated[str, typer.Option("--method", metavar="NAME", help="Pruning method (tango methods).")] = "tango",
    ratio: common.Ratio = 0.1,
    config: common.Config = None,
    fields: common.Fields = None,
    budget: Annotated[int, typer.Option(help="Most tokens of the stream that the language model sees.")] = 2048,
    fps: Annotated[float, typer.Option(help="Frames a second to look at.")] = 1.0,
    policy: Annotated[str, typer.Option(help="What is thinned: fade, oldest or even; see docs/live.md.")] = "fade",
    seconds: Annotated[float | None, typer.Option(help="End after so many seconds of the stream.")] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Read as fast as it goes, and wait instead of dropping.")
    ] = False,
    patience: Annotated[float, typer.Option(help="Seconds of trying to connect again before giving up.")] = 60.0,
    max_new_tokens: common.MaxNewTokens = 64,
    device: common.Device = None,
    dtype: common.Dtype = "auto",
) -> int:
    """Watch a stream and ask about it: memory and tokens stay bounded, however long it goes on.

    Type a question at any time, /history to see what is held of when, /quit or Ctrl-D to end. With --question nothing
    is typed: answers come as JSON, one on a line.
    """
    check_numbers({"every": every, "fps": fps, "patience": patience, "seconds": seconds}, budget, policy)
    for text in question or []:
        check_question(text)
    if not question and (source == "-" or not sys.stdin.isatty()):
        raise InputError("questions are typed in a terminal; elsewhere, and for a stream on stdin, give --question")
    with stdout_for_json(bool(question)), steps(2) as step:
        step("starting up")
        from tango.live.sources import Source

        with input_errors():
            stream = Source(source, fps, not fast, note, patience=patience)
        check_model(model)
        pruners = choose_pruners([method], ratio, config, fields)
        if not pruners:
            raise InputError(f"--method {method!r} prunes nothing; use one of tango methods")
        step("loading the model")
        checkpoint = load(model, device, dtype, pruners)
    from tango.live.session import Live

    session = Live(checkpoint.model, checkpoint.processor, pruners[0], budget=budget, fps=fps, policy=policy)
    try:
        with input_errors(), session as video:
            watching = Watching(video, stream, seconds, fast)
            if question:
                unattended(watching, question, every, max_new_tokens)
            else:
                typed(watching, max_new_tokens)
    except KeyboardInterrupt:
        return common.INTERRUPTED
    finally:
        stream.stop()
    return common.OK


def check_numbers(numbers: dict[str, float | None], budget: int, policy: str) -> None:
    """Turn away options that cannot be; InputError."""
    for name, value in numbers.items():
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"--{name} {value:g}: give a number above 0")
    if (every := numbers["every"]) is not None and every < SHORTEST:
        raise InputError(f"--every {every:g}: give at least {SHORTEST:g} seconds")
    if budget < 16:
        raise InputError(f"--budget {budget}: give at least 16 tokens")
    if policy not in POLICIES:
        raise InputError(f"--policy {policy!r}: use one of {', '.join(POLICIES)}")


def note(sentence: str) -> None:
    """Something went wrong and was got over: a line on stderr."""
    say(f"tango: {sentence}")


class Watching:
    """A source that is read into a session; `seconds` of it at most. fast: wait instead of dropping frames."""

    def __init__(self, video: Live, stream: Source, seconds: float | None, fast: bool) -> None:
        self.video, self.stream, self.seconds, self.fast = video, stream, seconds, fast
        self.ended: str | None = None  # why nothing more comes

    def frames(self) -> Iterator[float]:
        """Add frame after frame; yields the time of each that was taken."""
        for picture, time in self.stream:
            if self.seconds is not None and time > self.seconds:
                self.ended = f"{self.seconds:g} s are over"
                return
            try:
                taken = self.video.add(picture, time, wait=self.fast)
            except ValueError as error:
                note(str(error))
                continue
            if taken:
                yield time
        self.ended = "the source ended"

    def read(self) -> None:
        """Add all frames, for a thread of its own."""
        try:
            for _ in self.frames():
                pass
        except (ValueError, RuntimeError) as error:
            self.ended = str(error)

    def counts(self) -> dict[str, Any]:
        """What there is to say of the session."""
        status = self.video.status
        return {
            "frames": status.frames,
            "dropped": status.dropped,
            "failed": status.failed + self.stream.damaged,
            "held_tokens": status.tokens,
            "connections": self.stream.connections,
            "memory_mib": round(status.memory / 2**20, 1),
        }


def unattended(watching: Watching, questions: list[str], every: float, longest: int) -> None:
    """Ask at every so many seconds, and print each answer as a line of JSON when it is finished."""
    asked: deque[tuple[float, Answer]] = deque()
    skipped, due, last = 0, every, None
    failed: str | None = None
    try:
        for time in watching.frames():
            last = time
            while asked and asked[0][1].done:
                print_answer(watching, *asked.popleft())
            if time >= due:
                due = every * (time // every + 1)
                if asked:
                    skipped += len(questions)  # rather than falling behind
                else:
                    asked.extend((time, watching.video.ask(text, longest)) for text in questions)
                while watching.fast and asked:
                    print_answer(watching, *asked.popleft())
    except ValueError as error:
        failed = str(error)
    for time, answer in asked:
        print_answer(watching, time, answer)
    watching.video.wait()
    print_line({"time": last, "ended": failed or watching.ended, "questions_skipped": skipped} | watching.counts())
    if failed:
        raise CommandFailed(failed) if last is not None else InputError(failed)


def print_answer(watching: Watching, time: float, answer: Answer) -> None:
    """A line about a question that was put at this time; waits for the answer."""
    try:
        said = {"answer": answer.text().strip()}
    except (ValueError, RuntimeError) as error:
        said = {"error": str(error)}
    print_line({
        "time": round(time, 3), "question": answer.question, **said, "prompt_tokens": answer.prompt,
        "reused_tokens": answer.reused, "new_tokens": answer.new_tokens,
        "seconds_to_first": round(answer.seconds_to_first, 4), **watching.counts(),
    })  # fmt: skip


def print_line(line: dict[str, Any]) -> None:
    """JSON on a line, at once."""
    print(json_text(line), flush=True)


def typed(watching: Watching, longest: int) -> None:
    """Questions from the terminal, while a thread reads the source."""
    screen = Screen(highlight=False)
    reader = threading.Thread(target=watching.read, name="tango-source", daemon=True)
    reader.start()
    screen.print("Type a question; Enter alone shows how it stands, /history what is held, /quit ends.", style="dim")
    try:
        while True:
            status = watching.video.status
            seconds = 0.0 if status.seconds is None else status.seconds
            state = f"{seconds:.0f} s, {status.frames} frames, {status.tokens} tokens held, {status.memory >> 20} MiB"
            state += f", {status.dropped} dropped" if status.dropped else ""
            state += f" ({watching.ended})" if watching.ended else ""
            screen.print(state, style="dim")
            try:
                text = screen.input("> ").strip()
            except EOFError:
                return
            if text == "/quit":
                return
            if text == "/history":
                screen.print(history(watching.video))
            elif text:
                try:
                    answer = watching.video.ask(text, longest)
                    for piece in answer:
                        screen.print(piece, end="")
                    reused = f"{answer.prompt} tokens, {answer.reused} of them known"
                    screen.print(f"\n{answer.seconds_to_first:.2f} s to the first word; {reused}", style="dim")
                except (ValueError, RuntimeError) as error:
                    screen.print(str(error), style="red")
    finally:
        watching.stream.stop()
        with contextlib.suppress(KeyboardInterrupt):
            reader.join(1.0)


def history(video: Live) -> Table:
    """What is held of the stream, oldest first."""
    shown = Table("from (s)", "to (s)", "frames", "tokens", "thinned")
    for held in video.history:
        tokens = "open" if held.final is None else str(held.tokens)
        thinned = "" if held.level == 0 else f"{held.level} x" + (f", {held.joined} joined" if held.joined > 1 else "")
        shown.add_row(f"{held.start:.1f}", f"{held.end:.1f}", str(held.frames), tokens, thinned)
    return shown
