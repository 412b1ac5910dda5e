"""The LightningDataModule: a batch is some images, each with all its captions."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch.utils.data import DataLoader, Sampler

from captioning.data.batch import Batch
from captioning.data.boxes import ImageBoxes, read_boxes
from captioning.data.cleaning import Cleaner, clean_descriptions
from captioning.data.corpus import CaptionedImage, Corpus, read_corpus
from captioning.data.dataset import CaptionDataset, identity_collate
from captioning.data.descriptions import save_descriptions
from captioning.data.features.joint import Store, open_store
from captioning.data.features.meta import store_folder
from captioning.data.locations import cache_folder, ensure_data_folder
from captioning.data.readers.registry import find_reader
from captioning.data.sampler import LengthGroupedSampler
from captioning.data.splits import SPLITS, Split
from captioning.data.views import ORIGINAL, ORIGINAL_ALONE, find_views, side_ids
from captioning.data.vocabulary import Vocabulary, build_vocabulary, coverage, extend_vocabulary
from captioning.models.encoders.base import Encoder
from captioning.support.errors import CaptioningError, shortened
from captioning.support.memory import own_gpu_memory

__all__ = ["Batch", "CaptionDataModule"]

log = logging.getLogger(__name__)

_MOST_WORDS = 0.9
"""A vocabulary with a smaller share of the words of the training captions is warned of."""


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
        encoder: The encoder whose grids are opened; None before :meth:`open_features`.
        stores: The grids of the opened splits, by the name of the view; empty if the encoder is
            trained, and sees pixels.
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
        eval_batch_size: int = 50,
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
        self.encoder: Encoder | None = None
        self.stores: dict[str, Store] = {}
        self._text_is_read = False
        self._store_folder: Path | None = None  # of the original
        self._opened: set[tuple[str, str]] = set()  # views and splits that are in `stores`
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
        self.vocabulary = self._choose_vocabulary()
        self._text_is_read = True

    def _choose_vocabulary(self) -> Vocabulary:
        captions = [c for image in self.corpus.split("train") for c in self.descriptions[image.id]]
        limits = (self.min_count, self.max_size)
        if self.given_vocabulary is not None:
            if not self.add_words:
                return self.given_vocabulary
            vocabulary = extend_vocabulary(self.given_vocabulary, captions, *limits)
            new = vocabulary.words[len(self.given_vocabulary.words) :]
            log.info(
                "Data: words added to the %d of the vocabulary: %d%s",
                *(len(self.given_vocabulary.words), len(new)),
                f" ({shortened(', '.join(new), 200)})" if new else "",
            )
        else:
            vocabulary = build_vocabulary(captions, *limits)
        known, different, share = coverage(vocabulary, captions)
        if share < _MOST_WORDS:
            log.warning(
                "Data: data.min_count=%d leaves %d of the %d different words of the training "
                "captions; %.0f %% of their words become <unk>, and data.min_count=1 keeps all.",
                *(self.min_count, known, different, 100 * (1 - share)),
            )
        return vocabulary

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
        trained = any(parameter.requires_grad for parameter in encoder.parameters())
        directory = self.cache / "features"
        folder = None if trained else store_folder(directory, encoder)
        if folder != self._store_folder:
            self.stores = {}
            self._opened.clear()
        self.encoder = encoder
        self._store_folder = folder
        new: dict[str, list[str]] = {}  # the splits to open of each view
        for split in dict.fromkeys(splits):
            usual = self.train_views if split == "train" else ORIGINAL_ALONE
            for name in usual if views is None else views:
                if (name, split) not in self._opened:
                    new.setdefault(name, []).append(split)
        found = find_views(list(new)) if new else ()
        if trained or not new:
            return
        # Lightning's logger speaks in a notebook, where nobody has configured logging.
        rank_zero_info(
            f"Opening the grids of {encoder.name}: images that are not in the feature store yet "
            "are encoded first, once, which takes minutes for thousands of them."
        )
        for view in found:
            images = [image for split in new[view.name] for image in self.corpus.split(split)]
            opened = open_store(
                directory,
                encoder,
                [(image.id, image.path) for image in images],
                view=view,
                skip_bad=self.skip_bad,
            )
            if view.name in self.stores:
                self.stores[view.name].extend(opened)  # type: ignore[arg-type]  # of the same kind
            else:
                self.stores[view.name] = opened
            self._opened.update((view.name, split) for split in new[view.name])

    def load_resident(self, device: torch.device) -> None:
        """Read the opened grids into a device's memory, if ``resident`` says so.

        Raises:
            CaptioningError: ``resident`` is True, and they do not fit.
        """
        left = [store for store in self.stores.values() if not store.is_resident(device)]
        nbytes = sum(store.nbytes for store in left)
        if not left or self.resident is False:
            return
        if self.resident == "auto" and not (
            device.type == "cuda" and 2 * nbytes < own_gpu_memory(*torch.cuda.mem_get_info(device))
        ):
            return
        log.info("Reading %.1f GB of grids into the memory of %s", nbytes / 1e9, device)
        for store in left:
            store.load_resident(device)

    # What users ask for

    def write_text(self, folder: Path) -> None:
        """Write the cleaned captions and the vocabulary, for people to read."""
        save_descriptions(folder / "descriptions.txt", self.descriptions)
        self.vocabulary.save(folder / "vocabulary.json")

    def images(self, split: str) -> list[CaptionedImage]:
        """The images of a split; once the split is open, without those that could not be read."""
        images = self.corpus.split(split)
        stores = [store for view, store in self.stores.items() if (view, split) in self._opened]
        return [image for image in images if all(image.id in store for store in stores)]

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
