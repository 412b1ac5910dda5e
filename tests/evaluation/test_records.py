"""What ``results.json`` and the report say of the reward of self-critical training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import tiny

from captioning.captioner import Captioner
from captioning.decoding import Greedy
from captioning.ensembles import load_captioner
from captioning.evaluation.records import arithmetic_of, write_record
from captioning.reporting.report import write_report
from captioning.reporting.results import Data, read_results

LSTM = {"_target_": "lstm", "hidden_dim": 12, "embed_dim": 8}
SELF_CRITICAL = {"_target_": "self_critical", "end_token": False, "bleu_weight": 0.5}
SIGNATURE = "NO<EOS>_wInit+Cider-D[n4,s6.0]+0.5*BLEU[n4]+average[nspi5]"


def captioner(objective: Any) -> Captioner:
    return Captioner(["a", "dog"], encoder=tiny.ENCODER, model=LSTM, objective=objective)


def reward_of(made: Captioner, folder: Path) -> str | None:
    data = Data(name="tiny", fingerprint="0", images={"test": 0})
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    arithmetic = arithmetic_of(trainer, "torch")
    write_record(folder, {}, "name", "command", made, data, Greedy(), {}, {}, arithmetic)
    return read_results(folder / "results.json").reward


def test_the_reward_is_recorded_and_shown(tmp_path: Path) -> None:
    assert reward_of(captioner(SELF_CRITICAL), tmp_path) == SIGNATURE
    page = write_report(tmp_path, "test", [], progress=False).read_text()
    assert SIGNATURE.replace("<", "&lt;").replace(">", "&gt;") in page
    assert reward_of(captioner("cross_entropy"), tmp_path) is None
    assert "<dt>reward" not in write_report(tmp_path, "test", [], progress=False).read_text()


@pytest.mark.parametrize(
    ("second", "reward"), [(SELF_CRITICAL, SIGNATURE), ("cross_entropy", None)]
)
def test_an_ensemble_has_the_reward_that_its_members_share(
    second: Any, reward: str | None, tmp_path: Path
) -> None:
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    paths = []
    for place, objective in enumerate((SELF_CRITICAL, second)):
        trainer.strategy.connect(captioner(objective))
        paths.append(tmp_path / f"{place}.ckpt")
        trainer.save_checkpoint(paths[-1])
    assert reward_of(load_captioner(paths, trust="tiny"), tmp_path) == reward
