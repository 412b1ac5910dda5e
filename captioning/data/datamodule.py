"""The LightningDataModule: a batch is some images, each with all its captions."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Sampler

from captioning.data.batch import Batch
from captioning.data.boxes import ImageBoxes, read_boxes
from captioning.data.cleaning import Cleaner, clean_descriptions
from captioning.data.corpus import CaptionedImage, Corpus, read_corpus
from captioning.data.dataset import CaptionDataset, identity_collate
from captioning.data.descriptions import save_descriptions
from captioning.data.features.joint import Store
from captioning.data.features.opened import OpenFeatures
from captioning.data.locations import cache_folder, ensure_data_folder
from captioning.data.readers.registry import find_reader
from captioning.data.sampler import LengthGroupedSampler
from captioning.data.splits import SPLITS, Split
from captioning.data.views import ORIGINAL, ORIGINAL_ALONE, find_views, side_ids
from captioning.data.vocabulary import Vocabulary, choose_vocabulary
from captioning.models.encoders.base import Encoder
from captioning.support.errors import CaptioningError

__all__ = ["Batch", "CaptionDataModule"]

log = logging.getLogger(__name__)


class CaptionDataModule(pl.LightningDataModule):
    """Reads a data set, prepares its text and its grids, and makes the batches.

    Lightning calls :meth:`prepare_data`, :meth:`setup` and the ``*_dataloader`` methods::

        data = CaptionDataModule(root="flickr8k/")
        trainer.fit(model, datamodule=data)

    where ``model`` is any LightningModule with an attribute ``encoder``. Without a trainer, the
    steps of :meth:`setup` can be taken one by one: :meth:`read_text` needs neither images nor an
    encoder, and gives the vocabulary that a model is built for; :meth:`open_features` then opens
    the grids of that model's encoder, after computing those that are not in the feature store yet.

    Args:
        root: The folder of the data set, or the file of its captions. None: a folder in the cache,
            to which ``flickr8k`` is downloaded, or in which ``scenes`` are drawn, on first use.
        name: The name of the data set.
        layout: A name in :data:`captioning.data.readers.registry.LAYOUTS`, ``auto`` for whichever
            of them is found, or the dotted path of a reader of one's own; see
            :mod:`captioning.data.readers.base`.
        skip_bad: Leave out, and name in the log, images that are missing, broken or without
            captions.
        split_seed: The seed of splits that are drawn, with a warning, if the data set has none.
        batch_size: Images in a training batch; each comes with all its captions.
        eval_batch_size: Images in a batch for decoding.
        workers: Processes that read image files, used if the encoder is trained.
        max_words: Words of a training caption that are kept.
        min_count: How often a word must occur in the training split to get a token.
        max_size: The most words of the vocabulary.
        cleaner: How training captions are cleaned; see :class:`captioning.data.cleaning.Cleaner`.
        resident: Keep all grids in the memory of the device that trains. ``auto``: if it is a GPU,
            and they take no more than half of its free memory, or of this process's share; see
            :func:`captioning.support.memory.own_gpu_memory`.
        cache: The folder of the feature stores and downloads. None: ``CAPTIONING_CACHE``, or
            ~/.cache/captioning.
        seed: The seed of the order of the training images; the same seed and epoch give the same
            order. None: torch's seed when fitting starts, which ``seed_everything`` sets.
        vocabulary: The vocabulary of a trained model. None: it is built from the training split.
        add_words: Append the words of the training split that ``vocabulary`` lacks.
        predict_split: The split of :meth:`predict_dataloader`.
        train_views: The names of the views of the training images; see
            :mod:`captioning.data.views`. If there are several, one is drawn for each image in each
            epoch.

    Attributes:
        corpus: The data set; set by :meth:`read_text`, as are the next three.
        descriptions: The cleaned captions of every image, by its id.
        vocabulary: The words and their ids.
        boxes: The objects of every image, by its id; empty if the data set has no ``boxes.json``.
        features: The grids that are open.
    """

    corpus: Corpus
    descriptions: dict[str, list[str]]
    vocabulary: Vocabulary
    boxes: dict[str, ImageBoxes]

    def __init__(
        self,
        root: str | None = None,
        name: str = "flickr8k",
        layout: str = "auto",
        skip_bad: bool = False,
        split_seed: int = 0,
        batch_size: int = 16,
        eval_batch_size: int = 80,
        workers: int = 2,
        max_words: int = 25,
        min_count: int = 5,
        max_size: int | None = None,
        cleaner: Cleaner | None = None,
        resident: Literal["auto"] | bool = "auto",
        cache: str | None = None,
        seed: int | None = None,
        vocabulary: Vocabulary | None = None,
        add_words: bool = False,
        predict_split: Split = "test",
        train_views: Sequence[str] = ORIGINAL_ALONE,
    ) -> None:
        super().__init__()
        for key, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise CaptioningError(f"data.{key}={value}: choose 1 or more.")
        if max_words < 1 or workers < 0:
            raise CaptioningError(
                f"data.max_words={max_words} must be at least 1 and data.workers={workers} 0."
            )
        if layout != "auto":
            find_reader(layout)
        find_views(train_views, "data.train_views")
        self.root = root
        self.data_name = name
        self.layout = layout
        self.skip_bad = skip_bad
        self.split_seed = split_seed
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
        self.add_words = add_words
        self.predict_split = predict_split
        self.train_views = tuple(train_views)
        self.features = OpenFeatures(self.cache / "features", skip_bad=skip_bad)
        self._text_is_read = False
        self._fit_seed: int | None = None

    # Lightning's hooks

    def prepare_data(self) -> None:
        """Download or draw the data set, if it is not there; Lightning calls it once a machine."""
        ensure_data_folder(self.root, self.data_name, str(self.cache))

    def setup(self, stage: str | None = None) -> None:
        """Read the text, and open the grids that a stage needs, for the encoder of the model.

        It may be called any number of times: what an earlier call has read, computed or opened is
        not read, computed or opened again. Without a trainer it only reads the text.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``; None opens all splits.

        Raises:
            CaptioningError: the data set is absent or malformed, or the LightningModule has no
                encoder.
        """
        self.read_text()
        if self.trainer is None:
            return
        module = self.trainer.lightning_module
        encoder = getattr(module, "encoder", None)
        if not isinstance(encoder, Encoder):
            raise CaptioningError(
                f"{type(module).__name__} has no attribute `encoder` that is an Encoder: the "
                "data module opens the grids of that encoder."
            )
        self.open_features(encoder, self._splits_of(stage))
        if stage == "fit":
            self._fit_seed = self._torch_seed()
            self.load_resident(self.trainer.strategy.root_device)

    def train_dataloader(self) -> DataLoader[Batch]:
        """The training split, in an order that depends on the seed and the epoch alone."""
        dataset = self.dataset("train", self.train_views)
        trainer = self.trainer
        if self._fit_seed is None:
            self._fit_seed = self._torch_seed()
        sampler = LengthGroupedSampler(
            dataset,
            self.batch_size,
            num_replicas=trainer.world_size if trainer else 1,
            rank=trainer.global_rank if trainer else 0,
            seed=self._fit_seed if self.seed is None else self.seed,
            views=self.train_views,
        )
        return self._dataloader(dataset, self.batch_size, sampler)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The dev split, in its own order."""
        return self.evaluation_dataloader("dev")

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test split, in its own order."""
        return self.evaluation_dataloader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The split that ``predict_split`` names, in its own order."""
        return self.evaluation_dataloader(self.predict_split)

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Move the images only: decoders expect the captions in the CPU's memory."""
        return batch._replace(images=batch.images.to(device, non_blocking=True))

    def state_dict(self) -> dict[str, int]:
        """The seed of the order, for the checkpoint of a run, unless it is a setting."""
        return {"seed": self._fit_seed} if self.seed is None and self._fit_seed is not None else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on in the order of the run that a checkpoint is of, whatever torch's seed is now."""
        self._fit_seed = state_dict["seed"]

    # The steps of `setup`

    def read_text(self) -> None:
        """Read and clean the captions and build the vocabulary, unless this has been done already.

        It takes seconds, and opens no image.

        Raises:
            CaptioningError: the data set is absent, malformed, or cannot be downloaded.
        """
        if self._text_is_read:
            return
        root = ensure_data_folder(self.root, self.data_name, str(self.cache))
        self.corpus = read_corpus(
            root,
            name=self.data_name,
            layout=self.layout,
            skip_bad=self.skip_bad,
            split_seed=self.split_seed,
            cache=self.cache,
        )
        for note in self.corpus.notes:
            log.info("Data: %s", note)
        for warning in self.corpus.warnings:
            log.warning("Data: %s", warning)
        self.boxes = read_boxes(self.corpus.root)
        captions = {image.id: image.captions for image in self.corpus.images}
        self.descriptions = clean_descriptions(captions, self.cleaner)
        self.vocabulary = choose_vocabulary(
            [text for image in self.corpus.split("train") for text in self.descriptions[image.id]],
            self.given_vocabulary,
            add_words=self.add_words,
            min_count=self.min_count,
            max_size=self.max_size,
        )
        self._text_is_read = True

    @property
    def encoder(self) -> Encoder | None:
        """The encoder whose grids are open; None before :meth:`open_features`."""
        return self.features.encoder

    @property
    def stores(self) -> dict[str, Store]:
        """The open grids by view; empty if the encoder is trained, and sees pixels."""
        return self.features.stores

    @property
    def store(self) -> Store | None:
        """The grids of the original view; None if the encoder is trained, and sees pixels."""
        return self.stores.get(ORIGINAL.name)

    def open_features(
        self,
        encoder: Encoder,
        splits: Sequence[str] = SPLITS,
        views: Sequence[str] | None = None,
    ) -> None:
        """Open the grids of some splits, after computing those that are not in the store yet.

        Splits that are open already stay open, unless the encoder is a different one (other
        weights or other preprocessing). If the encoder is trained, nothing is opened: batches then
        have pixels.

        Args:
            encoder: The encoder.
            splits: The splits.
            views: The names of the views. None: ``train_views`` of the training split, and the
                original of the others, as training needs them.

        Raises:
            CaptioningError: an image is missing or broken and ``skip_bad`` is off, the store is
                damaged or cannot be written, or there is no such view.
        """
        self.read_text()
        wanted: dict[str, list[str]] = {}  # the splits of each view
        for split in dict.fromkeys(splits):
            usual = self.train_views if split == "train" else ORIGINAL_ALONE
            for name in usual if views is None else views:
                wanted.setdefault(name, []).append(split)
        self.features.open(encoder, wanted, self.corpus.split)

    def load_resident(self, device: torch.device) -> None:
        """Read the opened grids into a device's memory, if ``resident`` says so.

        Raises:
            CaptioningError: ``resident`` is True, and they do not fit.
        """
        self.features.load_resident(device, self.resident)

    # What users ask for

    def write_text(self, folder: Path) -> None:
        """Write the cleaned captions and the vocabulary, for people to read."""
        save_descriptions(folder / "descriptions.txt", self.descriptions)
        self.vocabulary.save(folder / "vocabulary.json")

    def images(self, split: str) -> list[CaptionedImage]:
        """The images of a split; once the split is open, without those that could not be read."""
        return self.features.readable(split, self.corpus.split(split))

    def references(self, split: str) -> dict[str, list[str]]:
        """The raw captions of a split's images by id, as the metrics take them."""
        return {image.id: list(image.captions) for image in self.images(split)}

    def documents(self) -> dict[str, list[str]]:
        """The cleaned captions of the training split, from which frequencies are counted."""
        return {image.id: self.descriptions[image.id] for image in self.corpus.split("train")}

    def dataset(self, split: str, views: Sequence[str] = ORIGINAL_ALONE) -> CaptionDataset:
        """The images, in some views, and token ids of a split.

        Raises:
            RuntimeError: no encoder is known yet.
        """
        if self.encoder is None:
            raise RuntimeError("call open_features(encoder) before asking for batches")
        self.open_features(self.encoder, [split], views)
        images = self.images(split)
        tokens = [
            [
                self.vocabulary.encode(caption, self.max_words)
                for caption in self.descriptions[image.id]
            ]
            for image in images
        ]
        sides = side_ids(self.vocabulary)
        return CaptionDataset(images, tokens, self.stores or None, self.encoder, views, sides)

    def evaluation_dataloader(
        self, split: str, views: Sequence[str] = ORIGINAL_ALONE
    ) -> DataLoader[Batch]:
        """A split in its own order, in batches for decoding.

        Args:
            split: The split.
            views: The names of the views from which each image is captioned.
        """
        return self._dataloader(self.dataset(split, views), self.eval_batch_size)

    def _dataloader(
        self, dataset: CaptionDataset, batch_size: int, sampler: Sampler[Any] | None = None
    ) -> DataLoader[Batch]:
        # Reading grids from the store is faster than receiving them from another process.
        workers = 0 if dataset.stores is not None else self.workers
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=identity_collate,
            persistent_workers=workers > 0,
        )

    def _splits_of(self, stage: str | None) -> tuple[Split, ...]:
        """The splits whose images a stage of the trainer needs."""
        stages: dict[str, tuple[Split, ...]] = {
            "fit": ("train", "dev"),
            "validate": ("dev",),
            "test": ("test",),
            "predict": (self.predict_split,),
        }
        return SPLITS if stage is None else stages[stage]

    def _torch_seed(self) -> int:
        """Torch's seed in the process of rank 0.

        Each process may have seeded torch differently, but all have to shuffle alike: otherwise
        they would not see different images.
        """
        seed = torch.initial_seed()
        return seed if self.trainer is None else self.trainer.strategy.broadcast(seed)
