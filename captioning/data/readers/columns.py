"""Which columns of a table of anybody's hold the images, the captions and the splits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_IMAGES = (
    *("image", "file_name", "filename", "image_filename", "image_name", "image_file"),
    *("image_path", "filepath", "file", "path", "img", "img_path", "photo", "picture"),
)
_CAPTIONS = (
    *("caption", "captions", "text", "texts", "sentence", "sentences", "raw"),
    *("description", "descriptions", "comment", "comments"),
)
_SPLITS = ("split", "partition", "subset")
_NUMBERED = re.compile(r"(?:caption|text|sentence|description|comment)s?[ _-]?([0-9]{1,3})")

EXPECTED = "image and caption, and split if there is one"
"""The columns, for messages."""


class Columns(NamedTuple):
    """The columns of a table, by the names that it gives them.

    Attributes:
        images: The columns that may hold or name the image, the likeliest first.
        captions: The columns of captions: one, or several that are numbered.
        split: The column of the split, if there is one.
    """

    images: tuple[str, ...]
    captions: tuple[str, ...]
    split: str | None


def find_columns(names: Iterable[str]) -> Columns | None:
    """The columns of images and captions among some names; None if one of the two is not there.

    Upper case and spaces around a name do not matter.

    >>> find_columns(["Image", "caption_1", "caption_0"])
    Columns(images=('Image',), captions=('caption_0', 'caption_1'), split=None)
    """
    given = {name.strip().lower(): name for name in reversed(list(names))}
    images = _those_of(given, _IMAGES)
    captions = _those_of(given, _CAPTIONS)[:1]
    if not captions:
        numbers = {name: match for name in given if (match := _NUMBERED.fullmatch(name))}
        captions = tuple(given[name] for name in sorted(numbers, key=lambda n: int(numbers[n][1])))
    if not images or not captions:
        return None
    return Columns(images, captions, next(iter(_those_of(given, _SPLITS)), None))


def _those_of(given: dict[str, str], known: Sequence[str]) -> tuple[str, ...]:
    return tuple(given[name] for name in known if name in given)
