"""FLOPs of 7B models on a live stream: of each of its frames, and of a question until its first token.

    python benchmarks/live_flops.py --output results/live/flops.md           # an hour at 1 fps, about fifteen minutes
    python benchmarks/live_flops.py --seconds 40 --families qwen2_5_vl        # to try it

A stream of MotionQA's scenes goes through tango.live with a model of the true token grid and narrow widths: which
segments close, how many tokens are held, what a question finds in the cache, and which patches of the tower change are
read off it. What that costs at the true widths is worked out by benchmarks/costs.py. Nothing here is a measured time.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from transformers import Qwen2VLVideoProcessor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import costs  # noqa: E402
from live import EVERY, QUESTION, frames  # noqa: E402
from measure import Table  # noqa: E402
from shapes import QWEN_GRID, SHAPES, SIGLIP, Shape, build  # noqa: E402

from tango import Tango  # noqa: E402
from tango.inference.checkpoints import load  # noqa: E402
from tango.live import Live, memory  # noqa: E402

FAMILIES = ("llava_onevision", "qwen2_5_vl")
DEPTH = 3  # layers of the narrow tower, of which one reuses patches
AGES = (60, 300, 600, 1800, 3600, 14400)  # of the stream, in seconds: rows of the table end there
COLUMNS = (
    "stream, minutes", "frames", "hits", "prompt", "of it new", "TFLOP of a hit", "misses", "of it new, in a miss",
    "TFLOP of a miss", "most", "generate(), 10 %", "generate(), unpruned",
)  # fmt: skip


@dataclass
class Seen:
    """What happened on a stream: questions as (seconds, prompt, reused, hit, open frames), and of each closed segment
    its frames; changed: of each frame of the tower, the share of patches that its first layers computed.
    """

    questions: list[tuple[float, int, int, bool, int]] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    changed: list[float] = field(default_factory=list)


def narrow(shape: Shape, toy: bool) -> tuple[Any, Any, tuple[int, int]]:
    """A model of the shape's token grid with narrow widths, its processor, and the size of a frame in pixels."""
    tiny = load(str(ROOT / "checkpoints" / "tango-tiny")).processor
    config = shape.config(layers=DEPTH, toy=True)
    config.video_token_id, config.image_token_id = tiny.video_token_id, tiny.image_token_id
    if shape.llava:
        size = SIGLIP["image_size"] if not toy else config.vision_config.image_size
        config.vision_config.image_size = size
        tiny.video_processor.size = {"height": size, "width": size}
        return build(shape, torch.device("cpu"), torch.float32, config=config), tiny, (128, 128)
    grid = shape.grid(config) if toy else QWEN_GRID
    size = grid[0] * config.vision_config.patch_size, grid[1] * config.vision_config.patch_size
    processor = SimpleNamespace(
        tokenizer=tiny.tokenizer, apply_chat_template=tiny.apply_chat_template, video_processor=Qwen2VLVideoProcessor()
    )
    return build(shape, torch.device("cpu"), torch.float32, config=config), processor, size


@contextlib.contextmanager
def noting(seen: Seen, video: Live) -> Iterator[None]:
    """While open, what the tower of a session computes and how long its closed segments are is noted."""
    add, levels = video._encoder.add, memory.levels

    def encoded(picture: Any, time: float) -> Any:
        unit = add(picture, time)
        if unit is not None:
            seen.changed.append(1 - DEPTH * (1 - float(unit.parts["computed"].mean())))
        return unit

    def closed(pruner: Any, tokens: Any, extra: Any) -> Any:
        seen.segments.append(len(tokens.features))
        return levels(pruner, tokens, extra)

    with mock.patch.object(video._encoder, "add", encoded), mock.patch.object(memory, "levels", closed):
        yield


def pictures(seconds: float, fps: float, size: tuple[int, int]) -> Iterator[tuple[Any, float]]:
    for picture, now in frames(seconds, fps):
        tall = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
        sized = torch.nn.functional.interpolate(tall, size, mode="bilinear") if size != (128, 128) else tall
        yield sized[0].permute(1, 2, 0).round().to(torch.uint8), now


def watch(shape: Shape, args: argparse.Namespace) -> tuple[Seen, int]:
    """A stream of the shape's tokens; also the tokens of a question's text."""
    model, processor, size = narrow(shape, args.toy)
    seen, due, before = Seen(), EVERY, 0
    pruner = Tango(retention_ratio=args.ratio, tower_reuse="pixels")
    with Live(model, processor, pruner, budget=args.budget, fps=None) as video, noting(seen, video):
        text = sum(len(ids) for ids in video._layout.prompt(QUESTION))
        for picture, now in pictures(args.seconds, args.fps, size):
            if now >= due:
                due += EVERY
                video.wait()
                answer = video.ask(QUESTION, 1)
                answer.text()
                hit, still = answer.reused >= before, len(video._holding.open)
                seen.questions.append((now, answer.prompt, answer.reused, hit, still))
                before = video.status.tokens
            video.add(picture, now, wait=True)
        video.wait()
        if video.problems:
            raise SystemExit("\n".join(video.problems))
    return seen, text


class Costs:
    """FLOPs of a shape at its true size."""

    def __init__(self, shape: Shape, ratio: float) -> None:
        self.shape, self.config, self.ratio = shape, shape.config(), ratio
        vision = self.config.vision_config
        self.text = self.config.text_config
        rows, columns = shape.grid(self.config)
        if shape.llava:
            self.samples, self.tokens, depth = 1, (-(-rows // 2)) ** 2, vision.num_hidden_layers
            self.tower = costs.siglip_tower(vision, 1)
            self.rest = costs.projector(self.config, 1) + costs.pooling_head(vision, 1)
        else:
            self.samples, self.tokens, depth = vision.temporal_patch_size, rows * columns // 4, vision.depth
            self.tower, self.rest = (
                costs.qwen_tower(vision, 1, rows, columns),
                costs.mean_query(vision, 1, rows, columns),
            )
        self.reusing = int(depth / 3 + 1e-9) / depth  # share of the layers

    def pruning(self, count: int, ratio: float) -> int:
        """Of a segment of so many frames of the tower, if none of its places is static: the most that it can be."""
        return costs.context_distances([count], [0], self.tokens, self.text.hidden_size, ratio)

    def closing(self, count: int) -> int:
        """Of a segment that closes: the method's choice, and those at half the tokens, a quarter, .. down to one."""
        kept, total = max(1, int(self.ratio * count * self.tokens)), 0
        while kept:
            total += self.pruning(count, kept / (count * self.tokens))
            kept //= 2
        return total

    def question(self, prompt: int, reused: int, still: int) -> float:
        """Until the first token: pruning of the open frames, and prefill of what is not in the cache."""
        own = self.pruning(still, self.ratio) if still else 0
        return own + costs.decoder(self.text, prompt - reused, cached=reused)

    def whole(self, sampled: float, text: float, ratio: float) -> float:
        """generate() on the finished clip so far; its pruning, the least of it, left out."""
        count = -(-round(sampled) // self.samples)
        return count * (self.tower + self.rest) + costs.decoder(self.text, round(ratio * count * self.tokens + text))


def tera(value: float) -> str:
    """10**12 of it, to three digits."""
    return f"{float(f'{value / 1e12:.3g}'):,.10g}"


def rows(seen: Seen, cost: Costs, text: float, fps: float) -> Iterator[list[str]]:
    start = 0.0
    for end in AGES:
        own = [question for question in seen.questions if start < question[0] <= end]
        if not own:
            return
        hits, misses = ([q for q in own if q[3] == kind] for kind in (True, False))
        # The first question of all finds nothing, and is no miss by the rule.
        spent = {kind: [cost.question(*q[1:3], q[4]) for q in group] for kind, group in ((1, hits), (0, misses))}
        new = {kind: [q[1] - q[2] for q in group] for kind, group in ((1, hits), (0, misses))}
        last = own[-1][0]
        yield [
            f"{start / 60:g} to {last / 60:.3g}", f"{last * fps:.0f}", str(len(hits)),
            f"{statistics.median(q[1] for q in own):.0f}", f"{statistics.median(new[1]):.0f}" if hits else "",
            tera(statistics.median(spent[1])) if hits else "", str(len(misses)),
            f"{statistics.median(new[0]):.0f}" if misses else "", tera(statistics.median(spent[0])) if misses else "",
            tera(max(spent[1] + spent[0])), tera(cost.whole(last * fps, text, cost.ratio)),
            tera(cost.whole(last * fps, text, 1.0)),
        ]  # fmt: skip
        start = end


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--families", nargs="+", default=FAMILIES, choices=FAMILIES)
    parser.add_argument("--seconds", type=float, default=3610, help="of the stream")
    parser.add_argument("--fps", type=float, default=1.0)
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument("--ratio", type=float, default=0.1)
    parser.add_argument("--toy", action="store_true", help="a small grid, to try the script: numbers mean nothing")
    parser.add_argument("--output", type=Path, help="Markdown file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    text: list[str] = []
    for name in args.families:
        cost = Costs(SHAPES[name], args.ratio)
        seen, words = watch(SHAPES[name], args)
        changed = statistics.mean(seen.changed)
        reuse = cost.tower * (1 - (1 - changed) * cost.reusing)
        pruning = sum(map(cost.closing, seen.segments)) / max(1, sum(seen.segments))
        each = f"a frame of the tower ({cost.samples} of the stream)" if cost.samples > 1 else "a frame"
        facts = [
            f"TFLOP of {each}: tower {tera(cost.tower)}, projector and saliency {tera(cost.rest)}, pruning of closed "
            f'segments at most {tera(pruning)}; the tower with tower_reuse="pixels" {tera(reuse)}, as '
            f"{100 * changed:.0f} % of the patches changed, in {100 * cost.reusing:.0f} % of the layers",
            f"{args.fps:g} fps, budget {args.budget}, ratio {args.ratio:g}, {cost.tokens} tokens a frame, a question "
            f"of {words} tokens of text each {EVERY:g} s; MotionQA's scenes and random narrow weights: what is cut and "
            "kept of a real stream may differ, the budget holds for any",
            "hits: questions that found all in the cache that was there at the question before; medians; most: of hits "
            "and misses; generate(): TFLOP on the clip up to the last of these moments, all frames encoded anew, "
            f"though the model has positions for {cost.text.max_position_embeddings} tokens only",
        ]
        table = Table(SHAPES[name].name, facts, COLUMNS, None)
        for row in rows(seen, cost, words, args.fps):
            table.row(*row)
        text += [*([""] if text else []), f"**{SHAPES[name].name}**", *table.lines[1:]]
        if args.output:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
