"""The page: what visitors see and press. What they write goes into text boxes, never into HTML."""

import html
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from tango.app.live_tab import build_live
from tango.app.markup import inline, refused
from tango.app.streams import Streams
from tango.app.visitors import Refused, Visitors
from tango.inference.asking import rows
from tango.inference.chat import Answer
from tango.motionqa.questions import prompt, read_questions
from tango.motionqa.shipped import DATA, NotShipped, shipped
from tango.pruners import REGISTRY
from tango.pruners.trace import GONE
from tango.visualize.picture import Picture, groups
from tango.visualize.sheet import draw_legend
from tango.visualize.tiles import Tiles

SAMPLES = 6  # of MotionQA, one of each kind of question
LEGEND_WIDTH = 720  # pixels
CSS = """
.frames { display: flex; flex-wrap: wrap; gap: .5rem } .frames figure { margin: 0; width: 11rem }
.frames img { width: 100% } .frames figcaption { font-size: .8rem } .legend { max-width: 100%; margin-top: .5rem }
.refused { border-left: .3rem solid #c33; padding-left: .7rem } video { max-height: 20rem }
.numbers { width: 100%; border-collapse: collapse } .numbers :is(th, td) { padding: .15rem .5rem; text-align: right }
.numbers :is(th, td):first-child { text-align: left; white-space: pre-wrap }
.numbers tr { border-bottom: 1px solid #8884 }
"""
NOTHING = ("", "", "", "", None)  # in the order of the outputs of answers() below


def build(visitors: Visitors, streams: Streams, title: str, folder: Path) -> gr.Blocks:
    """The page as Gradio's Blocks.

    Args:
        title: what the model is called.
        folder: the app's own, to which samples are copied, since nothing else may be read.
    """
    samples = copy_samples(folder)
    page = gr.Blocks(title="Tango", analytics_enabled=False, delete_cache=(600, 3600))
    with page:
        gr.Markdown(f"# Tango\n{title} answers a question about a video, from all of its tokens and from few.")
        with gr.Tab("Video"):
            with gr.Row():
                with gr.Column():
                    video = gr.Video(
                        label="Video",
                        sources=["upload", "webcam"],
                        webcam_options=gr.WebcamOptions(mirror=False),
                    )
                    sample = gr.Dropdown(list(samples), label="Sample", value=None, visible=bool(samples))
                    question = gr.Textbox(label="Question", lines=3, max_lines=8)
                    method = gr.Dropdown(visitors.methods, value=preferred(visitors.methods), label="Method")
                    ratio = gr.Slider(0.01, 1, 0.1, step=0.01, label="Retention ratio")
                    ask = gr.Button("Ask", variant="primary")
                with gr.Column():
                    with gr.Row():
                        unpruned = gr.Textbox(label="Unpruned", lines=3, interactive=False)
                        pruned = gr.Textbox(label="Pruned", lines=3, interactive=False)
                    numbers, frames = gr.HTML(), gr.HTML()
            last = gr.State(time_to_live=3600)
            outputs = [unpruned, pruned, numbers, frames, last]

            def answers(
                video: str | None, question: str | None, method: str, ratio: float, last: Any
            ) -> Iterator[tuple[str, str, str, str, Any]]:
                """The unpruned answer, then both with numbers and frames; `last`: the last question and its first."""
                asked = (video, question := question or "")
                try:
                    visitors.check(video, question)
                    if last is None or last[0] != asked:
                        yield NOTHING
                        last = (asked, answered(visitors, video, question, None)[0])
                    first = last[1]
                    yield said(first), "", "", "", last
                    second, picture = answered(visitors, video, question, REGISTRY[method](retention_ratio=ratio))
                except Refused as error:
                    yield "", "", refused(error), "", None
                    return
                both = {"unpruned": first, f"{method} {ratio:g}": second}
                table = tabled({name: one for name, one in both.items() if isinstance(one, Answer)})
                yield said(first), said(second), table, drawn(picture), last

            def again(video: str | None, question: str, method: str, ratio: float, last: Any) -> Iterator[Any]:
                """The same after another method or ratio was chosen, once there is an answer."""
                if last is not None:
                    yield from answers(video, question, method, ratio, last)

            inputs = [video, question, method, ratio, last]
            run: dict[str, Any] = {
                "inputs": inputs,
                "outputs": outputs,
                "concurrency_id": "model",
                "concurrency_limit": 1,
                "api_visibility": "private",
            }
            gr.on([ask.click, question.submit], answers, **run)
            gr.on([ratio.release, method.input], again, trigger_mode="always_last", **run)
            sample.change(samples.get, sample, [video, question], concurrency_limit=None, api_visibility="private")
        if streams.methods:
            with gr.Tab("Live"):
                build_live(streams, samples, preferred(streams.methods))
        page.unload(streams.left)
    return page


def preferred(methods: list[str]) -> str:
    """The method that is chosen at first."""
    return "tango" if "tango" in methods else methods[0]


def copy_samples(folder: Path) -> dict[str, tuple[str, str]]:
    """Questions of MotionQA, if this is a checkout: what to choose them by, a video in the folder and the prompt."""
    try:
        data = Path(shipped(DATA))
    except NotShipped:
        return {}
    found = {}
    for number, row in enumerate(read_questions(data)[: SAMPLES * (SAMPLES + 1) : SAMPLES + 1]):
        copy = folder / f"sample{number}" / Path(row["video"]).name
        copy.parent.mkdir()
        shutil.copy(data / row["video"], copy)
        found[f"{copy.name}: {row['question']}"] = (str(copy), prompt(row["question"], row["options"]))
    return found


def answered(visitors: Visitors, video: Any, question: str, pruner: Any) -> tuple[Answer | str, Picture | None]:
    """An answer with its picture, or why there is none: a prompt that is too long unpruned may not be so pruned."""
    try:
        return visitors.ask(video, question, pruner)
    except Refused as error:
        return str(error), None


def said(answer: Answer | str) -> str:
    """What a text box shows of an answer."""
    return answer if isinstance(answer, str) else str(answer.response)


def tabled(answers: dict[str, Answer]) -> str:
    """Tokens and times as HTML, a column an answer."""
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in answers)
    lines = [
        f"<tr><td>{html.escape(title)}</td>{''.join(f'<td>{number}</td>' for number in numbers)}</tr>"
        for title, numbers in rows(answers.values())
    ]
    return f'<table class="numbers"><tr><th></th>{heads}</tr>{"".join(lines)}</table>' if answers else ""


def drawn(picture: Picture | None) -> str:
    """The frames with what became of their tokens, and what the marks mean, as HTML that needs no other file."""
    if picture is None:
        return ""
    panel, tiles, each = picture.panels[0][0], Tiles(picture), picture.grid[0] * picture.grid[1]
    numbers = groups(panel.joined)
    figures = []
    for frame, second in enumerate(picture.times):
        part = slice(frame * each, (frame + 1) * each)
        kept = int((panel.roles[part] != GONE).sum())
        merged = int(np.count_nonzero((panel.roles[part] == GONE) & (panel.joined[part, 0] >= 0)))
        text = f"{second:.1f} s: {kept} kept, {merged} merged, {each - kept - merged} dropped"
        image = inline(tiles.fates(panel, frame, numbers), f"frame {frame}, {text}")
        figures.append(f"<figure>{image}<figcaption>{text}</figcaption></figure>")
    legend = inline(draw_legend(picture, LEGEND_WIDTH), "what the marks on the frames mean", "legend")
    return f'<div class="frames">{"".join(figures)}</div>{legend}<p>{html.escape(panel.count)}</p>'
