"""The folder of a data set: the one that was given, or one that is filled on first use."""

from pathlib import Path

from captioning.data.download import download_flickr8k
from captioning.data.scenes import make_scenes
from captioning.support.errors import CaptioningError
from captioning.support.paths import cache_dir


def cache_folder(cache: str | None) -> Path:
    """The folder of ``data.cache``: None is ``CAPTIONING_CACHE`` or ~/.cache/captioning."""
    return Path(cache).expanduser() if cache else cache_dir()


def ensure_data_folder(root: str | None, name: str, cache: str | None) -> Path:
    """Return the folder of a data set, after downloading or drawing the data set if need be.

    Args:
        root: the folder as the user gave it. None means a folder in the cache, to which Flickr8k is
            downloaded, or in which the ``scenes`` are drawn, unless they are there already.
        name: the data set's name.
        cache: as in :func:`cache_folder`.

    Raises:
        CaptioningError: no folder was given, and this data set can be neither downloaded nor drawn;
            or the download failed.
    """
    if root is not None and not root.strip():
        raise CaptioningError("data.root is empty: give the folder of a data set, or leave it out.")
    if root:
        return Path(root).expanduser()
    if name == "scenes":
        return make_scenes(cache_folder(cache))
    if name != "flickr8k":
        raise CaptioningError(
            "data.root is missing: give the folder or the captions file of the data set."
        )
    return download_flickr8k(cache_folder(cache) / "flickr8k")
