"""Karpathy's layout: ``dataset*.json`` (A. Karpathy and L. Fei-Fei, CVPR 2015).

There is such a file for Flickr8k, Flickr30k and COCO, whose images are in ``train2014/`` and
``val2014/``. COCO's split ``restval`` is added to the training split, as is usual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from captioning.data.readers.base import CorpusReader, RawCorpus, check_characters
from captioning.data.readers.image_folders import find_image_folder, list_image_folders
from captioning.data.splits import SPLITS, Split
from captioning.support.errors import CaptioningError
from captioning.support.reading import load_json

_SPLITS: dict[str, Split] = {"train": "train", "restval": "train", "val": "dev", "test": "test"}

_OF_HUGGING_FACE = ("dataset_info.json", "dataset_dict.json")


class KarpathyReader(CorpusReader):
    """Reads ``dataset_NAME.json``, or the only ``dataset*.json`` in the folder."""

    expects = "dataset*.json and an image folder, for COCO train2014/ and val2014/"

    def detect(self, root: Path) -> list[Path]:
        found = sorted(root.glob("dataset*.json"))
        return [path for path in found if path.name not in _OF_HUGGING_FACE]

    def read(self, root: Path, files: Sequence[Path], name: str) -> RawCorpus:
        path = _choose_file(root, files, name)
        parsed = parse_karpathy(load_json(path), path)
        corpus = RawCorpus(
            captions=parsed.captions,
            splits=parsed.splits,
            files=(
                list_image_folders(root, parsed.folders)
                if parsed.folders
                else find_image_folder(root)
            ),
            numbers=parsed.cocoids,
            empty_captions=parsed.empty_captions,
            splits_source=str(path),
        )
        if parsed.name is not None and parsed.name != name:
            corpus.notes.append(f"{path.name} calls its data set {parsed.name!r}, not {name!r}.")
        return corpus


def _choose_file(root: Path, files: Sequence[Path], name: str) -> Path:
    named = root / f"dataset_{name}.json"
    if named in files:
        return named
    if len(files) > 1:
        others = ", ".join(path.name for path in files[:3])
        more = f" and {len(files) - 3:,} more" if len(files) > 3 else ""
        raise CaptioningError(
            f"{root}: {others}{more} are here but no {named.name}; remove those of other data sets."
        )
    return files[0]


@dataclass(frozen=True)
class KarpathyFile:
    """The content of a ``dataset*.json``.

    Attributes:
        name: What the file calls its data set.
        captions: Raw captions by file name, only trailing white space stripped; none is empty.
        splits: The file names of each split, in the order of the file.
        folders: The image folders that the file names.
        empty_captions: Where captions are empty.
        cocoids: COCO's number of each image by its file name, as far as the file has it.
        imgids: Karpathy's number of each image by its file name, as far as the file has it.
    """

    name: str | None
    captions: dict[str, list[str]]
    splits: dict[Split, list[str]]
    folders: tuple[str, ...]
    empty_captions: list[str]
    cocoids: dict[str, int]
    imgids: dict[str, int]


def parse_karpathy(content: object, path: Path) -> KarpathyFile:
    """Check and sort the content of a ``dataset*.json``; no image file is looked for.

    Args:
        content: The JSON in the file.
        path: The file, for messages.

    Raises:
        CaptioningError: the content is not that of such a file.
    """
    captions: dict[str, list[str]] = {}
    splits: dict[Split, list[str]] = {split: [] for split in SPLITS}
    folders: dict[str, None] = {}
    numbers: dict[str, dict[str, int]] = {"cocoid": {}, "imgid": {}}
    empty = []
    for index, entry in enumerate(_list(content, "images", str(path))):
        where = f"{path}: images[{index}]"
        image = _string(entry, "filename", where)
        split = _string(entry, "split", where)
        if split not in _SPLITS:
            raise CaptioningError(
                f"{where}: the split {split!r} is not one of {', '.join(_SPLITS)}."
            )
        splits[_SPLITS[split]].append(image)
        assert isinstance(entry, dict)  # since it has a file name
        if "filepath" in entry:
            folders[_string(entry, "filepath", where)] = None
        for key, of_images in numbers.items():
            if type(entry.get(key)) is int:  # a JSON true is another type
                of_images[image] = entry[key]
        texts = captions.setdefault(image, [])
        for number, sentence in enumerate(_list(entry, "sentences", where)):
            caption = _string(sentence, "raw", f"{where}.sentences[{number}]").rstrip()
            if caption:
                texts.append(caption)
            else:
                empty.append(f"{where}.sentences[{number}]")
    assert isinstance(content, dict)  # since it has images
    own_name = content.get("dataset")
    return KarpathyFile(
        name=None if own_name is None else str(own_name),
        captions=captions,
        splits=splits,
        folders=tuple(folders),
        empty_captions=empty,
        cocoids=numbers["cocoid"],
        imgids=numbers["imgid"],
    )


def _string(entry: object, key: str, where: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, str):
        raise CaptioningError(f"{where}: {key!r} should be there and be a string.")
    check_characters(value, f"{where}: {key!r}")
    return value


def _list(entry: object, key: str, where: str) -> list[object]:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, list):
        raise CaptioningError(f"{where}: {key!r} should be there and be a list.")
    return value
