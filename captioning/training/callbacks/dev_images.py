"""Which images of the dev split a callback shows."""

from collections.abc import Sequence

import pytorch_lightning as pl

from captioning.data.corpus import CaptionedImage
from captioning.data.dataset import CaptionDataset
from captioning.support.errors import CaptioningError
from captioning.support.nearest import did_you_mean

Images = int | list[str]
"""How many images, spread evenly over the dev split; or their names."""


def check_settings(key: str, images: Images, every_n_epochs: int) -> None:
    """Check the settings of a callback before training.

    Args:
        key: the callback's key in the configuration.
        images: how many, or which, images it shows.
        every_n_epochs: the number of epochs between two times.

    Raises:
        CaptioningError: there would be nothing to show.
    """
    too_few = images < 1 if isinstance(images, int) else not images
    if too_few or every_n_epochs < 1:
        raise CaptioningError(
            f"{key}: images={images} must be at least 1, or a list of names, and "
            f"every_n_epochs={every_n_epochs} at least 1."
        )


def dev_dataset(trainer: pl.Trainer) -> CaptionDataset:
    """The images on which a run is validated."""
    dataset = getattr(trainer.val_dataloaders, "dataset", None)
    assert isinstance(dataset, CaptionDataset)
    return dataset


def check_names(trainer: pl.Trainer, images: Images, key: str) -> None:
    """Check the names of images when training starts, if the dev split has been read by then.

    Raises:
        CaptioningError: no image of the dev split has such a name.
    """
    dataset = getattr(trainer.val_dataloaders, "dataset", None)
    if isinstance(dataset, CaptionDataset):
        choose(dataset.images, images, key)


def choose(dev: Sequence[CaptionedImage], images: Images, key: str) -> list[int]:
    """The positions of the images to show.

    Args:
        dev: the dev split.
        images: how many images, spread evenly over the split, or their names; the ending of a file
            name can be left out.
        key: the callback's key in the configuration.

    Raises:
        CaptioningError: no image of the dev split has such a name.
    """
    if isinstance(images, int):
        return sorted({i * len(dev) // images for i in range(images)})
    names = {image.id.rpartition(".")[0] or image.id: place for place, image in enumerate(dev)}
    names |= {image.id: place for place, image in enumerate(dev)}
    for image in images:
        if image not in names:
            suggestion = did_you_mean(image, names) or f"one of its images is {dev[0].id}."
            raise CaptioningError(f"{key}.images: the dev split has no image {image}; {suggestion}")
    return list(dict.fromkeys(names[image] for image in images))
