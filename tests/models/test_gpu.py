"""The kernels in Triton: compiled for a GPU that is not here, and run on one that is.

That they compute what they should is tested beside C and torch, in test_attention and test_cell.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.training import batch_of, decoder_of

pytest.importorskip("captioning.models.gpu")

# Each launch is compiled for the arguments that it would have had.
COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from captioning.models import gpu

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64"}

def compile(function, programs, *arguments, num_warps=4, **constants):
    types = [TYPES[a.dtype] if isinstance(a, torch.Tensor) else "i32" for a in arguments]
    signature = dict(zip(function.arg_names, types)) | {name: "constexpr" for name in constants}
    source = ASTSource(function, signature, constexprs=constants)
    target = GPUTarget("cuda", 90, 32)
    made = triton.compile(source, target=target, options={"num_warps": num_warps})
    print(function.__name__, types[4], len(made.asm["cubin"]) > 0)

gpu._launch = compile
kernels = gpu.TritonKernels()
for dtype in (torch.float32, torch.bfloat16):
    keys, grid = torch.zeros(2, 196, 512, dtype=dtype), torch.zeros(2, 196, 512, dtype=dtype)
    query, weight, place = torch.zeros(10, 512), torch.zeros(512), torch.arange(10)
    alpha, context = kernels.attend(keys, grid, query, weight, place, 5)
    kernels.gradients(keys.float(), alpha, context, alpha, keys, grid, query, place, 5)
    hidden, cell, active = kernels.cell(query, *[torch.zeros(10, 2048, dtype=dtype)] * 3)
    kernels.cell_gradients(hidden, cell, active, cell, cell, dtype)
"""


def test_the_kernels_compile_for_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        capture_output=True, text=True, cwd=Path(__file__).parents[2],
        env={"TRITON_CACHE_DIR": str(tmp_path), "PATH": "/usr/bin:/bin", "TRITON_INTERPRET": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.split("\n")[:-1]
    assert len(lines) == 10  # five functions, of two types
    assert all(line.endswith("True") for line in lines)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.03)])
def test_a_gpu_computes_what_the_cpu_does(precision: str, tolerance: float) -> None:
    """Loss and all gradients, of the true sizes."""
    torch.manual_seed(0)
    grid, tokens = batch_of(torch.Generator().manual_seed(1), images=4)
    decoder = decoder_of(dropout=0.0)

    def gradients(device: str, dtype: torch.dtype | None) -> list[torch.Tensor]:
        model = decoder.to(device)
        with torch.autocast(device, dtype, enabled=dtype is not None):
            output = model(grid.to(device), tokens.to(device))
        loss = nn.functional.cross_entropy(output.logits.float(), output.targets)
        found = torch.autograd.grad(loss, list(model.parameters()))
        return [loss.detach().cpu(), *(each.cpu() for each in found)]

    expected = gradients("cpu", None)
    found = gradients("cuda", torch.bfloat16 if precision == "bf16" else None)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()
