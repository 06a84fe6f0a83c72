"""Sets of different sizes worked on together, and data dependence without waiting for a GPU.

A GPU is fed fastest by few large steps whose shapes the host knows beforehand: to ask the device for a number means to
wait for all that it was told before. Sets are therefore padded to a common size, and a step that would need a number
from the device does a fixed amount of work instead and notes, on the device, whether that was enough (Doubts).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CACHE_ELEMENTS = 1 << 22  # on a CPU larger blocks only leave the cache
CACHED_POINTS = 1 << 20  # numbers of the points of a batch, likewise
FIXED_COSTS = 1 << 23  # multiplications that a CPU does in less time than what a batch costs whatever its size


class Doubts:
    """Whether steps of fixed shapes left anything open; their outcome counts only if they did not."""

    def __init__(self) -> None:
        self._flags: list[Tensor] = []

    def add(self, flag: Tensor) -> None:
        """Note a 0-dimensional bool on the device: true where the fixed amount of work was not enough."""
        self._flags.append(flag)

    def any(self) -> bool:
        """Whether there is any doubt. This waits for the device."""
        return bool(self._flags) and bool(torch.stack(self._flags).any())


def on_device(values: Tensor | Sequence[int], device: torch.device) -> Tensor:
    """A tensor, or integers as int64, on a device; from the host without waiting for what the device is at."""
    return torch.as_tensor(values).to(device, non_blocking=device.type != "cpu")


def first_places(sizes: Sequence[int], width: int, device: torch.device) -> Tensor:
    """(G, width) bool: true at the first sizes[g] places of row g, which hold its set; the rest is padding."""
    return torch.arange(width, device=device) < on_device(sizes, device)[:, None]


def true_places(mask: Tensor, count: int) -> Tensor:
    """Ascending places (count,) int64 of the true ones of mask (n,) bool, of which the host knows there are `count`."""
    return (~mask).to(torch.uint8).sort(stable=True).indices[:count]


def batches(sizes: Sequence[int], width: int, device: torch.device, memory_limit: float) -> list[list[int]]:
    """Which sets to work on together, the largest first; a set too large for the memory limit is alone.

    Padding costs arithmetic and saves launches. On a GPU these take about as long as the arithmetic of a whole batch of
    ordinary sets; on a CPU only sets of about the same size, or small ones, share a batch.

    Args:
        sizes: points of each set.
        width: D, of a point.
        memory_limit: MiB that points and distances of a batch may take, roughly.

    Returns:
        lists of places in `sizes` that hold each place once.
    """
    elements, points = pairs_at_once(device, memory_limit), int(memory_limit * 2**20) // (8 * width)
    if device.type == "cpu":
        points = min(points, CACHED_POINTS // width)
    result: list[list[int]] = []
    for place in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        if result:
            largest, count = sizes[result[-1][0]], len(result[-1]) + 1
            fits = count * largest**2 <= elements and count * largest <= points
            padding = (largest**2 - sizes[place] ** 2) * width
            if fits and (device.type != "cpu" or padding <= FIXED_COSTS):
                result[-1].append(place)
                continue
        result.append([place])
    return result


def pairs_at_once(device: torch.device, memory_limit: float) -> int:
    """How many fp32 numbers a block of closenesses may hold; about four blocks' worth is alive at once."""
    elements = max(64 * 64, int(memory_limit * 2**20) // 16)
    return min(elements, CACHE_ELEMENTS) if device.type == "cpu" else elements
