"""Scheduled sampling against a loop over words, and its schedules against the paper's formulas."""

import math
from typing import Any

import pytest
import torch
from tiny import batch, decoder
from torch import Tensor

from captioning.data.batch import Batch
from captioning.models.decoders.base import Decoder
from captioning.objectives import CrossEntropy, ScheduledSampling
from captioning.support.errors import CaptioningError
from captioning.support.special_tokens import END, PAD, START


def own_words_loss(model: Decoder, given: Batch) -> Tensor:
    """The cross entropy of a model that reads its own most probable word at every place."""
    losses = []
    for image, of_image in enumerate(given.tokens.tolist()):
        for caption in of_image:
            targets = [token for token in caption[1:] if token != PAD]
            memory = model.prepare(given.images[image : image + 1])
            state, read = model.start(memory, 1), START
            for target in targets:
                step = model.step(torch.tensor([[read]]), state, memory)
                state = step.state
                losses.append(-step.logits[0, 0].log_softmax(-1)[target])
                read = int(step.logits[0, 0, END:].argmax()) + END
    return torch.stack(losses).mean()


def test_the_model_reads_its_own_words() -> None:
    model = decoder(sharpness=1e4)
    sampling = ScheduledSampling(decay=1.0, smallest=0.0, label_smoothing=0.0)
    sampling(model, batch())  # the first step reads true words only
    loss = sampling(model, batch())["loss"]
    torch.testing.assert_close(loss, own_words_loss(model, batch()))
    true = CrossEntropy(label_smoothing=0.0)(model, batch())["loss"]
    assert not torch.isclose(loss, true)


def test_words_are_drawn_from_the_models_distribution_for_a_share_of_the_places() -> None:
    model, given, draws = decoder(), batch(), 3000
    many = Batch(given.images.repeat(draws, 1, 1), given.tokens.repeat(draws, 1, 1), [])
    torch.manual_seed(0)
    read = ScheduledSampling().mixed(model, many, 0.6).unflatten(0, (draws, 2))
    true = given.tokens
    places = torch.zeros_like(true, dtype=torch.bool)
    places[:, :, 1:-1] = (true[:, :, 1:-1] != PAD) & (true[:, :, 2:] != PAD)
    assert (read == true).all(0)[~places].all()  # <start>, the last token and padding
    assert not (read[:, places] == PAD).any()
    assert not (read[:, places] == START).any()
    # The first word is replaced with probability 0.4 by a draw after <start>.
    memory = model.prepare(given.images)
    step = model.step(torch.full((2, 2), START), model.start(memory, 2), memory)
    probabilities = step.logits[..., END:].softmax(-1)
    found = torch.stack([(read[:, 0, 0, 1] == word).double().mean() for word in range(END, 9)])
    expected = 0.4 * probabilities[0, 0]
    expected[true[0, 0, 1] - END] += 0.6
    deviation = (expected * (1 - expected) / len(read)).sqrt()
    assert ((found - expected).abs() < 5 * deviation + 1e-9).all()


def test_it_is_cross_entropy_at_first_and_outside_of_training() -> None:
    model, given = decoder(), batch()
    sampling, plain = ScheduledSampling(label_smoothing=0.2), CrossEntropy(label_smoothing=0.2)
    expected = plain(model, given)["loss"]
    torch.testing.assert_close(sampling(model, given)["loss"], expected)
    assert int(sampling.steps) == 1
    sampling.eval()
    sampling.steps += 10**6
    torch.testing.assert_close(sampling(model, given)["loss"], expected)
    assert int(sampling.steps) == 10**6 + 1


@pytest.mark.parametrize("step", [0, 1, 500, 5000, 10**9])
def test_schedules(step: int) -> None:
    linear = ScheduledSampling("linear", decay=1000.0, smallest=0.25)
    sigmoid = ScheduledSampling("inverse_sigmoid", decay=1000.0, smallest=0.25)
    assert linear.true_share(step) == pytest.approx(max(0.25, 1 - step / 1000))
    ratio = 1000 / (1000 + math.exp(step / 1000)) if step < 10**6 else 0
    assert sigmoid.true_share(step) == pytest.approx(max(0.25, ratio))


def test_the_number_of_steps_is_a_part_of_checkpoints() -> None:
    sampling = ScheduledSampling(decay=10.0, smallest=0.0)
    for _ in range(4):
        parts = sampling(decoder(), batch())
    assert parts["true_share"].item() == pytest.approx(0.7)
    other = ScheduledSampling(decay=10.0, smallest=0.0)
    other.load_state_dict(sampling.state_dict())
    assert other(decoder(), batch())["true_share"].item() == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": 0.0}, "decay=0.0"),
        ({"smallest": 1.5}, "smallest=1.5"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CaptioningError, match=message):
        ScheduledSampling(**settings)
