"""Splits for data sets that name none, or not all three."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from captioning.data.readers.base import RawCorpus
from captioning.data.splits import (
    PUBLISHED,
    SPLITS,
    Split,
    bundled_lists,
    captions_digest,
    flickr8k_images,
)
from captioning.support.errors import CaptioningError

T = TypeVar("T")

ONE_IN = 10
"""One image in so many is drawn for dev, and as many for test."""

FEW = 50
"""Scores on fewer images than these are mostly chance."""

_KNOWN = 0.9
"""The share of a data set's images that have to be Flickr8k's for it to be taken for Flickr8k."""


def divide(raw: RawCorpus, name: str, root: Path, seed: int) -> None:
    """Give a data set the splits that it lacks; one that has all three is not changed.

    The images of Flickr8k get the official splits. They are recognised by their names or, if the
    data set has no names, by their captions, and then get their names, too.

    Other splits are drawn, and a warning says so. If there is no split, or only dev or only test,
    all images are divided; otherwise what is missing is taken from train. Which images are drawn
    depends on the seed and their ids alone, so that few of them change their split if others are
    added.

    Args:
        raw: The data set.
        name: Its name.
        root: Its folder, for messages.
        seed: The seed.

    Raises:
        CaptioningError: splits would be drawn for a data set whose splits are published, or of
            fewer than three images.
    """
    if raw.unnamed and _name_by_captions(raw):
        raw.use_lists(bundled_lists())
        return
    present = [split for split in SPLITS if raw.splits.get(split)]
    if not present and is_flickr8k(raw.captions):
        raw.use_lists(bundled_lists())
        return
    drawn: tuple[Split, ...] = ("test", "dev")
    missing = [split for split in drawn if split not in present]
    if not missing or present == ["dev", "test"]:
        return
    if name in PUBLISHED:
        if present:
            return  # that a split is missing is said for all layouts alike
        raise CaptioningError(
            f"{root}: it names no splits, and its images are not those of {name}: use data=own, "
            "which draws splits, or name the split of each image."
        )
    if "train" in present:
        pool = raw.splits["train"]
    else:
        pool, missing = [image for image, texts in raw.captions.items() if texts], [*drawn]
    _draw(raw, pool, missing, seed)
    what = f"no {' and no '.join(missing)} split" if "train" in present else "no splits"
    counts = ", ".join(f"{len(raw.splits[split]):,} for {split}" for split in SPLITS)
    raw.warnings.append(
        f"The data names {what}, so that data.split_seed={seed} draws them: its images are now "
        f"{counts}. The data may choose them itself, in a column `split` of train, dev and test."
    )
    few = min(len(raw.splits["dev"]), len(raw.splits["test"]))
    if few < FEW:
        raw.warnings.append(
            f"A split of {few} image{'s' if few > 1 else ''} is small: its scores are only chance."
        )


def _draw(raw: RawCorpus, pool: list[str], missing: list[Split], seed: int) -> None:
    count = max(1, round(len(pool) / ONE_IN))
    if len(pool) <= count * len(missing):
        raise CaptioningError(
            f"{raw.splits_source}: {len(pool)} images with captions are too few to draw splits "
            "from: at least three are needed."
        )

    def place(image: str) -> tuple[bool, str]:
        # Images without a file go to train, and are then reported like all others without one.
        return image not in raw.files, hashlib.sha256(f"{seed} {image}".encode()).hexdigest()

    drawn = sorted(pool, key=place)
    chosen = {
        image: split
        for number, split in enumerate(missing)
        for image in drawn[number * count : (number + 1) * count]
    }
    kept = {split: images for split, images in raw.splits.items() if split not in missing}
    of_pool: dict[Split, list[str]] = {split: [] for split in ("train", *missing)}
    for image in pool:
        of_pool[chosen.get(image, "train")].append(image)
    raw.splits = kept | of_pool


def is_flickr8k(images: Iterable[str]) -> bool:
    """Whether most of some images are named as those in Flickr8k's official splits."""
    names = {image for listed in bundled_lists().images.values() for image in listed}
    found = [image in names for image in images]
    return sum(found) >= _KNOWN * max(1, len(found))


def _name_by_captions(raw: RawCorpus) -> bool:
    """Name the images after those of Flickr8k with the same captions, if most of them have some."""
    known = flickr8k_images()
    names = {
        image: known[digest]
        for image, texts in raw.captions.items()
        if texts and (digest := captions_digest(texts)) in known
    }
    if len(names) < _KNOWN * len(raw.captions) or len({*names.values()}) < len(names):
        return False
    official = {image: split for split, of in bundled_lists().images.items() for image in of}
    given = {names.get(image): split for split, images in raw.splits.items() for image in images}
    moved = sum(official[image] != split for image, split in given.items() if image)
    raw.notes.append(
        f"{len(names):,} of {len(raw.captions):,} images are Flickr8k's, by their captions, and "
        f"get their names and official splits; {moved:,} of them were in another split."
    )
    raw.captions = _renamed(raw.captions, names)
    raw.files = _renamed(raw.files, names)
    raw.places = _renamed(raw.places, names)
    return True


def _renamed(values: Mapping[str, T], names: Mapping[str, str]) -> dict[str, T]:
    return {names.get(image, image): value for image, value in values.items()}
