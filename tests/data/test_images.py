"""Every kind of image file becomes the RGB picture that a viewer would show."""

import contextlib
import io
import os
import socket
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioning.data import images
from captioning.data.image_files import find_images
from captioning.data.images import load_rgb
from captioning.support.errors import CaptioningError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_rgb_is_kept_to_the_bit(tmp_path: Path) -> None:
    image = load_rgb(saved(Image.fromarray(PIXELS), tmp_path / "a.png"))
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), PIXELS)


def test_grey_and_sixteen_bit_grey(tmp_path: Path) -> None:
    grey = PIXELS[:, :, 0]
    expected = np.stack([grey] * 3, axis=2)
    eight = load_rgb(saved(Image.fromarray(grey), tmp_path / "8.png"))
    np.testing.assert_array_equal(np.asarray(eight), expected)
    wide = Image.fromarray(grey.astype(np.uint16) * 257)
    sixteen = load_rgb(saved(wide, tmp_path / "16.png"))
    np.testing.assert_array_equal(np.asarray(sixteen), expected)


def test_palette_and_cmyk(tmp_path: Path) -> None:
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    palette = load_rgb(saved(red.quantize(4), tmp_path / "p.png"))
    cmyk = load_rgb(saved(red.convert("CMYK"), tmp_path / "c.jpg", quality=100))
    for image in (palette, cmyk):
        assert image.mode == "RGB"
        np.testing.assert_allclose(np.asarray(image)[4, 4], (255, 0, 0), atol=3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white(tmp_path: Path, mode: str) -> None:
    if mode == "P":
        image = Image.new("P", (4, 4), 0)
        image.putpalette([0, 0, 0, 9, 9, 9])
        path = saved(image, tmp_path / "t.png", transparency=0)
    else:
        path = saved(Image.new(mode, (4, 4)), tmp_path / "t.png")
    assert np.asarray(load_rgb(path)).min() == 255


def test_half_transparent_black_is_grey(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    pixels = np.asarray(load_rgb(saved(image, tmp_path / "t.png")))
    np.testing.assert_allclose(pixels, 127, atol=1)


def test_the_picture_stands_as_its_exif_says(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    upright = load_rgb(saved(image, tmp_path / "a.png", exif=exif))
    np.testing.assert_array_equal(np.asarray(upright), np.rot90(PIXELS, -1))


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.repeat(np.repeat(PIXELS, 20, 0), 20, 1)).save(buffer, "jpeg")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: b"", "no known format"),
        (lambda: b"<html>404</html>", "no known format"),
        (lambda: jpeg()[: len(jpeg()) // 2], "truncated"),
        (lambda: jpeg()[:100], "(?i)truncated"),
    ],
)
def test_what_is_no_whole_image_is_named(
    tmp_path: Path, make: Callable[[], bytes], words: str
) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(make())
    with pytest.raises(CaptioningError, match=words) as caught:
        load_rgb(path)
    assert str(path) in str(caught.value)
    assert "BytesIO" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CaptioningError, match=r"gone\.jpg cannot be read \(No such file"):
        load_rgb(tmp_path / "gone.jpg")


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """Reading a pipe would wait for ever, and reading /dev/zero would fill the memory."""
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(tmp_path):
        listener.bind("socket.jpg")  # its whole path could be too long for a socket
    for name in ("pipe.jpg", "device.jpg", "socket.jpg"):
        with pytest.raises(CaptioningError, match=rf"{name} is not an image file but a pipe"):
            load_rgb(tmp_path / name)
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(CaptioningError, match=r"folder\.jpg cannot be read \(Is a directory"):
        load_rgb(tmp_path / "folder.jpg")
    linked = tmp_path / "linked.png"
    linked.symlink_to(saved(Image.fromarray(PIXELS), tmp_path / "a.png"))
    assert load_rgb(linked).size == (9, 6)


def test_a_file_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(10**12)  # takes no space on the disk
    with pytest.raises(CaptioningError, match=r"huge\.png has 1000\.0 GB, more than"):
        load_rgb(path)


def test_no_file_is_handed_to_ghostscript(tmp_path: Path) -> None:
    """EPS is a program, and Pillow runs it, whatever the name of the file says."""
    path = tmp_path / "a.jpg"
    Image.fromarray(PIXELS).save(path, "EPS")
    with pytest.raises(CaptioningError, match=r"a\.jpg is of no known format: .*JPEG"):
        load_rgb(path)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_used(tmp_path: Path, format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    path = tmp_path / "animated"
    frames[0].save(path, format, save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(np.asarray(load_rgb(path))[4, 4], (255, 0, 0), atol=3)


def chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, body) for kind, body in chunks)


def header(width: int, height: int, colours: int) -> tuple[bytes, bytes]:
    return b"IHDR", width.to_bytes(4) + height.to_bytes(4) + bytes([8, colours, 0, 0, 0])


PALETTE = (b"PLTE", bytes(range(6)))  # two colours
INDICES = (b"IDAT", zlib.compress(bytes([0, 0, 1]) * 2))


@pytest.mark.filterwarnings("ignore")  # Pillow's
@pytest.mark.parametrize(
    ("data", "is_readable"),
    [
        (png(header(0, 2, 3), PALETTE, INDICES, (b"IEND", b"")), False),
        (png(header(2, 0, 3), PALETTE, INDICES, (b"IEND", b"")), False),
        (png(header(2, 2, 3), PALETTE, INDICES, (b"IEND", b"")), True),
        (png(header(2, 2, 3), PALETTE, (b"tRNS", b"\0"), INDICES, (b"IEND", b"")), True),
        (png(header(2, 2, 3), PALETTE, (b"tRNS", bytes(300)), INDICES, (b"IEND", b"")), False),
        (png(header(2, 2, 3), PALETTE, (b"tRNS", b""), INDICES, (b"IEND", b"")), True),
        (png(header(2, 2, 2), (b"tRNS", b"\0"), INDICES, (b"IEND", b"")), False),
        (png(header(2, 2, 3), INDICES, (b"IEND", b"")), True),
        (png(header(2, 2, 3), PALETTE, (b"IEND", b"")), False),
    ],
    ids=["no width", "no height", "whole", "shorter transparency", "longer transparency",
         "empty transparency", "cut transparency", "no palette", "no pixels"],
)  # fmt: skip
def test_odd_pngs_are_read_or_refused(tmp_path: Path, data: bytes, is_readable: bool) -> None:
    path = tmp_path / "odd.png"
    path.write_bytes(data)
    if is_readable:
        assert load_rgb(path).size == (2, 2)
    else:
        with pytest.raises(CaptioningError, match=r"odd\.png"):
            load_rgb(path)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(Image.new("RGB", (100, 100)), tmp_path / "bomb.png")
    for limit in (9_999, 100):  # where Pillow only warns, and where it raises
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(CaptioningError, match=r"bomb\.png is not a readable image"):
            load_rgb(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    assert load_rgb(path).size == (100, 100)


def test_wide_pixels_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    path = saved(Image.fromarray(np.ones((4, 4), dtype=np.float32)), tmp_path / "f.tiff")
    with pytest.raises(CaptioningError, match="floating-point pixels of an unknown range"):
        load_rgb(path)
    path = saved(Image.fromarray(np.full((4, 4), 2**20, dtype=np.int32)), tmp_path / "i.tiff")
    with pytest.raises(CaptioningError, match="32-bit pixels of an unknown range"):
        load_rgb(path)


def test_a_photograph_of_an_iphone_is_read(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    colours = np.zeros((48, 64, 3), dtype=np.uint8)
    colours[:, :32], colours[:, 32:] = (200, 30, 40), (20, 180, 60)
    path = tmp_path / "a.HEIC"
    Image.fromarray(colours).save(path, "HEIF", quality=95)
    assert find_images(str(tmp_path)).files == [path]
    read = np.asarray(load_rgb(path)).astype(int)
    assert np.abs(read[:, [8, 56]] - colours[:, [8, 56]]).max() < 12


def test_without_its_wheel_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "READS_HEIC", False)
    path = tmp_path / "a.HEIC"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))
    assert find_images(str(tmp_path)).files == [path]
    with pytest.raises(CaptioningError, match=r"a\.HEIC is a HEIC photograph: pip install"):
        load_rgb(path)
