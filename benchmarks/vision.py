"""The vision tower: how near to its floor, what saliency adds to it, and what pooling costs.

    python3 benchmarks/vision.py --output results/performance/vision.md                                     # on a GPU
    python benchmarks/vision.py --device cpu --frames 4 --repeats 3 --output results/performance/vision_cpu.md
    python benchmarks/vision.py --device cpu --toy --frames 2 --repeats 1                                   # seconds

Whole towers at their true sizes with random weights; of the language model one layer and few words, which are not run.
Checked first: with saliency the tower runs as many fused attentions (scaled_dot_product_attention) as without. For
Qwen these are fewer than in the tower as it comes (tango/models/segments.py); LLaVA's states lie otherwise in memory
(tango/models/llava_onevision.py). The tower as it comes is measured beside it.

LLaVA's projector is followed by pooling. LLaVA-OneVision's, as transformers has it, copies the features to channels
first and interpolates there; the family file does without the copy. The last columns show both, and whether the
features are equal to the bit.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import costs  # noqa: E402
from measure import Table, machine  # noqa: E402
from shapes import SHAPES, Shape, build  # noqa: E402

from tango import Tango  # noqa: E402
from tango.models import family_of  # noqa: E402
from tango.models.attention import from_attention, mean_query_saliency  # noqa: E402
from tango.models.packed import recorded_attention  # noqa: E402
from tango.models.pooling_head import load_pooling_head  # noqa: E402
from tango.models.segments import segments_together  # noqa: E402
from tango.models.tower import recorded  # noqa: E402
from tango.pruners import REGISTRY  # noqa: E402


def fused_attentions(model: Any, inputs: dict[str, Tensor], method: Any) -> int:
    """Calls of scaled_dot_product_attention while the video of a prompt is encoded for this method."""
    functional = torch.nn.functional
    real = functional.scaled_dot_product_attention
    with mock.patch.object(functional, "scaled_dot_product_attention", side_effect=real) as calls:
        family = family_of(model)(model, method)
        list(family.videos(inputs))
    return calls.call_count


def stages(shape: Shape, model: Any, inputs: dict[str, Tensor]) -> tuple[Callable[[], Any], Callable[[], Any], Tensor]:
    """Calls that run the tower as it comes, and the saliency of its states; and the tower's last hidden states."""
    if shape.llava:
        tower, frames = model.model.vision_tower, inputs["pixel_values_videos"].flatten(0, 1)
        head = load_pooling_head(tower, model.config._name_or_path, None, with_output=False)
        with recorded({"last": tower.encoder.layers[-1]}) as states:
            tower(frames)
        hidden = states["last"]
        pool = model.model.apply_pooling
        return lambda: tower(frames), lambda: pool(head.attention(hidden)[1].mean(1)[..., None]), hidden
    tower, pixels, grid = model.model.visual, inputs["pixel_values_videos"], inputs["video_grid_thw"]
    attention = tower.blocks[-1].attn
    with recorded_attention(attention) as states:
        hidden = tower(pixels, grid_thw=grid).last_hidden_state
    names = ("queries", "keys", "cos", "sin")
    queries, keys, *rotation = (states[name].unflatten(0, (int(grid[0, 0]), -1)) for name in names)
    settings = attention.num_heads, attention.scaling, tower.spatial_merge_size**2, tuple(rotation)
    parts = {"saliency": mean_query_saliency}
    return lambda: tower(pixels, grid_thw=grid), lambda: from_attention(parts, queries, keys, *settings), hidden


def pooling(model: Any, hidden: Tensor) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Projector and pooling of hidden states as the model has them, and as its family file has them."""
    core, family = model.model, family_of(model)(model, REGISTRY["uniform"]())
    return (
        lambda: core.apply_pooling(core.multi_modal_projector(hidden)),
        lambda: family.pool(core.multi_modal_projector(hidden)),
    )


def quicker(shape: Shape, model: Any) -> AbstractContextManager[Any]:
    """While open, the tower is as it is with a pruner attached."""
    if not shape.llava:
        return segments_together(model.model.visual)
    embeddings = model.model.vision_tower.embeddings
    return embeddings.register_forward_hook(lambda *call: call[-1].contiguous())  # type: ignore[no-any-return]


def measure(shape: Shape, args: argparse.Namespace, dtype: torch.dtype, top: costs.Ceilings) -> list[str]:
    device = torch.device(args.device)
    config = shape.config(args.layers, args.toy)
    config.text_config.num_hidden_layers, config.text_config.vocab_size = 1, 2048
    model = build(shape, device, dtype, config=config)
    few, _ = shape.prompt(config, 2, dtype)
    few = {name: value.to(device) for name, value in few.items()}
    counts = [fused_attentions(model, few, method) for method in (REGISTRY["uniform"](), Tango())]
    if counts[0] != counts[1] or not counts[0]:
        raise SystemExit(f"{shape.name}: {counts[0]} fused attentions without saliency and {counts[1]} with it")
    inputs, _ = shape.prompt(config, args.frames, dtype)
    inputs = {name: value.to(device) for name, value in inputs.items()}
    tower, saliency, hidden = stages(shape, model, inputs)
    rows, columns = shape.grid(config)
    if shape.llava:
        flops = costs.siglip_tower(config.vision_config, args.frames)
        extra = costs.pooling_head(config.vision_config, args.frames)
    else:
        frames = int(inputs["video_grid_thw"][0, 0])
        flops = costs.qwen_tower(config.vision_config, frames, rows, columns)
        extra = costs.mean_query(config.vision_config, frames, rows, columns)
    weights = costs.weight_bytes(*family_of(model).vision_modules(model))
    floor = top.floor(costs.Cost(flops, bytes=weights + inputs["pixel_values_videos"].nbytes))
    alone = costs.median_seconds(tower, device, args.repeats)
    with quicker(shape, model):
        of_tower = costs.median_seconds(tower, device, args.repeats)
    of_saliency = costs.median_seconds(saliency, device, args.repeats)
    row = [
        shape.name,
        str(args.frames),
        str(counts[0]),
        f"{1e3 * alone:.1f}",
        f"{1e3 * of_tower:.1f}",
        f"{of_tower / floor:.2f}",
    ]
    row += [f"{1e3 * of_saliency:.2f}", f"{100 * of_saliency / of_tower:.2f} %", f"{100 * extra / flops:.4f} %"]
    if not shape.llava:
        return [*row, "", "", ""]
    theirs, ours = pooling(model, hidden)
    seconds = [costs.median_seconds(call, device, args.repeats) for call in (theirs, ours)]
    equal = "yes" if torch.equal(theirs(), ours()) else "**NO**"
    return [*row, *(f"{1e3 * value:.2f}" for value in seconds), equal]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--families", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="default: bfloat16 on a GPU, else float32")
    parser.add_argument("--repeats", type=int, default=7, help="timed calls, after two that do not count")
    parser.add_argument("--layers", type=int, help="keep this many layers of the tower (default: all)")
    parser.add_argument("--toy", action="store_true", help="small widths, to try the script")
    parser.add_argument("--output", type=Path, help="write the table to this file as well")
    args = parser.parse_args()
    device = torch.device(args.device)
    dtype = getattr(torch, args.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    top = costs.ceilings(device, dtype, 512 if args.toy else None)
    sizes = "toy widths: numbers mean nothing" if args.toy else "true widths"
    layers = "all layers" if args.layers is None else f"{args.layers} layers"
    columns = ["model", "frames", "fused attentions", "tower as it comes, ms", "tower, ms", "x floor"]
    columns += ["saliency, ms", "of the tower", "of its FLOPs"]
    columns += ["projector and pooling, model's, ms", "ours, ms", "equal"]
    table = Table(
        "The vision tower, saliency and pooling",
        [
            f"machine: {machine(device)}; {dtype}; random weights, {sizes}, {layers} of the tower",
            str(top),
            f"medians of {args.repeats} calls; floor: by FLOPs and bytes at those ceilings; fused attentions: 2 frames",
        ],
        columns,
        args.output,
    )
    for family in args.families:
        table.row(*measure(SHAPES[family], args, dtype, top))


if __name__ == "__main__":
    main()
