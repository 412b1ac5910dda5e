"""Flickr30k's own layout: ``results_20130124.token``, in the format of Flickr8k's token file.

It has no splits, which come from lists beside it
(:func:`captioning.data.splits.read_split_lists`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from captioning.data.readers.base import CorpusReader, RawCorpus
from captioning.data.readers.image_folders import find_image_folder
from captioning.data.readers.official import read_captions
from captioning.data.splits import read_split_lists


class Flickr30kReader(CorpusReader):
    """Reads the layout of the archive that Flickr30k's authors distribute."""

    expects = "results_20130124.token, split lists and flickr30k-images/"

    def detect(self, root: Path) -> list[Path]:
        return sorted(root.glob("results_*.token"))

    def read(self, root: Path, files: Sequence[Path], name: str) -> RawCorpus:
        corpus = read_captions(files[0])
        corpus.use_lists(read_split_lists([root], name, files[0]))
        corpus.files = find_image_folder(root)
        return corpus
