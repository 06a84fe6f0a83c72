"""Time and memory of every stage of a prompt against frames and against batch, beside what each must take at least.

    python benchmarks/scaling.py --output results/performance/scaling_cpu.md                       # tango-tiny
    python3 benchmarks/scaling.py --family llava_onevision --output results/performance/scaling.md  # 7B, on a GPU
    python benchmarks/scaling.py --toy --frames 4 8 --batch 1 2 --repeats 1                         # seconds

Writes a table row by row, and beside it the raw numbers (.json) and a plot (.png, with matplotlib; --redraw makes it of
the .json elsewhere). Before anything is timed: at a retention ratio of 1 the logits are the unattached model's to the
bit. Memory is measured in calls of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, LlavaOnevisionForConditionalGeneration

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import costs  # noqa: E402
from measure import MIB, STAGES, Stages, Table, Witness, machine  # noqa: E402
from shapes import SHAPES, Shape, build, checked_prompt  # noqa: E402

from tango import Tango  # noqa: E402
from tango.models import attach, family_of  # noqa: E402

TINY = ROOT / "checkpoints" / "tango-tiny"
TITLES = {"vision": "vision tower", "project": "projector etc.", "prune": "prune()", "prefill": "prefill"}


def least(shape: Shape, model: Any, inputs: dict[str, Tensor], tokens: int, witness: Witness | None) -> dict[str, Any]:
    """The costs of each stage of this batch; witness: how its videos were pruned, None where they were not."""
    config, module = model.config, family_of(model)
    towers, language = module.vision_modules(model), module.language_model(model)
    vision, text = config.vision_config, config.text_config
    element = next(language.parameters()).element_size()
    pixels = inputs["pixel_values_videos"]
    videos, width = len(inputs["input_ids"]), text.hidden_size
    rows, columns = shape.grid(config)
    if shape.llava:
        frames = pixels.shape[0] * pixels.shape[1]
        tower, states = costs.siglip_tower(vision, frames), frames * rows * columns * vision.hidden_size
        project, single = costs.projector(config, frames), costs.pooling_head(vision, frames)
        projectors = [model.model.multi_modal_projector]
    else:  # the merger is part of the tower
        frames = int(inputs["video_grid_thw"][:, 0].sum())
        tower, states = costs.qwen_tower(vision, frames, rows, columns), 0
        project, single, projectors = 0, costs.mean_query(vision, frames, rows, columns), []
    features = videos * tokens * width
    kept = videos * tokens if witness is None else sum(witness.kept)
    prompt = inputs["input_ids"].shape[1] - tokens + kept // videos
    found = {
        "vision": costs.Cost(tower, bytes=costs.weight_bytes(*towers) + element * (pixels.numel() + states)),
        "project": costs.Cost(project, 0 if witness is None else single,
                              costs.weight_bytes(*projectors) + element * (states + features)),
        "prefill": costs.Cost(
            costs.decoder(text, prompt, videos),
            bytes=costs.weight_bytes(language, model.lm_head) + costs.cache_bytes(text, videos * prompt, element),
        ),
    }  # fmt: skip
    if witness is not None:
        parts = zip(witness.sizes, witness.static, strict=True)
        ratio = witness.retention_ratio
        distances = sum(costs.context_distances(*part, witness.tokens, width, ratio) for part in parts)
        found["prune"] = costs.Cost(single=distances, bytes=element * (features + kept * width))
    return found


def measure(shape: Shape, model: Any, frames: int, batch: int, method: Tango | None, args: Any, top: Any) -> Any:
    """One row: seconds, floor and bytes of each stage."""
    dtype = next(model.parameters()).dtype
    inputs, tokens = shape.prompt(model.config, frames, dtype, batch)
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    witness = None
    if method is not None:
        witness = Witness(method)
        with attach(model, witness):  # the call that warms up
            model(**inputs, logits_to_keep=1)
    else:
        model(**inputs, logits_to_keep=1)
    bounds = {stage: top.floor(cost) for stage, cost in least(shape, model, inputs, tokens, witness).items()}
    seconds: dict[str, list[float]] = {stage: [] for stage in bounds}
    with method(model) if method else contextlib.nullcontext():
        for _ in range(args.repeats):
            timed = Stages(model)
            with timed.measuring():
                model(**inputs, logits_to_keep=1)
            for stage, values in seconds.items():
                values.append(timed.seconds[stage])
        held = Stages(model, memory=True)
        with held.measuring():
            model(**inputs, logits_to_keep=1)
    return {
        "frames": frames,
        "batch": batch,
        "ratio": 1 if method is None else method.retention_ratio,
        "tokens": tokens if witness is None else witness.kept[0],
        "segments": None if witness is None else len(witness.sizes[0]),
        "static": None if witness is None else witness.static_share(),
        "seconds": seconds,
        "floor": bounds,
        "bytes": held.bytes,
    }


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    out = [str(row["frames"]), str(row["batch"]), f"Tango, {row['ratio']:g}" if row["segments"] else "unpruned"]
    out.append(str(row["tokens"]))
    out.append("" if row["static"] is None else f"{row['segments']}, {100 * row['static']:.0f} %")
    for stage in STAGES:
        if stage in row["seconds"]:
            middle = statistics.median(row["seconds"][stage])
            out.append(f"{1e3 * middle:.1f} ({middle / row['floor'][stage]:.1f}x)")
        else:
            out.append("")
    return out + [f"{row['bytes'][stage] / MIB:.0f}" if stage in row["bytes"] else "" for stage in STAGES]


def draw(rows: list[dict[str, Any]], title: str, file: Path) -> None:
    """Seconds and memory of each stage against frames and against batch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7.5), layout="constrained")
    axes = figure.subplots(2, 2, sharey="row")
    most = max(row["frames"] for row in rows if row["batch"] > 1) if any(row["batch"] > 1 for row in rows) else None
    groups = (
        ("frames", [row for row in rows if row["batch"] == 1]),
        ("batch", [row for row in rows if row["frames"] == most]),
    )
    for column, (name, own) in enumerate(groups):
        for index, stage in enumerate(STAGES):
            for pruned in (True, False):
                here = [row for row in own if bool(row["segments"]) == pruned and stage in row["seconds"]]
                if not here:
                    continue
                style: dict[str, Any] = {"color": f"C{index}", "linestyle": "-" if pruned else "--", "marker": "."}
                style["label"] = TITLES[stage] + ("" if pruned else ", unpruned")
                x = [row[name] for row in here]
                axes[0, column].plot(x, [statistics.median(row["seconds"][stage]) for row in here], **style)
                if pruned:
                    floor = {"color": f"C{index}", "linestyle": ":", "linewidth": 1}
                    axes[0, column].plot(x, [row["floor"][stage] for row in here], **floor)
                axes[1, column].plot(x, [max(row["bytes"].get(stage, 0), MIB) / MIB for row in here], **style)
        for line in range(2):
            axes[line, column].set_xscale("log", base=2)
            axes[line, column].set_yscale("log")
            axes[line, column].grid(alpha=0.3)
            axes[line, column].set_xlabel(name if name == "frames" else f"videos in a batch, of {most} frames")
    axes[0, 0].set_ylabel("seconds (dotted: floor with pruning)")
    axes[1, 0].set_ylabel("MiB beyond weights and inputs (at least 1)")
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(file, dpi=130)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--family", choices=list(SHAPES), help="a 7B model with random weights (default: tango-tiny)")
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256, 512, 1024])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8], help="videos, of --batch-frames each")
    parser.add_argument("--batch-frames", type=int, default=32)
    parser.add_argument(
        "--unpruned-up-to", type=int, default=256, help="videos of more frames are measured pruned only"
    )
    parser.add_argument("--ratio", type=float, default=0.1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, help="with --family: so many layers of tower and language model")
    parser.add_argument("--toy", action="store_true", help="small widths, to try the script")
    parser.add_argument("--output", type=Path, help="the table (.md); .json and .png are written beside it")
    parser.add_argument("--redraw", type=Path, help="only make the plot of this .json")
    args = parser.parse_args()
    if args.redraw:
        saved = json.loads(args.redraw.read_text())
        draw(saved["rows"], saved["title"], args.redraw.with_suffix(".png"))
        return
    device = torch.device(args.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if args.family is None and not args.toy:
        shape = Shape("tango-tiny", LlavaOnevisionForConditionalGeneration, 8)
        model: Any = AutoModelForImageTextToText.from_pretrained(TINY, dtype=dtype).to(device).eval()
        weights = "the shipped weights"
    else:
        shape = SHAPES[args.family or "llava_onevision"]
        model = build(shape, device, dtype, args.layers, args.toy)
        weights = "random weights, " + ("toy widths: numbers mean nothing" if args.toy else "true widths")
    checked_prompt(shape, model, 4, next(model.parameters()).dtype)
    top = costs.ceilings(device, dtype, 512 if args.toy else None)
    title = f"How cost grows: {shape.name}"
    facts = [
        f"machine: {machine(device)}; {dtype}; attention {model.config._attn_implementation}",
        f"{weights}, {model.config.text_config.num_hidden_layers} layers in the language model; made-up videos "
        "(benchmarks/clips.py); checked first: at ratio 1 the logits are the unattached model's to the bit",
        str(top),
        f"ms: median of {args.repeats} calls, and how many times the floor by FLOPs and bytes at those ceilings; "
        "projector etc.: with pooling, saliency and splicing (for Qwen the merger is part of the tower)",
        "MiB: most memory in use in that stage beyond weights and inputs; content: segments, share of static tokens",
    ]
    columns = ["frames", "batch", "method", "tokens kept", "content"]
    columns += [f"{TITLES[stage]}, ms" for stage in STAGES] + [f"{TITLES[stage]}, MiB" for stage in STAGES]
    table = Table(title, facts, columns, args.output)
    cases = [(frames, 1) for frames in args.frames]
    cases += [(args.batch_frames, batch) for batch in args.batch if (args.batch_frames, batch) not in cases]
    rows: list[dict[str, Any]] = []
    for frames, batch in cases:
        for method in (None, Tango(retention_ratio=args.ratio)):
            if method is None and frames > args.unpruned_up_to:
                continue
            rows.append(measure(shape, model, frames, batch, method, args, top))
            table.row(*cells(rows[-1]))
            if args.output:
                args.output.with_suffix(".json").write_text(json.dumps({"title": title, "rows": rows}) + "\n")
    if args.output and importlib.util.find_spec("matplotlib"):
        draw(rows, title, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
