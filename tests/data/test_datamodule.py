"""What a batch holds, and the order in which they come."""

import os
from pathlib import Path

import pytest
import torch

from captioning.data.corpus import read_corpus
from captioning.data.datamodule import CaptionDataModule
from captioning.data.images import load_rgb
from captioning.data.sampler import LengthGroupedSampler
from captioning.data.text import Cleaner
from captioning.models.encoders.vgg16 import VGG16
from captioning.support.errors import CaptioningError


@pytest.fixture(scope="module")
def encoder() -> VGG16:
    return VGG16(weights="random", image_size=32)


@pytest.fixture(scope="module")
def data(
    flickr8k_mini: Path, encoder: VGG16, tmp_path_factory: pytest.TempPathFactory
) -> CaptionDataModule:
    cache = str(tmp_path_factory.mktemp("cache"))
    data = CaptionDataModule(str(flickr8k_mini), batch_size=7, min_count=2, cache=cache, seed=3)
    data.read_text()
    data.open_features(encoder)
    return data


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


def epoch(data: CaptionDataModule, number: int, processes: int = 1, process: int = 0) -> list[int]:
    sampler = LengthGroupedSampler(
        data.dataset("train"), 7, num_replicas=processes, rank=process, seed=3
    )
    sampler.set_epoch(number)
    return list(sampler)


def test_the_order_depends_on_seed_and_epoch_and_has_every_image_once(
    data: CaptionDataModule,
) -> None:
    first, again, second = epoch(data, 0), epoch(data, 0), epoch(data, 1)
    assert first == again
    assert first != second
    assert sorted(first) == sorted(second) == list(range(120))
    halves = [epoch(data, 0, processes=2, process=rank) for rank in (0, 1)]
    assert sorted(halves[0] + halves[1]) == list(range(120))


def test_batches_of_like_length_need_fewer_steps_than_random_ones(
    data: CaptionDataModule,
) -> None:
    tokens = data.dataset("train").tokens

    def steps(order: list[int]) -> int:
        batches = [order[i : i + 7] for i in range(0, len(order), 7)]
        return sum(max(len(tokens[index][0]) for index in batch) for batch in batches)

    random = torch.randperm(120, generator=torch.Generator().manual_seed(0)).tolist()
    assert steps(epoch(data, 0)) < 0.85 * steps(random)


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
    monkeypatch.delattr(os, "preadv")
    for ours, theirs in zip(held.train_dataloader(), expected, strict=True):
        assert ours.ids == theirs.ids
        assert torch.equal(ours.images, theirs.images)


def test_on_a_cpu_grids_are_held_only_if_asked_for(data: CaptionDataModule) -> None:
    assert data.resident == "auto"
    data.load_resident(torch.device("cpu"))
    assert data.store is not None
    assert data.store._resident is None


def test_grids_that_do_not_fit_are_refused_with_their_size(
    data: CaptionDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*size: int, **_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(data, "resident", True)
    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(CaptioningError, match=r"200 grids of 0\.0 GB .* use data\.resident=false"):
        data.load_resident(torch.device("cpu"))
