"""Which reader a layout means: the name of one of ours, or the dotted path of a user's own."""

from __future__ import annotations

from pathlib import Path

from captioning.data.readers.base import CorpusReader
from captioning.data.readers.flickr30k import Flickr30kReader
from captioning.data.readers.huggingface import HuggingFaceReader
from captioning.data.readers.kaggle import KaggleReader
from captioning.data.readers.karpathy import KarpathyReader
from captioning.data.readers.official import OfficialReader
from captioning.data.readers.sidecar import SidecarReader
from captioning.data.readers.table import TableReader
from captioning.support.build import import_class
from captioning.support.errors import CaptioningError

READERS: dict[str, CorpusReader] = {
    "official": OfficialReader(),
    "karpathy": KarpathyReader(),
    "kaggle": KaggleReader(),
    "flickr30k": Flickr30kReader(),
    "huggingface": HuggingFaceReader(),
    "table": TableReader(),
    "sidecar": SidecarReader(),
}
"""The readers by the name of their layout, in the order in which ``auto`` prefers them."""

OF_ANYBODY = ("huggingface", "table", "sidecar")
"""The layouts of anybody's data, which are looked for if there is none of the others."""

LAYOUTS = tuple(READERS)
"""The names of the layouts."""

LAYOUTS_UNDERSTOOD = "layouts understood: " + ", ".join(
    f"{layout} ({reader.expects})" for layout, reader in READERS.items()
)
"""The layouts and their files, for messages."""


def find_layouts(root: str | Path) -> tuple[str, ...]:
    """The layouts of a folder or file, best first; empty where there is no data."""
    root = Path(root).expanduser()
    published = [layout for layout in READERS if layout not in OF_ANYBODY]
    for layouts in (published, OF_ANYBODY):
        found = tuple(layout for layout in layouts if files_of(READERS[layout], root))
        if found:
            return found
    return ()


def files_of(reader: CorpusReader, root: Path) -> list[Path]:
    """The caption files of a layout in a folder; of a file, the file itself or none."""
    found = reader.detect(root)
    if root.is_dir() or found:
        return found
    return [file for file in reader.detect(root.parent) if file == root]


def find_reader(layout: str) -> CorpusReader:
    """The reader of a layout.

    Args:
        layout: A name in :data:`READERS`, or the dotted path of a subclass of
            :class:`~captioning.data.readers.base.CorpusReader`.

    Raises:
        CaptioningError: there is no such layout or class, or the class is not a reader.
    """
    if layout in READERS:
        return READERS[layout]
    if not layout.rpartition(".")[0]:
        raise CaptioningError(
            f"data.layout={layout} is not known; choose auto, {', '.join(LAYOUTS)}, or the dotted "
            "path of a CorpusReader."
        )
    return import_class(layout, CorpusReader, "data.layout")()
