"""Settings that were renamed, so that the old name is answered with the new one."""

from collections.abc import Container

RENAMED = {
    "compile": "backend",
    "patience": "callbacks.early_stopping.patience",
    "average_decay": "callbacks.ema.decay",
    "schedule": "scheduler",
    "schedule.warmup": "scheduler.warmup",
    "schedule.final": "scheduler.final",
}

VALUES = {"backend": "auto, torch or native"}
"""The values of settings that took others under their old name."""


def renamed(key: str, known: Container[str] | None = None) -> str | None:
    """What a setting is called now, in a clause for a message; None where it was not renamed.

    Args:
        key: the name that was given.
        known: the settings that there are; None stands for all of them.
    """
    new = RENAMED.get(key) or RENAMED.get(key.partition(".")[0])
    if new is None or (known is not None and new not in known):
        return None
    values = f", which takes {VALUES[new]}" if new in VALUES else ""
    return f"this setting is now called {new}{values}"
