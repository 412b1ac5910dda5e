"""The benchmarks compare like with like: their textbook computes what the package computes."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu, sweeps
from benchmarks.beam import PLAIN
from benchmarks.textbook import Textbook, rows
from benchmarks.training import batch_of, decoder_of, errors, multiply_adds
from captioning.decoding import Beam
from captioning.kernels.backend import Backend, use_backend


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_in_single_precision_loss_and_gradients_are_the_oracles(backend: Backend) -> None:
    of_loss, of_gradients = errors("fp32", backend, words=50, locations=9)
    assert of_loss < 1e-6
    assert of_gradients < 1e-5


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_in_bf16_they_are_near(backend: Backend) -> None:
    of_loss, of_gradients = errors("bf16", backend, words=50, locations=9)
    assert 0 < of_loss < 1e-3
    assert 1e-4 < of_gradients < (0.02 if backend == "auto" else 0.03)


def test_the_textbooks_beam_search_writes_the_same_captions() -> None:
    torch.manual_seed(0)
    decoder = decoder_of(words=30, size=16, attention_dim=16).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(3)
        decoder.output_words.bias[:2] = -1e4  # the textbook may write <pad> and <start>
    grid, _ = batch_of(torch.Generator().manual_seed(0), images=8, locations=9, words=30)
    textbook = Textbook(decoder).eval()
    search = Beam(beam_size=3, max_length=8, length_penalty=0.0, **PLAIN)
    ours = [hypotheses[0].tokens for hypotheses in search(decoder, grid)]
    theirs = [[t for t in textbook.beam(image, 3, 8) if t != 2] for image in grid]
    assert ours == theirs
    assert len({tuple(caption) for caption in ours}) > 1


def test_the_epoch_that_a_gpu_is_measured_with_runs_on_any_device() -> None:
    figure = gpu.epoch(torch.device("cpu"), rounds=1, images=32, locations=9)
    assert figure.name == "an epoch of 160 captions"
    assert figure.floor is not None
    assert 0 < figure.floor < figure.value


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
def test_so_does_the_epoch_in_lightnings_loop() -> None:
    figure = gpu.trained("cpu", "32-true", images=32, epochs=2)
    assert figure.value > 0
    assert "; 0 graphs" in figure.note  # which are for a GPU alone


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
def test_runs_that_share_a_gpu_are_compared_with_one_alone() -> None:
    ours, again, longer = (
        sweeps.train(sweeps.Settings("cpu", "32-true", images=32, epochs=epochs))
        for epochs in (2, 2, 3)
    )
    assert len(ours.ends) == 2
    assert sorted(longer.ends) == longer.ends
    assert ours.weights == again.weights != longer.weights


def test_the_rate_of_runs_counts_only_the_time_in_which_all_train() -> None:
    alone = sweeps.Trained([10.0, 12.0, 14.0], "a")
    assert sweeps.epochs_per_second([alone]) == pytest.approx(0.5)
    # From 20 to 24 seconds, the first run completes two epochs, and the second one.
    runs = [sweeps.Trained([18.0, 20.0, 22.0, 24.0], "a"), sweeps.Trained([20.0, 24.0, 40.0], "b")]
    assert sweeps.epochs_per_second(runs) == pytest.approx(3 / 4)
    figure = sweeps.sharing("two", runs, alone)
    assert figure.value == pytest.approx(1.5)
    assert "1 of 2 have the same weights" in figure.note
    with pytest.raises(RuntimeError, match="give them more epochs"):
        sweeps.epochs_per_second([alone, runs[0]])


def test_the_captions_are_as_long_as_said() -> None:
    _, tokens = batch_of(torch.Generator().manual_seed(0), images=50)
    words = (tokens != 0).sum(-1) - 2
    assert (words.min(), words.max()) == (9, 17)
    flat, order = rows(torch.zeros(50, 1, 512), tokens)
    assert len(flat) == len(order) == 250
    assert (order != 0).sum(1).diff().max() <= 0


def test_the_floor_is_what_the_forward_pass_multiplies() -> None:
    """As PyTorch counts it; it counts neither C functions nor the additions within the tanh."""
    grid, tokens = batch_of(torch.Generator().manual_seed(0), images=2, locations=20, words=100)
    counter = FlopCounterMode(display=False)
    with use_backend("torch"), counter, torch.no_grad():
        decoder_of(words=100, attention_dim=64).eval()(grid, tokens)
    words = int((tokens[..., 1:] != 0).sum())
    needed = multiply_adds(words, images=2, locations=20, words=100, attention_dim=64)
    assert counter.get_total_flops() / 2 == pytest.approx(needed, rel=0.03)
