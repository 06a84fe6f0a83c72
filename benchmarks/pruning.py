"""Time and memory of prune() against the number of frames, beside the dense oracle of the tests, on a CPU.

    python benchmarks/pruning.py [--frames 8 16 32 64 128 256 512 1024] [--output results/performance/pruning_cpu.md]

The video is made up to be the worst case: one long segment without static positions, L = 196 tokens a frame, D = 896.
Cost grows with the square of a segment's length, so a video that falls apart into several is another, easier problem.
At the default threshold this one does from 256 frames on; the threshold is therefore set so that nothing is cut, and
a size whose video is not one segment without static positions is refused, not measured.
First the fast path must equal the oracle at two sizes; then each size is measured in a process of its own. Memory is
what it grew by from before prune() to its highest point, the video itself not counted (Linux: /proc).
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
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from oracle import Oracle  # noqa: E402

from tango import Tango, __version__  # noqa: E402
from tango.segmentation import neighbour_similarity  # noqa: E402

TOKENS, DIM, GRID = 196, 896, (14, 14)
ORACLE_FRAMES = 64  # its n x n distances take 0.6 GB a copy here, 2.4 GB at twice the frames
SETTINGS: dict[str, Any] = {"retention_ratio": 0.1, "similarity_threshold": -1.0}  # -1: never cut


def long_segment(frames: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int], torch.Tensor]:
    """Features (F, L, D), saliency (F, L), grid, timestamps: two scenes alike enough to be one segment, half moving."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    common = 1.5 * noise(DIM)
    scenes = common + noise(2, TOKENS, DIM)
    foreground = torch.randperm(TOKENS, generator=generator) < TOKENS // 2
    features = torch.empty(frames, TOKENS, DIM)
    for f in range(frames):
        features[f] = scenes[2 * f // frames] + 0.1 * noise(TOKENS, DIM)
        moved = foreground & (torch.rand(TOKENS, generator=generator) < 0.3)
        features[f, moved] = common + noise(int(moved.sum()), DIM)
    return features, torch.rand(frames, TOKENS, generator=generator), GRID, torch.arange(frames).float()


def refuse_easier(video: tuple[torch.Tensor, ...], sizes: list[int]) -> None:
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


def cell(result: dict[str, Any] | None) -> tuple[str, str]:
    if result is None:
        return "not run", ""
    if "error" in result:
        return result["error"], ""
    low, middle, high = min(result["seconds"]), statistics.median(result["seconds"]), max(result["seconds"])
    return f"{middle:.2f} ({low:.2f} to {high:.2f})", f"{result['mib']:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256, 512, 1024])
    parser.add_argument("--runs", type=int, default=3, help="timed runs of each size; one from 256 frames on")
    parser.add_argument("--output", type=Path, help="write the table to this file as well")
    parser.add_argument("--child", choices=("fast", "oracle"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.child, args.frames[0], args.runs)))
        return
    checked = [check(frames) for frames in (8, 32)]
    lines = [
        "# Pruning on a CPU: time and memory against frames",
        "",
        f"- made by: python benchmarks/pruning.py --frames {' '.join(map(str, args.frames))} --runs {args.runs}",
        f"- machine: {processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        f"- tango {__version__}, python {platform.python_version()}, torch {torch.__version__}; "
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        f"- video: one segment of all frames without static positions (checked for every row; similarity threshold "
        f"{SETTINGS['similarity_threshold']}), {TOKENS} x {DIM} a frame, retention ratio {SETTINGS['retention_ratio']}",
        f"- checked first: {'; '.join(checked)}",
        f"- oracle: plain dense version, matrix-product distances (tests/oracle.py), up to {ORACLE_FRAMES} frames",
        "",
        "| frames | tango, s (median, range) | tango, MiB | oracle, s | oracle, MiB |",
        "|---:|---:|---:|---:|---:|",
    ]
    print("\n".join(lines), flush=True)
    for frames in args.frames:
        runs = args.runs if frames < 256 else 1
        fast = cell(in_child("fast", frames, runs))
        oracle = cell(in_child("oracle", frames, runs) if frames <= ORACLE_FRAMES else None)
        lines.append(f"| {frames} | {fast[0]} | {fast[1]} | {oracle[0]} | {oracle[1]} |")
        print(lines[-1], flush=True)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
