"""`tango demo`: what `make demo` runs after installing, scripts/demo.py of the checkout."""

import contextlib
import os
import runpy
import sys

import typer

from tango.cli.common import FAILED, InputError, Json, print_json, stdout_for_json
from tango.motionqa.shipped import checkout

EXAMPLES = (
    "tango demo",
    "tango demo --jobs 2 --limit 60",
    "tango demo --methods all --work build/all --output build/all",
)
SCRIPT = "scripts/demo.py"
CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}  # they are the script's


def demo(context: typer.Context, as_json: Json = False) -> int:
    """Accuracy and time of the shipped model on the shipped benchmark, unpruned and pruned: tables and plots.

    Runs scripts/demo.py in the repository's root and hands it all options it is given (python scripts/demo.py --help).
    Paths among them are relative to that root. Stopped and started again it goes on where it was.
    """
    root = checkout()
    if root is None:
        raise InputError(
            f"tango demo needs a checkout of the repository ({SCRIPT}, the model and its videos) and found none: "
            "clone the repository and run make demo, or tango demo, in it"
        )
    words = [SCRIPT, *context.args]
    before = sys.argv
    with contextlib.chdir(root), stdout_for_json(as_json):
        sys.argv = words
        try:
            runpy.run_path(SCRIPT, run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else FAILED if end.code else 0
        finally:
            sys.argv = before
    if as_json:
        print_json({"exit_code": status, "folder": os.path.relpath(root), "command": words})
    return status
