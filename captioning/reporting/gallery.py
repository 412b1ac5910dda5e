"""Galleries: photographs, captions and attention, embedded in a page as JSON."""

import base64
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final, Literal, NotRequired, TypeVar

import numpy as np
from jaxtyping import Float
from markupsafe import Markup
from pydantic import ConfigDict, TypeAdapter, with_config
from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from captioning.data.images import load_rgb
from captioning.metrics.registry import STANDARD_SCORES, ordered_scores
from captioning.reporting.figures import check_maps, region_of
from captioning.reporting.ranking import RANKED_BY
from captioning.support.errors import CaptioningError
from captioning.support.progress import track_progress
from captioning.support.reading import load_document, parse_record
from captioning.support.regions import Region

log = logging.getLogger(__name__)

THUMBNAIL: Final = 256
"""The longer side of an embedded photograph in pixels."""

ROUNDING: Final = 0.002
"""The largest difference of the sum of a word's attention weights from 1 that is only rounding."""

_QUALITY = 70
_DATA = re.compile(r'<script type="application/json" class="gallery-data">(.*?)</script>', re.S)

Item = TypeVar("Item")


@dataclass(frozen=True)
class GalleryImage:
    """An image and the caption of a model.

    Attributes:
        id: the id of the image, usually its file name.
        path: the photograph's file.
        references: the reference captions.
        caption: the model's caption.
        scores: the scores of this image by metric, on the metrics' own scale.
        attention: the attention map of each word of the caption; None without attention.

    Raises:
        CaptioningError: the attention maps do not match the caption, or are invalid.
    """

    id: str
    path: Path
    references: Sequence[str]
    caption: str
    scores: Mapping[str, float]
    attention: Float[np.ndarray, "words rows columns"] | None

    def __post_init__(self) -> None:
        if self.attention is None:
            return
        try:
            check_maps(self.caption.split(), self.attention)
        except CaptioningError as error:
            raise CaptioningError(f"{self.id}: {error}") from None


class AttentionData(TypedDict):
    """The attention maps of a caption.

    ``maps`` is the base64 encoding of words x rows x columns bytes; each map is scaled to a peak of
    255. ``region`` is the part of the photograph that they cover. ``looked`` is the sum of each
    word's attention weights, if not all are 1: how much it looked at the image.
    """

    maps: str
    rows: int
    columns: int
    region: list[float]
    looked: NotRequired[list[float]]


class CaptionData(TypedDict):
    """The caption of an image by one run. The scores are on the metrics' own scale."""

    caption: str
    scores: dict[str, float]
    attention: AttentionData | None


class ImageData(TypedDict):
    """An image with one caption for each run.

    ``photo`` is a data URL, or None if the file could not be read. ``size`` is the width and height
    of the embedded photograph in pixels.
    """

    id: str
    photo: str | None
    size: list[int]
    references: list[str]
    captions: list[CaptionData]


@with_config(ConfigDict(extra="forbid"))
class GalleryData(TypedDict):
    """A gallery. ``metrics`` are the metrics by which its images can be sorted."""

    split: str
    runs: list[str]
    metrics: list[str]
    images: list[ImageData]


_FORM = TypeAdapter(GalleryData)


def make_gallery(
    split: str,
    run: str,
    images: Sequence[GalleryImage],
    *,
    resize: Literal["squash", "crop"] = "squash",
    progress: bool = True,
) -> GalleryData:
    """Make the gallery of one run. A photograph that cannot be read is logged and left out.

    Args:
        split: the split of the images.
        run: the name of the run.
        images: the images in the order of the gallery.
        resize: how the encoder resizes photographs; see its ``Preprocessing``.
        progress: whether to show a progress bar.
    """
    entries = []
    # Pillow releases the interpreter lock while it decodes and encodes.
    with (
        ThreadPoolExecutor(os.cpu_count()) as threads,
        track_progress("Photographs", len(images), visible=progress) as advance,
    ):
        for image, (photo, size) in zip(images, threads.map(_thumbnail, images), strict=True):
            # Four digits keep the page small.
            scores = {name: round(float(score), 4) for name, score in image.scores.items()}
            caption = CaptionData(
                caption=" ".join(image.caption.split()),
                scores={name: scores[name] for name in metrics_of([scores])},
                attention=attention_data(image.attention, region_of(resize, size)),
            )
            entries.append(
                ImageData(
                    id=image.id,
                    photo=photo,
                    size=list(size),
                    references=list(image.references),
                    captions=[caption],
                )
            )
            advance(1)
    metrics = metrics_of(image.scores for image in images)
    return GalleryData(split=split, runs=[run], metrics=metrics, images=entries)


def compare(galleries: Sequence[GalleryData], runs: Sequence[str]) -> GalleryData:
    """Merge galleries: the images that all runs share, each with the captions of all runs.

    Args:
        galleries: the gallery of each run, at least one; all of the same split.
        runs: the names of the runs.
    """
    by_id = [{image["id"]: image for image in gallery["images"]} for gallery in galleries]
    images = []
    for id in by_id[0]:
        if all(id in gallery for gallery in by_id):
            found = [gallery[id] for gallery in by_id]
            # Take the photograph from any run, since some runs may lack it.
            best = next((image for image in found if image["photo"]), found[0])
            captions = [caption for image in found for caption in image["captions"]]
            images.append(ImageData({**best, "captions": captions}))
    metrics = metrics_of(c["scores"] for image in images for c in image["captions"])
    return GalleryData(split=galleries[0]["split"], runs=list(runs), metrics=metrics, images=images)


def has_attention(gallery: GalleryData) -> bool:
    """Whether any caption of a gallery has attention maps."""
    return any(c["attention"] for image in gallery["images"] for c in image["captions"])


def has_partial_attention(gallery: GalleryData) -> bool:
    """Whether any caption of a gallery has words that looked at the image only in part."""
    return any(
        "looked" in (c["attention"] or {}) for image in gallery["images"] for c in image["captions"]
    )


def metrics_of(scores: Iterable[Mapping[str, float]]) -> list[str]:
    """The names of the metrics that occur in ``scores``; the metric that ranks runs comes first."""
    present = {name for of_image in scores for name in of_image}
    further = ordered_scores(present)[len(STANDARD_SCORES) :]
    return [name for name in (*reversed(STANDARD_SCORES), *further) if name in present]


def evenly_spaced_subset(
    items: Sequence[Item], limit: int, key: Callable[[Item], float]
) -> list[Item]:
    """Select at most ``limit`` items, evenly spaced when ranked by ``key``; keeps their order."""
    if len(items) <= limit:
        return list(items)
    ranked = sorted(range(len(items)), key=lambda index: -key(items[index]))
    places = np.linspace(0, len(items) - 1, limit).round().astype(int)
    return [items[index] for index in sorted(ranked[place] for place in places)]


def score_of(image: GalleryImage) -> float:
    """The score of one image in the metric that ranks runs."""
    return image.scores.get(RANKED_BY, 0.0)


def difference_of(image: ImageData) -> float:
    """The largest difference between runs on an image, in the metric that ranks runs."""
    scores = [caption["scores"].get(RANKED_BY, 0.0) for caption in image["captions"]]
    return max(scores) - min(scores)


def attention_data(
    attention: Float[np.ndarray, "words rows columns"] | None, region: Region
) -> AttentionData | None:
    """Encode the attention maps of a caption for a page; None without attention.

    Args:
        attention: the map of each word.
        region: the part of the photograph that the maps cover.
    """
    if attention is None:
        return None
    peaks = attention.max(axis=(1, 2), keepdims=True, initial=0)
    maps = np.round(255 * attention / np.where(peaks > 0, peaks, 1)).astype(np.uint8)
    rows, columns = attention.shape[1:]
    data = AttentionData(
        maps=_base64(maps.tobytes()), rows=rows, columns=columns, region=list(region)
    )
    looked = attention.sum(axis=(1, 2))
    if (looked < 1 - ROUNDING).any():
        data["looked"] = [round(float(share), 3) for share in looked]
    return data


def data_block(gallery: GalleryData) -> Markup:
    """Encode a gallery as ASCII JSON in which no string can close the surrounding ``<script>``."""
    text = json.dumps(gallery, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def read_report_data(path: str | os.PathLike[str]) -> GalleryData:
    """Read the gallery from a ``report.html``.

    Raises:
        CaptioningError: the file cannot be read, or contains no gallery of this version.
    """
    try:
        found = _DATA.search(load_document(path))
        if found is None:
            raise CaptioningError(f"{path}: it has no gallery.")
        return parse_record(found[1], _FORM.validate_json, path)
    except CaptioningError as error:
        raise CaptioningError(
            f"{path}: not a report that this version wrote ({error}); evaluate again"
        ) from None


def _thumbnail(image: GalleryImage) -> tuple[str | None, tuple[int, int]]:
    """A small WebP as a data URL (None if the file cannot be read), and its width and height."""
    try:
        picture = load_rgb(image.path)
    except CaptioningError as error:
        log.warning("The photograph of %s is left out: %s", image.id, error)
        return None, (0, 0)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    file = BytesIO()
    picture.save(file, "WEBP", quality=_QUALITY)
    return f"data:image/webp;base64,{_base64(file.getvalue())}", picture.size


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
