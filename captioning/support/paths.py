"""The cache folder of the package."""

import os
from pathlib import Path

from captioning.support.errors import CaptioningError


def cache_dir() -> Path:
    """The folder for downloads and features: ``$CAPTIONING_CACHE`` or ``~/.cache/captioning``.

    It may not exist yet. Everything in it can be downloaded or computed again.

    Raises:
        CaptioningError: the user has no home folder.
    """
    configured = os.environ.get("CAPTIONING_CACHE")
    try:
        if configured:
            return Path(configured).expanduser()
        return Path.home() / ".cache" / "captioning"
    except RuntimeError as error:
        raise CaptioningError(
            f"The cache has no place ({error}): set CAPTIONING_CACHE to a folder in which you may "
            "write."
        ) from error
