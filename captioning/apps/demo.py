"""A page on this computer that captions the photographs which are dropped on it.

``python -m captioning demo ckpt=PATH`` serves it. :func:`create_app` makes the same page of a model
at hand, for notebooks. Photographs stay in memory, and no other site can ask.
"""

import argparse
import base64
import json
import logging
import os
import signal
import socket
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from flask import Flask, Request, Response, abort, request
from PIL import Image, UnidentifiedImageError
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.serving import make_server

from captioning.data.image_files import FORMATS
from captioning.data.images import decode_rgb
from captioning.reporting.figures import region_of
from captioning.reporting.gallery import attention_data
from captioning.reporting.rendering import render_page
from captioning.support.build import validated
from captioning.support.errors import CaptioningError

if TYPE_CHECKING:
    import captioning.captioner
    import captioning.decoding

HOST: Final = "127.0.0.1"
MOST_BYTES: Final = 20_000_000
"""Of an upload."""
MOST_PIXELS: Final = 64_000_000
"""Of a photograph; what is transparent takes 20 bytes a pixel until it is RGB."""
SHOWN: Final = 1024
"""Pixels of the longer side of the photograph that the page shows, at most."""

HELP = f"""\
settings:
  ckpt=PATH     a run's checkpoints/best.ckpt; needed
  port=8000     the page is http://{HOST}:PORT; 0: any port that is free
  beam_size=5   how many captions the search keeps, and the page shows
  device=auto   cpu, cuda, mps; auto: a GPU where there is one
"""


@dataclass(frozen=True)
class DemoSettings:
    """What the command line may say."""

    ckpt: str
    port: int = 8000
    beam_size: int = 5
    device: str = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise CaptioningError(f"port={self.port}: choose one from 0 to {2**16 - 1}.")


def create_app(
    captioner: "captioning.captioner.Captioner", decoding: "captioning.decoding.Decoding"
) -> Flask:
    """Make the page: ``GET /`` is the page itself, ``POST /caption`` what it asks.

    The upload is a form whose file ``photo`` is a photograph. The answer is JSON, with the
    photograph as the page shows it and its captions, best first::

        {"photo": {"url": "data:image/jpeg;base64,...", "width": 1024, "height": 683},
         "captions": [{"text": "a dog runs", "words": ["a", "dog", "runs"], "log_prob": -4.2,
                       "attention": {"maps": "...", "rows": 14, "columns": 14,
                                     "region": [0, 0, 1, 1]}}]}

    ``attention`` is a :class:`~captioning.reporting.gallery.AttentionData`, null for a model
    without attention. Failures are ``{"error": "one sentence"}`` with a status of 400 and more.

    Args:
        captioner: the model, on the device that computes.
        decoding: how the captions are written.
    """
    # Imported here, so that --help and wrong settings need not wait for torch.
    from captioning.apps.caption import hypothesize, maps_of
    from captioning.data.features.extraction import choose_precision

    precision = choose_precision("auto", captioner.device)
    encoder = captioner.encoder
    page = render_page(
        "demo.html.jinja",
        ("page.css", "attention.css", "demo.css"),
        ("attention.js", "demo.js"),
        model=captioner.run["name"],
        encoder=encoder.name,
        most_bytes=MOST_BYTES,
    )
    one_at_a_time = Lock()

    app = Flask(__name__, static_folder=None)
    app.request_class = _InMemory
    # A name that another site makes point here is not this computer's.
    app.config["TRUSTED_HOSTS"] = [HOST, "localhost"]
    app.config["MAX_CONTENT_LENGTH"] = app.config["MAX_FORM_MEMORY_SIZE"] = MOST_BYTES
    app.before_request(_refuse_other_sites)
    app.after_request(_harden)
    app.register_error_handler(HTTPException, _tell)

    @app.get("/")
    def show() -> str:
        return page

    @app.post("/caption")
    def caption() -> dict[str, Any]:
        name, data = _uploaded()
        with one_at_a_time:  # decoding too, since it takes memory
            picture = _read(name, data)
            pixels = encoder.preprocessing(picture)
            (hypotheses,) = hypothesize(captioner, [pixels], decoding, precision)
            region = region_of(encoder.preprocessing.resize, picture.size)
            photo = _photo(picture)
        captions = []
        for hypothesis in hypotheses:
            text = captioner.vocabulary.decode(hypothesis.tokens)
            captions.append(
                {
                    "text": text,
                    "words": text.split(),
                    "log_prob": hypothesis.log_prob,
                    "attention": attention_data(maps_of(hypothesis, encoder.grid_size), region),
                }
            )
        return {"photo": photo, "captions": captions}

    return app


class _InMemory(Request):
    """A request whose files are kept in memory: nothing that was uploaded touches the disk."""

    def _get_file_stream(self, *arguments: object, **named: object) -> BytesIO:
        return BytesIO()


def _refuse_other_sites() -> None:
    """A browser says which site a request comes from; a script of the user's own says nothing."""
    here = request.host_url.rstrip("/")
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    if request.method == "POST" and (
        site != "same-origin" or request.headers.get("Origin", here) != here
    ):
        abort(403, "Photographs of other sites are not captioned: open this page and drop them.")


def _harden(response: Response) -> Response:
    response.headers |= {
        "Cache-Control": "no-store",
        # The rest of its policy stands in the page, with the digests of its scripts.
        "Content-Security-Policy": "frame-ancestors 'none'",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return response


def _tell(error: HTTPException) -> Any:
    """The answer to what went wrong, also to Werkzeug's own errors: JSON with one sentence."""
    sentence = error.description or error.name
    if sentence == type(error).description:  # Werkzeug's own have several
        sentence = sentence.partition(". ")[0].rstrip(".") + "."
    response: Any = error.get_response()  # with the headers that belong to its status
    response.data = json.dumps({"error": sentence})
    response.content_type = "application/json"
    return response


def _uploaded() -> tuple[str, bytes]:
    """The name and the content of the file that was sent."""
    try:
        file = request.files.get("photo")
    except RequestEntityTooLarge:
        abort(413, f"More than {MOST_BYTES // 10**6} MB were sent: choose a smaller photograph.")
    if file is None or not file.filename:
        abort(400, "No photograph was sent: it is the file `photo` of a form.")
    return file.filename, file.read()


def _read(name: str, data: bytes) -> Image.Image:
    """Decode a photograph, within the bounds of what is taken from a browser."""
    pixels = MOST_PIXELS + 1
    try:
        with warnings.catch_warnings():  # of the whole process: one photograph at a time
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(data), formats=sorted(FORMATS)) as image:
                pixels = image.width * image.height
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        pass
    except UnidentifiedImageError:
        abort(415, f"{name} is of no known format: choose one of {', '.join(sorted(FORMATS))}.")
    if pixels > MOST_PIXELS:
        most = MOST_PIXELS // 10**6
        abort(413, f"{name} has more than {most} million pixels: choose a smaller photograph.")
    try:
        return decode_rgb(data, Path(name))
    except CaptioningError as error:
        abort(400, str(error))


def _photo(picture: Image.Image) -> dict[str, Any]:
    """A photograph as the page shows it; the picture itself becomes as small."""
    picture.thumbnail((SHOWN, SHOWN))
    file = BytesIO()
    picture.save(file, "JPEG", quality=85)
    url = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"url": url, "width": picture.width, "height": picture.height}


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m captioning demo",
        description="Serve a page to drop photographs on: it shows their captions, and where the "
        "model looked for each word. It can be reached from this computer alone.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="see below")
    try:
        _serve(_settings(parser.parse_args(arguments).settings))
    except CaptioningError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _settings(arguments: Sequence[str]) -> DemoSettings:
    names = [field.name for field in fields(DemoSettings)]
    given = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise CaptioningError(f"{argument}: give settings as key=value, such as port=8000.")
        if key not in names:
            raise CaptioningError(f"{argument}: no such setting; there are {', '.join(names)}.")
        given[key] = value
    if "ckpt" not in given:
        raise CaptioningError("ckpt=PATH is missing: name a run's checkpoints/best.ckpt.")
    return DemoSettings(**validated(DemoSettings, given, "demo", set()))


def _serve(settings: DemoSettings) -> None:
    # What can be told at once is told before torch and Lightning are imported.
    ckpt = Path(settings.ckpt).expanduser()
    if not ckpt.is_file():
        raise CaptioningError(f"ckpt={ckpt}: no such file; a run keeps its own in checkpoints/.")
    with _listener(settings.port) as listener:
        port = listener.getsockname()[1]
        print(f"Loading {ckpt}", file=sys.stderr)
        from captioning.data.features.extraction import choose_device
        from captioning.decoding import Beam

        decoding = Beam(beam_size=settings.beam_size)
        device = choose_device(settings.device)
        from captioning.captioner import Captioner

        app = create_app(Captioner.load_from_checkpoint(ckpt).to(device), decoding)
        logging.getLogger("werkzeug").setLevel(logging.WARNING)  # no line for each request
        server = make_server(HOST, port, app, threaded=True, fd=listener.fileno())
        print(f"Open http://{HOST}:{port}", flush=True)
        # Ctrl-C from now on ends the process at once, as there is nothing to clean up; Python's own
        # end would abort where a thread is computing.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        server.serve_forever()


def _listener(port: int) -> socket.socket:
    """A socket of our own: Werkzeug ends the program where a port cannot be had."""
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise CaptioningError(
            f"port={port} cannot be used ({reason}): choose another, or 0 for any that is free."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
