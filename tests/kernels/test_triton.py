"""The kernels in Triton compile for a GPU that is not here.

That they compute what they should is tested beside the other implementations, in Triton's
interpreter.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("captioning.kernels.triton.launch")

# Each launch is compiled for the arguments that it would have had.
COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from captioning.kernels.triton import launch

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64"}

def compile(function, programs, *arguments, num_warps=4, **constants):
    types = [TYPES[a.dtype] if isinstance(a, torch.Tensor) else "i32" for a in arguments]
    signature = dict(zip(function.arg_names, types)) | {name: "constexpr" for name in constants}
    source = ASTSource(function, signature, constexprs=constants)
    target = GPUTarget("cuda", 90, 32)
    made = triton.compile(source, target=target, options={"num_warps": num_warps})
    print(function.__name__, types[4], len(made.asm["cubin"]) > 0)

launch._launch = compile
kernels = launch.TritonKernels()
for dtype in (torch.float32, torch.bfloat16):
    keys, grid = torch.zeros(2, 196, 512, dtype=dtype), torch.zeros(2, 196, 512, dtype=dtype)
    query, weight, index = torch.zeros(10, 512), torch.zeros(512), torch.arange(10)
    alpha, context = kernels.attend(keys, grid, query, weight, index, 5)
    inputs = alpha, context, alpha, keys, grid, query, weight, index
    kernels.attend_backward(keys.float(), *inputs, 5)
    hidden, cell, active = kernels.cell(query, *[torch.zeros(10, 2048, dtype=dtype)] * 3)
    kernels.cell_backward(hidden, cell, active, cell, cell, dtype)
"""


def test_the_kernels_compile_for_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        capture_output=True, text=True, cwd=Path(__file__).parents[2],
        env={"TRITON_CACHE_DIR": str(tmp_path), "PATH": "/usr/bin:/bin", "TRITON_INTERPRET": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.split("\n")[:-1]
    assert len(lines) == 12  # six functions, of two types
    assert all(line.endswith("True") for line in lines)
