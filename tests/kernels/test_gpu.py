"""What a GPU computes: kernels in Triton, CUDA graphs, and decoding."""

import pytest
import torch
from torch import Tensor

from benchmarks.training import batch_of, decoder_of
from captioning.data.batch import Batch
from captioning.decoding import Beam
from captioning.kernels.backend import Backend, report, use_backend
from captioning.kernels.cuda_graphs import LossGraphs
from captioning.models.decoders.base import Decoder
from captioning.objectives import CrossEntropy, Objective
from captioning.support.errors import CaptioningError

pytestmark = pytest.mark.gpu

Numbers = tuple[Tensor, list[Tensor]]


def test_the_kernels_are_compiled() -> None:
    assert report("cuda")["additive_attention"] == report("cuda")["lstm_cell"] == "triton"


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.03)])
@pytest.mark.parametrize("of_tokens", ["cpu", "cuda"])
def test_a_gpu_computes_what_the_cpu_does(
    of_tokens: str, precision: str, tolerance: float, backend: Backend
) -> None:
    """Loss and all gradients, of the true sizes."""
    torch.manual_seed(0)
    grid, tokens = batch_of(torch.Generator().manual_seed(1), images=4)
    decoder = decoder_of(dropout=0.0, recurrent_dropout=0.0)

    def gradients(device: str, dtype: torch.dtype | None, tokens: Tensor) -> list[Tensor]:
        model = decoder.to(device)
        with torch.autocast(device, dtype, enabled=dtype is not None):
            loss = CrossEntropy()(model, Batch(grid.to(device), tokens, []))["loss"]
        found = torch.autograd.grad(loss, list(model.parameters()))
        return [loss.detach().cpu(), *(each.cpu() for each in found)]

    with use_backend("torch"):
        expected = gradients("cpu", None, tokens)
    dtype = torch.bfloat16 if precision == "bf16" else None
    with use_backend(backend):
        found = gradients("cuda", dtype, tokens.to(of_tokens))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


class Losses:
    """A decoder's loss on a GPU, with its gradients, as Python computes it or by graphs."""

    def __init__(self, dropout: float, objective: Objective | None = None) -> None:
        torch.manual_seed(0)
        self.decoder = decoder_of(dropout=dropout, recurrent_dropout=dropout).cuda()
        self.objective = objective or CrossEntropy(attention_penalty=0.5)
        self.parameters = list(self.decoder.parameters())
        self.graphs = LossGraphs(self.objective, self.decoder)

    def by_graph(self, grid: Tensor, tokens: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return self.graphs(Batch(grid.cuda(), tokens, []))["loss"]

    def of(self, batch: tuple[Tensor, Tensor], *, graph: bool) -> Numbers:
        grid, tokens = (tensor.cuda() for tensor in batch)
        torch.manual_seed(1)
        if graph:
            loss = self.by_graph(grid, tokens)
        else:
            with torch.autocast("cuda", torch.bfloat16):
                loss = self.objective(self.decoder, Batch(grid, tokens, []))["loss"]
        return loss.detach(), list(torch.autograd.grad(loss, self.parameters))


def alike(ours: Numbers, theirs: Numbers) -> None:
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=0)
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert (a - b).norm() <= 1e-2 * b.norm()  # in bfloat16, by other products


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


class Waits(Objective):
    """Reads a number from the GPU, which a graph cannot do, and claims that it is static."""

    static = True

    def forward(self, decoder: Decoder, batch: Batch) -> dict[str, Tensor]:
        output = decoder(batch.grid, batch.tokens)
        return {"loss": output.logits.sum() * output.lengths.sum().item()}


def test_what_no_graph_can_record_is_said() -> None:
    losses = Losses(0.0, Waits())
    batch = batch_of(torch.Generator().manual_seed(1), images=2)
    losses.by_graph(*batch)
    with pytest.raises(CaptioningError, match=r"backend=torch"):
        losses.by_graph(*batch)
    assert torch.ones(3, device="cuda").sum() == 3  # which goes on


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
