"""`tango verify`: are the numbers of results those that their samples give (tango.results.verify)?"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tango.cli.common import BAD_INPUT, FAILED, OK, InputError, Json, console, print_json, stdout_for_json, steps

EXAMPLES = (
    "tango verify build/sweeps/grid",
    "tango verify build/results build/sweeps/grid --json",
    "tango verify results",
)


def verify(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR..", help="Folders of sweeps, of tables, or of such.")],
    as_json: Json = False,
) -> int:
    """Make every number of results again from its samples: rows and times of cells, and tables (Markdown, CSV, LaTeX).

    What differs is named: file, what it says, what the samples give; exit code 2. Numbers without samples beside them
    cannot be checked: exit code 1 if that is all there is to say against them. Nothing is changed, and no model is run.
    """
    with stdout_for_json(as_json), steps(1) as step:
        step("counting again")
        from tango.results.cells import ResultsError
        from tango.results.verify import verify as found_by

        try:
            found = found_by(folders)
        except (ResultsError, OSError) as error:
            raise InputError(str(error)) from error
    if as_json:
        print_json(asdict(found))
    else:
        say = console().say
        for line in found.notes:
            say(f"note: {line}")
        for one in found.unchecked:
            say(f"cannot be checked: {one.file}: {one.what}{f' ({one.says})' if one.says else ''}: {one.gives}")
        for one in found.differ:
            say(f"differs: {one.file}: {one.what}: it says {one.says}, the samples give {one.gives}")
        say(f"{found.agree} values agree, {len(found.differ)} differ, {len(found.unchecked)} entries cannot be checked")
    return BAD_INPUT if found.differ else FAILED if found.unchecked else OK
