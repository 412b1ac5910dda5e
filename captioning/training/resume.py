"""From which checkpoint a run can be resumed."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException

from captioning.captioner import Captioner
from captioning.checkpoints import (
    check_can_go_on,
    first_difference,
    has_trained_encoder,
    read_checkpoint,
    restoring,
)
from captioning.support.errors import CaptioningError
from captioning.training.initialization import take_encoder
from captioning.training.resumable_settings import check_same_settings

log = logging.getLogger(__name__)


def check_resumable(path: Path, captioner: Captioner) -> None:
    """Check that a checkpoint fits a run, before features are extracted and training starts.

    A checkpoint that was saved within an epoch is accepted with a warning.

    Args:
        path: the checkpoint.
        captioner: the captioner that would be trained from it, whose ``run`` has the configuration.

    Raises:
        CaptioningError: the file is not a checkpoint, has weights alone, its run had settings that
            may not change, or its captioner has another vocabulary, encoder or model, or was
            trained on other data.
    """
    checkpoint = read_checkpoint(path, "resume")
    check_can_go_on(checkpoint, f"resume={path}")
    run = checkpoint.get("run") or {}
    if run.get("config"):
        check_same_settings(run["config"], captioner.run["config"], f"resume={path}")
    if checkpoint["hyper_parameters"]["vocabulary"] != captioner.vocabulary.to_list():
        raise CaptioningError(
            f"resume={path}: that run has another vocabulary "
            f"({len(checkpoint['hyper_parameters']['vocabulary'])} words) than this data gives "
            f"({len(captioner.vocabulary.words)}): use the same data and the same data.min_count, "
            "data.max_size and data.cleaner."
        )
    if run.get("data", captioner.run.get("data")) != captioner.run.get("data"):
        raise CaptioningError(
            f"resume={path}: that run was trained on other images, captions or splits than are in "
            "data.root now: use the same data, or start a new run."
        )
    saved = checkpoint["encoder"]
    if saved["state_dict"] and captioner.run["config"].get("init_from"):
        with restoring(f"resume={path}", path.stat().st_size):
            take_encoder(captioner, saved["state_dict"], saved["weights_source"])
    frozen = not has_trained_encoder(checkpoint)
    if frozen and saved["fingerprint"] != captioner.encoder.fingerprint:
        raise CaptioningError(
            f"resume={path}: that run has another encoder than {captioner.encoder.name} with "
            f"weights from {captioner.encoder.weights_source}: use the same encoder."
        )
    different = first_difference(captioner.state_dict(), checkpoint["state_dict"])
    if different is not None:
        raise CaptioningError(
            f"resume={path}: that run has another model ({different} differs): use the "
            "same model.* settings."
        )
    if is_within_epoch(checkpoint):
        log.warning(
            "%s was saved within an epoch. Training goes on from its weights, but not exactly as "
            "without the interruption: Lightning starts the order of the images again.",
            path,
        )


def is_within_epoch(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was saved before the last step of an epoch."""
    try:
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        return not progress["is_last_batch"]
    except (KeyError, TypeError):  # of other software
        return False


def checkpoint_to_resume(folder: Path) -> Path | None:
    """The checkpoint from which the run in a folder continues by itself.

    It is ``last.ckpt``. If that one is damaged, it is the ``best.ckpt`` of an earlier version of
    this package, which kept the state of the optimiser in both. None means that the run starts
    again, since no whole checkpoint has that state. Both are reported in the log.
    """
    found: list[str] = []
    for name in ("last.ckpt", "best.ckpt"):
        path = folder / "checkpoints" / name
        if not path.is_file():
            continue
        try:
            check_can_go_on(read_checkpoint(path), f"ckpt={path}")
        except CaptioningError as error:
            found.append(str(error))
            continue
        if found:
            log.warning("%s The run continues from %s.", found[0], path)
        return path
    if found:
        log.warning("%s The run starts again from its beginning.", found[0])
    return None


class _Restored(pl.Callback):
    """Notes that everything was restored from the checkpoint, and checks the kinds of its numbers.

    torch takes any state, and fails in the middle of the next step.
    """

    done = False

    def on_fit_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.before = _numbers(trainer)

    def on_sanity_check_start(self, *_: Any) -> None:
        self.done = True

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        for before, after in zip(self.before, _numbers(trainer), strict=True):
            wrong = [name for name, kind in before.items() if after.get(name) != kind]
            if wrong:
                raise TypeError(f"{wrong[0]} of the optimiser or the schedule is missing or odd")
        self.done = True


def _numbers(trainer: pl.Trainer) -> list[dict[str, type]]:
    """The kind of each number, and list of numbers, in the states of optimisers and schedules."""
    states = [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]
    states += [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    return [
        {
            name: float if isinstance(value, int) else type(value)
            for name, value in state.items()
            if isinstance(value, int | float | list)
        }
        for state in states
    ]


@contextmanager
def explaining_restore_errors(trainer: pl.Trainer, resume: str | None) -> Iterator[None]:
    """Turn any error while a Trainer restores a checkpoint into one sentence.

    Raises:
        CaptioningError: the states of the optimiser, the loops or the callbacks do not fit.
    """
    restored = _Restored()
    trainer.callbacks.insert(0, restored)  # type: ignore[attr-defined]
    try:
        yield
    except (CaptioningError, MisconfigurationException):
        raise
    except Exception as error:
        if resume is None or restored.done:
            raise
        raise CaptioningError(
            f"resume={resume}: training cannot go on from this checkpoint "
            f"({type(error).__name__}: {error})."
        ) from error
    finally:
        trainer.callbacks.remove(restored)  # type: ignore[attr-defined]
