"""`tango results`: tables and plots of what sweeps have finished (tango.results.report), a site of it (tango.site), and
two runs compared (tango.results.compare).
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from tango.cli.answering import input_errors
from tango.cli.common import InputError, Json, console, print_json, stdout_for_json, steps

EXAMPLES = (
    "tango results build/sweeps/grid",
    "tango results build/sweeps/* --output build/tables --json",
    "tango results results/motionqa --site build/site",
    "tango results results/motionqa --compare motionqa-tango-0.1 motionqa-vanilla",
)
TABLES = Path("build/results")


def results(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER..", help="Folders of sweeps, or of such folders.")],
    output: Annotated[
        Path | None,
        typer.Option(
            help="Gets a folder for each model and setting.", show_default=f"{TABLES}, without --site, --compare"
        ),
    ] = None,
    site: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Gets a page to look at in a browser: table, plot, samples.")
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Two runs, by the names of their folders in cells/: what differs?"),
    ] = None,
    videos: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the samples' videos are, to show frames in the page.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Folder or hub id of the runs' model, to show the tokens they kept."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make tables (Markdown, CSV, LaTeX) and plots of the finished cells of sweeps, whichever framework ran them.

    With --site a page that opens from disk: each number leads to its command, versions, device and samples. With
    --compare the questions that two runs answered differently, and the interval of their difference.
    """
    if (videos or model) and not site:
        raise InputError("--videos and --model are for the page: give --site DIR")
    if site and output and site.absolute() == output.absolute():
        raise InputError(f"--site and --output are both {str(site)!r}; give each a folder of its own")
    if videos and not videos.is_dir():
        raise InputError(f"--videos {videos}: there is no such folder")
    output = output or (None if site or compare else TABLES)
    told: dict[str, Any] = {}
    with stdout_for_json(as_json), steps(5) as step, input_errors():
        from tango.results import report
        from tango.results.compare import compare_runs
        from tango.results.escaping import plain
        from tango.site import write_site

        made = None
        if output:
            step("reading cells, comparing, drawing")
            made = report(folders, output)
            told |= {"files": made.files, "remarks": made.remarks}
        compared = compare_runs(folders, *compare) if compare else None
        if site:
            told |= {"site": site / "index.html"}
            told["remarks"] = [*told.get("remarks", []), *write_site(folders, site, compare, videos, model, step)]
    if as_json:
        print_json(told | ({"compared": asdict(compared)} if compared else {}))
        return
    screen = console()
    if made:
        made.show(screen)
    if compared:
        screen.print(compared.summary())
    if site:
        for remark in told["remarks"] if not made else []:
            screen.say(plain(f"note: {remark}"))
        screen.say(plain(f"written: {site / 'index.html'}"))
