"""Checks for parts of one's own: each raises an AssertionError that says what is wrong.

In a test of a new attention, decoder or objective::

    from captioning.testing import check_attention

    def test_my_attention():
        check_attention(MyAttention)
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "check_attention": "captioning.testing.attention",
    "check_decoder": "captioning.testing.decoder",
    "check_objective": "captioning.testing.objective",
}
"""Where each check comes from; they are imported when they are first used."""

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
