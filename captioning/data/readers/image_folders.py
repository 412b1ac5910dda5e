"""Finding the image files of a data set in the folders that are usual for them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from captioning.support.errors import CaptioningError

_FOLDERS = (
    "Flicker8k_Dataset",
    "Flickr8k_Dataset",
    "flickr30k-images",
    "flickr30k_images",
    "Images",
    "images",
)
_SUFFIXES = (".jpg", ".jpeg", ".png")


def is_image_name(name: str) -> bool:
    """Whether a file of this name counts as an image of a data set."""
    return name.lower().endswith(_SUFFIXES) and not name.startswith(".")


def find_image_folder(root: Path) -> dict[str, Path]:
    """The files, by name, of the first usual image folder below ``root`` that holds an image.

    One such folder inside another is found too, since the official archive unpacks that way.

    Raises:
        CaptioningError: no such folder has an image.
    """
    for name in _FOLDERS:
        for folder in (root / name, *(root / name / inner for inner in _FOLDERS)):
            files = _list_files(folder)
            if any(is_image_name(file) for file in files):
                return files
    raise CaptioningError(f"{root}: no folder with images in it; looked for {', '.join(_FOLDERS)}.")


def list_image_folders(root: Path, folders: Iterable[str]) -> dict[str, Path]:
    """The files, by name, of the folders that the data set itself names (COCO's ``filepath``).

    Raises:
        CaptioningError: a folder is neither in ``root`` nor in its ``images/``, or is empty.
    """
    files: dict[str, Path] = {}
    for name in folders:
        bases = (root, root / "images")
        inside = next((found for base in bases if (found := _list_files(base / name))), None)
        if inside is None:
            raise CaptioningError(
                f"{root}: the image folder {name} is not in it or in its images/, or is empty."
            )
        files.update(inside)
    return files


def _list_files(folder: Path) -> dict[str, Path]:
    """The files of a folder by name.

    The folder is listed once: asking for each of COCO's 120,000 files would take much longer.
    """
    try:
        with os.scandir(folder) as entries:
            return {entry.name: folder / entry.name for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
