"""The objective of hard attention against loops, and its gradient against the exact one.

The exact gradient is that of the paper's lower bound, sum_s p(s | a) log p(y | s, a), by
enumeration of all sequences of locations, from the paper's equations in double precision.
"""

import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import tiny
import torch
from test_cross_entropy import Given
from torch import Tensor

from captioning.captioner import Captioner
from captioning.data.batch import Batch
from captioning.models.decoders import hard_attn_lstm
from captioning.models.decoders.attn_lstm import AttentionLSTM
from captioning.models.decoders.base import TeacherForced
from captioning.models.decoders.hard_attn_lstm import HardAttentionLSTM
from captioning.objectives import CrossEntropy, HardAttention
from captioning.support.errors import CaptioningError
from captioning.testing import check_objective

pytestmark = [pytest.mark.filterwarnings(each) for each in tiny.QUIET]

VOCABULARY, LOCATIONS, CHANNELS = 9, 3, 4
LENGTHS = [[3, 2, 0], [4, 0, 0]]

# The loss of given predictions


def output(seed: int = 0) -> TeacherForced:
    """Predictions for three captions of two images, and three rows of padding."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(LENGTHS)
    rows = int(lengths.sum()) + 3
    targets = torch.randint(1, VOCABULARY, (rows,), generator=generator)
    targets[-3:] = 0
    return TeacherForced(
        logits=2 * torch.randn(rows, VOCABULARY, generator=generator),
        targets=targets,
        positions=torch.tensor([0, 4, 12, 1, 5, 13, 2, 14, 15, 3, 6, 7]),
        lengths=lengths,
        max_length=4,
        attention=(2 * torch.randn(rows, LOCATIONS, generator=generator)).softmax(-1),
        location=torch.randint(0, LOCATIONS, (rows,), generator=generator),
    )


def parts_of(objective: HardAttention, given: TeacherForced) -> dict[str, Tensor]:
    batch = Batch(torch.empty(2, LOCATIONS, 3), torch.empty(2, 3, 5, dtype=torch.long), ["a", "b"])
    return objective(Given(given), batch)


def by_hand(given: TeacherForced, baseline: float) -> tuple[float, float, float, float]:
    """Cross entropy, REINFORCE term, entropy, and the mean log-probability of a word."""
    assert given.attention is not None
    assert given.location is not None
    log_probs: dict[int, list[float]] = {}
    log_locations: dict[int, float] = {}
    entropies = []
    for row, target in enumerate(given.targets.tolist()):
        if target == 0:
            continue
        scores = given.logits[row].tolist()
        log_prob = scores[target] - math.log(sum(math.exp(score) for score in scores))
        weights = given.attention[row].tolist()
        entropies.append(-sum(weight * math.log(weight) for weight in weights))
        caption = int(given.positions[row]) // 4
        log_probs.setdefault(caption, []).append(log_prob)
        log_locations.setdefault(caption, 0.0)
        if given.location[row] >= 0:
            log_locations[caption] += math.log(weights[int(given.location[row])])
    words = sum(map(len, log_probs.values()))
    assert words == 9
    reinforce = 0.0
    for caption, of_words in log_probs.items():
        reinforce -= (sum(of_words) - len(of_words) * baseline) * log_locations[caption]
    mean = sum(map(sum, log_probs.values())) / words
    return -mean, reinforce / words, sum(entropies) / words, mean


@pytest.mark.parametrize(("reinforce", "entropy"), [(0.1, 0.002), (2.0, 0.0), (0.0, 0.5)])
def test_the_loss_is_that_of_loops(reinforce: float, entropy: float) -> None:
    objective = HardAttention(reinforce, entropy, label_smoothing=0.0)
    baseline = 0.0
    for step in range(4):
        given = output(step)
        parts = parts_of(objective, given)
        cross_entropy, term, spread, mean = by_hand(given, baseline)
        assert parts["cross_entropy"].item() == pytest.approx(cross_entropy, rel=1e-5)
        assert parts["reinforce"].item() == pytest.approx(term, rel=1e-5)
        assert parts["entropy"].item() == pytest.approx(spread, rel=1e-5)
        total = cross_entropy + reinforce * term - entropy * spread
        assert parts["loss"].item() == pytest.approx(total, rel=1e-5)
        baseline = 0.9 * baseline + 0.1 * mean
        assert objective.baseline.item() == pytest.approx(baseline, rel=1e-5)


def test_captions_without_a_sample_have_no_reinforce_term() -> None:
    given = output()
    assert given.location is not None
    parts = parts_of(HardAttention(), replace(given, location=given.location.clamp(max=-1)))
    assert parts["reinforce"].item() == 0
    half = replace(given, location=given.location.where(given.positions < 4, -1))
    assert by_hand(half, 0.0)[1] == pytest.approx(
        parts_of(HardAttention(), half)["reinforce"].item()
    )


def test_the_terms_of_cross_entropy_are_kept() -> None:
    given = replace(output(), coverage=torch.rand(2, 3, LOCATIONS))
    options: dict[str, Any] = {"label_smoothing": 0.2, "attention_penalty": 0.5}
    ours = parts_of(HardAttention(reinforce=0.0, entropy=0.0, **options), given)
    theirs = CrossEntropy(**options).parts(given)
    assert ours.keys() == theirs.keys() | {"reinforce", "entropy"}
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value)


def test_the_baseline_moves_in_training_alone_and_is_part_of_checkpoints() -> None:
    objective = HardAttention(baseline_decay=0.5).eval()
    parts_of(objective, output())
    assert objective.baseline == 0
    parts_of(objective.train(), output())
    assert objective.baseline < 0
    other = HardAttention()
    other.load_state_dict(objective.state_dict())
    assert other.baseline == objective.baseline


def test_weights_of_zero_give_no_nan() -> None:
    given = output()
    scores = torch.tensor([0.0, 200.0, -200.0]).repeat(len(given.targets), 1).requires_grad_()
    parts = parts_of(HardAttention(), replace(given, attention=scores.softmax(-1)))
    (gradient,) = torch.autograd.grad(parts["loss"], scores)
    assert gradient.isfinite().all()


# The gradient


def decoder_of(**options: Any) -> HardAttentionLSTM:
    torch.manual_seed(0)
    decoder = HardAttentionLSTM(
        VOCABULARY, CHANNELS, hidden_dim=3, embed_dim=2, attention_dim=3, dropout=0.0,
        recurrent_dropout=0.0, sampling_share=1.0, normalize_grid=False, **options,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.uniform_(-1, 1)
    return decoder.double()


def textbook(
    weights: dict[str, Tensor], a: Tensor, words: list[int], locations: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """What the paper's equations make of a caption: log p(y | s, a) and log p(s | a)."""

    def linear(name: str, x: Tensor) -> Tensor:
        product = weights[f"{name}.weight"] @ x
        return product + weights[f"{name}.bias"] if f"{name}.bias" in weights else product

    h, c = linear("initial_hidden", a.mean(0)).tanh(), linear("initial_cell", a.mean(0))
    log_words, log_locations = [], []
    for word, target, location in zip(words[:-1], words[1:], locations, strict=True):
        y, query = weights["embedding.weight"][word], linear("attention.query", h)
        e = [
            weights["attention.score"] @ (linear("attention.key", a_i) + query).tanh() for a_i in a
        ]
        log_locations.append(torch.stack(e).log_softmax(0)[location])
        z = linear("gate", h).sigmoid() * a[location]
        gates = linear("input_gates", y) + linear("hidden_gates", h) + linear("context_gates", z)
        i, f, g, o = gates.chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        features = y + linear("output_hidden", h) + linear("output_context", z)
        log_words.append(linear("output_words", features).log_softmax(0)[target])
    return torch.stack(log_words).sum(), torch.stack(log_locations).sum()


CAPTIONS = [[1, 4, 5, 2], [1, 2]]
"""Of one image: 3 targets and 1, so that there are 3^4 sequences of locations."""


def test_the_expected_gradient_is_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the cross entropy per word, for any baseline."""
    decoder = decoder_of().train()
    objective = HardAttention(1.0, 0.0, label_smoothing=0.0).double().train()
    grid = torch.randn(1, LOCATIONS, CHANNELS, generator=torch.Generator().manual_seed(1)).double()
    tokens = torch.tensor([[[*words, 0, 0][:4] for words in CAPTIONS]])
    names, parameters = zip(*decoder.named_parameters(), strict=True)
    weights = {
        name: parameter.detach().clone().requires_grad_()
        for name, parameter in zip(names, parameters, strict=True)
    }

    exact = torch.zeros((), dtype=torch.float64)
    log_p: list[dict[tuple[int, ...], tuple[Tensor, Tensor]]] = []
    for words in CAPTIONS:
        sequences = product(range(LOCATIONS), repeat=len(words) - 1)
        log_p.append({s: textbook(weights, grid[0], words, s) for s in sequences})
        exact = exact + sum(
            ((log_s.exp() * log_y) for log_y, log_s in log_p[-1].values()), torch.zeros(())
        )
    expected = torch.autograd.grad(-exact / 4, list(weights.values()))

    estimate = [torch.zeros_like(parameter) for parameter in parameters]
    total = 0.0
    for first, second in product(*log_p):
        # The captions that have a word: both, and then the first alone.
        drawn = iter([[first[0], second[0]], [first[1]], [first[2]]])
        monkeypatch.setattr(
            hard_attn_lstm, "sample", lambda _, drawn=drawn: torch.tensor(next(drawn))
        )
        objective.baseline.fill_(-1.7)
        parts = objective(decoder, Batch(grid, tokens, ["a"]))
        pair = log_p[0][first], log_p[1][second]
        torch.testing.assert_close(-4 * parts["cross_entropy"], pair[0][0] + pair[1][0])
        probability = (pair[0][1] + pair[1][1]).exp().item()
        total += probability
        for sum_, gradient in zip(
            estimate, torch.autograd.grad(parts["loss"], parameters), strict=True
        ):
            sum_ += probability * gradient
    assert total == pytest.approx(1)
    for name, ours, theirs in zip(names, estimate, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10, msg=name)


def test_the_mean_gradient_of_many_samples_is_near_the_exact_one() -> None:
    """With the decoder's own samples: of 30 steps of 200 images, within five standard errors."""
    decoder = decoder_of().train()
    objective = HardAttention(1.0, 0.0, label_smoothing=0.0, baseline_decay=1.0).double()
    objective.baseline.fill_(-2.0)
    grid = torch.randn(1, LOCATIONS, CHANNELS, generator=torch.Generator().manual_seed(1)).double()
    words, images = [1, 6, 2], 200
    batch = Batch(grid.repeat(images, 1, 1), torch.tensor([[words]] * images), ["a"] * images)
    score = decoder.attention.score
    assert isinstance(score, Tensor)
    weights = dict(decoder.named_parameters())
    terms = [textbook(weights, grid[0], words, s) for s in product(range(LOCATIONS), repeat=2)]
    exact = -sum((log_s.exp() * log_y for log_y, log_s in terms), torch.zeros(())) / 2
    (expected,) = torch.autograd.grad(exact, score)
    torch.manual_seed(0)
    found = torch.stack(
        [torch.autograd.grad(objective(decoder, batch)["loss"], score)[0] for _ in range(30)]
    )
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - expected).abs() < 5 * error).all()
    assert (expected.abs() > 5 * error).any()  # so that a wrong sign would be seen


# With its decoder


@pytest.mark.parametrize(
    "attention", ["additive", "multiplicative", {"_target_": "scaled_dot", "heads": 2}], ids=str
)
def test_it_is_an_objective(attention: Any) -> None:
    torch.manual_seed(0)
    decoder = HardAttentionLSTM(
        11, 6, hidden_dim=5, embed_dim=4, attention_dim=4, attention=attention
    )
    check_objective(HardAttention(), decoder, channels=6)
    check_objective(HardAttention(attention_penalty=1.0), decoder, channels=6)


def test_a_decoder_that_does_not_sample_is_refused() -> None:
    decoder = AttentionLSTM(VOCABULARY, CHANNELS, hidden_dim=3, embed_dim=2, attention_dim=3)
    batch = Batch(torch.randn(1, LOCATIONS, CHANNELS), torch.tensor([CAPTIONS[:1]]), ["a"])
    with pytest.raises(CaptioningError, match="model=hard_attn_lstm, or objective=cross_entropy"):
        HardAttention()(decoder, batch)


@pytest.mark.parametrize(
    "options", [{"reinforce": -1.0}, {"entropy": -0.1}, {"baseline_decay": 1.5}], ids=str
)
def test_bounds(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(CaptioningError, match=f"objective.{name}={value}"):
        HardAttention(**options)


def test_the_model_asks_for_its_objective(drawn_pictures: Path, tmp_path: Path) -> None:
    data = tiny.data(drawn_pictures, tmp_path)
    with pytest.raises(
        CaptioningError,
        match="HardAttentionLSTM does not learn by CrossEntropy: add objective=hard_attention",
    ):
        tiny.captioner(data, model="hard_attn_lstm")


def test_a_checkpoint_has_the_baseline_and_a_resumed_run_goes_on_with_it(
    drawn_pictures: Path, tmp_path: Path
) -> None:
    def run(epochs: int, resume: Path | None = None) -> tuple[Captioner, list[float], pl.Trainer]:
        pl.seed_everything(3, verbose=False)
        data = tiny.data(drawn_pictures, tmp_path)
        model = tiny.captioner(
            data, model="hard_attn_lstm", objective="hard_attention", scheduler="constant"
        )
        record = tiny.Record()
        trainer = tiny.trainer(tmp_path, record, max_epochs=epochs)
        trainer.fit(model, datamodule=data, ckpt_path=resume)
        return model, record.losses, trainer

    whole, losses, _ = run(2)
    first, begun, trainer = run(1)
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    assert first.objective.baseline < 0
    loaded = Captioner.load_from_checkpoint(path)
    assert loaded.objective.baseline == first.objective.baseline
    resumed, continued, _ = run(2, path)
    assert [*begun, *continued] == losses
    assert resumed.objective.baseline == whole.objective.baseline
