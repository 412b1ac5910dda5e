"""Data sets of the Hugging Face hub: Parquet files, or what ``datasets`` saves to disk.

A data set is a folder as ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` write it, or one
with Parquet files, as the hub holds them, such as ``data/train-00000-of-00002.parquet``; or one
such file. The columns are those of the usual cards (:mod:`captioning.data.readers.columns`): an
image, and one caption, a list of captions (``nlphuji/flickr30k``) or numbered ones
(``jxie/flickr8k``). A column of splits precedes the splits that the files are named after, since
some cards have all images in one.

The images are inside of these files. They are written into a folder of the cache once, in which
``index.json``, which is written last, has their names, captions and splits. An image without a name
is named by its content.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import TypeAdapter

from captioning.data.readers.base import CorpusReader, RawCorpus
from captioning.data.readers.columns import EXPECTED, Columns, find_columns
from captioning.data.readers.found_images import FoundImages
from captioning.data.readers.table import Row, add_rows
from captioning.data.splits import split_named
from captioning.support.errors import CaptioningError
from captioning.support.files import atomic_write_json, writing
from captioning.support.locks import file_lock
from captioning.support.paths import cache_dir
from captioning.support.progress import track_progress
from captioning.support.reading import load_json, load_record

if TYPE_CHECKING:
    import pyarrow as pa

_VERSION = 1  # increased with every change of what is written into the cache
_ROWS = 64  # rows that are in memory at once
_SUFFIXES = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"RIFF": ".webp",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}
_POINTER = b"version https://git-lfs"


class Unpacked(NamedTuple):
    """A row of a data set whose image has been written into a file.

    Attributes:
        where: The file and row, for messages.
        name: The name that the data set gives the image; None if it gives none.
        file: The image's file in the cache; or a path that the data set gives in its place.
        size: The bytes of the file in the cache; None if the data set gives a path.
        captions: The captions.
        split: The split, as the row or its file names it.
    """

    where: str
    name: str | None
    file: str
    size: int | None
    captions: list[str]
    split: str | None


_INDEX = TypeAdapter(list[Unpacked])


class HuggingFaceReader(CorpusReader):
    """Reads Parquet files, and folders that ``datasets`` has saved; needs pyarrow."""

    expects = f".parquet files, or a folder of save_to_disk, with the columns {EXPECTED}"

    def detect(self, root: Path) -> list[Path]:
        if root.is_file():
            return [root] if root.suffix in (".parquet", ".arrow") else []
        saved = sorted(root.glob("state.json")) or sorted(root.glob("*/state.json"))
        if saved and (saved[0].parent == root or (root / "dataset_dict.json").is_file()):
            return [file for state in saved for file in _files_of_state(state)]
        patterns = ("*.parquet", "data/*.parquet", "*/*.parquet", "*/*/*.parquet", "*.arrow")
        return next((found for each in patterns if (found := sorted(root.glob(each)))), [])

    def read(self, root: Path, files: Sequence[Path], name: str) -> RawCorpus:
        return self.read_cached(root, files, name, None)

    def read_cached(
        self, root: Path, files: Sequence[Path], name: str, cache: Path | None
    ) -> RawCorpus:
        _refuse_several(root, files)
        folder, rows = _unpack_once(root, files, cache or cache_dir())
        corpus = RawCorpus(splits_source=", ".join(map(str, files[:3])))
        packed = [row for row in rows if row.size is not None]
        corpus.unnamed = bool(packed) and not _are_named(packed)
        if packed:
            ids = [row.file if corpus.unnamed else str(row.name) for row in packed]
            paths = {id_: folder / row.file for id_, row in zip(ids, packed, strict=True)}
            images = FoundImages(paths, [folder], inside=True)
            found = [
                Row(row.where, id_, row.captions, row.split)
                for id_, row in zip(ids, packed, strict=True)
            ]
        else:
            images = FoundImages(FoundImages.below(root).files, [root], inside=True)
            found = [Row(row.where, row.file, row.captions, row.split) for row in rows]
        add_rows(corpus, images, found)
        return corpus


def _files_of_state(path: Path) -> list[Path]:
    """The files of a data set that ``save_to_disk`` has written, from its ``state.json``."""
    content = load_json(path)
    try:
        return [path.parent / entry["filename"] for entry in content["_data_files"]]
    except (TypeError, KeyError) as error:
        raise CaptioningError(
            f"{path}: it does not list the files of the data set: save it again with save_to_disk."
        ) from error


def _refuse_several(root: Path, files: Sequence[Path]) -> None:
    """Refuse files of several configurations of a data set, which have the same images."""
    folders = {file.parent for file in files}
    if len(folders) > 1 and not all(split_named(folder.name) for folder in folders):
        first, second, *_ = sorted(folder.relative_to(root).as_posix() for folder in folders)
        raise CaptioningError(
            f"{root}: the data set has several parts ({first}, {second}): give the folder of one "
            "of them as data.root."
        )


def _are_named(rows: Sequence[Unpacked]) -> bool:
    """Whether each row has a name, and no two pictures have the same one."""
    file_of: dict[str | None, str] = {}
    return all(
        row.name is not None and file_of.setdefault(row.name, row.file) == row.file for row in rows
    )


def _unpack_once(root: Path, files: Sequence[Path], cache: Path) -> tuple[Path, list[Unpacked]]:
    """Unpack the images, unless that has been done; returns their folder, and all rows."""
    try:
        stamps = [(str(file), (s := file.stat()).st_size, s.st_mtime_ns) for file in files]
    except OSError as error:
        raise CaptioningError(f"{error.filename} cannot be read ({error.strerror}).") from error
    key = hashlib.sha256(json.dumps([_VERSION, str(root.absolute()), stamps]).encode()).hexdigest()
    folder = cache / "unpacked" / f"{root.absolute().name[:50]}-{key[:12]}"
    with file_lock(folder.with_suffix(".lock"), f"it is unpacking the images of {root}"):
        rows = _read_index(folder)
        if rows is None:
            rows = _unpack(root, files, folder)
            atomic_write_json(folder / "index.json", rows)
    return folder, rows


def _read_index(folder: Path) -> list[Unpacked] | None:
    """The rows that were unpacked; None if they were not, or an image has been damaged since."""
    if not (folder / "index.json").exists():
        return None
    rows = load_record(folder / "index.json", _INDEX.validate_json)
    try:
        sizes = {row.file: (folder / row.file).stat().st_size for row in rows if row.size}
    except OSError:
        return None
    return rows if all(sizes.get(row.file) == row.size for row in rows if row.size) else None


def _unpack(root: Path, files: Sequence[Path], folder: Path) -> list[Unpacked]:
    rows: list[Unpacked] = []
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        words = [*re.split(r"[-_.]", file.stem)]
        words += [] if file.parent == root else [file.parent.name]
        split = next((word for word in words if split_named(word)), None)
        with _open(file) as (schema, count, batches):
            columns = find_columns(schema.names)
            if columns is None:
                raise CaptioningError(
                    f"{file}: expected the columns {EXPECTED}, found {', '.join(schema.names)}: "
                    "rename its columns with datasets' rename_column."
                )
            image, name = _image_columns(schema, columns)
            with track_progress(f"Unpacking {file.name}", count) as advance:
                for batch in batches:
                    for row in batch.to_pylist():
                        where = f"{file}: row {len(rows)}"
                        rows.append(_unpack_row(row, columns, image, name, split, folder, where))
                    advance(batch.num_rows)
    return rows


def _image_columns(schema: pa.Schema, columns: Columns) -> tuple[str, str | None]:
    """The column that has the images, or else their names; and one that has names beside it."""
    kinds = {column: str(schema.field(column).type) for column in columns.images}
    packed = [column for column, kind in kinds.items() if "binary" in kind]
    named = [column for column, kind in kinds.items() if kind in ("string", "large_string")]
    if packed:
        return packed[0], next(iter(named), None)
    return (named or columns.images)[0], None


def _unpack_row(
    row: Mapping[str, Any],
    columns: Columns,
    image: str,
    name: str | None,
    split: str | None,
    folder: Path,
    where: str,
) -> Unpacked:
    value = row[image]
    data, path = (
        (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    )
    own_split = row[columns.split] if columns.split else None
    captions: list[str] = []
    for column in columns.captions:
        found = row[column]
        captions += map(_text, found if isinstance(found, list) else [found])
    if len(columns.captions) > 1:  # an image may have fewer captions than there are columns
        captions = [caption for caption in captions if caption.strip()] or [""]
    if not isinstance(data, bytes):
        file = data or path
        if not isinstance(file, str) or not file:
            raise CaptioningError(f"{where}: {image!r} has no image: remove this row.")
        return Unpacked(where, None, file, None, captions, own_split or split)
    given = row[name] if name else path
    suffix = next((s for start, s in _SUFFIXES.items() if data.startswith(start)), ".img")
    target = folder / f"{hashlib.sha256(data).hexdigest()[:20]}{suffix}"
    with writing(target):
        if not target.exists() or target.stat().st_size != len(data):
            target.write_bytes(data)
    shown = Path(given).name if isinstance(given, str) and given else None
    return Unpacked(where, shown, target.name, len(data), captions, own_split or split)


def _text(caption: object) -> str:
    """A caption as text; some cards have each in a record, as Karpathy's file has."""
    if isinstance(caption, dict):
        caption = caption.get("raw")
    return caption if isinstance(caption, str) else ""


@contextmanager
def _open(file: Path) -> Iterator[tuple[pa.Schema, int, Iterator[pa.RecordBatch]]]:
    """The schema, the number of rows and the rows of a Parquet or Arrow file.

    Raises:
        CaptioningError: pyarrow is not installed, or the file is damaged.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise CaptioningError(
            f"{file}: reading Parquet and Arrow files needs pyarrow: pip install pyarrow."
        ) from error
    try:
        with file.open("rb") as opened:
            if opened.read(len(_POINTER)) == _POINTER:
                raise CaptioningError(
                    f"{file}: this is a pointer of Git LFS in place of the file: run `git lfs "
                    "pull` in its folder."
                )
        if file.suffix == ".parquet":
            with pq.ParquetFile(file) as parquet:
                batches = parquet.iter_batches(batch_size=_ROWS)
                yield parquet.schema_arrow, parquet.metadata.num_rows, batches
        else:
            with pa.memory_map(str(file)) as mapped:
                table = pa.ipc.open_stream(mapped).read_all()
                yield table.schema, table.num_rows, iter(table.to_batches(max_chunksize=_ROWS))
    except pa.ArrowInvalid as error:
        reason = " ".join(str(error).split())
        raise CaptioningError(
            f"{file}: not a Parquet or Arrow file, or cut short ({reason}): copy it again."
        ) from error
    except OSError as error:
        raise CaptioningError(f"{file} cannot be read ({error.strerror or error}).") from error
