"""Adaptive attention as a decoder; its equations are in test_recurrent.py."""

import pytest
import torch

from captioning.decoding import Beam, Decoding, Greedy, Sample
from captioning.kernels.backend import use_backend
from captioning.kernels.cuda_graphs import is_declared_static
from captioning.models.decoders.adaptive_lstm import AdaptiveLSTM
from captioning.objectives import CrossEntropy
from captioning.support.errors import CaptioningError
from captioning.testing import check_decoder, check_objective

CHANNELS, LOCATIONS = 6, 5


def decoder_of(**options: int) -> AdaptiveLSTM:
    torch.manual_seed(0)
    return AdaptiveLSTM(
        11, CHANNELS, **{"hidden_dim": 5, "embed_dim": 4, "attention_dim": 6} | options
    )


@pytest.mark.parametrize("tied", [False, True])
def test_it_is_a_decoder(tied: bool) -> None:
    check_decoder(decoder_of(tie_embeddings=tied), channels=CHANNELS)


def test_it_is_trained_by_cross_entropy_with_the_attention_term() -> None:
    check_objective(CrossEntropy(attention_penalty=1.0), decoder_of(), channels=CHANNELS)


def test_a_graph_may_replay_it() -> None:
    assert all(is_declared_static(part) for part in decoder_of().modules())


@pytest.mark.parametrize("decoding", [Greedy(), Beam(beam_size=3), Sample(captions=2)])
def test_a_hypothesis_says_how_much_each_word_looked(decoding: Decoding) -> None:
    """The sums of the maps are 1 - beta, which is neither 0 nor 1."""
    found = decoding(decoder_of(), torch.randn(3, LOCATIONS, CHANNELS), attention=True)
    for hypotheses in found:
        for hypothesis in hypotheses:
            assert hypothesis.attention is not None
            shares = hypothesis.attention.sum(1)
            assert shares.shape == (len(hypothesis.tokens),)
            assert shares.gt(0.05).all()
            assert shares.lt(0.95).all()


def test_without_gradients_it_attends_word_after_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """All words at once would take the memory of as many words under ``backend=torch``."""
    decoder = decoder_of().eval()
    counts = []
    attend = decoder.attend
    monkeypatch.setattr(
        decoder,
        "attend",
        lambda state, *rest: counts.append(len(state["hidden"])) or attend(state, *rest),
    )
    grid, tokens = torch.randn(1, LOCATIONS, CHANNELS), torch.tensor([[[1, 5, 6, 2], [1, 7, 2, 0]]])
    with use_backend("torch"):
        together = decoder(grid, tokens)
        assert counts == [5]
        with torch.no_grad():
            apart = decoder(grid, tokens)
    assert counts == [5, 2, 2, 1]
    torch.testing.assert_close(apart.logits, together.logits)
    torch.testing.assert_close(apart.coverage, together.coverage)


def test_an_attention_without_units_is_named() -> None:
    with pytest.raises(CaptioningError, match=r"model\.attention_dim=0"):
        decoder_of(attention_dim=0)
