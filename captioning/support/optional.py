"""A quicker start: optional packages of other libraries that no part of a run needs.

Lightning imports torchmetrics, which imports every optional package that it finds. Of these,
transformers (installed for CLIPScore, which imports it itself) takes a fifth of all imports.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import Distribution, PackageNotFoundError
from typing import Any, Final
from unittest.mock import patch

_OWN: Final = ("captioning.", "pytorch_lightning.", "torch.")


@contextmanager
def as_if_not_installed(*names: str) -> Iterator[None]:
    """Within the block, :mod:`importlib.metadata` does not find these packages.

    They can still be imported by those who do not ask it first.
    """
    find = Distribution.from_name

    # What is found need not be a Distribution: the backport importlib_metadata has its own class.
    def from_name(name: str) -> Any:
        if name in names:
            raise PackageNotFoundError(name)
        return find(name)

    with patch.object(Distribution, "from_name", from_name):
        yield


def import_lightning(settings: Mapping[str, Any]) -> None:
    """Import Lightning, and transformers with it only if a part of the user's might need it.

    Args:
        settings: the configuration of the run. A class from outside of this package, a metric of
            the user's or a trusted package may need torchmetrics' metrics that use transformers.
    """
    foreign = settings.get("extra_metrics") or settings.get("trust") or has_foreign_class(settings)
    with as_if_not_installed(*(() if foreign else ("transformers",))):
        import pytorch_lightning  # noqa: F401


def has_foreign_class(settings: Any) -> bool:
    """Whether a ``_target_`` at any depth is neither of this package nor of torch or Lightning."""
    if isinstance(settings, Mapping):
        target = settings.get("_target_")
        foreign = isinstance(target, str) and not target.startswith(_OWN)
        return foreign or any(map(has_foreign_class, settings.values()))
    return isinstance(settings, list) and any(map(has_foreign_class, settings))
