"""Flickr8k's official layout: ``Flickr8k.token.txt`` and three split lists.

``Flickr8k.token.txt`` and ``Flickr_8k.{train,dev,test}Images.txt`` are in ``Flickr8k_text/`` or
beside the image folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from captioning.data.readers.base import CorpusReader, RawCorpus
from captioning.data.readers.image_folders import find_image_folder
from captioning.data.splits import read_split_lists
from captioning.data.text import read_token_file


class OfficialReader(CorpusReader):
    """Reads the layout of the archives that Flickr8k's authors distribute."""

    expects = (
        "Flickr8k_text/Flickr8k.token.txt, Flickr8k_text/Flickr_8k.{train,dev,test}Images.txt and "
        "Flicker8k_Dataset/"
    )

    def detect(self, root: Path) -> list[Path]:
        patterns = ("Flickr8k_text/Flickr8k.token.txt", "Flickr8k.token.txt")
        return [path for pattern in patterns for path in sorted(root.glob(pattern))]

    def read(self, root: Path, files: Sequence[Path], name: str) -> RawCorpus:
        path = files[0]
        captions: dict[str, list[tuple[int, str]]] = {}
        empty = []
        for line, image, number, caption in read_token_file(path):
            captions.setdefault(image, [])
            if caption:
                captions[image].append((number, caption))
            else:
                empty.append(f"{path}:{line}")
        lists = read_split_lists([path.parent], name)
        return RawCorpus(
            captions={
                image: [text for _, text in sorted(texts)] for image, texts in captions.items()
            },
            splits=lists.images,
            files=find_image_folder(root),
            empty_captions=empty,
            splits_source=lists.source,
            splits_are_bundled=lists.bundled,
        )
