"""Does everything compute on this device what it computes elsewhere? Golden vectors; every family with every method.

    python3 benchmarks/correctness.py --output results/performance/correctness.md     # on a GPU
    python benchmarks/correctness.py --device cpu --families llava_onevision          # seconds

Three parts, one row each:

golden     the recorded outputs of the methods' published code (tests/golden/): the same tokens, features within 1e-5.
families   toy models of random weights, in fp32 and bf16: at a retention ratio of 1 the logits are the unattached
           model's to the bit; at 0.3 the tokens kept on this device are those that the method keeps on the CPU of the
           same features and saliency, and the prompt is answered.
waits      how often the host waits for the device in prune(), by PyTorch's own warnings, for 32 and for 64 frames.

A row that does not hold is written as it came out, and the exit status is then 1: nothing after it is to be believed.
"""

from __future__ import annotations

import argparse
import functools
import sys
import traceback
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import pruning  # noqa: E402
import tiny_families  # noqa: E402
from clips import video  # noqa: E402
from golden_cases import cases, read  # noqa: E402
from measure import Table, Witness, machine  # noqa: E402
from shapes import SHAPES, build  # noqa: E402

from tango.models import attach  # noqa: E402
from tango.pruners import REGISTRY, VideoTokens  # noqa: E402

OPTIONAL = ("timestamps", "segment_features", "frame_vectors", "keys")
RECORDED = ("tango", "divprune", "dycoke", "evs", "fastvid", "flashvid", "holitom", "prunevid",
            "stop_fastvid", "stop_holitom", "stop_visionzip", "vcast", "vidcom2", "visionzip")  # fmt: skip
AS_RECORDED: dict[str, dict[str, Any]] = {"stop_visionzip": {"targets": "published"}}  # what is not ours by default
NEWER = {"qwen3_5": "Qwen3.5", "internvl": "InternVL3.5", "video_llama_3": "VideoLLaMA3"}
Row = tuple[str, str, bool]


def on(device: torch.device, tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in tensors.items()}


def golden(name: str, device: torch.device) -> Row:
    """How many recorded cases of a method come out, and by how much features are off at most."""
    files = cases("" if name == "tango" else name)
    right, worst, odd = 0, 0.0, []
    for file in files:
        recorded, parameters, grid = read(file)
        tensors = on(device, recorded)
        known = {field.name for field in fields(REGISTRY[name])}
        settings = {key: value for key, value in parameters.items() if key in known}
        method = REGISTRY[name](**settings, **AS_RECORDED.get(name, {}))
        given = {key: tensors[key] for key in OPTIONAL if key in tensors}
        pruned = method.prune(tensors["features"], tensors.get("saliency"), grid, **given)
        # Methods with an order of their own were recorded in it (output_*), some with features in ascending order.
        indices = tensors.get("output_indices", tensors["kept_indices"])
        own = "output_indices" in tensors and "output_features" in tensors
        expected = tensors["output_features" if own or name == "prunevid" else "kept_features"]
        if not torch.equal(pruned.indices, indices):
            odd.append(f"{file.stem} keeps other tokens")
            continue
        values = pruned.features
        if "output_indices" in tensors and not own:
            values = values[pruned.indices.sort(stable=True).indices]
        off = (values - expected).abs().amax(1)
        if file.stem == "case_02" and name == "tango":  # two rows of a near-tie, see tests/test_golden.py
            off = off.sort().values[:-2]
        worst = max(worst, off.max().item())
        right += 1
    said = "; ".join([f"{right} of {len(files)} cases", f"features within {worst:.0e}", *odd])
    return f"golden, {name}", said, not odd and worst <= 1e-5


def families(name: str, device: torch.device, dtype: torch.dtype) -> Iterator[Row]:
    """A family with every method."""
    if name in SHAPES:
        shape = SHAPES[name]
        title_of_family, model = shape.name, build(shape, device, dtype, toy=True)
        inputs, _ = shape.prompt(model.config, 8, dtype)
    else:
        torch.manual_seed(0)
        title_of_family, (model, processor) = NEWER[name], getattr(tiny_families, name)()
        model, inputs = model.to(device, dtype).eval(), asked(processor, dtype)
    inputs = on(device, inputs)
    plain = model(**inputs, logits_to_keep=1).logits
    if name == "internvl":  # frames and tiles of images look alike in its prompts
        inputs["video_frames"] = [8]
    for method_name, method_class in REGISTRY.items():
        title = f"{title_of_family}, {str(dtype)[6:]}, {method_name}"
        ratio, inside = 0.3, {}
        if method_name == "fastv":  # toys have two layers, the first of which sees every token
            ratio, inside = 0.7, {"pruned_layer": 1}
        method = method_class(retention_ratio=ratio, **inside)
        try:
            with method_class(retention_ratio=1.0, positions="transformers", **inside)(model):
                equal = torch.equal(plain, model(**inputs, logits_to_keep=1).logits)
            with method(model) as session:
                answer = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
            tokens, kept = session.videos[0].tokens_before, session.videos[0].tokens_after
            said = f"ratio 1: logits {'equal' if equal else 'DIFFER'}; {kept} of {tokens} tokens stay"
            fine = equal and kept <= tokens and answer.shape[1] == inputs["input_ids"].shape[1] + 3
            said_too, fine_too = same_tokens(method, model, inputs)
            said, fine = said + said_too, fine and fine_too
        except Exception as error:  # a row that says so, and the others still run
            said = traceback.format_exc().strip().splitlines()[-1]
            fine = name == "qwen3_5" and "no pruning inside" in str(error)  # refused by name, as it has to be
        yield title, said, fine


def asked(processor: Any, dtype: torch.dtype) -> dict[str, Any]:
    """Inputs of a prompt about a made-up video of 8 frames, as the processor makes them."""
    frames = (127 * video(8, tiny_families.SIZE, tiny_families.SIZE).clamp(-1, 1) + 128).byte()
    content = [{"type": "video"}, {"type": "text", "text": "What moves?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[text], videos=[list(frames)], do_sample_frames=False, return_tensors="pt")
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}


def same_tokens(method: Any, model: Any, inputs: dict[str, Any]) -> tuple[str, bool]:
    """Whether the method keeps of the same features the same tokens on the CPU."""
    seen: list[tuple[Any, ...]] = []

    class Both(Witness):
        def prune_tokens(self, video: Any) -> Any:
            here = self.method.prune_tokens(video)
            moved = {f.name: getattr(video, f.name) for f in fields(video)}
            moved = {key: value.cpu() if isinstance(value, torch.Tensor) else value for key, value in moved.items()}
            seen.append((here.indices.cpu(), self.method.prune_tokens(VideoTokens(**moved)).indices))
            return here

    with attach(model, Both(method)):
        model(**inputs, logits_to_keep=1)
    other = sum(len(set(here.tolist()) ^ set(there.tolist())) for here, there in seen)
    return f"; on the CPU {'the same' if not other else f'{other} OTHERS'}", bool(seen) and not other


def waits(name: str, device: torch.device) -> Row:
    """How often the host waits for the device."""
    counts = []
    for frames in (32, 64):
        features = torch.randn(frames, 196, 896, device=device).cumsum(0)
        given = {
            "saliency": torch.rand(frames, 196, device=device),
            "timestamps": torch.arange(float(frames)),
            "segment_features": features.mean(1),
            "frame_vectors": features.mean(1),
            "keys": features[..., :64],
            "key": "0",
        }
        method = REGISTRY[name](retention_ratio=0.1)
        run = functools.partial(method.prune, features, grid=(14, 14), **given)
        run()
        counts.append(pruning.waits(run))
    return f"waits, {name}", f"{counts[0]} for 32 frames, {counts[1]} for 64", True


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    every = [*SHAPES, *NEWER]
    parser.add_argument("--families", nargs="+", choices=every, default=every)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="write the table to this file as well")
    args = parser.parse_args()
    device = torch.device(args.device)
    table = Table(
        "Correctness on this device",
        [f"machine: {machine(device)}", "toy widths, random weights, made-up videos; golden vectors of tests/golden/"],
        ["what", "outcome", "holds"],
        args.output,
    )
    wrong = 0

    def add(row: Row) -> None:
        nonlocal wrong
        wrong += not row[2]
        table.row(row[0], row[1], "yes" if row[2] else "**NO**")

    for name in RECORDED:
        add(golden(name, device))
    for dtype in (torch.float32, torch.bfloat16):
        for name in args.families:
            for row in families(name, device, dtype):
                add(row)
    if device.type == "cuda":
        for name in REGISTRY:
            add(waits(name, device))
    table.note(f"{wrong} rows do not hold." if wrong else "Every row holds.")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
