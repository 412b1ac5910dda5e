"""Checks that a part implements its interface correctly, for tests of your own parts.

Each check raises an AssertionError whose message says what is wrong. A test of a new attention::

    from captioning.testing import check_attention

    def test_my_attention():
        check_attention(MyAttention)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captioning.testing.attention import check_attention
    from captioning.testing.decoder import check_decoder
    from captioning.testing.encoder import check_encoder
    from captioning.testing.objective import check_objective

_MODULES = {
    "check_attention": "captioning.testing.attention",
    "check_decoder": "captioning.testing.decoder",
    "check_encoder": "captioning.testing.encoder",
    "check_objective": "captioning.testing.objective",
}

__all__ = ["check_attention", "check_decoder", "check_encoder", "check_objective"]


def __getattr__(name: str) -> Any:
    """Import a check when it is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
