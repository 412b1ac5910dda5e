"""How the commands that need no Hydra end."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from captioning.support.errors import CaptioningError
from captioning.support.files import naming_disk_faults


def status_of(command: Callable[[], int | None], output: Path | None = None) -> int:
    """Run a command; a mistake of the user ends it with one sentence on stderr and status 1.

    Args:
        command: the work; it may return an exit status of its own, and None is 0.
        output: the file or folder that it writes, for the message of a full or read-only disk.
    """
    try:
        with naming_disk_faults(output) if output is not None else nullcontext():
            return command() or 0
    except CaptioningError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
