"""The three splits of a data set, and the lists that say which image belongs to which."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files as package_files
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from captioning.data.text import numbered_lines
from captioning.support.errors import CaptioningError

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


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
    if name != "flickr8k":
        raise CaptioningError(
            f"{captions}: it has captions, but there are no splits for {name} beside it; put "
            "train.txt, val.txt and test.txt there, one file name a line, or use Karpathy's "
            f"dataset_{name}.json, which has both."
        )
    return SplitLists(_bundled_lists(), "the official split lists", bundled=True)


def _read_list(path: Path) -> list[str]:
    names = [line.strip() for _, line in numbered_lines(path)]
    if path.name.startswith("Flickr_8k."):
        return names
    return [name if Path(name).suffix else f"{name}.jpg" for name in names]


def _bundled_lists() -> dict[Split, list[str]]:
    """Flickr8k's official lists, from ``flickr8k_splits.txt`` in this package."""
    images: dict[Split, list[str]] = {split: [] for split in SPLITS}
    text = package_files("captioning.data").joinpath("flickr8k_splits.txt").read_text("utf-8")
    for line in text.splitlines():
        if not line.startswith("#"):
            split, image = line.split("\t")
            images[next(known for known in SPLITS if known == split)].append(image)
    return images
