"""What the grids of a feature store depend on: ``meta.json``, and the name of the folder."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from captioning.data.views import ORIGINAL, View
from captioning.models.encoders.base import Encoder
from captioning.support.errors import CaptioningError
from captioning.support.files import atomic_write_json

_FORMAT: Final = 2


def store_folder(directory: Path, encoder: Encoder, view: View = ORIGINAL) -> Path:
    """The folder of a store; other weights, another preprocessing or view have another folder."""
    return directory / _folder_name(identity_of(encoder, view))


def identity_of(encoder: Encoder, view: View) -> dict[str, Any]:
    """Everything that a grid depends on, as it is written into ``meta.json``."""
    # Stores of the original are as they were before there were views.
    part = {"view": {"box": list(view.box), "mirrored": view.mirrored}}
    return {
        "format": _FORMAT,
        "encoder": encoder.name,
        "weights": encoder.fingerprint,
        "preprocessing": asdict(encoder.preprocessing),
        "locations": encoder.locations,
        "channels": encoder.channels,
        "dtype": "float16",
        **({} if view.is_original else part),
    }


def _folder_name(identity: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return f"{identity['encoder']}-{digest[:12]}"


def damaged(folder: Path, what: str) -> CaptioningError:
    """The error that a store cannot be used any more."""
    return CaptioningError(
        f"The feature store {folder} is damaged ({what}): delete that folder, and it is built anew."
    )


def read_meta(folder: Path) -> dict[str, Any]:
    """Read ``meta.json``, and check that the name of the folder is made from it.

    Raises:
        CaptioningError: it is missing or damaged.
    """
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        identity = {key: value for key, value in meta.items() if key != "precisions"}
        intact = folder.name == _folder_name(identity) and meta["format"] == _FORMAT
    except FileNotFoundError:
        raise damaged(folder, "it has no meta.json") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise damaged(folder, "its meta.json does not describe it")
    result: dict[str, Any] = meta
    return result


def write_meta(folder: Path, identity: Mapping[str, Any], precision: str) -> None:
    """Add the precision of the grids that are about to be computed to ``meta.json``."""
    path = folder / "meta.json"
    before = read_meta(folder)["precisions"] if path.exists() else []
    if precision not in before:
        atomic_write_json(path, {**identity, "precisions": [*before, precision]})
