"""Captioners of several checkpoints: which belong together, and what they are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import tiny
import torch
from PIL import Image
from torch import Tensor

from captioning.captioner import Captioner
from captioning.data.views import ORIGINAL, find_views
from captioning.ensembles import load_captioner, shared_settings
from captioning.models.decoders.ensemble import Ensemble
from captioning.models.encoders.joint import JointEncoder
from captioning.pretrained.onnx import save_onnx
from captioning.support.errors import CaptioningError
from captioning.support.special_tokens import END, START

WORDS = ["a", "dog", "runs", "red"]
VGG = {"_target_": "captioning.models.encoders.vgg16.VGG16", "weights": "random", "image_size": 32}
ATTENTION = tiny.MODEL | {"_target_": "attn_lstm"}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), np.uint8))
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
    members = captioner.run.pop("members")
    assert [each["config"]["seed"] for each in members] == [1, 2]
    assert captioner.run == {"name": "ensemble of 2", "config": config}
    assert [*captioner.decoder.words][-4:] == WORDS  # for decoding.required and the like


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        ({}, {"words": WORDS[::-1]}, "another vocabulary"),
        ({}, {"words": [*WORDS, "cat"]}, "another vocabulary"),
        ({"encoder": VGG}, {"encoder": VGG | {"resize": "crop"}}, "an encoder that sees another"),
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


def probabilities(captioner: Captioner, picture: Image.Image, words: list[int]) -> Tensor:
    """The probabilities of each of the words of a caption and of its end, from pixels on."""
    pixels = captioner.encoder.preprocessing(picture)[None]
    tokens = torch.tensor([[[START, *words, END]]])
    with torch.no_grad():
        result = captioner.eval().decoder(captioner.encoder(pixels), tokens)
    order = result.positions.argsort()
    return result.logits[order].softmax(-1)


FINE = {"encoder": {"image_size": 64}}  # 15 x 15 locations; 7 x 7 without it


@pytest.mark.parametrize(
    "settings",
    [
        [{}, {"encoder": VGG}],
        [FINE, {}],
        [{"encoder": VGG}, {"encoder": VGG | {"image_size": 64, "pool": 2}}, {"encoder": VGG}],
        [{"encoder": {"trainable": True}}, {"encoder": {"trainable": True}, "tuned": True}],
    ],
    ids=["networks", "sizes", "pooled", "trained"],
)
def test_members_with_encoders_of_their_own_average_their_probabilities(
    tmp_path: Path, settings: list[dict[str, Any]]
) -> None:
    paths = [
        checkpoint(tmp_path / f"{n}.ckpt", n, model=ATTENTION, **each)
        for n, each in enumerate(settings)
    ]
    together = load_captioner(paths, trust="tiny", backend="torch")
    alone = [load_captioner(path, trust="tiny", backend="torch") for path in paths]
    words = [5, 6, 4]
    expected = torch.stack([probabilities(each, PICTURE, words) for each in alone]).mean(0)
    torch.testing.assert_close(probabilities(together, PICTURE, words), expected)
    assert together.encoder.fingerprint not in {each.encoder.fingerprint for each in alone}
    caption = together.caption(PICTURE)
    finest = max(each.encoder.grid_size for each in alone)
    assert caption.attention.shape[1:] == finest
    torch.testing.assert_close(
        torch.as_tensor(caption.attention).flatten(1).sum(1),
        torch.ones(len(caption.attention)),
    )
    views = ("original", "flip")
    both = [view.pixels(PICTURE, together.encoder.preprocessing) for view in find_views(views)]
    (of_views,) = together.generate(torch.stack(both)[None], views=views)
    assert of_views[0].attention.shape[-1] == finest[0] * finest[1]


def test_members_with_one_encoder_share_its_grid(tmp_path: Path) -> None:
    settings = [{"encoder": VGG}, FINE, {"encoder": VGG}]
    paths = [checkpoint(tmp_path / f"{n}.ckpt", n, **each) for n, each in enumerate(settings)]
    encoder = load_captioner(paths, trust="tiny").encoder
    assert isinstance(encoder, JointEncoder)
    assert [member.name for member in encoder.members] == ["vgg16", "tiny"]
    assert (encoder.locations, encoder.channels, encoder.grid_size) == (4 + 225, 512, (15, 15))


def test_several_encoders_cannot_be_exported_as_one(tmp_path: Path) -> None:
    settings = [{"encoder": VGG}, FINE]
    paths = [checkpoint(tmp_path / f"{n}.ckpt", n, **each) for n, each in enumerate(settings)]
    together = load_captioner(paths, trust="tiny")
    with pytest.raises(CaptioningError, match="several models: export each of them"):
        save_onnx(together, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_attention_of_a_coarse_grid_is_shared_among_the_locations_that_it_covers() -> None:
    coarse = torch.tensor([0.4, 0.0, 0.0, 0.6])  # 2 x 2
    fine = coarse @ torch.from_numpy(ORIGINAL.placement((2, 2), (4, 6)))
    expected = torch.zeros(4, 6)
    expected[:2, :3], expected[2:, 3:] = 0.4 / 6, 0.6 / 6
    torch.testing.assert_close(fine.reshape(4, 6), expected)


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(CaptioningError, match="ckpt=\\[\\] is empty"):
        load_captioner([])


def test_settings_are_shared_if_all_have_them() -> None:
    configs = [
        {"a": 1, "b": {"c": [1], "d": 2}, "e": {"f": 1}, "g": 0},
        {"a": 1, "b": {"c": [1], "d": 3}, "e": None},
    ]
    assert shared_settings(configs) == {"a": 1, "b": {"c": [1]}}
