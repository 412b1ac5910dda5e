"""The checks for users' parts: green for every part of ours, red for each that is broken."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import captioning.testing
from captioning.data.batch import Batch
from captioning.kernels.ops import Rows, cross_entropy
from captioning.models.attention.additive import AdditiveAttention
from captioning.models.attention.base import Attention, Memory
from captioning.models.attention.multiplicative import MultiplicativeAttention
from captioning.models.attention.scaled_dot import ScaledDotAttention
from captioning.models.decoders.attn_lstm import AttentionLSTM
from captioning.models.decoders.base import Decoder, State, Step, TeacherForced
from captioning.models.decoders.lstm import LSTM
from captioning.objectives import CrossEntropy, Objective
from captioning.testing import check_attention, check_decoder, check_objective

CHANNELS = 6
SIZES = {"hidden_dim": 5, "embed_dim": 4}


def test_what_is_offered_is_there() -> None:
    for name in captioning.testing.__all__:
        assert callable(getattr(captioning.testing, name))
    with pytest.raises(AttributeError, match="check_nothing"):
        captioning.testing.check_nothing  # noqa: B018


# Our own parts.


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (AdditiveAttention, {}),
        (MultiplicativeAttention, {}),
        (ScaledDotAttention, {"heads": 1}),
        (ScaledDotAttention, {"heads": 4}),
    ],
)
def test_our_attentions(kind: type[Attention], arguments: dict[str, Any]) -> None:
    check_attention(kind, **arguments)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"gate": "scalar", "word_query": True, "deep_output": False},
    {"gate": "none", "tie_embeddings": True, "normalize_grid": False},
    {"attention": "multiplicative"},
    {"attention": {"_target_": "scaled_dot", "heads": 2}},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_our_attention_lstm(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    check_decoder(
        AttentionLSTM(9, CHANNELS, **SIZES, attention_dim=4, **options), channels=CHANNELS
    )


def test_our_lstm() -> None:
    torch.manual_seed(0)
    check_decoder(LSTM(9, CHANNELS, **SIZES), channels=CHANNELS)


@pytest.mark.parametrize(
    "options",
    [{}, {"attention_penalty": 1.0}, {"attention_penalty": 0.5, "coverage_target": "one"}],
    ids=str,
)
def test_our_objectives(options: dict[str, Any]) -> None:
    check_objective(CrossEntropy(**options))


def test_an_objective_on_a_decoder_without_attention() -> None:
    torch.manual_seed(0)
    check_objective(CrossEntropy(), LSTM(9, 4, **SIZES), channels=4)


# Broken parts, each with what the check says of it.


class Unnormalised(MultiplicativeAttention):
    def forward(self, query: Tensor, memory: Memory, rows: Rows) -> tuple[Tensor, Tensor]:
        weights, context = super().forward(query, memory, rows)
        return 2 * weights, context


class Negative(MultiplicativeAttention):
    def forward(self, query: Tensor, memory: Memory, rows: Rows) -> tuple[Tensor, Tensor]:
        weights, context = super().forward(query, memory, rows)
        return weights - 1, context


class Blind(MultiplicativeAttention):
    def forward(self, query: Tensor, memory: Memory, rows: Rows) -> tuple[Tensor, Tensor]:
        return super().forward(torch.zeros_like(query) + self.query.bias, memory, rows)


class Positional(MultiplicativeAttention):
    """Prefers the first locations, whatever is there."""

    def scores(self, query: Tensor, memory: Memory) -> Tensor:
        scores = super().scores(query, memory)
        return scores - torch.arange(scores.shape[-1]).to(scores)


class Elsewhere(MultiplicativeAttention):
    """Adds the query to the context."""

    def forward(self, query: Tensor, memory: Memory, rows: Rows) -> tuple[Tensor, Tensor]:
        weights, context = super().forward(query, memory, rows)
        return weights, context + query


class Mixing(MultiplicativeAttention):
    """Captions see each other."""

    def forward(self, query: Tensor, memory: Memory, rows: Rows) -> tuple[Tensor, Tensor]:
        return super().forward(query + query.mean(0), memory, rows)


class Remembers(MultiplicativeAttention):
    """Adds up the weights of the words before in an attribute, which beams do not reorder."""

    def prepare(self, grid: Tensor) -> Memory:
        self.covered: Tensor | float = 0.0
        return super().prepare(grid)

    def scores(self, query: Tensor, memory: Memory) -> Tensor:
        scores = super().scores(query, memory) - self.covered
        self.covered = self.covered + scores.detach().softmax(-1)
        return scores


class Detached(MultiplicativeAttention):
    """Has a temperature that gets no gradient."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.temperature = nn.Parameter(torch.tensor(2.0))

    def scores(self, query: Tensor, memory: Memory) -> Tensor:
        return super().scores(query, memory) / self.temperature.detach()


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


class WrongBackward(MultiplicativeAttention):
    def scores(self, query: Tensor, memory: Memory) -> Tensor:
        return super().scores(WrongGradient.apply(query), memory)


class Forgets(MultiplicativeAttention):
    """Keeps a part of itself out of its state."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.factor = torch.rand(()) + 0.5

    def scores(self, query: Tensor, memory: Memory) -> Tensor:
        return super().scores(query, memory) * self.factor


class Brighter(MultiplicativeAttention):
    """A single location counts more than it does among others."""

    def context_at(self, location: Tensor, memory: Memory, rows: Rows) -> Tensor:
        return 1.1 * super().context_at(location, memory, rows)


class Flat(MultiplicativeAttention):
    def forward(self, query: Tensor, memory: Memory, rows: Rows) -> tuple[Tensor, Tensor]:
        weights, context = super().forward(query, memory, rows)
        return weights[:, :-1], context


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (Unnormalised, "Unnormalised: the sums of the weights are not 1"),
        (Negative, r"Negative: an attention weight is -.* < 0"),
        (Blind, "Blind: the weights do not depend on the query"),
        (Positional, "Positional: the weights are not permuted with"),
        (Elsewhere, "Elsewhere: where all locations are alike, the context depends on the query"),
        (Mixing, "Mixing: the weights of caption .* are not the same alone and in a batch"),
        (Detached, "Detached: temperature gets no gradient"),
        (WrongBackward, "WrongBackward: along a random direction, the gradient"),
        (Forgets, "Forgets: the weights before and after saving and loading"),
        (Brighter, "Brighter: `context_at` a location and the context of a grid of that location"),
        (Flat, r"Flat: the weights of 7 rows have shape \(7, 3\), not \(7, 4\)"),
        (Remembers, "Remembers: the weights of a second call with the same arguments; .* state"),
    ],
)
def test_a_broken_attention_is_found(broken: type[Attention], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_attention(broken)


class SeesTheFuture(LSTM):
    """Reads, in `forward` alone, the word that it predicts."""

    def forward(self, grid: Tensor, tokens: Tensor) -> TeacherForced:
        ahead = torch.cat([tokens[..., :1], tokens[..., 2:], tokens[..., -1:]], -1)
        output = super().forward(grid, tokens.where(ahead == 0, ahead))
        targets = tokens[..., 1:].flatten()[output.positions]
        return TeacherForced(
            output.logits, targets, output.positions, output.lengths, output.max_length
        )


class OtherStep(LSTM):
    """Decodes with another output layer than it trains."""

    def step(self, tokens: Tensor, state: State, memory: Memory) -> Step:
        step = super().step(tokens, state, memory)
        return step._replace(logits=1.5 * step.logits)


class BatchMean(LSTM):
    """Images see each other."""

    def prepare(self, grid: Tensor) -> Memory:
        memory = super().prepare(grid)
        return memory | {"mean": memory["mean"] + memory["mean"].mean(0)}


class Unlearned(LSTM):
    def init_state(self, memory: Memory) -> State:
        return {name: value.detach() for name, value in super().init_state(memory).items()}


class WrongWeightGradient(LSTM):
    def recurrent_step(
        self, inputs: Mapping[str, Tensor], state: State, memory: Memory, rows: Rows
    ) -> State:
        state = super().recurrent_step(inputs, state, memory, rows)
        return state | {"hidden": WrongGradient.apply(state["hidden"])}


class WrongPositions(LSTM):
    def forward(self, grid: Tensor, tokens: Tensor) -> TeacherForced:
        output = super().forward(grid, tokens)
        return TeacherForced(
            output.logits, output.targets, output.positions.flip(0), output.lengths,
            output.max_length,
        )  # fmt: skip


class MissingTargets(LSTM):
    def forward(self, grid: Tensor, tokens: Tensor) -> TeacherForced:
        output = super().forward(grid, tokens)
        return TeacherForced(
            output.logits[1:], output.targets[1:], output.positions[1:], output.lengths,
            output.max_length,
        )  # fmt: skip


class LooksAway(AttentionLSTM):
    """Looks at the image in part, and does not say so."""

    def attend(self, query: Tensor, state: State, memory: Memory, rows: Rows) -> State:
        looked = super().attend(query, state, memory, rows)
        return looked | {"attention": self.share * looked["attention"]}

    share = 0.5


class LooksTwice(LooksAway):
    partial_attention = True
    share = 2.0


class StateByRow(LSTM):
    """Keeps its state by row, so that beams cannot be reordered."""

    def step(self, tokens: Tensor, state: State, memory: Memory) -> Step:
        shaped = {name: value.unflatten(0, tokens.shape) for name, value in state.items()}
        step = super().step(tokens, shaped, memory)
        flat = {name: value.flatten(0, 1) for name, value in step.state.items()}
        return step._replace(state=flat)

    def start(self, memory: Memory, captions: int) -> State:
        return {n: value.flatten(0, 1) for n, value in super().start(memory, captions).items()}


class CountsSteps(LSTM):
    steps = 0

    def step(self, tokens: Tensor, state: State, memory: Memory) -> Step:
        self.steps += 1
        step = super().step(tokens, state, memory)
        return step._replace(logits=step.logits + self.steps * torch.arange(9))


class LosesPrecision(LSTM):
    def recurrent_step(
        self, inputs: Mapping[str, Tensor], state: State, memory: Memory, rows: Rows
    ) -> State:
        new = super().recurrent_step(inputs, state, memory, rows)
        return new | {"hidden": new["hidden"] @ torch.eye(self.hidden_dim).to(new["hidden"])}


class KeepsTensor(LSTM):
    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.output_hidden.last = 2 * self.embedding.weight[0]


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (CountsSteps, "CountsSteps: logits of a second `step` with the same arguments; .* state"),
        (
            LosesPrecision,
            r"precision, state\['hidden'\] begins in torch\.float32 and is in torch\.bfloat16",
        ),
        (KeepsTensor, "KeepsTensor.output_hidden.last keeps a tensor of an earlier call: .* state"),
        (SeesTheFuture, "SeesTheFuture: log-probabilities by `step`, word by word, and by `for"),
        (OtherStep, "OtherStep: log-probabilities by `step`, word by word, and by `forward`"),
        (BatchMean, "BatchMean: caption . of image . alone and in a batch"),
        (Unlearned, "Unlearned: initial_.* gets no gradient"),
        (WrongWeightGradient, "WrongWeightGradient: along a random direction, the gradient with"),
        (WrongPositions, "WrongPositions: `positions` do not say where the targets stand"),
        (MissingTargets, "MissingTargets: `targets` must contain each true next token"),
        (LooksAway, "LooksAway: `coverage` does not sum to the number of words"),
        (LooksTwice, "LooksTwice: `coverage` does not sum to .* words of each caption, or to less"),
        (StateByRow, r"StateByRow: state\['hidden'\] has shape"),
    ],
)
def test_a_broken_decoder_is_found(broken: type[LSTM], words: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(AssertionError, match=words):
        check_decoder(broken(9, CHANNELS, **SIZES), channels=CHANNELS)


def test_an_attention_may_depend_on_places_if_that_is_said() -> None:
    check_attention(Positional, positional=True)


def test_kernels_for_mixed_precision_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a step that is not the one that such a kernel computes, where nobody notices that."""
    torch.manual_seed(0)
    decoder = LooksUp(9, CHANNELS, hidden_dim=6, embed_dim=4, attention_dim=4)
    check_decoder(decoder, channels=CHANNELS)
    monkeypatch.setattr("captioning.models.decoders.attn_lstm.keeps_methods", lambda *_: True)
    message = "LooksUp: the log-probabilities by backend=auto on cpu .* autocast to bfloat16"
    with pytest.raises(AssertionError, match=message):
        check_decoder(decoder, channels=CHANNELS)


class LooksUp(AttentionLSTM):
    def recurrent_step(self, *arguments: Any) -> State:
        state = super().recurrent_step(*arguments)
        return state | {"cell": -2 * state["cell"]}


class Plain(Objective):
    """The cross entropy, which the broken objectives change."""

    def forward(self, decoder: Decoder, batch: Batch) -> dict[str, Tensor]:
        output = decoder(batch.grid, batch.tokens)
        return {"loss": cross_entropy(output.logits, output.targets)}


class InSingle(Plain):
    def forward(self, decoder: Decoder, batch: Batch) -> dict[str, Tensor]:
        return {"loss": super().forward(decoder, batch)["loss"].float()}


class NoLoss(Plain):
    def forward(self, decoder: Decoder, batch: Batch) -> dict[str, Tensor]:
        return {"cross_entropy": super().forward(decoder, batch)["loss"]}


class Vector(Plain):
    def forward(self, decoder: Decoder, batch: Batch) -> dict[str, Tensor]:
        parts = super().forward(decoder, batch)
        return parts | {"words": torch.ones(3)}


class CountsPadding(Plain):
    def forward(self, decoder: Decoder, batch: Batch) -> dict[str, Tensor]:
        output = decoder(batch.grid, batch.tokens)
        return {"loss": -output.token_log_probs().mean()}


class CountsRows(Plain):
    def forward(self, decoder: Decoder, batch: Batch) -> dict[str, Tensor]:
        output = decoder(batch.grid, batch.tokens)
        return {"loss": cross_entropy(output.logits, output.targets) * len(output.targets)}


class NotANumber(Plain):
    def forward(self, decoder: Decoder, batch: Batch) -> dict[str, Tensor]:
        return {"loss": super().forward(decoder, batch)["loss"] * torch.nan}


class Constant(Plain):
    def forward(self, decoder: Decoder, batch: Batch) -> dict[str, Tensor]:
        return {"loss": super().forward(decoder, batch)["loss"].detach()}


class Useless(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


class WrongLossGradient(Plain):
    def forward(self, decoder: Decoder, batch: Batch) -> dict[str, Tensor]:
        return {"loss": WrongGradient.apply(super().forward(decoder, batch)["loss"])}


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (InSingle, r"InSingle: a result is in torch\.float32 .* in place of a cast"),
        (NoLoss, 'NoLoss returns cross_entropy, and no "loss"'),
        (Vector, "Vector: words must be a tensor without dimensions"),
        (CountsPadding, "CountsPadding: loss with more padding and without"),
        (CountsRows, "CountsRows: loss with rows whose target is padding"),
        (NotANumber, "NotANumber: loss is nan"),
        (Constant, "Constant: the loss does not depend on any parameter"),
        (Useless, "Useless: the loss gives objective.scale no gradient"),
        (WrongLossGradient, "WrongLossGradient: along a random direction, the gradient"),
    ],
)
def test_a_broken_objective_is_found(broken: type[Objective], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_objective(broken())


def test_a_check_leaves_what_it_checks_and_the_random_numbers_as_they_were() -> None:
    torch.manual_seed(5)
    decoder, expected = LSTM(9, CHANNELS, **SIZES), torch.get_rng_state()
    weights = {name: each.clone() for name, each in decoder.state_dict().items()}
    check_decoder(decoder, channels=CHANNELS)
    assert torch.get_rng_state().equal(expected)
    assert decoder.training
    assert all(each.equal(weights[name]) for name, each in decoder.state_dict().items())
    assert all(parameter.grad is None for parameter in decoder.parameters())
