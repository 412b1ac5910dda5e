"""The training loss against loops over captions, words and locations."""

import math
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from captioning.data.batch import Batch
from captioning.models.decoders.base import Decoder, Memory, State, Step, TeacherForced
from captioning.objectives import CrossEntropy
from captioning.support.errors import CaptioningError

VOCABULARY, LOCATIONS = 7, 4
LENGTHS = [[3, 2, 0], [4, 0, 0]]


class Given(Decoder):
    """Predicts what it is told to."""

    def __init__(self, output: TeacherForced) -> None:
        super().__init__()
        self.output = output

    def prepare(self, grid: Tensor) -> Memory:
        raise NotImplementedError

    def start(self, memory: Memory, captions: int) -> State:
        raise NotImplementedError

    def step(self, tokens: Tensor, state: State, memory: Memory) -> Step:
        raise NotImplementedError

    def forward(self, grid: Tensor, tokens: Tensor) -> TeacherForced:
        return self.output


def parts_of(objective: CrossEntropy, output: TeacherForced) -> dict[str, Tensor]:
    """What the objective makes of such predictions."""
    batch = Batch(torch.empty(2, LOCATIONS, 3), torch.empty(2, 3, 5, dtype=torch.long), ["a", "b"])
    return objective(Given(output), batch)


def output(seed: int = 0) -> TeacherForced:
    """Predictions for three captions of two images; the other rows are padding."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(LENGTHS)
    tokens = int(lengths.sum())
    maps = torch.rand(*lengths.shape, LOCATIONS, generator=generator).softmax(-1)
    return TeacherForced(
        logits=2 * torch.randn(tokens, VOCABULARY, generator=generator),
        targets=torch.randint(1, VOCABULARY, (tokens,), generator=generator),
        positions=torch.cat([torch.arange(3), 4 + torch.arange(2), 12 + torch.arange(4)]),
        lengths=lengths,
        max_length=4,
        coverage=maps * lengths[..., None],
    )


def by_hand(
    given: TeacherForced, smoothing: float, penalty: float, target: str
) -> tuple[float, float]:
    """Cross entropy and attention term."""
    losses = []
    for row, true in zip(given.logits.tolist(), given.targets.tolist(), strict=True):
        normalizer = math.log(sum(math.exp(score) for score in row))
        log_probs = [score - normalizer for score in row]
        smooth = -sum(log_probs) / VOCABULARY
        losses.append((1 - smoothing) * -log_probs[true] + smoothing * smooth)
    squares = []
    assert given.coverage is not None
    for image, of_image in enumerate(LENGTHS):
        for caption, words in enumerate(of_image):
            if words == 0:
                continue
            for seen in given.coverage[image, caption].tolist():
                share = 1.0 if target == "one" else words / LOCATIONS
                squares.append((1 - seen / share) ** 2)
    return sum(losses) / len(losses), sum(squares) / len(squares)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("penalty", [0.5, 2.0])
@pytest.mark.parametrize("target", ["one", "uniform"])
def test_the_loss_is_that_of_loops(
    smoothing: float, penalty: float, target: Literal["one", "uniform"]
) -> None:
    given = output()
    parts = parts_of(CrossEntropy(smoothing, penalty, target), given)
    cross_entropy, term = by_hand(given, smoothing, penalty, target)
    assert parts["cross_entropy"].item() == pytest.approx(cross_entropy, rel=1e-5)
    assert parts["attention_term"].item() == pytest.approx(term, rel=1e-5)
    assert parts["loss"].item() == pytest.approx(cross_entropy + penalty * term, rel=1e-5)


def test_the_defaults_are_those_of_the_published_recipe() -> None:
    objective = CrossEntropy()
    found = objective.label_smoothing, objective.attention_penalty, objective.coverage_target
    assert found == (0.1, 0.0, "uniform")


def test_without_a_penalty_there_is_no_attention_term() -> None:
    parts = parts_of(CrossEntropy(label_smoothing=0.0, attention_penalty=0.0), output())
    assert parts.keys() == {"loss", "cross_entropy"}
    assert parts["loss"].equal(parts["cross_entropy"])


def test_a_model_without_attention_has_no_attention_term() -> None:
    given = replace(output(), coverage=None)
    parts = parts_of(CrossEntropy(attention_penalty=1.0), given)
    assert parts.keys() == {"loss", "cross_entropy"}


@pytest.mark.parametrize("target", ["one", "uniform"])
def test_rows_of_padding_count_for_nothing(target: Literal["one", "uniform"]) -> None:
    given = output()
    assert given.coverage is not None
    more = replace(
        given,
        coverage=torch.nn.functional.pad(given.coverage, (0, 0, 0, 3)),
        lengths=torch.nn.functional.pad(given.lengths, (0, 3)),
    )
    objective = CrossEntropy(attention_penalty=1.0, coverage_target=target)
    for name, value in parts_of(objective, given).items():
        torch.testing.assert_close(parts_of(objective, more)[name], value)


@pytest.mark.parametrize("target", ["one", "uniform"])
def test_attention_that_meets_its_target_costs_nothing(target: Literal["one", "uniform"]) -> None:
    """As many words as locations, spread evenly, meet both targets."""
    given = replace(
        output(), coverage=torch.ones(1, 1, LOCATIONS), lengths=torch.tensor([[LOCATIONS]])
    )
    parts = parts_of(CrossEntropy(attention_penalty=1.0, coverage_target=target), given)
    assert parts["attention_term"].item() == pytest.approx(0)


def test_the_gradient_reaches_logits_and_coverage_in_half_precision_too() -> None:
    given = output()
    assert given.coverage is not None
    logits = given.logits.bfloat16().requires_grad_()
    coverage = given.coverage.clone().requires_grad_()
    seen = replace(given, logits=logits, coverage=coverage)
    parts = parts_of(CrossEntropy(attention_penalty=1.0), seen)
    assert parts["loss"].dtype == torch.float32
    parts["loss"].backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum(1).gt(0).all()
    assert coverage.grad is not None
    assert coverage.grad[given.lengths == 0].eq(0).all()
    assert coverage.grad[given.lengths > 0].ne(0).any(1).all()


@pytest.mark.parametrize(
    "options",
    [{"label_smoothing": 1.0}, {"label_smoothing": -0.1}, {"attention_penalty": -1.0}],
    ids=str,
)
def test_bounds(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(CaptioningError, match=f"objective.{name}={value} "):
        CrossEntropy(**options)
