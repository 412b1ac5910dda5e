"""Names of files on the command line, which Hydra's grammar would read as something else."""

import os
import re
import sys
from collections.abc import Sequence

from captioning.cli.overrides import quoted


def take_literally(*keys: str, lists: Sequence[str] = ()) -> None:
    """Quote the values of these keys in ``sys.argv``, so that Hydra reads them as plain strings.

    Hydra's grammar rejects file names with a comma, a bracket, ``=`` or an umlaut, and reads a
    folder called 2024 as a number. ``~`` is expanded to the user's home, since shells do not expand
    it after ``key=``. ``null`` and values that are already quoted stay unchanged. A multirun is not
    changed at all, because there a comma separates values to sweep over. Call this function before
    Hydra reads ``sys.argv``.

    Args:
        keys: the keys.
        lists: those among them whose value may also be a list, ``[A,B,C]``, unless there is a file
            of that name. Its items are taken literally in the same way; see :func:`items_of`.
    """
    if {"-m", "--multirun"} & set(sys.argv):
        return
    # Hydra reads such a path, and a word that is none of its constants, as a string in any case.
    path, constant = r"[\w.-]*/[\w./-]*", "null|true|false|nan|inf"
    understood = re.compile(rf"{path}|(?!(?i:{constant})\Z)[A-Za-z_][\w.-]*", re.ASCII)
    in_quotes = re.compile(r"""(["'])(?:\\.|(?!\1).)*\1""", re.DOTALL)
    for position, argument in enumerate(sys.argv):
        key, _, value = argument.partition("=")
        if key not in keys or value == "null":
            continue
        is_list = key in lists and value[:1] == "[" and value[-1:] == "]"
        if is_list and not os.path.exists(value):  # noqa: PTH110  Path.exists raises for a long name
            given = items_of(value[1:-1])
            items = [each if in_quotes.fullmatch(each) else _literal(each) for each in given]
            sys.argv[position] = f"{key}=[{','.join(items)}]"
        elif not (in_quotes.fullmatch(value) or understood.fullmatch(value)):
            sys.argv[position] = f"{key}={_literal(value)}"


def _literal(value: str) -> str:
    return quoted(os.path.expanduser(value))  # noqa: PTH111  Path.expanduser raises for an unknown user


def items_of(text: str) -> list[str]:
    """The items of a list of files, whose names may have commas, as those of a sweep's jobs have.

    An item in quotes ends with its quote. Any other item ends at the first comma at which it is the
    name of a file, or, if there is none, at the next comma.
    """
    # Pieces in quotes stay whole.
    pieces = re.findall(r"""\s*(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')\s*(?=,|\Z)|[^,]+""", text)
    items = []
    while pieces:
        joined = [",".join(pieces[:count]).strip() for count in range(1, len(pieces) + 1)]
        count = next((n for n, name in enumerate(joined, start=1) if _is_file(name)), 1)
        items.append(joined[count - 1])
        del pieces[:count]
    return [item for item in items if item]


def _is_file(name: str) -> bool:
    return os.path.isfile(os.path.expanduser(name))  # noqa: PTH111, PTH113  Path raises for some names
