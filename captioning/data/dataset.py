"""The images of one split as a torch dataset, which returns whole batches."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from captioning.data.batch import Batch
from captioning.data.corpus import CaptionedImage
from captioning.data.features.store import FeatureStore
from captioning.data.images import load_rgb
from captioning.models.encoders.base import GridEncoder


class CaptionDataset(Dataset[Batch]):
    """The images of one split with their captions.

    Args:
        images: Ids and files.
        tokens: For each image, its captions as token ids.
        store: Where the grids are. None: the image files are read, and preprocessed for
            ``encoder``.
        encoder: The encoder whose preprocessing the images get.
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
        """The batch of these images. A DataLoader calls this method once for each batch."""
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
            inputs = self.store.gather(ids)
        else:
            inputs = torch.stack([self.preprocessing(load_rgb(image.path)) for image in images])
        return Batch(inputs, torch.from_numpy(tokens), ids)


def identity_collate(batch: Any) -> Any:
    """Return the batch as it is, since the dataset returns whole batches."""
    return batch
