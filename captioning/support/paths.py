"""Where the package keeps what it can make or fetch again."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """The folder of fetched weights and the like: ``$CAPTIONING_CACHE`` or ``~/.cache/captioning``.

    It may not exist yet; everything in it may be deleted at any time.
    """
    configured = os.environ.get("CAPTIONING_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "captioning"
