"""Libraries that only some need, which an extra of the package installs."""

from captioning.support.errors import CaptioningError

EXTRAS = {
    "flask": "demo",
    "werkzeug": "demo",
    "wandb": "wandb",
    "tensorboard": "tensorboard",
    "mlflow": "mlflow",
}
"""The extra that installs each library."""


def missing(what: str, library: str) -> CaptioningError:
    """The error for a library that is not installed, which says how to install it.

    Args:
        what: the command or setting that needs it, such as ``logger=wandb``.
        library: one of :data:`EXTRAS`.
    """
    return CaptioningError(
        f"{what} needs the package {library}: pip install 'captioning[{EXTRAS[library]}]'"
    )
