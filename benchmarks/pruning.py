"""Time and memory of prune() against the number of frames, beside the dense oracle of the tests and another commit.

    python benchmarks/pruning.py [--frames 8 16 32 64 128 256 512 1024] [--output results/performance/pruning_cpu.md]
    python benchmarks/pruning.py --against FOLDER  # a git worktree of another commit, measured on the same videos
    python benchmarks/pruning.py --device cuda [--output results/performance/pruning_cuda.md]

There are two videos of L = 196 tokens a frame, D = 896. "long" is the worst case: one segment without static places.
Cost grows with the square of a segment's length, so a video that falls apart into several is another, easier problem.
At the default threshold this one does from 256 frames on; the threshold is therefore set so that nothing is cut, and
a size whose video is not one segment without static places is refused, not measured. "ordinary" has scenes of 1 to 6
frames, half of their places static.

First tango must keep the tokens that the oracle keeps; then each size is measured in processes of its own, one at a
time and in turns with those of the oracle and of the other commit, for a machine is not always equally fast. Memory is
what a process grew by from before prune() to its highest point, the video itself not counted (Linux: /proc).

On a GPU tokens are bfloat16 of D = 3584, as in a model of 7 billion parameters. Beside time and memory it counts what
the host waits for.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import itertools
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
FOLDER = "TANGO_BENCHMARK_FOLDER"  # in the environment of a process that measures another commit: where that is
sys.path[:0] = [os.environ.get(FOLDER, str(ROOT)), str(ROOT / "tests")]

from oracle import Oracle  # noqa: E402

from tango import Tango, __version__  # noqa: E402

TOKENS, DIM, GRID = 196, 896, (14, 14)
CUDA_DIM, CUDA_CASES = 3584, (("ordinary", 32), ("long", 32), ("ordinary", 256), ("long", 256), ("ordinary", 1024))
CUDA = "cuda"
ORACLE_FRAMES = 8, 32, 64  # its n x n distances take 0.6 GB a copy at the last, 2.4 GB at twice the frames
CHECKED_FRAMES = 32  # up to here the oracle's distances from differences take seconds
Video = tuple[torch.Tensor, torch.Tensor, tuple[int, int], torch.Tensor]


def long_segment(frames: int, seed: int = 0, dim: int = DIM) -> Video:
    """Features (F, L, D), saliency (F, L), grid, timestamps: two scenes alike enough to be one segment, half moving."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    common = 1.5 * noise(dim)
    scenes = common + noise(2, TOKENS, dim)
    foreground = torch.randperm(TOKENS, generator=generator) < TOKENS // 2
    features = torch.empty(frames, TOKENS, dim)
    for f in range(frames):
        features[f] = scenes[2 * f // frames] + 0.1 * noise(TOKENS, dim)
        moved = foreground & (torch.rand(TOKENS, generator=generator) < 0.3)
        features[f, moved] = common + noise(int(moved.sum()), dim)
    return features, torch.rand(frames, TOKENS, generator=generator), GRID, torch.arange(frames).float()


def ordinary(frames: int, seed: int = 0, dim: int = DIM) -> Video:
    """The same of scenes of 1 to 6 frames, a quarter of whose places moves; the others hardly change in a scene."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(dim, generator=generator)
    features = torch.empty(frames, TOKENS, dim)
    left = 0
    for f in range(frames):
        if left == 0:
            left = int(torch.randint(1, 7, (1,), generator=generator))
            scene = common + 1.5 * torch.randn(TOKENS, dim, generator=generator)
            moving = torch.rand(TOKENS, generator=generator) < 0.25
        left -= 1
        features[f] = scene + 0.3 * torch.randn(TOKENS, dim, generator=generator)
        features[f, moving] = common + 1.5 * torch.randn(int(moving.sum()), dim, generator=generator)
    return features, torch.rand(frames, TOKENS, generator=generator), GRID, torch.arange(frames).float()


RATIO = 0.1
VIDEOS = {"long": long_segment, "ordinary": ordinary}
SETTINGS: dict[str, dict[str, Any]] = {
    "long": {"retention_ratio": RATIO, "similarity_threshold": -1.0},  # -1: never cut
    "ordinary": {"retention_ratio": RATIO},
}


def refuse_easier(video: Video, sizes: list[int]) -> None:
    """Raises SystemExit unless the video is one segment without static places: the numbers would mislead."""
    features = video[0]
    same = [torch.cosine_similarity(x.float(), y.float(), dim=-1) > 0.8 for x, y in itertools.pairwise(features)]
    static = int(torch.stack(same).all(0).sum())
    if sizes != [len(features)] or static:
        raise SystemExit(f"not the worst case: segments of {sizes} frames, {static} static places in all")


def measure(which: str, kind: str, frames: int, runs: int) -> dict[str, Any]:
    """Seconds of each run after a warm-up on 8 frames, MiB the process grew by, and the number of segments.

    In a process of its own; which: "oracle", or else the tango that is imported there.
    """
    video = VIDEOS[kind](frames)
    method: Any = Oracle(**SETTINGS[kind], distance="product") if which == "oracle" else Tango(**SETTINGS[kind])
    method.prune(*VIDEOS[kind](8))
    ctypes.CDLL(None).malloc_trim(0)  # what the warm-up freed goes back, and counts where it is needed again
    Path("/proc/self/clear_refs").write_text("5")  # the highest point so far is forgotten
    before = highest_point()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        pruned = method.prune(*video)
        seconds.append(time.perf_counter() - start)
    grown = (highest_point() - before) / 1024
    sizes = pruned[2] if which == "oracle" else pruned.segment_sizes.tolist()
    if kind == "long":
        refuse_easier(video, sizes)
    return {"seconds": seconds, "mib": grown, "segments": len(sizes)}


def highest_point() -> int:
    """The most resident memory of this process so far, in KiB."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1])


def processor() -> str:
    names = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    return names[0].split(":")[1].strip() if names else platform.machine()


def check(kind: str, video: Video) -> tuple[Any, str]:
    """What tango keeps of a video, and how near it is to the oracle; raises SystemExit if they keep other tokens.

    The oracle takes distances from differences here: products, which it is timed with, round, and so decide near-ties
    otherwise.
    """
    pruned = Tango(**SETTINGS[kind]).prune(*video)
    indices, values, sizes = Oracle(**SETTINGS[kind]).prune(*video)
    name = f"{kind}, {len(video[0])} frames"
    if pruned.segment_sizes.tolist() != list(sizes) or not torch.equal(pruned.indices, indices):
        raise SystemExit(f"{name}: other tokens than the oracle's; nothing is timed")
    error = (pruned.features.float() - values).abs().max().item()
    rounding = 2**-8 * values.abs().max().item() if pruned.features.dtype == torch.bfloat16 else 0
    if error > rounding + 1e-4:
        raise SystemExit(f"{name}: features differ by {error:.1e} from the oracle's; nothing is timed")
    return pruned, f"{name}: same tokens, features within {error:.0e}"


def in_child(which: str, kind: str, frames: int, runs: int, folder: Path = ROOT) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", which, kind, "--frames", str(frames), "--runs", str(runs)]
    environment = os.environ | {FOLDER: str(folder.resolve())}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        return {"error": (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]}
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def together(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """All seconds of several processes, and the most memory; the first error where there is one; empty if none ran."""
    for turn in turns:
        if "error" in turn:
            return turn
    seconds = [x for turn in turns for x in turn["seconds"]]
    return turns[0] | {"seconds": seconds, "mib": max(turn["mib"] for turn in turns)} if turns else {}


def row(kind: str, frames: int, results: list[dict[str, Any]]) -> str:
    """A line of the table: time and memory of tango and of the others, then how many times faster tango is."""
    tango, *others = results
    cells = [kind, str(frames), str(tango.get("segments", ""))]
    for result in results:
        cells += cell(result)
    for other in others:
        both = "seconds" in tango and "seconds" in other
        cells.append(f"{median(other['seconds']) / median(tango['seconds']):.1f}" if both else "")
    return f"| {' | '.join(cells)} |"


def cell(result: dict[str, Any]) -> tuple[str, str]:
    if not result:
        return "not run", ""
    if "error" in result:
        return result["error"], ""
    seconds = result["seconds"]
    return f"{median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})", f"{result['mib']:.0f}"


def timed(run: Callable[[], Any], runs: int) -> tuple[list[float], float]:
    """Milliseconds of each run on the GPU, host time included, after two to warm up; and the most MiB above before."""
    run(), run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return times, (torch.cuda.max_memory_allocated() - before) / 2**20


def waits(run: Callable[[], Any]) -> int:
    """How often the host waits for the GPU in a run."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def cuda_row(kind: str, frames: int, runs: int) -> str:
    """A row of the table of a GPU; raises SystemExit if what is kept is not what the oracle keeps."""
    features, saliency, grid, times = VIDEOS[kind](frames, dim=CUDA_DIM)
    video = features.to(CUDA, torch.bfloat16), saliency.to(CUDA), grid, times
    del features
    method, oracle = Tango(**SETTINGS[kind]), Oracle(**SETTINGS[kind], distance="product")
    slow: list[float] = []
    if frames <= CHECKED_FRAMES:
        with torch.device(CUDA):
            pruned, _ = check(kind, video)
            slow, _ = timed(lambda: oracle.prune(*video), runs)
    else:
        pruned = method.prune(*video)
    sizes = pruned.segment_sizes.tolist()
    if kind == "long":
        refuse_easier(video, sizes)
    fast, mib = timed(lambda: method.prune(*video), runs)
    cells = [kind, frames, len(sizes), f"{median(fast):.2f} ({min(fast):.2f} to {max(fast):.2f})"]
    cells += [waits(lambda: method.prune(*video)), f"{mib:.0f}"]
    cells += [f"{median(slow):.1f}", f"{median(slow) / median(fast):.1f}"] if slow else ["not run", ""]
    return f"| {' | '.join(map(str, cells))} |"


def on_cuda(runs: int, output: Path | None) -> None:
    """The table of a GPU."""
    if not torch.cuda.is_available():
        raise SystemExit("--device cuda: there is no GPU that PyTorch can use")
    lines = [
        "# Pruning on a GPU: time and memory",
        "",
        f"- made by: python benchmarks/pruning.py --device cuda --runs {runs}",
        f"- machine: {torch.cuda.get_device_name()}; {processor()}",
        f"- tango {__version__}, python {platform.python_version()}, torch {torch.__version__}; "
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        f"- video: bfloat16, {TOKENS} x {CUDA_DIM} a frame, retention ratio {RATIO}; long: one segment without static "
        "places; ordinary: scenes of 1 to 6 frames, mostly static",
        f"- checked in every row of up to {CHECKED_FRAMES} frames: the same tokens as the oracle's, plain, dense and "
        "in fp32 on the same GPU, with distances from differences; it is timed with distances from matrix products",
        "- memory: above what the video takes; waits: for the GPU, by the host, in one prune()",
        "",
        "| video | frames | segments | tango, ms (median, range) | waits | MiB | oracle, ms | times faster |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    print("\n".join(lines), flush=True)
    for kind, frames in CUDA_CASES:
        lines.append(cuda_row(kind, frames, runs))
        print(lines[-1], flush=True)
    write(lines, output)


def write(lines: list[str], output: Path | None) -> None:
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text("\n".join(lines) + "\n", encoding="utf-8")


def on_cpu(args: argparse.Namespace) -> None:
    """The table of a CPU."""
    to_check = [frames for frames in args.frames if frames <= CHECKED_FRAMES] or [8]
    checked = [check(kind, VIDEOS[kind](frames))[1] for frames in to_check for kind in VIDEOS]
    names, options = ["tango", "oracle"], ""
    if args.against:
        options = " --against FOLDER"
        command = ["git", "-C", str(args.against), "rev-parse", "--short", "HEAD"]
        names.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    numbers = {"frames": args.frames, "runs": [args.runs], "turns": [args.turns], "oracle-frames": args.oracle_frames}
    options += "".join(f" --{name} {' '.join(map(str, values))}" for name, values in numbers.items())
    columns = ["video", "frames", "segments", "tango, s (median, range)", "tango, MiB"]
    columns += [f"{name}, {unit}" for name in names[1:] for unit in ("s", "MiB")]
    columns += [f"times faster than {name}" for name in names[1:]]
    lines = [
        "# Pruning on a CPU: time and memory against frames",
        "",
        f"- made by: python benchmarks/pruning.py{options}",
        f"- machine: {processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        f"- tango {__version__}, python {platform.python_version()}, torch {torch.__version__}; "
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        f"- video: {TOKENS} x {DIM} a frame, retention ratio {RATIO}; long: one segment of all frames without static "
        f"places (checked for every row; similarity threshold {SETTINGS['long']['similarity_threshold']}); ordinary: "
        "scenes of 1 to 6 frames, mostly static",
        f"- checked first: {'; '.join(checked)}",
        "- oracle: plain dense version, matrix-product distances (tests/oracle.py)",
        *([f"- {names[2]}: tango as of that commit"] if args.against else []),
        "",
        f"| {' | '.join(columns)} |",
        f"|---{'|---:' * (len(columns) - 1)}|",
    ]
    print("\n".join(lines), flush=True)
    for kind, frames in itertools.product(VIDEOS, args.frames):
        runs = 1 if frames >= 256 else args.runs
        turns: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for _ in range(args.turns):
            for name in names:
                if name != "oracle":
                    folder = ROOT if name == "tango" else args.against
                    turns[name].append(in_child("tango", kind, frames, runs, folder))
                elif frames in args.oracle_frames:
                    turns[name].append(in_child("oracle", kind, frames, runs))
        lines.append(row(kind, frames, [together(turns[name]) for name in names]))
        print(lines[-1], flush=True)
    write(lines, args.output)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256, 512, 1024])
    parser.add_argument(
        "--oracle-frames", type=int, nargs="+", default=list(ORACLE_FRAMES), help="sizes to measure the oracle at, too"
    )
    parser.add_argument("--runs", type=int, default=3, help="timed runs of a process; one from 256 frames on")
    parser.add_argument("--turns", type=int, default=3, help="processes of each size, tango and the others in turns")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="a git worktree of a commit to measure as well")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, help="write the table to this file as well")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(*args.child, args.frames[0], args.runs)))
    elif args.device == "cuda":
        on_cuda(max(args.runs, 20), args.output)
    else:
        on_cpu(args)


if __name__ == "__main__":
    main()
