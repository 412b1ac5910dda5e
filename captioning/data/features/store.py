"""The feature store: the encoder's grid of every image, computed once and kept in one file.

A store belongs to one encoder with its weights and preprocessing, and to one view of the images
(:mod:`captioning.data.views`). It is a folder of three files::

    meta.json    what made the grids, for people and for the check on opening
    grids.bin    the packed grids, one row after another
    index.txt    line n: the SHA-256 of the image file whose grid is row n, the row's bytes, and
                 the CRC-32 of these bytes


A grid has locations x channels numbers. A packed grid holds the numbers that are not zero, in half
precision, and then one byte for each of them: its distance from the previous one (for the first,
from position -1). A distance of more than 255 is bridged by storing zeros in between. After a ReLU
most numbers are zero (92 % of VGG16's), so that a packed grid takes a ninth of the space, without
any loss.

The key of a row is the content of the image file. Data sets therefore share rows, a changed image
gets a new row, and two file names of the same picture share one. Rows are only ever appended, the
numbers before their line of the index: a process that is killed at any moment leaves at most some
bytes in ``grids.bin`` that the index does not mention, which the next process cuts off.

Whenever a row is read, its CRC-32 is checked, which takes a quarter of the time that unpacking it
takes. :func:`build_store` also checks all rows that are asked for, and computes those that are
damaged anew; of several rows of one image, the last counts. Stores of earlier versions have rows
without a CRC-32, which are read unchecked.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import weakref
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float16
from torch import Tensor

from captioning.data.features.digests import try_image_digests
from captioning.data.features.extraction import choose_device, choose_precision, extract_grids
from captioning.data.views import ORIGINAL, View
from captioning.models.encoders.base import Encoder
from captioning.support.errors import CaptioningError
from captioning.support.files import atomic_write_json, writing
from captioning.support.locks import file_lock
from captioning.support.progress import track_progress

log = logging.getLogger(__name__)

_FORMAT = 2
_ROWS_AT_ONCE = 64
_LINE = re.compile("([0-9a-f]{64}) ([0-9]{1,12})(?: ([0-9a-f]{8}))?")
_NUMBER = np.dtype(np.float16)
_MAX_DISTANCE = 255  # what one byte can hold


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


class FeatureStore:
    """Read access to the grids of a list of images.

    Rows are read from the file when they are asked for. The operating system caches the file, once
    for all processes, so that the store itself keeps only the index in memory, unless
    :meth:`load_resident` is called. Pickling (for the workers of a DataLoader) copies no grids.

    Attributes:
        ids: The images, in the order given.
        shape: Locations and channels of each grid.
        notes: For the user: images with the same content, and images that were left out.
    """

    def __init__(self, folder: Path, digests: Mapping[str, str], notes: Sequence[str] = ()) -> None:
        """Open a store that holds all of the images.

        Args:
            folder: The store's own folder, with ``meta.json``.
            digests: From image id to the SHA-256 of its file.
            notes: The initial ``notes``.

        Raises:
            CaptioningError: the store is damaged, or lacks an image.
        """
        self.folder = folder
        self.notes = list(notes)
        meta = _read_meta(folder)
        self.shape: tuple[int, int] = (meta["locations"], meta["channels"])
        index = _read_index(folder)
        absent = [image for image, digest in digests.items() if digest not in index]
        if absent:
            raise CaptioningError(
                f"{folder} has no grid of {absent[0]} (of {len(absent)} images in all): "
                "build the store again."
            )
        self._rows = {image: index[digest] for image, digest in digests.items()}
        self._resident: Tensor | None = None
        self._places: dict[str, int] = {}  # of the images in `_resident`
        self._open()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._rows)

    def __contains__(self, image: object) -> bool:
        """Whether an image of this id can be read."""
        return image in self._rows

    @property
    def ids(self) -> list[str]:
        """The images, in the order given."""
        return list(self._rows)

    def grid(self, image: str) -> Float16[np.ndarray, "locations channels"]:
        """Return one image's grid.

        Raises:
            KeyError: no such image.
            CaptioningError: the grid was damaged since the store was opened.
        """
        grid: np.ndarray = self.gather([image])[0].numpy()
        return grid

    def gather(self, images: Sequence[str]) -> Float16[Tensor, "batch locations channels"]:
        """Return the grids of several images.

        They are on the device of :meth:`load_resident` if all of them were loaded by it, and in the
        CPU's memory otherwise.

        Raises:
            KeyError: no such image.
            CaptioningError: a grid was damaged since the store was opened.
        """
        resident = self._resident
        if resident is not None and all(image in self._places for image in images):
            rows = torch.tensor([self._places[image] for image in images], dtype=torch.long)
            return resident.index_select(0, rows.to(resident.device, non_blocking=True))
        grids = np.zeros((len(images), self.shape[0] * self.shape[1]), _NUMBER)
        for image, grid in zip(images, grids, strict=True):
            packed = _read_row(self._file, self._rows[image])
            if packed is None:
                raise self._damaged_grid(image)
            try:
                unpack(packed, grid)
            except (ValueError, IndexError):
                raise self._damaged_grid(image) from None
        return torch.from_numpy(grids).view(-1, *self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes that all grids take in memory, unpacked."""
        return len(self) * self.shape[0] * self.shape[1] * _NUMBER.itemsize

    def is_resident(self, device: torch.device) -> bool:
        """Whether :meth:`load_resident` has read all grids into the memory of this device."""
        resident = self._resident
        if resident is None or len(self._places) < len(self):
            return False
        return resident.device == torch.empty(0, device=device).device  # "cuda" means "cuda:0"

    def load_resident(self, device: torch.device) -> None:
        """Read all grids into a device's memory; :meth:`gather` then takes them from there.

        Raises:
            CaptioningError: they do not fit, or one was damaged since the store was opened.
        """
        ids = self.ids
        self._resident, self._places = None, {}  # frees what an earlier call has loaded
        try:
            resident = torch.empty((len(ids), *self.shape), dtype=torch.float16, device=device)
            for start in range(0, len(ids), _ROWS_AT_ONCE):
                some = ids[start : start + _ROWS_AT_ONCE]
                resident[start : start + len(some)] = self.gather(some)
        except RuntimeError as error:
            raise CaptioningError(
                f"data.resident=true: {len(ids)} grids of {self.nbytes / 1e9:.1f} GB in all do not "
                f"fit into the memory of {device}: use data.resident=false."
            ) from error
        self._places = {image: place for place, image in enumerate(ids)}
        self._resident = resident

    def extend(self, other: "FeatureStore") -> None:
        """Add the images of another view of the same store; resident grids stay where they are.

        Images of both that have the same content are added to ``notes``, and logged.
        """
        assert other.folder == self.folder
        first_with = {row: image for image, row in reversed(self._rows.items()) if row.size}
        notes = [
            _same_picture(image, first_with[row])
            for image, row in other._rows.items()
            if row in first_with and image not in self._rows
        ]
        for note in notes:
            log.warning("%s", note)
        self.notes += [*other.notes, *notes]
        self._rows |= other._rows

    def _damaged_grid(self, image: str) -> CaptioningError:
        if self._rows[image].checksum is None:
            return _damaged(self.folder, f"the stored grid of {image} is invalid")
        return CaptioningError(
            f"{self.folder / 'grids.bin'}: the stored grid of {image} is damaged: run the command "
            "again, which computes it anew; if it is damaged again, check the disk."
        )

    def _open(self) -> None:
        self._file = _open_rows(self.folder)
        weakref.finalize(self, os.close, self._file)

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in self.__dict__.items() if key != "_file"}
        return state | {"_resident": None, "_places": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def build_store(
    directory: Path,
    encoder: Encoder,
    images: Sequence[tuple[str, Path]],
    *,
    batch_size: int = 16,
    device: str = "auto",
    precision: str = "auto",
    workers: int = 2,
    view: View = ORIGINAL,
    skip_bad: bool = False,
    progress: bool = True,
) -> FeatureStore:
    """Open the encoder's store of a view, after computing the grids that it does not have yet.

    Grids that are damaged in the store are computed anew from their images, with a warning.

    Several processes may do so at once: one of them computes, the others wait for it.

    The precision is written into ``meta.json``, but it is not part of the store's key: the cosine
    between a grid in bfloat16 and the same grid in single precision is above 0.999, and a store
    should stay usable on a machine that would compute in the other precision.

    Args:
        directory: Where all stores are; this one's folder is made below.
        encoder: The network; it is on ``device`` for as long as it computes.
        images: Id and file of each image.
        batch_size: Images encoded at once.
        device: ``auto`` (a GPU where there is one), or any name that torch knows.
        precision: ``fp32``, ``bf16``, or ``auto``: bf16 where the hardware computes in it.
        workers: Threads that read and resize images.
        view: The view of each image that is encoded.
        skip_bad: Leave out missing and broken images, and name them in the result's ``notes``.
        progress: Whether to show a progress bar.

    Raises:
        CaptioningError: an image is missing or broken and ``skip_bad`` is off; no image is left;
            an id comes twice; the store is damaged or cannot be written.
    """
    paths = dict(images)
    if len(paths) < len(images):
        raise CaptioningError("The feature store was given the same image id twice.")
    outcomes = try_image_digests(
        list(paths.values()), directory / "digests.json", progress=progress
    )
    digests: dict[str, str] = {}
    errors: dict[str, CaptioningError] = {}  # by image
    for image, outcome in zip(paths, outcomes, strict=True):
        if isinstance(outcome, str):
            digests[image] = outcome
        else:
            errors[image] = outcome
    _raise_unless(skip_bad, errors)

    identity = _identity(encoder, view)
    folder = store_folder(directory, encoder, view)
    what = encoder.name if view.is_original else f"{encoder.name} of the view {view.name}"
    files = {digest: paths[image] for image, digest in digests.items()}
    # The first look takes no lock: a complete store may be in a folder that we may only read.
    if not _whole(folder, _read_index(folder), files) >= files.keys():
        with file_lock(folder / "lock", f"it is computing the grids in {folder}"):
            index = _repair(folder)
            whole = _whole(folder, index, files)
            missing = {digest: path for digest, path in files.items() if digest not in whole}
            if damaged := [path for digest, path in missing.items() if digest in index]:
                log.warning(
                    "%s: %d stored grids are damaged, and are computed anew: that of %s%s",
                    *(folder / "grids.bin", len(damaged), damaged[0]),
                    " and others" if len(damaged) > 1 else "",
                )
            broken: dict[str, CaptioningError] = {}
            if missing:
                chosen = choose_device(device)
                arithmetic = choose_precision(precision, chosen)
                _write_meta(folder, identity, arithmetic)
                log.info(
                    "Computing %d grids with %s on %s (%s) into %s",
                    *(len(missing), what, chosen, arithmetic, folder),
                )
                batches = extract_grids(
                    encoder,
                    missing,
                    batch_size=batch_size,
                    device=chosen,
                    precision=arithmetic,
                    workers=workers,
                    view=view,
                )
                title = f"Computing grids with {what}"
                with (
                    closing(batches),
                    track_progress(title, len(missing), visible=progress) as advance,
                ):
                    left, checked = len(missing), False
                    for batch in batches:
                        size = _append(folder, batch.digests, batch.grids)
                        _raise_unless(skip_bad, batch.errors)
                        broken |= batch.errors
                        left -= len(batch.digests) + len(batch.errors)
                        if size and not checked:
                            _check_space(folder, left * size // len(batch.digests))
                            checked = True
                        advance(len(batch.digests) + len(batch.errors))
        for image, digest in list(digests.items()):
            if digest in broken:
                errors[image] = broken[digest]
                del digests[image]

    if not digests:
        reason = f": {next(iter(errors.values()))}" if errors else "."
        raise CaptioningError(f"Not one of {len(images)} images can be read{reason}")
    notes = [f"{image} is left out: {error}" for image, error in errors.items()]
    first_with: dict[str, str] = {}
    for image, digest in digests.items():
        first = first_with.setdefault(digest, image)
        if first != image:
            notes.append(_same_picture(image, first))
    for note in notes:
        log.warning("%s", note)
    store = FeatureStore(folder, digests, notes)
    if unchecked := sum(row.checksum is None for row in store._rows.values()):
        log.info(
            "%d grids in %s were stored by an earlier version, without checksums: damage to them "
            "is not noticed; delete that folder to compute them anew, with checksums",
            *(unchecked, folder),
        )
    return store


def store_folder(directory: Path, encoder: Encoder, view: View = ORIGINAL) -> Path:
    """The folder of a store; other weights, another preprocessing or view have another folder."""
    return directory / _folder_name(_identity(encoder, view))


def _same_picture(image: str, first: str) -> str:
    return f"{image} is the same picture as {first}."


def _raise_unless(skip_bad: bool, errors: Mapping[str, CaptioningError]) -> None:
    if errors and not skip_bad:
        first = next(iter(errors.values()))
        more = f" (and {len(errors) - 1} more images)" if len(errors) > 1 else ""
        raise CaptioningError(f"{first}{more} With skip_bad=true such images are left out.")


def _identity(encoder: Encoder, view: View) -> dict[str, Any]:
    """Everything that a grid depends on, as it is written into ``meta.json``."""
    # Stores of the original are as they were before there were views.
    part = {"view": {"box": list(view.box), "mirrored": view.mirrored}}
    return {
        "format": _FORMAT,
        "encoder": encoder.name,
        "weights": encoder.fingerprint,
        "preprocessing": asdict(encoder.preprocessing),
        "locations": encoder.locations,
        "channels": encoder.channels,
        "dtype": "float16",
        **({} if view.is_original else part),
    }


def _folder_name(identity: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return f"{identity['encoder']}-{digest[:12]}"


def _damaged(folder: Path, what: str) -> CaptioningError:
    return CaptioningError(
        f"The feature store {folder} is damaged ({what}): delete that folder, and it is built anew."
    )


def _read_meta(folder: Path) -> dict[str, Any]:
    """Read ``meta.json``, and check that the name of the folder is made from it."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        identity = {key: value for key, value in meta.items() if key != "precisions"}
        intact = folder.name == _folder_name(identity) and meta["format"] == _FORMAT
    except FileNotFoundError:
        raise _damaged(folder, "it has no meta.json") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise _damaged(folder, "its meta.json does not describe it")
    result: dict[str, Any] = meta
    return result


def _open_rows(folder: Path) -> int:
    """Open ``grids.bin`` for :func:`_read_row`."""
    path = folder / "grids.bin"
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise CaptioningError(f"{path} cannot be read ({error.strerror}).") from error


def _read_row(file: int, row: Row) -> bytes | None:
    """The bytes of a row, or None if they are not those that were written."""
    try:
        packed = os.pread(file, row.size, row.offset)
    except OSError:  # the disk has lost them
        return None
    return packed if row.holds(packed) else None


def _whole(folder: Path, index: Index, digests: Iterable[str]) -> set[str]:
    """Those of some images whose rows are in the store and undamaged."""
    found = [digest for digest in digests if digest in index]
    if not found:
        return set()
    file = _open_rows(folder)
    try:
        return {digest for digest in found if _read_row(file, index[digest]) is not None}
    finally:
        os.close(file)


def _write_meta(folder: Path, identity: Mapping[str, Any], precision: str) -> None:
    """Add the precision of the grids that are about to be computed to ``meta.json``."""
    path = folder / "meta.json"
    before = _read_meta(folder)["precisions"] if path.exists() else []
    if precision not in before:
        atomic_write_json(path, {**identity, "precisions": [*before, precision]})


def pack(grid: Float16[np.ndarray, "locations channels"]) -> bytes:
    """Return the bytes that stand for a grid in the file; the module's docstring describes them."""
    numbers = grid.reshape(-1)
    positions = np.flatnonzero(numbers)
    distances = np.diff(positions, prepend=-1)
    zeros = (distances - 1) // _MAX_DISTANCE  # stored before each number, to bridge the distance
    slots = np.cumsum(zeros + 1) - 1  # the index of each number among what is stored
    stored = np.zeros(int((zeros + 1).sum()), _NUMBER)
    stored[slots] = numbers[positions]
    steps = np.full(len(stored), _MAX_DISTANCE, np.uint8)
    steps[slots] = distances - _MAX_DISTANCE * zeros
    return stored.tobytes() + steps.tobytes()


def unpack(packed: bytes, grid: Float16[np.ndarray, " numbers"]) -> None:
    """Write the packed numbers into a grid whose numbers are all zero.

    Raises:
        ValueError, IndexError: :func:`pack` does not return this for a grid of that size.
    """
    count, rest = divmod(len(packed), _NUMBER.itemsize + 1)
    if rest:
        raise ValueError("a packed grid has one byte of distance for each number")
    steps = np.frombuffer(packed, np.uint8, offset=count * _NUMBER.itemsize)
    grid[np.cumsum(steps, dtype=np.int64) - 1] = np.frombuffer(packed, _NUMBER, count)


def _read_index(folder: Path) -> Index:
    """Return the row of each digest; the index is empty when there is no store yet."""
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
            raise _damaged(folder, "it has no grids.bin") from None
        return []
    rows: list[tuple[str, Row]] = []
    offset = 0
    for number, line in enumerate(lines.splitlines(), start=1):
        found = _LINE.fullmatch(line)
        if not found:
            raise _damaged(
                folder,
                f"line {number} of its index.txt is not a SHA-256, a size and a checksum",
            )
        checksum = None if found[3] is None else int(found[3], 16)
        rows.append((found[1], Row(offset, int(found[2]), checksum)))
        offset += int(found[2])
    if any(row.offset + row.size > size and row.checksum is None for _, row in rows):
        raise _damaged(folder, "its grids.bin is shorter than its index.txt says")
    return rows


def _complete_lines(folder: Path) -> str:
    path = folder / "index.txt"
    try:
        text = path.read_text(encoding="ascii")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except UnicodeDecodeError:
        raise _damaged(folder, "its index.txt is not text") from None
    except OSError as error:
        raise CaptioningError(f"{path} cannot be read ({error.strerror}).") from error
    return text[: text.rfind("\n") + 1]


def _repair(folder: Path) -> Index:
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


def _line(digest: str, packed: bytes) -> str:
    return f"{digest} {len(packed)} {zlib.crc32(packed):08x}\n"


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CaptioningError(
            f"The feature store {folder} needs some {needed / 1e9:.1f} GB more, and its disk has "
            f"{free / 1e9:.1f} GB free: make room, or put it elsewhere with data.cache."
        )


def _append(
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
            file.writelines(map(_line, digests, packed))
    return sum(map(len, packed))
