"""Where a data set is: in the folder that was given, or made or fetched on first use."""

from pathlib import Path

from captioning.data.download import download_flickr8k
from captioning.data.scenes import make_scenes
from captioning.support.errors import CaptioningError
from captioning.support.paths import cache_dir


def cache_folder(cache: str | None) -> Path:
    """The folder of ``data.cache``: None is ``CAPTIONING_CACHE`` or ~/.cache/captioning."""
    return Path(cache).expanduser() if cache else cache_dir()


def data_folder(root: str | None, name: str, cache: str | None) -> Path:
    """The folder of a data set.

    Args:
        root: as the user gave it; None looks in the cache, where Flickr8k is downloaded to and
            scenes are drawn.
        name: of the data set.
        cache: as in :func:`cache_folder`.

    Raises:
        CaptioningError: no folder was given for a data set that cannot be made or fetched.
    """
    if root:
        return Path(root).expanduser()
    if name == "scenes":
        return make_scenes(cache_folder(cache))
    if name != "flickr8k":
        raise CaptioningError(f"data.root is missing: give the folder of {name}.")
    return download_flickr8k(cache_folder(cache) / "flickr8k")
