"""The grids that are open: of one encoder, by view and split."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from pytorch_lightning.utilities import rank_zero_info

from captioning.data.corpus import CaptionedImage
from captioning.data.features.joint import Store, open_store
from captioning.data.features.meta import store_folder
from captioning.data.views import find_views
from captioning.models.encoders.base import Encoder
from captioning.support.memory import own_gpu_memory

log = logging.getLogger(__name__)


class OpenFeatures:
    """The grids of an encoder that are open.

    Args:
        directory: Where all feature stores are.
        skip_bad: Leave out images that are missing or broken.

    Attributes:
        encoder: The encoder; None before :meth:`open`.
        stores: The grids, by the name of the view; empty if the encoder is trained, and sees
            pixels.
    """

    def __init__(self, directory: Path, *, skip_bad: bool) -> None:
        self.directory = directory
        self.skip_bad = skip_bad
        self.encoder: Encoder | None = None
        self.stores: dict[str, Store] = {}
        self._folder: Path | None = None  # of the original
        self._opened: set[tuple[str, str]] = set()  # views and splits that are in `stores`

    def open(
        self,
        encoder: Encoder,
        wanted: Mapping[str, Sequence[str]],
        images_of: Callable[[str], Sequence[CaptionedImage]],
    ) -> None:
        """Open the grids of some splits, after computing those that are not in the store yet.

        Splits that are open already stay open, unless the encoder is a different one (other
        weights or other preprocessing). If the encoder is trained, nothing is opened.

        Args:
            encoder: The encoder.
            wanted: The names of views, and the splits of which each is opened.
            images_of: Gives the images of a split.

        Raises:
            CaptioningError: an image is missing or broken and ``skip_bad`` is off, the store is
                damaged or cannot be written, or there is no such view.
        """
        trained = any(parameter.requires_grad for parameter in encoder.parameters())
        folder = None if trained else store_folder(self.directory, encoder)
        if folder != self._folder:
            self.stores = {}
            self._opened.clear()
        self.encoder = encoder
        self._folder = folder
        new: dict[str, list[str]] = {}  # the splits to open of each view
        for name, splits in wanted.items():
            if left := [split for split in splits if (name, split) not in self._opened]:
                new[name] = left
        found = find_views(list(new)) if new else ()
        if trained or not new:
            return
        # Lightning's logger speaks in a notebook, where nobody has configured logging.
        rank_zero_info(
            f"Opening the grids of {encoder.name}: images that are not in the feature store yet "
            "are encoded first, once, which takes minutes for thousands of them."
        )
        for view in found:
            images = [image for split in new[view.name] for image in images_of(split)]
            opened = open_store(
                self.directory,
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

    def readable(self, split: str, images: Sequence[CaptionedImage]) -> list[CaptionedImage]:
        """The images of a split, without those that are missing in one of its open stores."""
        stores = [store for view, store in self.stores.items() if (view, split) in self._opened]
        return [image for image in images if all(image.id in store for store in stores)]

    def load_resident(self, device: torch.device, when: Literal["auto"] | bool) -> None:
        """Read the grids into a device's memory, unless they are there.

        Args:
            device: The device.
            when: Whether to do so. ``auto``: if it is a GPU, and they take no more than half of its
                free memory, or of this process's share; see
                :func:`captioning.support.memory.own_gpu_memory`.

        Raises:
            CaptioningError: they do not fit.
        """
        left = [store for store in self.stores.values() if not store.is_resident(device)]
        nbytes = sum(store.nbytes for store in left)
        if not left or when is False:
            return
        if when == "auto" and not (
            device.type == "cuda" and 2 * nbytes < own_gpu_memory(*torch.cuda.mem_get_info(device))
        ):
            return
        log.info("Reading %.1f GB of grids into the memory of %s", nbytes / 1e9, device)
        for store in left:
            store.load_resident(device)
