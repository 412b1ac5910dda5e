"""Which reader a layout means: the name of one of ours, or the dotted path of a user's own."""

from __future__ import annotations

from pathlib import Path

from captioning.data.readers.base import CorpusReader
from captioning.data.readers.flickr30k import Flickr30kReader
from captioning.data.readers.kaggle import KaggleReader
from captioning.data.readers.karpathy import KarpathyReader
from captioning.data.readers.official import OfficialReader
from captioning.support.build import import_class
from captioning.support.errors import CaptioningError

READERS: dict[str, CorpusReader] = {
    "official": OfficialReader(),
    "karpathy": KarpathyReader(),
    "kaggle": KaggleReader(),
    "flickr30k": Flickr30kReader(),
}
"""The readers by the name of their layout, in the order in which ``auto`` prefers them."""

LAYOUTS = tuple(READERS)
"""The names of the layouts."""

LAYOUTS_UNDERSTOOD = "layouts understood: " + ", ".join(
    f"{layout} ({reader.expects})" for layout, reader in READERS.items()
)
"""The layouts and their files, for messages."""


def find_layouts(root: str | Path) -> tuple[str, ...]:
    """The layouts whose caption file is in ``root``, best first; empty where there is no data."""
    root = Path(root).expanduser()
    return tuple(layout for layout, reader in READERS.items() if reader.detect(root))


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
