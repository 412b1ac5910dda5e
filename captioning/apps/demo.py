"""A web page, served on this computer only, that captions photographs dropped on it.

``python -m captioning demo ckpt=PATH`` serves it; with ``compare=PATH``, two models stand side by
side. In a notebook, :func:`create_app` makes the same page for models in memory. Uploads are never
written to disk, and requests that come from other web sites are refused.
"""

import argparse
import base64
import json
import os
import signal
import socket
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import TYPE_CHECKING, Any, Final

from flask import Flask, Request, Response, abort, request
from PIL import Image
from werkzeug.exceptions import ClientDisconnected, HTTPException, RequestEntityTooLarge

from captioning.apps.demo_server import DemoServer
from captioning.apps.status import status_of
from captioning.data.images import TooManyPixelsError, UnknownFormatError, decode_rgb
from captioning.pretrained.places import DEFAULT, find_model
from captioning.reporting.figures import region_of
from captioning.reporting.gallery import attention_data
from captioning.reporting.rendering import render_page
from captioning.support.build import validated
from captioning.support.errors import CaptioningError
from captioning.support.nearest import did_you_mean

if TYPE_CHECKING:
    import captioning.captioner
    import captioning.decoding

HOST: Final = "127.0.0.1"
MAX_UPLOAD_BYTES: Final = 20_000_000
"""The largest upload that is accepted, in bytes."""
MAX_PIXELS: Final = 64_000_000
"""The largest photograph that is accepted; converting transparency takes 20 bytes per pixel."""
MAX_NAME_LENGTH: Final = 100
"""How many characters of the name of a file a message shows."""
MAX_UPLOADS: Final = 4
"""The number of uploads that are in memory at the same time; others wait before they are read."""
MAX_WAIT_SECONDS: Final = 30.0
"""How long an upload waits for the others; then it is refused."""
MAX_SHOWN_SIDE: Final = 1024
"""The longer side of the photograph on the page, in pixels; larger photographs are scaled down."""
CAPTIONS: Final = 3
"""The number of captions of a photograph, unless the user chooses another."""

HELP = f"""\
settings:
  ckpt=MODEL    a run's checkpoints/best.ckpt, an exported folder, or the name of a model;
                {DEFAULT} if it is left out; ckpt=[A,B] is an ensemble of several
  compare=MODEL another one, whose captions are shown beside those of ckpt
  captions=3    number of captions of each photograph; beam_size at most
  port=8000     the page is http://{HOST}:PORT; 0: any free port
  beam_size=5   number of partial captions that the beam search keeps
  device=auto   cpu, cuda, mps; auto: a GPU if there is one
  trust=PACKAGE a package of yours whose classes the checkpoint may name; several with commas
"""


@dataclass(frozen=True)
class DemoSettings:
    """The settings of the command line. ``ckpt`` and ``compare`` are files, or lists of files."""

    ckpt: str | list[str] = DEFAULT
    compare: str | list[str] | None = None
    captions: int | None = None
    port: int = 8000
    beam_size: int = 5
    device: str = "auto"
    trust: str | None = None

    def __post_init__(self) -> None:
        if self.beam_size < 1:
            raise CaptioningError(f"beam_size={self.beam_size}: choose 1 or more.")
        if self.captions is not None and not 1 <= self.captions <= self.beam_size:
            raise CaptioningError(
                f"captions={self.captions}: choose a number from 1 to {self.beam_size}, which is "
                "beam_size, or a larger beam_size."
            )
        if not 0 <= self.port < 2**16:
            raise CaptioningError(f"port={self.port}: choose a number from 0 to {2**16 - 1}.")


def create_app(
    captioner: "captioning.captioner.Captioner",
    decoding: "captioning.decoding.Decoding",
    *,
    captions: int = CAPTIONS,
    compare: "captioning.captioner.Captioner | None" = None,
) -> Flask:
    """Create the web application: ``GET /`` serves the page, ``POST /caption`` captions an upload.

    The upload is a form with the file field ``photo``. The response is JSON with the photograph, as
    the page shows it, and the captions of each model, best first::

        {"photo": {"url": "data:image/jpeg;base64,...", "width": 1024, "height": 683},
         "models": [{"name": "attn_lstm",
                     "captions": [{"text": "a dog runs", "words": ["a", "dog", "runs"],
                                   "score": -1.4, "log_prob": -4.2,
                                   "attention": {"maps": "...", "rows": 14, "columns": 14,
                                                 "region": [0, 0, 1, 1]}}]}]}

    ``score`` ranks the captions of a model. ``attention`` is a
    :class:`~captioning.reporting.gallery.AttentionData`; it is null for a model without attention.
    Errors are ``{"error": "one sentence"}`` with status 400 or higher.

    Args:
        captioner: the model, on its device.
        decoding: the decoding method.
        captions: number of captions of each photograph; fewer if the decoding finds fewer different
            ones.
        compare: another model on the same device, which captions the same photographs. It may have
            another encoder and another vocabulary.
    """
    models = _named([captioner] if compare is None else [captioner, compare])
    page = render_page(
        "demo.html.jinja",
        ("page.css", "attention.css", "demo.css"),
        ("attention.js", "demo.js"),
        models={name: model.encoder.name for name, model in models.items()},
        max_bytes=MAX_UPLOAD_BYTES,
    )
    model_lock = Lock()
    uploads = BoundedSemaphore(MAX_UPLOADS)

    app = Flask(__name__, static_folder=None)
    app.request_class = _InMemoryRequest
    # Refuse other host names, which a DNS rebinding attack would use.
    app.config["TRUSTED_HOSTS"] = [HOST, "localhost"]
    app.config["MAX_CONTENT_LENGTH"] = app.config["MAX_FORM_MEMORY_SIZE"] = MAX_UPLOAD_BYTES
    app.before_request(_refuse_other_sites)
    app.after_request(_add_security_headers)
    app.register_error_handler(HTTPException, _error_response)

    @app.get("/")
    def show() -> str:
        return page

    @app.post("/caption")
    def caption() -> dict[str, Any]:
        with _turn(uploads):
            name, data = _uploaded()
            with model_lock:  # one photograph at a time; decoding an image file takes memory, too
                picture = _decode_upload(name, data)
                answers = [
                    {"name": name, "captions": _captions(model, picture, decoding, captions)}
                    for name, model in models.items()
                ]
                photo = _photo(picture)
        return {"photo": photo, "models": answers}

    return app


def _named(
    captioners: Sequence["captioning.captioner.Captioner"],
) -> dict[str, "captioning.captioner.Captioner"]:
    """The models by their runs' names, with the seed or the setting where these are equal."""
    plain = [str(each.run["name"]) for each in captioners]
    seeded = [f"{each.run['name']} (seed={each.run.get('seed')})" for each in captioners]
    chosen = [f"{name} ({key})" for name, key in zip(plain, ("ckpt", "compare"), strict=False)]
    names = next(names for names in (plain, seeded, chosen) if len({*names}) == len(names))
    return dict(zip(names, captioners, strict=True))


def _captions(
    captioner: "captioning.captioner.Captioner",
    picture: Image.Image,
    decoding: "captioning.decoding.Decoding",
    captions: int,
) -> list[dict[str, Any]]:
    """A model's captions of a photograph, best first, as the page shows them."""
    # Imported here, so that --help and wrong settings need not wait for torch.
    from captioning.apps.caption import different
    from captioning.data.features.extraction import choose_precision
    from captioning.pictures import attention_maps, decode_images

    encoder = captioner.encoder
    precision = choose_precision("auto", captioner.device)
    pixels = encoder.preprocessing(picture)
    (hypotheses,) = decode_images(captioner, [pixels], decoding, precision)
    region = region_of(encoder.preprocessing.resize, picture.size)
    found = []
    for hypothesis in different(hypotheses)[:captions]:
        text = captioner.vocabulary.decode(hypothesis.tokens)
        maps = attention_maps(hypothesis, encoder.grid_size)
        found.append(
            {
                "text": text,
                "words": text.split(),
                "score": hypothesis.score,
                "log_prob": hypothesis.log_prob,
                "attention": attention_data(maps, region),
            }
        )
    return found


class _InMemoryRequest(Request):
    """A request that keeps uploaded files in memory and never writes them to disk."""

    def _get_file_stream(self, *arguments: object, **named: object) -> BytesIO:
        return BytesIO()


def _refuse_other_sites() -> None:
    """Abort if the headers name another site. Scripts other than web pages send no such headers."""
    here = request.host_url.rstrip("/")
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    if request.method == "POST" and (
        site != "same-origin" or request.headers.get("Origin", here) != here
    ):
        abort(403, "Photographs of other sites are not captioned: open this page and drop them.")


def _add_security_headers(response: Response) -> Response:
    response.headers |= {
        "Cache-Control": "no-store",
        # The rest of the policy is in the page itself, with the digests of its scripts.
        "Content-Security-Policy": "frame-ancestors 'none'",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return response


def _error_response(error: HTTPException) -> Any:
    """Turn an HTTP error, including those of Werkzeug, into JSON with one sentence."""
    sentence = error.description or error.name
    if sentence == type(error).description:  # Werkzeug's descriptions have several sentences
        sentence = sentence.partition(". ")[0].rstrip(".") + "."
    response: Any = error.get_response()  # with the headers that belong to its status
    response.data = json.dumps({"error": sentence})
    response.content_type = "application/json"
    return response


@contextmanager
def _turn(uploads: BoundedSemaphore) -> Iterator[None]:
    """Wait until an upload may be read into memory; aborts if that takes too long."""
    if not uploads.acquire(timeout=MAX_WAIT_SECONDS):
        abort(503, "Too many photographs are being captioned at the moment: try again.")
    try:
        yield
    finally:
        uploads.release()


def _uploaded() -> tuple[str, bytes]:
    """The name, as a message can show it, and the content of the uploaded file."""
    try:
        file = request.files.get("photo")
    except ClientDisconnected:
        abort(408, "The photograph did not arrive as a whole and in time: send it again.")
    except RequestEntityTooLarge:
        megabytes = MAX_UPLOAD_BYTES // 10**6
        abort(413, f"More than {megabytes} MB were sent: choose a smaller photograph.")
    if file is None or not file.filename:
        abort(400, "No photograph was sent: send it as the file `photo` of a form.")
    name = "".join(char if char.isprintable() else "?" for char in file.filename)
    return name if len(name) <= MAX_NAME_LENGTH else f"…{name[-MAX_NAME_LENGTH:]}", file.read()


def _decode_upload(name: str, data: bytes) -> Image.Image:
    """Decode an uploaded photograph; aborts if it is invalid or too large."""
    try:
        return decode_rgb(data, Path(name), MAX_PIXELS)
    except TooManyPixelsError:
        millions = MAX_PIXELS // 10**6
        abort(413, f"{name} has more than {millions} million pixels: choose a smaller photograph.")
    except UnknownFormatError as error:
        abort(415, str(error))
    except CaptioningError as error:
        abort(400, str(error))


def _photo(picture: Image.Image) -> dict[str, Any]:
    """The photograph for the page as a data URL. Scales ``picture`` down in place."""
    picture.thumbnail((MAX_SHOWN_SIDE, MAX_SHOWN_SIDE))
    file = BytesIO()
    picture.save(file, "JPEG", quality=85)
    url = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"url": url, "width": picture.width, "height": picture.height}


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m captioning demo",
        description="Serve a page to drop photographs on: it shows their captions, and where the "
        "model looked for each word; of two models, if you like. The page can be opened on this "
        "computer only.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="see below")
    settings = parser.parse_args(arguments).settings
    try:
        return status_of(lambda: _serve(_settings(settings)))
    except KeyboardInterrupt:
        return 130


def _settings(arguments: Sequence[str]) -> DemoSettings:
    names = [field.name for field in fields(DemoSettings)]
    given: dict[str, str | list[str]] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise CaptioningError(f"{argument}: give settings as key=value, for example port=8000.")
        if key not in names:
            offer = did_you_mean(key, names) or f"there are {', '.join(names)}."
            raise CaptioningError(f"{argument}: no such setting; {offer}")
        # As for eval.py and caption.py, a list of checkpoints is an ensemble.
        listed = key in ("ckpt", "compare") and value.startswith("[") and value.endswith("]")
        given[key] = value[1:-1].split(",") if listed else value
    return DemoSettings(**validated(DemoSettings, given, "", set()))


def _serve(settings: DemoSettings) -> None:
    # Report mistakes before torch and Lightning are imported.
    ckpt = _files("ckpt", settings.ckpt)
    compare = _files("compare", settings.compare) if settings.compare is not None else None
    with _listener(settings.port) as listener:
        port = listener.getsockname()[1]
        print(f"Loading {', '.join(map(str, [*ckpt, *(compare or [])]))}", file=sys.stderr)
        from captioning.data.features.extraction import choose_device
        from captioning.decoding import Beam
        from captioning.ensembles import load_captioner

        decoding = Beam(beam_size=settings.beam_size)
        device = choose_device(settings.device)
        # A photograph with this warning is refused.
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        captioner = load_captioner(ckpt, trust=settings.trust).to(device)
        other = load_captioner(compare, trust=settings.trust).to(device) if compare else None
        captions = settings.captions or min(CAPTIONS, settings.beam_size)
        app = create_app(captioner, decoding, captions=captions, compare=other)
        server = DemoServer(app, listener)
        print(f"Open http://{HOST}:{port}", flush=True)
        # From now on, Ctrl-C ends the process at once. There is nothing to clean up, and Python's
        # own shutdown would abort while a thread is computing.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        server.serve_forever()


def _files(key: str, value: str | list[str]) -> list[Path]:
    """The files or folders of the models that a setting names."""
    names = [value] if isinstance(value, str) else [each.strip() for each in value]
    if not any(names):
        raise CaptioningError(f"{key}= names no model: give at least one.")
    return [find_model(os.path.expanduser(name), key) for name in names]  # noqa: PTH111  hf:// is no path


def _listener(port: int) -> socket.socket:
    """Open the server's socket. Werkzeug would exit the program if the port is not available."""
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise CaptioningError(
            f"port={port} cannot be used ({reason}): choose another, or 0 for any free port."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
