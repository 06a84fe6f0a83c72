"""Behind run_eval_*.sh: one model on the paper's benchmarks, unpruned and pruned, as a sweep that goes on where it was.

    NPROC=8 python -m tango_vlmeval.benchmarks --model lmms-lab/llava-onevision-qwen2-7b-ov --frames 32 \
        --config ../configs/llava_onevision.yaml --output outputs/llava_onevision [--dry-run]

With --ray, cells run side by side on the nodes of a Ray cluster, each on GPUs of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from tango.evaluation.cells import Evaluation
from tango.evaluation.machines import LOCAL, RayCluster
from tango.evaluation.preflight import missing_checkpoint, missing_dataset, missing_pooling_head, processes
from tango.evaluation.settings import VANILLA, SettingsError, from_environment
from tango.evaluation.sweep import Cell, Sweep, SweepError
from tango.evaluation.timing import efficiency_table
from tango.evaluation.vlmeval_cells import vlmeval_cell
from tango.results import label, summary

MOTIONQA = Path(__file__).resolve().parents[2] / "data" / "motionqa"


@dataclass(frozen=True)
class Benchmark:
    """Where VLMEvalKit takes a data set from, a file by which to tell that it is there, and its number of questions."""

    repository: str
    pattern: str
    questions: int


BENCHMARKS = {
    "Video-MME": Benchmark("lmms-lab/Video-MME", "videomme/*.parquet", 2700),
    "MVBench": Benchmark("OpenGVLab/MVBench", "json/*.json", 4000),
    "LongVideoBench": Benchmark("longvideobench/LongVideoBench", "lvb_val.json", 1337),
    "MLVU_MCQ": Benchmark("MLVU/MVLU", "MLVU/json/*.json", 2174),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tango_vlmeval.benchmarks", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", required=True, help="folder or hub id of the checkpoint")
    parser.add_argument("--frames", type=int, required=True, choices=(8, 16, 32, 64), help="frames of each video")
    parser.add_argument("--config", required=True, help="settings of the methods (TANGO_CONFIG)")
    parser.add_argument("--output", type=Path, required=True, help="folder of the sweep")
    parser.add_argument("--benchmarks", nargs="+", default=list(BENCHMARKS), choices=[*BENCHMARKS, "MotionQA"])
    parser.add_argument("--methods", nargs="*", default=["tango"], help="values of WRAPPER beside the unpruned model")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.1, 0.15, 0.2], help="retention ratios")
    parser.add_argument("--limit", type=int, help="only the first so many questions of each benchmark")
    parser.add_argument("--pooling-head", action="store_true", help="saliency is read from SigLIP's own checkpoint")
    parser.add_argument("--dry-run", action="store_true", help="print each command and end")
    parser.add_argument(
        "--ray", metavar="ADDRESS", help=f"run cells on this Ray cluster (auto: the one here; {LOCAL}: start one)"
    )
    parser.add_argument(
        "--gpus", type=int, help="GPUs, and so processes, of each cell with --ray; by default 1, 0 for a CPU"
    )
    args = parser.parse_args(arguments)
    if args.gpus is not None and args.ray is None:
        parser.error("--gpus goes with --ray; without it NPROC processes share this machine's GPUs")
    gpus = 1 if args.gpus is None else args.gpus
    console = Console()

    problems = missing(args)
    try:
        count = processes() if args.ray is None else max(1, gpus)
    except ValueError as error:
        problems.append(str(error))
        count = 1
    if not args.dry_run and problems:
        for problem in problems:
            console.print(f"[red]missing:[/] {problem}", soft_wrap=True, highlight=False)
        return 2
    grid = [(VANILLA, None), *((method, ratio) for method in args.methods for ratio in args.ratios)]
    cells = [cell(args, benchmark, method, ratio, count) for benchmark in args.benchmarks for method, ratio in grid]
    if args.dry_run:
        for one in cells:
            variables = [f"{name}={shlex.quote(value)}" for name, value in one.environment.items() if value]
            print(" ".join([*variables, shlex.join(one.command)]))
        for problem in problems:
            print(f"missing: {problem}", file=sys.stderr)
        return 0
    try:
        with contextlib.ExitStack() as stack:
            machine = stack.enter_context(RayCluster(args.ray, gpus)) if args.ray is not None else None
            sweep = Sweep(args.output, cells, console=console, machine=machine)
            failures = sweep.run()
    except SweepError as error:
        console.print(f"[red]{error}[/]")
        return 2
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here")
        return 130
    for benchmark in args.benchmarks:
        finished = [result for result in sweep.results() if result["cell"]["benchmark"].rsplit("_", 1)[0] == benchmark]
        if finished:
            console.rule(benchmark)
            console.print(summary(finished))
            console.print(efficiency_table({label(result): result["efficiency"] for result in finished}))
    for name, reason in failures.items():
        console.print(f"[red]{name}[/]: {reason}", soft_wrap=True)
    return 1 if failures else 0


def missing(args: argparse.Namespace) -> list[str]:
    """What the sweep would lack, each with what to do about it."""
    found = [missing_checkpoint(args.model)]
    if args.pooling_head and not Path(args.model).is_dir():
        found.append(missing_pooling_head(args.model))
    for name in args.benchmarks:
        if name in BENCHMARKS:
            found.append(missing_dataset(BENCHMARKS[name].repository, BENCHMARKS[name].pattern))
        elif not (MOTIONQA / "test.json").is_file():
            found.append(f"{MOTIONQA / 'test.json'}: make it with scripts/make_motionqa.py")
    for method in args.methods:
        for ratio in args.ratios:
            try:
                from_environment(
                    {"WRAPPER": method, "TANGO_CONFIG": args.config, "TANGO_ARGS": f"retention_ratio={ratio:g}"}
                )
            except SettingsError as error:
                found.append(str(error))
    return list(dict.fromkeys(problem for problem in found if problem is not None))


def cell(args: argparse.Namespace, benchmark: str, method: str, ratio: float | None, count: int) -> Cell:
    if benchmark in BENCHMARKS:
        data, questions = [], BENCHMARKS[benchmark].questions
    else:
        data = [MOTIONQA / "test.json", *sorted((MOTIONQA / "videos").glob("*"))]
        questions = len(json.loads(data[0].read_text(encoding="utf-8"))) if data[0].is_file() else 0
    evaluation = Evaluation(
        args.model,
        questions,
        data,
        method,
        ratio,
        config=os.path.abspath(args.config) if args.config else None,
        limit=args.limit,
        processes=count,
    )
    return vlmeval_cell(Path(os.path.abspath(args.output)), evaluation, dataset=f"{benchmark}_{args.frames}frame")


if __name__ == "__main__":
    sys.exit(main())
