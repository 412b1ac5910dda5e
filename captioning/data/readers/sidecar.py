"""A folder of images, each with a text file of the same name that holds its captions.

``IMG_2041.jpg`` has its captions in ``IMG_2041.txt``, one a line. Folders that are named after the
splits (``train``, ``val`` or ``dev``, ``test``) say the split of the images in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from captioning.data.image_files import visible_files
from captioning.data.names import composed
from captioning.data.readers.base import CorpusReader, RawCorpus
from captioning.data.readers.image_folders import is_image_name
from captioning.data.splits import split_named
from captioning.support.errors import CaptioningError
from captioning.support.reading import numbered_lines

_TEXTS = (".txt", ".caption")


class SidecarReader(CorpusReader):
    """Reads a folder of images with a text file beside each of them."""

    expects = "images, each with its captions in a .txt file of the same name"

    def detect(self, root: Path) -> list[Path]:
        if not root.is_dir():
            return []
        found = sorted(visible_files(root))
        images = {path.with_suffix("") for path in found if is_image_name(path.name)}
        texts = (path for path in found if path.suffix.lower() in _TEXTS)
        return [path for path in texts if path.with_suffix("") in images]

    def read(self, root: Path, files: Sequence[Path], name: str) -> RawCorpus:
        corpus = RawCorpus(splits_source=str(root))
        images: dict[Path, list[Path]] = {}
        for path in visible_files(root):
            if is_image_name(path.name):
                images.setdefault(path.with_suffix(""), []).append(path)
                corpus.files[composed(path.relative_to(root).as_posix())] = path
        for file in files:
            beside = images[file.with_suffix("")]
            if len(beside) > 1:
                raise CaptioningError(
                    f"{file}: it may belong to {beside[0].name} or {beside[1].name}: rename one."
                )
            image = composed(beside[0].relative_to(root).as_posix())
            if image in corpus.captions:
                raise CaptioningError(f"{file}: {image} has captions in another file, too.")
            corpus.add_image(image, split_named(Path(image).parts[0]), f"{file}:1")
            lines = numbered_lines(file)
            for number, line in lines or [(1, "")]:
                corpus.add_caption(image, line.strip(), f"{file}:{number}")
        return corpus
