"""Finding the image files that a user names by a file, a folder or a pattern."""

import logging
import os
from collections.abc import Iterator
from functools import cache
from glob import glob
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple, NoReturn

from PIL import Image

from captioning.data.images import FORMATS
from captioning.support.errors import CaptioningError

log = logging.getLogger(__name__)


_HEIC_SUFFIXES = frozenset({".heic", ".heif", ".hif"})


@cache
def image_suffixes() -> frozenset[str]:
    """The suffixes of image files, in lower case.

    Those of HEIC are among them even if it cannot be read, so that such a file is named.
    """
    known = Image.registered_extensions().items()
    return _HEIC_SUFFIXES | {suffix for suffix, format in known if format in FORMATS}


class FoundImages(NamedTuple):
    """The image files that were found.

    Attributes:
        root: A folder that contains all of them: the folder that was named, the folder of the file
            that was named, or the part of a pattern before its first wildcard.
        files: The files, sorted, each once.
    """

    root: Path
    files: list[Path]


def find_images(name: str) -> FoundImages:
    """Find the image files that a user names.

    The name of an existing file means that file, whatever its suffix. The name of a folder means
    all images in it and in its subfolders. Any other name is a pattern (``*``, ``?``, ``[abc]``,
    and ``**`` for any number of nested folders). In a folder, and among the matches of a pattern,
    a file counts as an image by its suffix, in upper or lower case; the log says how many files do
    not. Hidden files are ignored, unless a pattern names them. What has the suffix of an image and
    cannot be read, such as a pipe or a broken link, is among the files; whoever reads it names it.

    Args:
        name: A path or a pattern.

    Raises:
        CaptioningError: there is no such image, or a folder cannot be read.
    """
    path = Path(name)
    if not name:
        raise CaptioningError("images= is empty: name a file, a folder or a pattern.")
    try:
        if path.is_dir():
            root, files = path, list(visible_files(path))
        elif path.exists():
            return FoundImages(path.parent, [path])
        else:
            root, files = _match(name)
    except OSError as error:  # such as a name that is too long
        raise CaptioningError(f"images={name} cannot be read ({error.strerror}).") from error
    suffixes = image_suffixes()
    images = sorted(file for file in files if file.suffix.lower() in suffixes)
    if not images:
        if not files and not path.is_dir():
            raise CaptioningError(
                f"images={name}: there is no such file or folder, and as a pattern it matches none."
            )
        others = f", only {len(files)} files with other suffixes" if files else ""
        formats = ", ".join(sorted(FORMATS))
        raise CaptioningError(f"images={name}: no image is here{others}; images are {formats}.")
    if len(images) < len(files):
        log.info("%s: %d of %d files are images, by their suffix", root, len(images), len(files))
    return FoundImages(root, images)


def _match(pattern: str) -> tuple[Path, list[Path]]:
    """The folder that contains all matches of a pattern, and the matches that are no folders."""
    fixed = takewhile(lambda part: not set("*?[") & set(part), Path(pattern).parts)
    # Path.glob would match hidden files, and would find no files for a pattern ending in **.
    matches = map(os.path.normpath, glob(pattern, recursive=True))  # noqa: PTH207
    files = [Path(match) for match in set(matches) if not Path(match).is_dir()]
    # The common path, since a pattern such as */../.. matches files outside its first folder.
    return Path(os.path.commonpath([Path(*fixed), *files])), files


def visible_files(folder: Path) -> Iterator[Path]:
    """The files below a folder that are not hidden; a cycle of links is followed only once.

    Raises:
        CaptioningError: a folder cannot be read.
    """

    def refuse(error: OSError) -> NoReturn:
        raise CaptioningError(f"{error.filename} cannot be read ({error.strerror}).") from error

    seen = {folder.resolve()}
    for current, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        yield from (Path(current, file) for file in files if not file.startswith("."))
        visible = (Path(current, name) for name in sorted(folders) if not name.startswith("."))
        fresh = {sub.resolve(): sub.name for sub in visible}
        folders[:] = [name for real, name in fresh.items() if real not in seen]
        seen |= fresh.keys()
