"""Where a model is: in a file, in a folder, in this package or on the Hugging Face hub.

This module needs no torch, so that a mistyped name is reported at once.
"""

import re
from pathlib import Path
from typing import Final

from captioning.support.checkpoint_file import check_file
from captioning.support.errors import CaptioningError
from captioning.support.nearest import did_you_mean

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
VOCABULARY: Final = "vocabulary.json"
CARD: Final = "README.md"
LICENCE: Final = "LICENSE.md"

DEFAULT: Final = "flickr8k-vgg16-attn"
"""The model that captions photographs where no other one is named."""

HUB: Final = "hf://"
"""What the name of a model on the Hugging Face hub begins with: ``hf://OWNER/NAME``."""

_PACKAGE: Final = Path(__file__).parent
_OF_HUB: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def shipped() -> list[str]:
    """The names of the models that come with the package."""
    return sorted(path.parent.name for path in _PACKAGE.glob(f"*/{CONFIG}"))


def hub_name(model: str) -> str | None:
    """The ``OWNER/NAME`` of ``hf://OWNER/NAME``; None for anything else."""
    name = model.removeprefix(HUB)
    return name if name != model and _OF_HUB.fullmatch(name) else None


def find_model(model: str | Path, key: str = "ckpt") -> Path:
    """The file or folder of a model; one on the hub is fetched into the hub's cache.

    Args:
        model: a checkpoint file; a folder with ``config.json`` and ``model.safetensors``; the name
            of a model of this package; or ``hf://OWNER/NAME``. A file or folder comes first.
        key: the setting that names it, for messages.

    Raises:
        CaptioningError: there is no such model.
    """
    path = Path(model)
    if isinstance(model, str):
        name = hub_name(model)
        if name is not None:
            from captioning.pretrained.hub import download

            return download(name, key=key)
        if model in shipped() and not _exists(path):
            return _PACKAGE / model
    if _exists(path / CONFIG):
        for part in (CONFIG, WEIGHTS, VOCABULARY):
            if not (path / part).is_file():
                raise CaptioningError(
                    f"{key}={path}: this folder has {CONFIG} and no file {part}, so that it is no "
                    "model that was exported."
                )
        return path
    suggestion = did_you_mean(path.name, shipped()) if len(path.parts) == 1 else ""
    if suggestion and not _exists(path):
        raise CaptioningError(f"{key}={path}: no such file and no such model; {suggestion}")
    check_file(path, key)
    return path


def find_pretrained(model: str | Path, revision: str | None = None) -> Path:
    """Like :func:`find_model`, and ``OWNER/NAME`` is on the hub unless there is a folder OWNER.

    Args:
        model: as for :func:`find_model`.
        revision: a branch, tag or commit of a model on the hub.

    Raises:
        CaptioningError: there is no such model.
    """
    name = hub_name(str(model)) or str(model)
    is_local = name == str(model) and _exists(Path(name).parent)
    if isinstance(model, str) and _OF_HUB.fullmatch(name) and not is_local:
        from captioning.pretrained.hub import download

        return download(name, revision, "model")
    if revision is not None:
        raise CaptioningError(
            f"revision={revision} is of a model on the Hugging Face hub, and {model} is none."
        )
    return find_model(model, "model")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or has a NUL character
        return False


def size_of(place: Path) -> int:
    """The bytes of the weights of what :func:`find_model` has found."""
    return (place / WEIGHTS if place.is_dir() else place).stat().st_size
