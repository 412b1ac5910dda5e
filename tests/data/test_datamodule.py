"""The data module, by itself and in the hands of Lightning's trainer."""

import inspect
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch import Tensor, nn

from captioning.apps.prepare import _parser
from captioning.data import datamodule
from captioning.data.batch import Batch
from captioning.data.cleaning import Cleaner
from captioning.data.corpus import read_corpus
from captioning.data.datamodule import CaptionDataModule
from captioning.data.features import opened
from captioning.data.images import load_rgb
from captioning.data.vocabulary import build_vocabulary
from captioning.models.encoders.vgg16 import VGG16
from captioning.support.build import build
from captioning.support.errors import CaptioningError

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (".*LeafSpec", ".*does not have many workers", ".*in eval mode")
]

CONF = Path(__file__).parents[2] / "conf" / "data"


@pytest.fixture(scope="module")
def encoder() -> VGG16:
    return VGG16(weights="random", image_size=32)


@pytest.fixture(scope="module")
def data(
    flickr8k_mini: Path, encoder: VGG16, tmp_path_factory: pytest.TempPathFactory
) -> CaptionDataModule:
    cache = str(tmp_path_factory.mktemp("cache"))
    data = CaptionDataModule(str(flickr8k_mini), batch_size=7, min_count=2, cache=cache, seed=3)
    data.open_features(encoder)
    return data


class Witness(pl.LightningModule):
    """Notes the ids of the images that each stage is given; it has an encoder, and little else."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[str]] = {}

    def note(self, stage: str, batch: Batch) -> None:
        assert batch.tokens.device.type == "cpu"
        self.seen.setdefault(stage, []).extend(batch.ids)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.note(f"epoch {self.current_epoch}", batch)
        return self.weight * batch.grid.float().mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if not self.trainer.sanity_checking:
            self.note("validate", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.note("test", batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[str]:
        self.note("predict", batch)
        return batch.ids

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=0.1)


def make_trainer(epochs: int = 1) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def of_small_set(root: Path, cache: Path, **settings: Any) -> CaptionDataModule:
    settings = {"batch_size": 4, "eval_batch_size": 3, "min_count": 1, **settings}
    return CaptionDataModule(str(root), cache=str(cache), **settings)


def names(split: str, count: int) -> list[str]:
    return [f"{split}{number:02d}.png" for number in range(count)]


TRAIN, DEV, TEST = names("train", 22), names("val", 5), names("test", 4)


# With Lightning's trainer


def test_each_stage_of_a_trainer_gets_its_split_and_opens_no_other(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = VGG16(weights="random", image_size=32)
    encoded: list[int] = []
    encoder.register_forward_pre_hook(lambda _, inputs: encoded.append(len(inputs[0])))
    reads: list[Path] = []

    def counted(root: Path, **settings: Any) -> Any:
        reads.append(root)
        return read_corpus(root, **settings)

    monkeypatch.setattr(datamodule, "read_corpus", counted)
    data, module, trainer = of_small_set(small_set, tmp_path), Witness(encoder), make_trainer()

    trainer.fit(module, datamodule=data)
    assert sorted(module.seen.pop("epoch 0")) == TRAIN
    assert module.seen.pop("validate") == DEV
    assert data.store is not None
    assert data.store.ids == TRAIN + DEV
    assert sum(encoded) == 22 + 5

    trainer.validate(module, datamodule=data, verbose=False)
    assert module.seen.pop("validate") == DEV
    assert sum(encoded) == 22 + 5

    trainer.test(module, datamodule=data, verbose=False)
    assert module.seen.pop("test") == TEST
    assert data.store.ids == TRAIN + DEV + TEST
    assert sum(encoded) == 22 + 5 + 4

    predicted = trainer.predict(module, datamodule=data)
    assert predicted == [TEST[:3], TEST[3:]]
    assert sum(encoded) == 22 + 5 + 4
    assert reads == [small_set]


def test_predictions_are_of_the_split_that_is_asked_for(
    small_set: Path, tmp_path: Path, encoder: VGG16
) -> None:
    data = of_small_set(small_set, tmp_path, predict_split="dev")
    assert make_trainer().predict(Witness(encoder), datamodule=data) == [DEV[:3], DEV[3:]]
    assert data.store is not None
    assert data.store.ids == DEV


def test_a_split_that_is_none_is_refused_by_the_configuration() -> None:
    spec = {"_target_": "captioning.data.datamodule.CaptionDataModule", "predict_split": "valid"}
    with pytest.raises(CaptioningError, match=r"data\.predict_split=valid: .*'train'.*'test'"):
        build(spec, CaptionDataModule, "data")


def test_setup_may_be_called_again_and_after_its_steps(
    small_set: Path, tmp_path: Path, encoder: VGG16, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = of_small_set(small_set, tmp_path)
    data.read_text()
    data.open_features(encoder)
    corpus, vocabulary, store = data.corpus, data.vocabulary, data.store
    monkeypatch.delattr(opened, "open_store")
    trainer = make_trainer()
    trainer.fit(Witness(encoder), datamodule=data)
    for stage in ("fit", "validate", "test", "predict", None):
        data.setup(stage)
    assert (data.corpus, data.vocabulary, data.store) == (corpus, vocabulary, store)


def test_without_a_trainer_setup_reads_the_text_alone(small_set: Path, tmp_path: Path) -> None:
    data = of_small_set(small_set, tmp_path)
    data.setup("fit")
    assert "dog" in data.vocabulary
    assert data.encoder is data.store is None
    with pytest.raises(RuntimeError, match=r"open_features\(encoder\)"):
        data.train_dataloader()


def test_a_module_without_an_encoder_is_told_what_it_needs(small_set: Path, tmp_path: Path) -> None:
    module = Witness(nn.Linear(1, 1))
    with pytest.raises(CaptioningError, match=r"Witness has no attribute `encoder`"):
        make_trainer().fit(module, datamodule=of_small_set(small_set, tmp_path))


def test_prepare_data_brings_the_data_set_and_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought: list[tuple[str | None, str, str | None]] = []

    def ensure(root: str | None, name: str, cache: str | None) -> Path:
        brought.append((root, name, cache))
        return tmp_path

    monkeypatch.setattr(datamodule, "ensure_data_folder", ensure)
    data = CaptionDataModule(name="scenes", cache=str(tmp_path))
    before = dict(vars(data))
    data.prepare_data()
    assert brought == [(None, "scenes", str(tmp_path))]
    assert vars(data) == before


def test_only_the_images_move_to_the_device(
    small_set: Path, tmp_path: Path, encoder: VGG16
) -> None:
    data = of_small_set(small_set, tmp_path)
    data.open_features(encoder, ["dev"])
    batch = next(iter(data.val_dataloader()))
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert (moved.images.device.type, moved.tokens.device.type) == ("meta", "cpu")
    assert moved.tokens is batch.tokens
    assert moved.ids == batch.ids


# The order of the training images


def test_without_a_seed_of_its_own_the_order_follows_seed_everything(
    small_set: Path, tmp_path: Path, encoder: VGG16
) -> None:
    def seen(torch_seed: int, data: CaptionDataModule) -> dict[str, list[str]]:
        module = Witness(encoder)
        pl.seed_everything(torch_seed, verbose=False)
        make_trainer(epochs=2).fit(module, datamodule=data)
        del module.seen["validate"]
        return module.seen

    data = of_small_set(small_set, tmp_path)
    first = seen(11, data)
    assert first["epoch 0"] != first["epoch 1"]
    assert sorted(first["epoch 0"]) == sorted(first["epoch 1"]) == TRAIN
    assert seen(11, of_small_set(small_set, tmp_path)) == first
    assert seen(8, of_small_set(small_set, tmp_path, seed=11)) == first
    assert seen(12, of_small_set(small_set, tmp_path)) != first
    # The same data module follows the seed of each training.
    assert seen(12, data) != first
    assert seen(11, data) == first


def test_the_seed_is_taken_when_the_training_loader_is_first_made(
    small_set: Path, tmp_path: Path, encoder: VGG16
) -> None:
    def ids(data: CaptionDataModule) -> list[str]:
        data.open_features(encoder)
        return [image for batch in data.train_dataloader() for image in batch.ids]

    torch.manual_seed(21)
    data = of_small_set(small_set, tmp_path)
    first = ids(data)
    torch.manual_seed(22)
    assert ids(data) == first == ids(of_small_set(small_set, tmp_path, seed=21))
    assert ids(of_small_set(small_set, tmp_path)) != first


# Defaults


def test_the_defaults_of_the_class_and_of_the_configuration_are_the_same() -> None:
    parameters = inspect.signature(CaptionDataModule).parameters
    files = {path.stem: yaml.safe_load(path.read_text()) for path in CONF.glob("*.yaml")}
    base = files.pop("flickr8k")
    assert base.pop("_target_") == "captioning.data.datamodule.CaptionDataModule"
    assert base.pop("cleaner") == asdict(Cleaner())
    assert parameters["cleaner"].default is None  # which means Cleaner()
    assert CaptionDataModule().cleaner == Cleaner()
    base["train_views"] = tuple(base["train_views"])
    assert base == {key: parameters[key].default for key in base}
    assert base.keys() == parameters.keys() - {
        "cleaner", "seed", "vocabulary", "add_words", "predict_split",
    }  # fmt: skip
    # The other files take over all of it but the name and the folder.
    for file in files.values():
        assert file.pop("defaults") == ["flickr8k"]
        assert file.keys() <= {"name", "root"}


def test_the_defaults_are_those_of_the_published_results() -> None:
    data = CaptionDataModule()
    assert (data.max_words, data.min_count, data.max_size) == (25, 5, None)
    assert (data.batch_size, data.eval_batch_size) == (16, 80)
    assert data.seed is None
    assert inspect.signature(build_vocabulary).parameters["min_count"].default == 5
    prepared = _parser().parse_args(["--root", "x"])
    assert (prepared.min_count, prepared.max_size) == (5, None)


def test_a_training_caption_keeps_max_words(
    small_set: Path, tmp_path: Path, encoder: VGG16
) -> None:
    data = of_small_set(small_set, tmp_path, max_words=4)
    data.open_features(encoder)
    rows = {
        tuple(row[row > 0].tolist())
        for batch in data.train_dataloader()
        for of_image in batch.tokens
        for row in of_image
    }
    # <start>, the first words and <end>; the captions have 1 to 5 and 2 to 13 words.
    whole = data.vocabulary.encode("a red dog runs")
    assert whole[-1] == 2
    assert rows == {(*whole[: n + 1], 2) for n in (1, 2, 3, 4)}
    assert data.references("train")["train11.png"][0].count(" ") == 12  # those stay whole


# Batches


def test_a_batch_has_each_images_grid_beside_all_its_captions(
    data: CaptionDataModule, encoder: VGG16, flickr8k_mini: Path
) -> None:
    corpus = {image.id: image for image in read_corpus(flickr8k_mini).images}
    batch = next(iter(data.train_dataloader()))
    assert len(batch.ids) == len(batch.images) == len(batch.tokens) == 7
    for image, grid, tokens in zip(batch.ids, batch.images, batch.tokens, strict=True):
        pixels = encoder.preprocessing(load_rgb(corpus[image].path))
        torch.testing.assert_close(grid.float(), encoder(pixels[None])[0], rtol=0.02, atol=0.02)
        known = [
            " ".join(w if w in data.vocabulary else "<unk>" for w in Cleaner()(caption).split())
            for caption in corpus[image].captions
        ]
        assert sorted(data.vocabulary.decode(row.tolist()) for row in tokens) == sorted(known)
        lengths = (tokens != 0).sum(1).tolist()
        assert lengths == sorted(lengths, reverse=True)
        assert (tokens[:, 0] == 1).all()


def test_the_vocabulary_is_of_the_training_split_alone(
    data: CaptionDataModule, flickr8k_mini: Path
) -> None:
    counts: dict[str, int] = {}
    for image in read_corpus(flickr8k_mini).split("train"):
        for caption in image.captions:
            for word in Cleaner()(caption).split():
                counts[word] = counts.get(word, 0) + 1
    assert set(data.vocabulary.words) == {word for word, n in counts.items() if n >= 2}


def test_dev_and_test_come_in_their_own_order(data: CaptionDataModule) -> None:
    for split in ("dev", "test"):
        ids = [image for batch in data.evaluation_dataloader(split) for image in batch.ids]
        assert ids == [image.id for image in data.corpus.split(split)]


def test_an_encoder_that_learns_is_given_pixels(flickr8k_mini: Path, tmp_path: Path) -> None:
    data = CaptionDataModule(str(flickr8k_mini), workers=0, cache=str(tmp_path), batch_size=2)
    data.read_text()
    data.open_features(VGG16(weights="random", image_size=32, trainable=True))
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (2, 3, 32, 32)
    assert not (tmp_path / "features").exists()


def test_resident_grids_give_the_same_batches_without_their_file(
    data: CaptionDataModule, encoder: VGG16, flickr8k_mini: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(data.train_dataloader())
    held = CaptionDataModule(
        str(flickr8k_mini), batch_size=7, min_count=2, cache=str(data.cache), seed=3, resident=True
    )
    held.read_text()
    held.open_features(encoder)
    held.load_resident(torch.device("cpu"))
    monkeypatch.delattr(os, "pread")
    for ours, theirs in zip(held.train_dataloader(), expected, strict=True):
        assert ours.ids == theirs.ids
        assert torch.equal(ours.images, theirs.images)


def test_on_a_cpu_grids_are_held_only_if_asked_for(data: CaptionDataModule) -> None:
    assert data.resident == "auto"
    data.load_resident(torch.device("cpu"))
    assert data.store is not None
    assert data.store._resident is None


def test_on_a_gpu_grids_are_held_if_they_take_half_of_its_share(
    data: CaptionDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight jobs that share a GPU all start when its memory is still free."""
    held: list[torch.device] = []
    gpu = torch.device("cuda")
    assert data.store is not None
    nbytes = data.store.nbytes
    monkeypatch.setattr(data.store, "is_resident", lambda device: False)
    monkeypatch.setattr(data.store, "load_resident", held.append)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (17 * nbytes, 17 * nbytes))
    monkeypatch.setenv("CAPTIONING_GPU_SHARE", "0.1")
    data.load_resident(gpu)
    assert not held
    monkeypatch.setenv("CAPTIONING_GPU_SHARE", "0.125")
    data.load_resident(gpu)
    assert held == [gpu]


def test_grids_that_do_not_fit_are_refused_with_their_size(
    data: CaptionDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*size: int, **_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(data, "resident", True)
    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(CaptioningError, match=r"200 grids of 0\.0 GB .* use data\.resident=false"):
        data.load_resident(torch.device("cpu"))


def test_a_later_split_joins_grids_that_are_resident(
    small_set: Path, tmp_path: Path, encoder: VGG16
) -> None:
    data = of_small_set(small_set, tmp_path, resident=True)
    data.open_features(encoder, ["train", "dev"])
    data.load_resident(torch.device("cpu"))
    assert data.store is not None
    resident = data.store._resident
    dev = next(iter(data.val_dataloader()))
    data.open_features(encoder, ["test"])
    assert data.store._resident is resident
    assert torch.equal(next(iter(data.val_dataloader())).images, dev.images)
    alone = of_small_set(small_set, tmp_path)
    alone.open_features(encoder, ["test"])
    for ours, theirs in zip(data.test_dataloader(), alone.test_dataloader(), strict=True):
        assert torch.equal(ours.images, theirs.images)
    data.load_resident(torch.device("cpu"))  # now with the images of the test split
    assert data.store._resident is not None
    assert len(data.store._resident) == 31


def test_grids_are_loaded_once(small_set: Path, tmp_path: Path, encoder: VGG16) -> None:
    data = of_small_set(small_set, tmp_path, resident=True)
    data.open_features(encoder)
    data.load_resident(torch.device("cpu"))
    assert data.store is not None
    resident = data.store._resident
    data.load_resident(torch.device("cpu"))
    assert data.store._resident is resident


def test_another_encoder_has_its_own_grids(small_set: Path, tmp_path: Path) -> None:
    data = of_small_set(small_set, tmp_path)
    shapes = []
    for size in (32, 64, 32):
        data.open_features(VGG16(weights="random", image_size=size), ["dev"])
        assert data.store is not None
        assert data.store.ids == DEV
        shapes.append(tuple(next(iter(data.val_dataloader())).grid.shape))
    assert shapes == [(3, 4, 512), (3, 16, 512), (3, 4, 512)]
