"""The Triton kernels without a GPU: what they compute, in Triton's interpreter, and that they compile for GPUs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tango.fused

HERE = Path(__file__).parent
COMPILE = """
import sys
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from tango import kernels

class NoGpu:
    get_current_device = get_current_stream = lambda self, device=None: 0
    get_current_target = lambda self: GPUTarget("cuda", int(sys.argv[1]), 32)

class Compiled:  # takes a kernel's place, and compiles it for what it would be launched with
    def __init__(self, kernel):
        self.kernel = kernel
    def __getitem__(self, grid):
        return lambda *given: made.append(len(self.kernel.warmup(*given, grid=grid).asm["cubin"]))

driver.set_active(NoGpu())
made = []
for name in ("distances_kernel", "rotate_kernel", "split_kernel"):
    setattr(kernels, name, Compiled(getattr(kernels, name)))
points, rows = torch.randn(50, 3584), torch.arange(50)
for others in (rows.repeat(15, 1).T.contiguous(), rows.expand(50, -1), rows[:, None]):
    kernels.recheck(points, rows, others)
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    turns = torch.randn(9, 1792)
    kernels.rotate(torch.randn(24, 3584, dtype=dtype), rows[:24], turns, turns, (2, 3, 4), (1196, 1194, 1194))
for second in (False, True):
    kernels.halves(points, second)
assert len(made) == 8 and min(made) > 1000, made
"""


def test_in_the_interpreter():
    """The environment has to say so before Triton is imported, hence a process of its own."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", HERE / "interpreted_kernels.py"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 30


@pytest.mark.parametrize("capability", ["80", "90"])
def test_they_compile(capability, tmp_path):
    """As they are called, for GPUs like the A100 and like the H100 and H200, with the assembler of Triton's own."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE, capability]
    done = subprocess.run(
        command, cwd=HERE.parent, env=environment | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_cpu_is_not_asked_for_kernels():
    assert tango.fused.kernels(torch.device("cpu")) is None
