"""The rows of a feature store on the disk: ``grids.bin`` and ``index.txt``.

``grids.bin`` has the packed grids, one row after another. Line n of ``index.txt`` has the SHA-256
of the image file whose grid is row n, the row's bytes, and the CRC-32 of these bytes. Rows are only
ever appended, the numbers before their line of the index: a process that is killed at any moment
leaves at most some bytes in ``grids.bin`` that the index does not mention, which the next process
cuts off.

Whenever a row is read, its CRC-32 is checked, which takes a quarter of the time that unpacking it
takes. Stores of earlier versions have rows without a CRC-32, which are read unchecked. Of several
rows of one image, the last counts.
"""

import os
import re
import shutil
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float16

from captioning.data.features.meta import damaged
from captioning.data.features.packed_grids import pack
from captioning.support.errors import CaptioningError
from captioning.support.files import writing

_LINE: Final = re.compile("([0-9a-f]{64}) ([0-9]{1,12})(?: ([0-9a-f]{8}))?")


class Row(NamedTuple):
    """The place of a packed grid in ``grids.bin``.

    Attributes:
        offset: Its position, in bytes.
        size: Its size, in bytes.
        checksum: Its CRC-32; None for a row that an earlier version stored.
    """

    offset: int
    size: int
    checksum: int | None

    def holds(self, packed: bytes) -> bool:
        """Whether these bytes, as they were read, are those that were written."""
        return len(packed) == self.size and self.checksum in (None, zlib.crc32(packed))


Index = dict[str, Row]
"""From the SHA-256 of an image file to its row."""


def read_index(folder: Path) -> Index:
    """Return the row of each digest; the index is empty when there is no store yet.

    Raises:
        CaptioningError: the files are damaged or cannot be read.
    """
    return dict(_read_lines(folder))


def _read_lines(folder: Path) -> list[tuple[str, Row]]:
    """Return the digests and rows of ``index.txt``, in its order.

    A last line that does not end in a newline is ignored: another process is writing it.
    """
    lines = _complete_lines(folder)
    try:
        size = (folder / "grids.bin").stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        if (folder / "index.txt").exists():
            raise damaged(folder, "it has no grids.bin") from None
        return []
    rows: list[tuple[str, Row]] = []
    offset = 0
    for number, line in enumerate(lines.splitlines(), start=1):
        found = _LINE.fullmatch(line)
        if not found:
            raise damaged(
                folder,
                f"line {number} of its index.txt is not a SHA-256, a size and a checksum",
            )
        checksum = None if found[3] is None else int(found[3], 16)
        rows.append((found[1], Row(offset, int(found[2]), checksum)))
        offset += int(found[2])
    if any(row.offset + row.size > size and row.checksum is None for _, row in rows):
        raise damaged(folder, "its grids.bin is shorter than its index.txt says")
    return rows


def _complete_lines(folder: Path) -> str:
    path = folder / "index.txt"
    try:
        text = path.read_text(encoding="ascii")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except UnicodeDecodeError:
        raise damaged(folder, "its index.txt is not text") from None
    except OSError as error:
        raise CaptioningError(f"{path} cannot be read ({error.strerror}).") from error
    return text[: text.rfind("\n") + 1]


def open_rows(folder: Path) -> int:
    """Open ``grids.bin`` for :func:`read_row`.

    Raises:
        CaptioningError: it cannot be read.
    """
    path = folder / "grids.bin"
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise CaptioningError(f"{path} cannot be read ({error.strerror}).") from error


def read_row(file: int, row: Row) -> bytes | None:
    """The bytes of a row, or None if they are not those that were written."""
    try:
        packed = os.pread(file, row.size, row.offset)
    except OSError:  # the disk has lost them
        return None
    return packed if row.holds(packed) else None


def whole_rows(folder: Path, index: Index, digests: Iterable[str]) -> set[str]:
    """Those of some images whose rows are in the store and undamaged."""
    found = [digest for digest in digests if digest in index]
    if not found:
        return set()
    file = open_rows(folder)
    try:
        return {digest for digest in found if read_row(file, index[digest]) is not None}
    finally:
        os.close(file)


def repair(folder: Path) -> Index:
    """Cut off what a killed process left behind, and return the index; needs the lock.

    If the end of ``grids.bin`` is missing, zeros take its place, whose checksum is a wrong one.
    """
    rows = _read_lines(folder)
    for name, size in (
        ("index.txt", len(_complete_lines(folder))),
        ("grids.bin", sum(row.size for _, row in rows)),
    ):
        path = folder / name
        with writing(path):
            if path.exists() and path.stat().st_size != size:
                os.truncate(path, size)
    return dict(rows)


def index_line(digest: str, packed: bytes) -> str:
    """The line of ``index.txt`` for a row."""
    return f"{digest} {len(packed)} {zlib.crc32(packed):08x}\n"


def append_rows(
    folder: Path, digests: Sequence[str], grids: Float16[np.ndarray, "batch locations channels"]
) -> int:
    """Append rows, and return their size in bytes.

    The numbers reach the disk before the lines of the index that mention them are written.
    """
    packed = [pack(grid) for grid in grids]
    with writing(folder):
        with (folder / "grids.bin").open("ab") as file:
            file.writelines(packed)
            file.flush()
            os.fsync(file.fileno())
        with (folder / "index.txt").open("a", encoding="ascii", newline="") as file:
            file.writelines(map(index_line, digests, packed))
    return sum(map(len, packed))


def check_space(folder: Path, needed: int) -> None:
    """Check that the disk has room for so many bytes more.

    Raises:
        CaptioningError: it has not.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CaptioningError(
            f"The feature store {folder} needs some {needed / 1e9:.1f} GB more, and its disk has "
            f"{free / 1e9:.1f} GB free: make room, or put it elsewhere with data.cache."
        )
