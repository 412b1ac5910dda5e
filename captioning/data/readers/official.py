"""Flickr8k's official layout: ``Flickr8k.token.txt`` and three split lists.

``Flickr8k.token.txt`` and ``Flickr_8k.{train,dev,test}Images.txt`` are in ``Flickr8k_text/`` or
beside the image folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from captioning.data.descriptions import read_token_file
from captioning.data.readers.base import CorpusReader, RawCorpus
from captioning.data.readers.image_folders import find_image_folder
from captioning.data.splits import read_split_lists


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
        corpus = read_captions(files[0])
        corpus.use_lists(read_split_lists([files[0].parent], name, files[0]))
        corpus.files = find_image_folder(root)
        return corpus


def read_captions(path: Path) -> RawCorpus:
    """Read the captions of a token file, those of an image in the order of their numbers."""
    captions: dict[str, list[tuple[int, str]]] = {}
    corpus = RawCorpus()
    for line, image, number, caption in read_token_file(path):
        captions.setdefault(image, [])
        if caption:
            captions[image].append((number, caption))
        else:
            corpus.empty_captions.append(f"{path}:{line}")
    corpus.captions = {image: [text for _, text in sorted(of)] for image, of in captions.items()}
    return corpus
