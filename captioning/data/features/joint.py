"""The grids of several encoders, each in its own store, read together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float16
from torch import Tensor

from captioning.data.features.building import build_store
from captioning.data.features.store import FeatureStore
from captioning.models.encoders.base import Encoder
from captioning.models.encoders.joint import JointEncoder


class JointStore:
    """Read access to the grids of a :class:`~captioning.models.encoders.joint.JointEncoder`.

    Each encoder has a store of its own, which is the same as if it were used alone.

    Args:
        stores: The store of each encoder, of the same view.
        encoder: The joint encoder.
    """

    def __init__(self, stores: Sequence[FeatureStore], encoder: JointEncoder) -> None:
        self.stores = list(stores)
        self._join = encoder.join

    def __contains__(self, image: object) -> bool:
        """Whether an image of this id can be read."""
        return all(image in store for store in self.stores)

    @property
    def notes(self) -> list[str]:
        """For the user: images with the same content, and images that were left out."""
        return list(dict.fromkeys(note for store in self.stores for note in store.notes))

    def gather(self, images: Sequence[str]) -> Float16[Tensor, "batch locations channels"]:
        """Return the joint grids of several images; see :meth:`FeatureStore.gather`."""
        return self._join([store.gather(images) for store in self.stores])

    @property
    def nbytes(self) -> int:
        """The bytes that all grids take in memory, unpacked."""
        return sum(store.nbytes for store in self.stores)

    def is_resident(self, device: torch.device) -> bool:
        """Whether :meth:`load_resident` has read all grids into the memory of this device."""
        return all(store.is_resident(device) for store in self.stores)

    def load_resident(self, device: torch.device) -> None:
        """Read all grids into a device's memory; see :meth:`FeatureStore.load_resident`."""
        for store in self.stores:
            store.load_resident(device)

    def extend(self, other: "JointStore") -> None:
        """Add the images of another one of the same encoders and view."""
        for store, more in zip(self.stores, other.stores, strict=True):
            store.extend(more)


Store = FeatureStore | JointStore


def open_store(
    directory: Path, encoder: Encoder, images: Sequence[tuple[str, Path]], **settings: Any
) -> Store:
    """Open the store of an encoder, or those of the members of a joint one.

    Grids that a store does not have yet are computed first.

    Args:
        directory: Where all stores are.
        encoder: The network.
        images: Id and file of each image.
        settings: As for :func:`~captioning.data.features.building.build_store`.

    Raises:
        CaptioningError: as for ``build_store``.
    """
    if not isinstance(encoder, JointEncoder):
        return build_store(directory, encoder, images, **settings)
    stores = [build_store(directory, member, images, **settings) for member in encoder.members]
    return JointStore(stores, encoder)
