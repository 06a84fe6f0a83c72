"""Long videos through small models of every family: what memory grows with.

    python benchmarks/long_videos.py --output results/performance/long_videos_cpu.md
    python benchmarks/long_videos.py --frames 4 8 --families qwen3_vl                     # seconds

Small random-weight models of the true architecture. The tower sees a bounded number of frames at once, so that beyond
what must be held (the pixels that the caller gives, the features of all frames, which prune() compares, and the kept
tokens) a long video takes no more than a short one: one chunk of the tower. Each row is measured in a process of its
own, by the memory that is resident (Linux) or allocated on the GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from measure import MIB, STAGES, Stages, Table, Witness, machine  # noqa: E402
from shapes import SHAPES, build  # noqa: E402

from tango import Tango  # noqa: E402
from tango.models import attach, family_of  # noqa: E402

RATIO = 0.1


@torch.no_grad()
def measure(family: str, frames: int, device: torch.device) -> dict[str, Any]:
    """Bytes of pixels, features and of what the process grew by in each stage, and the tower's largest input."""
    shape = SHAPES[family]
    model = build(shape, device, torch.float32, toy=True)
    method = Tango(retention_ratio=RATIO)
    with method(model):
        small, _ = shape.prompt(model.config, 8, torch.float32)
        model(**{name: value.to(device) for name, value in small.items()}, logits_to_keep=1)
        inputs, tokens = shape.prompt(model.config, frames, torch.float32)
        inputs = {name: value.to(device) for name, value in inputs.items()}
        seen: list[int] = []
        tower = model.model.vision_tower if shape.llava else model.model.visual
        hook = tower.register_forward_pre_hook(lambda _, args: seen.append(args[0].nbytes))
        held = Stages(model, memory=True)
        with held.measuring():
            model(**inputs, logits_to_keep=1)
        hook.remove()
    witness = Witness(method)
    with attach(model, witness):
        model(**inputs, logits_to_keep=1)
    width = model.config.text_config.hidden_size
    extra = family_of(model)(model, method).extra_width  # deepstack features come with each token
    return {
        "pixels": inputs["pixel_values_videos"].nbytes,
        "features": 4 * tokens * (width + extra),
        "tokens": tokens,
        "kept": witness.kept[0],
        "calls": len(seen),
        "largest": max(seen),
        "bytes": held.bytes,
    }


def in_child(family: str, frames: int, device: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", family, "--frames", str(frames), "--device", device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{family}, {frames} frames: {done.stderr.strip() or f'exit status {done.returncode}'}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--families", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--frames", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="write the table to this file as well")
    parser.add_argument("--child", choices=list(SHAPES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.child:
        print(json.dumps(measure(args.child, args.frames[0], device)))
        return
    columns = ["family", "frames", "tokens", "kept", "pixels, MiB", "features, MiB", "calls of the tower",
               "largest, MiB", *(f"{stage}, MiB" for stage in STAGES), "peak less features, MiB"]  # fmt: skip
    table = Table(
        "Long videos: what memory grows with",
        [
            f"machine: {machine(device)}; float32; small models with random weights (the toy widths of "
            "benchmarks/shapes.py)",
            f"Tango at {RATIO:g}; made-up videos (benchmarks/clips.py)",
            "largest: pixels that the tower sees in one call; by stage: most memory in use beyond weights and pixels "
            "(project: projector, pooling, saliency, splicing)",
        ],
        columns,
        args.output,
    )
    for family in args.families:
        for frames in args.frames:
            row = in_child(family, frames, args.device)
            stages = [row["bytes"].get(stage, 0) / MIB for stage in STAGES]
            pixels, features, largest = (row[name] / MIB for name in ("pixels", "features", "largest"))
            table.row(
                SHAPES[family].name.removesuffix("-7B").removesuffix("-8B"), frames, row["tokens"], row["kept"],
                f"{pixels:.0f}", f"{features:.1f}", row["calls"], f"{largest:.0f}",
                *(f"{value:.0f}" for value in stages), f"{max(stages) - features:.0f}",
            )  # fmt: skip


if __name__ == "__main__":
    main()
