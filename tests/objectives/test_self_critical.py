"""Self-critical training against sacreeos, and its gradient against enumeration."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from captioning.data.batch import Batch
from captioning.data.vocabulary import Vocabulary
from captioning.decoding import Hypothesis
from captioning.metrics.reward import CaptionReward
from captioning.models.decoders.attn_lstm import AttentionLSTM
from captioning.models.decoders.base import Decoder
from captioning.objectives import SelfCritical
from captioning.support.errors import CaptioningError
from captioning.support.special_tokens import END, START

RECORDED = json.loads((Path(__file__).parents[1] / "metrics" / "sacreeos_rewards.json").read_text())
DOG, CAT = 4, 5
WORDS = ["dog", "cat"]
IMAGES = ["1.jpg", "2.jpg"]
CAPTIONS = {"1.jpg": ["dog cat", "dog"], "2.jpg": ["cat cat", "dog dog"]}


def data() -> Any:
    """What the objective reads of the data module."""
    return SimpleNamespace(
        vocabulary=Vocabulary(WORDS),
        descriptions=CAPTIONS,
        images=lambda split: [SimpleNamespace(id=image) for image in IMAGES],
    )


def objective(**settings: Any) -> SelfCritical:
    made = SelfCritical(**{"samples": 2, "max_length": 2, **settings})
    made.setup(data())
    return made


def decoder(dropout: float = 0.0) -> AttentionLSTM:
    torch.manual_seed(3)
    made = AttentionLSTM(
        6, 5, hidden_dim=4, embed_dim=4, attention_dim=3, dropout=dropout, recurrent_dropout=dropout
    )
    with torch.no_grad():
        made.output_words.weight.mul_(4)  # far from uniform
    return made.double()


def batch() -> Batch:
    grid = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(1)).double()
    tokens = torch.tensor([[[START, DOG, CAT, END]], [[START, CAT, CAT, END]]])
    return Batch(grid, tokens, IMAGES)


class Given:
    """A decoding that always finds these captions, in place of sampling."""

    def __init__(
        self, captions: list[list[list[int]]], temperature: float = 1.0, max_length: int = 2
    ) -> None:
        self.found = [[Hypothesis(c, 0.0, 0.0, None) for c in of] for of in captions]
        self.captions = len(captions[0])
        self.temperature = temperature
        self.max_length = max_length

    def __call__(self, decoder: Decoder, grid: Tensor) -> list[list[Hypothesis]]:
        return self.found


def all_captions(max_length: int) -> list[list[int]]:
    """Every caption that can be sampled: words of {<unk>, dog, cat}, ended or cut off."""
    words = (3, DOG, CAT)
    return [list(c) for n in range(max_length + 1) for c in itertools.product(words, repeat=n)]


def probability(model: Decoder, grid: Tensor, caption: list[int], temperature: float) -> Tensor:
    """The probability of a caption of one image, by steps, as the distribution is defined."""
    memory = model.prepare(grid)
    state = model.start(memory, 1)
    total, last = torch.ones((), dtype=torch.double), START
    for word in [*caption, *([END] if len(caption) < 2 else [])]:
        step = model.step(torch.tensor([[last]]), state, memory)
        state, last = step.state, word
        allowed = step.logits[0, 0, 2:] / temperature  # without <pad> and <start>
        total = total * allowed.softmax(-1)[word - 2]
    return total


@pytest.mark.parametrize(("baseline", "temperature"), [("leave_one_out", 0.7), ("greedy", 1.0)])
def test_the_gradient_is_that_of_the_expected_reward(
    baseline: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean over all pairs of samples, by their probability, with both baselines."""
    model, scst = decoder(), objective(baseline=baseline, temperature=temperature)
    images, captions = batch(), all_captions(2)
    assert scst.reward is not None
    reward = CaptionReward(
        {image: [text.split() for text in texts] for image, texts in CAPTIONS.items()},
        {image: [text.split() for text in texts] for image, texts in CAPTIONS.items()},
    )
    words = ["<pad>", "<start>", "<end>", "<unk>", *WORDS]
    expected = torch.zeros((), dtype=torch.double)
    probabilities = []
    for row, image in enumerate(IMAGES):
        grid = images.images[row : row + 1]
        of_image = [probability(model, grid, caption, temperature) for caption in captions]
        torch.testing.assert_close(sum(of_image), torch.ones((), dtype=torch.double))
        values = reward(
            [image] * len(captions),
            [[words[token] for token in caption] for caption in captions],
            [len(caption) < 2 for caption in captions],
        )
        expected = expected + sum(p * float(r) for p, r in zip(of_image, values, strict=True))
        probabilities.append([p.item() for p in of_image])
    (-expected / len(IMAGES)).backward()
    exact = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    # All pairs of samples of an image are one batch, in which each counts by its probability.
    model.zero_grad()
    pairs = list(itertools.product(range(len(captions)), repeat=2))
    for row, image in enumerate(IMAGES):
        found = [[captions[first], captions[second]] for first, second in pairs]
        scst.sampling = Given(found, temperature)  # type: ignore[assignment]
        weights = torch.tensor(
            [[probabilities[row][first] * probabilities[row][second]] for first, second in pairs]
        ).double() * len(pairs)  # the loss is a mean over the batch
        monkeypatch.setattr(
            scst, "log_probs", lambda *given, w=weights: SelfCritical.log_probs(scst, *given) * w
        )
        count = len(pairs)
        grid, tokens = (each[row : row + 1] for each in (images.images, images.tokens))
        many = Batch(grid.repeat(count, 1, 1), tokens.repeat(count, 1, 1), [image] * count)
        (scst(model, many)["loss"] / len(IMAGES)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, exact[name], rtol=1e-5, atol=1e-8, msg=name)


def test_the_divergence_from_the_teacher_is_subtracted_from_the_expected_reward() -> None:
    """Over all captions of an image, by their probability: E[r] - weight * KL(model, teacher)."""
    model, teacher, weight = decoder(), decoder(), 0.3
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.2)
    captions, images = all_captions(2), batch()
    grid = images.images[:1]
    scst = objective(samples=1, baseline="greedy", kl_weight=weight, teachers="A")
    scst.learn_from(teacher)
    logs = [probability(model, grid, each, 1.0).log() for each in captions]
    with torch.no_grad():
        taught = [probability(teacher, grid, each, 1.0).log() for each in captions]
    rewards = scst.rewards(IMAGES[:1], [[Hypothesis(c, 0.0, 0.0, None) for c in captions]])[0]
    terms = zip(logs, taught, rewards, strict=True)
    value = sum(p.exp() * (float(r) - weight * (p - q)) for p, q, r in terms)
    assert isinstance(value, Tensor)
    (-value).backward()
    exact = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    divergence = 0.0
    for caption, log in zip(captions, logs, strict=True):
        scst.sampling = Given([[caption]])  # type: ignore[assignment]
        parts = scst(model, Batch(grid, images.tokens[:1], IMAGES[:1]))
        (parts["loss"] * log.exp().item()).backward()
        divergence += parts["kl"].item() * log.exp().item()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, exact[name], rtol=1e-5, atol=1e-8, msg=name)
    expected = sum((p.exp() * (p - q)).item() for p, q in zip(logs, taught, strict=True))
    assert divergence == pytest.approx(expected, rel=1e-6)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_other_samples_are_the_baseline_of_what_is_left_of_the_reward() -> None:
    model, teacher = decoder(), decoder()
    with torch.no_grad():
        teacher.output_words.bias[DOG] += 1
    scst = objective(kl_weight=0.5, teachers="A")
    scst.learn_from(teacher)
    samples = [[[DOG], [CAT]], [[DOG, DOG], [CAT]]]
    scst.sampling = Given(samples)  # type: ignore[assignment]
    rewards = scst.rewards(IMAGES, scst.sampling(model, batch().grid))
    with torch.no_grad():
        logs, taught = (
            torch.stack(
                [
                    probability(of, batch().images[row : row + 1], caption, 1.0).log()
                    for row in range(2)
                    for caption in samples[row]
                ]
            ).view(2, 2)
            for of in (model, teacher)
        )
    left = torch.from_numpy(rewards) - 0.5 * (logs - taught)
    expected = -((left - left.flip(1)) * logs).mean()
    assert scst(model, batch())["loss"].item() == pytest.approx(float(expected), rel=1e-6)


def test_without_a_teacher_the_divergence_has_no_meaning() -> None:
    with pytest.raises(CaptioningError, match=r"kl_weight.*objective\.teachers=PATH"):
        objective(kl_weight=0.1)(decoder(), batch())


@pytest.mark.parametrize(
    "case",
    [case for case in RECORDED["cases"] if case["metric"] == "CIDEr-D"],
    ids=lambda case: f"{case['baseline']}-{case['end_token']}",
)
def test_the_loss_is_that_of_sacreeos(
    case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    references = RECORDED["references"]
    words = sorted({word for of in RECORDED["documents"].values() for c in of for word in c})
    vocabulary = Vocabulary(words)

    def encoded(caption: list[str]) -> list[int]:
        return vocabulary.encode(caption)[1:-1]

    scst = SelfCritical(samples=3, baseline=case["baseline"], end_token=case["end_token"])
    scst.words = ["<pad>", "<start>", "<end>", "<unk>", *words]
    scst.reward = CaptionReward(references, RECORDED["documents"], end_token=case["end_token"])
    samples = [[encoded(c) for c in of] for of in RECORDED["samples"]]
    scst.sampling = Given(samples, max_length=20)  # type: ignore[assignment]
    if case["baseline"] == "greedy":
        scst.greedy = Given([[encoded(c)] for c in RECORDED["greedy"]])  # type: ignore[assignment]
    monkeypatch.setattr(scst, "log_probs", lambda *_: torch.tensor(RECORDED["log_probs"]))
    grid = torch.zeros(len(references), 3, 5)
    tokens = torch.ones(len(references), 1, 3, dtype=torch.int64)
    parts = scst(decoder(), Batch(grid, tokens, list(references)))
    assert parts["loss"].item() == pytest.approx(case["loss"], rel=1e-5)
    assert parts["reward"].item() == pytest.approx(np.mean(case["rewards"]), rel=1e-6)
    assert scst.reward_signature == case["signature"].rpartition("+")[0]


def test_each_step_draws_anew_and_the_seed_repeats_a_run() -> None:
    model, scst = decoder(), objective(samples=8)
    rewards = [[] for _ in range(2)]  # type: list[list[float]]
    for run in rewards:
        torch.manual_seed(5)
        run += [scst(model, batch())["reward"].item() for _ in range(6)]
    assert rewards[0] == rewards[1]
    assert len(set(rewards[0])) > 1


def test_dropout_is_off_unless_it_is_asked_for_and_the_mode_is_restored() -> None:
    model = decoder(dropout=0.5)

    def losses(**settings: Any) -> list[float]:
        scst, training = objective(**settings), model.training
        scst.sampling = Given([[[DOG], [CAT]], [[DOG, DOG], [CAT]]])  # type: ignore[assignment]
        torch.manual_seed(0)
        found = [scst(model, batch())["loss"].item() for _ in range(2)]
        assert model.training == training
        return found

    model.eval()
    expected = losses(dropout=True)  # dropout does nothing in evaluation mode
    model.train()
    assert losses() == expected
    first, second = losses(dropout=True)
    assert first != second
    assert first not in expected


def test_cross_entropy_is_added_with_its_weight() -> None:
    model, scst = decoder(), objective(cross_entropy_weight=0.3, label_smoothing=0.0)
    parts = scst(model, batch())
    output = model(batch().grid, batch().tokens)
    expected = torch.nn.functional.cross_entropy(output.logits, output.targets)
    torch.testing.assert_close(parts["cross_entropy"], expected)
    torch.testing.assert_close(parts["loss"], parts["policy_gradient"] + 0.3 * expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 1}, "samples=1.*2 or more"),
        ({"samples": 0, "baseline": "greedy"}, "samples=0"),
        ({"bleu_weight": -1.0}, "bleu_weight=-1.0"),
        ({"cross_entropy_weight": -0.1}, "cross_entropy_weight=-0.1"),
        ({"kl_weight": -0.1}, "kl_weight=-0.1"),
        ({"temperature": 0.0}, "temperature=0.0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CaptioningError, match=message):
        SelfCritical(**settings)


def test_without_references_it_says_what_to_do() -> None:
    with pytest.raises(CaptioningError, match="setup"):
        SelfCritical()(decoder(), batch())
