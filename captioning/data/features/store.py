"""The feature store: the encoder's grid of every image, computed once and kept in one file.

A store belongs to one encoder with its weights and preprocessing, and to one view of the images
(:mod:`captioning.data.views`). It is a folder of three files::

    meta.json    what made the grids, for people and for the check on opening
    grids.bin    the packed grids (:mod:`captioning.data.features.packed_grids`)
    index.txt    which image each of them is of (:mod:`captioning.data.features.rows`)

The key of a row is the content of the image file. Data sets therefore share rows, a changed image
gets a new row, and two file names of the same picture share one.
"""

import logging
import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float16
from torch import Tensor

from captioning.data.features.meta import damaged, read_meta
from captioning.data.features.packed_grids import NUMBER, unpack
from captioning.data.features.rows import open_rows, read_index, read_row
from captioning.support.errors import CaptioningError

log = logging.getLogger(__name__)

_ROWS_AT_ONCE: Final = 64


class FeatureStore:
    """Read access to the grids of a list of images.

    Rows are read from the file when they are asked for. The operating system caches the file, once
    for all processes, so that the store itself keeps only the index in memory, unless
    :meth:`load_resident` is called. Pickling (for the workers of a DataLoader) copies no grids.

    Attributes:
        ids: The images, in the order given.
        shape: Locations and channels of each grid.
        notes: For the user: images with the same content, and images that were left out.
    """

    def __init__(self, folder: Path, digests: Mapping[str, str], notes: Sequence[str] = ()) -> None:
        """Open a store that holds all of the images.

        Args:
            folder: The store's own folder, with ``meta.json``.
            digests: From image id to the SHA-256 of its file.
            notes: The initial ``notes``.

        Raises:
            CaptioningError: the store is damaged, or lacks an image.
        """
        self.folder = folder
        self.notes = list(notes)
        meta = read_meta(folder)
        self.shape: tuple[int, int] = (meta["locations"], meta["channels"])
        index = read_index(folder)
        absent = [image for image, digest in digests.items() if digest not in index]
        if absent:
            raise CaptioningError(
                f"{folder} has no grid of {absent[0]} (of {len(absent)} images in all): "
                "build the store again."
            )
        self._rows = {image: index[digest] for image, digest in digests.items()}
        self._resident: Tensor | None = None
        self._places: dict[str, int] = {}  # of the images in `_resident`
        self._open()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._rows)

    def __contains__(self, image: object) -> bool:
        """Whether an image of this id can be read."""
        return image in self._rows

    @property
    def ids(self) -> list[str]:
        """The images, in the order given."""
        return list(self._rows)

    def grid(self, image: str) -> Float16[np.ndarray, "locations channels"]:
        """Return one image's grid.

        Raises:
            KeyError: no such image.
            CaptioningError: the grid was damaged since the store was opened.
        """
        grid: np.ndarray = self.gather([image])[0].numpy()
        return grid

    def gather(self, images: Sequence[str]) -> Float16[Tensor, "batch locations channels"]:
        """Return the grids of several images.

        They are on the device of :meth:`load_resident` if all of them were loaded by it, and in the
        CPU's memory otherwise.

        Raises:
            KeyError: no such image.
            CaptioningError: a grid was damaged since the store was opened.
        """
        resident = self._resident
        if resident is not None and all(image in self._places for image in images):
            rows = torch.tensor([self._places[image] for image in images], dtype=torch.long)
            return resident.index_select(0, rows.to(resident.device, non_blocking=True))
        grids = np.zeros((len(images), self.shape[0] * self.shape[1]), NUMBER)
        for image, grid in zip(images, grids, strict=True):
            packed = read_row(self._file, self._rows[image])
            if packed is None:
                raise self._damaged_grid(image)
            try:
                unpack(packed, grid)
            except (ValueError, IndexError):
                raise self._damaged_grid(image) from None
        return torch.from_numpy(grids).view(-1, *self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes that all grids take in memory, unpacked."""
        return len(self) * self.shape[0] * self.shape[1] * NUMBER.itemsize

    def is_resident(self, device: torch.device) -> bool:
        """Whether :meth:`load_resident` has read all grids into the memory of this device."""
        resident = self._resident
        if resident is None or len(self._places) < len(self):
            return False
        return resident.device == torch.empty(0, device=device).device  # "cuda" means "cuda:0"

    def load_resident(self, device: torch.device) -> None:
        """Read all grids into a device's memory; :meth:`gather` then takes them from there.

        Raises:
            CaptioningError: they do not fit, or one was damaged since the store was opened.
        """
        ids = self.ids
        self._resident, self._places = None, {}  # frees what an earlier call has loaded
        try:
            resident = torch.empty((len(ids), *self.shape), dtype=torch.float16, device=device)
            for start in range(0, len(ids), _ROWS_AT_ONCE):
                some = ids[start : start + _ROWS_AT_ONCE]
                resident[start : start + len(some)] = self.gather(some)
        except RuntimeError as error:
            raise CaptioningError(
                f"data.resident=true: {len(ids)} grids of {self.nbytes / 1e9:.1f} GB in all do not "
                f"fit into the memory of {device}: use data.resident=false."
            ) from error
        self._places = {image: place for place, image in enumerate(ids)}
        self._resident = resident

    def extend(self, other: "FeatureStore") -> None:
        """Add the images of another view of the same store; resident grids stay where they are.

        Images of both that have the same content are added to ``notes``, and logged.
        """
        assert other.folder == self.folder
        first_with = {row: image for image, row in reversed(self._rows.items()) if row.size}
        notes = [
            same_picture(image, first_with[row])
            for image, row in other._rows.items()
            if row in first_with and image not in self._rows
        ]
        for note in notes:
            log.warning("%s", note)
        self.notes += [*other.notes, *notes]
        self._rows |= other._rows

    @property
    def unchecked(self) -> int:
        """The number of grids without a checksum, which an earlier version stored."""
        return sum(row.checksum is None for row in self._rows.values())

    def _damaged_grid(self, image: str) -> CaptioningError:
        if self._rows[image].checksum is None:
            return damaged(self.folder, f"the stored grid of {image} is invalid")
        return CaptioningError(
            f"{self.folder / 'grids.bin'}: the stored grid of {image} is damaged: run the command "
            "again, which computes it anew; if it is damaged again, check the disk."
        )

    def _open(self) -> None:
        self._file = open_rows(self.folder)
        weakref.finalize(self, os.close, self._file)

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in self.__dict__.items() if key != "_file"}
        return state | {"_resident": None, "_places": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def same_picture(image: str, first: str) -> str:
    """A note on two images with the same content."""
    return f"{image} is the same picture as {first}."
