"""A data set whose images, captions and splits have been checked against each other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from captioning.data.descriptions import doubts
from captioning.data.division import divide, is_flickr8k
from captioning.data.names import composed
from captioning.data.readers.base import RawCorpus
from captioning.data.readers.image_folders import is_image_name
from captioning.data.readers.registry import (
    LAYOUTS_UNDERSTOOD,
    OF_ANYBODY,
    READERS,
    files_of,
    find_layouts,
    find_reader,
)
from captioning.data.readers.table import why_no_table
from captioning.data.splits import SPLITS, Split
from captioning.support.errors import CaptioningError, shortened

_SKIP = "data.skip_bad=true (--skip-bad of python -m captioning prepare) leaves them out"


@dataclass(frozen=True)
class CaptionedImage:
    """One image with its captions.

    Attributes:
        id: The file name in Unicode's composed form, with the folders that captions give it.
        path: The image file.
        split: The split, or None for an image in none.
        captions: The captions as they are in the file, only trailing white space stripped.
        number: The number by which COCO's tools call the image, if the data set has such numbers.
    """

    id: str
    path: Path
    split: Split | None
    captions: tuple[str, ...]
    number: int | None = None


@dataclass(frozen=True)
class Corpus:
    """The images of a data set: split by split in the order of the lists, then those in no split.

    Attributes:
        name: The data set's name.
        layout: The layout it was read from, as ``data.layout`` names it.
        root: The folder it was read from.
        images: All images that have a file and captions.
        notes: Sentences about what is odd in the data, for the log.
        warnings: Sentences about what the user has to know, such as that splits were drawn.
    """

    name: str
    layout: str
    root: Path
    images: tuple[CaptionedImage, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def split(self, name: str) -> tuple[CaptionedImage, ...]:
        """The images of a split, in the order of its list (Karpathy: of the file).

        Raises:
            CaptioningError: ``name`` is not train, dev or test.
        """
        if name not in SPLITS:
            raise CaptioningError(f"split={name} is not known; choose {', '.join(SPLITS)}.")
        return tuple(image for image in self.images if image.split == name)

    def references(self, split: str) -> dict[str, list[str]]:
        """The raw captions of a split's images by id, as the metrics take them."""
        return {image.id: list(image.captions) for image in self.split(split)}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over id, split and raw captions of every image in a split.

        It does not depend on the folder, on the order of the lists, or on the images that are in no
        split (Karpathy's file does not have those). Flickr8k therefore has the same fingerprint in
        all layouts.
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


def read_corpus(
    root: str | Path,
    *,
    name: str = "flickr8k",
    layout: str = "auto",
    skip_bad: bool = False,
    split_seed: int = 0,
    cache: Path | None = None,
) -> Corpus:
    """Read and check a data set.

    Args:
        root: Its folder, or the file of its captions.
        name: Its name; picks ``dataset_<name>.json`` among several, and the splits that come with
            this package (``flickr8k`` only).
        layout: A name in :data:`captioning.data.readers.registry.LAYOUTS`, the dotted path of a
            reader of one's own (:mod:`captioning.data.readers.base`), or ``auto`` to find one of
            ours.
        skip_bad: Leave out images of a split that have no file or no caption, and empty captions,
            with a note for each, instead of raising an error.
        split_seed: The seed of splits that are drawn because the data set has none.
        cache: The folder into which images are unpacked that are inside of other files; None is
            ``CAPTIONING_CACHE`` or ~/.cache/captioning.

    Raises:
        CaptioningError: the data set is absent, is malformed, or contradicts itself.
    """
    root = Path(root).expanduser()
    if layout != "auto":
        find_reader(layout)  # so that an unknown layout is reported before a missing folder
    if not root.exists():
        raise CaptioningError(
            f"{root}: there is no such folder or file: give the folder of a data set."
        )
    layouts = find_layouts(root) if layout == "auto" else (layout,)
    if not layouts:
        raise CaptioningError(
            f"{root}: no caption file here{why_no_table(root)}; {LAYOUTS_UNDERSTOOD}."
        )
    reader = find_reader(layouts[0])
    files = files_of(reader, root)
    if not files:
        understood = (
            LAYOUTS_UNDERSTOOD if layout in READERS else f"this layout has {reader.expects}"
        )
        raise CaptioningError(f"{root}: no caption file of the layout {layout} here; {understood}.")
    folder = root if root.is_dir() else root.parent
    raw = reader.read_cached(folder, files, name, cache)
    if len(layouts) > 1:
        raw.notes.insert(
            0,
            f"The folder has the layouts {', '.join(layouts)}; {layouts[0]} is read, "
            "data.layout chooses another.",
        )
    _compose_names(raw)
    divide(raw, name, folder, split_seed)
    if name == "flickr8k" and layouts[0] in OF_ANYBODY and not is_flickr8k(raw.captions):
        raw.warnings.append(
            "These images are not Flickr8k's, and results would be recorded as if they were: use "
            "data=own."
        )
    return _assemble(raw, name, layouts[0], folder, skip_bad)


def _some(names: Sequence[str], limit: int = 3) -> str:
    more = len(names) - limit
    return ", ".join(shortened(name, 100) for name in names[:limit]) + (
        f" and {more:,} more" if more > 0 else ""
    )


def _assemble(raw: RawCorpus, name: str, layout: str, root: Path, skip_bad: bool) -> Corpus:
    """Check captions, splits and files against each other."""
    notes = list(raw.notes)
    split_of = _assign_splits(raw, root, notes)

    def judge(offenders: list[str], what: str) -> None:
        if offenders and not skip_bad:
            named = [
                f"{each} ({raw.places[each]})" if each in raw.places else each
                for each in offenders[:3]
            ] + offenders[3:]
            raise CaptioningError(f"{what} ({len(offenders):,}): {_some(named)}; {_SKIP}.")
        if offenders:
            notes.append(f"Left out: {what} ({len(offenders):,}): {_some(offenders, 10)}.")

    judge(raw.empty_captions, "empty captions")
    checks: list[tuple[str, Callable[[str], bool]]] = [
        (
            f"images that {raw.splits_source} names, with neither captions nor a file",
            lambda image: image not in raw.captions and image not in raw.files,
        ),
        (
            f"images of a split without any caption in {root}",
            lambda image: not raw.captions.get(image),
        ),
        (
            f"images of a split without a file in {raw.folders or root}",
            lambda image: image not in raw.files,
        ),
    ]
    for what, is_bad in checks:
        offenders = [image for image in split_of if is_bad(image)]
        judge(offenders, what)
        for image in offenders:
            del split_of[image]
    for split in SPLITS:
        if split not in split_of.values():
            raise CaptioningError(f"{raw.splits_source}: the {split} split has no image.")

    listed = {image for images in raw.splits.values() for image in images}
    known = listed | raw.captions.keys()
    spare = [image for image in raw.captions if image not in listed and raw.captions[image]]
    for what, offenders in (
        ("images with captions but in no split", [i for i in spare if i in raw.files]),
        (
            "images with captions but in no split and without a file",
            [i for i in spare if i not in raw.files],
        ),
        (
            "image files without captions and in no split",
            [i for i in raw.files if is_image_name(i) and i not in known],
        ),
    ):
        if offenders:
            notes.append(f"Not used: {what} ({len(offenders):,}): {_some(offenders)}.")

    unsplit: dict[str, Split | None] = {i: None for i in spare if i in raw.files}
    images = tuple(
        CaptionedImage(
            image, raw.files[image], split_, tuple(raw.captions[image]), raw.numbers.get(image)
        )
        for image, split_ in (split_of | unsplit).items()
    )
    notes += doubts({image.id: image.captions for image in images if image.split})
    return Corpus(name, layout, root, images, tuple(notes), tuple(raw.warnings))


def _compose_names(raw: RawCorpus) -> None:
    """Put the names of images into the same Unicode form in captions, splits and files."""
    captions: dict[str, list[str]] = {}
    for image, texts in raw.captions.items():
        captions.setdefault(composed(image), []).extend(texts)
    raw.captions = captions
    raw.splits = {split: [*map(composed, images)] for split, images in raw.splits.items()}
    raw.files = {composed(image): path for image, path in raw.files.items()}
    raw.numbers = {composed(image): number for image, number in raw.numbers.items()}
    raw.places = {composed(image): place for image, place in raw.places.items()}


def _assign_splits(raw: RawCorpus, root: Path, notes: list[str]) -> dict[str, Split]:
    """The split of each image, in the order of the lists."""
    split_of: dict[str, Split] = {}
    twice = []
    for split in SPLITS:
        for image in raw.splits.get(split, []):
            if image in split_of:
                twice.append(f"{image} (in {split_of[image]} and {split})")
            split_of[image] = split
    if twice:
        raise CaptioningError(
            f"{raw.splits_source}: images listed twice ({len(twice):,}): {_some(twice)}; "
            "an image belongs to one split, once."
        )
    if raw.splits_are_bundled:
        # The bundled lists name the whole data set. A copy that lacks some images is not an error.
        absent = [i for i in split_of if i not in raw.captions and i not in raw.files]
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
