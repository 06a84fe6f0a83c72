"""Writes MotionQA's shipped test split: videos and questions, from their seeds.

python scripts/make_motionqa.py [--output data/motionqa] [--videos 120]
"""

import argparse
from pathlib import Path

from rich.progress import track

from tango.motionqa.questions import build

TEST_SEED = 0  # training starts at 1,000,000, validation at 500,000 (scripts/train_tiny.py)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=Path("data/motionqa"))
    parser.add_argument("--videos", type=int, default=120, help="six questions are asked about each")
    args = parser.parse_args()
    rows = build(args.output, args.videos, TEST_SEED, progress=lambda r: track(r, "writing videos"))
    print(f"{args.videos} videos and {len(rows)} questions in {args.output}")


if __name__ == "__main__":
    main()
