"""`tango visualize`: pictures of which tokens of a video are kept (tango.visualize.visualize)."""

from pathlib import Path
from typing import Annotated

import typer

from tango.cli import common
from tango.cli.answering import check_asked, choose_pruners, frames_for, input_errors, load
from tango.cli.common import console, print_json, stdout_for_json, steps

EXAMPLES = (
    "tango visualize",
    'tango visualize clip.mp4 --method tango --method topk --ratio 0.1 --ratio 0.2 --question "What happens?"',
)


def visualize(
    video: common.Video = None,
    output: Annotated[Path, typer.Option(help="Folder for the page and the sheets.")] = Path("build/visualize"),
    model: common.Model = None,
    method: common.Methods = ["tango"],  # noqa: B006 (read by typer, changed by nobody)
    ratio: common.Ratios = [0.1, 0.15, 0.2],  # noqa: B006
    config: common.Config = None,
    fields: common.Fields = None,
    frames: common.Frames = None,
    question: Annotated[str | None, typer.Option(help="Asked with each; the answers are shown.")] = None,
    device: common.Device = None,
    dtype: common.Dtype = "auto",
    as_json: common.Json = False,
) -> None:
    """Draw which tokens of a video each method keeps, drops and merges: a page with sliders and a contact sheet."""
    # Starting, loading, each method at each ratio, and without any where there is a question, the sheet and the page.
    total = 2 + len(set(method)) * len(ratio) + (question is not None) + 2
    with stdout_for_json(as_json), steps(total) as step:
        step("starting up")
        path = check_asked(model, video, question)
        from tango.visualize import visualize as draw

        pruners = choose_pruners(method, ratio[0], config, fields)
        step("loading the model")
        with input_errors():
            made = draw(
                path,
                output,
                model=load(model, device, dtype),
                methods=pruners,
                ratios=ratio,
                frames=frames_for(frames, model),
                question=question,
                progress=lambda name, *_: step(name),
            )
    if as_json:
        print_json({"page": made.page, "sheets": made.sheets})
    else:
        console().say(f"written: {', '.join(map(str, (made.page, *made.sheets)))}")
