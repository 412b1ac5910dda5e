"""The three splits of a data set, and the lists that say which image belongs to which."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from captioning.support.errors import CaptioningError
from captioning.support.reading import numbered_lines

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


PUBLISHED = frozenset({"flickr8k", "flickr30k", "coco"})
"""Data sets whose splits are published. Splits that are drawn for them would not be comparable."""

_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("dev", "val", "valid", "validation", "eval"), "dev"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def split_named(name: str) -> Split | None:
    """The split that a word names: ``valid`` and ``validation``, for example, are ``dev``."""
    return _NAMES.get(name.strip().lower())


class SplitLists(NamedTuple):
    """The images of each split.

    Attributes:
        images: The file names of each split, in the order of its list.
        source: Where the lists come from, for messages.
        bundled: Whether they are the lists that come with this package.
    """

    images: dict[Split, list[str]]
    source: str
    bundled: bool


_LISTS: tuple[dict[Split, str], ...] = (
    {split: f"Flickr_8k.{split}Images.txt" for split in SPLITS},
    {"train": "train.txt", "dev": "val.txt", "test": "test.txt"},
)
"""The names of the lists: Flickr8k's, and those of Flickr30k Entities."""


def read_split_lists(folders: Sequence[Path], name: str, captions: Path) -> SplitLists:
    """Read the split lists of the first folder that has them, otherwise those of this package.

    Other data sets than the published ones need no lists: their splits are then empty, and
    :func:`captioning.data.division.divide` draws some.

    A line of ``train.txt``, ``val.txt`` or ``test.txt`` may lack the ``.jpg`` of the file name, as
    in Flickr30k Entities.

    Args:
        folders: Folders that may hold ``Flickr_8k.{train,dev,test}Images.txt``, or ``train.txt``,
            ``val.txt`` and ``test.txt``, in the order in which they are tried.
        name: The data set's name. The package has the lists of ``flickr8k`` only.
        captions: The file of the captions, for messages.

    Raises:
        CaptioningError: a folder has some of the three lists but not all of them, or there are no
            lists for this data set.
    """
    for folder in folders:
        for names in _LISTS:
            paths = {split: folder / names[split] for split in SPLITS}
            missing = [path.name for path in paths.values() if not path.is_file()]
            if not missing:
                images = {split: _read_list(path) for split, path in paths.items()}
                source = ", ".join(map(str, paths.values()))
                return SplitLists(images, source, bundled=False)
            if len(missing) < len(paths):
                raise CaptioningError(f"{folder}: the split list {missing[0]} is missing.")
    if name not in PUBLISHED:
        return SplitLists({}, str(captions), bundled=False)
    if name != "flickr8k":
        raise CaptioningError(
            f"{captions}: it has captions, but there are no splits for {name} beside it; put "
            "train.txt, val.txt and test.txt there, one file name a line, or use Karpathy's "
            f"dataset_{name}.json, which has both; data=own draws splits for data of your own."
        )
    return bundled_lists()


def bundled_lists() -> SplitLists:
    """Flickr8k's official lists, which come with this package."""
    images: dict[Split, list[str]] = {split: [] for split in SPLITS}
    for split, image, _ in _bundled_lines():
        images[split].append(image)
    return SplitLists(images, "the official split lists", bundled=True)


def flickr8k_images() -> dict[str, str]:
    """The names of Flickr8k's images by the :func:`captions_digest` of their captions."""
    return {digest: image for _, image, digest in _bundled_lines()}


def captions_digest(captions: Iterable[str]) -> str:
    """Eight hexadecimal digits that identify an image of Flickr8k by its captions.

    Neither the order of the captions nor anything but their letters and digits matters.
    """
    letters = sorted(re.sub(r"[\W_]+", "", caption.lower()) for caption in captions)
    return hashlib.sha256("\n".join(letters).encode()).hexdigest()[:8]


def _read_list(path: Path) -> list[str]:
    names = [line.strip() for _, line in numbered_lines(path)]
    if path.name.startswith("Flickr_8k."):
        return names
    return [name if Path(name).suffix else f"{name}.jpg" for name in names]


@cache
def _bundled_lines() -> tuple[tuple[Split, str, str], ...]:
    """Split, image and digest of the captions, from ``flickr8k_splits.txt`` in this package."""
    text = package_files("captioning.data").joinpath("flickr8k_splits.txt").read_text("utf-8")
    lines = (line.split("\t") for line in text.splitlines() if not line.startswith("#"))
    return tuple((_NAMES[split], image, digest) for split, image, digest in lines)
