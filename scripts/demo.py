"""Behind `make demo`: sweeps pruning methods over MotionQA with tango-tiny in both frameworks, then writes the tables.

    python scripts/demo.py [--frameworks lmms-eval] [--jobs 1] [--limit 100] [--output results/motionqa]

All cells run in the first framework; the second repeats the unpruned model and Tango, and README.md in --output says
whether it came to the same. Run again it goes on where it was stopped; finished cells are not computed again. Until one
of them is finished it asks 60 questions itself before all else, so that there is a first number soon.
`make benchmark` is lmms-eval with all methods at all ratios and the ablations of Tango.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers.utils.logging import disable_progress_bar

from tango.motionqa.questions import data_files, prompt, read_questions
from tango.motionqa.shipped import FRAMES
from tango.pruners import REGISTRY
from tango.results import write_results
from tango.results.samples import ARCHIVE, pack
from tango.results.statistics import bootstrap, wilson
from tango.runs.run import EvaluationRun
from tango.runs.runner import Sample
from tango.runs.scoring import parse_choice
from tango.runs.settings import VANILLA, MethodSettings, make_pruner
from tango.sweeps.cells import Evaluation
from tango.sweeps.expand import impossible
from tango.sweeps.frameworks import FRAMEWORKS, LMMS_EVAL
from tango.sweeps.lmms_cells import lmms_cell
from tango.sweeps.sweep import Cell, Sweep, SweepError
from tango.sweeps.vlmeval_cells import vlmeval_cell

RATIOS = (0.1, 0.15, 0.2)
BASELINES = ("random", "topk")  # at the smallest ratio: is Tango's choice better than a trivial one?
ABLATED = 0.1  # the ratio of the ablations
REPEATED = (VANILLA, "tango")  # in the second framework
FIRST = 60  # questions that are asked before the frameworks are
DATA, TASK, DATASET = Path("data/motionqa"), "motionqa", "MotionQA_8frame"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--checkpoint", default="checkpoints/tango-tiny", help="folder of the model")
    parser.add_argument("--frameworks", nargs="+", choices=FRAMEWORKS, default=list(FRAMEWORKS), help="default: both")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with test.json and videos/")
    parser.add_argument("--task", default=TASK, help="lmms-eval's name of the task that reads --data")
    parser.add_argument("--dataset", default=DATASET, help="VLMEvalKit's name of the data set that reads --data")
    parser.add_argument("--include-path", help="folder of lmms-eval tasks, if --task is not the plugin's own")
    parser.add_argument("--config", default="configs/tango_tiny.yaml", help="settings of the methods (TANGO_CONFIG)")
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS, help="retention ratios for Tango")
    parser.add_argument("--methods", nargs="*", default=(), help="methods to run at every ratio, or 'all'")
    parser.add_argument("--ablations", type=Path, help="folder of settings files, each run with Tango at ratio 0.1")
    parser.add_argument("--title", default="MotionQA", help="of tables and plots")
    parser.add_argument("--baselines", nargs="*", default=BASELINES, help="methods to run at the smallest ratio")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time; more are faster, but time each other")
    parser.add_argument("--limit", type=int, help="only the first so many questions")
    parser.add_argument("--work", type=Path, default=Path("build/sweeps/motionqa"), help="folder of the sweep")
    parser.add_argument("--output", type=Path, default=Path("results/motionqa"), help="folder of tables and plot")
    parser.add_argument("--no-samples", action="store_true", help=f"leave out {ARCHIVE}, of which the tables follow")
    args = parser.parse_args()
    console = Console(markup=False, emoji=False)
    if (problem := wrong(args)) is not None:
        console.print(problem, style="red", soft_wrap=True)
        return 2
    cells = cells_of(args, possible(grid_of(args), console))
    sweep = Sweep(args.work, cells, args.jobs, console)
    try:
        if args.data.resolve() == DATA.resolve() and not args.limit and not sweep.results():
            first_look(args, console)
        failures = sweep.run()
    except SweepError as error:
        console.print(str(error), style="red")
        return 2
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here")
        return 130
    results = sweep.results()
    if results:
        missing = [f"no result of {cell.name}" for cell in cells if sweep.finished(cell) is None]
        command = shlex.join(["python", *sys.argv])
        write_results(results, args.output, command, missing, args.title).show(console)
        keep_samples(args, [cell for cell in cells if sweep.finished(cell) is not None])
    for name, reason in failures.items():
        console.print(f"{name}: {reason}", style="red", soft_wrap=True)
    return 1 if failures else 0


def keep_samples(args: argparse.Namespace, finished: list[Cell]) -> None:
    """Beside the tables, in place of those of an earlier run."""
    archive = args.output / ARCHIVE
    if args.no_samples:
        archive.unlink(missing_ok=True)
    else:
        pack([args.work / "cells" / cell.name for cell in finished], archive)


def first_look(args: argparse.Namespace, console: Console) -> None:
    """Accuracy of the unpruned model and of Tango at the smallest ratio, on all questions about every twelfth video.

    Answers are kept in --work, so that the same again takes seconds.
    """
    begun = time.monotonic()
    console.print(f"a first look, {FIRST} questions:", highlight=False)
    from tango.inference.chat import Chat
    from tango.inference.checkpoints import load

    rows = read_questions(args.data)
    some = list(dict.fromkeys(row["video"] for row in rows))[::12]
    rows = [row for row in rows if row["video"] in some][:FIRST]
    disable_progress_bar()
    checkpoint = load(args.checkpoint)
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    scores = []
    with Progress(*columns, console=console, transient=True) as progress:
        ratio = min(args.ratios)
        for method, values in ((VANILLA, {}), ("tango", {"retention_ratio": ratio})):
            pruner = make_pruner(method, args.config, values)
            name = "unpruned" if pruner is None else f"Tango {100 * ratio:g} %"
            chat = Chat(checkpoint, pruner, max_frames=FRAMES)
            run = EvaluationRun(MethodSettings(method, pruner), chat, journal=args.work / "first" / method)
            with chat.session():
                asked = [sample_of(run, row, args.data) for row in rows]
                records = list(progress.track(run.runner.run(asked), total=len(rows), description=name))
            run.close()
            right = [
                parse_choice(str(record.response), row["options"]) for record, row in zip(records, rows, strict=True)
            ]
            scores.append(np.array([float(a == row["answer"]) for a, row in zip(right, rows, strict=True)]))
            accuracy = wilson(float(scores[-1].mean()), len(rows)).text()
            kept = sum(record.tokens["video_tokens_after"] for record in records)
            kept /= sum(record.tokens["video_tokens_before"] for record in records)
            difference = (
                "" if pruner is None else f", difference {bootstrap([(scores[1], scores[0])])[0].text(signed=True)}"
            )
            console.print(
                f"  {name}: {accuracy} % of {len(rows)} questions right, {100 * kept:.1f} % of the tokens{difference}",
                highlight=False,
                soft_wrap=True,
            )
    seconds = time.monotonic() - begun
    console.print(f"  (95 % intervals; {seconds:.0f} s.) Now all of them, in both frameworks:", highlight=False)


def sample_of(run: EvaluationRun, row: dict[str, Any], data: Path) -> Sample:
    """A question as the frameworks' tasks ask it."""
    content = [
        {"type": "video", "video": str((data / row["video"]).resolve())},
        {"type": "text", "text": prompt(row["question"], row["options"])},
    ]
    settings = {"max_new_tokens": 8, "do_sample": False, "until": ["\n"]}
    return run.sample(
        TASK, row["id"], row["id"], lambda: [{"role": "user", "content": content}],
        lambda messages: run.chat.generate(messages, settings, row["id"]), settings=settings,
    )  # fmt: skip


def wrong(args: argparse.Namespace) -> str | None:
    """What of the arguments cannot be; None if all can."""
    for needed in (args.data / "test.json", Path(args.checkpoint) / "config.json", Path(args.config)):
        if not needed.is_file():
            return f"{needed} is missing; run this from the repository's root, or name what to use instead"
    if args.data.resolve() != DATA.resolve():
        for framework, option, default in zip(FRAMEWORKS, ("task", "dataset"), (TASK, DATASET), strict=True):
            if framework in args.frameworks and getattr(args, option) == default:
                return f"{framework}'s {default} does not read {args.data}; name with --{option} what does"
    if unknown := {*args.methods, *args.baselines} - {"all", *REGISTRY}:
        return f"unknown methods: {', '.join(sorted(unknown))}; there are {', '.join(REGISTRY)}"
    return None


def grid_of(args: argparse.Namespace) -> list[Evaluation]:
    """What to evaluate in the first framework."""
    count = len(read_questions(args.data))
    vanilla = Evaluation(args.checkpoint, count, data_files(args.data), limit=args.limit)
    methods = list(REGISTRY) if "all" in args.methods else list(dict.fromkeys(["tango", *args.methods]))
    chosen = [(method, ratio) for method in methods for ratio in args.ratios]
    chosen += [(method, min(args.ratios)) for method in args.baselines if method not in methods]
    grid = [replace(vanilla, method=method, ratio=ratio, config=args.config) for method, ratio in chosen]
    for settings_file in sorted(args.ablations.glob("*.yaml")) if args.ablations is not None else []:
        name, config = settings_file.stem, str(settings_file)
        grid.append(replace(vanilla, method="tango", ratio=ABLATED, config=config, variant=name))
    return [replace(vanilla, config=args.config), *grid]


def possible(grid: list[Evaluation], console: Console) -> list[Evaluation]:
    """Without what a method cannot do in this language model, which is said."""
    text = json.loads((Path(grid[0].pretrained) / "config.json").read_text(encoding="utf-8")).get("text_config", {})
    able = []
    for one in grid:
        if (reason := impossible(one.pruner, text.get("num_hidden_layers"))) is None:
            able.append(one)
        else:
            console.print(f"left out: {reason}", soft_wrap=True)
    return able


def cells_of(args: argparse.Namespace, grid: list[Evaluation]) -> list[Cell]:
    """All of the grid in the first framework, in the second what is repeated there."""
    cells = []
    for framework in dict.fromkeys(args.frameworks):
        for one in grid:
            if framework != args.frameworks[0] and (one.method not in REPEATED or one.variant is not None):
                continue
            if framework == LMMS_EVAL.name:
                cells.append(lmms_cell(args.work, one, task=args.task, include_path=args.include_path))
            else:
                cells.append(vlmeval_cell(args.work, one, dataset=args.dataset))
    return cells


if __name__ == "__main__":
    sys.exit(main())
