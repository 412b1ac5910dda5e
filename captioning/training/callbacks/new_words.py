"""Larger steps for the words that were added to the vocabulary of a trained model."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from captioning.support.errors import CaptioningError


class NewWords(pl.Callback):
    """Makes the steps of the rows of new words ``factor`` times as large as the optimiser does.

    A new word starts from the mean of the others and has everything to learn, while the rest of a
    trained model has little to learn and much to forget. The rows are those of the embedding and of
    the output layer that :func:`captioning.training.initialization.initialize` has added; a run
    without new words is not changed.

    The step is that of the optimiser, so that with Adam the rows are trained exactly as with a
    ``factor`` times as large learning rate. It works for any optimiser, and does not depend on the
    order of the callbacks.

    Args:
        factor: at least 1, which changes nothing.

    Raises:
        CaptioningError: ``factor`` is smaller.
    """

    def __init__(self, factor: float = 10.0) -> None:
        if factor < 1:
            raise CaptioningError(f"callbacks.new_words.factor={factor}: choose 1 or more.")
        self.factor = factor
        self._before: list[Tensor] = []
        self._hooks: list[Any] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take part in every step of the optimiser."""
        parameters = dict(pl_module.named_parameters())
        run: Any = pl_module.run
        starts = run.get("new_rows", {})
        # A tied matrix is one parameter with one name.
        self._rows = [(parameters[name], row) for name, row in starts.items() if name in parameters]
        if self._rows:
            for optimizer in trainer.optimizers:
                self._hooks += [
                    optimizer.register_step_pre_hook(self._keep),
                    optimizer.register_step_post_hook(self._extend),
                ]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the optimiser as it was."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _keep(self, optimizer: Optimizer, *_: Any) -> None:
        self._before = [parameter.detach()[row:].clone() for parameter, row in self._rows]

    def _extend(self, optimizer: Optimizer, *_: Any) -> None:
        with torch.no_grad():
            for (parameter, row), before in zip(self._rows, self._before, strict=True):
                parameter[row:] = torch.lerp(before, parameter[row:], self.factor)
