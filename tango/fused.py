"""Whether the Triton kernels of kernels.py can be used: on a GPU, once they have shown there what the plain way gives.

Nothing depends on them but time. Without Triton, or a C compiler for it, the plain way goes on, and a warning says so.
"""

from __future__ import annotations

import functools
import warnings
from types import ModuleType

import torch

DEVICES = ("cuda",)
TOLERANCE = 1e-5


@functools.cache
def kernels(device: torch.device) -> ModuleType | None:
    """tango.kernels, or None where the plain way must do. The first call for a GPU compiles and checks, in seconds."""
    if device.type not in DEVICES:
        return None
    try:
        from tango import kernels as module

        off = _difference(module, device)
    # Whatever goes wrong while a compiler runs on a user's machine, there is another way.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    else:
        if off <= TOLERANCE:
            return module
        reason = f"they differ by {off:.1e} from the plain way, where {TOLERANCE:.0e} is allowed"
    message = f"Tango works without its Triton kernels on {device}, with the same result, more slowly: {reason}"
    warnings.warn(message, RuntimeWarning, stacklevel=2)
    return None


def _difference(module: ModuleType, device: torch.device) -> float:
    """By how much kernels are off on a small example; infinite where not a bit may be."""
    from tango.neighbors import recheck_plainly, split_plainly
    from tango.rope import Rotated

    generator = torch.Generator().manual_seed(0)
    table = torch.randn(2 * 3 * 4, 2 * 67, generator=generator)
    table[5], table[6] = 0, table[7]
    table, rows = table.to(device), torch.arange(24, device=device)
    frames, height, width = (torch.arange(float(n), device=device) for n in (2, 3, 4))
    rotated = Rotated(table, (frames, height, width))
    points = rotated.plain(rows)
    others = torch.randint(24, (24, 19), generator=generator).to(device)
    others[:, 0] = rows
    found = module.recheck(points, rows, others)
    same = [torch.equal(module.halves(points, second), split_plainly(points, second)) for second in (False, True)]
    if not all(same) or bool(found[:, 0].any()):
        return float("inf")
    turned = (rotated.by_kernel(module, rows) - points).abs().amax()
    return float(torch.maximum(turned, (found - recheck_plainly(points, rows, others)).abs().amax()))
