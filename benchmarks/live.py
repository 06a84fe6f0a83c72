"""Tokens, memory and CPU time of a live stream of made-up scenes, with a question every ten seconds of it.

    python benchmarks/live.py --seconds 3600 --fps 1 4
    python benchmarks/live.py --seconds 14400 --fps 1 --output results/live/soak

Frames come as fast as they are taken. Seconds are CPU seconds of this process, one thread (OMP_NUM_THREADS=1), so that
what else runs on the machine weighs little. A question is a hit where all that the cache held of the stream at the
question before is still the start of the prompt, a miss where something of it was thinned since then.
"""

import argparse
import csv
import ctypes
import gc
import os
import statistics
import sys
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch

from tango import Tango
from tango.inference.checkpoints import load
from tango.live import Live
from tango.motionqa.scenes import DURATION, render, sample_spec

mpl.use("agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
HERE = ROOT / "results" / "live"
FIRST_SEED = 2_000_000  # seeds of no split of MotionQA
EVERY = 10.0  # seconds between two questions
QUESTION = "What colour is the ring?"


def frames(seconds, fps):
    spec = number = None
    for index in range(round(seconds * fps)):
        now = index / fps
        if number != now // DURATION:
            number = now // DURATION
            spec = sample_spec(FIRST_SEED + int(number))
        yield render(spec, now % DURATION), now


def watch(checkpoint, fps, args):
    """Rows of one stream, one a question."""
    rows, before, due, seen, spent = [], 0, EVERY, 0, 0.0
    pruner = Tango(retention_ratio=args.ratio)
    with (
        Live(checkpoint.model, checkpoint.processor, pruner, budget=args.budget, fps=None, policy=args.policy) as video,
        (args.output / f"stream_{fps:g}fps.csv").open("w", newline="") as file,
    ):
        start = elsewhere()
        for picture, now in frames(args.seconds, fps):
            if now >= due:
                due += EVERY
                video.wait()
                spent, asked = elsewhere() - start, elsewhere()
                answer = video.ask(QUESTION, 1)
                answer.text()
                first, start = elsewhere() - asked, elsewhere()
                status = video.status
                rows.append({
                    "stream_s": now, "frames": status.frames, "held_tokens": status.tokens, "prompt": answer.prompt,
                    "reused": answer.reused, "hit": int(answer.reused >= before), "ttft_cpu_s": round(first, 5),
                    "entries": len(video.history), "rss_mib": round(status.memory / 2**20, 2), **memory(),
                    "frame_cpu_s": round(spent / (status.frames - seen), 5),
                })  # fmt: skip
                before, seen = status.tokens, status.frames
                if len(rows) == 1:
                    writer = csv.DictWriter(file, rows[0])
                    writer.writeheader()
                writer.writerow(rows[-1])
                if len(rows) % 30 == 0:
                    file.flush()
                    print(fps, rows[-1], os.getloadavg(), flush=True)
            video.add(picture, now, wait=True)
        print(list(video.problems))
    return rows


def elsewhere():
    """CPU seconds of all threads but this one, which draws the scenes."""
    return time.process_time() - time.thread_time()


class Heap(ctypes.Structure):
    """What glibc's mallinfo2() returns."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
                     "keepcost")
    ]  # fmt: skip


LIBC = ctypes.CDLL(None)
LIBC.mallinfo2.restype = Heap


def memory():
    """What grows if something is not given back: MiB in RAM that are no pages of files, of which the system takes none
    back where there is no swap; MiB that malloc() has handed out, which what it keeps for later does not blur; blocks
    of Python's own allocator.
    """
    gc.collect()
    heap = LIBC.mallinfo2()
    with open("/proc/self/status", encoding="ascii") as file:
        anonymous = next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))
    used = (heap.uordblks + heap.hblkhd) / 2**20
    return {"anon_mib": round(anonymous / 1024, 2), "heap_mib": round(used, 3), "blocks": sys.getallocatedblocks()}


def read(path):
    with path.open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def slope(rows, name):
    """Growth an hour of the second half of a stream, by least squares; 1.96 standard errors; deviation from the line.

    Neighbours deviate alike, since malloc() gives memory back in steps: the errors are those of Newey and West, over
    ten minutes.
    """
    half = rows[len(rows) // 2 :]
    hours, values = np.array([[row["stream_s"] / 3600, row[name]] for row in half]).T
    growth, start = np.polyfit(hours, values, 1)
    rest, hours = values - growth * hours - start, hours - hours.mean()
    parts, lags = hours * rest, min(60, len(half) // 4)
    spread = parts @ parts + 2 * sum((1 - k / (lags + 1)) * (parts[k:] @ parts[:-k]) for k in range(1, lags + 1))
    return growth, 1.96 * max(spread, 0.0) ** 0.5 / (hours @ hours), rest.std()


def grown(rows, name, digits=2):
    """A cell about growth; empty where an older file has no such column."""
    if name not in rows[0]:
        return ""
    growth, error, deviation = slope(rows, name)
    return f"{growth:+.{digits}f} ± {error:.{digits}f} ({deviation:.{digits}f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--fps", type=float, nargs="+", default=[1.0, 4.0])
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument("--ratio", type=float, default=0.1)
    parser.add_argument("--policy", default="fade")
    parser.add_argument("--model", default=str(ROOT / "checkpoints" / "tango-tiny"))
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--again", action="store_true", help="plot and table from the .csv files that are there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    checkpoint = None if args.again else load(args.model)
    _, axes = plt.subplots(3, 1, sharex=True, figsize=(7, 7))
    table = []
    for fps in args.fps:
        gc.collect()
        gc.freeze()  # so that collecting again, before memory is read, looks at what is new alone
        rows = read(args.output / f"stream_{fps:g}fps.csv") if args.again else watch(checkpoint, fps, args)
        minutes = [row["stream_s"] / 60 for row in rows]
        axes[0].plot(minutes, [row["prompt"] for row in rows], label=f"{fps:g} fps")
        axes[1].plot(minutes, [row["rss_mib"] for row in rows])
        axes[2].plot(minutes, [1000 * row["ttft_cpu_s"] for row in rows], linewidth=0.7)
        hits = [1000 * row["ttft_cpu_s"] for row in rows if row["hit"]]
        misses = [1000 * row["ttft_cpu_s"] for row in rows if not row["hit"]]
        table.append({
            "frames a second of the stream": f"{fps:g}",
            "seconds of the stream": round(rows[-1]["stream_s"]),
            "frames": round(rows[-1]["frames"]),
            "most tokens of a prompt": round(max(row["prompt"] for row in rows)),
            "most tokens of closed segments": round(max(row["held_tokens"] for row in rows)),
            "RSS at the end (MiB)": rows[-1]["rss_mib"],
            "its growth (MiB an hour)": grown(rows, "rss_mib"),
            "growth of it without pages of files": grown(rows, "anon_mib"),
            "growth of what malloc() has handed out": grown(rows, "heap_mib"),
            "growth of Python's blocks (an hour)": grown(rows, "blocks", 0),
            "segments held at half time": round(rows[len(rows) // 2]["entries"]),
            "segments held at the end": round(rows[-1]["entries"]),
            "CPU s a frame": f"{statistics.mean(row['frame_cpu_s'] for row in rows):.4f}",
            "hits": len(hits),
            "TTFT of a hit (CPU ms, median)": f"{statistics.median(hits):.1f}" if hits else "",
            "misses": len(misses),
            "TTFT of a miss (CPU ms, median)": f"{statistics.median(misses):.1f}" if misses else "",
        })  # fmt: skip
    axes[0].axhline(args.budget, color="grey", linestyle=":")
    axes[0].legend(loc="lower right")
    for axis, name in zip(axes, ("tokens of a prompt", "RSS (MiB)", "TTFT (CPU ms)"), strict=True):
        axis.set_ylabel(name)
        axis.set_ylim(bottom=0)
    axes[2].set_xlabel("minutes of the stream")
    plt.tight_layout()
    plt.savefig(args.output / "stream.png", dpi=110, metadata={"Software": None})
    fps = " ".join(row["frames a second of the stream"] for row in table)
    where = "" if args.output == HERE else f" --output {args.output}"
    lines = [
        f"Made by: python benchmarks/live.py --seconds {args.seconds:g} --fps {fps}{where}; "
        "with --again, of the CSV files beside it. Growth: that of the second half, by least squares, ± its 95 % "
        "interval, which allows for neighbours that deviate alike; in brackets the standard deviation around the line.",
        "",
    ]
    lines += ["|  | " + " | ".join(row["frames a second of the stream"] + " fps" for row in table) + " |"]
    lines.append("|---|" + "---:|" * len(table))
    names = [name for name in list(table[0])[1:] if any(row[name] != "" for row in table)]
    lines += [f"| {name} | " + " | ".join(str(row[name]) for row in table) + " |" for name in names]
    (args.output / "stream.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
