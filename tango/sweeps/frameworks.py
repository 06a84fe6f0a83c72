"""The two evaluation frameworks as sweeps run them, and what each calls the paper's benchmarks."""

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """A benchmark in one framework.

    name: the framework's own. repository: its data set on the hub, None for what this repository ships. pattern: files
    by which to tell that it is there. branch: of the repository. tasks: how many the name stands for; --limit holds for
    each.
    """

    name: str
    repository: str | None = None
    pattern: str = "**/*"
    tasks: int = 1
    branch: str = "main"


@dataclass(frozen=True)
class Framework:
    """name: also of the folder with its plugin. package: on the package index. plugin: the module that hooks into it.
    module, output: what is run with python -m, and its flag for the folder of results. benchmarks: by the names of
    QUESTIONS. frames: of which it has data sets, if it cannot take any number.
    """

    name: str
    package: str
    plugin: str
    module: str
    output: str
    benchmarks: Mapping[str, Benchmark]
    frames: tuple[int, ...] | None = None


MOTIONQA = "MotionQA"
QUESTIONS = {"Video-MME": 2700, "MVBench": 4000, "LongVideoBench": 1337, "MLVU": 2174}  # in the paper's order

LMMS_EVAL = Framework(
    name="lmms-eval",
    package="lmms-eval",
    plugin="tango_lmms_eval",
    module="lmms_eval",
    output="--output_path",
    benchmarks={
        "Video-MME": Benchmark("videomme", "lmms-eval/Video-MME", "videomme/*.parquet"),
        "MVBench": Benchmark("mvbench", "OpenGVLab/MVBench", "json/*.json", tasks=20, branch="video"),
        "LongVideoBench": Benchmark("longvideobench_val_v", "longvideobench/LongVideoBench", "lvb_val.json"),
        "MLVU": Benchmark("mlvu_dev", "sy1998/MLVU_dev"),
        MOTIONQA: Benchmark("motionqa"),
    },
)
VLMEVALKIT = Framework(
    name="VLMEvalKit",
    package="ms-vlmeval",
    plugin="tango_vlmeval",
    module="tango_vlmeval",
    output="--work-dir",
    benchmarks={
        "Video-MME": Benchmark("Video-MME", "lmms-lab/Video-MME", "videomme/*.parquet"),
        "MVBench": Benchmark("MVBench", "OpenGVLab/MVBench", "json/*.json"),
        "LongVideoBench": Benchmark("LongVideoBench", "longvideobench/LongVideoBench", "lvb_val.json"),
        "MLVU": Benchmark("MLVU_MCQ", "MLVU/MVLU", "MLVU/json/*.json"),
        MOTIONQA: Benchmark("MotionQA"),
    },
    frames=(8, 16, 32, 64),
)
FRAMEWORKS = {framework.name: framework for framework in (LMMS_EVAL, VLMEVALKIT)}


def _plain(name: str) -> str:
    """Without the number of frames, case and punctuation."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"_\d+frame$", "", name).lower())


_NAMES = {
    _plain(called): name
    for framework in FRAMEWORKS.values()
    for name, benchmark in framework.benchmarks.items()
    for called in (name, benchmark.name)
}


def benchmark_name(name: str) -> str:
    """The benchmark's own name, whatever a framework calls it; a name that is not known, without its frames."""
    return _NAMES.get(_plain(name), re.sub(r"_\d+frame$", "", name))
