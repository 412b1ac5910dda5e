"""Example of a new data layout: a file of JSON lines beside a folder of images.

``captions.jsonl`` has a line for each image, whose file is in ``images/``::

    {"image": "1.jpg", "captions": ["a dog", "a brown dog"], "split": "train"}

python train.py --config-dir examples/conf data=json_lines data.root=FOLDER
"""

import json
from collections.abc import Sequence
from pathlib import Path

from captioning.data.readers.base import CorpusReader, RawCorpus
from captioning.data.readers.image_folders import find_image_folder
from captioning.support.errors import CaptioningError
from captioning.support.reading import numbered_lines


class JsonLinesReader(CorpusReader):
    """Reads a folder with ``captions.jsonl`` and ``images/``.

    The corpus checks afterwards that images, captions and splits are consistent.
    """

    expects = "captions.jsonl and images/"

    def detect(self, root: Path) -> list[Path]:
        """The files that hold captions, if the folder has this layout."""
        return sorted(root.glob("captions.jsonl"))

    def read(self, root: Path, files: Sequence[Path], name: str) -> RawCorpus:
        """Captions, splits and image files.

        Raises:
            CaptioningError: a line does not have the format above, or there is no folder of images.
        """
        path = files[0]
        corpus = RawCorpus(files=find_image_folder(root), splits_source=str(path))
        for number, line in numbered_lines(path):
            where = f"{path}:{number}"
            image, captions, split = parse(line, where)
            corpus.add_image(image, split, where)
            for caption in captions:
                corpus.add_caption(image, caption, where)
        return corpus


def parse(line: str, where: str) -> tuple[str, list[str], str]:
    """Image, captions and split of a line.

    Raises:
        CaptioningError: the line is not JSON, or a value is missing or of the wrong type.
    """
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:  # also a huge number, or brackets without end
        raise CaptioningError(f"{where}: not JSON ({error}).") from error
    match entry:
        case {"image": str(image), "captions": [*captions], "split": str(split)} if all(
            isinstance(caption, str) for caption in captions
        ):
            return image, captions, split
    raise CaptioningError(
        f'{where}: expected {{"image": "1.jpg", "captions": ["a dog", ...], "split": "train"}}, '
        f"found {line[:60]!r}."
    )
