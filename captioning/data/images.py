"""Reading an image file as eight-bit RGB, whatever its format."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from captioning.support.errors import CaptioningError

try:  # the extra `heic`
    from pillow_heif import register_heif_opener
except ImportError:
    READS_HEIF = False
else:
    register_heif_opener()
    READS_HEIF = True

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def load_rgb(path: Path) -> Image.Image:
    """Read an image file as RGB; see :func:`decode_rgb`.

    Raises:
        CaptioningError: the file cannot be read, or is not a complete image.
    """
    return decode_rgb(read_file(path), path)


def read_file(path: Path) -> bytes:
    """Return a file's content.

    Raises:
        CaptioningError: the file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise CaptioningError(f"{path} cannot be read ({error.strerror}).") from error


def decode_rgb(data: bytes, path: Path) -> Image.Image:
    """Decode the content of an image file to eight-bit RGB, rotated as its EXIF data says.

    Transparent pixels are composited onto white, 16-bit greys are scaled to eight bits, CMYK and
    palettes are converted, and of an animation the first frame is used.

    Args:
        data: The content of the file.
        path: The name of the file, for the error message.

    Raises:
        CaptioningError: the content is not an image, a part of it is missing, or it has so many
            pixels (``PIL.Image.MAX_IMAGE_PIXELS``) that decoding it might exhaust the memory.
    """
    try:
        with Image.open(BytesIO(data)) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # Pillow's decoders raise many exceptions for damaged files
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "of no known format" if unknown else str(error) or type(error).__name__
        if unknown and data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS and not READS_HEIF:
            raise CaptioningError(
                f"{path} is a HEIC photograph, which pip install pillow-heif makes readable; "
                "install that, or save it as JPEG."
            ) from error
        raise CaptioningError(
            f"{path} is not a readable image ({reason}): replace or remove it."
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels of an unknown range")
    if image.mode.startswith("I"):  # 16-bit greys, which Pillow would clip at 255
        grey = np.asarray(image).clip(0, 65535) / 257
        return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
