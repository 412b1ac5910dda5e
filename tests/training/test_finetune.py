"""``experiment=finetune``, as a user runs it: a model of ten pictures goes on with other words."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from ten_pictures import CAPTIONS, write_csv, write_sidecars

from captioning.captioner import Captioner
from captioning.support.special_tokens import SPECIAL_WORDS

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.filterwarnings(each) for each in tiny.QUIET]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    """Run ``python train.py OVERRIDES`` in this process; returns the run's folder."""

    def train(name: str, *overrides: str) -> Path:
        folder = tmp_path / name
        argv = [
            "train.py", f"data.cache={tmp_path}", f"hydra.run.dir={folder}", "backend=torch",
            "trainer.accelerator=cpu", "trainer.max_epochs=1", "decoding=greedy", *overrides,
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", argv)
        assert not tiny.status_of_script("train.py"), capsys.readouterr().err
        return folder

    return train


def test_a_model_of_own_data_goes_on_with_new_words(tmp_path: Path, train: Any) -> None:
    base = train(
        "base", "data=own", f"data.root={write_csv(tmp_path / 'a', ';') / 'labels.csv'}",
        f"encoder._target_={tiny.ENCODER['_target_']}", "encoder.weights=random",
        "encoder.image_size=32", "~encoder.resize", "~encoder.pool", "model.hidden_dim=16",
        "model.embed_dim=8", "model.attention_dim=4", "data.min_count=1",
    )  # fmt: skip
    other = write_sidecars(tmp_path / "b")
    for text in other.rglob("*.txt"):
        text.write_text(text.read_text().replace("circle", "disc"))
    tuned = train(
        "tuned", "experiment=finetune", f"init_from={base}/checkpoints/best.ckpt",
        f"data.root={other}", "+model.dropout=0.1",
    )  # fmt: skip

    before, after = (
        Captioner.load_from_checkpoint(run / "checkpoints" / "best.ckpt") for run in (base, tuned)
    )
    words = {word for texts in CAPTIONS.values() for text in texts for word in text.split()}
    assert {*before.vocabulary.words} == {word.strip(",") for word in words}
    assert after.vocabulary.words == (*before.vocabulary.words, "disc")
    settings = json.loads((tuned / "results.json").read_text())["config"]
    assert settings["model"]["hidden_dim"] == 16
    assert settings["model"]["dropout"] == 0.1
    assert settings["encoder"]["image_size"] == 32
    assert settings["data"]["name"] == "own"
    assert after.run["earlier_data"] == ["own"]
    assert after.encoder.fingerprint == before.encoder.fingerprint
    moved = [
        (before.decoder.state_dict()[name] - value[: len(before.decoder.state_dict()[name])])
        .abs()
        .max()
        for name, value in after.decoder.state_dict().items()
    ]
    assert max(moved) < 0.01  # two steps of a small learning rate
    assert torch.stack(moved).max() > 0
    embedding = [each.decoder.embedding.weight.detach() for each in (before, after)]
    start = embedding[0][len(SPECIAL_WORDS) :].mean(0)  # of the new word, which takes larger steps
    assert (embedding[1][-1] - start).abs().max() > 5 * torch.stack(moved).max()


def test_words_are_added_to_a_model_alone(train: Any, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"name a checkpoint, or a model .* by init_from="):
        train("run", "add_words=true", f"data.root={tmp_path}")
