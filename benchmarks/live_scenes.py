"""Whether the unpruned tango-tiny answers about scenes of a stream of four: what MotionQA-live would start from.

python benchmarks/live_scenes.py --streams 24 --output results/live/scenes.md

Streams of four of MotionQA's scenes, eight frames each, at a retention ratio of 1 and nothing thinned. Asked is what is
about one thing alone in the whole stream (the only ring's colour, the direction of the only blue cross), so that one
answer is right. The options are those of MotionQA: chance is 25 %.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from tango import Tango
from tango.inference.checkpoints import load
from tango.live import Live
from tango.motionqa.questions import questions
from tango.motionqa.scenes import render, sample_spec, uniform_times
from tango.results.statistics import wilson

ROOT = Path(__file__).parents[1]
FIRST_SEED = 3_000_000  # seeds of no split of MotionQA
SCENES = 4
AGES = ("the newest", "one before", "two before", "three before")


def only_one(question, actors):
    """Whether the stream has one thing alone that a question may mean."""
    words = question.text.rstrip("?").split()
    return {
        "colour": lambda: [a.shape for a in actors].count(words[-1]) == 1,
        "direction": lambda: [a.name for a in actors].count(" ".join(words[4:6])) == 1,
    }.get(question.kind, lambda: False)()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--streams", type=int, default=24)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "live" / "scenes.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint, rng, times = load(str(ROOT / "checkpoints" / "tango-tiny")), np.random.default_rng(5), uniform_times(8)
    right = defaultdict(list)
    for stream in range(args.streams):
        specs = [sample_spec(FIRST_SEED + SCENES * stream + number) for number in range(SCENES)]
        actors = [actor for spec in specs for actor in spec.actors]
        model, processor, whole = checkpoint.model, checkpoint.processor, Tango(retention_ratio=1.0)
        with Live(model, processor, whole, budget=20_000, fps=None) as video:
            for number, spec in enumerate(specs):
                for time in times:
                    video.add(render(spec, time), 9 * number + time, wait=True)
            for number, spec in enumerate(specs):
                for question in questions(spec, times, rng):
                    if only_one(question, actors):
                        answer = video.ask(question.prompt(), 8).text().strip()
                        right[SCENES - 1 - number].append(answer == question.options[question.answer])
        print(stream, json.dumps({AGES[age]: [sum(own), len(own)] for age, own in sorted(right.items())}), flush=True)
    made = f"Made by: python benchmarks/live_scenes.py --streams {args.streams}"
    lines = [made, "", "| scene asked about | right | of | % (95 % interval) |", "|---|---:|---:|---:|"]
    for age, own in sorted(right.items()):
        share = sum(own) / len(own)
        lines.append(f"| {AGES[age]} | {sum(own)} | {len(own)} | {wilson(share, len(own)).text()} |")
    args.output.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
