"""What the commands share: exit codes, errors, options, JSON and tables on stdout, progress on stderr."""

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tango.motionqa.shipped import FRAMES, MODEL, VIDEO
from tango.runs.screen import Screen, json_text

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
EXIT_CODES = {
    OK: "all is well",
    FAILED: "something failed or, for doctor, is not well or, for verify, cannot be checked",
    BAD_INPUT: "bad input, something it needs is missing or, for verify, a number differs",
    INTERRUPTED: "interrupted",
}

EXTRAS = {  # and what they bring
    "cli": ("accelerate", "matplotlib", "psutil"),
    "eval": ("pandas", "tabulate"),
    "site": ("plotly",),
    "app": ("gradio",),
}

OTHER_FRAMES = 32  # of each video, with other models than the shipped one


class InputError(ValueError):
    """An option or an argument that cannot be; the message names the value and what would be right. Exit code 2."""


class CommandFailed(RuntimeError):
    """The input was fine and the command failed all the same. Exit code 1."""


def starved(error: BaseException) -> str | None:
    """What to do where memory ran out, Python's, a GPU's (torch's class, not imported for this) or the CPU's in torch,
    or where no thread can be started, or a library finds no room; None if it is something else.
    """
    if isinstance(error, ImportError):
        room = "failed to map" in str(error) or "cannot allocate memory" in str(error)
        return "there is not enough memory to load it (see ulimit -v)" if room else None
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return "this user may start too few processes (see ulimit -u)"
    kinds = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if kinds or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error)):
        return "use fewer --frames, a smaller --model or --dtype bfloat16"
    return None


def lacking(error: ModuleNotFoundError) -> str:
    """What to install for a module that is missing; raises it again where no extra of this package brings it."""
    package = (error.name or "").partition(".")[0]
    for extra, brought in EXTRAS.items():
        if package in brought:
            return f"{package} is missing; this command needs: pip install 'tango-vlm[{extra}]'"
    raise error


def read_ratio(text: Any) -> float:
    """A retention ratio in (0, 1]; a percentage is turned away with the share that it is."""
    with contextlib.suppress(ValueError):
        ratio = float(text)
        if 0 < ratio <= 1:
            return ratio
        raise typer.BadParameter(f"{ratio:g} is no share of the tokens to keep; give a number in (0, 1], as 0.1")
    with contextlib.suppress(ValueError):
        if text.strip().endswith("%"):
            share = float(text.strip().removesuffix("%")) / 100
            raise typer.BadParameter(f"{text!r} is no number; give the share of the tokens to keep, {share:g}")
    raise typer.BadParameter(f"{text!r} is no number; give the share of the tokens to keep, as 0.1")


# Options and arguments that several commands have.
Video = Annotated[str | None, typer.Argument(help="A video file.", show_default=VIDEO)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Model = Annotated[str | None, typer.Option("--model", metavar="NAME", help="Folder or hub id.", show_default=MODEL)]
Methods = Annotated[
    list[str], typer.Option("--method", metavar="NAME", help="Pruning method (tango methods); may be repeated.")
]
RATIO: dict[str, Any] = {"parser": read_ratio, "metavar": "SHARE"}
Ratio = Annotated[float, typer.Option("--ratio", help="Share of the video's tokens to keep.", **RATIO)]
Ratios = Annotated[
    list[float], typer.Option("--ratio", help="Share of the video's tokens to keep; may be repeated.", **RATIO)
]
Config = Annotated[str | None, typer.Option("--config", metavar="FILE", help="YAML file of settings, see configs/.")]
Fields = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="One setting of the method; may be repeated.")
]
Frames = Annotated[
    int | None, typer.Option(min=1, help="Frames of the video.", show_default=f"{FRAMES}; {OTHER_FRAMES} with --model")
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ..", show_default="a GPU if there is one")]
Dtype = Annotated[str, typer.Option(help="auto (as stored), float32, float16 or bfloat16.")]


def epilog(*examples: str) -> str:
    """Examples, each on a line of its own, as the end of a help text."""
    return "\n\n".join(["[bold]Examples[/]", *(f"[dim]$[/] {example}" for example in examples)])


def console() -> Screen:
    """For tables on stdout; wide where nobody looks, so that files and pipes get whole lines."""
    return Screen(width=None if sys.stdout.isatty() else 200)


def print_json(content: Any) -> None:
    """Print content as JSON; what JSON lacks becomes text."""
    print(json_text(content, indent=1, default=str))


@contextlib.contextmanager
def stdout_for_json(asked: bool) -> Iterator[None]:
    """While it is open and JSON was asked for, whatever libraries print goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr) if asked else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def steps(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on stderr, if that is a terminal; call what it gives with the name of each of the steps as it starts."""
    screen = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Drawn once a second, so that drawing does not weigh on what is being timed.
    options: dict[str, Any] = {"transient": True, "refresh_per_second": 1, "disable": not screen.is_terminal}
    with Progress(*columns, console=screen, **options) as bar:
        task, begun = bar.add_task("", total=total), itertools.count()
        yield lambda name: bar.update(task, description=name, completed=next(begun), refresh=True)
