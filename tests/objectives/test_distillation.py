"""Distillation against its formula, word by word, in loops."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import tiny
import torch
from tiny import batch, decoder
from torch import Tensor

from captioning.captioner import Captioner
from captioning.data.batch import Batch
from captioning.models.decoders.base import Decoder
from captioning.models.decoders.ensemble import Ensemble
from captioning.models.decoders.lstm import LSTM
from captioning.objectives import CrossEntropy, Distillation
from captioning.support.errors import CaptioningError
from captioning.support.special_tokens import PAD, UNK
from captioning.training.teacher import load_teacher


def other_decoder(seed: int) -> LSTM:
    torch.manual_seed(seed)
    made = LSTM(9, 5, hidden_dim=4, embed_dim=3, dropout=0.9)
    with torch.no_grad():
        made.embedding.weight.mul_(20)
    return made.double()


def log_probs(model: Decoder, given: Batch, temperature: float) -> list[Tensor]:
    """Of all words after each word of each caption, one step after another."""
    found = []
    with torch.no_grad():
        for image, of_image in enumerate(given.tokens.tolist()):
            memory = model.prepare(given.images[image : image + 1])
            for caption in of_image:
                words = [token for token in caption if token != PAD]
                state = model.start(memory, 1)
                for word in words[:-1]:
                    step = model.step(torch.tensor([[word]]), state, memory)
                    state = step.state
                    found.append((step.logits[0, 0] / temperature).log_softmax(-1))
    return found


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_loss_is_that_of_the_formula(temperature: float) -> None:
    student, given = decoder(), batch()
    teachers = [other_decoder(1), other_decoder(2)]
    objective = Distillation(weight=0.6, temperature=temperature, label_smoothing=0.2)
    objective.learn_from(teachers[0])
    parts = objective(student, given)
    of_student = log_probs(student, given, temperature)
    of_teacher = log_probs(teachers[0].eval(), given, temperature)
    soft = -sum(
        float(p.exp() @ q) for p, q in zip(of_teacher, of_student, strict=True)
    ) / len(of_student) * temperature**2  # fmt: skip
    true = CrossEntropy(0.2)(student, given)["loss"].item()
    assert len(of_student) == 4 + 3 + 6
    assert parts["teacher_cross_entropy"].item() == pytest.approx(soft, rel=1e-5)
    assert parts["cross_entropy"].item() == pytest.approx(true, rel=1e-5)
    assert parts["loss"].item() == pytest.approx(0.6 * soft + 0.4 * true, rel=1e-5)


def test_words_that_the_teacher_lacks_are_learned_from_the_captions_alone() -> None:
    student, given = decoder(), batch()
    torch.manual_seed(1)
    teacher = LSTM(7, 5, hidden_dim=4, embed_dim=3, dropout=0.9).double()  # lacks words 7 and 8
    objective = Distillation(weight=0.6, label_smoothing=0.0)
    objective.learn_from(teacher)
    parts = objective(student, given)
    read = given._replace(tokens=given.tokens.masked_fill(given.tokens > 6, UNK))
    of_teacher = log_probs(teacher.eval(), read, 1.0)
    of_student = log_probs(student, given, 1.0)
    targets = [
        word
        for of_image in given.tokens.tolist()
        for caption in of_image
        for word in caption[1:]
        if word != PAD
    ]
    terms = [
        -float(p.exp() @ q[:7])
        for p, q, target in zip(of_teacher, of_student, targets, strict=True)
        if target < 7
    ]
    assert len(terms) == 13 - 4
    soft = sum(terms) / len(terms)
    assert parts["teacher_cross_entropy"].item() == pytest.approx(soft, rel=1e-5)
    true = -sum(float(q[word]) for q, word in zip(of_student, targets, strict=True)) / len(targets)
    assert parts["loss"].item() == pytest.approx(0.6 * soft + 0.4 * true, rel=1e-5)

    strange = [[[1, 7, 8, 7]]]  # no word that the teacher knows
    alone = Batch(given.images[:1], torch.tensor(strange), ["1.jpg"])
    assert objective(student, alone)["teacher_cross_entropy"].item() == 0.0


def test_several_teach_by_their_mean_probabilities() -> None:
    student, given = decoder(), batch()
    teachers = [other_decoder(1), other_decoder(2)]
    objective = Distillation(weight=1.0)
    objective.learn_from(Ensemble(teachers).eval())
    loss = objective(student, given)["loss"].item()
    of_student = log_probs(student, given, 1.0)
    members = [log_probs(teacher.eval(), given, 1.0) for teacher in teachers]
    means = [(a.exp() + b.exp()) / 2 for a, b in zip(*members, strict=True)]
    expected = -sum(float(p @ q) for p, q in zip(means, of_student, strict=True)) / len(means)
    assert loss == pytest.approx(expected, rel=1e-5)


def test_the_student_becomes_the_teacher_who_learns_nothing_and_is_not_saved() -> None:
    student, given, teacher = decoder(), batch(), other_decoder(1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    teacher.train()  # its dropout of 0.9 must be off all the same
    objective = Distillation(weight=1.0)
    objective.learn_from(teacher)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    for _ in range(250):
        optimizer.zero_grad()
        loss = objective(student, given)["loss"]
        loss.backward()
        optimizer.step()
    of_teacher = log_probs(teacher.eval(), given, 1.0)
    entropy = -sum(float(p.exp() @ p) for p in of_teacher) / len(of_teacher)
    assert entropy - 1e-6 <= loss.item() < entropy + 0.02  # no student is better than its teacher
    assert all(torch.equal(teacher.state_dict()[name], value) for name, value in before.items())
    assert not objective.state_dict()
    assert not list(objective.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": 1.5}, "weight=1.5"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CaptioningError, match=message):
        Distillation(**settings)


def test_a_missing_teacher_is_named() -> None:
    with pytest.raises(CaptioningError, match=r"objective\.teachers=PATH"):
        Distillation()(decoder(), batch())
    with pytest.raises(CaptioningError, match=r"objective\.teachers=PATH"):
        load_teacher(captioner(["a", "dog"], objective="distillation"))


def captioner(words: list[str], **settings: Any) -> Captioner:
    torch.manual_seed(len(words))
    model = {"_target_": "attn_lstm", **tiny.MODEL}
    return Captioner(words, **{"encoder": tiny.ENCODER, "model": model} | settings)


def save(given: Captioner, path: Path) -> str:
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    given.trainer = trainer
    trainer.strategy.connect(given)
    trainer.save_checkpoint(path)
    return str(path)


def test_the_teacher_is_loaded_from_checkpoints_of_the_same_vocabulary(tmp_path: Path) -> None:
    words = ["a", "dog", "runs"]
    good = captioner(words)
    paths = [save(good, tmp_path / "a.ckpt"), save(good, tmp_path / "b.ckpt")]
    student = captioner(words, objective={"_target_": "distillation", "teachers": paths})
    student.eval()  # without dropout
    load_teacher(student)
    assert isinstance(student.objective, Distillation)
    grid = torch.randn(1, 49, 128)
    given = Batch(grid, batch().tokens.clamp(max=6)[:1], ["1.jpg"])
    by_files = student.objective(student.decoder, given)["teacher_cross_entropy"]
    student.objective.learn_from(good.decoder)
    by_hand = student.objective(student.decoder, given)["teacher_cross_entropy"]
    torch.testing.assert_close(by_files, by_hand)

    strange = save(captioner(["a", "cat"]), tmp_path / "cat.ckpt")
    student = captioner(words, objective={"_target_": "distillation", "teachers": strange})
    with pytest.raises(CaptioningError, match=r"teachers=.*cat\.ckpt.*another vocabulary"):
        load_teacher(student)


def test_a_student_may_have_words_that_its_teacher_lacks_but_not_the_reverse(
    tmp_path: Path,
) -> None:
    few, many = ["a", "dog", "runs"], ["a", "dog", "runs", "rex"]
    paths = {
        len(words): save(captioner(words), tmp_path / f"{len(words)}.ckpt") for words in (few, many)
    }
    student = captioner(many, objective={"_target_": "distillation", "teachers": paths[3]})
    load_teacher(student)
    given = Batch(torch.randn(1, 49, 128), torch.tensor([[[1, 4, 7, 6, 2]]]), ["1.jpg"])
    loss = student.objective(student.decoder, given)["loss"]
    loss.backward()
    assert loss.isfinite()
    student = captioner(few, objective={"_target_": "distillation", "teachers": paths[4]})
    with pytest.raises(CaptioningError, match="another vocabulary"):
        load_teacher(student)


def test_a_student_is_loaded_without_its_teacher(tmp_path: Path) -> None:
    gone = {"_target_": "distillation", "teachers": str(tmp_path / "gone.ckpt")}
    path = save(captioner(["a", "dog"], objective=gone), tmp_path / "best.ckpt")
    again = Captioner.load_from_checkpoint(path)
    assert isinstance(again.objective, Distillation)
    with pytest.raises(CaptioningError, match=r"gone\.ckpt"):
        load_teacher(again)


def test_the_model_that_self_critical_training_stays_near_to_is_loaded(tmp_path: Path) -> None:
    few, many = ["a", "dog", "runs"], ["a", "dog", "runs", "rex"]
    start = captioner(few)
    near = {"_target_": "self_critical", "teachers": save(start, tmp_path / "start.ckpt")}
    student = captioner(few, objective=near)
    load_teacher(student)  # not needed without a weight, and so not loaded
    with pytest.raises(CaptioningError, match="kl_weight has no model"):
        student.objective.teacher(torch.device("cpu"))
    student = captioner(few, objective={**near, "kl_weight": 0.1})
    load_teacher(student)
    for mine, theirs in zip(
        student.objective.teacher(torch.device("cpu")).parameters(),
        start.decoder.parameters(),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)
    with pytest.raises(CaptioningError, match="another vocabulary"):
        load_teacher(captioner(many, objective={**near, "kl_weight": 0.1}))
    with pytest.raises(CaptioningError, match="kl_weight has no model"):
        load_teacher(captioner(few, objective={"_target_": "self_critical", "kl_weight": 0.1}))
