"""The contract of a reader, which turns a data set on disk into captions, splits and image files.

A reader finds and parses; it does not judge the data set as a whole. That images, captions and
splits fit together is checked once for all readers, in :func:`captioning.data.corpus.read_corpus`.

A reader of one's own is a subclass of :class:`CorpusReader` anywhere on the Python path, chosen
with ``data.layout=my_package.my_module.MyReader``. In short, ``examples/json_lines.py``, which
also answers a malformed line with a sentence, is::

    class JsonLinesReader(CorpusReader):
        expects = "captions.jsonl and images/"

        def detect(self, root: Path) -> list[Path]:
            return sorted(root.glob("captions.jsonl"))

        def read(self, root: Path, files: Sequence[Path], name: str) -> RawCorpus:
            corpus = RawCorpus(files=find_image_folder(root), splits_source=str(files[0]))
            for number, line in numbered_lines(files[0]):
                entry = json.loads(line)
                corpus.add_image(entry["image"], entry["split"], f"{files[0]}:{number}")
                for caption in entry["captions"]:
                    corpus.add_caption(entry["image"], caption, f"{files[0]}:{number}")
            return corpus
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from captioning.data.splits import SPLITS, Split, SplitLists
from captioning.support.errors import CaptioningError


@dataclass
class RawCorpus:
    """What a reader found, before captions, splits and files are checked against each other.

    Attributes:
        captions: Raw captions by image id, only trailing white space stripped; none is empty. The
            id of an image is its file name.
        splits: The image ids of each split, in the order of the list. Splits that are absent or
            have no image are drawn (:func:`captioning.data.division.divide`) or refused.
        numbers: The number by which COCO's tools call an image (``cocoid``), by its id, where the
            data set has such numbers.
        files: Image files by id. Files of images that have no captions may be among them.
        empty_captions: Where captions are empty, as ``file:line`` or the like.
        splits_source: Where the splits come from, for messages.
        splits_are_bundled: Whether they came with this package instead of with the data.
        unnamed: Whether the data set has no names of images, and the reader has made up their ids.
        places: Where the data set mentions an image first, as ``file:line`` or the like, by its id,
            as far as the reader tells it.
        notes: Sentences about what is odd in the data, for the log.
        warnings: Sentences about what the user has to know, for the log.
    """

    captions: dict[str, list[str]] = field(default_factory=dict)
    splits: dict[Split, list[str]] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    empty_captions: list[str] = field(default_factory=list)
    splits_source: str = "the data set"
    splits_are_bundled: bool = False
    unnamed: bool = False
    places: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def folders(self) -> str:
        """The folders of the image files, for messages."""
        return ", ".join(sorted({str(path.parent) for path in self.files.values()}))

    def use_lists(self, lists: SplitLists) -> None:
        """Take the splits from split lists."""
        self.splits = lists.images
        self.splits_source = lists.source
        self.splits_are_bundled = lists.bundled

    def add_image(self, image: str, split: str | None, where: str) -> None:
        """Put an image into a split; None is an image that belongs to no split.

        Args:
            image: The id of the image.
            split: ``train``, ``dev``, ``test`` or None.
            where: The file and line that say so, for the message.

        Raises:
            CaptioningError: ``split`` is something else, or the id has a NUL character or half a
                surrogate pair in it.
        """
        check_characters(image, f"{where}: the image's name")
        self.captions.setdefault(image, [])
        self.places.setdefault(image, where)
        if split is None:
            return
        known = next((known for known in SPLITS if known == split), None)
        if known is None:
            raise CaptioningError(
                f"{where}: the split {split!r} is not one of {', '.join(SPLITS)}."
            )
        self.splits.setdefault(known, []).append(image)

    def add_caption(self, image: str, caption: str, where: str) -> None:
        """Add a raw caption of an image; an empty one is noted in ``empty_captions``.

        Args:
            image: The id of the image.
            caption: The caption as it is in the file.
            where: The file and line that hold it, for messages.

        Raises:
            CaptioningError: the id or the caption has a NUL character or half a surrogate pair in
                it.
        """
        check_characters(image, f"{where}: the image's name")
        check_characters(caption, f"{where}: the caption")
        captions = self.captions.setdefault(image, [])
        stripped = caption.rstrip()
        if stripped:
            captions.append(stripped)
        else:
            self.empty_captions.append(where)


def check_characters(text: str, what: str) -> None:
    r"""Refuse what JSON can spell, but neither a file nor its name can hold: ``\0``, ``\ud83d``.

    Args:
        text: A name or a caption.
        what: The file, place and key, for the message.

    Raises:
        CaptioningError: the text has a NUL character or half a surrogate pair in it.
    """
    if "\0" in text:
        raise CaptioningError(f"{what} has a NUL character; remove it.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CaptioningError(f"{what} has a broken Unicode escape; correct it.") from error


class CorpusReader(ABC):
    """Reads data sets of one layout. It is built without arguments.

    ``data.root`` may also name a file. A reader is asked for the layout of that file first, and
    then for that of its folder, where the file has to be one that :meth:`detect` returns.

    Attributes:
        expects: The files that the layout consists of, for messages.
    """

    expects: ClassVar[str]

    @abstractmethod
    def detect(self, root: Path) -> list[Path]:
        """The caption files of this layout in a folder; empty where it has another layout.

        Args:
            root: A folder; or a file, which is the caption file itself.
        """

    @abstractmethod
    def read(self, root: Path, files: Sequence[Path], name: str) -> RawCorpus:
        """Read the data set.

        Args:
            root: The folder of the data set.
            files: What :meth:`detect` returned for it; at least one file.
            name: The data set's name, such as ``flickr8k``.

        Raises:
            CaptioningError: a file is malformed, or something that the layout needs is missing.
        """

    def read_cached(
        self, root: Path, files: Sequence[Path], name: str, cache: Path | None
    ) -> RawCorpus:
        """Like :meth:`read`, for layouts whose images have to be unpacked into files.

        Args:
            root: As for :meth:`read`.
            files: As for :meth:`read`.
            name: As for :meth:`read`.
            cache: The folder for what is unpacked; None is ``CAPTIONING_CACHE`` or
                ~/.cache/captioning.
        """
        del cache
        return self.read(root, files, name)
