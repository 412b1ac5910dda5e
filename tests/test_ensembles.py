"""Captioners of several checkpoints: which belong together, and what they are."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import tiny
import torch

from captioning.captioner import Captioner
from captioning.ensembles import load_captioner, shared_settings
from captioning.models.decoders.ensemble import Ensemble
from captioning.support.errors import CaptioningError

WORDS = ["a", "dog", "runs", "red"]
VGG = {"_target_": "captioning.models.encoders.vgg16.VGG16", "weights": "random", "image_size": 32}
LSTM = {"_target_": "lstm", "hidden_dim": 12, "embed_dim": 8}


def checkpoint(path: Path, seed: int = 0, words: list[str] = WORDS, **settings: Any) -> Path:
    torch.manual_seed(seed)
    encoder = tiny.ENCODER | settings.pop("encoder", {})
    captioner = Captioner(words, encoder=encoder, model=settings.pop("model", LSTM))
    if settings.pop("tuned", False):  # as training does, which leaves the fingerprint alone
        with torch.no_grad():
            next(p for p in captioner.encoder.parameters() if p.requires_grad).add_(1)
    model = {"hidden_dim": 12, "dropout": seed / 10}
    captioner.run = {"name": "mine", "config": {"seed": seed, "epochs": 2, "model": model}}
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.strategy.connect(captioner)
    trainer.save_checkpoint(path)
    return path


def test_one_checkpoint_is_that_captioner(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.ckpt")
    for given in (path, [path]):
        captioner = load_captioner(given, trust="tiny")
        assert not isinstance(captioner.decoder, Ensemble)
        assert captioner.run["name"] == "mine"


def test_several_have_all_decoders_and_the_settings_that_they_share(tmp_path: Path) -> None:
    paths = [checkpoint(tmp_path / f"{seed}.ckpt", seed) for seed in (1, 2)]
    captioner = load_captioner(paths, trust="tiny")
    assert isinstance(captioner.decoder, Ensemble)
    for path, member in zip(paths, captioner.decoder.members, strict=True):
        alone = Captioner.load_from_checkpoint(path, trust="tiny").decoder.state_dict()
        assert all(torch.equal(value, alone[key]) for key, value in member.state_dict().items())
    config = {"epochs": 2, "model": {"hidden_dim": 12}}
    assert captioner.run == {"name": "ensemble of 2", "config": config}
    assert [*captioner.decoder.words][-4:] == WORDS  # for decoding.required and the like


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        ({}, {"words": WORDS[::-1]}, "another vocabulary"),
        ({}, {"words": [*WORDS, "cat"]}, "another vocabulary"),
        ({}, {"encoder": VGG}, "another encoder (vgg16"),
        ({"encoder": {"trainable": True}},
         {"encoder": {"trainable": True}, "tuned": True}, "another encoder"),
        ({"encoder": VGG}, {"encoder": VGG | {"resize": "crop"}}, "another preprocessing"),
        ({}, {"encoder": {"image_size": 64}}, "another preprocessing"),
        ({"encoder": VGG}, {"encoder": VGG | {"pool": 2}}, "another grid (1 x 1 x 512)"),
    ],
)  # fmt: skip
def test_what_does_not_belong_together_is_refused(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], what: str
) -> None:
    paths = [checkpoint(tmp_path / "a.ckpt", **first), checkpoint(tmp_path / "b.ckpt", **second)]
    with pytest.raises(CaptioningError) as refused:
        load_captioner(paths, trust="tiny")
    sentence = str(refused.value)
    assert sentence.startswith(f"ckpt={paths[1]}: this checkpoint has {what}")
    assert str(paths[0]) in sentence


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(CaptioningError, match="ckpt=\\[\\] is empty"):
        load_captioner([])


def test_settings_are_shared_if_all_have_them() -> None:
    configs = [
        {"a": 1, "b": {"c": [1], "d": 2}, "e": {"f": 1}, "g": 0},
        {"a": 1, "b": {"c": [1], "d": 3}, "e": None},
    ]
    assert shared_settings(configs) == {"a": 1, "b": {"c": [1]}}
