"""The LightningDataModule: a batch is some images, each with all its captions."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from captioning.data.boxes import ImageBoxes, read_boxes
from captioning.data.corpus import SPLITS, CaptionedImage, Corpus, read_corpus
from captioning.data.features.store import FeatureStore, build_store
from captioning.data.images import load_rgb
from captioning.data.locations import cache_folder, data_folder
from captioning.data.text import (
    Cleaner,
    Vocabulary,
    build_vocabulary,
    clean_descriptions,
    save_descriptions,
)
from captioning.models.encoders.base import GridEncoder
from captioning.support.errors import CaptioningError

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Some images with their captions.

    Attributes:
        images: what the model sees: grids (B x P x C, half precision) from the store, or
            preprocessed pixels (B x 3 x height x width) where the encoder learns.
        tokens: B x K x T, the captions of each image, longest first, ``<start>`` ... ``<end>``,
            padded with 0; an image with fewer than K captions has rows of padding.
        ids: the images' ids.
    """

    images: Tensor
    tokens: Tensor
    ids: list[str]


class CaptionData(Dataset[Batch]):
    """The images of one split, fetched a batch at a time.

    Args:
        images: ids and files.
        tokens: for each image, its captions as token ids.
        store: where the grids are; None reads and preprocesses the image files for ``encoder``.
    """

    def __init__(
        self,
        images: Sequence[CaptionedImage],
        tokens: Sequence[Sequence[Sequence[int]]],
        store: FeatureStore | None,
        encoder: GridEncoder,
    ) -> None:
        self.images = images
        self.tokens = [sorted(captions, key=len, reverse=True) for captions in tokens]
        self.store = store
        self.preprocessing = encoder.preprocessing

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        """A batch of one image."""
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        """The batch of these images (the DataLoader asks for all of them at once)."""
        images = [self.images[index] for index in indices]
        captions = [self.tokens[index] for index in indices]
        most = max(map(len, captions))
        longest = max(len(caption) for of_image in captions for caption in of_image)
        tokens = np.zeros((len(images), most, longest), np.int64)  # filled faster than a tensor
        for of_image, rows in zip(captions, tokens, strict=True):
            for caption, row in zip(of_image, rows, strict=False):
                row[: len(caption)] = caption
        ids = [image.id for image in images]
        if self.store is not None:
            pictures = self.store.gather(ids)
        else:
            pictures = torch.stack([self.preprocessing(load_rgb(image.path)) for image in images])
        return Batch(pictures, torch.from_numpy(tokens), ids)


class LengthGrouped(DistributedSampler[int]):
    """A random order in which images with captions of like length share a batch.

    A batch costs as many steps as its longest caption has words. Shuffled images are sorted within
    pools of some batches, which saves a quarter of the steps on Flickr8k, and the batches of a
    pool are shuffled again. ``set_epoch`` (called by Lightning) chooses the epoch's order.

    Args:
        dataset: the training images.
        batch_size: images a batch.
        processes: number of processes that share an epoch.
        process: the rank of this one.
        seed: of all the shuffling.
    """

    POOL = 20  # batches; larger pools save little more and mix less

    def __init__(
        self, dataset: CaptionData, batch_size: int, *, processes: int, process: int, seed: int
    ) -> None:
        super().__init__(dataset, num_replicas=processes, rank=process, seed=seed)
        self.batch_size = batch_size
        self.lengths = [[len(caption) for caption in captions] for captions in dataset.tokens]

    def __iter__(self) -> Iterator[int]:
        """The indices of this process, batch after batch."""
        order = list(super().__iter__())
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        pool = self.POOL * self.batch_size
        for start in range(0, len(order), pool):
            like = sorted(order[start : start + pool], key=lambda index: self.lengths[index])
            batches = [like[i : i + self.batch_size] for i in range(0, len(like), self.batch_size)]
            # A batch that is not full can only be the epoch's last.
            full = sum(len(batch) == self.batch_size for batch in batches)
            shuffled = torch.randperm(full, generator=generator).tolist()
            for number in [*shuffled, *range(full, len(batches))]:
                yield from batches[number]


class CaptionDataModule(pl.LightningDataModule):
    """Reads a data set, prepares its text and its grids, and serves batches.

    :meth:`read` needs no image and no encoder, and gives the vocabulary that a model is made for;
    :meth:`open_images` then finds or computes the grids of that model's encoder.

    Args:
        root: the folder of the data set. None: Flickr8k is looked for in the cache directory,
            and downloaded there; ``scenes`` are looked for there, and drawn.
        name: of the data set.
        layout: ``official``, ``karpathy``, ``kaggle``, or ``auto``.
        skip_bad: leave out, by name, images that are missing, broken or without captions.
        batch_size: images a step in training; each comes with all its captions.
        eval_batch_size: images decoded at once.
        workers: processes that read image files, where the encoder learns.
        max_words: words of a training caption that are kept.
        min_count: times that a word must be seen in the training split to have a token.
        max_size: most words of the vocabulary.
        cleaner: how training captions are cleaned; see :class:`captioning.data.text.Cleaner`.
        resident: hold all grids in the memory of the device that trains; ``auto``: on a GPU, where
            they take no more than half of what is free.
        cache: where stores and downloads are; None: ``CAPTIONING_CACHE`` or ~/.cache/captioning.
        seed: of the order of the training images; the same seed and epoch give the same order.
        vocabulary: the words of a checkpoint; None builds them from the training split.
    """

    corpus: Corpus
    vocabulary: Vocabulary
    boxes: dict[str, ImageBoxes]  # of the objects, by image id, where the data set has them

    def __init__(
        self,
        root: str | None = None,
        name: str = "flickr8k",
        layout: Literal["auto", "official", "karpathy", "kaggle"] = "auto",
        skip_bad: bool = False,
        batch_size: int = 16,
        eval_batch_size: int = 50,
        workers: int = 2,
        max_words: int = 25,
        min_count: int = 5,
        max_size: int | None = None,
        cleaner: Cleaner | None = None,
        resident: Literal["auto"] | bool = "auto",
        cache: str | None = None,
        seed: int = 0,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        super().__init__()
        for key, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise CaptioningError(f"data.{key}={value}: choose 1 or more.")
        if max_words < 1 or workers < 0:
            raise CaptioningError(
                f"data.max_words={max_words} must be at least 1 and data.workers={workers} 0."
            )
        self.root = root
        self.data_name = name
        self.layout = layout
        self.skip_bad = skip_bad
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.workers = workers
        self.max_words = max_words
        self.min_count = min_count
        self.max_size = max_size
        self.cleaner = cleaner or Cleaner()
        self.resident = resident
        self.cache = cache_folder(cache)
        self.seed = seed
        self.given_vocabulary = vocabulary
        self.encoder: GridEncoder | None = None
        self.store: FeatureStore | None = None

    def read(self) -> None:
        """Read and clean the captions and make the vocabulary: seconds, and no image is opened.

        Raises:
            CaptioningError: the data set is not there, or not as its layout has it.
        """
        root = data_folder(self.root, self.data_name, str(self.cache))
        self.corpus = read_corpus(
            root, name=self.data_name, layout=self.layout, skip_bad=self.skip_bad
        )
        for note in self.corpus.notes:
            log.info("Data: %s", note)
        self.boxes = read_boxes(root)
        captions = {image.id: image.captions for image in self.corpus.images}
        self.descriptions = clean_descriptions(captions, self.cleaner)
        self.vocabulary = self.given_vocabulary or build_vocabulary(
            (c for image in self.corpus.split("train") for c in self.descriptions[image.id]),
            min_count=self.min_count,
            max_size=self.max_size,
        )

    def open_images(self, encoder: GridEncoder, splits: Sequence[str] = SPLITS) -> None:
        """Open the grids of the images of some splits, computing those that are in no store yet.

        An encoder that learns is given pixels instead.
        """
        self.encoder = encoder
        if any(parameter.requires_grad for parameter in encoder.parameters()):
            self.store = None
            return
        self.store = build_store(
            self.cache / "features",
            encoder,
            [(image.id, image.path) for split in splits for image in self.corpus.split(split)],
            skip_bad=self.skip_bad,
        )

    def hold_grids(self, device: torch.device) -> None:
        """Read the grids into a device's memory, where ``resident`` says so.

        Raises:
            CaptioningError: ``resident`` is True, and they do not fit.
        """
        if self.store is None or self.resident is False:
            return
        if self.resident == "auto" and not (
            device.type == "cuda" and 2 * self.store.nbytes < torch.cuda.mem_get_info(device)[0]
        ):
            return
        log.info("Reading %.1f GB of grids into the memory of %s", self.store.nbytes / 1e9, device)
        self.store.hold(device)

    read_text, open_features, load_resident = read, open_images, hold_grids

    def write_text(self, folder: Path) -> None:
        """Write the cleaned captions and the vocabulary, for people."""
        save_descriptions(folder / "descriptions.txt", self.descriptions)
        self.vocabulary.save(folder / "vocabulary.json")

    def images(self, split: str) -> list[CaptionedImage]:
        """The images of a split that can be shown to the model."""
        store = self.store
        return [i for i in self.corpus.split(split) if store is None or i.id in store]

    def references(self, split: str) -> dict[str, list[str]]:
        """The raw captions of a split's images, as the metrics take them."""
        return {image.id: list(image.captions) for image in self.images(split)}

    def dataset(self, split: str) -> CaptionData:
        """The images and token ids of a split."""
        if self.encoder is None:
            raise RuntimeError("call read() and open_images(encoder) before asking for batches")
        images = self.images(split)
        tokens = [
            [
                self.vocabulary.encode(caption, self.max_words)
                for caption in self.descriptions[image.id]
            ]
            for image in images
        ]
        return CaptionData(images, tokens, self.store, self.encoder)

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Move the images alone; decoders want the captions in the CPU's memory."""
        return batch._replace(images=batch.images.to(device, non_blocking=True))

    def train_dataloader(self) -> DataLoader[Batch]:
        """The training split, in an order that depends on the seed and the epoch alone."""
        dataset = self.dataset("train")
        trainer = self.trainer
        sampler = LengthGrouped(
            dataset,
            self.batch_size,
            processes=trainer.world_size if trainer else 1,
            process=trainer.global_rank if trainer else 0,
            seed=self.seed,
        )
        return self._loader(dataset, self.batch_size, sampler)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The dev split."""
        return self.evaluation_loader("dev")

    def evaluation_loader(self, split: str) -> DataLoader[Batch]:
        """A split in its own order, in batches for decoding."""
        return self._loader(self.dataset(split), self.eval_batch_size)

    evaluation_dataloader = evaluation_loader

    def _loader(
        self,
        dataset: CaptionData,
        batch_size: int,
        sampler: LengthGrouped | None = None,
    ) -> DataLoader[Batch]:
        # Grids are read from the store faster than another process could hand them over.
        workers = 0 if self.store is not None else self.workers
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=keep,
            persistent_workers=workers > 0,
        )


def keep(batch: Any) -> Any:
    """The dataset makes whole batches; there is nothing to collate."""
    return batch
