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
from captioning.training.resume import check_resumable

WORDS = ["a", "dog", "runs"]


def captioner(seed: int = 0, *, words: list[str] = WORDS, **settings: Any) -> Captioner:
    torch.manual_seed(seed)
    model = {"_target_": "attn_lstm", **tiny.MODEL}
    return Captioner(words, **{"encoder": tiny.ENCODER, "model": model} | settings)


def save(given: Captioner, path: Path) -> Path:
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    given.trainer = trainer
    trainer.strategy.connect(given)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Of a captioner whose objective has parameters and a count of its steps."""
    given = captioner(1, objective={"_target_": "tiny.Weighted"})
    with torch.no_grad():
        given.objective.scale.fill_(7.0)
    return save(given, tmp_path / "best.ckpt")


TRAINED = {**tiny.ENCODER, "trainable": True}


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
        ({"encoder": "efficientnet_lite"}, "another encoder .*the same encoder"),
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


def test_an_encoder_can_be_trained_afterwards_and_be_frozen_again(
    checkpoint: Path, tmp_path: Path
) -> None:
    together = captioner(2, encoder=TRAINED)
    initialize(together, checkpoint)
    start = Captioner.load_from_checkpoint(checkpoint)
    assert same_weights(together.decoder, start.decoder)
    assert same_weights(together.encoder, start.encoder)
    with torch.no_grad():  # as training would
        for parameter in together.encoder.parameters():
            if parameter.requires_grad:
                parameter += 0.01
    trained = save(together, tmp_path / "trained.ckpt")

    alone = captioner(3)
    before = alone.encoder.fingerprint
    initialize(alone, trained)
    assert same_weights(alone.encoder, together.encoder)
    # The features of the old weights are not taken for those of the new ones.
    assert alone.encoder.fingerprint != before
    assert str(trained) in alone.encoder.weights_source
    assert not alone.encoder_trains

    again = Captioner.load_from_checkpoint(save(alone, tmp_path / "alone.ckpt"))
    assert same_weights(again.encoder, together.encoder)
    assert again.encoder.fingerprint == alone.encoder.fingerprint


def test_an_interrupted_run_with_a_trained_encoder_goes_on(tmp_path: Path) -> None:
    together = captioner(2, encoder=TRAINED)
    with torch.no_grad():
        for parameter in together.encoder.parameters():
            parameter += 0.01
    trained = save(together, tmp_path / "trained.ckpt")
    run = {"config": {"init_from": str(trained)}, "data": "d"}
    first, resumed = captioner(3), captioner(4)
    first.run = resumed.run = run
    initialize(first, trained)
    last = save(first, tmp_path / "last.ckpt")
    check_resumable(last, resumed)
    assert same_weights(resumed.encoder, together.encoder)
    assert resumed.encoder.fingerprint == first.encoder.fingerprint


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    mine, others = a.state_dict(), b.state_dict()
    return mine.keys() == others.keys() and all(
        torch.equal(value, others[name]) for name, value in mine.items()
    )
