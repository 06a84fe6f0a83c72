"""Time to first token, decoding and peak memory of 7B models at their true shapes, unpruned and with Tango.

    python3 benchmarks/ttft.py --family llava_onevision --output results/performance/ttft_llava_onevision.md
    python3 benchmarks/ttft.py --device cpu --layers 1 --frames 4 --repeats 3 --new-tokens 4    # about 8 GB
    python3 benchmarks/ttft.py --device cpu --toy --frames 6 --repeats 3 --new-tokens 4         # seconds

Random weights and a made-up video (benchmarks/clips.py). Before anything is timed: attached at a retention ratio of
1 the logits are those of the unattached model to the bit, with exact_budget as many tokens stay as budgeted, and the
saliency is that of the formula written out slowly. Then unpruned and pruned prompts take turns on the same model, so
that all see the same state of the machine. Unpruned is the model as it comes, but for Qwen's tower, which has the fewer
attentions of tango/models/segments.py there, too; --compile adds it with every layer made by torch.compile. Each row is
written as soon as it is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import costs  # noqa: E402
from measure import Table, Witness, forget_peak, machine, peak_bytes, spread  # noqa: E402
from shapes import SHAPES, Shape, build, checked_prompt  # noqa: E402

from tango import Tango  # noqa: E402
from tango.inference.timing import GIB, GenerationTimer  # noqa: E402
from tango.models import attach, family_of  # noqa: E402
from tango.models.pooling_head import load_pooling_head  # noqa: E402
from tango.models.segments import segments_together  # noqa: E402

CHECKED_FRAMES = 4
UNPRUNED, COMPILED = "unpruned", "unpruned, torch.compile"
COLUMNS = (
    "frames", "method", "tokens", "segments", "static", "of the tower", "ViT, ms", "x floor", "other, ms",
    "prefill, ms", "x floor", "TTFT, ms", "x vanilla", "decode, ms/token", "x floor", "peak, GiB",
)  # fmt: skip


# -- correctness -----------------------------------------------------------------------------------------------------


def slow_saliency(shape: Shape, model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """The saliency (F, L) in fp64 from formulas written out, one frame and head at a time, without folding anything."""
    states: dict[str, Any] = {}
    if shape.llava:
        tower, core = model.model.vision_tower, model.model
        hook = tower.encoder.layers[-1].register_forward_hook(lambda *args: states.update(last=args[-1]))
        tower(inputs["pixel_values_videos"].flatten(0, 1))
        hook.remove()
        head = load_pooling_head(tower, model.config._name_or_path, None, False).tensors
        head = {name: value.to(model.device).double() for name, value in head.items()}
        width, heads = tower.config.hidden_size, tower.config.num_attention_heads
        (wq, wk, _), (bq, bk, _) = (head[f"head.attention.in_proj_{kind}"].chunk(3) for kind in ("weight", "bias"))
        query, rows = (wq @ head["head.probe"].flatten() + bq).view(heads, -1), []
        norm = (width,), head["post_layernorm.weight"], head["post_layernorm.bias"], tower.config.layer_norm_eps
        for frame in states["last"].double():
            keys = (torch.nn.functional.layer_norm(frame, *norm) @ wk.T + bk).view(len(frame), heads, -1)
            weights = [(keys[:, h] @ query[h] * (width / heads) ** -0.5).softmax(0) for h in range(heads)]
            rows.append(torch.stack(weights).mean(0))
        return core.apply_pooling(torch.stack(rows)[..., None]).squeeze(-1)
    tower = model.model.visual
    block, merge = tower.blocks[-1].attn, tower.spatial_merge_size
    hooks = [
        block.qkv.register_forward_hook(lambda *args: states.update(qkv=args[-1])),
        block.register_forward_pre_hook(
            lambda _, args, kwargs: states.update(rotation=kwargs["position_embeddings"]), with_kwargs=True
        ),
    ]
    tower(inputs["pixel_values_videos"], grid_thw=inputs["video_grid_thw"])
    for hook in hooks:
        hook.remove()
    frames, rows_, columns = inputs["video_grid_thw"][0].tolist()
    length, group, heads = rows_ * columns, merge**2, block.num_heads
    order = torch.arange(length // group, device=model.device)
    if hasattr(tower, "window_size"):  # tokens lie window by window
        side = tower.window_size // merge // tower.patch_size
        down, across = rows_ // merge, columns // merge
        cells = [(h, w) for h in range(down) for w in range(across)]
        places = sorted(cells, key=lambda cell: (cell[0] // side, cell[1] // side, cell))
        order = torch.tensor([places.index(cell) for cell in cells], device=model.device)
    qkv = states["qkv"].view(frames, length, 3, heads, -1).double()
    cos, sin = (part.view(frames, length, -1).double() for part in states["rotation"])
    half = qkv.shape[-1] // 2
    result = torch.zeros(frames, length // group, device=model.device, dtype=torch.float64)
    for frame in range(frames):
        for head in range(heads):
            query, key = (
                x * cos[frame] + torch.cat((-x[:, half:], x[:, :half]), 1) * sin[frame]
                for x in qkv[frame, :, :2, head].unbind(1)
            )
            scores = key.view(-1, group, 2 * half).mean(1) @ query.mean(0) * block.scaling
            result[frame] += scores.softmax(0) / heads
    return result[:, order]


def check(shape: Shape, model: Any, dtype: torch.dtype) -> list[str]:
    """What holds, in words; SystemExit where something does not."""
    inputs, tokens = checked_prompt(shape, model, CHECKED_FRAMES, dtype)
    counts = []
    for ratio in (0.1, 0.15, 0.2):
        with Tango(retention_ratio=ratio, exact_budget=True)(model) as session:
            logits = model(**inputs, logits_to_keep=1).logits
        counts.append(session.videos[0].tokens_after)
        if counts[-1] != round(ratio * tokens) or not torch.isfinite(logits).all():
            raise SystemExit(f"{shape.name}: {counts[-1]} of {tokens} tokens stay at ratio {ratio}, or bad logits")
    witness = Witness(Tango(retention_ratio=0.1))
    with attach(model, witness):
        model(**inputs, logits_to_keep=1)
    slow = slow_saliency(shape, model, inputs)
    error = ((witness.saliency - slow).abs().max() / slow.max()).item()
    if not error < 1e-3:
        raise SystemExit(f"{shape.name}: the saliency differs by {error:.1e} of its maximum from the slow formula")
    return [
        f"checked first, on {CHECKED_FRAMES} frames: logits at ratio 1 are the unattached model's to the bit; "
        f"{', '.join(map(str, counts))} of {tokens} tokens stay as budgeted (exact_budget); saliency within "
        f"{error:.0e} of its maximum of the slow formula"
    ]


# -- time ------------------------------------------------------------------------------------------------------------


def generation(model: Any, inputs: dict[str, Tensor], new: int) -> Callable[[], dict[str, float]]:
    """A call that generates so many tokens and returns seconds by stage, of decoding a token, and peak bytes."""
    family = family_of(model)

    def call() -> dict[str, float]:
        forget_peak(model.device)
        with GenerationTimer(model, family.vision_modules(model), family.language_model(model)) as timer:
            timer.start()
            model.generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False, stopping_criteria=[timer])
            timing = timer.stop()
        if timing.new_tokens != new:
            raise SystemExit(f"{timing.new_tokens} tokens were made, not {new}")
        return {
            "vit": timing.vit_s,
            "other": timing.other_s,
            "prefill": timing.prefill_s,
            "ttft": timing.vit_s + timing.other_s + timing.prefill_s,
            "decode": timing.decode_s / (new - 1),
            "peak": peak_bytes(model.device),
        }

    return call


def floors(shape: Shape, model: Any, frames: int, prompt: int, new: int, top: costs.Ceilings) -> dict[str, float]:
    """Least seconds of tower, prefill and one decoded token for a prompt of so many tokens in the language model."""
    config, module = model.config, family_of(model)
    towers, language = module.vision_modules(model), module.language_model(model)
    element = next(language.parameters()).element_size()
    if shape.llava:
        flops = costs.siglip_tower(config.vision_config, frames)
    else:
        flops = costs.qwen_tower(config.vision_config, -(-frames // 2), *shape.grid(config))
    weights = costs.weight_bytes(language, model.lm_head)
    cache = costs.cache_bytes(config.text_config, prompt + new // 2, element)
    prefill = costs.decoder(config.text_config, prompt)
    return {
        "vit": top.floor(costs.Cost(flops, bytes=costs.weight_bytes(*towers))),
        "prefill": top.floor(costs.Cost(prefill, bytes=weights + cache)),
        "decode": top.floor(costs.Cost(bytes=weights + cache)),
    }


def named(method: Tango | str) -> str:
    if isinstance(method, str):
        return method
    reuse = f", tower_reuse={method.tower_reuse}" if method.tower_reuse else ""
    return f"Tango, {method.retention_ratio:g}{reuse}"


@contextlib.contextmanager
def unattached(shape: Shape, model: Any, method: str) -> Iterator[None]:
    """While open, the model has the vision tower of the attached one, and runs eagerly or COMPILED."""
    tower = contextlib.nullcontext() if shape.llava else segments_together(model.model.visual)
    with tower, torch.compiler.set_stance("default" if method == COMPILED else "force_eager"):
        yield


def compile_layers(model: Any) -> None:
    """Has torch.compile() make every layer of tower and language model when it is first called; attached none is."""
    family = family_of(model)
    for part in (*family.vision_modules(model), family.language_model(model)):
        for layers in (child for child in part.modules() if isinstance(child, torch.nn.ModuleList)):
            for layer in layers:
                layer.compile()


def measure(shape: Shape, model: Any, frames: int, args: argparse.Namespace, top: costs.Ceilings, table: Table) -> None:
    dtype = next(model.parameters()).dtype
    inputs, tokens = shape.prompt(model.config, frames, dtype)
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    methods: list[Tango | str] = [UNPRUNED, *([COMPILED] if args.compile else [])]
    methods += [Tango(retention_ratio=ratio) for ratio in args.ratio]
    methods += [Tango(retention_ratio=args.ratio[0], tower_reuse=reuse) for reuse in args.tower_reuse]
    results: list[list[dict[str, float]]] = [[] for _ in methods]
    facts: list[tuple[int, str, str, str]] = [(tokens, "", "", "100 %")] * len(methods)
    for turn in range(args.repeats + 1):  # all methods once, over and over; the first turn does not count
        for index, method in enumerate(methods):
            with method(model) if isinstance(method, Tango) else unattached(shape, model, method):
                result = generation(model, inputs, args.new_tokens)()
            if turn:
                results[index].append(result)
            elif isinstance(method, Tango):
                witness = Witness(method)
                with attach(model, witness) as session:
                    model(**inputs, logits_to_keep=1)
                shares = (
                    f"{100 * share:.0f} %" for share in (witness.static_share(), session.videos[0].tower_computed)
                )
                facts[index] = (witness.kept[0], str(len(witness.sizes[0])), *shares)
    vanilla = torch.tensor([result["ttft"] for result in results[0]]).median().item()
    text = inputs["input_ids"].shape[1] - tokens
    for method, own, (count, *content) in zip(methods, results, facts, strict=True):
        least = floors(shape, model, frames, text + count, args.new_tokens, top)
        values = {name: [result[name] for result in own] for name in own[0]}
        middle = {name: torch.tensor(value).median().item() for name, value in values.items()}
        times = {name: middle[name] / floor for name, floor in least.items()}
        table.row(
            frames, named(method), count, *content,
            spread(values["vit"], 1e3), f"{times['vit']:.1f}", spread(values["other"], 1e3),
            spread(values["prefill"], 1e3), f"{times['prefill']:.1f}", spread(values["ttft"], 1e3),
            f"{vanilla / middle['ttft']:.2f}", spread(values["decode"], 1e3, 2), f"{times['decode']:.1f}",
            f"{max(values['peak']) / GIB:.2f}",
        )  # fmt: skip


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--family", choices=list(SHAPES), default="llava_onevision")
    parser.add_argument("--frames", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.1, 0.15, 0.2])
    parser.add_argument(
        "--tower-reuse", nargs="+", choices=("pixels", "stc"), default=[], help="rows at the first ratio"
    )
    parser.add_argument("--compile", action="store_true", help="a row of the unpruned model, its layers compiled")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=7, help="timed turns, after one that does not count")
    parser.add_argument("--new-tokens", type=int, default=32, help="tokens of each answer, at least 2")
    parser.add_argument("--layers", type=int, help="keep this many layers of tower and language model (default: all)")
    parser.add_argument("--toy", action="store_true", help="small widths, to try the script")
    parser.add_argument("--output", type=Path, help="write the table to this file as well")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cpu" and args.layers is None and not args.toy:
        parser.error("whole models want a GPU; on the CPU pass --layers 1 or --toy")
    if args.new_tokens < 2 or args.repeats < 1 or min(args.frames) < 2:
        parser.error("--new-tokens and --frames must be at least 2 and --repeats at least 1")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    shape = SHAPES[args.family]
    model = build(shape, device, dtype, args.layers, args.toy)
    checked = check(shape, model, dtype)
    if args.compile:
        compile_layers(model)
    top = costs.ceilings(device, dtype, 512 if args.toy else None)
    layers = model.config.text_config.num_hidden_layers
    sizes = "toy widths, numbers mean nothing" if args.toy else f"true widths, {layers} layers of the language model"
    table = Table(
        f"Time to first token: {shape.name}",
        [
            f"machine: {machine(device)}; {dtype}; attention {model.config._attn_implementation}",
            f"random weights, {sizes}; one made-up video (benchmarks/clips.py), one prompt",
            *checked,
            str(top),
            f"median (quartiles) of {args.repeats} turns in which all rows of a number of frames follow each other; "
            f"other: projector, pooling, saliency, pruning, splicing; decode: of {args.new_tokens} tokens",
            "x floor: the median over the least time by FLOPs and bytes at those ceilings, for a tower that computes "
            "everything; of the tower: share of its work that is done; peak: weights included",
        ],
        COLUMNS,
        args.output,
    )
    for frames in args.frames:
        measure(shape, model, frames, args, top, table)
        gc.collect()


if __name__ == "__main__":
    main()
