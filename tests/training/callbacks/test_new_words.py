"""Rows of new words against the same optimiser with a larger learning rate."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from captioning.captioner import Captioner
from captioning.support.errors import CaptioningError
from captioning.training.callbacks.new_words import NewWords

WORDS = ["a", "dog", "runs", "rex"]
NEW = {"decoder.embedding.weight": 7, "decoder.output_words.weight": 7}


def steps(callback: NewWords | None, lr: float, run: dict[str, Any]) -> dict[str, Tensor]:
    """The weights after three steps of AdamW with gradients that do not depend on them."""
    torch.manual_seed(0)
    captioner = Captioner(WORDS, encoder=tiny.ENCODER, model={"_target_": "lstm", **SIZES})
    captioner.run = run
    optimizer = torch.optim.AdamW(captioner.parameters(), lr=lr, weight_decay=0.0)
    trainer = tiny.trainer(Path())
    trainer.optimizers = [optimizer]
    if callback:
        callback.on_train_start(trainer, captioner)
    for _ in range(3):
        for parameter in captioner.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    if callback:
        trained = {name: value.detach().clone() for name, value in captioner.named_parameters()}
        callback.on_train_end(trainer, captioner)
        optimizer.step()  # of somebody else, whose new rows go no further than others
        weight = captioner.decoder.embedding.weight
        assert 0 < (weight - trained["decoder.embedding.weight"]).abs().max() < 3 * lr
        return trained
    return {name: value.detach().clone() for name, value in captioner.named_parameters()}


SIZES = {"hidden_dim": 5, "embed_dim": 4}


def test_new_rows_are_trained_as_with_a_larger_learning_rate_and_nothing_else_is() -> None:
    found = steps(NewWords(factor=20.0), 0.001, {"new_rows": NEW})
    slow, fast = steps(None, 0.001, {}), steps(None, 0.02, {})
    for name, value in found.items():
        first = NEW.get(name, len(value)) if value.ndim else None
        torch.testing.assert_close(value[:first], slow[name][:first], rtol=0, atol=0)
        if first is not None and first < len(value):
            torch.testing.assert_close(value[first:], fast[name][first:], rtol=1e-4, atol=1e-6)
            assert not torch.allclose(value[first:], slow[name][first:])


def test_a_run_without_new_words_is_not_changed() -> None:
    found, plain = steps(NewWords(), 0.001, {}), steps(None, 0.001, {})
    assert all(torch.equal(value, plain[name]) for name, value in found.items())


def test_a_factor_below_one_is_refused() -> None:
    with pytest.raises(CaptioningError, match=r"callbacks\.new_words\.factor=0\.5"):
        NewWords(factor=0.5)
