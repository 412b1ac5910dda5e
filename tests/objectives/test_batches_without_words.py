"""Batches in which images, or all of them, have no words: every decoder and every objective."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from captioning.data.batch import Batch
from captioning.models.decoders import packing
from captioning.models.decoders.adaptive_lstm import AdaptiveLSTM
from captioning.models.decoders.attn_lstm import AttentionLSTM
from captioning.models.decoders.base import Decoder
from captioning.models.decoders.ensemble import Ensemble
from captioning.models.decoders.hard_attn_lstm import HardAttentionLSTM
from captioning.models.decoders.lstm import LSTM
from captioning.models.decoders.transformer import TransformerDecoder
from captioning.objectives import (
    CrossEntropy,
    Distillation,
    HardAttention,
    Objective,
    ScheduledSampling,
)

WORDS, CHANNELS, LOCATIONS = 11, 6, 5
RECURRENT = {"hidden_dim": 4, "embed_dim": 4}

MAKERS: dict[str, Callable[[], Decoder]] = {
    "lstm": lambda: LSTM(WORDS, CHANNELS, **RECURRENT),
    "attn_lstm": lambda: AttentionLSTM(WORDS, CHANNELS, attention_dim=3, **RECURRENT),
    "hard_attn_lstm": lambda: HardAttentionLSTM(WORDS, CHANNELS, attention_dim=3, **RECURRENT),
    "adaptive_lstm": lambda: AdaptiveLSTM(WORDS, CHANNELS, attention_dim=3, **RECURRENT),
    "transformer": lambda: TransformerDecoder(
        WORDS, CHANNELS, hidden_dim=4, heads=2, feed_forward_dim=4
    ),
    "ensemble": lambda: Ensemble([MAKERS["lstm"](), MAKERS["attn_lstm"]()]),
}

WORDLESS = {
    "padding alone": torch.zeros(2, 3, 4, dtype=torch.long),
    "padding after <start>": torch.tensor([1, 0, 0]).expand(2, 3, 3),
    "<start> alone": torch.ones(2, 3, 1, dtype=torch.long),
    "no captions": torch.zeros(2, 0, 3, dtype=torch.long),
    "no tokens": torch.zeros(2, 3, 0, dtype=torch.long),
    "no images": torch.zeros(0, 3, 4, dtype=torch.long),
}


@pytest.fixture(params=["as on a CPU", "as on a GPU"])
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, padding is not left out, as finding it would take waiting."""
    if request.param == "as on a GPU":
        for module in ("recurrent", "transformer"):
            monkeypatch.setattr(f"captioning.models.decoders.{module}.pack", packing._pack_all)


def decoder_of(model: str) -> Decoder:
    torch.manual_seed(0)
    return MAKERS[model]()


def batch_of(tokens: Tensor) -> Batch:
    generator = torch.Generator().manual_seed(1)
    grid = torch.randn(len(tokens), LOCATIONS, CHANNELS, generator=generator)
    return Batch(grid, tokens, [f"image {number}" for number in range(len(tokens))])


def gradients(loss: Tensor, decoder: Decoder) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(decoder.parameters()), allow_unused=True)
    pairs = zip(found, decoder.parameters(), strict=True)
    return [torch.zeros_like(value) if each is None else each for each, value in pairs]


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("implementation", ["C", "torch"])
@pytest.mark.parametrize("tokens", WORDLESS.values(), ids=WORDLESS)
@pytest.mark.parametrize("model", MAKERS)
def test_a_batch_without_words_predicts_nothing_and_has_a_loss_of_zero(
    model: str, tokens: Tensor, implementation: str, use: Callable[[str], None]
) -> None:
    use(implementation)
    decoder, batch = decoder_of(model), batch_of(tokens)
    output = decoder(batch.grid, tokens)
    assert output.lengths.shape == tokens.shape[:2]
    assert not output.lengths.any()
    assert not output.targets.any()
    log_probs = output.token_log_probs()
    assert log_probs.shape == (*tokens.shape[:2], max(tokens.shape[2] - 1, 0))
    assert not log_probs.any()
    if output.coverage is not None:
        assert output.coverage.shape == (*tokens.shape[:2], LOCATIONS)
        assert not output.coverage.any()
    parts = CrossEntropy(attention_penalty=1.0)(decoder, batch)
    assert parts["loss"].item() == 0
    assert not any(each.any() for each in gradients(parts["loss"], decoder))


def objective_of(name: str) -> tuple[Objective, Decoder]:
    decoder = decoder_of("hard_attn_lstm" if name == "hard_attention" else "attn_lstm")
    if name == "scheduled_sampling":
        sampling = ScheduledSampling(decay=1.0, smallest=0.0)
        sampling.steps += 5  # all words that are read are sampled
        return sampling, decoder
    if name == "distillation":
        distillation = Distillation()
        distillation.learn_from(decoder_of("lstm"))
        return distillation, decoder
    return HardAttention(attention_penalty=1.0), decoder


OBJECTIVES = pytest.mark.parametrize(
    "objective", ["hard_attention", "scheduled_sampling", "distillation"]
)


@pytest.mark.usefixtures("order")
@OBJECTIVES
@pytest.mark.parametrize("tokens", WORDLESS.values(), ids=WORDLESS)
def test_the_loss_of_nothing_is_zero_for_every_objective_and_none_learns_from_it(
    objective: str, tokens: Tensor
) -> None:
    loss_of, decoder = objective_of(objective)
    if isinstance(loss_of, HardAttention):
        loss_of.baseline.fill_(-2.0)
    parts = loss_of(decoder, batch_of(tokens))
    assert all(value.item() == 0 for name, value in parts.items() if name != "true_share")
    assert not any(each.any() for each in gradients(parts["loss"], decoder))
    if isinstance(loss_of, HardAttention):
        assert loss_of.baseline.item() == -2


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("model", MAKERS)
def test_an_image_without_words_adds_nothing_to_those_beside_it(model: str) -> None:
    decoder, objective = decoder_of(model).eval(), CrossEntropy(attention_penalty=1.0)
    with_words = torch.tensor([[[1, 4, 5, 2], [1, 6, 2, 0]], [[1, 7, 2, 0], [1, 2, 0, 0]]])
    batch = batch_of(torch.cat([with_words, torch.zeros_like(with_words[:1])]))
    alone = batch._replace(images=batch.images[:2], tokens=with_words, ids=batch.ids[:2])
    found, expected = (objective(copy.deepcopy(decoder), each)["loss"] for each in (batch, alone))
    torch.testing.assert_close(found, expected)
    found, expected = (
        torch.cat(
            [each.flatten() for each in gradients(objective(decoder, given)["loss"], decoder)]
        )
        for given in (batch, alone)
    )
    torch.testing.assert_close(found, expected)
