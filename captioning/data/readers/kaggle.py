"""Kaggle's layouts: ``captions.txt`` or ``results.csv``, without splits.

Flickr8k's ``captions.txt`` is a CSV file with the columns ``image,caption``. Flickr30k has the
columns ``image_name,comment_number,comment``: in one copy in ``captions.txt`` too, in another in
``results.csv``, with ``|`` between the columns. In both of these, one row lacks the separator
between the number and the caption.

Flickr8k's official splits come with this package; other data sets need lists beside the captions.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from captioning.data.readers.base import CorpusReader, RawCorpus
from captioning.data.readers.found_images import FoundImages
from captioning.data.readers.image_folders import find_image_folder
from captioning.data.splits import PUBLISHED, read_split_lists
from captioning.support.errors import CaptioningError, shortened
from captioning.support.reading import load_lines

_TWO = ["image", "caption"]
_THREE = ["image_name", "comment_number", "comment"]
_NUMBER_AND_CAPTION = re.compile(r"\s*([0-9]{1,9})\s+(\S.*)", re.DOTALL)

Row = tuple[int, list[str]]
"""The number of a row's last line, and its cells."""


class KaggleReader(CorpusReader):
    """Reads the layouts of Kaggle's copies of Flickr8k and Flickr30k."""

    expects = "captions.txt or results.csv, and Images/ or flickr30k_images/"

    def detect(self, root: Path) -> list[Path]:
        patterns = ("captions.txt", "results.csv", "flickr30k_images/results.csv")
        found = (path for pattern in patterns for path in sorted(root.glob(pattern)))
        return [path for path in found if _columns_of(path) in (_TWO, _THREE)]

    def read(self, root: Path, files: Sequence[Path], name: str) -> RawCorpus:
        corpus = RawCorpus()
        _read_captions(files[0], corpus)
        folders = dict.fromkeys([files[0].parent, root, root / "Flickr8k_text"])
        corpus.use_lists(read_split_lists([*folders], name, files[0]))
        if name in PUBLISHED:
            corpus.files = find_image_folder(root)
        else:  # data of somebody's own, whose images may be in any folder
            images = FoundImages.below(root)
            found = {image: images.find(image, str(files[0])) for image in corpus.captions}
            corpus.files = {image: path for image, path in found.items() if path}
            used = {*corpus.files.values()}
            corpus.files |= {n: path for n, path in images.files.items() if path not in used}
        return corpus


def _columns_of(path: Path) -> list[str]:
    """The columns that the first line names; a file of others may be a table of another layout."""
    try:
        with path.open("rb") as file:
            line = file.readline(1000).decode("utf-8-sig", errors="replace")
    except OSError:
        return []
    return [cell.strip().lower() for cell in line.split("|" if "|" in line else ",")]


def _read_captions(path: Path, corpus: RawCorpus) -> None:
    rows = _rows(path)
    _, header = next(rows, (1, []))
    columns = [cell.strip().lower() for cell in header]
    if columns not in (_TWO, _THREE):
        raise CaptioningError(
            f"{path}:1: expected the header 'image,caption' or 'image_name,comment_number,comment'"
            f" (with commas or |), found {shortened(','.join(header), 60)!r}."
        )
    for line, cells in rows:
        where = f"{path}:{line}"
        if columns == _THREE:
            cells = _without_number(cells, where, corpus)
        if len(cells) != 2 or not cells[0].strip():
            raise CaptioningError(
                f"{where}: expected {','.join(columns)!r}, with quotes around a caption that has "
                f"commas, found {shortened(','.join(cells), 60)!r}."
            )
        corpus.add_caption(cells[0].strip(), cells[1], where)


def _without_number(cells: list[str], where: str, corpus: RawCorpus) -> list[str]:
    """Image and caption of a row of Flickr30k; other cells if it is malformed."""
    image, number, *caption = cells if len(cells) > 1 else [*cells, ""]
    if len(caption) == 1 and number.strip().isdecimal():
        return [image, caption[0].strip()]
    joined = _NUMBER_AND_CAPTION.fullmatch(number)
    if joined and not "".join(caption).strip():
        corpus.notes.append(
            f"{where}: there is no separator between the number and the caption; it is read as "
            f"caption {joined[1]} of {image}."
        )
        return [image, joined[2]]
    return cells if len(cells) != 2 else [*cells, ""]


def _rows(path: Path) -> Iterator[Row]:
    lines = load_lines(path)
    if "|" in lines[0]:  # without quotes: a caption may have any character
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, line.split("|", 2)
        return
    rows = csv.reader((f"{line}\n" for line in lines), strict=True)
    try:
        for cells in rows:
            if any(cell.strip() for cell in cells):
                yield rows.line_num, cells
    except csv.Error as error:
        raise CaptioningError(f"{path}:{rows.line_num}: malformed CSV ({error}).") from error
