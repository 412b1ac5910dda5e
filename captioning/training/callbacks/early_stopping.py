"""Early stopping that a resumed run continues."""

from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping


class ResumableEarlyStopping(EarlyStopping):
    """Lightning's early stopping, with a state that a resumed run continues exactly.

    When a run that had stopped early is resumed, Lightning's own callback trains one more epoch,
    and it takes its patience from the checkpoint instead of the configuration.

    Args:
        monitor: the name of the logged value that has to improve.
        mode: ``max`` if higher values are better, ``min`` if lower ones are.
        patience: the number of epochs without improvement after which training stops.
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
        """Stop at once if the patience was exhausted before the run was resumed."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value and the number of epochs since then, but not the patience."""
        super().load_state_dict({**state_dict, "patience": self.patience})
