"""The file of a checkpoint: whether there is one, and whether it is whole. Needs no torch."""

from pathlib import Path
from typing import BinaryIO
from zipfile import ZIP_STORED, BadZipFile, ZipFile

from captioning.support.errors import CaptioningError


def check_file(path: Path, key: str) -> None:
    """Check that there is a file.

    Args:
        path: the file.
        key: the setting that names it: ``ckpt`` or ``resume``.

    Raises:
        CaptioningError: there is none, or it is a folder, a pipe or a device.
    """
    name = f"{key}={path}"
    try:
        if path.is_dir():
            raise CaptioningError(f"{name} is a folder: name a file in it{_example(path, key)}.")
        if path.exists() and not path.is_file():
            raise CaptioningError(f"{name} is a pipe or a device: name a file.")
        exists = path.is_file()
    except OSError as error:
        raise CaptioningError(f"{name} cannot be read ({error.strerror}).") from error
    if not exists:
        raise CaptioningError(f"{name}: no such file; a run's are in its checkpoints/.")


def _example(folder: Path, key: str) -> str:
    """``, such as FILE``, if a folder is that of a run or of its checkpoints."""
    name = "last.ckpt" if key == "resume" else "best.ckpt"
    found = [path for path in (folder / name, folder / "checkpoints" / name) if path.is_file()]
    return f", such as {found[0]}" if found else ""


def damaged_part(file: BinaryIO) -> str | None:
    """The first part of torch's archive that does not match its checksum; None if all match.

    torch writes a CRC-32 of each part, and does not compare it when it loads the file.

    Raises:
        BadZipFile: the file is not an archive as torch writes it; zipfile raises further kinds.
    """
    with ZipFile(file) as archive:
        parts = archive.infolist()
        size = file.seek(0, 2)
        # In a small file, compressed or overlapping parts could stand for any amount of memory.
        if sum(part.file_size for part in parts) > size or any(
            part.compress_type != ZIP_STORED for part in parts
        ):
            raise BadZipFile("not written by torch")
        for part in parts:
            with archive.open(part) as content:
                try:
                    while content.read(2**20):
                        pass
                except BadZipFile:
                    return part.filename
    return None
