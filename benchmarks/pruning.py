"""Time and memory of prune() against the number of frames, beside the dense oracle of the tests.

    python benchmarks/pruning.py [--frames 8 16 32 64 128 256 512 1024] [--output results/performance/pruning_cpu.md]
    python benchmarks/pruning.py --device cuda [--output results/performance/pruning_cuda.md]

The video is made up to be the worst case: one long segment without static positions, L = 196 tokens a frame, D = 896.
Cost grows with the square of a segment's length, so a video that falls apart into several is another, easier problem.
At the default threshold this one does from 256 frames on; the threshold is therefore set so that nothing is cut, and
a size whose video is not one segment without static positions is refused, not measured.
First the fast path must equal the oracle at two sizes; then each size is measured in processes of its own, which take
turns with those of the oracle, for a machine is not always equally fast. Memory is what a process grew by from before
prune() to its highest point, the video itself not counted (Linux: /proc).

On a GPU tokens are bfloat16 of D = 3584, as in a model of 7 billion parameters, and there is an ordinary video, too:
scenes of 1 to 6 frames, half of their places static. Beside time and memory it counts what the host waits for.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from oracle import Oracle  # noqa: E402

from tango import Tango, __version__, fused  # noqa: E402
from tango.ops.segmentation import neighbour_similarity  # noqa: E402

TOKENS, DIM, GRID = 196, 896, (14, 14)
CUDA_DIM, CUDA_CASES = 3584, (("ordinary", 32), ("long", 32), ("ordinary", 256), ("long", 256), ("ordinary", 1024))
CUDA = "cuda"
ORACLE_FRAMES = 64  # its n x n distances take 0.6 GB a copy here, 2.4 GB at twice the frames
Video = tuple[torch.Tensor, torch.Tensor, tuple[int, int], torch.Tensor]
SETTINGS: dict[str, Any] = {"retention_ratio": 0.1, "similarity_threshold": -1.0}  # -1: never cut


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


def refuse_easier(video: Video, sizes: list[int]) -> None:
    """Raises SystemExit unless the video is one segment without static positions: the numbers would mislead."""
    features = video[0]
    static = int((neighbour_similarity(features) > Tango(**SETTINGS).static_threshold).all(0).sum())
    if sizes != [len(features)] or static:
        raise SystemExit(f"not the worst case: segments of {sizes} frames, {static} static positions in all")


def measure(which: str, frames: int, runs: int) -> dict[str, Any]:
    """Seconds of each run after a warm-up on 8 frames, and MiB the process grew by; run in a process of its own."""
    video = long_segment(frames)
    method: Any = Tango(**SETTINGS) if which == "fast" else Oracle(**SETTINGS, distance="product")
    method.prune(*long_segment(8))
    Path("/proc/self/clear_refs").write_text("5")  # the highest point so far is forgotten
    before = highest_point()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        pruned = method.prune(*video)
        seconds.append(time.perf_counter() - start)
    grown = (highest_point() - before) / 1024
    refuse_easier(video, pruned.segment_sizes.tolist() if which == "fast" else pruned[2])
    return {"seconds": seconds, "mib": grown}


def highest_point() -> int:
    """The most resident memory of this process so far, in KiB."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1])


def processor() -> str:
    names = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    return names[0].split(":")[1].strip() if names else platform.machine()


def check(frames: int) -> str:
    """Compares fast path and oracle on one video; raises SystemExit if they differ."""
    video = long_segment(frames)
    fast, oracle = Tango(**SETTINGS).prune(*video), Oracle(**SETTINGS, distance="product").prune(*video)
    if fast.segment_sizes.tolist() != list(oracle[2]) or not torch.equal(fast.indices, oracle[0]):
        raise SystemExit(f"{frames} frames: the fast path keeps other tokens than the oracle; nothing is timed")
    error = (fast.features - oracle[1]).abs().max().item()
    if error > 1e-4:
        raise SystemExit(f"{frames} frames: features differ by {error:.1e} from the oracle's; nothing is timed")
    return f"{frames} frames: same tokens, features within {error:.0e}"


def in_child(which: str, frames: int, runs: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", which, "--frames", str(frames), "--runs", str(runs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
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
    return {"seconds": seconds, "mib": max(turn["mib"] for turn in turns)} if turns else {}


def row(frames: int, fast: dict[str, Any], oracle: dict[str, Any]) -> str:
    cells = [str(frames), *cell(fast), *cell(oracle), ""]
    if "seconds" in fast and "seconds" in oracle:
        cells[-1] = f"{statistics.median(oracle['seconds']) / statistics.median(fast['seconds']):.1f}"
    return f"| {' | '.join(cells)} |"


def cell(result: dict[str, Any]) -> tuple[str, str]:
    if not result:
        return "not run", ""
    if "error" in result:
        return result["error"], ""
    low, middle, high = min(result["seconds"]), statistics.median(result["seconds"]), max(result["seconds"])
    return f"{middle:.2f} ({low:.2f} to {high:.2f})", f"{result['mib']:.0f}"


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


@contextmanager
def without_kernels() -> Iterator[None]:
    """The plain way, as where Triton is not installed."""
    devices, fused.DEVICES = fused.DEVICES, ()
    fused.kernels.cache_clear()
    try:
        yield
    finally:
        fused.DEVICES = devices
        fused.kernels.cache_clear()


def cuda_row(kind: str, frames: int, runs: int) -> str:
    """A row of the table of a GPU; raises SystemExit if what is kept is not what the oracle keeps."""
    features, saliency, grid, times = (long_segment if kind == "long" else ordinary)(frames, dim=CUDA_DIM)
    video = features.to(CUDA, torch.bfloat16), saliency.to(CUDA), grid, times
    del features
    settings = SETTINGS if kind == "long" else {"retention_ratio": SETTINGS["retention_ratio"]}
    method = Tango(**settings)
    pruned = method.prune(*video)
    sizes = pruned.segment_sizes.tolist()
    if kind == "long":
        refuse_easier(video, sizes)
    segments, oracle_ms, factor = len(sizes), "not run", ""
    with without_kernels():
        if not torch.equal(method.prune(*video).indices, pruned.indices):
            raise SystemExit(f"{kind}, {frames} frames: other tokens without Triton's kernels; nothing is timed")
        plain, _ = timed(lambda: method.prune(*video), runs)
    fast, mib = timed(lambda: method.prune(*video), runs)
    if frames <= ORACLE_FRAMES:
        oracle = Oracle(**settings, distance="product")
        with torch.device(CUDA):
            indices, values, _ = oracle.prune(*video)
            if not torch.equal(pruned.indices, indices):
                raise SystemExit(f"{kind}, {frames} frames: other tokens than the oracle's; nothing is timed")
            error = (pruned.features.float() - values).abs().max().item()
            if error > 2**-8 * values.abs().max().item() + 1e-4:  # the rounding of bfloat16
                raise SystemExit(f"{kind}, {frames} frames: features differ by {error:.1e} from the oracle's")
            slow, _ = timed(lambda: oracle.prune(*video), runs)
        oracle_ms = f"{statistics.median(slow):.1f}"
        factor = f"{statistics.median(slow) / statistics.median(fast):.1f}"
    middle = f"{statistics.median(fast):.2f} ({min(fast):.2f} to {max(fast):.2f})"
    count = waits(lambda: method.prune(*video))
    cells = middle, f"{statistics.median(plain):.2f}", count, f"{mib:.0f}", oracle_ms, factor
    return f"| {kind} | {frames} | {segments} | {' | '.join(map(str, cells))} |"


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
        f"- video: bfloat16, {TOKENS} x {CUDA_DIM} a frame, retention ratio {SETTINGS['retention_ratio']}; long: one "
        "segment without static places; ordinary: scenes of 1 to 6 frames, mostly static",
        f"- checked in every row of up to {ORACLE_FRAMES} frames: the same tokens as the oracle's, plain, dense and in "
        "fp32 on the same GPU",
        f"- Triton's kernels: {'used' if fused.kernels(torch.device(CUDA, 0)) else 'not used'}, and the same tokens "
        "kept without them",
        "- memory: above what the video takes; waits: for the GPU, by the host, in one prune()",
        "",
        "| video | frames | segments | tango, ms (median, range) | without kernels, ms | waits | MiB | oracle, ms | "
        "times faster |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256, 512, 1024])
    parser.add_argument(
        "--oracle-frames", type=int, default=ORACLE_FRAMES, help="most frames that the oracle is measured with, too"
    )
    parser.add_argument("--runs", type=int, default=3, help="timed runs of a process; one from 256 frames on")
    parser.add_argument("--turns", type=int, default=3, help="processes of each size, tango and oracle in turns")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, help="write the table to this file as well")
    parser.add_argument("--child", choices=("fast", "oracle"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.child, args.frames[0], args.runs)))
        return
    if args.device == "cuda":
        on_cuda(max(args.runs, 20), args.output)
        return
    checked = [check(frames) for frames in (8, 32)]
    options = f"--frames {' '.join(map(str, args.frames))} --runs {args.runs} --turns {args.turns}"
    options += f" --oracle-frames {args.oracle_frames}"
    lines = [
        "# Pruning on a CPU: time and memory against frames",
        "",
        f"- made by: python benchmarks/pruning.py {options}",
        f"- machine: {processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        f"- tango {__version__}, python {platform.python_version()}, torch {torch.__version__}; "
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        f"- video: one segment of all frames without static positions (checked for every row; similarity threshold "
        f"{SETTINGS['similarity_threshold']}), {TOKENS} x {DIM} a frame, retention ratio {SETTINGS['retention_ratio']}",
        f"- checked first: {'; '.join(checked)}",
        f"- oracle: plain dense version, matrix-product distances (tests/oracle.py), up to {args.oracle_frames} frames",
        "",
        "| frames | tango, s (median, range) | tango, MiB | oracle, s | oracle, MiB | times faster |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    print("\n".join(lines), flush=True)
    for frames in args.frames:
        once = frames >= 256
        fast: list[dict[str, Any]] = []
        oracle: list[dict[str, Any]] = []
        for _ in range(1 if once else args.turns):
            fast.append(in_child("fast", frames, 1 if once else args.runs))
            if frames <= args.oracle_frames:
                oracle.append(in_child("oracle", frames, 1 if once else args.runs))
        lines.append(row(frames, together(fast), together(oracle)))
        print(lines[-1], flush=True)
    write(lines, args.output)


if __name__ == "__main__":
    main()
