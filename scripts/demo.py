"""Behind `make demo`: sweeps pruning methods over MotionQA with tango-tiny in both frameworks, then writes the tables.

    python scripts/demo.py [--frameworks lmms-eval] [--jobs 1] [--limit 100] [--output results/motionqa]

All cells run in the first framework; the second repeats the unpruned model and Tango, and README.md in --output says
whether it came to the same. Run again it goes on where it was stopped; finished cells are not computed again.
`make benchmark` is lmms-eval with all methods at all ratios and the ablations of Tango.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from tango.motionqa.questions import data_files, read_questions
from tango.pruners import REGISTRY
from tango.results import write_results
from tango.results.samples import ARCHIVE, pack
from tango.runs.settings import VANILLA
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
