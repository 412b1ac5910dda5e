"""What ``caption.py`` does: captions of any photographs, as they come."""

import csv
import logging
import os
import sys
import unicodedata
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
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
from captioning.data.features.extraction import (
    autocast,
    choose_device,
    choose_precision,
    encode,
    load_in_batches,
)
from captioning.data.image_files import find_images
from captioning.data.images import load_rgb
from captioning.decoding import Decoding, Greedy, Hypothesis
from captioning.reporting.figures import attention_figure, region_of
from captioning.support.build import build, own, validated
from captioning.support.errors import CaptioningError
from captioning.support.files import atomic_write_bytes, atomic_write_json, atomic_write_text
from captioning.support.memory import keep_freed_memory
from captioning.support.progress import track_progress

log = logging.getLogger(__name__)

Row = dict[str, str | float]


@dataclass(frozen=True)
class CaptionSettings:
    """The settings of ``conf/caption.yaml`` itself."""

    ckpt: str
    images: str
    out: str | None = None
    figures: str | None = None
    batch_size: int = 32
    device: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise CaptioningError(f"batch_size={self.batch_size}: choose 1 or more.")
        if self.out is not None:
            if Path(self.out).suffix not in (".json", ".csv"):
                raise CaptioningError(f"out={self.out}: end its name in .json or .csv.")
            if Path(self.out).is_dir():
                raise CaptioningError(f"out={self.out} is a folder: name a file.")


class Captioned(NamedTuple):
    """A photograph and what the model says of it.

    Attributes:
        path: its file.
        caption: the best caption.
        log_prob: natural logarithm of the caption's probability.
        attention: where each word looked; None for a model without attention.
    """

    path: Path
    caption: str
    log_prob: float
    attention: Float[np.ndarray, "words rows columns"] | None


def caption_files(
    captioner: Captioner,
    files: Sequence[Path],
    decoding: Decoding,
    *,
    batch_size: int = 32,
    device: str = "auto",
    precision: str = "auto",
) -> Generator[tuple[list[Captioned], dict[Path, CaptioningError]], None, None]:
    """Caption image files in their order, a few at a time, reading ahead while it computes.

    Args:
        captioner: the model; it stays on the device.
        files: the photographs, each once, of any format and size.
        decoding: how the captions are written.
        batch_size: photographs at once.
        device: ``auto`` (a GPU where there is one), or any name that torch knows.
        precision: ``fp32``, ``bf16``, or ``auto``: bf16 where the device computes in it by itself.

    Yields:
        The captions of a batch, and the errors of those photographs that cannot be read.

    Raises:
        CaptioningError: the device or the precision cannot be had.
    """
    chosen = choose_device(device)
    arithmetic = choose_precision(precision, chosen)
    captioner.to(chosen)
    encoder = captioner.encoder

    def load(path: Path) -> Float[Tensor, "3 height width"]:
        return encoder.preprocessing(load_rgb(path))

    what = "1 photograph" if len(files) == 1 else f"{len(files):,} photographs"
    log.info("Captioning %s on %s (%s)", what, chosen, arithmetic)
    workers = os.cpu_count() or 1
    with closing(load_in_batches(load, files, batch_size=batch_size, workers=workers)) as batches:
        for images, errors in batches:
            found = []
            if images:
                hypotheses = hypothesize(captioner, list(images.values()), decoding, arithmetic)
                for path, (best, *_) in zip(images, hypotheses, strict=True):
                    caption = captioner.vocabulary.decode(best.tokens)
                    attention = maps_of(best, encoder.grid_size)
                    found.append(Captioned(path, caption, best.log_prob, attention))
            yield found, errors


def hypothesize(
    captioner: Captioner,
    images: Sequence[Float[Tensor, "3 height width"]],
    decoding: Decoding,
    precision: str,
) -> list[list[Hypothesis]]:
    """Caption preprocessed photographs with the arithmetic of an evaluation.

    Grids are rounded to half precision, as in the feature store.

    Args:
        captioner: the model, on the device that computes.
        images: at least one.
        decoding: how the captions are written.
        precision: ``fp32`` or ``bf16``.

    Returns:
        The hypotheses for each photograph, best first.
    """
    grids = encode(captioner.encoder, images, captioner.device, precision)
    with autocast(captioner.device, precision):
        hypotheses: list[list[Hypothesis]] = captioner(grids, decoding)
    return hypotheses


def maps_of(
    hypothesis: Hypothesis, grid_size: tuple[int, int]
) -> Float[np.ndarray, "words rows columns"] | None:
    """Where each word of a caption looked; None for a model without attention.

    Args:
        hypothesis: the caption.
        grid_size: rows and columns of the encoder's grid.
    """
    if hypothesis.attention is None:
        return None
    return hypothesis.attention.float().cpu().reshape(len(hypothesis.tokens), *grid_size).numpy()


def caption(config: Mapping[str, Any]) -> None:
    """Caption photographs: prints each file and its caption, with a tab between them.

    Args:
        config: as composed from ``conf/caption.yaml``.

    Raises:
        CaptioningError: a setting is wrong; or, at the end, some photographs could not be read.
            They have been named on stderr, and the others have their captions.
    """
    keep_freed_memory()
    # Such a photograph is refused by name, like others that cannot be read.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    settings = CaptionSettings(**validated(CaptionSettings, own(config), "caption.yaml", set()))
    decoding = build(config["decoding"], Decoding, "decoding")
    if isinstance(sys.stdout, TextIOWrapper):  # whose encoding may lack a letter of a file's name
        sys.stdout.reconfigure(errors="backslashreplace")
    root, files = find_images(settings.images)
    captioner = Captioner.load_from_checkpoint(settings.ckpt)
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
        batch_size=settings.batch_size,
        device=settings.device,
        precision=settings.precision,
    )
    resize = captioner.encoder.preprocessing.resize
    rows: list[Row] = []
    failed = 0
    with closing(batches), track_progress("Captioning", len(files)) as advance:
        for captioned, errors in batches:
            for found in captioned:
                print(one_line(found.path), found.caption, sep="\t")
            sys.stdout.flush()
            for error in errors.values():
                print(f"error: {error}", file=sys.stderr)
            failed += len(errors)
            if figures:
                with writing("figures", figures):
                    write_figures(figures, root, captioned, resize)
            if out:
                rows += map(row_of, captioned)
            advance(len(captioned) + len(errors))
    if out and rows:
        with writing("out", out):
            write_rows(out, rows)
    if failed:
        raise CaptioningError(f"{failed} of {len(files)} photographs could not be read.")


def check_attention(captioner: Captioner) -> None:
    """Make sure, before the work, that a model looks somewhere for each word."""
    encoder = captioner.encoder
    ((hypothesis,),) = captioner(
        torch.zeros(1, encoder.locations, encoder.channels), Greedy(max_length=1)
    )
    if hypothesis.attention is None:
        raise CaptioningError(
            f"figures= needs a model with attention, and {type(captioner.decoder).__name__} has "
            "none: leave it out."
        )


@contextmanager
def writing(key: str, path: Path) -> Iterator[None]:
    """Tell in one sentence what cannot be written."""
    try:
        yield
    except OSError as error:
        raise CaptioningError(f"{key}={path} cannot be written ({error.strerror}).") from error


def check_writable(key: str, path: Path, folder: Path) -> None:
    """Make a folder, and make sure, before the work, that files can be written there."""
    with writing(key, path):
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass


def one_line(path: Path) -> str:
    """A file's name, with the escapes of whatever would end a line, a field, or the encoding."""
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")
        else char
        for char in str(path)
    )


def row_of(found: Captioned) -> Row:
    """What is written of a photograph into a file."""
    return {"image": str(found.path), "caption": found.caption, "log_prob": found.log_prob}


def write_rows(out: Path, rows: Sequence[Row]) -> None:
    """Write captions as JSON, a list of objects, or as CSV with a header, one line each."""
    if out.suffix == ".json":
        atomic_write_json(out, rows)
        return
    text = StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "image": one_line(Path(str(row["image"])))} for row in rows)
    atomic_write_text(out, text.getvalue())


def write_figures(folder: Path, root: Path, captioned: Sequence[Captioned], resize: str) -> None:
    """Draw where each word of some captions looked.

    Args:
        folder: where the PNGs are written, with the subfolders and the full names that the
            photographs have below ``root``.
        root: a folder that all photographs are in.
        captioned: the photographs, by a model with attention.
        resize: how the encoder saw them.
    """

    def draw(found: Captioned) -> None:
        assert found.attention is not None
        picture = load_rgb(found.path)
        region = region_of(resize, picture.size)
        figure = attention_figure(picture, found.caption.split(), found.attention, region=region)
        data = BytesIO()
        # Thrice as fast as the usual 6, and hardly larger.
        figure.savefig(data, format="png", pil_kwargs={"compress_level": 4})
        atomic_write_bytes(folder / f"{found.path.relative_to(root)}.png", data.getvalue())

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for _ in threads.map(draw, captioned):
            pass
