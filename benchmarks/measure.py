"""What the benchmarks share: seconds and memory of each stage of a prompt, quartiles, tables that grow by rows.

The stages of a prompt are those of tango.inference.timing, with pruning by itself:

    vision tower | projector, pooling, saliency, splicing ("project") | prune() | language model ("prefill")
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import os
import platform
import resource
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from torch import nn

from tango import __version__
from tango.inference.timing import Clock
from tango.models import family_of
from tango.ops.segmentation import neighbour_similarity
from tango.pruners import Pruned, Pruner, VideoTokens
from tango.pruners.reuse import TowerReuse

STAGES = ("vision", "project", "prune", "prefill")
MIB = 2**20
LIBC = ctypes.CDLL(None)


class Stages:
    """Seconds, or bytes beyond what was held before, of each stage of the calls made while it is entered.

    Args:
        memory: measure memory instead of time. The two are not measured together: reading the memory of a process
            takes time, and on a GPU it would make stages wait for each other.
    """

    def __init__(self, model: nn.Module, memory: bool = False) -> None:
        self.model, self.memory, family = model, memory, family_of(model)
        self.vision, self.language = family.vision_modules(model), family.language_model(model)
        self.device = next(model.parameters()).device
        self.clock = Clock([self.device])
        self._stage: str | None = None

    def enter(self, stage: str | None) -> None:
        """From here on it is this stage; None: no stage any more."""
        if self.memory:
            peak = peak_bytes(self.device)
            give_back(self.device)
            if self._stage is not None:
                self.bytes[self._stage] = max(self.bytes.get(self._stage, 0), peak - self._base)
            forget_peak(self.device)
        else:
            self._marks.append((self._stage, self.clock.mark()))
        self._stage = stage

    def _before_language(self, *_: Any) -> None:
        if self._stage != "prefill":  # its first call in this prompt
            self.enter("prefill")

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Measure one call of the model; the result is in `seconds` or in `bytes`, by stage, afterwards."""
        real = Pruner.prune_tokens

        def prune(*args: Any, **kwargs: Any) -> Any:
            self.enter("prune")
            pruned = real(*args, **kwargs)
            self.enter("project")
            return pruned

        self._marks: list[tuple[str | None, Any]] = []
        self.bytes: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        hooks = [self.language.register_forward_pre_hook(self._before_language)]
        for module in self.vision:
            hooks.append(module.register_forward_pre_hook(lambda *_: self.enter("vision")))
            hooks.append(module.register_forward_hook(lambda *_: self.enter("project")))
        try:
            with mock.patch.object(Pruner, "prune_tokens", prune):
                self.clock.wait()
                if self.memory:
                    own_pages(True)
                    give_back(self.device)
                    forget_peak(self.device)
                    self._base = peak_bytes(self.device)
                self._stage = None
                self.enter("project")
                yield
                self.enter(None)
                self.clock.wait()
        finally:
            own_pages(False)
            for hook in hooks:
                hook.remove()
        for (_, start), (stage, end) in zip(self._marks, self._marks[1:], strict=False):
            self.seconds[str(stage)] = self.seconds.get(str(stage), 0.0) + self.clock.seconds(start, end)


class Witness(Pruner):
    """Prunes as `method` does and remembers what the model side gave it, and how each video fell apart.

    saliency (F, L) of the last video, or None; sizes: frames of each segment of each video; static: its static places;
    tokens: of a frame; kept: tokens of each video that stayed.
    """

    name = "witness"

    def __init__(self, method: Any) -> None:
        of_tower = {field.name: getattr(method, field.name) for field in fields(TowerReuse)}
        super().__init__(retention_ratio=method.retention_ratio, **of_tower)
        self.method = method
        self.sizes: list[list[int]] = []
        self.static: list[list[int]] = []
        self.kept: list[int] = []

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(self.method.needs)

    def prune_tokens(self, video: VideoTokens) -> Pruned:
        features, pruned = video.features, self.method.prune_tokens(video)
        sizes = pruned.segment_sizes.tolist()
        similar = neighbour_similarity(features) > self.method.static_threshold
        first = [sum(sizes[:index]) for index in range(len(sizes))]
        parts = [similar[start : start + size - 1] for start, size in zip(first, sizes, strict=True)]
        self.static.append([int(part.all(0).sum()) if len(part) else 0 for part in parts])
        self.sizes.append(sizes)
        self.kept.append(len(pruned.indices))
        self.saliency, self.tokens = video.saliency, features.shape[1]
        return pruned

    def _prune(self, video: Any) -> Pruned:
        raise TypeError("a witness has prune_tokens() of its own")

    def static_share(self) -> float:
        """Of the tokens of the last video."""
        still = sum(size * places for size, places in zip(self.sizes[-1], self.static[-1], strict=True))
        return still / (sum(self.sizes[-1]) * self.tokens)


def own_pages(yes: bool) -> None:
    """Whether the C library gets large blocks from the system one by one, so that what is freed is no longer counted.

    What it does by itself depends on what was freed before.
    """
    if hasattr(LIBC, "mallopt"):
        LIBC.mallopt(-3, 1 << 16 if yes else 32 << 20)  # M_MMAP_THRESHOLD


def give_back(device: torch.device) -> None:
    """Free memory of this process goes back to the system."""
    if device.type == "cpu" and hasattr(LIBC, "malloc_trim"):
        LIBC.malloc_trim(0)


def forget_peak(device: torch.device) -> None:
    """The most memory held so far is forgotten (on a CPU: Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """The most memory held since forget_peak(): of PyTorch on a GPU, or resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 1) -> str:
    """Median, and the quartiles where there are at least three values."""
    values = sorted(scale * value for value in values)
    text = f"{statistics.median(values):.{digits}f}"
    if len(values) < 3:
        return text
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{text} ({low:.{digits}f} to {high:.{digits}f})"


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    name = names[0].split(":")[1].strip() if names else platform.machine()
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


class Table:
    """A Markdown table with a header of facts, printed and (if there is a file) written anew with each row."""

    def __init__(self, title: str, facts: Sequence[str], columns: Sequence[str], output: Path | None) -> None:
        self.output = output
        command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
        versions = f"tango {__version__}, python {platform.python_version()}, torch {torch.__version__}, "
        versions += f"transformers {transformers.__version__}; {datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
        facts = [f"made by: {command}", versions, *facts]
        rule = "|---" + "|---:" * (len(columns) - 1) + "|"
        self.lines = [f"# {title}", "", *(f"- {fact}" for fact in facts), "", f"| {' | '.join(columns)} |", rule]
        self._write(*self.lines)

    def row(self, *cells: object) -> None:
        self.lines.append(f"| {' | '.join(map(str, cells))} |")
        self._write(self.lines[-1])

    def note(self, *lines: str) -> None:
        """Lines after the table."""
        self.lines += ["", *lines]
        self._write("", *lines)

    def _write(self, *new: str) -> None:
        print("\n".join(new), flush=True)
        if self.output is not None:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self.output.write_text("\n".join(self.lines) + "\n", encoding="utf-8")
