"""Finding the image files of a data set in the folders that are usual for them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePath

from captioning.data.image_files import image_suffixes
from captioning.data.names import composed
from captioning.support.errors import CaptioningError

_FOLDERS = (
    "Flicker8k_Dataset",
    "Flickr8k_Dataset",
    "flickr30k-images",
    "flickr30k_images",
    "Images",
    "images",
)


def is_image_name(name: str) -> bool:
    """Whether a file of this name counts as an image of a data set."""
    file = PurePath(name)
    return file.suffix.lower() in image_suffixes() and not file.name.startswith(".")


def find_image_folder(root: Path) -> dict[str, Path]:
    """The files of the first usual image folder below ``root`` that holds an image.

    One such folder inside another is found too, since the official archive unpacks that way.

    Returns:
        The files by name. The name of a file in a folder inside the image folder has that folder in
        it, such as ``train/1.jpg``.

    Raises:
        CaptioningError: no such folder has an image, or one cannot be read.
    """
    others: dict[str, Path] = {}
    for name in _FOLDERS:
        for folder in (root / name, *(root / name / inner for inner in _FOLDERS)):
            files = _list_files(folder)
            if any(map(is_image_name, files)):
                return files
            others |= files
    found = f"; none of the {len(others):,} files there is an image" if others else ""
    raise CaptioningError(
        f"{root}: no folder with images in it; looked for {', '.join(_FOLDERS)}{found}."
    )


def list_image_folders(root: Path, folders: Iterable[str]) -> dict[str, Path]:
    """The files, by name, of the folders that the data set itself names (COCO's ``filepath``).

    Raises:
        CaptioningError: a folder is neither in ``root`` nor in its ``images/``, or is empty.
    """
    files: dict[str, Path] = {}
    for name in folders:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise CaptioningError(f"{root}: the image folder {name} would be outside of it.")
        bases = (root, root / "images")
        inside = next((found for base in bases if (found := _list_files(base / name))), None)
        if inside is None:
            raise CaptioningError(
                f"{root}: the image folder {name} is not in it or in its images/, or is empty."
            )
        files.update(inside)
    return files


def _list_files(folder: Path) -> dict[str, Path]:
    """The files of a folder, and of the folders in it, by their path in it.

    Folders that are hidden or have the name of a usual image folder are left out. Folders are
    listed once: asking for each of COCO's 120,000 files would take much longer.

    Raises:
        CaptioningError: a folder cannot be read, or two names differ only in their Unicode form.
    """
    files: dict[str, Path] = {}
    waiting = [("", folder)]
    seen = {folder.resolve()}  # so that a cycle of links is followed once
    while waiting:
        prefix, current = waiting.pop()
        try:
            with os.scandir(current) as entries:
                for entry in entries:
                    name = composed(prefix + entry.name)
                    if entry.is_file():
                        if name in files:
                            raise CaptioningError(
                                f"{folder}: two files are called {name}, in two Unicode forms; "
                                "remove one of them."
                            )
                        files[name] = current / entry.name
                    elif entry.is_dir() and not _is_skipped(entry.name):
                        inner = current / entry.name
                        if (real := inner.resolve()) not in seen:
                            seen.add(real)
                            waiting.append((f"{name}/", inner))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise CaptioningError(f"{current} cannot be read ({error.strerror}).") from error
    return files


def _is_skipped(folder: str) -> bool:
    return folder.startswith((".", "__MACOSX")) or folder in _FOLDERS
