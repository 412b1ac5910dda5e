"""The images of one split as a torch dataset, which returns whole batches."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from captioning.data.batch import Batch
from captioning.data.corpus import CaptionedImage
from captioning.data.features.joint import Store
from captioning.data.images import load_rgb
from captioning.data.views import ORIGINAL_ALONE, View, find_views
from captioning.models.encoders.base import Encoder, PicturePreprocessing

Item = int | tuple[int, str]
"""The index of an image, or an index and the name of a view."""


class CaptionDataset(Dataset[Batch]):
    """The images of one split with their captions.

    Args:
        images: Ids and files.
        tokens: For each image, its captions as token ids.
        stores: Where the grids are, by view. None: the image files are read, and preprocessed for
            ``encoder``.
        encoder: The encoder whose preprocessing the images get.
        views: The names of the views that an image has. An item is either the index of an image,
            with all of its views, or an index and the name of one view.
        sides: The ids of two words that are exchanged in the captions of an item with one mirrored
            view; see :func:`captioning.data.views.side_ids`.
    """

    def __init__(
        self,
        images: Sequence[CaptionedImage],
        tokens: Sequence[Sequence[Sequence[int]]],
        stores: Mapping[str, Store] | None,
        encoder: Encoder,
        views: Sequence[str] = ORIGINAL_ALONE,
        sides: Sequence[int] = (),
    ) -> None:
        self.images = images
        self.tokens = [sorted(captions, key=len, reverse=True) for captions in tokens]
        self.stores = stores
        self.preprocessing = encoder.preprocessing
        self.views = tuple(views)
        self.sides = tuple(sides)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    def __getitem__(self, item: Item) -> Batch:
        """A batch of one image."""
        return self.__getitems__([item])

    def __getitems__(self, items: Sequence[Item]) -> Batch:
        """The batch of these images. A DataLoader calls this method once for each batch."""
        indices = [item if isinstance(item, int) else item[0] for item in items]
        drawn = [item[1] for item in items if not isinstance(item, int)]
        images = [self.images[index] for index in indices]
        captions = [self.tokens[index] for index in indices]
        most = max(map(len, captions))
        longest = max(len(caption) for of_image in captions for caption in of_image)
        tokens = np.zeros((len(images), most, longest), np.int64)  # filled faster than a tensor
        for of_image, rows in zip(captions, tokens, strict=True):
            for caption, row in zip(of_image, rows, strict=False):
                row[: len(caption)] = caption
        if self.sides:
            for rows, view in zip(tokens, drawn, strict=False):  # of an evaluation, none is drawn
                if find_views([view])[0].mirrored:
                    left, right = (rows == side for side in self.sides)
                    rows[left], rows[right] = reversed(self.sides)
        ids = [image.id for image in images]
        return Batch(
            self._pixels(images, drawn) if self.stores is None else self._grids(ids, drawn),
            torch.from_numpy(tokens),
            ids,
            ORIGINAL_ALONE if drawn else self.views,
        )

    def _grids(self, ids: list[str], drawn: list[str]) -> Tensor:
        """The grids of the view that was drawn for each image, or of all views of each."""
        assert self.stores is not None
        if not drawn:
            return torch.cat([self.stores[view].gather(ids) for view in self.views], 1)
        places: dict[str, list[int]] = defaultdict(list)
        for place, view in enumerate(drawn):
            places[view].append(place)
        if len(places) == 1:
            return self.stores[drawn[0]].gather(ids)
        by_view = torch.cat(
            [self.stores[view].gather([ids[n] for n in some]) for view, some in places.items()]
        )
        order = torch.tensor([place for some in places.values() for place in some])
        return by_view.index_select(0, order.argsort().to(by_view.device, non_blocking=True))

    def _pixels(self, images: list[CaptionedImage], drawn: list[str]) -> Tensor:
        """The same as pixels."""
        of_each = [find_views([view]) for view in drawn] or [find_views(self.views)] * len(images)
        return torch.stack(
            [
                stacked_pixels(load_rgb(image.path), self.preprocessing, views)
                for image, views in zip(images, of_each, strict=True)
            ]
        )


def identity_collate(batch: Any) -> Any:
    """Return the batch as it is, since the dataset returns whole batches."""
    return batch


def stacked_pixels(
    picture: Image.Image, preprocessing: PicturePreprocessing, views: Sequence[View]
) -> Float[Tensor, "*views 3 height width"]:
    """Views of a picture as the input of an encoder; a single view has no dimension of its own."""
    pixels = [view.pixels(picture, preprocessing) for view in views]
    return torch.stack(pixels) if len(pixels) > 1 else pixels[0]
