"""A data set as it lies on disk: images, their captions and the splits, checked.

Three layouts are understood, all of them with the images in one folder (``Flicker8k_Dataset/``,
``Flickr8k_Dataset/``, ``flickr30k-images/``, ``flickr30k_images/``, ``Images/`` or ``images/``,
also one inside another, as the official archive unpacks):

- ``official``: Flickr8k's own ``Flickr8k.token.txt`` and ``Flickr_8k.{train,dev,test}Images.txt``,
  in ``Flickr8k_text/`` or beside the image folder;
- ``karpathy``: ``dataset*.json`` (A. Karpathy and L. Fei-Fei, CVPR 2015) for Flickr8k, Flickr30k
  and COCO, whose images lie in ``train2014/`` and ``val2014/``; ``restval`` joins train;
- ``kaggle``: ``captions.txt`` (CSV, ``image,caption``). It has no splits: Flickr8k's official ones
  come with this package, other data sets need the official layout's lists beside it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files as package_files
from pathlib import Path
from typing import Literal, get_args

from captioning.data.text import load_document, numbered_lines, read_token_file
from captioning.support.errors import CaptioningError

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

Layout = Literal["official", "karpathy", "kaggle"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)  # in the order in which they are preferred

LAYOUTS_UNDERSTOOD = (
    "layouts understood: official (Flickr8k_text/Flickr8k.token.txt, "
    "Flickr8k_text/Flickr_8k.{train,dev,test}Images.txt and Flicker8k_Dataset/), "
    "karpathy (dataset*.json and an image folder, for COCO train2014/ and val2014/), "
    "kaggle (captions.txt and Images/)"
)

_IMAGE_FOLDERS = (
    "Flicker8k_Dataset",
    "Flickr8k_Dataset",
    "flickr30k-images",
    "flickr30k_images",
    "Images",
    "images",
)
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_SKIP = "data.skip_bad=true (--skip-bad of captioning.apps.prepare) leaves them out"
_KARPATHY_SPLITS: dict[str, Split] = {
    "train": "train",
    "restval": "train",
    "val": "dev",
    "test": "test",
}


@dataclass(frozen=True)
class CaptionedImage:
    """One image with its captions.

    Attributes:
        id: The file name.
        path: The image file.
        split: The split, or None for an image in none.
        captions: The captions as they are in the file, only trailing white space stripped.
    """

    id: str
    path: Path
    split: Split | None
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Corpus:
    """The images of a data set: split by split in the order of the lists, then those in none.

    Attributes:
        name: The data set's name.
        layout: The layout it was read from.
        root: The folder it was read from.
        images: All images that have a file and captions.
        notes: Sentences about what is odd in the data, for the log.
    """

    name: str
    layout: Layout
    root: Path
    images: tuple[CaptionedImage, ...]
    notes: tuple[str, ...]

    def split(self, name: str) -> tuple[CaptionedImage, ...]:
        """The images of a split, in the order of its list (Karpathy: of the file).

        Raises:
            CaptioningError: ``name`` is not train, dev or test.
        """
        if name not in SPLITS:
            raise CaptioningError(f"split={name} is not known; choose {', '.join(SPLITS)}.")
        return tuple(image for image in self.images if image.split == name)

    def references(self, split: str) -> dict[str, list[str]]:
        """Raw captions of a split's images by id, as the metrics take them."""
        return {image.id: list(image.captions) for image in self.split(split)}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over id, split and raw captions of every image in a split.

        It does not depend on the folder, on the order of the lists or on the images that are in no
        split (Karpathy's file does not have those), so Flickr8k has one fingerprint in all layouts.
        """
        return fingerprint(
            (image.id, image.split, image.captions)
            for image in self.images
            if image.split is not None
        )


def fingerprint(images: Iterable[tuple[str, str, Sequence[str]]]) -> str:
    """SHA-256 (hex) over the id, the split and the raw captions of each image, in any order."""
    digest = hashlib.sha256()
    for image, split, captions in sorted(images):
        digest.update(json.dumps([image, split, captions]).encode())
    return digest.hexdigest()


def find_layouts(root: str | Path) -> tuple[Layout, ...]:
    """The layouts whose caption file is in ``root``, best first; empty where there is no data."""
    root = Path(root).expanduser()
    return tuple(layout for layout in LAYOUTS if _caption_files(root, layout))


def read_corpus(
    root: str | Path,
    *,
    name: str = "flickr8k",
    layout: str = "auto",
    skip_bad: bool = False,
) -> Corpus:
    """Read and check a data set.

    Args:
        root: Its folder.
        name: Its name; picks ``dataset_<name>.json`` among several, and the splits that come with
            this package (``flickr8k`` only).
        layout: ``official``, ``karpathy``, ``kaggle``, or ``auto`` to find it.
        skip_bad: Leave out images of a split that have no file or no caption, and empty captions,
            with a note for each, instead of raising.

    Raises:
        CaptioningError: the data is not there, is malformed, or contradicts itself.
    """
    root = Path(root).expanduser()
    if layout not in ("auto", *LAYOUTS):
        raise CaptioningError(
            f"data.layout={layout} is not known; choose auto, {', '.join(LAYOUTS)}."
        )
    if not root.is_dir():
        raise CaptioningError(f"{root}: no such folder; {LAYOUTS_UNDERSTOOD}.")
    explicit = tuple(known for known in LAYOUTS if known == layout)
    layouts = explicit or find_layouts(root)
    paths = _caption_files(root, layouts[0]) if layouts else []
    if not paths:
        of_layout = f" of the layout {layout}" if explicit else ""
        raise CaptioningError(f"{root}: no caption file{of_layout} here; {LAYOUTS_UNDERSTOOD}.")
    readers = {"official": _read_official, "karpathy": _read_karpathy, "kaggle": _read_kaggle}
    found = readers[layouts[0]](paths, root, name)
    if len(layouts) > 1:
        found.notes.insert(
            0,
            f"The folder has the layouts {', '.join(layouts)}; {layouts[0]} is read, "
            "data.layout chooses another.",
        )
    return _assemble(found, name, layouts[0], root, skip_bad)


@dataclass
class _Found:
    """What a reader found, before it is checked as a whole."""

    captions: dict[str, list[str]]
    splits: dict[Split, list[str]]
    files: dict[str, Path]
    empty_captions: list[str]  # where, as file:line or the like
    splits_from: str
    splits_are_ours: bool = False  # they came with this package, not with the data
    notes: list[str] = field(default_factory=list)

    @property
    def folders(self) -> str:
        return ", ".join(sorted({str(path.parent) for path in self.files.values()}))


def _caption_files(root: Path, layout: Layout) -> list[Path]:
    patterns = {
        "official": ("Flickr8k_text/Flickr8k.token.txt", "Flickr8k.token.txt"),
        "karpathy": ("dataset*.json",),
        "kaggle": ("captions.txt",),
    }
    return [path for pattern in patterns[layout] for path in sorted(root.glob(pattern))]


def _read_official(paths: Sequence[Path], root: Path, name: str) -> _Found:
    path = paths[0]
    captions: dict[str, list[tuple[int, str]]] = {}
    empty = []
    for line, image, number, caption in read_token_file(path):
        captions.setdefault(image, [])
        if caption:
            captions[image].append((number, caption))
        else:
            empty.append(f"{path}:{line}")
    splits, source, ours = split_lists([path.parent], name)
    return _Found(
        captions={image: [text for _, text in sorted(texts)] for image, texts in captions.items()},
        splits=splits,
        files=_image_files(root),
        empty_captions=empty,
        splits_from=source,
        splits_are_ours=ours,
    )


def _read_kaggle(paths: Sequence[Path], root: Path, name: str) -> _Found:
    path = paths[0]
    captions: dict[str, list[str]] = {}
    empty = []
    rows = csv.reader(io.StringIO(load_document(path)), strict=True)
    try:
        header = next(rows, [])
        if [cell.strip().lower() for cell in header] != ["image", "caption"]:
            raise CaptioningError(f"{path}:1: expected the header 'image,caption'.")
        for row in rows:
            if not row:
                continue
            if len(row) != 2 or not row[0].strip():
                raise CaptioningError(
                    f"{path}:{rows.line_num}: expected 'image.jpg,caption', with quotes around a "
                    f"caption that has commas, found {','.join(row)[:60]!r}."
                )
            texts = captions.setdefault(row[0].strip(), [])
            caption = row[1].rstrip()
            if caption:
                texts.append(caption)
            else:
                empty.append(f"{path}:{rows.line_num}")
    except csv.Error as error:
        raise CaptioningError(f"{path}:{rows.line_num}: malformed CSV ({error}).") from error
    splits, source, ours = split_lists([root, root / "Flickr8k_text"], name)
    return _Found(
        captions=captions,
        splits=splits,
        files=_image_files(root),
        empty_captions=empty,
        splits_from=source,
        splits_are_ours=ours,
    )


def _read_karpathy(paths: Sequence[Path], root: Path, name: str) -> _Found:
    wanted = root / f"dataset_{name}.json"
    if wanted not in paths and len(paths) > 1:
        raise CaptioningError(
            f"{root}: {_some([path.name for path in paths])} are here but no {wanted.name}; "
            "remove those of other data sets."
        )
    path = wanted if wanted in paths else paths[0]
    try:
        content = json.loads(load_document(path))
    except (json.JSONDecodeError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        raise CaptioningError(f"{path}:{line}: not JSON ({error}).") from error
    read = parse_karpathy(content, path)
    found = _Found(
        captions=read.captions,
        splits=read.splits,
        files=_image_files_in(root, read.folders) if read.folders else _image_files(root),
        empty_captions=read.empty_captions,
        splits_from=str(path),
    )
    if read.name is not None and read.name != name:
        found.notes.append(f"{path.name} calls its data set {read.name!r}, not {name!r}.")
    return found


@dataclass(frozen=True)
class KarpathyFile:
    """What a ``dataset*.json`` of Karpathy's holds.

    Attributes:
        name: What it calls its data set.
        captions: Raw captions by file name, only trailing white space stripped; none is empty.
        splits: The file names of each split, in the order of the file.
        folders: The image folders that it names.
        empty_captions: Where captions are empty.
        numbers: The file names by ``cocoid`` and by ``imgid``, as far as it has these.
    """

    name: str | None
    captions: dict[str, list[str]]
    splits: dict[Split, list[str]]
    folders: tuple[str, ...]
    empty_captions: list[str]
    numbers: tuple[dict[str, str], ...]


def parse_karpathy(content: object, path: Path) -> KarpathyFile:
    """Make sense of a data set file of Karpathy's; no image is looked for.

    Args:
        content: The JSON in the file.
        path: The file, for messages.

    Raises:
        CaptioningError: it is not such a file.
    """
    captions: dict[str, list[str]] = {}
    splits: dict[Split, list[str]] = {split: [] for split in SPLITS}
    folders: dict[str, None] = {}
    numbers: dict[str, dict[str, str]] = {"cocoid": {}, "imgid": {}}
    empty = []
    for index, entry in enumerate(_list(content, "images", str(path))):
        where = f"{path}: images[{index}]"
        image = _string(entry, "filename", where)
        split = _string(entry, "split", where)
        if split not in _KARPATHY_SPLITS:
            raise CaptioningError(
                f"{where}: the split {split!r} is not one of {', '.join(_KARPATHY_SPLITS)}."
            )
        splits[_KARPATHY_SPLITS[split]].append(image)
        assert isinstance(entry, dict)  # it has a file name
        if "filepath" in entry:
            folders[_string(entry, "filepath", where)] = None
        for key, images in numbers.items():
            if isinstance(entry.get(key), int):
                images[str(entry[key])] = image
        texts = captions.setdefault(image, [])
        for number, sentence in enumerate(_list(entry, "sentences", where)):
            caption = _string(sentence, "raw", f"{where}.sentences[{number}]").rstrip()
            if caption:
                texts.append(caption)
            else:
                empty.append(f"{where}.sentences[{number}]")
    assert isinstance(content, dict)  # it has images
    own_name = content.get("dataset")
    return KarpathyFile(
        name=None if own_name is None else str(own_name),
        captions=captions,
        splits=splits,
        folders=tuple(folders),
        empty_captions=empty,
        numbers=tuple(numbers.values()),
    )


def _string(entry: object, key: str, where: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, str):
        raise CaptioningError(f"{where}: {key!r} should be there and be a string.")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a character: "\ud83d"
        raise CaptioningError(f"{where}: {key!r} has a broken Unicode escape.") from error
    return value


def _list(entry: object, key: str, where: str) -> list[object]:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, list):
        raise CaptioningError(f"{where}: {key!r} should be there and be a list.")
    return value


def split_lists(folders: Sequence[Path], name: str) -> tuple[dict[Split, list[str]], str, bool]:
    """The split lists of the first folder that has them, else those of this package.

    Returns:
        The images of each split, where they come from, and whether that is this package.
    """
    for folder in folders:
        paths = {split: folder / f"Flickr_8k.{split}Images.txt" for split in SPLITS}
        missing = [path.name for path in paths.values() if not path.is_file()]
        if not missing:
            splits = {
                split: [line.strip() for _, line in numbered_lines(path)]
                for split, path in paths.items()
            }
            return splits, str(folder / "Flickr_8k.*Images.txt"), False
        if len(missing) < len(paths):
            raise CaptioningError(f"{folder}: the split list {missing[0]} is missing.")
    if name != "flickr8k":
        raise CaptioningError(
            f"{folders[0]}: no splits for {name}; put Flickr_8k.trainImages.txt, "
            "Flickr_8k.devImages.txt and Flickr_8k.testImages.txt here, one file name a line."
        )
    splits = {split: [] for split in SPLITS}
    text = package_files("captioning.data").joinpath("flickr8k_splits.txt").read_text("utf-8")
    for line in text.splitlines():
        if not line.startswith("#"):
            split, image = line.split("\t")
            splits[next(known for known in SPLITS if known == split)].append(image)
    return splits, "the official split lists", True


def _files_in(folder: Path) -> dict[str, Path]:
    """The files of a folder by name; one look at the folder, not one at each of 120,000 files."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: folder / entry.name for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _is_image(name: str) -> bool:
    return name.lower().endswith(_IMAGE_SUFFIXES) and not name.startswith(".")


def _image_files(root: Path) -> dict[str, Path]:
    """The files of the first of the known image folders that has images."""
    for name in _IMAGE_FOLDERS:
        for folder in (root / name, *(root / name / inner for inner in _IMAGE_FOLDERS)):
            files = _files_in(folder)
            if any(_is_image(file) for file in files):
                return files
    raise CaptioningError(
        f"{root}: no folder with images in it; looked for {', '.join(_IMAGE_FOLDERS)}."
    )


def _image_files_in(root: Path, folders: Iterable[str]) -> dict[str, Path]:
    """The files of the folders that the data set itself names (COCO's ``filepath``)."""
    files: dict[str, Path] = {}
    for name in folders:
        inside = next(
            (found for base in (root, root / "images") if (found := _files_in(base / name))), None
        )
        if inside is None:
            raise CaptioningError(
                f"{root}: the image folder {name} is not in it or in its images/, or is empty."
            )
        files.update(inside)
    return files


def _some(names: Sequence[str], limit: int = 3) -> str:
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more:,} more" if more > 0 else "")


def _assemble(found: _Found, name: str, layout: Layout, root: Path, skip_bad: bool) -> Corpus:
    """Check captions, splits and files against each other."""
    notes = list(found.notes)
    split_of = _assign(found, root, notes)

    def judge(offenders: list[str], what: str) -> None:
        if offenders and not skip_bad:
            raise CaptioningError(f"{what} ({len(offenders):,}): {_some(offenders)}; {_SKIP}.")
        if offenders:
            notes.append(f"Left out: {what} ({len(offenders):,}): {_some(offenders, 10)}.")

    judge(found.empty_captions, "empty captions")
    checks: list[tuple[str, Callable[[str], bool]]] = [
        (
            f"images that {found.splits_from} names, with neither captions nor a file",
            lambda image: image not in found.captions and image not in found.files,
        ),
        ("images of a split without any caption", lambda image: not found.captions.get(image)),
        (
            f"images of a split without a file in {found.folders}",
            lambda image: image not in found.files,
        ),
    ]
    for what, is_bad in checks:
        offenders = [image for image in split_of if is_bad(image)]
        judge(offenders, what)
        for image in offenders:
            del split_of[image]
    for split in SPLITS:
        if split not in split_of.values():
            raise CaptioningError(f"{found.splits_from}: the {split} split has no image.")

    listed = {image for images in found.splits.values() for image in images}
    known = listed | found.captions.keys()
    spare = [image for image in found.captions if image not in listed and found.captions[image]]
    for what, offenders in (
        ("images with captions but in no split", [i for i in spare if i in found.files]),
        (
            "images with captions but in no split and without a file",
            [i for i in spare if i not in found.files],
        ),
        (
            "image files without captions and in no split",
            [i for i in found.files if _is_image(i) and i not in known],
        ),
    ):
        if offenders:
            notes.append(f"Not used: {what} ({len(offenders):,}): {_some(offenders)}.")

    unsplit: dict[str, Split | None] = {i: None for i in spare if i in found.files}
    images = tuple(
        CaptionedImage(image, found.files[image], split_, tuple(found.captions[image]))
        for image, split_ in (split_of | unsplit).items()
    )
    return Corpus(name, layout, root, images, tuple(notes))


def _assign(found: _Found, root: Path, notes: list[str]) -> dict[str, Split]:
    """The split of each image, in the order of the lists."""
    split_of: dict[str, Split] = {}
    twice = []
    for split in SPLITS:
        for image in found.splits[split]:
            if image in split_of:
                twice.append(f"{image} (in {split_of[image]} and {split})")
            split_of[image] = split
    if twice:
        raise CaptioningError(
            f"{found.splits_from}: images listed twice ({len(twice):,}): {_some(twice)}; "
            "an image belongs to one split, once."
        )
    if found.splits_are_ours:
        # Our lists name the whole data set; a copy of a part of it does not contradict them.
        absent = [i for i in split_of if i not in found.captions and i not in found.files]
        if len(absent) == len(split_of):
            raise CaptioningError(
                f"{root}: none of its images is in Flickr8k's official splits; put split lists "
                "(Flickr_8k.trainImages.txt, ...devImages.txt, ...testImages.txt) beside its "
                "captions."
            )
        notes.append("The splits are Flickr8k's official ones, which come with this package.")
        if absent:
            notes.append(
                f"Images of the official splits that this copy lacks ({len(absent):,}): "
                f"{_some(absent)}."
            )
        for image in absent:
            del split_of[image]
    return split_of
