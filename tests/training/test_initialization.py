"""``init_from``: weights and vocabulary of another run, and nothing else of it."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import tiny
import torch

from captioning.captioner import Captioner
from captioning.support.errors import CaptioningError
from captioning.training.initialization import initial_vocabulary, initialize

WORDS = ["a", "dog", "runs"]


def captioner(seed: int = 0, *, words: list[str] = WORDS, **settings: Any) -> Captioner:
    torch.manual_seed(seed)
    model = {"_target_": "attn_lstm", **tiny.MODEL}
    return Captioner(words, **{"encoder": tiny.ENCODER, "model": model} | settings)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Of a captioner whose objective has parameters and a count of its steps."""
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    given = captioner(1, objective={"_target_": "tiny.Weighted"})
    with torch.no_grad():
        given.objective.scale.fill_(7.0)
    given.trainer = trainer
    trainer.strategy.connect(given)
    trainer.save_checkpoint(tmp_path / "best.ckpt")
    return tmp_path / "best.ckpt"


def test_the_weights_are_copied_and_the_objective_starts_afresh(checkpoint: Path) -> None:
    new = captioner(2, objective={"_target_": "tiny.Weighted"})
    before = new.decoder.output_words.weight.clone()
    initialize(new, checkpoint)
    trained = Captioner.load_from_checkpoint(checkpoint)
    for name, value in trained.decoder.state_dict().items():
        torch.testing.assert_close(new.decoder.state_dict()[name], value, rtol=0, atol=0)
    assert not torch.equal(new.decoder.output_words.weight, before)
    assert new.objective.scale.item() == 1.0
    assert trained.objective.scale.item() == 7.0


def test_another_objective_can_follow(checkpoint: Path) -> None:
    new = captioner(2, objective="self_critical")
    initialize(new, checkpoint)
    assert int(new.objective.sampling.captions) == 5


def test_the_vocabulary_is_that_of_the_checkpoint(checkpoint: Path) -> None:
    vocabulary = initial_vocabulary(str(checkpoint), None)
    assert vocabulary is not None
    assert list(vocabulary.words) == WORDS
    assert initial_vocabulary(None, None) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": {"_target_": "lstm"}}, "another model .*use the same model"),
        ({"words": ["a", "cat"]}, "another model"),
        ({"encoder": {**tiny.ENCODER, "trainable": True}}, "encoder.trainable"),
    ],
)
def test_what_does_not_fit_is_named(
    checkpoint: Path, settings: dict[str, Any], message: str
) -> None:
    new = captioner(2, **settings)
    with pytest.raises(CaptioningError, match=message) as error:
        initialize(new, checkpoint)
    assert str(checkpoint) in str(error.value)


def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CaptioningError, match=r"missing\.ckpt"):
        initial_vocabulary(str(tmp_path / "missing.ckpt"), None)
