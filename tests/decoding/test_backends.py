"""Decoding by each implementation of the ops: what it finds is the same."""

from collections.abc import Callable

import pytest
import torch

from benchmarks.training import batch_of, decoder_of
from captioning.decoding import Beam


@pytest.mark.parametrize("attention", ["additive", "multiplicative", "scaled_dot"])
@pytest.mark.parametrize("implementation", ["C", "Triton"])
def test_beam_search_finds_what_it_finds_with_pytorch_alone(
    implementation: str, attention: str, use: Callable[[str], None]
) -> None:
    torch.manual_seed(0)
    decoder = decoder_of(words=30, size=20, attention_dim=16, attention=attention).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(3)
    grid, _ = batch_of(torch.Generator().manual_seed(0), images=2, locations=9, words=30)
    search = Beam(beam_size=3, max_length=4)
    use("torch")
    expected = search(decoder, grid, attention=True)
    use(implementation)
    for ours, theirs in zip(search(decoder, grid, attention=True), expected, strict=True):
        assert [found.tokens for found in ours] == [found.tokens for found in theirs]
        assert ours[0].attention is not None
        torch.testing.assert_close(ours[0].attention, theirs[0].attention, atol=1e-5, rtol=1e-4)
        assert ours[0].log_prob == pytest.approx(theirs[0].log_prob, abs=1e-4)
