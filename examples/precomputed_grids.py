"""Example of grids that were computed elsewhere: an .npy file for each image, such as regions.

python train.py --config-dir examples/conf data=precomputed encoder=precomputed encoder.folder=DIR

The file of the image ``1.jpg`` is ``DIR/1.npy`` or ``DIR/1.jpg.npy``. It holds locations x
channels, or rows x columns x channels, of which all images have as many. New photographs cannot be
captioned, because nothing can compute their grids.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captioning.data.datamodule import CaptionDataModule
from captioning.data.features.store import FeatureStore
from captioning.data.splits import SPLITS
from captioning.data.views import ORIGINAL
from captioning.models.encoders.base import Encoder, GridEncoder
from captioning.support.errors import CaptioningError
from captioning.support.state_dicts import State


class PrecomputedGrids(GridEncoder):
    """In the place of an encoder: the files of a folder.

    Its fingerprint depends on its name and on the names and sizes of the files, but not on their
    content: give other grids another name, so that the leaderboard tells their runs apart.

    Args:
        folder: the folder of the files.
        name: what computed the grids.
        base: the other arguments of an encoder, which have no effect.
    """

    stride = 1

    def __init__(self, folder: str, name: str = "precomputed", **base: Any) -> None:
        self.folder, self.name = Path(folder), name
        files = sorted(self.folder.glob("*.npy"))
        if not files:
            raise CaptioningError(f"encoder.folder={folder}: there are no .npy files.")
        *self.shape, self.channels = np.load(files[0], mmap_mode="r").shape
        super().__init__(**base)
        listed = "".join(f"{name} {file.name} {file.stat().st_size}\n" for file in files)
        self.fingerprint = hashlib.sha256(listed.encode()).hexdigest()

    def build(self) -> None:
        """There are no layers."""

    def measure(self, image_size: int) -> tuple[int, int]:
        """Rows and columns; a list of locations is one row, unless it fills a square."""
        locations = int(np.prod(self.shape))
        side = round(locations**0.5)
        rows = self.shape[0] if len(self.shape) == 2 else side if side**2 == locations else 1
        return rows, locations // rows

    def find_weights(self, weights: str) -> tuple[State, str]:
        """There are none."""
        return {}, f"the files of {self.folder}"

    def map(self, images: Tensor) -> Tensor:
        raise CaptioningError(
            f"{self.name}: grids that were computed elsewhere are read by data=precomputed, and "
            "there are none of other pictures."
        )

    def last_block(self) -> list[nn.Parameter]:
        return []

    def file(self, image: str) -> Path:
        """The file of an image; it need not exist."""
        whole = self.folder / f"{image}.npy"
        return whole if whole.is_file() else self.folder / f"{Path(image).stem}.npy"

    def read(self, image: str) -> Tensor:
        """The grid of an image, locations x channels.

        Raises:
            CaptioningError: its file has another shape than the first one.
        """
        grid = np.load(self.file(image))
        if grid.shape != (*self.shape, self.channels):
            wanted = (*self.shape, self.channels)
            raise CaptioningError(f"{self.file(image)}: its shape is {grid.shape}, not {wanted}.")
        return torch.from_numpy(grid).flatten(0, -2)


class PrecomputedStore(FeatureStore):
    """All that a data module asks of a feature store, from the files."""

    def __init__(self, encoder: PrecomputedGrids) -> None:
        self.encoder = encoder

    def __contains__(self, image: object) -> bool:
        return self.encoder.file(str(image)).is_file()

    @property
    def nbytes(self) -> int:
        """Nothing is kept in memory."""
        return 0

    def gather(self, images: Sequence[str]) -> Tensor:
        """The grids of some images."""
        return torch.stack([self.encoder.read(image) for image in images])

    def is_resident(self, device: torch.device) -> bool:
        """Grids are never kept in the memory of a device."""
        return True


class PrecomputedData(CaptionDataModule):
    """The data module of any layout, with grids from files."""

    def open_features(
        self,
        encoder: Encoder,
        splits: Sequence[str] = SPLITS,
        views: Sequence[str] | None = None,
    ) -> None:
        """Check that each image of the splits has a file."""
        if not isinstance(encoder, PrecomputedGrids):
            raise CaptioningError("data=precomputed needs encoder=precomputed.")
        if {*(views or self.train_views)} != {ORIGINAL.name}:
            raise CaptioningError("views: precomputed grids are of the original pictures alone.")
        self.read_text()
        for split in splits:
            for image in self.corpus.split(split):
                if not encoder.file(image.id).is_file():
                    raise CaptioningError(f"{encoder.file(image.id)} is missing.")
        self.features.encoder = encoder
        self.features.stores = {ORIGINAL.name: PrecomputedStore(encoder)}
