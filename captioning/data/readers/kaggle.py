"""Kaggle's layout: ``captions.txt``, a CSV file with the columns ``image,caption``.

It has no splits. Flickr8k's official ones come with this package; other data sets need the lists of
the official layout beside it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from captioning.data.readers.base import CorpusReader, RawCorpus
from captioning.data.readers.image_folders import find_image_folder
from captioning.data.splits import read_split_lists
from captioning.data.text import load_document
from captioning.support.errors import CaptioningError


class KaggleReader(CorpusReader):
    """Reads the layout of Kaggle's copies of Flickr8k and Flickr30k."""

    expects = "captions.txt and Images/"

    def detect(self, root: Path) -> list[Path]:
        return sorted(root.glob("captions.txt"))

    def read(self, root: Path, files: Sequence[Path], name: str) -> RawCorpus:
        corpus = RawCorpus()
        _read_captions(files[0], corpus)
        lists = read_split_lists([root, root / "Flickr8k_text"], name)
        corpus.splits = lists.images
        corpus.splits_source = lists.source
        corpus.splits_are_bundled = lists.bundled
        corpus.files = find_image_folder(root)
        return corpus


def _read_captions(path: Path, corpus: RawCorpus) -> None:
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
            corpus.add_caption(row[0].strip(), row[1], f"{path}:{rows.line_num}")
    except csv.Error as error:
        raise CaptioningError(f"{path}:{rows.line_num}: malformed CSV ({error}).") from error
