"""The feature store: every image's grid, computed once and kept in one file.

A store belongs to one encoder with its weights and preprocessing, and is a folder of three files::

    meta.json    what made the grids, for people and for the check on opening
    grids.bin    row after row, each an image's grid, packed
    index.txt    line n has the SHA-256 of the image file whose grid is row n, and the row's bytes

A packed grid is those of its locations x channels numbers that are not zero, in half precision, and
then a byte for each: how far it is from the one before (the first: from place -1). Where that is
more than 255, there are zeros among the numbers. Behind a ReLU most are zero, 92 % of VGG16's, so
that a row is a ninth of what it would be; the numbers are the same.

Rows are found by the image's content, so data sets share them, a changed image is a new row, and
two names of one picture have one row. Rows are only ever appended, the numbers before the index
line: a run killed at any moment leaves at most some bytes that no line speaks of, which the next
one cuts off before it goes on.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import weakref
from collections.abc import Mapping, Sequence
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
from captioning.models.encoders.base import GridEncoder
from captioning.support.errors import CaptioningError
from captioning.support.files import atomic_write_json
from captioning.support.locks import file_lock
from captioning.support.progress import track_progress

log = logging.getLogger(__name__)

_FORMAT = 2
_READ_AT_ONCE = 64
_LINE = re.compile("([0-9a-f]{64}) ([0-9]{1,12})")
_NUMBER = np.dtype(np.float16)
_FARTHEST = 255


class Row(NamedTuple):
    """Where a packed grid lies in the file."""

    offset: int
    size: int


Index = dict[str, Row]
"""From the digest of an image to its row."""


class FeatureStore:
    """Read access to the grids of a list of images.

    Rows are read as they are asked for. The kernel keeps what it has room for, once for all
    processes; of this process's memory the store takes nothing but the index. Pickling (to the
    workers of a DataLoader) sends no grids.

    Attributes:
        ids: The images, in the order given.
        shape: Locations and channels of each grid.
        notes: For the user: pictures met twice, and images left out.
    """

    def __init__(self, folder: Path, digests: Mapping[str, str], notes: Sequence[str] = ()) -> None:
        """Open a store that holds all of the images.

        Args:
            folder: The store's own folder, with ``meta.json``.
            digests: From image id to the SHA-256 of its file.
            notes: To be kept as ``notes``.

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
        self._held: Tensor | None = None
        self._open()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._rows)

    def __contains__(self, image: object) -> bool:
        """Tell whether an image of this id can be read."""
        return image in self._rows

    @property
    def ids(self) -> list[str]:
        """The images, in the order given."""
        return list(self._rows)

    def grid(self, image: str) -> Float16[np.ndarray, "locations channels"]:
        """Return one image's grid.

        Raises:
            KeyError: no such image.
            CaptioningError: the store has become shorter.
        """
        grid: np.ndarray = self.gather([image])[0].numpy()
        return grid

    def gather(self, images: Sequence[str]) -> Float16[Tensor, "batch locations channels"]:
        """Return several images' grids, on the device that holds them, else the CPU.

        Raises:
            KeyError: no such image.
            CaptioningError: the store has become shorter.
        """
        if self._held is not None:
            rows = torch.tensor([self._places[image] for image in images], dtype=torch.long)
            return self._held.index_select(0, rows.to(self._held.device, non_blocking=True))
        grids = np.zeros((len(images), self.shape[0] * self.shape[1]), _NUMBER)
        for image, grid in zip(images, grids, strict=True):
            row = self._rows[image]
            packed = os.pread(self._file, row.size, row.offset)
            if len(packed) != row.size:
                raise _damaged(self.folder, "its grids.bin ends before the grid of an image")
            try:
                unpack(packed, grid)
            except (ValueError, IndexError):
                raise _damaged(self.folder, f"the grid of {image} is none") from None
        return torch.from_numpy(grids).view(-1, *self.shape)

    @property
    def nbytes(self) -> int:
        """What all grids take in memory."""
        return len(self) * self.shape[0] * self.shape[1] * _NUMBER.itemsize

    def hold(self, device: torch.device) -> None:
        """Read all grids into a device's memory, from where batches are taken from then on.

        Raises:
            CaptioningError: they do not fit, or the store has become shorter.
        """
        ids = self.ids
        try:
            held = torch.empty((len(ids), *self.shape), dtype=torch.float16, device=device)
            for start in range(0, len(ids), _READ_AT_ONCE):
                some = ids[start : start + _READ_AT_ONCE]
                held[start : start + len(some)] = self.gather(some)
        except RuntimeError as error:
            raise CaptioningError(
                f"data.resident=true: {len(ids)} grids of {self.nbytes / 1e9:.1f} GB in all do not "
                f"fit into the memory of {device}: use data.resident=false."
            ) from error
        self._places = {image: place for place, image in enumerate(ids)}
        self._held = held

    def _open(self) -> None:
        self._file = os.open(self.folder / "grids.bin", os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in self.__dict__.items() if key != "_file"}
        return state | {"_held": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def build_store(
    directory: Path,
    encoder: GridEncoder,
    images: Sequence[tuple[str, Path]],
    *,
    batch_size: int = 16,
    device: str = "auto",
    precision: str = "auto",
    workers: int = 2,
    skip_bad: bool = False,
    progress: bool = True,
) -> FeatureStore:
    """Open the encoder's store, after computing the grids that it does not have yet.

    Several processes may do so at once: one computes, the others wait and find the rows.

    The arithmetic (``precision``) is noted in ``meta.json`` but is no part of the store's
    identity: in bfloat16 a grid's cosine with the one in single precision is above 0.999, and a
    store is worth using on a machine of the other kind.

    Args:
        directory: Where all stores are; this one's folder is made below.
        encoder: The network; it is on ``device`` for as long as it computes.
        images: Id and file of each image.
        batch_size: Images encoded at once.
        device: ``auto`` (a GPU where there is one), or any name that torch knows.
        precision: ``fp32``, ``bf16``, or ``auto``: bf16 where the hardware has it.
        workers: Threads that read and resize images.
        skip_bad: Leave out missing and broken images, and name them in the result's ``notes``.
        progress: Whether to show how far it is.

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

    identity = _identity(encoder)
    folder = directory / _folder_name(identity)
    files = {digest: paths[image] for image, digest in digests.items()}
    # Looked at without the lock first: a complete store may be one that we can only read.
    if files.keys() - _read_index(folder).keys():
        with file_lock(folder / "lock", f"it is computing the grids in {folder}"):
            index = _repair(folder)
            missing = {digest: path for digest, path in files.items() if digest not in index}
            broken: dict[str, CaptioningError] = {}
            if missing:
                chosen = choose_device(device)
                arithmetic = choose_precision(precision, chosen)
                _write_meta(folder, identity, arithmetic)
                log.info(
                    "Computing %d grids with %s on %s (%s) into %s",
                    *(len(missing), encoder.name, chosen, arithmetic, folder),
                )
                batches = extract_grids(
                    encoder,
                    missing,
                    batch_size=batch_size,
                    device=chosen,
                    precision=arithmetic,
                    workers=workers,
                )
                title = f"Computing grids with {encoder.name}"
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
            notes.append(f"{image} is the same picture as {first}.")
    for note in notes:
        log.warning("%s", note)
    return FeatureStore(folder, digests, notes)


def _raise_unless(skip_bad: bool, errors: Mapping[str, CaptioningError]) -> None:
    if errors and not skip_bad:
        first = next(iter(errors.values()))
        more = f" (and {len(errors) - 1} more images)" if len(errors) > 1 else ""
        raise CaptioningError(f"{first}{more} With skip_bad=true such images are left out.")


def _identity(encoder: GridEncoder) -> dict[str, Any]:
    """What a grid depends on, as ``meta.json`` has it."""
    return {
        "format": _FORMAT,
        "encoder": encoder.name,
        "weights": encoder.fingerprint,
        "preprocessing": asdict(encoder.preprocessing),
        "locations": encoder.locations,
        "channels": encoder.channels,
        "dtype": "float16",
    }


def _folder_name(identity: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return f"{identity['encoder']}-{digest[:12]}"


def _damaged(folder: Path, what: str) -> CaptioningError:
    return CaptioningError(
        f"The feature store {folder} is damaged ({what}): delete that folder, and it is built anew."
    )


def _read_meta(folder: Path) -> dict[str, Any]:
    """Read ``meta.json``, which must be the one that the folder is named after."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        identity = {key: value for key, value in meta.items() if key != "precisions"}
        intact = folder.name == _folder_name(identity) and meta["format"] == _FORMAT
    except FileNotFoundError:
        raise _damaged(folder, "it has no meta.json") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        intact = False
    if not intact:
        raise _damaged(folder, "its meta.json does not describe it")
    result: dict[str, Any] = meta
    return result


def _write_meta(folder: Path, identity: Mapping[str, Any], precision: str) -> None:
    """Note the arithmetic of the grids to come, beside that of those already there."""
    path = folder / "meta.json"
    before = _read_meta(folder)["precisions"] if path.exists() else []
    if precision not in before:
        atomic_write_json(path, {**identity, "precisions": [*before, precision]})


def pack(grid: Float16[np.ndarray, "locations channels"]) -> bytes:
    """What stands in the file for a grid."""
    numbers = grid.reshape(-1)
    places = np.flatnonzero(numbers)
    steps = np.diff(places, prepend=-1)
    zeros = (steps - 1) // _FARTHEST  # before each number, to bridge what a byte cannot
    ours = np.cumsum(zeros + 1) - 1  # where each number comes to stand
    kept = np.zeros(int((zeros + 1).sum()), _NUMBER)
    kept[ours] = numbers[places]
    apart = np.full(len(kept), _FARTHEST, np.uint8)
    apart[ours] = steps - _FARTHEST * zeros
    return kept.tobytes() + apart.tobytes()


def unpack(packed: bytes, grid: Float16[np.ndarray, " numbers"]) -> None:
    """Set those numbers of a grid that are not zero; all have to be zero before.

    Raises:
        ValueError, IndexError: it is not what :func:`pack` makes of a grid of that size.
    """
    count, rest = divmod(len(packed), _NUMBER.itemsize + 1)
    if rest:
        raise ValueError("as many numbers as bytes for their places")
    apart = np.frombuffer(packed, np.uint8, offset=count * _NUMBER.itemsize)
    grid[np.cumsum(apart, dtype=np.int64) - 1] = np.frombuffer(packed, _NUMBER, count)


def _read_index(folder: Path) -> Index:
    """Return the row of each digest; none when there is no store yet.

    A last line without its end is one that another process is just writing.
    """
    try:
        text = (folder / "index.txt").read_text(encoding="ascii")
        size = (folder / "grids.bin").stat().st_size
    except FileNotFoundError:
        if (folder / "index.txt").exists():
            raise _damaged(folder, "it has no grids.bin") from None
        return {}
    except UnicodeDecodeError:
        raise _damaged(folder, "its index.txt is no text") from None
    lines = text.split("\n")[:-1]
    index: Index = {}
    offset = 0
    for number, line in enumerate(lines, start=1):
        found = _LINE.fullmatch(line)
        if not found:
            raise _damaged(folder, f"line {number} of its index.txt is no SHA-256 and size")
        index[found[1]] = Row(offset, int(found[2]))
        offset += int(found[2])
    if size < offset:
        raise _damaged(folder, "its grids.bin is shorter than its index.txt says")
    if len(index) < len(lines):
        raise _damaged(folder, "its index.txt says the same twice")
    return index


def _repair(folder: Path) -> Index:
    """Cut off what a killed run left behind, under the lock, and return the index."""
    index = _read_index(folder)
    for name, size in (
        ("index.txt", sum(len(_line(digest, row.size)) for digest, row in index.items())),
        ("grids.bin", sum(row.size for row in index.values())),
    ):
        path = folder / name
        if path.exists() and path.stat().st_size > size:
            os.truncate(path, size)
    return index


def _line(digest: str, size: int) -> str:
    return f"{digest} {size}\n"


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
    """Add rows, and return their bytes.

    The numbers reach the disk before a line of the index speaks of them.
    """
    packed = [pack(grid) for grid in grids]
    try:
        with (folder / "grids.bin").open("ab") as file:
            file.writelines(packed)
            file.flush()
            os.fsync(file.fileno())
        with (folder / "index.txt").open("a", encoding="ascii", newline="") as file:
            file.writelines(
                _line(digest, len(row)) for digest, row in zip(digests, packed, strict=True)
            )
    except OSError as error:
        raise CaptioningError(f"{folder} cannot be written ({error.strerror}).") from error
    return sum(map(len, packed))
