"""Accuracy on MotionQA when the vision tower computes only what changes, by depth, by kind of question, and its FLOPs.

    python benchmarks/tower_reuse.py --answers results/tower/tango_tiny_8.json
    python benchmarks/tower_reuse.py --model checkpoints/tango-tiny-deep --methods unpruned "Tango 10 %" --few \
        --answers results/tower/tango_tiny_deep_8.json
    python benchmarks/tower_reuse.py --model checkpoints/tango-tiny-deep --methods unpruned "Tango 10 %" --frames 16 \
        --reuse whole "pixels, first 3 of 9 layers" --answers results/tower/tango_tiny_deep_16.json
    python benchmarks/tower_reuse.py --model checkpoints/tango-tiny-qwen --methods unpruned "Tango 10 %" --few \
        --answers results/tower/tango_tiny_qwen_8.json
    python benchmarks/tower_reuse.py --write results/tower      # the table and the plot, of all answers there

One row is a method with settings of tower_reuse. Every question of the benchmark is asked; the six about a video go
into one batch (with another model than a LLaVA they are asked in turn), and the tower sees a video once. The answers'
file holds which were right, row for row, so that a run that was stopped goes on, and differences have paired intervals.
`computed` is the share of its work that the tower did, counted as it ran; the time to first token of LLaVA-OneVision-7B
is no measurement: FLOPs of tower, projector and prefill at 32 frames with that share, as benchmarks/costs.py counts
them, over those of the unpruned model.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import costs  # noqa: E402
import front  # noqa: E402
from shapes import QWEN2_7B  # noqa: E402

from tango.inference.checkpoints import Checkpoint, load  # noqa: E402
from tango.models.original import SO400M_CONFIG  # noqa: E402
from tango.models.prompt import VideoRecord  # noqa: E402
from tango.motionqa import scenes  # noqa: E402
from tango.motionqa.questions import KINDS, prompt, read_questions  # noqa: E402
from tango.pruners import REGISTRY  # noqa: E402
from tango.pruners.base import Pruner  # noqa: E402
from tango.results.statistics import bootstrap, wilson  # noqa: E402
from tango.runs.scoring import parse_choice  # noqa: E402

METHODS = {"unpruned": ("uniform", 1.0), "Tango 20 %": ("tango", 0.2), "Tango 10 %": ("tango", 0.1)}
FRAMES_7B, TOKENS_7B, TEXT_7B = 32, 196, 40


def reuses(layers: int) -> dict[str, dict[str, Any]]:
    """Settings of reuse by what a row calls them, for a tower of so many layers: the first is none."""
    depths = sorted({round(layers * share) for share in (1 / 3, 5 / 9, 7 / 9)} | {layers - 1})
    first = round(layers / 3)
    found: dict[str, dict[str, Any]] = {"whole": {}}
    for depth in depths:
        settings = {"tower_reuse": "pixels", "tower_reuse_layers": depth / layers}
        found[f"pixels, first {depth} of {layers} layers"] = settings
    settings = {"tower_reuse": "pixels", "tower_reuse_layers": first / layers, "tower_reuse_interval": 4}
    found[f"pixels, first {first} of {layers} layers, whole frames every 4"] = settings
    found["stc, whole frames every 2"] = {"tower_reuse": "stc"}
    found["stc, whole frames every 4"] = {"tower_reuse": "stc", "tower_reuse_interval": 4}
    return found


@dataclass
class Row:
    """What one method with one setting of reuse answered: a letter a question, 1 where right."""

    method: str
    reuse: str
    settings: dict[str, Any]
    right: str = ""
    computed: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)


def clips(model: Any, processor: Any, folder: Path, frames: int) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    """Of each video the inputs of generate() for all of its questions in one batch, and the questions."""
    of_video: dict[str, list[Any]] = {}
    for question in read_questions(folder):
        of_video.setdefault(question["video"], []).append(question)
    times = scenes.uniform_times(frames)
    for name, asked in of_video.items():
        with av.open(str(folder / name)) as container:
            decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        clip = np.stack([decoded[round(time * scenes.FPS)] for time in times])
        texts = [
            processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}],
                add_generation_prompt=True,
            )
            for text in (prompt(question["question"], question["options"]) for question in asked)
        ]
        inputs = processor(text=texts, videos=[clip] * len(texts), return_tensors="pt", padding=True)
        yield dict(inputs) | {"video_timestamps": [torch.from_numpy(times)] * len(texts)}, asked


def prompts(checkpoint: Checkpoint, folder: Path, frames: int) -> Iterator[tuple[list[dict[str, Any]], list[Any]]]:
    """Of each video the inputs of generate() for each of its questions, and the questions."""
    for video in front.prepared(checkpoint, folder, read_questions(folder), frames):
        yield video.prompts, video.rows


def once_a_video(family: Any) -> None:
    """Let all prompts about one video encode it once."""
    encode, found = family.encode, list[dict[str, Any]]()

    def shared(inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        videos: Any = inputs["pixel_values_videos"]
        batch = len(videos) if videos.dim() == 5 else 1  # else the patches of one
        if not found:
            found.extend(encode({**inputs, "pixel_values_videos": videos[:1] if videos.dim() == 5 else videos}))
        for _ in range(batch):
            yield dict(found[0])

    family.encode = shared


def marks(model: Any, processor: Any, pruner: Pruner, inputs: Any, asked: list[Any]) -> tuple[str, VideoRecord]:
    """Of each question about one video "1" if the answer is right, else "0"; and what became of the video.

    inputs: of one batch of all questions, or a list of those of each.
    """
    said: list[str] = []
    with pruner(model) as session:
        once_a_video(model.generate.seam.family)
        for one in inputs if isinstance(inputs, list) else [inputs]:
            sequences = model.generate(**one, max_new_tokens=10, do_sample=False)
            said += processor.batch_decode(sequences[:, one["input_ids"].shape[1] :], skip_special_tokens=True)
    right = (parse_choice(text, q["options"]) == q["answer"] for text, q in zip(said, asked, strict=True))
    return "".join(str(int(one)) for one in right), session.videos[0]


@torch.inference_mode()
def answer(model: Any, processor: Any, rows: list[Row], questions: list[Any], save: Any) -> None:
    """Fill in what the rows lack, video after video, every video with every row."""
    for inputs, asked in questions:
        for row in rows:
            method, ratio = METHODS[row.method]
            pruner = REGISTRY[method](retention_ratio=ratio, **row.settings)
            right, record = marks(model, processor, pruner, inputs, asked)
            row.right += right
            row.computed.append(round(record.tower_computed, 4))
            row.kept.append(round(record.tokens_after / record.tokens_before, 4))
        save()


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    checkpoint = load(args.model, device="cpu", dtype="float32")
    model, processor = checkpoint.model, checkpoint.processor
    processor.tokenizer.padding_side = "left"
    llava = isinstance(model, LlavaOnevisionForConditionalGeneration)
    layers = model.config.vision_config.num_hidden_layers if llava else model.config.vision_config.depth
    stored = json.loads(args.answers.read_text()) if args.answers.exists() else {"rows": []}
    rows = [Row(**row) for row in stored["rows"]] or [
        Row(method, reuse, settings)
        for method in METHODS
        for reuse, settings in reuses(layers).items()
        if method in args.methods and not (args.few and settings.get("tower_reuse_interval"))
        if not args.reuse or reuse in args.reuse
        if llava or settings.get("tower_reuse") != "stc"
    ]
    args_of = args.data, args.frames
    of_video: Iterator[Any] = clips(model, processor, *args_of) if llava else prompts(checkpoint, *args_of)
    questions = list(itertools.islice(of_video, args.videos))
    kinds = [question["kind"] for _, asked in questions for question in asked]
    head = {"model": Path(args.model).name, "layers": layers, "frames": args.frames, "kinds": kinds}
    args.answers.parent.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        args.answers.write_text(json.dumps(head | {"rows": [vars(row) for row in rows]}, indent=1) + "\n")

    done = min(len(row.computed) for row in rows)
    answer(model, processor, rows, questions[done:], save)


def first_token_7b(computed: float, kept: float) -> float:
    """TFLOP of LLaVA-OneVision-7B until its first token, 32 frames: tower, projector, prefill."""
    tower = SiglipVisionConfig(**SO400M_CONFIG | {"num_hidden_layers": SO400M_CONFIG["num_hidden_layers"] - 1})
    text = Qwen2Config(**QWEN2_7B)
    config = LlavaOnevisionConfig(vision_config=tower, text_config=text)
    tokens = round(FRAMES_7B * TOKENS_7B * kept) + 1 + TEXT_7B
    vision = computed * costs.siglip_tower(tower, FRAMES_7B) + costs.projector(config, FRAMES_7B)
    return (vision + costs.decoder(text, tokens)) / 1e12


def write(folder: Path) -> None:
    """The table README.md and the plot accuracy.png, of all files of answers in a folder."""
    files = sorted(folder.glob("*.json"))
    lines, figure = [], Figure(figsize=(5 * len(files), 4.5), layout="constrained")
    whole_7b = first_token_7b(1.0, 1.0)
    for panel, file in enumerate(files, 1):
        stored = json.loads(file.read_text())
        rows, kinds = [Row(**row) for row in stored["rows"]], np.array(stored["kinds"])
        done = min(len(row.right) for row in rows)
        scores = [np.array([float(c) for c in row.right[:done]]) for row in rows]
        title = f"{stored['model']}, {stored['layers']} tower layers, {stored['frames']} frames, {done} questions"
        lines += [f"## {title}", "", "| method | tower | computed | accuracy | difference | " + " | ".join(KINDS)
                  + " | 7B, TFLOP | 7B, faster |", "|---|---|" + "---:|" * (5 + len(KINDS))]  # fmt: skip
        axes = figure.add_subplot(1, len(files), panel)
        axes.set_title(title.replace(", ", "\n", 1), fontsize=10)
        for method in METHODS:
            own = [n for n, row in enumerate(rows) if row.method == method]
            points = []
            for n in own:
                row, right = rows[n], scores[n]
                computed, kept = float(np.mean(row.computed)), float(np.mean(row.kept))
                difference = "" if n == own[0] else bootstrap([(right, scores[own[0]])])[0].text(signed=True)
                by_kind = [f"{100 * right[kinds[:done] == kind].mean():.0f}" for kind in KINDS]
                cost = first_token_7b(computed, kept)
                accuracy = wilson(float(right.mean()), done)
                cells = [method, row.reuse, f"{computed:.2f}", accuracy.text(), difference, *by_kind, f"{cost:.1f}"]
                lines.append(f"| {' | '.join([*cells, f'{whole_7b / cost:.2f}'])} |")
                points.append(
                    (whole_7b / cost, accuracy.value, "o" if row.reuse.startswith("pixels") else "sx"[n > own[0]])
                )
            for marker, what in {"s": "whole tower", "o": "pixels", "x": "stc"}.items():
                if xs := [(x, y) for x, y, kind in points if kind == marker]:
                    colour = f"C{list(METHODS).index(method)}"
                    axes.scatter(*zip(*xs, strict=True), marker=marker, color=colour, label=f"{method}, {what}")
        axes.set_ylabel("MotionQA (%)")
        axes.legend(fontsize=6, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.08))  # below: it hid points
        lines.append("")
    figure.supxlabel("LLaVA-OneVision-7B to the first token, times faster (FLOPs)", fontsize=10)
    figure.savefig(folder / "accuracy.png", dpi=130)
    (folder / "README.md").write_text(INTRODUCTION + "\n".join(lines).rstrip() + "\n")


INTRODUCTION = f"""# The vision tower computes what changes: accuracy and FLOPs

Made by `python benchmarks/tower_reuse.py --write results/tower` of the answers beside it. `computed`: share of its work
that the tower did, counted as it ran. `difference`: in points to the same method with the whole tower, with its paired
95 % interval. Kinds of question in percent. 7B: LLaVA-OneVision-7B to its first token at {FRAMES_7B} frames if its
tower did the same share and as many tokens were kept: tower, projector and prefill by FLOPs, and how many times less
that is than unpruned with the whole tower ({first_token_7b(1.0, 1.0):.1f} TFLOP). Nothing here is a measured time.
[reading.md](reading.md) says what to make of it.

![accuracy against the time to first token by FLOPs](accuracy.png)

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default=str(ROOT / "checkpoints" / "tango-tiny"))
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "motionqa")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--videos", type=int, help="only the first so many")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--few", action="store_true", help="without the rows that differ in how often frames are whole")
    parser.add_argument("--reuse", nargs="+", help="only the rows of these settings of reuse, by what they are called")
    parser.add_argument("--answers", type=Path, help="file of the answers, which is gone on with")
    parser.add_argument("--write", type=Path, help="folder of answers whose table and plot are written")
    args = parser.parse_args()
    if args.answers is not None:
        run(args)
    if args.write is not None:
        write(args.write)


if __name__ == "__main__":
    main()
