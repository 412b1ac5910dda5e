"""What hard attention samples in training: which location, when, and what the LSTM then sees."""

from typing import Any

import pytest
import torch
from torch import Tensor

from captioning.kernels.cuda_graphs import is_declared_static
from captioning.models.decoders import hard_attn_lstm
from captioning.models.decoders.base import TeacherForced
from captioning.models.decoders.hard_attn_lstm import HardAttentionLSTM, sample
from captioning.support.errors import CaptioningError
from captioning.testing import check_decoder

CHANNELS, LOCATIONS = 6, 4
TOKENS = torch.tensor([[[1, 5, 6, 2], [1, 7, 2, 0]], [[1, 8, 9, 2], [0, 0, 0, 0]]])


def decoder_of(**options: Any) -> HardAttentionLSTM:
    torch.manual_seed(0)
    plain = {"hidden_dim": 5, "embed_dim": 4, "attention_dim": 6, "dropout": 0.0}
    return HardAttentionLSTM(11, CHANNELS, **plain | {"recurrent_dropout": 0.0} | options)


def grid_of(locations: int = LOCATIONS) -> Tensor:
    return torch.randn(2, locations, CHANNELS, generator=torch.Generator().manual_seed(1))


ATTENTIONS = pytest.mark.parametrize(
    "attention", ["additive", "multiplicative", {"_target_": "scaled_dot", "heads": 2}], ids=str
)


@ATTENTIONS
def test_it_is_a_decoder(attention: Any) -> None:
    check_decoder(decoder_of(attention=attention), channels=CHANNELS)


def test_locations_are_drawn_with_the_probabilities_of_the_weights() -> None:
    """Within four standard deviations of 100,000 draws."""
    weights = torch.tensor([0.0, 0.5, 0.0, 0.2, 0.3, 0.0])
    torch.manual_seed(0)
    drawn = sample(weights.expand(100_000, -1)).bincount(minlength=6) / 100_000
    deviation = (weights * (1 - weights) / 100_000).sqrt()
    assert ((drawn - weights).abs() <= 4 * deviation).all()


def test_each_row_draws_by_itself_and_from_its_own_weights() -> None:
    torch.manual_seed(0)
    assert sample(torch.eye(5)).tolist() == [0, 1, 2, 3, 4]
    assert len(set(sample(torch.full((1000, 9), 1 / 9)).tolist())) == 9


@pytest.mark.parametrize("attention", ["additive", "multiplicative"])
@pytest.mark.parametrize("place", range(LOCATIONS))
def test_a_caption_sees_the_sampled_location_alone(
    attention: str, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The predictions are those for a grid in which every location is like the sampled one."""
    decoder = decoder_of(sampling_share=1.0, attention=attention).train()
    grid = grid_of()
    sampled = lambda weights: torch.full((len(weights),), place)  # noqa: E731
    monkeypatch.setattr(hard_attn_lstm, "sample", sampled)
    output = decoder(grid, TOKENS)
    assert output.location is not None
    assert output.location.eq(place).all()
    soft = decoder.eval()
    alike = grid[:, place : place + 1].expand(-1, LOCATIONS, -1)
    memory_of = soft.prepare
    mean = memory_of(grid)["mean"]  # the first state is that of the whole image
    monkeypatch.setattr(soft, "prepare", lambda grid: memory_of(grid) | {"mean": mean})
    torch.testing.assert_close(output.logits, soft(alike, TOKENS).logits)


def test_a_step_samples_for_all_of_its_captions_or_for_none() -> None:
    decoder, grid = decoder_of(sampling_share=0.3).train(), grid_of()
    expected = decoder.eval()(grid, TOKENS)
    decoder.train()
    torch.manual_seed(0)
    steps = 0
    for _ in range(100):
        output: TeacherForced = decoder(grid, TOKENS)
        assert output.location is not None
        sampled = output.location >= 0
        assert sampled.all() or not sampled.any()
        if not sampled.any():
            torch.testing.assert_close(output.logits, expected.logits)
        steps += bool(sampled.any())
    assert steps / 100 == pytest.approx(0.3, abs=0.15)


def test_evaluation_uses_the_expectation_and_no_random_numbers() -> None:
    decoder = decoder_of(sampling_share=1.0).eval()
    before = torch.get_rng_state()
    output = decoder(grid_of(), TOKENS)
    assert torch.get_rng_state().equal(before)
    assert output.location is not None
    assert output.location.eq(-1).all()


def test_a_graph_may_replay_it() -> None:
    assert all(is_declared_static(part) for part in decoder_of().modules())


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_that_is_none(share: float) -> None:
    with pytest.raises(CaptioningError, match=f"model.sampling_share={share}: choose a number"):
        decoder_of(sampling_share=share)
