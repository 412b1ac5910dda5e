"""The cache folder of the package."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """The folder for downloads and features: ``$CAPTIONING_CACHE`` or ``~/.cache/captioning``.

    It may not exist yet. Everything in it can be downloaded or computed again.
    """
    configured = os.environ.get("CAPTIONING_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "captioning"
