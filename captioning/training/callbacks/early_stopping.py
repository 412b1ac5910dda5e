"""Early stopping that a resumed run takes up where it was."""

from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping


class ResumableEarlyStopping(EarlyStopping):
    """Lightning's early stopping, which a resumed run continues as if it had never been stopped.

    Lightning's own trains one epoch more when a run that had stopped is resumed, and takes its
    patience from the checkpoint in place of the one that is configured.

    Args:
        monitor: the logged value that has to improve.
        mode: whether a ``max`` or a ``min`` of it is better.
        patience: how many epochs without a better value end the training.
        kwargs: any other argument of :class:`pytorch_lightning.callbacks.EarlyStopping`.
    """

    def __init__(
        self,
        monitor: str = "dev/CIDEr",
        mode: Literal["max", "min"] = "max",
        patience: int = 4,
        **kwargs: Any,
    ) -> None:
        if patience < 1:
            raise ValueError(f"patience={patience} must be at least 1")
        super().__init__(monitor=monitor, mode=mode, patience=patience, **kwargs)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once if the patience of this run had ended already."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best value and the epochs since, but not the patience."""
        super().load_state_dict({**state_dict, "patience": self.patience})
