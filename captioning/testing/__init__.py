"""Checks of the contracts between parts, for the tests of your own parts as for this package's.

Each raises an AssertionError whose message says what is wrong.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captioning.testing.encoder import check_encoder as check_encoder

_MODULES = {
    "check_encoder": "captioning.testing.encoder",
}


def __getattr__(name: str) -> Any:
    """Import a check when it is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
