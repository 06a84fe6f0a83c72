"""Positions of tokens that a prompt keeps where they were (M-RoPE), in an engine that learns late which those are.

The text of a prompt has its final positions before anything is encoded: they follow from the sizes of its images and
videos. Those of a video's kept tokens travel as columns of its embeddings, which vLLM hands to the model once more
before it uses them. Embeddings may be bf16, which holds no integer above 256 exactly: so each number takes two columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BASE = 256
MOST = BASE**2  # what a position must be below, counted from the start of its video


def with_columns(embeddings: Tensor, places: Tensor) -> Tensor:
    """Embeddings (K, D) followed by columns for their places (K, n), integers from 0: (K, D + 2 n).

    Raises:
        ValueError: a place is beyond what two columns hold.
    """
    if len(places) and int(places.max()) >= MOST:
        raise ValueError(f"a video's positions reach {int(places.max())}; pruned in vLLM they may reach {MOST - 1}")
    places = places.to(embeddings.device)
    return torch.cat((embeddings, (places // BASE).to(embeddings), (places % BASE).to(embeddings)), dim=1)


def without_columns(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Embeddings (K, D) and places (K, count), int64 on the CPU, of rows (K, D + 2 count)."""
    embeddings, high, low = rows.split([rows.shape[1] - 2 * count, count, count], dim=1)
    return embeddings, high.cpu().long() * BASE + low.cpu().long()


def grid_places(frames: Tensor, rows: int, columns: int) -> Tensor:
    """Temporal, row and column places (F * rows * columns, 3) of tokens, from the temporal place (F,) of each frame."""
    grid = torch.meshgrid(frames, torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack(grid, dim=-1).flatten(0, 2)


class Positions:
    """Positions (3, N) of a prompt, a piece at a time. Text has one position a token, three times the same."""

    def __init__(self) -> None:
        self.pieces: list[Tensor] = []
        self.length = 0  # tokens so far
        self.next = 0  # the position of what follows

    def text(self, count: int) -> None:
        """Tokens of text."""
        self.add(torch.arange(count)[:, None].expand(-1, 3))

    def add(self, places: Tensor, reach: int | None = None) -> None:
        """Tokens at places (n, 3) from here on. What follows is `reach` further on, or behind the largest of these."""
        self.pieces.append(places.T + self.next)
        self.length += len(places)
        if reach is None and len(places):
            reach = int(places.max()) + 1
        self.next += reach or 0

    def finish(self, count: int) -> tuple[Tensor, int]:
        """Text up to `count` tokens; the positions (3, count) and how much further the next is than its number."""
        self.text(count - self.length)
        return torch.cat(self.pieces, 1), self.next - count


def starts(tokens: Sequence[int], media: set[int], computed: int) -> list[tuple[int, int]]:
    """First and end of the runs of media tokens in a prompt, of those that end behind `computed` tokens."""
    ids = torch.as_tensor(tokens)
    inside = torch.isin(ids, torch.tensor(sorted(media))).int()
    edges = torch.diff(inside, prepend=torch.zeros(1).int(), append=torch.zeros(1).int())
    runs = zip((edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist(), strict=True)
    return [run for run in runs if run[1] > computed]


def enable(runner: Any) -> None:
    """Have a runner ask the model for positions; vLLM's runner for CPUs leaves that out, whatever is pruned."""
    if hasattr(runner.get_model(), "tango"):
        runner.is_multimodal_pruning_enabled = True
