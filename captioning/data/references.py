"""Reading reference captions from files of several formats, to score the captions of any system.

The format of a file is recognised by its content:

- COCO's annotations, ``{"images": [{"id": ...}], "annotations": [{"image_id": ..., "caption":
  ...}]}`` (X. Chen et al., "Microsoft COCO Captions", 2015);
- Karpathy's ``dataset*.json``, from which one split is used;
- a token file like Flickr8k's, ``image.jpg#0<TAB>caption``. One split of it is used: for Flickr8k
  the official one, for other data sets that of the split lists beside the file. Without such lists
  all of the file is used;
- JSON of the form ``{image: [caption, ...]}``.

A folder is read as a data set (:mod:`captioning.data.corpus`), from which one split is used.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captioning.data.corpus import fingerprint, read_corpus
from captioning.data.descriptions import doubts, load_descriptions
from captioning.data.readers.karpathy import parse_karpathy
from captioning.data.splits import SPLITS, read_split_lists
from captioning.support.errors import CaptioningError
from captioning.support.reading import load_document, parse_json

log = logging.getLogger(__name__)

FORMATS_UNDERSTOOD = (
    'COCO\'s annotations ({"images": [...], "annotations": [...]}), Karpathy\'s dataset*.json, '
    'a token file (image.jpg#0<TAB>caption), or {"image": ["caption", ...]}'
)

_TOKEN_LINE = re.compile(r"[^\t\n]+#[0-9]+\t")


@dataclass(frozen=True)
class References:
    """The raw captions of some images.

    Attributes:
        source: The file or folder that they were read from.
        name: The name of the data set, as far as the source tells it.
        fingerprint: SHA-256 (hex). If the source is a whole data set, the fingerprint of its
            `captioning.data.corpus.Corpus`, so that trained models and the captions of other
            systems can be ranked together; otherwise one over these captions.
        captions: One or more for each image id, in the order of the source.
        aliases: Other ids of the images; for instance, Karpathy's file has file names as ids, and
            COCO's numbers as aliases.
        files: Image files by id: paths, or names of files that are yet to be found.
        train: The captions of the train split, if the source has one.
        numbers: The number of each image by its id, if the source has one (COCO's ``id`` and
            ``cocoid``), by which COCO's own tools call the image.
    """

    source: Path
    name: str
    fingerprint: str
    captions: dict[str, list[str]]
    aliases: tuple[dict[str, str], ...] = ()
    files: dict[str, Path] = field(default_factory=dict)
    train: tuple[str, ...] | None = None
    numbers: dict[str, int] = field(default_factory=dict)


def read_references(path: str | Path, split: str, name: str = "flickr8k") -> References:
    """Read the references of one split.

    Args:
        path: A file in any of the formats above, or the folder of a data set.
        split: ``train``, ``dev`` or ``test``. COCO's annotations and plain JSON have no splits: all
            images in them are used.
        name: The name of the data set, if ``path`` is a folder.

    Raises:
        CaptioningError: there is no such file, its format is not known, or an entry is malformed.
    """
    path = Path(path).expanduser()
    if split not in SPLITS:
        raise CaptioningError(f"split={split} is not known; choose {', '.join(SPLITS)}.")
    if path.is_dir():
        corpus = read_corpus(path, name=name)
        images = corpus.split(split)
        numbers = {image.id: image.number for image in images if image.number is not None}
        return References(
            path,
            name,
            corpus.fingerprint,
            corpus.references(split),
            aliases=({str(number): image for image, number in numbers.items()},),
            files={image.id: image.path for image in images},
            numbers=numbers,
            train=tuple(text for image in corpus.split("train") for text in image.captions),
        )
    references = _read_file(path, split)
    for sentence in doubts(references.captions):
        log.warning("%s: %s", path, sentence)
    return references


def _read_file(path: Path, split: str) -> References:
    text = load_document(path)
    if _TOKEN_LINE.match(text.lstrip("\n")):
        return _from_token_file(path, split)
    if not text.lstrip().startswith(("{", "[")):
        raise CaptioningError(
            f"{path}: neither JSON nor a token file; references can be {FORMATS_UNDERSTOOD}."
        )
    content = parse_json(text, path)
    if isinstance(content, dict) and "annotations" in content:
        return _from_coco(path, content, split)
    if isinstance(content, dict) and _is_karpathy(content.get("images")):
        return _from_karpathy(path, content, split)
    if isinstance(content, dict) and content:
        return _from_lists(path, content, split)
    if isinstance(content, list) and content and _keys(content[0]) >= {"image_id", "caption"}:
        raise CaptioningError(
            f"{path}: this is COCO's result format, which has no references; is it what "
            "captions= should name?"
        )
    raise CaptioningError(f"{path}: of no known format; references can be {FORMATS_UNDERSTOOD}.")


def _keys(entry: object) -> set[str]:
    return set(entry) if isinstance(entry, dict) else set()


def _is_karpathy(images: object) -> bool:
    return isinstance(images, list) and bool(images) and "sentences" in _keys(images[0])


def _from_coco(path: Path, content: Mapping[str, Any], split: str) -> References:
    images, annotations = content.get("images", []), content["annotations"]
    for key, entries in (("images", images), ("annotations", annotations)):
        if not isinstance(entries, list):
            raise CaptioningError(f"{path}: {key!r} should be a list.")
    captions: dict[str, list[str]] = {}
    files: dict[str, Path] = {}
    numbers: dict[str, int] = {}
    for number, image in enumerate(images):
        where = f"{path}: images[{number}]"
        key = _id(image, "id", where)
        if key in captions:
            raise CaptioningError(f"{where}: the image {key} is there twice; remove one.")
        captions[key] = []
        if isinstance(image["id"], int):
            numbers[key] = image["id"]
        file = image.get("file_name")
        if isinstance(file, str) and file:
            files[key] = Path(file)
    for number, annotation in enumerate(annotations):
        where = f"{path}: annotations[{number}]"
        key = _id(annotation, "image_id", where)
        if images and key not in captions:
            raise CaptioningError(f"{where}: its image {key} is not among 'images'.")
        if isinstance(annotation["image_id"], int):
            numbers[key] = annotation["image_id"]
        caption = annotation.get("caption")
        if not isinstance(caption, str):
            raise CaptioningError(f"{where}: 'caption' should be there and be a string.")
        _refuse_empty(caption, where)
        captions.setdefault(key, []).append(caption)
    # An image without captions cannot be scored.
    captions = {image: texts for image, texts in captions.items() if texts}
    if not captions:
        raise CaptioningError(f"{path}: there is no caption in it to score against.")
    aliases = {file.name: image for image, file in files.items()}
    return References(
        path,
        path.stem,
        fingerprint((image, split, texts) for image, texts in captions.items()),
        captions,
        (aliases,),
        files,
        numbers=numbers,
    )


def _from_karpathy(path: Path, content: Mapping[str, Any], split: str) -> References:
    read = parse_karpathy(content, path)
    for where in read.empty_captions[:1]:
        _refuse_empty("", where)
    chosen: dict[str, list[str]] = {}
    of_split: list[tuple[str, str, list[str]]] = []
    for split_, images in read.splits.items():
        for image in images:
            if not read.captions[image]:
                raise CaptioningError(f"{path}: the image {image} has no sentences; add or remove.")
            of_split.append((image, split_, read.captions[image]))
            if split_ == split:
                chosen[image] = read.captions[image]
    if not chosen:
        raise CaptioningError(f"{path}: the {split} split has no image.")
    name = read.name or path.stem.removeprefix("dataset_")
    files = {image: Path(image) for image in chosen}
    aliases = tuple(
        {str(number): image for image, number in numbers.items()}
        for numbers in (read.cocoids, read.imgids)
    )
    return References(
        path,
        name,
        fingerprint(of_split),
        chosen,
        aliases,
        files,
        _train(of_split),
        read.cocoids if name == "coco" else {},
    )


def _from_token_file(path: Path, split: str) -> References:
    captions = load_descriptions(path)
    splits, _, bundled = read_split_lists([path.parent], "flickr8k", path)
    of_split: list[tuple[str, str, list[str]]] = [
        (image, split_, captions[image])
        for split_, images in splits.items()
        for image in images
        if image in captions
    ]
    is_flickr8k = bool(of_split) and (bundled or path.name.startswith("Flickr8k"))
    if not of_split and bundled:  # another data set, which has no lists of its own
        of_split = [(image, split, texts) for image, texts in captions.items()]
    chosen = {image: texts for image, split_, texts in of_split if split_ == split}
    if not chosen:
        raise CaptioningError(f"{path}: the {split} split has no image.")
    return References(
        path,
        "flickr8k" if is_flickr8k else path.stem,
        fingerprint(of_split),
        chosen,
        files={image: Path(image) for image in chosen},
        train=_train(of_split) if is_flickr8k else None,
    )


def _from_lists(path: Path, content: Mapping[str, Any], split: str) -> References:
    for image, texts in content.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise CaptioningError(
                f"{path}: {image!r} should have a list of captions; references can be "
                f"{FORMATS_UNDERSTOOD}."
            )
        if not texts:
            raise CaptioningError(f"{path}: the image {image!r} has no caption; add or remove it.")
        for number, text in enumerate(texts):
            _refuse_empty(text, f"{path}: {image}[{number}]")
    captions = dict(content)
    files = {image: Path(image) for image in captions}
    digest = fingerprint((image, split, texts) for image, texts in captions.items())
    return References(path, path.stem, digest, captions, files=files)


def _train(of_split: Iterable[tuple[str, str, Sequence[str]]]) -> tuple[str, ...] | None:
    return tuple(text for _, split, texts in of_split if split == "train" for text in texts) or None


def _refuse_empty(caption: str, where: str) -> None:
    """Refuse an empty reference: as it is the shortest one, it would raise BLEU silently."""
    if not caption.strip():
        raise CaptioningError(f"{where}: the caption is empty; write one or remove it.")


def _id(entry: object, key: str, where: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | str):  # a JSON true is an int
        raise CaptioningError(f"{where}: {key!r} should be there and be an integer or a string.")
    return str(value)
