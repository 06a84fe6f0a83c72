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
import sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from tango import kernels
aligned = [["tt.divisibility", 16]]
def compiled(kernel, types, constants):
    names = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    hints = {(i,): aligned for i, name in enumerate(kernel.arg_names) if types.get(name, "").startswith("*")}
    made = triton.compile(ASTSource(kernel, names, places, hints), target=GPUTarget("cuda", int(sys.argv[1]), 32))
    assert len(made.asm["cubin"]) > 1000
whole = dict.fromkeys(("points", "result"), "*fp32") | dict.fromkeys(("rows", "others"), "*i64")
whole |= dict.fromkeys(("count", "row_stride", "column_stride"), "i32")
compiled(kernels.distances_kernel, whole, {"WIDTH": 3584, "OTHERS": kernels.OTHERS, "COMPONENTS": kernels.COMPONENTS})
for second in (False, True):
    types, constants = {"values": "*fp32", "result": "*bf16"}, {"WIDTH": 3584, "SPLIT": kernels.SPLIT}
    compiled(kernels.split_kernel, types, constants | {"LOW_SECOND": second})
for table in ("*fp32", "*fp16", "*bf16"):
    types = dict.fromkeys(("cos", "sin", "result"), "*fp32") | {"table": table, "rows": "*i64"}
    types |= dict.fromkeys(("frames", "height", "columns"), "i32")
    compiled(kernels.rotate_kernel, types, {"TIME": 598, "SPACE": 597, "PAIRS": kernels.PAIRS})
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
    """For GPUs like the A100 and like the H100 and H200, with the assembler that Triton brings along."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE, capability]
    done = subprocess.run(
        command, cwd=HERE.parent, env=environment | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_cpu_is_not_asked_for_kernels():
    assert tango.fused.kernels(torch.device("cpu")) is None
