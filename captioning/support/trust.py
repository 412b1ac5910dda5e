"""Which classes a checkpoint may name.

A checkpoint contains the dotted paths of its classes, and importing a module runs its code. Since
anybody can write a checkpoint, each path in it is checked before anything is imported. It may name
this package's own parts and torch's optimisers and schedules, classes of the packages that the user
trusts, and classes that the user's own configuration has named in this process.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from captioning.support.errors import CaptioningError

OFFERED: Final = (
    "captioning.decoding",
    "captioning.models",
    "captioning.objectives",
    "captioning.training.schedules",
    "torch.optim",
)
"""The modules and packages whose classes every checkpoint may name."""

_LONGEST_PATH: Final = 200  # characters

# The packages that are trusted while a checkpoint is loaded; None at any other time.
_trusted: ContextVar[tuple[str, ...] | None] = ContextVar("trusted", default=None)
_named_by_user: set[str] = set()


def packages(trust: str | Sequence[str] | None) -> tuple[str, ...]:
    """The packages of the setting ``trust``: one name, several with commas, a list, or None.

    Raises:
        CaptioningError: an entry is not the name of a package or of a module.
    """
    names = (trust or "").split(",") if trust is None or isinstance(trust, str) else trust
    found = tuple(name.strip() for name in names if name.strip())
    for name in found:
        if not all(part.isidentifier() for part in name.split(".")):
            raise CaptioningError(
                f"trust={name}: give the name of a Python package, such as my_package."
            )
    return found


@contextmanager
def classes_of_a_checkpoint(trust: Sequence[str]) -> Iterator[None]:
    """Within this context, :func:`check_trusted` allows only what a checkpoint may name.

    Args:
        trust: the packages that the user trusts.
    """
    token = _trusted.set(tuple(trust))
    try:
        yield
    finally:
        _trusted.reset(token)


def remember(path: str) -> None:
    """Remember a class that the user's own configuration names, after it was found to be a part.

    A checkpoint of this process may name it, too. Within :func:`classes_of_a_checkpoint`, nothing
    is remembered.
    """
    if _trusted.get() is None:
        _named_by_user.add(path)


def check_trusted(path: str, key: str) -> None:
    """Refuse the path of a class that a checkpoint may not name; imports nothing.

    Outside of :func:`classes_of_a_checkpoint`, the path is the user's own.

    Args:
        path: the dotted path of a class.
        key: the setting that names it, for messages.

    Raises:
        CaptioningError: a checkpoint names a class that it may not name.
    """
    trusted = _trusted.get()
    if trusted is None:
        return
    module, _, name = path.rpartition(".")
    if len(path) > _LONGEST_PATH or not all(
        part.isidentifier() for part in (*module.split("."), name)
    ):
        raise CaptioningError(f"{key}={path[:_LONGEST_PATH]!r} is not the dotted path of a class.")
    if path in _named_by_user or any(
        f"{module}.".startswith(f"{p}.") for p in (*OFFERED, *trusted)
    ):
        return
    package = module.partition(".")[0]
    if package == "captioning":
        raise CaptioningError(f"{key}={path} is not a part that captioning offers for it.")
    raise CaptioningError(
        f"{key}={path} is not a class of captioning, and importing it would run the code of "
        f"{package}: if you know that package and trust this checkpoint, give trust={package}."
    )
