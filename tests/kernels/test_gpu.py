"""The kernels in Triton: compiled for a GPU that is not here, and run on one that is.

That they compute what they should is tested beside C and torch, in test_attention and test_cell.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.training import batch_of, decoder_of
from captioning.captioner import CrossEntropy
from captioning.decoding import Beam
from captioning.kernels.cuda_graphs import LossGraphs
from captioning.models.decoders.base import TeacherForced
from captioning.support.errors import CaptioningError

pytest.importorskip("captioning.kernels.triton_backend.launch")

# Each launch is compiled for the arguments that it would have had.
COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from captioning.kernels.triton_backend import launch as gpu

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
    assert len(lines) == 12  # six functions, of two types
    assert all(line.endswith("True") for line in lines)


Numbers = tuple[Tensor, list[Tensor]]


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.03)])
@pytest.mark.parametrize("of_tokens", ["cpu", "cuda"])
def test_a_gpu_computes_what_the_cpu_does(of_tokens: str, precision: str, tolerance: float) -> None:
    """Loss and all gradients, of the true sizes."""
    torch.manual_seed(0)
    grid, tokens = batch_of(torch.Generator().manual_seed(1), images=4)
    decoder = decoder_of(dropout=0.0)

    def gradients(device: str, dtype: torch.dtype | None, tokens: Tensor) -> list[Tensor]:
        model = decoder.to(device)
        with torch.autocast(device, dtype, enabled=dtype is not None):
            output = model(grid.to(device), tokens)
        loss = CrossEntropy()(output)["loss"]
        found = torch.autograd.grad(loss, list(model.parameters()))
        return [loss.detach().cpu(), *(each.cpu() for each in found)]

    expected = gradients("cpu", None, tokens)
    dtype = torch.bfloat16 if precision == "bf16" else None
    found = gradients("cuda", dtype, tokens.to(of_tokens))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


class Losses:
    """A decoder's loss on a GPU, with its gradients, as Python says it or by graphs."""

    def __init__(self, dropout: float) -> None:
        torch.manual_seed(0)
        self.decoder = decoder_of(dropout=dropout).cuda()
        self.objective = CrossEntropy(attention_penalty=0.5)
        self.parameters = list(self.decoder.parameters())
        self.graphs = LossGraphs()

    def by_graph(self, grid: Tensor, tokens: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return self.graphs(self.decoder, self.objective, grid.cuda(), tokens)["loss"]

    def of(self, batch: tuple[Tensor, Tensor], *, graph: bool) -> Numbers:
        grid, tokens = (tensor.cuda() for tensor in batch)
        torch.manual_seed(1)
        if graph:
            loss = self.by_graph(grid, tokens)
        else:
            with torch.autocast("cuda", torch.bfloat16):
                loss = self.objective(self.decoder(grid, tokens))["loss"]
        return loss.detach(), list(torch.autograd.grad(loss, self.parameters))


def alike(ours: Numbers, theirs: Numbers) -> None:
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=0)
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert (a - b).norm() <= 1e-2 * b.norm()  # in bfloat16, by other products


@pytest.mark.gpu
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_graphs_give_the_losses_and_gradients_that_python_does(dropout: float) -> None:
    """Of other batches, lengths and weights than those that were recorded."""
    losses, generator = Losses(dropout), torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(losses.parameters, lr=0.1)
    for number in range(8):
        longest = 12 + number % 2
        batch = batch_of(generator, images=4, lengths=(7, longest))
        ours = losses.of(batch, graph=True)
        alike(ours, losses.of(batch, graph=False))
        for parameter, gradient in zip(losses.parameters, ours[1], strict=True):
            parameter.grad = gradient
        optimizer.step()
    assert len(losses.graphs) == 2


@pytest.mark.gpu
def test_gradients_of_several_batches_add_up_and_none_is_lost() -> None:
    losses, generator = Losses(0.0), torch.Generator().manual_seed(1)
    batches = [batch_of(generator, images=4, lengths=(9, 9)) for _ in range(4)]
    expected = [losses.of(batch, graph=False)[1] for batch in batches]
    for batch in batches:
        loss = losses.by_graph(*batch)
        (loss / 4).backward()
    for parameter, gradients in zip(losses.parameters, zip(*expected, strict=True), strict=True):
        assert parameter.grad is not None
        mean = torch.stack(gradients).mean(0)
        assert (parameter.grad - mean).norm() <= 1e-2 * mean.norm()
    first, _ = (losses.by_graph(*batch) for batch in batches[:2])
    with pytest.raises(RuntimeError, match="overwritten"):
        first.backward()


@pytest.mark.gpu
def test_what_no_graph_can_record_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = Losses(0.0)
    batch = batch_of(torch.Generator().manual_seed(1), images=2)

    def objective(output: TeacherForced) -> dict[str, Tensor]:
        return {"loss": output.logits.sum() * output.lengths.sum().item()}

    monkeypatch.setattr(losses, "objective", objective)
    losses.by_graph(*batch)
    with pytest.raises(CaptioningError, match=r"compile=false"):
        losses.by_graph(*batch)
    assert torch.ones(3, device="cuda").sum() == 3  # which goes on


@pytest.mark.gpu
def test_beam_search_on_a_gpu_finds_what_it_finds_on_a_cpu() -> None:
    torch.manual_seed(0)
    grid, _ = batch_of(torch.Generator().manual_seed(1), images=6)
    decoder = decoder_of(words=300).eval()
    search = Beam(beam_size=4, max_length=9)
    expected = search(decoder, grid, attention=True)
    found = search(decoder.cuda(), grid.cuda(), attention=True)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours[0].tokens == theirs[0].tokens
        assert abs(ours[0].log_prob - theirs[0].log_prob) < 1e-2
        assert ours[0].attention is not None
        assert theirs[0].attention is not None
        torch.testing.assert_close(ours[0].attention.cpu(), theirs[0].attention, atol=1e-3, rtol=0)
