"""Ways to refresh still patches that cost less than whole late layers, tried on half of MotionQA: accuracy and work.

    python benchmarks/tower_refresh.py --answers results/tower/refresh/tango_tiny.json
    python benchmarks/tower_refresh.py --model checkpoints/tango-tiny-deep \
        --answers results/tower/refresh/tango_tiny_deep.json
    python benchmarks/tower_refresh.py --write results/tower/refresh

`tower_reuse="pixels"` lets still patches take over states in the first third of the tower's layers and computes all
later ("late") layers whole. WAYS are others: by what each layer does (`Layer`). The first, third, fifth .. video is
asked about, the half that benchmarks/front.py calls development. An experiment, not a way to be quick: what a way
would not compute is computed here too and thrown away, and `computed` counts products of matrices by arithmetic.

The last ways ask once what is static: Tango cuts its segments, and finds their static places, by which patches the
tower's reuse took for unchanged, and not by the cosine of features.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from transformers import AutoProcessor, LlavaOnevisionForConditionalGeneration

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tower_reuse import METHODS, Row, clips, first_token_7b, marks  # noqa: E402

from tango.models import reuse  # noqa: E402
from tango.models.llava_onevision import LlavaOnevision  # noqa: E402
from tango.models.original import SO400M_CONFIG  # noqa: E402
from tango.motionqa.questions import KINDS  # noqa: E402
from tango.pruners import REGISTRY  # noqa: E402
from tango.pruners import tango as method_file  # noqa: E402
from tango.results.statistics import bootstrap, wilson  # noqa: E402

CELL = 2  # patches along a side of a cell of the coarse grid, one of which is always computed


@dataclass(frozen=True)
class Layer:
    """What a layer does with a frame's still patches.

    does: "whole": they are computed. "states": they take over the states, keys and values of an earlier frame.
        "additions": keys and values are of their own states now, and what the layer adds to a state is that of an
        earlier frame. "attention": they are attended for; what the MLP adds is that of an earlier frame.
    fresh: which still patches are computed all the same: "none", "grid" (one of four), "rotation" (one of four, another
        in each frame), "half" (one of two, in turns), "frames" (all of every second frame).
    carried: with the grid: additions differ from the earlier frame's by as much as those of the cell's computed patch.
    """

    does: str
    fresh: str = "none"
    carried: bool = False


WHOLE, STATES = Layer("whole"), Layer("states")
ADDED, ATTENDED = Layer("additions"), Layer("attention")
# A way: of how many layers there are, what each does; None: the whole tower.
Way = Callable[[int], list[Layer]]


def late(one: Layer) -> Way:
    """States are taken over in the first third of the layers, `one` in all others."""
    return lambda layers: [STATES] * (layers // 3) + [one] * (layers - layers // 3)


def alternate(layers: int) -> list[Layer]:
    first = layers // 3
    return [STATES] * first + [(WHOLE, ADDED)[number % 2] for number in range(layers - first)]


def thirds(last: Layer) -> Way:
    """States, whole, and `last`, in a third of the layers each."""
    return lambda layers: [STATES] * (layers // 3) + [WHOLE] * (layers // 3) + [last] * (layers - 2 * (layers // 3))


WAYS: dict[str, Way | None] = {
    "whole tower": None,
    "late layers whole (the default)": late(WHOLE),
    "rotation, a quarter": late(Layer("states", "rotation")),
    "grid, a quarter": late(Layer("states", "grid")),
    "grid, a quarter, its changes carried": late(Layer("additions", "grid", carried=True)),
    "whole every second frame": late(Layer("states", "frames")),
    "queries of changed, keys of all": late(ADDED),
    "every second late layer whole, queries of changed and keys of all in the others": alternate,
    "middle third whole, then queries of changed and keys of all": thirds(ADDED),
    "attention of all, MLP of changed": late(ATTENDED),
}
ONCE = {"whole tower": "whole tower, segments by pixels",
        "late layers whole (the default)": "late layers whole, segments by the same decision"}  # fmt: skip


def refreshed(source: Tensor, fresh: str) -> Tensor:
    """Frames (F, P) that patches take from, where some still ones are computed all the same."""
    frames, patches = source.shape
    side = round(patches**0.5)
    line = torch.arange(side, device=source.device)
    phase = (CELL * (line[:, None] % CELL) + line % CELL).flatten()  # of a patch in its cell
    number = torch.arange(frames, device=source.device)[:, None]
    chosen = {
        "none": torch.zeros(1, 1, dtype=torch.bool),
        "grid": phase == 0,
        "rotation": phase == number % 4,
        "half": line.repeat(side) % 2 == (line.repeat_interleave(side) + number) % 2,
        "frames": number % 2 == 0,
    }[fresh]
    own = (source == number) | chosen
    return torch.where(own, number, 0).cummax(0).values


def layer_of(kind: Layer, layer: Any, source: Tensor) -> Callable[..., Tensor]:
    """A layer's forward() that does this, for patches that take from the frames `source` (F, P)."""
    taken = refreshed(source, kind.fresh)
    plan = reuse.Plan.of(taken)
    rows = plan.rows[plan.slot]  # flat index that each patch takes from
    frames, patches = source.shape
    side = round(patches**0.5)

    def taken_over(additions: Tensor) -> Tensor:
        flat = additions.flatten(0, 1)
        out = flat[rows].view_as(additions)
        if not kind.carried:
            return out
        line = torch.arange(side, device=source.device) // CELL * CELL
        corner = (line[:, None] * side + line).flatten().expand(frames, -1)  # the computed patch of each one's cell
        before = flat[taken * patches + corner]
        still = (source.gather(1, corner) == source[taken, corner])[..., None]  # its own picture is what it was, too
        return out + still * (additions.gather(1, corner[..., None].expand_as(additions)) - before)

    def forward(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        if kind.does == "states":
            return reuse.siglip_layer(layer, plan, hidden)
        if kind.does == "additions":
            return hidden + taken_over(type(layer).forward(layer, hidden, None) - hidden)
        between = hidden + layer.self_attn(layer.layer_norm1(hidden), None)[0]
        return between + taken_over(layer.mlp(layer.layer_norm2(between)))  # type: ignore[no-any-return]

    return forward


def work(kinds: list[Layer], source: Tensor, width: int, inner: int, patches: int) -> float:
    """Share of a whole tower's products that these layers do, for a tower of this width and so many patches a frame."""
    query, keys, attention, mlp = 2 * width, 2 * width, 2 * patches, 2 * inner  # times width, of one patch
    total = query + keys + attention + mlp
    done = 0.0
    for kind in kinds:
        share = float(reuse.computed(refreshed(source, kind.fresh)).mean())
        always = {"whole": total, "states": 0, "additions": keys, "attention": query + keys + attention}[kind.does]
        done += always + share * (total - always)
    return done / (total * len(kinds))


class Going:
    """Stands in for the tower of ReusingSiglip; has what it decided and did for the last video."""

    def __init__(self, way: Way | None) -> None:
        self.way = way

    def encode(self, family: Any, pixels: Tensor, inputs: Any) -> dict[str, Tensor]:
        config = family.tower.config
        size = config.patch_size
        patches = pixels.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        self.source = reuse.sources(patches, family.settings.tower_reuse_threshold, family.interval)
        kinds = [WHOLE] * len(family.layers) if self.way is None else self.way(len(family.layers))
        self.computed = work(kinds, self.source, config.hidden_size, config.intermediate_size, self.source.shape[1])
        large = SO400M_CONFIG
        self.large = work(kinds, self.source, large["hidden_size"], large["intermediate_size"], 729)
        layers = {
            layer: layer_of(kind, layer, self.source)
            for kind, layer in zip(kinds, family.layers, strict=True)
            if kind.does != "whole"
        }
        with reuse.replaced(layers):
            encoded = LlavaOnevision._encode_frames(family, pixels, inputs)
        return encoded | {"computed": torch.full((len(pixels),), self.computed)}

    def still(self, features: Tensor) -> Tensor:
        """(F - 1, L) in place of the cosine of neighbours: 1 where no patch of a token changed, else 0."""
        frames, patches = self.source.shape
        same = (self.source[1:] == self.source[:-1]).view(frames - 1, round(patches**0.5), -1)
        tokens = round(features.shape[1] ** 0.5)
        cells = same.unflatten(1, (tokens, -1)).unflatten(3, (tokens, -1))
        return cells.all(4).all(2).flatten(1).float()


@contextlib.contextmanager
def going(name: str, once: bool) -> Iterator[Going]:
    """While open, the tower with tower_reuse goes this way, and with `once` Tango's segments follow its decision."""
    way = Going(WAYS[name])
    with contextlib.ExitStack() as stack:
        own = lambda family, pixels, inputs: way.encode(family, pixels, inputs)  # noqa: E731
        stack.enter_context(mock.patch.object(reuse.ReusingSiglip, "_encode_frames", own))
        if once:
            stack.enter_context(mock.patch.object(method_file, "neighbour_similarity", way.still))
        yield way


@dataclass
class Tried(Row):
    """As Row; `large`: the share of the work that a tower of SO400M's width would do."""

    large: list[float] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.large = self.large or []


@torch.inference_mode()
def answer(model: Any, processor: Any, rows: list[Tried], questions: list[Any], save: Callable[[], None]) -> None:
    """Fill in what the rows lack, video after video, every video with every row."""
    names = {text: name for name, text in ONCE.items()}
    for inputs, asked in questions:
        for row in rows:
            method, ratio = METHODS[row.method]
            with going(names.get(row.reuse, row.reuse), row.reuse in names) as way:
                pruner = REGISTRY[method](retention_ratio=ratio, tower_reuse="pixels")
                right, record = marks(model, processor, pruner, inputs, asked)
            row.right += right
            row.computed.append(round(way.computed, 4))
            row.large.append(round(way.large, 4))
            row.kept.append(round(record.tokens_after / record.tokens_before, 4))
        save()


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(args.model).eval()
    processor = AutoProcessor.from_pretrained(args.model)
    processor.tokenizer.padding_side = "left"
    stored = json.loads(args.answers.read_text()) if args.answers.exists() else {"rows": []}
    rows = [Tried(**row) for row in stored["rows"]] or [
        Tried(method, way, {})
        for method in args.methods
        for way in [*WAYS, *(ONCE.values() if METHODS[method][0] == "tango" else [])]
    ]
    questions = list(clips(model, processor, args.data, args.frames))[::2][: args.videos]
    kinds = [question["kind"] for _, asked in questions for question in asked]
    layers = model.config.vision_config.num_hidden_layers
    head = {"model": Path(args.model).name, "layers": layers, "frames": args.frames, "kinds": kinds}
    args.answers.parent.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        args.answers.write_text(json.dumps(head | {"rows": [vars(row) for row in rows]}, indent=1) + "\n")

    answer(model, processor, rows, questions[min(len(row.computed) for row in rows) :], save)


def write(folder: Path) -> None:
    """The table README.md of all files of answers in a folder."""
    lines: list[str] = []
    for file in sorted(folder.glob("*.json")):
        stored = json.loads(file.read_text())
        rows, kinds = [Tried(**row) for row in stored["rows"]], np.array(stored["kinds"])
        done = min(len(row.right) for row in rows)
        scores = {(row.method, row.reuse): np.array([float(c) for c in row.right[:done]]) for row in rows}
        whole, default = list(WAYS)[:2]
        title = f"{stored['model']}, {stored['layers']} tower layers, {stored['frames']} frames, {done} questions"
        lines += [f"## {title}", "", "| method | way | computed | accuracy | to the whole tower | to the default | "
                  + " | ".join(KINDS) + " | 7B, computed | 7B, TFLOP |",
                  "|---|---|" + "---:|" * (6 + len(KINDS))]  # fmt: skip
        for row in rows:
            right, method = scores[row.method, row.reuse], row.method
            cells = [method, row.reuse, f"{np.mean(row.computed):.2f}", wilson(float(right.mean()), done).text()]
            cells += [
                "" if row.reuse == against else bootstrap([(right, scores[method, against])])[0].text(signed=True)
                for against in (whole, default)
            ]
            cells += [f"{100 * right[kinds[:done] == kind].mean():.0f}" for kind in KINDS]
            large = float(np.mean(row.large))
            cells += [f"{large:.2f}", f"{first_token_7b(large, float(np.mean(row.kept))):.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    (folder / "README.md").write_text(INTRODUCTION + "\n".join(lines).rstrip() + "\n")


INTRODUCTION = """# Cheaper ways to refresh still patches

Made by `python benchmarks/tower_refresh.py --write results/tower/refresh` of the answers beside it; the script says
what each way does. Every second video of MotionQA, as far as they were asked about (all: 360 questions).
Differences are paired, in points, with 95 % intervals: to the same
method with the whole tower, and to today's `tower_reuse="pixels"`. `computed`: share of the tower's products of
matrices, by arithmetic; `7B`: the same of a tower of SigLIP-so400m's width with 729 patches a frame, and FLOPs of
LLaVA-OneVision-7B to its first token with it (32 frames). Nothing here is a measured time.
[reading.md](../reading.md#a-cheaper-refresh) says what to make of it.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default=str(ROOT / "checkpoints" / "tango-tiny"))
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "motionqa")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--videos", type=int, help="only the first so many of the half")
    parser.add_argument("--methods", nargs="+", default=["unpruned", "Tango 10 %"], choices=list(METHODS))
    parser.add_argument("--answers", type=Path, help="file of the answers, which is gone on with")
    parser.add_argument("--write", type=Path, help="folder of answers whose table is written")
    args = parser.parse_args()
    if args.answers is not None:
        run(args)
    if args.write is not None:
        write(args.write)


if __name__ == "__main__":
    main()
