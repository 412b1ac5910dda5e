"""Broken, odd and hostile images, through ``caption.py`` and through the demo page.

Each image must be captioned as the picture that it is, or refused in one sentence, in the same way
by both; images beside it are captioned in any case. The page must also outlast slow clients.
"""

import itertools
import os
import random
import socket
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, chdir, contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.request import urlopen

import numpy as np
import torch
from flask import Flask
from PIL import Image

from captioning.apps.caption import Captioned, caption_files
from captioning.apps.demo import create_app
from captioning.apps.demo_server import MAX_CONNECTIONS, DemoServer
from captioning.captioner import Captioner
from captioning.data.image_files import find_images
from captioning.data.images import FORMATS, decode_rgb, load_rgb
from captioning.decoding import Greedy
from captioning.support.errors import CaptioningError
from faults.attempt import attempt, is_sentence
from faults.outcome import Outcome, Try

DEFAULT_TRIES: Final = 200

_SECONDS: Final = 60.0  # for one try; the largest picture takes a few seconds
_BY_SERVER: Final = 10  # one in so many tries is made on the running server, another in a folder
_TOLERANCE: Final = 16  # mean difference of levels between a picture and its JPEG


class Case(NamedTuple):
    """An image file, and what should become of it.

    Attributes:
        name: what was done.
        data: its content.
        shown: the picture that it shows, if it is read; None if that is not known.
        may_be: ``read``, ``refused``, or ``either``.
    """

    name: str
    data: bytes
    shown: Image.Image | None
    may_be: str


def run(tries: int, folder: Path, seed: int) -> Iterator[Try]:
    """Make so many tries.

    Args:
        tries: their number.
        folder: an empty folder to work in.
        seed: the cases are drawn from it.
    """
    rng = random.Random(seed)
    captioner = _captioner()
    app = create_app(captioner, Greedy())
    good = folder / "good.png"
    good.write_bytes(_encoded(_picture(rng), "PNG"))
    kinds, servers = itertools.cycle(_KINDS), itertools.cycle((_slow, _held))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damaged metadata
        for number in range(tries):
            if number % _BY_SERVER == 0:
                yield next(servers)(app, rng)
            elif number % _BY_SERVER == 1:
                yield _not_a_file(captioner, folder / str(number), good, rng)
            else:
                kind = next(kinds)
                yield _try_image(kind, _KINDS[kind](rng), captioner, app, folder, good)


def _captioner() -> Captioner:
    """A tiny untrained model."""
    torch.manual_seed(0)
    encoder = "captioning.models.encoders.vgg16.VGG16"
    decoder = "captioning.models.decoders.attn_lstm.AttentionLSTM"
    return Captioner(
        [f"word{number}" for number in range(20)],
        encoder={"_target_": encoder, "weights": "random", "image_size": 32},
        model={"_target_": decoder, "hidden_dim": 8, "embed_dim": 8},
    ).eval()


# Images


def _picture(rng: random.Random) -> Image.Image:
    """A picture of a few large patches."""
    patches = np.frombuffer(rng.randbytes(3 * 4 * 3), np.uint8).reshape(3, 4, 3)
    size = rng.randrange(16, 200), rng.randrange(16, 200)
    return Image.fromarray(patches).resize(size, Image.Resampling.NEAREST)


def _encoded(picture: Image.Image, format: str, **options: Any) -> bytes:
    file = BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def _whole(rng: random.Random) -> tuple[str, bytes]:
    """A valid image in any format, and a name for it."""
    format = rng.choice(sorted(FORMATS))
    options: dict[str, Any] = {}
    if format == "JPEG":
        options = {"progressive": rng.random() < 0.5}
    elif format == "WEBP":
        options = {"lossless": rng.random() < 0.5}
    elif format == "TIFF":
        options = {"compression": rng.choice((None, "tiff_lzw", "tiff_deflate"))}
    return format, _encoded(_picture(rng), format, **options)


def _cut(rng: random.Random) -> Case:
    format, data = _whole(rng)
    length = rng.randrange(len(data))
    shown = decode_rgb(data, Path(format))
    return Case(f"{format} of {len(data)} bytes after {length}", data[:length], shown, "either")


def _changed(rng: random.Random) -> Case:
    format, data = _whole(rng)
    found = bytearray(data)
    end = len(found) if rng.random() < 0.5 else min(len(found), 100)  # sizes and offsets are there
    for _ in range(rng.randrange(1, 6)):
        found[rng.randrange(end)] = rng.choice((0, 127, 128, 255, rng.randrange(256)))
    return Case(format, bytes(found), None, "either")


def _extended(rng: random.Random) -> Case:
    format, data = _whole(rng)
    more = rng.randbytes(rng.randrange(1, 2000)) if rng.random() < 0.5 else _whole(rng)[1]
    return Case(f"{format} and {len(more)} bytes", data + more, None, "either")


def _png(*chunks: tuple[bytes, bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)
        for kind, body in (*chunks, (b"IEND", b""))
    )


def _header(width: int, height: int, depth: int, colours: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)


def _bomb(rng: random.Random) -> Case:
    """A small file that declares a very large picture."""
    width, height = (rng.randrange(15_000, 65_000) for _ in range(2))
    format = rng.choice(("PNG", "JPEG", "GIF", "BMP", "TIFF", "JPEG of many scans"))
    picture = _picture(rng)
    data = bytearray(_encoded(picture, format.partition(" ")[0]))
    if format == "PNG":
        data = bytearray(_png(_header(width, height, 8, 2), (b"IDAT", zlib.compress(bytes(99)))))
    elif format == "JPEG":
        start = data.index(b"\xff\xc0")
        data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    elif format == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
    elif format == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    elif format == "TIFF":
        for tag, size in ((256, width), (257, height)):
            start = next(
                place
                for kind in (3, 4)
                if (place := data.find(struct.pack("<HHI", tag, kind, 1))) >= 0
            )
            data[start : start + 12] = struct.pack("<HHII", tag, 4, 1, size)
    else:
        large = _encoded(Image.new("L", (6000, 6000)), "JPEG", progressive=True)
        scan = large[large.rindex(b"\xff\xda") : -2]
        data = bytearray(large[:-2] + scan * rng.randrange(20_000, 50_000) + large[-2:])
    return Case(f"{format}, {width} x {height}", bytes(data), None, "refused")


def _empty(rng: random.Random) -> Case:
    """A picture without pixels, or a file without content."""
    size = rng.choice(((0, 9), (9, 0), (0, 0)))
    pixels = (b"IDAT", zlib.compress(bytes(rng.randrange(99))))
    choices = {
        "PNG": _png(_header(*size, 8, 2), pixels),
        "PNG without data": _png(_header(9, 9, 8, 2)),
        "PPM": b"P6 %d %d 255\n" % size,
        "no bytes": b"",
        "GIF": b"GIF89a" + struct.pack("<HHBBB", *size, 0, 0, 0) + b";",
    }
    name = rng.choice(sorted(choices))
    return Case(name, choices[name], None, "refused")


def _palette(rng: random.Random) -> Case:
    """A palette or a transparency that does not fit the pixels."""
    colours = rng.randrange(0, 260)
    opacity = rng.randrange(0, 300)
    kind = rng.choice((0, 2, 3))
    pixels = b"".join(b"\0" + rng.randbytes(9 * (3 if kind == 2 else 1)) for _ in range(9))
    chunks = [
        _header(9, 9, 8, kind),
        (b"PLTE", rng.randbytes(3 * colours)),
        (b"tRNS", rng.randbytes(opacity)),
        (b"IDAT", zlib.compress(pixels)),
    ]
    name = f"kind {kind}, {colours} colours, {opacity} bytes of transparency"
    return Case(name, _png(*chunks), None, "either")


def _unusual(rng: random.Random) -> Case:
    """A valid image whose pixels are not eight-bit RGB."""
    picture = _picture(rng)
    grey = np.asarray(picture.convert("L"))
    other = _picture(rng).resize(picture.size)
    wide = Image.fromarray(grey.astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    files: dict[str, Callable[[], tuple[bytes, Image.Image]]] = {
        "16-bit PNG": lambda: (_encoded(wide, "PNG"), Image.fromarray(grey)),
        "16-bit TIFF": lambda: (_encoded(wide, "TIFF"), Image.fromarray(grey)),
        "CMYK JPEG": lambda: (_encoded(picture.convert("CMYK"), "JPEG", quality=95), picture),
        "CMYK TIFF": lambda: (_encoded(picture.convert("CMYK"), "TIFF"), picture),
        "YCbCr TIFF": lambda: (_encoded(picture.convert("YCbCr"), "TIFF"), picture),
        "grey PNG with transparency": lambda: (
            _encoded(picture.convert("LA"), "PNG"),
            Image.fromarray(grey),
        ),
        "one-bit PNG": lambda: (_encoded(picture.convert("1"), "PNG"), picture.convert("1")),
        "palette GIF": lambda: (_encoded(picture.quantize(16), "GIF"), picture),
        "clear PNG": lambda: (
            _encoded(Image.new("RGBA", picture.size), "PNG"),
            Image.new("RGB", picture.size, "white"),
        ),
        "upside down": lambda: (
            _encoded(picture, "JPEG", exif=exif, quality=95),
            picture.transpose(Image.Transpose.ROTATE_180),
        ),
        **{
            f"animated {format}": lambda format=format: (  # type: ignore[misc]
                _encoded(picture, format, save_all=True, append_images=[other] * 2),
                picture,
            )
            for format in ("GIF", "PNG", "WEBP", "TIFF")
        },
    }
    name = rng.choice(sorted(files))
    data, shown = files[name]()
    return Case(name, data, shown.convert("RGB"), "read")


def _shape(rng: random.Random) -> Case:
    """A picture with sides of very different lengths, or of few pixels."""
    size = rng.choice(((1, 1), (1, 30_000), (30_000, 1), (2, 60_000), (65_000, 3)))
    picture = Image.new("RGB", size, (rng.randrange(256), 9, 99))
    return Case(f"{size[0]} x {size[1]}", _encoded(picture, "PNG"), picture, "read")


def _no_photograph(rng: random.Random) -> Case:
    """A file of another kind, under the name of a photograph."""
    picture = _picture(rng)
    choices = {
        **{format: _encoded(picture, format) for format in ("EPS", "ICO", "PCX", "PDF", "SGI")},
        "text": b"not an image",
        "page": b"<html><title>404</title></html>",
        "drawing": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "archive": b"PK\x03\x04" + rng.randbytes(300),
        "noise": b"\x01" + rng.randbytes(rng.randrange(1, 3000)),
        "zeros": bytes(rng.randrange(1, 3000)),
        "floating-point pixels": _encoded(Image.new("F", (9, 9), 0.5), "TIFF"),
    }
    name = rng.choice(sorted(choices))
    return Case(name, choices[name], None, "refused")


_KINDS: Final[dict[str, Callable[[random.Random], Case]]] = {
    "image, cut short": _cut,
    "image, bytes changed": _changed,
    "image, bytes appended": _extended,
    "image, of too many pixels or scans": _bomb,
    "image, of no pixels": _empty,
    "image, wrong palette or transparency": _palette,
    "image, unusual pixels": _unusual,
    "image, extreme shape": _shape,
    "file that is no photograph": _no_photograph,
}


def _try_image(
    kind: str, case: Case, captioner: Captioner, app: Flask, folder: Path, good: Path
) -> Try:
    path = folder / "image.jpg"
    path.write_bytes(case.data)

    def both() -> tuple[str, str]:
        found, errors = _captions(captioner, [good, path])
        return (
            _refusal_of_command(found, errors, path, good),
            _answer(app, case.data, path.name),
        )

    outcome, detail, result = attempt(both, _SECONDS)
    if result is not None:
        outcome, detail = _judge(case, *result)
    return Try(kind, case.name, outcome, detail)


def _captions(
    captioner: Captioner, files: Sequence[Path]
) -> tuple[list[Captioned], dict[Path, CaptioningError]]:
    found: list[Captioned] = []
    errors: dict[Path, CaptioningError] = {}
    for some, refused in caption_files(captioner, files, Greedy(), device="cpu"):
        found += some
        errors |= refused
    return found, errors


def _refusal_of_command(
    found: list[Captioned], errors: dict[Path, CaptioningError], path: Path, good: Path
) -> str:
    """The message about the image; empty if it has a caption."""
    assert good in [each.path for each in found], "the image beside it has no caption"
    message = str(errors[path]) if path in errors else ""
    assert bool(message) != (path in [each.path for each in found])
    return message


def _answer(app: Flask, data: bytes, name: str) -> str:
    """The message of the page about an upload; empty if it has a caption."""
    answer = app.test_client().post("/caption", data={"photo": (BytesIO(data), name)})
    found = answer.get_json()
    if answer.status_code == 200:
        assert found["models"][0]["captions"]
        return ""
    assert 400 <= answer.status_code < 500, f"status {answer.status_code}: {found}"
    return str(found["error"])


def _judge(case: Case, by_command: str, by_page: str) -> tuple[Outcome, str]:
    for message in filter(None, (by_command, by_page)):
        if not is_sentence(message):
            return "traceback", f"no sentence: {message}"
    if bool(by_command) != bool(by_page):
        return "silent", f"caption.py: {by_command or 'read'}; page: {by_page or 'read'}"
    if by_command:
        return ("lost" if case.may_be == "read" else "refused"), by_command
    if case.may_be == "refused":
        return "silent", "it was captioned"
    if case.shown is not None:
        found = decode_rgb(case.data, Path(case.name))
        if found.size != case.shown.size:
            return "silent", f"read as {found.size} instead of {case.shown.size}"
        difference = np.abs(np.asarray(found, float) - np.asarray(case.shown, float)).mean()
        if difference > _TOLERANCE:
            return "silent", f"read as another picture, {difference:.0f} levels away"
    return "right", ""


def _not_a_file(captioner: Captioner, folder: Path, good: Path, rng: random.Random) -> Try:
    """A folder with something in it that can be opened and never ends, or cannot be opened."""
    folder.mkdir()
    (folder / "good.png").symlink_to(good)
    odd = folder / "odd.jpg"
    name = rng.choice(("pipe", "/dev/zero", "/dev/random", "/dev/full", "socket", "broken link"))
    if name == "pipe":
        os.mkfifo(odd)
    elif name == "socket":
        with socket.socket(socket.AF_UNIX) as listener, chdir(folder):
            listener.bind(odd.name)  # its whole path could be too long
    else:
        odd.symlink_to(name if name.startswith("/") else "nowhere")

    def caption() -> str:
        with suppress(CaptioningError):  # first in this thread, which the time limit can interrupt
            load_rgb(odd)
        pattern = rng.choice((str(folder), f"{folder}/*", f"{folder}/**"))
        found, errors = _captions(captioner, find_images(pattern).files)
        return _refusal_of_command(found, errors, odd, folder / "good.png")

    outcome, detail, message = attempt(caption, _SECONDS)
    if message is not None:
        outcome, detail = ("refused", message) if is_sentence(message) else ("silent", message)
    return Try("pipe, device or broken link among images", name, outcome, detail)


# The server


@contextmanager
def _served(app: Flask) -> Iterator[tuple[str, int]]:
    """The page on a server that waits for half a second only; yields its host and port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = DemoServer(app, listener, header_seconds=0.5, body_seconds=0.5)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            server.shutdown()
            thread.join()


def _slow(app: Flask, rng: random.Random) -> Try:
    """Many clients that send a part of a header, and then a byte now and then or nothing."""
    head = b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: "
    starts = [head[: rng.randrange(len(head))] for _ in range(rng.randrange(5, 200))]
    return _clients("slow connections to the page", app, starts)


def _held(app: Flask, rng: random.Random) -> Try:
    """Many clients that send a part of a photograph."""
    head = (
        b"POST /caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: 19000000\r\n"
        b"Content-Type: multipart/form-data; boundary=X\r\n\r\n"
        b'--X\r\nContent-Disposition: form-data; name="photo"; filename="a"\r\n\r\n'
    )
    starts = [head + bytes(rng.randrange(100_000)) for _ in range(rng.randrange(2, 40))]
    return _clients("uploads to the page that stop", app, starts)


def _clients(kind: str, app: Flask, starts: Sequence[bytes]) -> Try:
    def work() -> int:
        before = threading.active_count()
        most = 0
        with ExitStack() as stack:
            address = stack.enter_context(_served(app))
            clients = [
                stack.enter_context(socket.create_connection(address, timeout=20)) for _ in starts
            ]
            for client, start in zip(clients, starts, strict=True):
                with suppress(OSError):
                    client.sendall(start)
                most = max(most, threading.active_count() - before)
            for client in clients:  # until the server has closed each
                with suppress(OSError):
                    while client.recv(65536):
                        pass
            deadline = time.monotonic() + 20
            while threading.active_count() > before + 1 and time.monotonic() < deadline:
                time.sleep(0.01)
            with urlopen("http://{}:{}".format(*address), timeout=20) as answer:
                assert answer.status == 200
        return most

    outcome, detail, most = attempt(work, _SECONDS)
    if most is not None and most > MAX_CONNECTIONS + 1:
        outcome, detail = "crash", f"{most} threads at the same time"
    return Try(kind, f"{len(starts)} clients", outcome, detail)
