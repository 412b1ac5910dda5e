"""The checkpoints that a resumed run remembers, where the run's folder has been moved."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

log = logging.getLogger(__name__)


def find_moved_checkpoints(checkpoint: dict[str, Any], callbacks: Sequence[pl.Callback]) -> None:
    """Correct the paths in a checkpoint to the files that a run has kept.

    Lightning forgets the best score if the folder of the checkpoints has another name than before,
    and then overwrites the best checkpoint. Here, each kept file is looked for by its name in the
    folder in which the callback now writes, and then where it was. The best checkpoint is forgotten
    only if it is in neither, which is reported in the log.

    Args:
        checkpoint: what the file of the checkpoint holds; the states of its callbacks are changed.
        callbacks: the callbacks of the trainer, whose folders are known.
    """
    states = checkpoint.get("callbacks", {})
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
            state = states.get(callback.state_key)
            if state and "dirpath" in state:
                states[callback.state_key] = _corrected(state, callback, Path(callback.dirpath))


def _corrected(state: dict[str, Any], callback: ModelCheckpoint, folder: Path) -> dict[str, Any]:
    """The state of a callback that writes into this folder."""
    best = _find(state["best_model_path"], folder)
    if state["best_model_path"] and not best:
        log.warning(
            "The checkpoint %s is neither there nor in %s: the next one is kept in its place, "
            "whatever its score.",
            *(state["best_model_path"], folder),
        )
    kept = {_find(path, folder): score for path, score in state["best_k_models"].items()}
    kept.pop("", None)
    worst = (max if callback.mode == "min" else min)(kept, key=lambda path: kept[path], default="")
    return state | {
        "dirpath": callback.dirpath,
        "best_model_path": best,
        "best_model_score": state["best_model_score"] if best else None,
        "best_k_models": kept,
        "kth_best_model_path": worst,
        "kth_value": kept.get(worst, callback.kth_value),
        "last_model_path": _find(state["last_model_path"], folder),
    }


def _find(path: str, folder: Path) -> str:
    """The file of that name in the folder, or else at its own place; empty if it is at neither."""
    places = (folder / Path(path).name, Path(path)) if path else ()
    return next((str(place) for place in places if place.is_file()), "")
