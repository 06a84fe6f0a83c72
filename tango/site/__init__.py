"""Results as a static site that opens from disk: a table and plot of all runs, and each number's command and samples.

    tango results build/sweeps/grid --site build/site

runs.py reads runs with their questions and replies, frames.py draws their videos and the tokens that were kept,
pages.py makes the data, in pages; page/ is what reads them in a browser. A page that is opened from disk may fetch
nothing, so data are scripts. plotly's own script is copied from the installed package.
"""

import html
import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tango.results.cells import ResultsError
from tango.results.compare import find_run
from tango.site.frames import Drawn, draw
from tango.site.pages import pages
from tango.site.runs import read_runs

MADE_BY = '<meta name="generator" content="tango results">'  # tells a site of ours from other folders
STATIC = ("page.css", "page.js")


def write_site(
    folders: Sequence[str | Path],
    site: str | Path,
    compare: tuple[str, str] | None = None,
    videos: Path | None = None,
    model: str | None = None,
    step: Callable[[str], None] = lambda name: None,
) -> list[str]:
    """Make the site of all finished runs in some folders; it is there as a whole or as it was before.

    Args:
        folders: as for tango.results.report().
        site: its folder: new, empty, or an earlier site, which is replaced. It opens with index.html.
        compare: two runs to open with, see tango.results.compare.find_run().
        videos: the folder in which the names of the samples' videos are, to show their frames.
        model: a checkpoint that runs were made with, to show the tokens that they kept: it is run again on each video.
        step: called with the name of each step before it starts.

    Returns:
        What was left out, or is to be known, for people.

    Raises:
        ResultsError: a folder is not there or has no finished run, `site` holds other files, plotly is not installed,
            or there is no such run to compare.
        ValueError: `model` is none, or needs `videos`.
    """
    site, plotly = Path(site), plotly_script()
    if site.exists() and not is_ours(site):
        raise ResultsError(f"{str(site)!r} holds other files; give --site a new folder, or one that it made before")
    if model is not None and videos is None:
        raise ResultsError(f"--model {model} shows kept tokens over frames; name their folder with --videos")
    words = ["tango", "results", *map(str, folders), "--site", str(site)]
    words += ["--compare", *compare] if compare else []
    words += [word for name, value in (("videos", videos), ("model", model)) if value
              for word in (f"--{name}", str(value))]  # fmt: skip
    site.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{site.name}-", dir=site.parent) as room:
        new = Path(room, "site")
        (new / "data").mkdir(parents=True)
        step("reading runs")
        runs, remarks = read_runs(folders)
        opened = [find_run([run.place for run in runs], name) for name in compare] if compare else []
        drawn = Drawn({}, {}, [])
        if videos is not None:
            drawn = draw(runs, videos, model, new / "frames", step)
        step("comparing and writing")
        for name, content in pages(runs, drawn, shlex.join(words), [*remarks, *drawn.remarks], opened):
            (new / "data" / f"{name}.js").write_text(script(name, content), encoding="utf-8")
        for name in STATIC:
            (new / name).write_bytes(files("tango.site").joinpath("page", name).read_bytes())
        shutil.copyfile(plotly, new / "plotly.min.js")
        page = files("tango.site").joinpath("page", "index.html").read_text(encoding="utf-8")
        title = ", ".join(dict.fromkeys(run.cell["cell"]["model"] for run in runs))
        (new / "index.html").write_text(page.replace("{{title}}", html.escape(title)), encoding="utf-8")
        if site.exists():
            shutil.rmtree(site)
        new.rename(site)
    return [*remarks, *drawn.remarks]


def script(name: str, content: Any) -> str:
    """Data as a script. Texts come from models and data sets: in ASCII, without what could end a script element."""
    data = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f"(window.tangoData ??= {{}})[{json.dumps(name)}] = {data};\n"


def is_ours(site: Path) -> bool:
    """Whether a site may take a folder's place: an empty one, or one with a site."""
    if not site.is_dir():
        return False
    index = site / "index.html"
    return not any(site.iterdir()) or (
        index.is_file() and MADE_BY in index.read_text(encoding="utf-8", errors="replace")[:1000]
    )


def plotly_script() -> Path:
    """plotly.js as its Python package brings it.

    Raises:
        ResultsError: it is not installed.
    """
    found = find_spec("plotly")
    for folder in (found.submodule_search_locations or []) if found is not None else []:
        if (script := Path(folder, "package_data", "plotly.min.js")).is_file():
            return script
    raise ResultsError("--site draws with plotly, which is not installed: pip install 'tango-vlm[site]'")


__all__ = ["is_ours", "write_site"]
