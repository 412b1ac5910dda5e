"""Settings that were renamed, so that an error about an old name can give the new one."""

from collections.abc import Container

RENAMED = {
    "compile": "backend",
    "patience": "callbacks.early_stopping.patience",
    "average_decay": "callbacks.ema.decay",
    "callbacks.attention_images.every": "callbacks.attention_images.every_n_epochs",
    "schedule": "scheduler",
    "schedule.warmup": "scheduler.warmup",
    "schedule.final": "scheduler.final",
}

VALUES = {"backend": "auto, torch or native"}
"""The valid values of settings whose values changed together with their name."""


def renamed(key: str, known: Container[str] | None = None) -> str | None:
    """A clause for an error message with the new name of a setting; None if it was not renamed.

    Args:
        key: the name that was given.
        known: the valid settings; new names that are not among them are ignored. None allows all.
    """
    new = RENAMED.get(key) or RENAMED.get(key.partition(".")[0])
    if new is None or (known is not None and new not in known):
        return None
    values = f", which takes {VALUES[new]}" if new in VALUES else ""
    return f"this setting is now called {new}{values}"
