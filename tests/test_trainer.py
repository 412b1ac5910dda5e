"""The Trainer that a configuration describes."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint

from captioning import trainer as trainers
from captioning.support.errors import CaptioningError
from captioning.trainer import evaluation_trainer, make_trainer, resolve_precision

SPEC = {"_target_": "pytorch_lightning.Trainer", "accelerator": "cpu", "precision": "32-true"}


def test_its_target_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(pl.Trainer):
        """A Trainer of a user's."""

    module = ModuleType("somebodys")
    module.Own = Own  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somebodys", module)
    assert type(make_trainer({**SPEC, "_target_": "somebodys.Own"}, tmp_path)) is Own
    assert type(make_trainer(SPEC, tmp_path)) is pl.Trainer
    with pytest.raises(CaptioningError, match=r"trainer._target_=os.system is not a Trainer"):
        make_trainer({**SPEC, "_target_": "os.system"}, tmp_path)


@pytest.mark.parametrize(
    ("setting", "value", "parts"),
    [
        ("callbacks", [], ["trainer.callbacks cannot be set", "+callbacks.mine._target_="]),
        ("logger", False, ["trainer.logger cannot be set", "logger=tensorboard"]),
        ("default_root_dir", "x", ["trainer.default_root_dir", "hydra.run.dir"]),
        ("inference_mode", True, ["trainer.inference_mode", "decoding"]),
        ("max_epoch", 3, ["trainer.max_epoch", "did you mean max_epochs?"]),
        ("precision", 7, ["trainer.precision=7"]),
        ("max_epochs", "many", ["trainer.max_epochs=many", "integer"]),
        ("accelerator", "abacus", ["trainer", "abacus"]),
    ],
)
def test_what_cannot_be_set_is_one_sentence(
    tmp_path: Path, setting: str, value: Any, parts: list[str]
) -> None:
    with pytest.raises(CaptioningError) as error:
        make_trainer({**SPEC, setting: value}, tmp_path)
    assert all(part in str(error.value) for part in parts), error.value
    assert "\n" not in str(error.value)


def test_what_the_program_chooses_can_be_chosen_otherwise(tmp_path: Path) -> None:
    assert make_trainer(SPEC, tmp_path).num_sanity_val_steps == 0
    assert make_trainer({**SPEC, "num_sanity_val_steps": 2}, tmp_path).num_sanity_val_steps == 2
    accumulated = make_trainer({**SPEC, "accumulate_grad_batches": 3}, tmp_path)
    assert accumulated.accumulate_grad_batches == 3


def test_checkpoints_are_those_of_its_callbacks_alone(tmp_path: Path) -> None:
    assert make_trainer(SPEC, tmp_path, [LearningRateMonitor()]).checkpoint_callbacks == []
    kept = ModelCheckpoint(tmp_path)
    assert make_trainer(SPEC, tmp_path, [kept]).checkpoint_callbacks == [kept]


@pytest.mark.parametrize(("fast", "resolved"), [("bf16", "bf16-mixed"), ("fp32", "32-true")])
def test_auto_becomes_what_the_device_computes_in(
    fast: str, resolved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainers, "choose_precision", lambda *_: fast)
    assert resolve_precision("auto", "cpu") == resolved
    assert resolve_precision("16-mixed", "cpu") == "16-mixed"


def test_a_split_is_decoded_on_one_device(tmp_path: Path) -> None:
    spec = {**SPEC, "devices": 2, "strategy": "ddp", "limit_test_batches": 3, "max_epochs": 4}
    tester = evaluation_trainer(spec, tmp_path)
    assert tester.num_devices == 1
    assert tester.limit_test_batches == 3
    assert tester.precision == "32-true"
