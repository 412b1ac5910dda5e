"""Averaged checkpoints beside the mean of their tensors, and what reads them."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import tiny
import torch
import yaml

from captioning.apps.average import main
from captioning.captioner import Captioner
from captioning.training.initialization import initialize, read_initial

WORDS = ["a", "dog", "runs", "red"]
LSTM = {"_target_": "lstm", "hidden_dim": 12, "embed_dim": 8}
ATTENTION = {"_target_": "attn_lstm", "hidden_dim": 12, "embed_dim": 8, "attention_dim": 6}


def checkpoint(path: Path, seed: int = 0, words: list[str] = WORDS, **settings: Any) -> Path:
    torch.manual_seed(seed)
    captioner = Captioner(words, **{"encoder": tiny.ENCODER, "model": LSTM} | settings)
    captioner.run = {"name": "mine", "config": {"seed": 3, "epochs": 2, "epoch": seed}}
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.strategy.connect(captioner)
    trainer.save_checkpoint(path)
    return path


def average(out: Path, *paths: Path) -> Captioner:
    assert main([*map(str, paths), "--out", str(out)]) == 0
    return Captioner.load_from_checkpoint(out, trust="tiny")


def test_equal_to_the_mean_of_the_tensors(tmp_path: Path) -> None:
    paths = [checkpoint(tmp_path / f"{seed}.ckpt", seed) for seed in range(3)]
    found = average(tmp_path / "out.ckpt", *paths)
    weights = [torch.load(path, weights_only=True)["state_dict"] for path in paths]
    for name, tensor in found.state_dict().items():
        expected = (weights[0][name] + weights[1][name] + weights[2][name]) / 3
        torch.testing.assert_close(tensor, expected)
        assert tensor.dtype == weights[0][name].dtype
    assert any(not torch.equal(each, weights[0][k]) for k, each in found.state_dict().items())
    assert found.run["name"] == "mine, average of 3"
    assert found.run["config"] == {"seed": 3, "epochs": 2, "averaged": 3}


def test_two_copies_caption_as_one_and_start_a_run(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.ckpt")
    found = average(tmp_path / "out.ckpt", path, path)
    one = Captioner.load_from_checkpoint(path, trust="tiny")
    pictures = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    captions = [[h.tokens for h in of] for of in found.generate(pictures)]
    assert captions == [[h.tokens for h in of] for of in one.generate(pictures)]
    torch.manual_seed(9)
    started = Captioner(WORDS, encoder=tiny.ENCODER, model=LSTM)
    started.encoder.load_state_dict(one.encoder.state_dict())
    started.encoder.fingerprint = one.encoder.fingerprint
    initial = read_initial(str(tmp_path / "out.ckpt"), None)
    assert initial is not None
    initialize(started, initial)
    for name, tensor in one.decoder.state_dict().items():
        assert torch.equal(started.decoder.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"words": WORDS[::-1]}, "another vocabulary"),
        ({"model": LSTM | {"hidden_dim": 14}}, "another model"),
        ({"model": ATTENTION}, "another model"),
        ({"encoder": tiny.ENCODER | {"image_size": 64}}, "another encoder"),
    ],
)
def test_what_cannot_be_averaged_is_refused(
    other: dict[str, Any], what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [checkpoint(tmp_path / "a.ckpt"), checkpoint(tmp_path / "b.ckpt", **other)]
    assert main([*map(str, paths), "--out", str(tmp_path / "out.ckpt")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: ckpt={paths[1]}: this checkpoint has {what}")
    assert str(paths[0]) in error
    assert not (tmp_path / "out.ckpt").exists()


def test_other_dropout_is_averaged(tmp_path: Path) -> None:
    other = checkpoint(tmp_path / "b.ckpt", model=LSTM | {"dropout": 0.1})
    average(tmp_path / "out.ckpt", checkpoint(tmp_path / "a.ckpt"), other)


def test_one_checkpoint_is_too_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint(tmp_path / "a.ckpt")
    assert main([str(path), "--out", str(tmp_path / "out.ckpt")]) == 1
    assert "at least two" in capsys.readouterr().err


@pytest.mark.filterwarnings(*tiny.QUIET)
def test_a_run_keeps_its_last_epochs(drawn_pictures: Path, tmp_path: Path) -> None:
    conf = Path(__file__).parents[1] / "conf" / "callbacks" / "last_epochs.yaml"
    settings = yaml.safe_load(conf.read_text())["last_epochs"]
    settings.pop("_target_")
    data = tiny.data(drawn_pictures, tmp_path)
    keep = pl.callbacks.ModelCheckpoint(tmp_path / "kept", **settings | {"save_top_k": 2})
    trainer = tiny.trainer(tmp_path, keep, max_epochs=4, enable_checkpointing=True)
    trainer.fit(tiny.captioner(data), data)
    kept = sorted((tmp_path / "kept").iterdir())
    assert [path.name for path in kept] == ["epoch=2.ckpt", "epoch=3.ckpt"]
    average(tmp_path / "out.ckpt", *kept)
