"""Reading text, JSON and YAML that a user or a stranger made.

Every reader of such a file goes through these functions, so that whatever is in the file, the
result is its content or a :class:`CaptioningError` with its name and, where there is one, the line
or the key.
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from captioning.support.errors import CaptioningError

T = TypeVar("T")

# UTF-32 first, since its little-endian mark starts with that of UTF-16.
_OTHER_ENCODINGS = (
    ("UTF-32", codecs.BOM_UTF32_LE),
    ("UTF-32", codecs.BOM_UTF32_BE),
    ("UTF-16", codecs.BOM_UTF16_LE),
    ("UTF-16", codecs.BOM_UTF16_BE),
)


def load_document(path: str | os.PathLike[str]) -> str:
    r"""Read a whole UTF-8 text file; Windows line ends become ``\n``.

    Raises:
        CaptioningError: the file cannot be read, or is not UTF-8 text: it is UTF-16, for example,
            or it has a NUL character.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # a ValueError is a NUL character in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CaptioningError(f"{path}: cannot be read ({reason}).") from error
    for encoding, mark in _OTHER_ENCODINGS:
        if data.startswith(mark):
            raise CaptioningError(f"{path}: this is {encoding}; save the file as UTF-8.")
    try:
        text = data.decode("utf-8-sig")  # some editors put a byte order mark in front
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise CaptioningError(f"{path}:{line}: not UTF-8; save the file as UTF-8.") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise CaptioningError(
            f"{path}:{line}: it has a NUL character, so that it is damaged or UTF-16; save the "
            "file as UTF-8 text."
        )
    return text.replace("\r\n", "\n")


def load_lines(path: str | os.PathLike[str]) -> list[str]:
    r"""The lines of a file, which end at ``\n`` alone.

    ``str.splitlines`` also ends them at U+2028, U+0085, a form feed and others, which captions
    written by people contain.

    Raises:
        CaptioningError: as :func:`load_document`, or all lines end in ``\r``, as on old Macs.
    """
    text = load_document(path)
    if "\n" not in text and "\r" in text.rstrip():
        raise CaptioningError(
            f"{path}: its lines end in a carriage return alone, as on old Macs; save the file "
            "with the line ends of Unix or Windows."
        )
    return text.split("\n")


def numbered_lines(path: str | os.PathLike[str]) -> list[tuple[int, str]]:
    r"""The lines of a file that are not blank, with their numbers (from 1).

    Raises:
        CaptioningError: as :func:`load_lines`.
    """
    lines = enumerate(load_lines(path), start=1)
    return [(number, line) for number, line in lines if line.strip()]


def load_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        CaptioningError: the file cannot be read, or is not JSON.
    """
    return parse_json(load_document(path), path)


def parse_json(text: str, path: str | os.PathLike[str], line: int = 1) -> Any:
    """Parse JSON.

    Args:
        text: The JSON.
        path: The file that holds it, for messages.
        line: The line of the file on which it starts.

    Raises:
        CaptioningError: it is not JSON, is nested too deeply, or has a number of more digits than
            Python reads (4,300).
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line, reason = line + error.lineno - 1, f"{error.msg}, column {error.colno}"
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError:
        reason = "a number in it has more than 4,300 digits"
    raise CaptioningError(f"{path}:{line}: not JSON, or cut short ({reason}); write it again.")


def load_record(path: str | os.PathLike[str], validate: Callable[[str], T]) -> T:
    """Read a JSON file whose content has a type: a dataclass, a pydantic model or a dictionary.

    Args:
        path: The file.
        validate: Turns JSON into the type: the ``validate_json`` of a pydantic TypeAdapter.

    Raises:
        CaptioningError: the file cannot be read or is not JSON, or a key is missing or of another
            type; the message names the key.
    """
    return parse_record(load_document(path), validate, path)


def parse_record(text: str, validate: Callable[[str], T], path: str | os.PathLike[str]) -> T:
    """Parse JSON whose content has a type; see :func:`load_record`.

    Args:
        text: The JSON.
        validate: Turns JSON into the type: the ``validate_json`` of a pydantic TypeAdapter.
        path: The file that holds it, for messages.
    """
    try:
        return validate(text)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, problem["loc"])) or "the file"
        raise CaptioningError(f"{path}: {where}: {problem['msg']}.") from None


def load_yaml(path: str | os.PathLike[str]) -> Any:
    """Read a YAML or JSON file as plain data.

    Raises:
        CaptioningError: the file cannot be read, is not YAML, or has a tag or a value that stands
            for no plain data.
    """
    import yaml  # imported late, because only few commands need it

    text = load_document(path)
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}" if mark else ""
        reason = error.problem or error.context
    except Exception as error:  # a date such as 2026-02-30 raises ValueError, for example
        where, reason = "", str(error) or type(error).__name__
    raise CaptioningError(f"{path}{where}: neither YAML nor JSON: {' '.join(str(reason).split())}")
