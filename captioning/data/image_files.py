"""Which image files a name means: a file, a folder or a pattern."""

import logging
import os
from collections.abc import Iterator
from glob import glob
from itertools import takewhile
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from PIL import Image

from captioning.support.errors import CaptioningError

log = logging.getLogger(__name__)

FORMATS: Final = frozenset(
    {"AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP"}
)
"""What photographs are saved as, by Pillow's names; it opens much else, such as MPEG and PDF."""


class FoundImages(NamedTuple):
    """The image files that a name means.

    Attributes:
        root: A folder that all of them are in: the one that was named, that of a file that was
            named, or what a pattern has before its first wildcard.
        files: Sorted, each once; below ``root``.
    """

    root: Path
    files: list[Path]


def find_images(name: str) -> FoundImages:
    """Find the image files that a name means.

    What exists under that name counts, whatever its suffix: a file is itself, a folder all images
    in it and in its subfolders. Any other name is a pattern (``*``, ``?``, ``[abc]``, and ``**``
    for folders in folders). In folders and of a pattern's matches, the files with a photograph's
    suffix (in any case) are images; others are counted in the log. Hidden files are passed over,
    unless a pattern names them.

    Args:
        name: A path or a pattern.

    Raises:
        CaptioningError: it means no image, or a folder cannot be read.
    """
    path = Path(name)
    if not name:
        raise CaptioningError("images= is empty: name a file, a folder or a pattern.")
    if path.is_dir():
        root, files = path, list(_walk(path))
    elif path.exists():
        return FoundImages(path.parent, [path])
    else:
        fixed = takewhile(lambda part: not set("*?[") & set(part), path.parts)
        # Not pathlib's: it lists hidden files, and no files of a name that ends in **.
        matches = map(os.path.normpath, glob(name, recursive=True))  # noqa: PTH207
        files = [Path(match) for match in set(matches) if Path(match).is_file()]
        # A pattern such as */../.. leaves the folder that it starts in.
        root = Path(os.path.commonpath([Path(*fixed), *files]))
    suffixes = {
        suffix for suffix, format in Image.registered_extensions().items() if format in FORMATS
    }
    images = sorted(file for file in files if file.suffix.lower() in suffixes)
    if not images:
        what = "this folder has no image" if path.is_dir() else "no such file, folder or pattern"
        others = f", only {len(files)} files with other suffixes" if files else ""
        raise CaptioningError(
            f"images={name}: {what}{others}; images are {', '.join(sorted(suffixes))}."
        )
    if len(images) < len(files):
        log.info("%s: %d of %d files are images, by their suffix", root, len(images), len(files))
    return FoundImages(root, images)


def _walk(folder: Path) -> Iterator[Path]:
    """The files below a folder that are not hidden; a folder linked into itself is read once."""

    def refuse(error: OSError) -> NoReturn:
        raise CaptioningError(f"{error.filename} cannot be read ({error.strerror}).") from error

    seen = {folder.resolve()}
    for current, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        yield from (Path(current, file) for file in files if not file.startswith("."))
        visible = (Path(current, name) for name in sorted(folders) if not name.startswith("."))
        fresh = {sub.resolve(): sub.name for sub in visible}
        folders[:] = [name for real, name in fresh.items() if real not in seen]
        seen |= fresh.keys()
