"""``init_from``: weights and vocabulary of another run, and nothing else of it."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import tiny
import torch

from captioning.captioner import NAMES, Captioner
from captioning.models.encoders.base import GridEncoder
from captioning.support.errors import CaptioningError
from captioning.training.initialization import (
    Initial,
    initialize,
    read_initial,
    with_trained_parts,
)
from captioning.training.resume import check_resumable

WORDS = ["a", "dog", "runs"]


def initial(path: Path) -> Initial:
    found = read_initial(str(path), None)
    assert found is not None
    return found


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
    initialize(new, initial(checkpoint))
    trained = Captioner.load_from_checkpoint(checkpoint)
    for name, value in trained.decoder.state_dict().items():
        torch.testing.assert_close(new.decoder.state_dict()[name], value, rtol=0, atol=0)
    assert not torch.equal(new.decoder.output_words.weight, before)
    assert new.objective.scale.item() == 1.0
    assert trained.objective.scale.item() == 7.0


def test_another_objective_can_follow(checkpoint: Path) -> None:
    new = captioner(2, objective="self_critical")
    initialize(new, initial(checkpoint))
    assert int(new.objective.sampling.captions) == 5


def test_the_vocabulary_is_that_of_the_checkpoint(checkpoint: Path) -> None:
    assert list(initial(checkpoint).vocabulary.words) == WORDS
    assert read_initial(None, None) is None
    assert read_initial(None, str(checkpoint)) is None


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("decoder", ["attn_lstm", "transformer"])
def test_new_words_start_from_the_mean_and_old_ones_stay(
    tmp_path: Path, decoder: str, tied: bool
) -> None:
    sizes = tiny.MODEL if decoder == "attn_lstm" else {"hidden_dim": 8, "heads": 2, "layers": 1}
    model = {"_target_": decoder, **sizes, "tie_embeddings": tied}
    old = captioner(1, model=model)
    path = save(old, tmp_path / "best.ckpt")
    new = captioner(2, words=[*WORDS, "cat", "sleeps"], model=model)
    initialize(new, initial(path))
    before, after = old.decoder.state_dict(), new.decoder.state_dict()
    by_word = ("embedding.weight", "output_words.weight", "output_words.bias")
    for name, value in before.items():
        rows = after[name][: len(value)] if name in by_word else after[name]
        torch.testing.assert_close(rows, value, rtol=0, atol=0)
    for name in by_word:
        assert len(after[name]) == len(before[name]) + 2
        mean = before[name][4:].mean(0)  # of the words, without the special tokens
        for row in after[name][len(before[name]) :]:
            torch.testing.assert_close(row, mean)
    assert (new.decoder.embedding.weight is new.decoder.output_words.weight) == tied
    # Larger steps are for these rows: see callbacks/new_words.py.
    assert new.run["new_rows"] == {f"decoder.{name}": 4 + len(WORDS) for name in by_word}
    again = captioner(2, words=WORDS, model=model)
    initialize(again, initial(path))
    assert "new_rows" not in again.run

    # What the model says of the old words changes little.
    grid = torch.rand(2, 49, 128)
    tokens = torch.tensor([[[1, 4, 5, 6, 2]], [[1, 4, 6, 5, 2]]])
    old.decoder.eval()
    new.decoder.eval()
    first, second = (each.decoder(grid, tokens).token_log_probs() for each in (old, new))
    assert (second <= first).all()
    assert (first - second).max() < torch.log(torch.tensor(1 + 2 / 3))


def test_words_can_only_be_added_at_the_end(checkpoint: Path) -> None:
    new = captioner(2, words=["dog", "a", "runs", "cat"])
    with pytest.raises(CaptioningError, match=r"another vocabulary \(3 words\), to which"):
        initialize(new, initial(checkpoint))


def test_as_trained_takes_the_settings_of_the_model(checkpoint: Path) -> None:
    given: dict[str, Any] = {"model": {"dropout": 0.1}, "encoder": {}, "seed": 3}
    filled = with_trained_parts(given, initial(checkpoint))
    assert filled["model"]["_target_"].endswith("AttentionLSTM")
    assert filled["model"]["hidden_dim"] == tiny.MODEL["hidden_dim"]
    assert filled["model"]["dropout"] == 0.1
    assert filled["encoder"] == tiny.ENCODER
    assert filled["seed"] == 3
    own = {"model": {"_target_": "lstm"}, "encoder": {"_target_": "vgg16"}}
    assert with_trained_parts(own, None) == own
    with pytest.raises(CaptioningError, match="encoder=as_trained needs init_from=CKPT"):
        with_trained_parts({"model": {"_target_": "lstm"}, "encoder": {}}, None)


def test_as_trained_reads_no_weights_of_an_encoder(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = initial(checkpoint)
    encoder = {"_target_": "vgg16", "weights": "imagenet", "image_size": 32}
    found.checkpoint["hyper_parameters"]["encoder"] = encoder
    asked = []
    find_weights = GridEncoder.find_weights

    def noting(self: GridEncoder, weights: str) -> Any:
        asked.append(weights)
        return find_weights(self, weights)

    monkeypatch.setattr(GridEncoder, "find_weights", noting)
    filled = with_trained_parts({"model": {}, "encoder": {}}, found)
    assert filled["encoder"] == encoder | {"_target_": NAMES["encoder"]["vgg16"]}
    assert asked == ["random"]


def test_as_trained_reads_no_file_that_a_checkpoint_names(checkpoint: Path) -> None:
    found = initial(checkpoint)
    encoder = {"_target_": "vgg16", "weights": "/home/somebody/vgg.pth"}
    found.checkpoint["hyper_parameters"]["encoder"] = encoder
    with pytest.raises(CaptioningError, match="which is not read for a checkpoint"):
        with_trained_parts({"model": {}, "encoder": {}}, found)


def test_as_trained_imports_no_code_of_strangers(tmp_path: Path) -> None:
    path = save(captioner(1), tmp_path / "best.ckpt")
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["model"]["_target_"] = "this_package.of_a_stranger.Decoder"
    torch.save(content, path)
    with pytest.raises(CaptioningError, match="would run the code of this_package") as error:
        with_trained_parts({"model": {}, "encoder": {}}, initial(path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": {"_target_": "lstm"}}, "another model .*the same model"),
        ({"words": ["a", "cat"]}, "another vocabulary"),
        ({"encoder": "efficientnet_lite"}, "another encoder .*the same encoder"),
    ],
)
def test_what_does_not_fit_is_named(
    checkpoint: Path, settings: dict[str, Any], message: str
) -> None:
    new = captioner(2, **settings)
    with pytest.raises(CaptioningError, match=message) as error:
        initialize(new, initial(checkpoint))
    assert str(checkpoint) in str(error.value)


def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CaptioningError, match=r"missing\.ckpt"):
        read_initial(str(tmp_path / "missing.ckpt"), None)


def test_an_encoder_can_be_trained_afterwards_and_be_frozen_again(
    checkpoint: Path, tmp_path: Path
) -> None:
    together = captioner(2, encoder=TRAINED)
    initialize(together, initial(checkpoint))
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
    initialize(alone, initial(trained))
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
    initialize(first, initial(trained))
    last = save(first, tmp_path / "last.ckpt")
    check_resumable(last, resumed)
    assert same_weights(resumed.encoder, together.encoder)
    assert resumed.encoder.fingerprint == first.encoder.fingerprint


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    mine, others = a.state_dict(), b.state_dict()
    return mine.keys() == others.keys() and all(
        torch.equal(value, others[name]) for name, value in mine.items()
    )
