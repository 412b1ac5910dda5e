"""The captioner under Lightning's Trainer alone, as in a notebook: no script of ours takes part."""

import csv
import runpy
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import tiny
import torch
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.tuner.tuning import Tuner

from captioning.captioner import NAMES, Captioner
from captioning.data.datamodule import CaptionDataModule
from captioning.decoding import Beam, Greedy
from captioning.metrics import METRICS, score_captions
from captioning.models.decoders.attn_lstm import AttentionLSTM
from captioning.support.errors import CaptioningError

ROOT = Path(__file__).parents[1]

pytestmark = [pytest.mark.filterwarnings(each) for each in tiny.QUIET]


@pytest.fixture
def data(drawn_pictures: Path, tmp_path: Path) -> CaptionDataModule:
    pl.seed_everything(3, verbose=False)
    return tiny.data(drawn_pictures, tmp_path)


def captions_by_hand(model: Captioner, data: CaptionDataModule, split: str) -> dict[str, str]:
    """The greedy captions of a split, from the pixels of one image at a time."""
    encoder = model.encoder
    found = {}
    for image in data.images(split):
        from captioning.data.images import load_rgb

        pixels = encoder.preprocessing(load_rgb(image.path))[None]
        ((best, *_),) = Greedy()(model.decoder, encoder(pixels))
        found[image.id] = model.vocabulary.decode(best.tokens)
    return found


def test_the_four_loops_need_a_trainer_and_a_data_module_alone(
    data: CaptionDataModule, tmp_path: Path
) -> None:
    model = tiny.captioner(data, optimizer={"_target_": "torch.optim.AdamW", "lr": 0.03})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = tiny.trainer(tmp_path, max_epochs=8)
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == 24
    after = model.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)

    expected = captions_by_hand(model, data, "dev")
    assert len(set(expected.values())) > 1  # it has learned that pictures differ
    (scores,) = trainer.validate(model, datamodule=data, verbose=False)
    assert scores.keys() == {"dev/loss", "dev/perplexity", "dev/CIDEr"} | {
        f"dev/BLEU-{n}" for n in (1, 2, 3, 4)
    }
    by_hand = score_captions(expected, data.references("dev"), ("BLEU", "CIDEr")).corpus
    assert {f"dev/{name}": pytest.approx(score) for name, score in by_hand.items()}.items() <= (
        scores.items()
    )
    (scores,) = trainer.test(model, datamodule=data, verbose=False)
    by_hand = score_captions(
        captions_by_hand(model, data, "test"), data.references("test"), METRICS
    ).corpus
    assert scores == {f"test/{name}": pytest.approx(score) for name, score in by_hand.items()}

    data.predict_split = "dev"
    predicted = trainer.predict(model, datamodule=data)
    assert predicted is not None
    assert [entry for batch in predicted for entry in batch] == [  # type: ignore[union-attr]
        {"image_id": image, "caption": caption} for image, caption in expected.items()
    ]


def test_a_trial_run_of_one_batch_leaves_nothing(data: CaptionDataModule, tmp_path: Path) -> None:
    record = tiny.Record()
    model = tiny.captioner(data)
    trainer = tiny.trainer(tmp_path / "run", record, fast_dev_run=True)
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    trainer.predict(model, datamodule=data)
    assert len(record.losses) == 1
    assert not list((tmp_path / "run").rglob("*"))


def test_validation_without_references_says_what_to_do(
    data: CaptionDataModule, tmp_path: Path
) -> None:
    model = tiny.captioner(data)
    data.open_features(model.encoder)
    with pytest.raises(CaptioningError, match=r"no references .* CaptionDataModule"):
        tiny.trainer(tmp_path).validate(model, data.val_dataloader(), verbose=False)


def test_what_is_validated_against_follows_the_data(
    data: CaptionDataModule, drawn_pictures: Path, tmp_path: Path
) -> None:
    """A second data module brings references of its own."""
    model = tiny.captioner(data)
    trainer = tiny.trainer(tmp_path)
    (first,) = trainer.validate(model, datamodule=data, verbose=False)
    other = tiny.data(drawn_pictures, tmp_path)
    other.read_text()
    references = {image: ["quite something else"] for image in data.references("dev")}
    other.references = lambda split: references  # type: ignore[method-assign,assignment]
    (second,) = trainer.validate(model, datamodule=other, verbose=False)
    assert second["dev/BLEU-1"] < 1e-9 < first["dev/BLEU-1"]
    assert second["dev/loss"] == first["dev/loss"]


def test_references_that_the_user_sets_stay(data: CaptionDataModule, tmp_path: Path) -> None:
    model = tiny.captioner(data)
    trainer = tiny.trainer(tmp_path)
    (first,) = trainer.validate(model, datamodule=data, verbose=False)
    references = {image: ["quite something else"] for image in data.references("dev")}
    model.set_references(references, ["ROUGE-L", "BLEU"])
    for _ in range(2):
        (second,) = trainer.validate(model, datamodule=data, verbose=False)
        assert second["dev/BLEU-1"] < 1e-9 < first["dev/BLEU-1"]
        assert {*second} - {*first} == {"dev/ROUGE-L"}


def test_validation_by_mbr_has_the_captions_of_the_train_split(
    data: CaptionDataModule, tmp_path: Path
) -> None:
    mbr = {"_target_": "mbr", "beam_size": 2, "max_length": 3, "document_frequencies": "train"}
    model = tiny.captioner(data, validation=mbr)
    (scores,) = tiny.trainer(tmp_path).validate(model, datamodule=data, verbose=False)
    assert "dev/CIDEr" in scores


@pytest.mark.parametrize("objective", ["cross_entropy", f"{tiny.__name__}.Weighted"])
def test_a_resumed_run_gives_the_losses_of_one_that_was_not_interrupted(
    data: CaptionDataModule, drawn_pictures: Path, tmp_path: Path, objective: str
) -> None:
    """To the last bit, with dropout, and whatever the seed of the second process is."""
    settings: dict[str, Any] = {"objective": {"_target_": objective}} if "." in objective else {}
    whole, rest = tiny.Record(), tiny.Record()

    def trainer(record: tiny.Record) -> pl.Trainer:
        kept = ModelCheckpoint(tmp_path / "kept", filename="{epoch}", save_top_k=-1)
        return tiny.trainer(tmp_path, record, kept, max_epochs=3, enable_checkpointing=True)

    model = tiny.captioner(data, **settings)
    trainer(whole).fit(model, datamodule=data)
    assert len(set(whole.losses)) == 9

    pl.seed_everything(4, verbose=False)
    other = tiny.data(drawn_pictures, tmp_path)
    again = tiny.captioner(other, **settings)
    assert not torch.equal(again.decoder.embedding.weight, model.decoder.embedding.weight)
    checkpoint = tmp_path / "kept" / "epoch=0.ckpt"
    trainer(rest).fit(again, datamodule=other, ckpt_path=str(checkpoint))
    assert rest.ids == whole.ids[3:]
    assert rest.losses == whole.losses[3:]
    states = model.state_dict(), again.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    if settings:
        assert model.objective.calls == 9  # its buffer, which is no weight
        assert model.objective.scale != 1  # its parameter was optimised


def test_lightnings_own_callbacks(data: CaptionDataModule, tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, filename="best", monitor="dev/CIDEr", mode="max")
    stopping = EarlyStopping(monitor="dev/loss", mode="min", patience=1)
    rates = LearningRateMonitor(logging_interval="step")
    model = tiny.captioner(
        data, optimizer={"_target_": "torch.optim.SGD", "lr": 0.0}, encoder_lr=0.0
    )
    trainer = tiny.trainer(
        tmp_path, best, stopping, rates, max_epochs=9, enable_checkpointing=True,
        logger=CSVLogger(tmp_path, name="", version="logs"), log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    assert trainer.current_epoch == 2  # with a rate of 0, the second epoch is no better
    assert stopping.stopped_epoch == 1
    assert best.best_model_score is not None
    kept = Captioner.load_from_checkpoint(best.best_model_path)
    (scores,) = trainer.validate(kept, datamodule=data, verbose=False)
    assert scores["dev/CIDEr"] == pytest.approx(float(best.best_model_score))
    with (tmp_path / "logs" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"lr-SGD/pg1", "lr-SGD/pg2"} <= rows[0].keys()
    assert sum(row["lr-SGD/pg1"] != "" for row in rows) == 6


def test_the_learning_rate_finder_sets_the_rate_and_leaves_no_other_trace(
    data: CaptionDataModule, drawn_pictures: Path, tmp_path: Path
) -> None:
    finder = Tuner(tiny.trainer(tmp_path, max_epochs=20)).lr_find(
        (model := tiny.captioner(data)), datamodule=data, num_training=25, max_lr=0.1
    )
    assert finder is not None
    assert model.lr == finder.suggestion()
    assert model.lr not in (1e-3, None)

    def losses(model: Captioner, data: CaptionDataModule) -> tuple[list[float], float]:
        record = tiny.Record()
        pl.seed_everything(3, verbose=False)
        trainer = tiny.trainer(tmp_path, record)
        trainer.fit(model, datamodule=data)
        rates = [group["initial_lr"] for group in trainer.optimizers[0].param_groups]
        assert rates == [finder.suggestion()] * 2
        return record.losses, float(trainer.callback_metrics["train/loss_epoch"])

    pl.seed_everything(3, verbose=False)
    fresh = tiny.captioner(tiny.data(drawn_pictures, tmp_path))
    fresh.lr = model.lr
    found, mean = losses(model, data)
    assert found == losses(fresh, tiny.data(drawn_pictures, tmp_path))[0]
    assert mean == pytest.approx(sum(found) / len(found))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of weights for the encoder that are not its random ones."""
    state = tiny.Encoder().state_dict()
    generator = torch.Generator().manual_seed(9)
    path = tmp_path / "weights.pth"
    torch.save(
        {k: v + torch.rand(v.shape, generator=generator) / 8 for k, v in state.items()}, path
    )
    return path


def test_a_checkpoint_holds_all_that_captions_need(
    data: CaptionDataModule, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of the encoder among it, also where these cannot be had again."""
    model = tiny.captioner(data, encoder=tiny.ENCODER | {"weights": str(weights)})
    trainer = tiny.trainer(tmp_path, max_epochs=6)
    trainer.fit(model, datamodule=data)
    path = tmp_path / "captioner.ckpt"
    trainer.save_checkpoint(path)
    weights.unlink()
    for source in ("load_file", "_load_imagenet"):
        monkeypatch.setattr(
            f"captioning.support.weights.{source}", lambda *_: pytest.fail("looked for weights")
        )
    loaded = Captioner.load_from_checkpoint(path)

    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    grid = model.encoder(images)
    assert torch.equal(loaded.encoder(images), grid)
    assert not torch.allclose(tiny.Encoder()(images), grid, rtol=0.1)  # or it would prove nothing
    assert loaded.encoder.fingerprint == model.encoder.fingerprint
    assert loaded.encoder.weights_source == str(weights)
    assert loaded.vocabulary.to_list() == model.vocabulary.to_list()
    for decoding in (Greedy(), Beam(beam_size=3)):
        for ours, theirs in zip(loaded(images, decoding), model(images, decoding), strict=True):
            assert [each.tokens for each in ours] == [each.tokens for each in theirs]
            assert [each.log_prob for each in ours] == [each.log_prob for each in theirs]


class WithVectors(AttentionLSTM):
    """Its embedding is read from a file, and stays as it is."""

    def __init__(self, *sizes: int, vectors: str, **base: Any) -> None:
        super().__init__(*sizes, **base)
        self.vectors = vectors
        self.embedding.requires_grad_(False)

    def initialize(self) -> None:
        found = torch.load(self.vectors)
        for place, word in enumerate(self.words):
            self.embedding.weight[place] = found.get(word, 0.0)


def test_word_vectors_are_read_once_and_then_are_part_of_the_checkpoint(
    data: CaptionDataModule, tmp_path: Path
) -> None:
    file, path = tmp_path / "vectors.pt", tmp_path / "captioner.ckpt"
    data.read_text()
    vectors = {word: torch.randn(8) for word in data.vocabulary.words[::2]}
    torch.save(vectors, file)
    model = tiny.captioner(data, model=WithVectors, vectors=str(file))
    trainer = tiny.trainer(tmp_path, max_epochs=1, limit_train_batches=2)
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(path)
    file.unlink()
    loaded = Captioner.load_from_checkpoint(path).decoder
    for word, row in zip(loaded.words, loaded.embedding.weight, strict=True):
        assert row.equal(vectors.get(word, torch.zeros(8)))


class Halved(AttentionLSTM):
    """Another model with the same parameters."""

    def init_state(self, memory: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {name: value / 2 for name, value in super().init_state(memory).items()}


def test_a_decoder_that_was_replaced_does_not_come_back_as_another(
    data: CaptionDataModule, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, path = tiny.captioner(data), tmp_path / "captioner.ckpt"
    replaced = f"a {__name__}.Halved"
    model.decoder.__class__ = Halved
    trainer = tiny.trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    trainer.fit(model, datamodule=data)
    assert f"was replaced by {replaced}: checkpoints of this training cannot" in caplog.text
    trainer.save_checkpoint(path)
    with pytest.raises(CaptioningError, match=f"AttentionLSTM, was replaced by {replaced}"):
        Captioner.load_from_checkpoint(path)
    with pytest.raises(CaptioningError, match=f"AttentionLSTM, was replaced by {replaced}"):
        model.save_pretrained(tmp_path / "model")


def test_a_class_of_ones_own_is_given_as_it_is(data: CaptionDataModule, tmp_path: Path) -> None:
    model = tiny.captioner(data, model=Halved)
    trainer = tiny.trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(tmp_path / "captioner.ckpt")
    assert type(Captioner.load_from_checkpoint(tmp_path / "captioner.ckpt").decoder) is Halved


def test_an_encoder_that_was_trained_comes_back_as_it_was_trained(
    data: CaptionDataModule, tmp_path: Path
) -> None:
    model = tiny.captioner(data, encoder=tiny.ENCODER | {"trainable": True}, encoder_lr=0.01)
    trainer = tiny.trainer(tmp_path)
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(tmp_path / "captioner.ckpt")
    loaded = Captioner.load_from_checkpoint(tmp_path / "captioner.ckpt")
    ours, theirs = loaded.encoder.state_dict(), model.encoder.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert loaded.encoder_trains
    changed = {
        name
        for name, value in tiny.Encoder().state_dict().items()
        if not torch.equal(value, theirs[name])
    }
    assert changed == {
        f"features.{n}.{part}.{kind}"
        for n in (3, 4)
        for part in ("squeeze", "expand1x1", "expand3x3")
        for kind in ("weight", "bias")
    }


def test_a_loaded_captioner_trains_as_a_new_one_does(
    data: CaptionDataModule, drawn_pictures: Path, tmp_path: Path
) -> None:
    """With dropout, although it has been validated and has captioned meanwhile."""
    trainer = tiny.trainer(tmp_path)
    trainer.fit(tiny.captioner(data), datamodule=data)
    trainer.save_checkpoint(tmp_path / "captioner.ckpt")

    def losses(model: Captioner) -> list[float]:
        """Of three epochs, in which only the noise changes: all images make one batch."""
        record = tiny.Record()
        whole = tiny.data(drawn_pictures, tmp_path, batch_size=99)
        model.optimizer_spec = {"_target_": "torch.optim.SGD", "lr": 0.0}
        tiny.trainer(tmp_path, record, max_epochs=3).fit(model, datamodule=whole)
        assert record.training == [True] * 3
        return record.losses

    loaded = Captioner.load_from_checkpoint(tmp_path / "captioner.ckpt")
    assert all(module.training for module in loaded.decoder.modules())
    assert loaded.training
    tiny.trainer(tmp_path).validate(loaded, datamodule=data, verbose=False)
    loaded(torch.randn(1, 3, 32, 32))
    found = losses(loaded)
    assert min(abs(a - b) for a, b in combinations(found, 2)) > 1e-3
    still = Captioner.load_from_checkpoint(tmp_path / "captioner.ckpt")
    still.decoder.dropout.p = still.decoder.recurrent_dropout.p = 0.0
    first, *rest = losses(still)
    assert rest == pytest.approx([first] * 2)  # in another order of the images


def test_a_run_does_not_go_on_with_another_encoder_or_vocabulary(
    data: CaptionDataModule, drawn_pictures: Path, tmp_path: Path, weights: Path
) -> None:
    """The grids were computed by the encoder that the captioner has, not by the checkpoint's."""
    trainer = tiny.trainer(tmp_path)
    trainer.fit(tiny.captioner(data), datamodule=data)
    path = str(tmp_path / "captioner.ckpt")
    trainer.save_checkpoint(path)
    other = tiny.captioner(data, encoder=tiny.ENCODER | {"weights": str(weights)})
    fingerprint = other.encoder.fingerprint
    for loop in ("fit", "test"):
        with pytest.raises(CaptioningError, match=r"another encoder"):
            getattr(tiny.trainer(tmp_path), loop)(other, datamodule=data, ckpt_path=path)
    assert other.encoder.fingerprint == fingerprint
    fewer = tiny.data(drawn_pictures, tmp_path, min_count=9)
    with pytest.raises(CaptioningError, match=r"another vocabulary"):
        tiny.trainer(tmp_path).fit(tiny.captioner(fewer), datamodule=fewer, ckpt_path=path)


def test_a_checkpoint_of_version_0_1_is_refused_in_a_sentence(
    data: CaptionDataModule, tmp_path: Path
) -> None:
    trainer = tiny.trainer(tmp_path)
    trainer.fit((model := tiny.captioner(data)), datamodule=data)
    path = tmp_path / "captioner.ckpt"
    trainer.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    del content["format"]
    torch.save(content, path)
    with pytest.raises(CaptioningError, match=r"captioner.ckpt: written by version 0.1"):
        Captioner.load_from_checkpoint(path)
    with pytest.raises(CaptioningError, match=r"written by version 0.1"):
        tiny.trainer(tmp_path).fit(model, datamodule=data, ckpt_path=str(path))


def test_an_objectives_parameters_and_buffers_are_part_of_a_checkpoint(
    data: CaptionDataModule, tmp_path: Path
) -> None:
    model = tiny.captioner(data, objective={"_target_": f"{tiny.__name__}.Weighted"})
    trainer = tiny.trainer(tmp_path)
    trainer.fit(model, datamodule=data)
    assert model.objective.images == 9  # set up once, with the data
    assert model.objective.scale != 1
    trainer.save_checkpoint(tmp_path / "captioner.ckpt")
    loaded = Captioner.load_from_checkpoint(tmp_path / "captioner.ckpt")
    ours, theirs = loaded.objective.state_dict(), model.objective.state_dict()
    assert ours.keys() == {"scale", "mix", "calls"}
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert ours["calls"] == 3


def test_the_notebook_of_the_documentation_runs_as_a_script(
    drawn_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    asked = []

    class Short(pl.Trainer):
        """One epoch, on the CPU, without files."""

        def __init__(self, **given: Any) -> None:
            asked.append(given)
            quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False,
                     "enable_progress_bar": False, "enable_model_summary": False}  # fmt: skip
            super().__init__(**given | quiet | {"max_epochs": 1})

    monkeypatch.setattr(pl, "Trainer", Short)
    monkeypatch.setitem(NAMES["encoder"], "vgg16", tiny.ENCODER["_target_"])  # type: ignore[arg-type]
    monkeypatch.setenv("CAPTIONING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["notebook.py", str(drawn_pictures)])
    monkeypatch.chdir(tmp_path)
    cells = runpy.run_path(str(ROOT / "docs" / "notebook.py"), run_name="__main__")

    assert asked == [{"max_epochs": 9, "gradient_clip_val": 2.0}]
    assert cells["trainer"].global_step == 1
    assert {"test/CIDEr", "test/BLEU-4", "test/METEOR"} <= cells["trainer"].logged_metrics.keys()
    printed = capsys.readouterr().out
    assert f"00.png - {cells['model'].vocabulary.decode(cells['best'].tokens)}" in printed
    assert "words x locations" in printed
    assert cells["best"].attention.sum(-1) == pytest.approx(1)
    Path("captioner.ckpt").unlink()  # `again` does not need it any more
    images = cells["batch"].images
    ours, theirs = (
        [each.tokens for (each,) in cells[name](images, Greedy())] for name in ("model", "again")
    )
    assert ours == theirs
