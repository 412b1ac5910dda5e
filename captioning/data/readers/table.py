"""A table of images and captions: CSV with any separator, JSON lines, or a JSON list.

A row has an image and one caption or several, and may have a split::

    image;caption;split
    IMG_2041.HEIC;our dog Rex sleeps on the sofa;train

The columns may have other usual names (:mod:`captioning.data.readers.columns`), the file and the
folders of the images any. A caption may be a list (``["a dog", "two dogs"]``), the columns of
captions numbered (``caption_0``, ``caption_1``), and an image may have several rows. The tables of
several splits may be in several files, such as ``train.csv`` and ``test.csv``, or one in the folder
of each split.
"""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from captioning.data.readers.base import CorpusReader, RawCorpus
from captioning.data.readers.columns import EXPECTED, Columns, find_columns
from captioning.data.readers.found_images import FoundImages
from captioning.data.readers.image_folders import find_image_folder, is_image_name
from captioning.data.splits import SPLITS, Split, split_named
from captioning.support.errors import CaptioningError, shortened
from captioning.support.reading import load_json, load_lines, numbered_lines, parse_json

SUFFIXES = frozenset({".csv", ".tsv", ".tab", ".txt", ".json", ".jsonl", ".ndjson"})

_IN_A_FOLDER = ("*.csv", "*.tsv", "*.tab", "*.jsonl", "*.ndjson", "*.json", "captions.txt")
_JSON_LINES = frozenset({".jsonl", ".ndjson"})
_SEPARATORS = (",", ";", "\t", "|")
_NOTHING = ("", "null", "nan", "none")
_LONGEST_HEADER = 100_000  # bytes


class Row(NamedTuple):
    """A row of a table, or an entry of a JSON file.

    Attributes:
        where: The file and line, for messages.
        image: The name of the image.
        captions: Its captions, some of which may be empty.
        split: What the table says about its split.
    """

    where: str
    image: str
    captions: list[str]
    split: str | None


class TableReader(CorpusReader):
    """Reads tables of images and captions."""

    expects = f"a .csv, .tsv or .jsonl file with the columns {EXPECTED}"

    def detect(self, root: Path) -> list[Path]:
        if root.is_file():
            return [root] if root.suffix.lower() in SUFFIXES else []
        of_splits = sorted(path for path in root.glob("*/") if split_named(path.name))
        for folders in ([root], of_splits):
            found = [path for folder in folders for path in _tables_in(folder)]
            if found:
                return found
        return []

    def read(self, root: Path, files: Sequence[Path], name: str) -> RawCorpus:
        splits = {file: _split_of_file(file, root) for file in files}
        if len(files) > 1 and not all(splits.values()):
            listed = ", ".join(file.relative_to(root).as_posix() for file in files[:5])
            raise CaptioningError(
                f"{root}: several tables could be meant ({listed}): give one of them as data.root."
            )
        corpus = RawCorpus(splits_source=", ".join(map(str, files[:3])))
        for file in files:
            images = FoundImages.below(root, file.parent)
            if not images.files:
                images = _beside(root, file) or images
            split = splits[file] if len(files) > 1 else None
            add_rows(corpus, images, read_rows(file), split)
        return corpus


def add_rows(
    corpus: RawCorpus, images: FoundImages, rows: Iterable[Row], split: Split | None = None
) -> None:
    """Add the rows of a table.

    The id of an image is its name as the table gives it, so that it does not depend on where the
    images lie; in place of a path from the root of the file system, the path from the folder.

    Args:
        corpus: Where they are added.
        images: The image files.
        rows: The rows; those of an image may be anywhere.
        split: The split of rows that name none.

    Raises:
        CaptioningError: a row names an unknown split, or has another split than an earlier one of
            the same image.
    """
    ids: dict[Path, str] = {path: image for image, path in images.files.items()}
    split_of: dict[str, Split | None] = {}
    used: set[Path] = set()
    for row in rows:
        path = images.find(row.image, row.where)
        image = ids.get(path, row.image) if path and Path(row.image).is_absolute() else row.image
        if path:
            corpus.files[image] = path
            used.add(path)
        of_row = _split_of_row(row) if row.split is not None else split
        if split_of.setdefault(image, of_row) != of_row:
            raise CaptioningError(
                f"{row.where}: {image} is in the split {of_row} here and in "
                f"{split_of[image]} before: an image belongs to one split."
            )
        if image not in corpus.captions or (of_row and image not in corpus.splits.get(of_row, [])):
            corpus.add_image(image, of_row, row.where)
        for caption in row.captions:
            corpus.add_caption(image, caption, row.where)
    if not used and corpus.captions:
        first = next(iter(corpus.captions))
        raise CaptioningError(
            f"{corpus.places[first]}: there is no file {first!r}, nor any other image of this "
            f"table, in {images.bases[-1]} or a folder in it: put the table beside its images, or "
            "give their whole paths."
        )
    corpus.files |= {name: path for name, path in images.files.items() if path not in used}


def _split_of_row(row: Row) -> Split | None:
    text = (row.split or "").strip()
    if text.lower() in _NOTHING:
        return None
    split = split_named(text)
    if split is None:
        raise CaptioningError(
            f"{row.where}: the split {shortened(text, 40)!r} is not one of {', '.join(SPLITS)}."
        )
    return split


def _beside(root: Path, file: Path) -> FoundImages | None:
    """The images of a folder beside that of the table: ``images/`` for ``labels/captions.csv``."""
    if file.parent != root:
        return None
    try:
        folder = next(iter(find_image_folder(root.parent).values())).parent
    except CaptioningError:
        return None
    return FoundImages.below(folder, root)


def _tables_in(folder: Path) -> list[Path]:
    found = (path for pattern in _IN_A_FOLDER for path in sorted(folder.glob(pattern)))
    return [path for path in found if not path.name.startswith(".") and _is_table(path)]


def _split_of_file(file: Path, root: Path) -> Split | None:
    """The split that the name of a table says, or that of its folder."""
    words = re.split(r"[-_. ]", file.stem) + ([file.parent.name] if file.parent != root else [])
    return next((split for word in words if (split := split_named(word))), None)


def _is_table(path: Path) -> bool:
    if path.name == "captions.txt":  # whatever is in it, it is meant
        return True
    try:
        return _columns_of(path) is not None
    except CaptioningError:
        return False


def _columns_of(path: Path) -> Columns | None:
    """The columns of a file that may be a table, from its beginning; None if it is none."""
    try:
        with path.open("rb") as file:
            start = file.readline(_LONGEST_HEADER).decode("utf-8-sig", errors="replace").strip()
    except OSError:
        return None
    if path.suffix.lower() in _JSON_LINES:
        return _keys_of(start)
    if path.suffix.lower() == ".json":
        content = load_json(path) if start.startswith("[") else None
        return _keys_of(content[0]) if isinstance(content, list) and content else None
    header = _header(start)
    return header.columns if header else None


def _keys_of(entry: object) -> Columns | None:
    if isinstance(entry, str):
        try:
            entry = json.loads(entry)
        except (ValueError, RecursionError):
            return None
    return find_columns(map(str, entry)) if isinstance(entry, dict) else None


def why_no_table(root: Path) -> str:
    """For messages: why the likeliest file of a folder is not read as a table; may be empty."""
    if root.is_file():
        listed = ", ".join(sorted(SUFFIXES))
        return f" (a table is named {listed}; other files are {root.suffix or 'without suffix'})"
    for path in sorted(root.glob("*")):
        if path.suffix.lower() in (".csv", ".tsv", ".jsonl", ".ndjson"):
            return f" ({path.name} has no columns {EXPECTED}: rename its columns)"
    return ""


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a table.

    Raises:
        CaptioningError: the file cannot be read, lacks a column, or a row is malformed.
    """
    suffix = path.suffix.lower()
    if suffix in _JSON_LINES:
        for number, line in numbered_lines(path):
            yield _row_of(parse_json(line, path, number), f"{path}:{number}")
    elif suffix == ".json":
        content = load_json(path)
        if not isinstance(content, list):
            raise CaptioningError(
                f"{path}: it should be a list of objects with the keys {EXPECTED}."
            )
        for number, entry in enumerate(content):
            yield _row_of(entry, f"{path}: [{number}]")
    else:
        yield from _csv_rows(path)


def _row_of(entry: object, where: str) -> Row:
    """A row from the object of a JSON file.

    Raises:
        CaptioningError: it has no image or no caption, or one of another type than a string.
    """
    columns = find_columns(map(str, entry)) if isinstance(entry, dict) else None
    if columns is None:
        found = ", ".join(map(str, entry)) if isinstance(entry, dict) else type(entry).__name__
        raise CaptioningError(
            f"{where}: expected an object with the keys {EXPECTED}, found {shortened(found, 80)}."
        )
    assert isinstance(entry, dict)
    values: Mapping[str, Any] = entry
    image, split = values[columns.images[0]], values.get(columns.split or "")
    captions: list[str] = []
    for key in columns.captions:
        value = values[key]
        captions += value if isinstance(value, list) else [value]
    if not isinstance(image, str) or not image.strip():
        raise CaptioningError(f"{where}: {columns.images[0]!r} should be the name of a file.")
    if not all(isinstance(caption, str) for caption in captions):
        raise CaptioningError(
            f"{where}: {columns.captions[0]!r} should be a string, or a list of strings."
        )
    if split is not None and not isinstance(split, str):
        raise CaptioningError(f"{where}: {columns.split!r} should be one of {', '.join(SPLITS)}.")
    return Row(where, image, captions, split)


class _Header(NamedTuple):
    """What the first line of a CSV file says.

    Attributes:
        separator: What is between its cells.
        cells: The names of the columns.
        columns: Those that hold images, captions and splits.
        is_row: Whether the line is a row already, since the file has no names of columns.
    """

    separator: str
    cells: list[str]
    columns: Columns
    is_row: bool


def _header(line: str) -> _Header | None:
    for separator in _SEPARATORS:
        try:
            cells = [cell.strip() for cell in next(csv.reader([line], delimiter=separator), [])]
        except (
            csv.Error
        ):  # a carriage return or a zero byte within the line, so that it is no table
            return None
        columns = find_columns(cells)
        if columns is not None:
            return _Header(separator, cells, columns, is_row=False)
        if len(cells) in (2, 3) and is_image_name(cells[0]):
            names = ["image", "caption", "split"][: len(cells)]
            columns = find_columns(names)
            assert columns is not None
            return _Header(separator, names, columns, is_row=True)
    return None


def _csv_rows(path: Path) -> Iterator[Row]:
    lines = load_lines(path)
    header = _header(lines[0])
    if header is None:
        raise CaptioningError(
            f"{path}:1: expected the columns {EXPECTED}, separated by a comma, a semicolon or a "
            f"tab, found {shortened(lines[0], 60)!r}; name the columns so in the first line."
        )
    width, columns = len(header.cells), header.columns
    place = {name: header.cells.index(name) for name in header.cells}
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=header.separator, strict=True)
    try:
        for number, cells in enumerate(reader):
            where = f"{path}:{reader.line_num}"
            if (number == 0 and not header.is_row) or not any(cell.strip() for cell in cells):
                continue
            if len(cells) != width:
                raise CaptioningError(
                    f"{where}: it has {len(cells)} cells in place of {width}: put a caption with "
                    f"{header.separator!r} in it into double quotes."
                )
            image = cells[place[columns.images[0]]].strip()
            if not image:
                raise CaptioningError(f"{where}: it names no image: fill in or remove the row.")
            split = cells[place[columns.split]] if columns.split else None
            texts = [cells[place[name]] for name in columns.captions]
            yield Row(where, image, _captions(texts), split)
    except csv.Error as error:
        raise CaptioningError(
            f"{path}:{reader.line_num}: malformed ({error}): put a cell with a quote in it into "
            "double quotes, and double the quote."
        ) from error


def _captions(cells: Sequence[str]) -> list[str]:
    """The captions of a row, whose cells may be lists as JSON or Python writes them."""
    if len(cells) > 1:  # an image may have fewer captions than there are columns
        filled = [cell for cell in cells if cell.strip().lower() not in _NOTHING]
        return filled or [""]
    text = cells[0].strip()
    if text.startswith("[") and text.endswith("]"):
        for parse in (json.loads, ast.literal_eval):
            try:
                value = parse(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
                return value
    return [cells[0]]
