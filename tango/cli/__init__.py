"""The command `tango`: one file a command beside this one, and what ends in which exit code.

Nothing heavy is imported until a command needs it, so that `tango --help` answers at once.
"""

import contextlib
import inspect
import io
import logging
import os
import sys
from collections.abc import Sequence

try:
    import rich  # noqa: F401
    import typer
    from typer.exceptions import TyperException
except ModuleNotFoundError as error:
    print(f"tango: {error.name} is missing; the command needs: pip install 'tango-vlm[cli]'", file=sys.stderr)
    raise SystemExit(2) from error

from tango import __version__
from tango.cli import app as app_command
from tango.cli import ask, calibrate, demo, doctor, live, methods, profile, results, sweep, verify, visualize
from tango.cli.common import (
    BAD_INPUT,
    EXIT_CODES,
    FAILED,
    INTERRUPTED,
    CommandFailed,
    InputError,
    epilog,
    lacking,
    print_json,
    starved,
)
from tango.inference.names import calling
from tango.motionqa.shipped import NotShipped
from tango.runs.screen import note, visible

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS")  # read at imports
GOES_ON = ("sweep", "demo", "calibrate")  # from what they had finished
# What messages name: arguments of functions and the variables that steer frameworks.
TYPED = {
    "TANGO_ARGS: ": "--set ", "TANGO_CONFIG=": "--config ", "pretrained=": "--model ", "device=": "--device ",
    "dtype=": "--dtype ", "budget=": "--budget ", "pass chat_template=<file>": "put one there as chat_template.jinja",
}  # fmt: skip
CODES = "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())

app = typer.Typer(
    name="tango",
    help="Faster video language models: prune the tokens of videos, and see what that costs and saves.\n\n"
    f"Exit codes: {CODES}. With --json, stdout holds JSON and nothing else.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Notes(logging.Handler):
    """Prints warnings on stderr, as Python does by itself, but no name of a file in them commands the terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one."""
        try:
            print(visible(self.format(record)), file=sys.stderr, flush=True)
        except OSError:  # nobody reads stderr any more
            self.handleError(record)


def show_version(asked: bool) -> None:
    """Print the version and end, if asked to."""
    if asked:
        print(f"tango {__version__}")
        raise typer.Exit()


@app.callback(epilog=epilog("tango doctor", "tango demo", 'tango ask clip.mp4 "What happens?"', "tango COMMAND --help"))
def root(
    version: bool = typer.Option(False, "--version", callback=show_version, is_eager=True, help="Print the version."),
) -> None:
    """Options before a command, and what has to be right for any of them."""
    for name in THREADS:
        if (text := os.environ.get(name, "").strip()) and (not text.isdecimal() or int(text) < 1):
            raise InputError(f"{name}={text!r}: give a number of threads of at least 1, or unset it")
    os.environ["MPLBACKEND"] = "agg"  # plots are files; what is set for windows may not be here


for module in (ask, app_command, live, profile, visualize, calibrate, demo, sweep, results, verify, methods, doctor):
    name = module.__name__.rpartition(".")[2]
    command = getattr(module, name)
    text = "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(command.__doc__ or "").split("\n\n"))
    settings = getattr(module, "CONTEXT", None)
    app.command(name, help=text, epilog=epilog(*module.EXAMPLES), context_settings=settings)(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (by default this process's) and return its exit code, see EXIT_CODES."""
    open_standard_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in words
    log, notes = logging.getLogger("tango"), Notes()
    try:
        with calling(TYPED), contextlib.ExitStack() as stack:
            log.addHandler(notes)
            stack.callback(log.removeHandler, notes)
            status = app(words, prog_name="tango", standalone_mode=False)
        sys.stdout.flush()  # a full disk shows here, not when Python ends
    except TyperException as error:
        context = getattr(error, "ctx", None)
        help_with = "tango" if context is None else context.command_path
        return tell(f"{error.format_message()} (see {help_with} --help)", error.exit_code, as_json)
    except (InputError, NotShipped) as error:
        return tell(str(error), BAD_INPUT, as_json)
    except ModuleNotFoundError as error:
        return tell(lacking(error), BAD_INPUT, as_json)
    except CommandFailed as error:
        return tell(str(error), FAILED, as_json)
    except (MemoryError, RuntimeError, ImportError) as error:
        if not (advice := starved(error)):
            raise
        what = str(error).strip().split("\n")[0] or "out of memory"
        return tell(f"{what}; {advice}", FAILED, as_json)
    except OSError as error:  # a full disk, a folder that may not be written, a reader of stdout that has gone
        return tell(str(error), FAILED, stdout_works() and as_json)
    if status == INTERRUPTED:
        again = "goes on from what is finished" if words[0] in GOES_ON else "starts anew: nothing was finished"
        return tell(f"interrupted; the same command {again}", INTERRUPTED, as_json)
    return int(status or 0)


def open_standard_streams() -> None:
    """Streams that the caller closed are as /dev/null, and text that is no Unicode is written with escapes.

    Else the next file that is opened would get the number of a closed one, and with it what libraries print.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest that is free comes first
        os.set_inheritable(number, True)
    os.close(number)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115 (for good)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def stdout_works() -> bool:
    """Whether what was printed can be written; if not it is dropped, so that Python does not try again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def tell(message: str, status: int, as_json: bool) -> int:
    """An error: one line on stderr and, for machines, an object on stdout. Returns the exit code."""
    line = " ".join(message.split())
    note(f"tango: {line}")
    if as_json:
        print_json({"error": line, "exit_code": status})
    return status
