"""Suggestions for mistyped names."""

import pytest

from captioning.support.nearest import did_you_mean, nearest
from captioning.support.renamed import renamed

KEYS = (
    *("model", "model.attention_dim", "model.dropout", "model.gate", "optimizer.lr", "seed"),
    *("data.batch_size", "data.eval_batch_size", "callbacks.early_stopping"),
    *("callbacks.early_stopping.mode", "trainer.max_epochs", "decoding.beam_size"),
)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("model.attention_dims", ["model.attention_dim"]),
        ("modle", ["model"]),
        ("modle.dropout", ["model.dropout"]),
        ("attention_dim", ["model.attention_dim"]),
        ("lr", ["optimizer.lr"]),
        ("model.lr", ["optimizer.lr"]),
        ("batch_size", ["data.batch_size"]),
        ("callbacks.early_stoping", ["callbacks.early_stopping"]),
        ("decoding.beamsize", ["decoding.beam_size"]),
        ("gpus", []),
        ("", []),
    ],
)
def test_the_nearest(given: str, meant: list[str]) -> None:
    assert nearest(given, KEYS) == meant


def test_the_clause() -> None:
    assert did_you_mean("sed", ["seed", "send", "model"]) == "did you mean seed or send?"
    assert did_you_mean("gpus", ["seed"]) == ""


def test_an_old_name_is_answered_with_the_new_one() -> None:
    assert renamed("compile") == (
        "this setting is now called backend, which takes auto, torch or native"
    )
    assert renamed("schedule.warmup", ["scheduler.warmup"]) == (
        "this setting is now called scheduler.warmup"
    )
    assert renamed("schedule.other") == "this setting is now called scheduler"
    assert renamed("compile", ["device"]) is None  # this script never had that setting
    assert renamed("seed") is None
