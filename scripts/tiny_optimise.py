"""How tango-tiny is optimised: Muon and AdamW, gradients summed over processes, states that survive a kill."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal (Jordan et al. 2024), step size matched to AdamW's (Liu et al. 2025).

    torch.optim.Muon iterates in bfloat16, which CPUs without such units emulate: half of a training step here. This
    one works in float32, and on all matrices of one shape at once.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, same in by_shape.items():
                for p in same:
                    momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    momentum.lerp_(p.grad, 0.05)
                x = torch.stack([p.grad.lerp(self.state[p]["momentum"], 0.95) for p in same])
                if shape[0] > shape[1]:
                    x = x.mT
                x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
                for _ in range(5):
                    a = x @ x.mT
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
                if shape[0] > shape[1]:
                    x = x.mT
                for p, update in zip(same, x.unbind(), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(
                        update, alpha=-0.2 * group["lr"] * max(shape) ** 0.5
                    )


class Optimiser:
    """Muon for the matrices inside the blocks, AdamW for all else, one warm-up-and-cosine schedule over both."""

    def __init__(self, modules: list[nn.Module], steps: int, rate: float, warmup: int = 100) -> None:
        matrices, others = [], []
        for name, p in (pair for m in modules for pair in m.named_parameters()):
            if p.requires_grad:
                inside = p.ndim == 2 and "embed" not in name and "lm_head" not in name
                (matrices if inside else others).append(p)
        self.parameters = matrices + others
        self.parts = [
            Muon(matrices, lr=rate, weight_decay=0.05),
            torch.optim.AdamW(others, lr=rate, weight_decay=0.01, betas=(0.9, 0.98)),
        ]
        self.steps, self.rate, self.warmup = steps, rate, warmup

    def step(self, step: int) -> None:
        factor = min((step + 1) / self.warmup, 0.5 * (1 + np.cos(np.pi * step / self.steps)) * 0.98 + 0.02)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.rate * factor
            part.step()
            part.zero_grad(set_to_none=True)

    def state(self) -> list[Any]:
        return [part.state_dict() for part in self.parts]

    def load(self, state: list[Any]) -> None:
        for part, s in zip(self.parts, state, strict=True):
            part.load_state_dict(s)


def bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )


def save_state(path: Path, **state: Any) -> None:
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load_state(path: Path) -> dict[str, Any] | None:
    return torch.load(path, map_location="cpu", weights_only=False) if path.exists() else None


def resume(path: Path, modules: Mapping[str, nn.Module], optimiser: Optimiser) -> tuple[int, float]:
    """The step to go on from and the seconds spent until there, with modules and optimiser as they were saved."""
    if (state := load_state(path)) is None:
        return 0, 0.0
    for key, module in modules.items():
        module.load_state_dict(state[key])
    optimiser.load(state["optimiser"])
    return state["step"], state["spent"]


def workers() -> tuple[int, int]:
    """(rank, number of processes); more than one under torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_gradients(parameters: list[nn.Parameter]) -> None:
    """Adds up the gradients of all processes in place."""
    if dist.is_initialized():
        flat = torch.cat([p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in parameters])
        dist.all_reduce(flat)
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = part.view_as(p)
