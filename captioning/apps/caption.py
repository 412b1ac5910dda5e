"""The task of ``caption.py``: write captions of arbitrary photographs."""

import csv
import logging
import os
import sys
import unicodedata
import warnings
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from captioning.captioner import Captioner
from captioning.data.dataset import stacked_pixels
from captioning.data.features.extraction import (
    choose_device,
    choose_precision,
    load_in_batches,
)
from captioning.data.image_files import find_images
from captioning.data.images import load_rgb
from captioning.data.views import ORIGINAL_ALONE, find_views
from captioning.decoding import Decoding, Greedy, Hypothesis
from captioning.ensembles import load_captioner
from captioning.pictures import attention_maps, decode_images
from captioning.pretrained.places import DEFAULT
from captioning.reporting.figures import attention_figure, region_of
from captioning.support.build import build, own, validated
from captioning.support.errors import CaptioningError, printable
from captioning.support.files import (
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    writing,
)
from captioning.support.memory import keep_freed_memory
from captioning.support.output import reader_has_gone
from captioning.support.progress import track_progress

log = logging.getLogger(__name__)

Row = dict[str, str | float]


@dataclass(frozen=True)
class CaptionSettings:
    """The top-level settings of ``conf/caption.yaml``."""

    images: str
    ckpt: str | list[str] | None = None
    out: str | None = None
    figures: str | None = None
    captions: int = 1
    batch_size: int = 8
    device: str = "auto"
    precision: str = "auto"
    trust: str | list[str] | None = None
    views: tuple[str, ...] = ORIGINAL_ALONE

    def __post_init__(self) -> None:
        find_views(self.views)
        if self.batch_size < 1:
            raise CaptioningError(f"batch_size={self.batch_size}: choose 1 or more.")
        if self.captions < 1:
            raise CaptioningError(f"captions={self.captions}: choose 1 or more.")
        if self.out is not None:
            if Path(self.out).suffix not in (".json", ".csv"):
                raise CaptioningError(f"out={self.out}: end its name in .json or .csv.")
            if Path(self.out).is_dir():
                raise CaptioningError(f"out={self.out} is a folder: name a file.")


class Captioned(NamedTuple):
    """A photograph with one of its captions.

    Attributes:
        path: the photograph's file.
        rank: 1 for the photograph's best caption, 2 for the next one, and so on.
        caption: the words.
        log_prob: natural logarithm of the caption's probability.
        attention: the attention map of each word; None for a model without attention.
    """

    path: Path
    rank: int
    caption: str
    log_prob: float
    attention: Float[np.ndarray, "words rows columns"] | None


def caption_files(
    captioner: Captioner,
    files: Sequence[Path],
    decoding: Decoding,
    *,
    captions: int = 1,
    batch_size: int = 8,
    device: str = "auto",
    precision: str = "auto",
    views: Sequence[str] = ORIGINAL_ALONE,
) -> Generator[tuple[list[Captioned], dict[Path, CaptioningError]], None, None]:
    """Caption image files in order, batch by batch; reads the next files while it computes.

    Args:
        captioner: the model. It is moved to the device and stays there.
        files: the photographs, without duplicates, of any format and size.
        decoding: the decoding method.
        captions: number of captions of each photograph; fewer if the decoding finds fewer different
            ones.
        batch_size: number of photographs in a batch.
        device: ``auto`` (a GPU if there is one), or any device name of torch.
        precision: ``fp32``, ``bf16``, or ``auto``: bf16 if the device supports it natively.
        views: the names of the views from which each photograph is captioned.

    Yields:
        The captions of a batch, those of a photograph best first, and the errors of those
        photographs that cannot be read.

    Raises:
        CaptioningError: the device or the precision is not available.
    """
    chosen = choose_device(device)
    arithmetic = choose_precision(precision, chosen)
    captioner.to(chosen)
    encoder = captioner.encoder
    found_views = find_views(views)

    def load(path: Path) -> Float[Tensor, "*views 3 height width"]:
        return stacked_pixels(load_rgb(path), encoder.preprocessing, found_views)

    what = "1 photograph" if len(files) == 1 else f"{len(files):,} photographs"
    log.info("Captioning %s on %s (%s)", what, chosen, arithmetic)
    workers = os.cpu_count() or 1
    with closing(load_in_batches(load, files, batch_size=batch_size, workers=workers)) as batches:
        for images, errors in batches:
            found = []
            if images:
                hypotheses = decode_images(
                    captioner, list(images.values()), decoding, arithmetic, views
                )
                for path, of_image in zip(images, hypotheses, strict=True):
                    for rank, each in enumerate(different(of_image)[:captions], start=1):
                        caption = captioner.vocabulary.decode(each.tokens)
                        attention = attention_maps(each, encoder.grid_size)
                        found.append(Captioned(path, rank, caption, each.log_prob, attention))
            yield found, errors


def different(hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
    """The hypotheses without repetitions; samples of an image may be equal."""
    first: dict[tuple[int, ...], Hypothesis] = {}
    for each in hypotheses:
        first.setdefault(tuple(each.tokens), each)
    return list(first.values())


def caption(config: Mapping[str, Any]) -> None:
    """Caption photographs: prints each file and its caption, separated by a tab.

    With several captions of a photograph, each has a line of its own, best first.

    Args:
        config: the configuration, composed from ``conf/caption.yaml``.

    Raises:
        CaptioningError: a setting is wrong. Also raised at the end if some photographs could not be
            read; these were named on stderr, and all others were captioned.
    """
    keep_freed_memory()
    # An image that triggers this warning is reported by name, as other unreadable images are.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    settings = CaptionSettings(**validated(CaptionSettings, own(config), "caption.yaml", set()))
    decoding = build(config["decoding"], Decoding, "decoding")
    if decoding.width is not None and settings.captions > decoding.width:
        raise CaptioningError(
            f"captions={settings.captions}: decoding finds {decoding.width} at most: choose "
            f"decoding=beam decoding.beam_size={settings.captions}, or more."
        )
    if isinstance(sys.stdout, TextIOWrapper):  # its encoding may lack characters of file names
        sys.stdout.reconfigure(errors="backslashreplace")
    root, files = find_images(settings.images)
    if settings.ckpt is None:
        log.info("No ckpt given: captioning with %s, which comes with this package", DEFAULT)
    captioner = load_captioner(
        DEFAULT if settings.ckpt is None else settings.ckpt, trust=settings.trust
    )
    decoding.check_words(captioner.decoder)
    out = Path(settings.out) if settings.out else None
    figures = Path(settings.figures) if settings.figures else None
    if out:
        check_writable("out", out, out.parent)
    if figures:
        check_attention(captioner)
        check_writable("figures", figures, figures)

    batches = caption_files(
        captioner,
        files,
        decoding,
        captions=settings.captions,
        batch_size=settings.batch_size,
        device=settings.device,
        precision=settings.precision,
        views=settings.views,
    )
    resize = captioner.encoder.preprocessing.resize
    rows: list[Row] = []
    failed = 0

    def write_captions() -> None:
        if out and rows:
            write_rows(out, rows)

    with closing(batches), track_progress("Captioning", len(files)) as advance:
        for captioned, errors in batches:
            for found in captioned:
                print(one_line(found.path), printable(found.caption), sep="\t")
            sys.stdout.flush()
            rows += map(row_of, captioned)
            if reader_has_gone() and not (out or figures):
                raise BrokenPipeError  # nobody would see the other captions
            if figures:
                try:
                    errors |= write_figures(figures, root, captioned, resize)
                except CaptioningError:
                    write_captions()
                    raise
            for error in errors.values():
                print(f"error: {error}", file=sys.stderr)
            failed += len(errors)
            advance(len({found.path for found in captioned} | errors.keys()))
    write_captions()
    if failed:
        raise CaptioningError(f"{failed} of {len(files)} photographs could not be read.")


def check_attention(captioner: Captioner) -> None:
    """Check that the model has attention, before any photograph is captioned."""
    encoder = captioner.encoder
    ((hypothesis,),) = captioner(
        torch.zeros(1, encoder.locations, encoder.channels), Greedy(max_length=1)
    )
    if hypothesis.attention is None:
        raise CaptioningError(
            f"figures= needs a model with attention, and {type(captioner.decoder).__name__} has "
            "none: leave figures= out."
        )


def check_writable(key: str, path: Path, folder: Path) -> None:
    """Create a folder and check that files can be written there, before any work is done."""
    with writing(path, key):
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass


def one_line(path: Path) -> str:
    """A file's name with control characters, line ends and lone surrogates as escape sequences."""
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")
        else char
        for char in str(path)
    )


def row_of(found: Captioned) -> Row:
    """The record of a photograph in the output file."""
    return {"image": str(found.path), "caption": found.caption, "log_prob": found.log_prob}


def write_rows(out: Path, rows: Sequence[Row]) -> None:
    """Write captions as a JSON list of objects, or as CSV with a header and one line each."""
    if out.suffix == ".json":
        atomic_write_json(out, rows)
        return
    text = StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "image": one_line(Path(str(row["image"])))} for row in rows)
    atomic_write_text(out, text.getvalue())


def write_figures(
    folder: Path, root: Path, captioned: Sequence[Captioned], resize: str
) -> dict[Path, CaptioningError]:
    """Draw the attention maps of some captions, one PNG for each of them.

    Args:
        folder: the output folder. A photograph's path relative to ``root``, with ``.png`` appended,
            is the path of the figure of its best caption in this folder; ``.2.png`` is appended for
            the second-best one, and so on.
        root: a folder that contains all photographs.
        captioned: the photographs and their captions, made by a model with attention.
        resize: how the encoder resized them: ``squash`` or ``crop``.

    Returns:
        The errors of photographs that can no longer be read.
    """

    def draw(found: Captioned) -> CaptioningError | None:
        assert found.attention is not None
        try:
            picture = load_rgb(found.path)
        except CaptioningError as error:
            return error
        region = region_of(resize, picture.size)
        figure = attention_figure(picture, found.caption.split(), found.attention, region=region)
        data = BytesIO()
        # Three times as fast as the default level 6, and hardly larger.
        figure.savefig(data, format="png", pil_kwargs={"compress_level": 4})
        end = ".png" if found.rank == 1 else f".{found.rank}.png"
        atomic_write_bytes(folder / f"{found.path.relative_to(root)}{end}", data.getvalue())
        return None

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        drawn = zip(captioned, threads.map(draw, captioned), strict=True)
        return {found.path: error for found, error in drawn if error is not None}
