"""The source files of classes from outside of the package, by which runs of edited code differ."""

import hashlib
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_DIGITS = 12
_INSTALLED = {
    "site-packages",
    "dist-packages",
    f"python{sys.version_info[0]}.{sys.version_info[1]}",
}


def own_code(*settings: Any, start: Path | None = None) -> dict[str, str]:
    """The classes that settings name, and what their files hold.

    Those of this package and of installed ones are left out, as a run records their versions.
    Nothing is imported, and files that these files import are not read.

    Args:
        settings: plain data, in which any text may be the dotted path of a class.
        start: the folder in which the command was given; None: the current one.

    Returns:
        The first digits of SHA-256 of the file of each class, by its dotted path.
    """
    found: dict[str, str] = {}
    for path in sorted(set(_texts(settings))):
        file = _file_of(path, start or Path.cwd())
        if file is not None:
            found[path] = hashlib.sha256(file.read_bytes()).hexdigest()[:_DIGITS]
    return found


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _file_of(path: str, start: Path) -> Path | None:
    """The file of the module of a class; None if there is none with such a name in it."""
    *module, name = path.split(".")
    if not module or module[0] == "captioning" or not path.replace(".", "").isidentifier():
        return None
    for folder in (start, *map(Path, sys.path)):
        place = folder.joinpath(*module)
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                if _INSTALLED & set(file.parts):
                    return None
                return file if re.search(rf"\b{name}\b".encode(), file.read_bytes()) else None
    return None
