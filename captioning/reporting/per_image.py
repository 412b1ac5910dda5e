"""The files of a run that have an entry for each image.

``captions_<split>.json`` holds the captions, in COCO's result format, with the scores of each;
``statistics_<split>.json`` is what two runs are compared from, image by image.
"""

import json
import os
from collections.abc import Mapping, Sequence

from captioning.metrics.statistics import Statistics
from captioning.support.errors import CaptioningError
from captioning.support.files import atomic_write_json, atomic_write_text
from captioning.support.reading import load_json


def write_captions(
    path: str | os.PathLike[str],
    captions: Mapping[str, str],
    per_image: Mapping[str, Mapping[str, float]] | None = None,
    language: Mapping[str, Mapping[str, int | float]] | None = None,
    numbers: Mapping[str, int] | None = None,
) -> None:
    """Write captions in COCO's result format, each with its own scores where there are any.

    Args:
        path: the file, by convention ``captions_<split>.json``.
        captions: ``{image: caption}``.
        per_image: ``{image: {metric: score}}`` for the metrics that are defined on one image.
        language: statistics of each caption; see `captioning.metrics.language.describe_each`.
        numbers: the ``image_id`` of images that COCO's tools call by a number; others are written
            by their name.

    Raises:
        ValueError: ``per_image`` or ``language`` names an image that has no caption.
        CaptioningError: the file cannot be written; an existing one is then untouched.
    """
    beside = {"scores": per_image or {}, "language": language or {}}
    if unknown := {image for found in beside.values() for image in found} - captions.keys():
        raise ValueError(f"scores without a caption: {min(unknown)}")
    entries: list[dict[str, object]] = []
    for image, caption in captions.items():
        number = (numbers or {}).get(image, image)
        entry: dict[str, object] = {"image_id": number, "caption": caption}
        entry |= {key: dict(found[image]) for key, found in beside.items() if image in found}
        entries.append(entry)
    atomic_write_json(path, entries)


def read_captions(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read captions in COCO's result format, ours or another system's, as ``{image: caption}``.

    An integer ``image_id``, as in COCO's own files, is read as its decimal digits. Other keys, such
    as a detector's boxes, are ignored.

    Raises:
        CaptioningError: the file cannot be read, is not in that format, or has an image twice.
    """
    entries = load_json(path)
    if not isinstance(entries, list):
        raise CaptioningError(
            f"{path}: COCO's result format is a list of "
            '{"image_id": ..., "caption": ...}, but this file holds no list'
        )
    captions: dict[str, str] = {}
    for number, entry in enumerate(entries, start=1):
        image = entry.get("image_id") if isinstance(entry, dict) else None
        # In Python, True is an int.
        if isinstance(image, bool) or not isinstance(image, int | str):
            raise CaptioningError(
                f"{path}: entry {number} needs an `image_id`, a string or integer"
            )
        caption = entry.get("caption")
        if not isinstance(caption, str):
            raise CaptioningError(f"{path}: entry {number} ({image}) needs a `caption`, a string")
        if str(image) in captions:
            raise CaptioningError(
                f"{path}: entry {number} is a second caption of image {image}; keep one"
            )
        captions[str(image)] = caption
    return captions


def write_statistics(path: str | os.PathLike[str], statistics: Statistics) -> None:
    """Write the statistics of each image, by convention to ``statistics_<split>.json``.

    Raises:
        CaptioningError: the file cannot be written; an existing one is then untouched.
    """
    # Not indented, because one number a line would make 40,000 lines for 1,000 images.
    atomic_write_text(path, json.dumps(statistics.to_json(), separators=(",", ":")) + "\n")


def read_statistics(
    path: str | os.PathLike[str], metrics: Sequence[str] | None = None
) -> Statistics:
    """Read what `write_statistics` wrote.

    Args:
        path: the file.
        metrics: the tables to read; None reads all.

    Raises:
        CaptioningError: the file cannot be read, is not JSON, or does not contain statistics.
    """
    content = load_json(path)
    try:
        return Statistics.from_json(content, metrics)
    except CaptioningError as error:
        raise CaptioningError(f"{path}: {error}") from None
