"""`tango results`: the tables and plots of what sweeps have finished (tango.results.report)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tango.cli.common import InputError, Json, console, print_json, stdout_for_json, steps

EXAMPLES = ("tango results build/sweeps/grid", "tango results build/sweeps/* --output build/tables --json")


def results(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER..", help="Folders of sweeps, or of such folders.")],
    output: Annotated[Path, typer.Option(help="Gets a folder for each model and setting.")] = Path("build/results"),
    as_json: Json = False,
) -> None:
    """Make tables (Markdown, CSV, LaTeX) and plots of the finished cells of sweeps, whichever framework ran them."""
    with stdout_for_json(as_json), steps(1) as step:
        step("reading cells, comparing, drawing")
        from tango.results import ResultsError, report

        try:
            made = report(folders, output)
        except (ResultsError, OSError) as error:
            raise InputError(str(error)) from error
    if as_json:
        print_json({"files": made.files, "remarks": made.remarks})
    else:
        made.show(console())
