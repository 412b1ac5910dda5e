"""Ensembles against textbook loops over averaged probabilities, which call ``forward`` alone."""

import pytest
import torch
from torch import Tensor

from captioning.decoding import Beam, Decoding, Greedy
from captioning.models.decoders.attn_lstm import AttentionLSTM
from captioning.models.decoders.base import Decoder
from captioning.models.decoders.ensemble import Ensemble
from captioning.models.decoders.lstm import LSTM
from captioning.support.errors import CaptioningError
from captioning.support.special_tokens import END, START

ANYTHING = {"min_length": 0, "allow_unknown": True, "allow_repeats": True, "no_repeat_ngram": 0}


def member(seed: int, make: type = AttentionLSTM, words: int = 7) -> Decoder:
    torch.manual_seed(seed)
    decoder = make(words, 6, hidden_dim=8, embed_dim=8)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.uniform_(-1.2, 1.2)
    return decoder.eval()


def grids(images: int) -> Tensor:
    return torch.randn(images, 5, 6, generator=torch.Generator().manual_seed(1))


def next_probs(decoders: list[Decoder], grid: Tensor, words: list[int], mean: str) -> Tensor:
    rows = []
    for decoder in decoders:
        with torch.no_grad():
            result = decoder(grid[None], torch.tensor([[[START, *words, END]]]))
        row = int((result.positions == len(words)).nonzero()[0])
        rows.append(result.logits[row].double().softmax(-1))
    if mean == "arithmetic":
        return sum(rows) / len(rows)
    product = torch.stack(rows).prod(0) ** (1 / len(rows))
    return product / product.sum()


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_greedy_follows_the_averaged_probabilities(mean: str) -> None:
    decoders, grid = [member(0), member(1, LSTM), member(2)], grids(4)
    found = Greedy(max_length=5, **ANYTHING)(Ensemble(decoders, mean), grid)
    for image, hypotheses in zip(grid, found, strict=True):
        words: list[int] = []
        log_prob = 0.0
        while len(words) < 5:
            probs = next_probs(decoders, image, words, mean)
            probs[:2] = 0  # padding and the start are never written
            word = int(probs.argmax())
            log_prob += float(probs[word].log())
            if word == END:
                break
            words.append(word)
        assert hypotheses[0].tokens == words
        assert hypotheses[0].log_prob == pytest.approx(log_prob, abs=1e-4)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("decoding", [Greedy(), Beam(beam_size=3)], ids=["greedy", "beam"])
def test_equal_members_write_what_one_writes(count: int, decoding: Decoding) -> None:
    one, grid = member(3), grids(5)
    alone = decoding(one, grid, attention=True)
    joint = decoding(Ensemble([one] * count), grid, attention=True)
    for a, b in zip(alone, joint, strict=True):
        assert a[0].tokens == b[0].tokens
        assert a[0].log_prob == pytest.approx(b[0].log_prob, abs=1e-4)
        torch.testing.assert_close(a[0].attention, b[0].attention)


def test_other_vocabulary_is_refused() -> None:
    with pytest.raises(CaptioningError, match="one vocabulary"):
        Ensemble([member(0), member(1, words=8)])
