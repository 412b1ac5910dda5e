"""Reading an image file as eight-bit RGB, whatever its format."""

import stat
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from captioning.support.errors import CaptioningError

try:  # the extra `heic`
    from pillow_heif import register_heif_opener
except ImportError:
    READS_HEIC = False
else:
    register_heif_opener()
    READS_HEIC = True

FORMATS: Final = frozenset(
    {"AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP"}
    | ({"HEIF"} if READS_HEIC else set())
)
"""The formats of photographs, by Pillow's names. No file is decoded as any other: Pillow would hand
EPS, for example, to Ghostscript, which runs it as a program."""

MAX_FILE_BYTES: Final = 1_000_000_000
"""The largest file that is read: more than ``PIL.Image.MAX_IMAGE_PIXELS`` need uncompressed."""

_MAX_SCANNED_PIXELS: Final = 20_000_000_000
"""Pixels times scans of a JPEG. Photographs have a dozen scans; 20 MB can have 200,000, which would
take hours."""


class UnknownFormatError(CaptioningError):
    """The content is of none of :data:`FORMATS`."""


class TooManyPixelsError(CaptioningError):
    """Decoding the image might exhaust the memory."""


def load_rgb(path: Path) -> Image.Image:
    """Read an image file as RGB; see :func:`decode_rgb`.

    Raises:
        CaptioningError: the file cannot be read, or is not a complete image.
    """
    return decode_rgb(read_file(path), path)


def read_file(path: Path) -> bytes:
    """Return a file's content.

    Raises:
        CaptioningError: the file cannot be read; see also :func:`open_file`.
    """
    try:
        with open_file(path) as file:
            return file.read()
    except OSError as error:
        raise CaptioningError(f"{path} cannot be read ({error.strerror}).") from error


def open_file(path: Path) -> BufferedReader:
    """Open a regular file, or a link to one. Reading a pipe or a device might never end.

    Raises:
        CaptioningError: it is a pipe, a device or a socket, or larger than any photograph.
        OSError: the file cannot be opened.
    """
    status = path.stat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise CaptioningError(
            f"{path} is not an image file but a pipe, a device or a socket: remove it."
        )
    if stat.S_ISREG(status.st_mode) and status.st_size > MAX_FILE_BYTES:
        raise CaptioningError(
            f"{path} has {status.st_size / 1e9:.1f} GB, more than any photograph: remove it."
        )
    return path.open("rb")  # for a folder, this says that it is one


def decode_rgb(data: bytes, path: Path, max_pixels: int | None = None) -> Image.Image:
    """Decode the content of an image file to eight-bit RGB, rotated as its EXIF data says.

    Transparent pixels are composited onto white, 16-bit greys are scaled to eight bits, CMYK and
    palettes are converted, and of an animation the first frame is used.

    Args:
        data: The content of the file.
        path: The name of the file, for the error message.
        max_pixels: The largest number of pixels; None for ``PIL.Image.MAX_IMAGE_PIXELS``.

    Raises:
        UnknownFormatError: the content is of none of :data:`FORMATS`.
        TooManyPixelsError: it has more than ``max_pixels``.
        CaptioningError: a part of the image is missing, or it is damaged.
    """
    remedy = "replace or remove it"
    try:
        with Image.open(BytesIO(data), formats=_known_formats()) as image:
            _check_size(image, max_pixels or Image.MAX_IMAGE_PIXELS)
            scans = data.count(b"\xff\xda")
            if image.format in ("JPEG", "MPO") and scans * _pixels(image) > _MAX_SCANNED_PIXELS:
                raise ValueError("a JPEG of too many scans")
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        if _is_heic(data) and not READS_HEIC:
            raise UnknownFormatError(
                f"{path} is a HEIC photograph: pip install pillow-heif to read it, or save it as "
                "JPEG."
            ) from error
        raise UnknownFormatError(
            f"{path} is of no known format: choose one of {', '.join(sorted(FORMATS))}."
        ) from error
    except _TOO_MANY_PIXELS as error:
        raise TooManyPixelsError(f"{path} is not a readable image ({error}): {remedy}.") from error
    except Exception as error:  # Pillow's decoders raise many exceptions for damaged files
        reason = str(error) or type(error).__name__
        raise CaptioningError(f"{path} is not a readable image ({reason}): {remedy}.") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture in memory to eight-bit RGB, in the same way as :func:`decode_rgb`.

    Raises:
        CaptioningError: it has no pixels, they are of an unknown range, or its file is damaged.
    """
    try:
        _check_size(image, None)
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # Pillow's decoders raise many exceptions for damaged files
        reason = str(error) or type(error).__name__
        raise CaptioningError(
            f"This picture (mode {image.mode}, {image.width} x {image.height}) cannot be converted "
            f"to RGB ({reason}): convert it first."
        ) from error


def _is_heic(data: bytes) -> bool:
    """Whether a file is in the format of iPhones (ISO/IEC 23008-12)."""
    return data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"heim", b"heis", b"mif1")


class _SizeError(ValueError):
    pass


_TOO_MANY_PIXELS = (_SizeError, Image.DecompressionBombError, Image.DecompressionBombWarning)


def _known_formats() -> list[str]:
    """The formats that the installed Pillow has; TGA, whose files have no mark, is the last."""
    Image.init()
    return sorted(FORMATS & Image.OPEN.keys(), key=lambda name: (name == "TGA", name))


def _check_size(image: Image.Image, max_pixels: int | None) -> None:
    if not all(image.size):
        raise ValueError("it has no pixels")
    if max_pixels is not None and _pixels(image) > max_pixels:
        raise _SizeError(f"{image.width} x {image.height} pixels are too many")


def _pixels(image: Image.Image) -> int:
    return image.width * image.height


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels of an unknown range")
    if image.mode.startswith("I"):  # 16-bit greys, which Pillow would clip at 255
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("32-bit pixels of an unknown range")
        return Image.fromarray((grey / 257).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
