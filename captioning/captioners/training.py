"""How a captioner is trained: its steps, its optimiser and its schedule."""

import hashlib
import logging
import math
from typing import Any

import torch
from pytorch_lightning.plugins import Precision
from pytorch_lightning.utilities import GradClipAlgorithmType
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from captioning.captioners.model import CaptionModel
from captioning.data.datamodule import Batch
from captioning.kernels.backend import check_backend, use_backend
from captioning.kernels.cuda_graphs import LossGraphs
from captioning.support.build import build
from captioning.support.errors import CaptioningError
from captioning.training.clipping import clip_gradient_norm
from captioning.training.loss_monitor import LossMonitor
from captioning.training.schedules import build_scheduler

log = logging.getLogger(__name__)


class Training(CaptionModel):
    """The hooks of Lightning's ``fit``, without those of validation.

    Attributes:
        optimizer_spec: the optimiser, and its settings.
        scheduler_spec: the schedule of its learning rate, and its settings.
        encoder_lr: the learning rate of an encoder that is trained.
        noise_seed: the seed of dropout; None before the first training.
        graphs: the CUDA graphs of the loss.
    """

    optimizer_spec: dict[str, Any]
    scheduler_spec: dict[str, Any]
    encoder_lr: float
    noise_seed: int | None
    graphs: LossGraphs
    _losses: LossMonitor

    @property
    def lr(self) -> float:
        """The optimiser's learning rate; Lightning's ``Tuner.lr_find`` reads and sets it."""
        return float(self.optimizer_spec["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        self.optimizer_spec = {**self.optimizer_spec, "lr": value}

    def setup(self, stage: str) -> None:
        """Begin a run of the trainer; Lightning restores a checkpoint after this hook."""
        super().setup(stage)
        if stage == "fit":
            self.noise_seed = None
            data = getattr(self.trainer, "datamodule", None)
            if data is not None:
                self.objective.setup(data)

    def on_fit_start(self) -> None:
        check_backend(self.backend, self.device.type)
        for name, path in self.built_classes.items():
            if self.classes[name] != path:
                log.warning(
                    "The %s of the settings, a %s, was replaced by a %s: checkpoints of this "
                    "training cannot be loaded; give that class to the captioner, as %s=, instead.",
                    *(name, path, self.classes[name], name),
                )
        if self.noise_seed is None:  # else the run is resumed
            self.noise_seed = torch.initial_seed()  # the seed of `seed_everything`
        self._losses = LossMonitor()  # an interrupted run may have left losses in the old one

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout depends on the seed, the epoch and the process alone, so that a resumed run
        # continues exactly. The seed is set here and not in `on_train_epoch_start`, which Lightning
        # does not call for the first epoch of a resumed run.
        if batch_idx == 0:
            text = f"{self.noise_seed} {self.current_epoch} {self.global_rank}"
            torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of the reference captions with teacher forcing."""
        parts = self.losses(batch._replace(images=self.grid(batch.images)))
        self._losses.add(self.global_step, parts["loss"])
        if self.trainer.is_last_batch:
            mean, several = self._losses.epoch_mean(), self.trainer.world_size > 1
            self.log(
                "train/loss_epoch",
                mean,
                on_step=False,
                on_epoch=True,
                sync_dist=several,
                batch_size=1,  # the mean over steps, which all have the same weight
            )
        # Logging takes Lightning a millisecond, so that steps which no logger writes are skipped.
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.global_step + 1) % every == 0:
            for name, value in parts.items():
                self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=len(batch.ids))
        return parts["loss"]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The ``loss`` of a batch of grids and its parts, by a CUDA graph where that is possible.

        It is not possible under ``16-mixed``, where the loss is scaled before the gradients are
        computed.
        """
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        with use_backend(self.backend):
            if self.backend == "torch" or self.encoder_trains or scaled:
                losses: dict[str, Tensor] = self.objective(self.decoder, batch)
                return losses
            if not self.graphs.are_of(self.objective, self.decoder):  # a user has replaced one
                self.graphs = LossGraphs(self.objective, self.decoder)
            return self.graphs(batch)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The backward pass; activation checkpointing recomputes with the same backend."""
        with use_backend(self.backend):
            super().backward(loss, *args, **kwargs)

    def configure_optimizers(self) -> Any:
        """The optimiser and its schedule, for Lightning."""
        total_steps = self.trainer.estimated_stepping_batches
        if math.isinf(total_steps):
            raise CaptioningError(
                "The learning rate schedule must know the number of steps: give "
                "trainer.max_epochs or trainer.max_steps."
            )
        optimizer, schedule = self.build_optimizer(int(total_steps))
        rate, starts_from_nothing = optimizer.defaults.get("lr"), self.encoder.weights == "random"
        if self.encoder_trains and starts_from_nothing and rate and 0 < self.encoder_lr < rate / 10:
            log.warning(
                "The encoder starts from random weights, and encoder_lr=%g suits pretrained ones: "
                "give encoder_lr=%g or the like. Its BatchNorm layers do not learn statistics.",
                *(self.encoder_lr, rate),
            )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def build_optimizer(self, total_steps: int) -> tuple[Optimizer, LRScheduler]:
        """The optimiser, and the schedule of its learning rate for a run of that many steps.

        Vectors, such as biases, have no weight decay, and an encoder that is trained has the
        learning rate ``encoder_lr``.

        Raises:
            CaptioningError: a setting of the optimiser or of the schedule is wrong.
        """
        own = [
            p for name, p in self.named_parameters() if not name.startswith("trainable_encoder.")
        ]
        encoder = [p for p in self.encoder.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = []
        for parameters, rate in ((own, {}), (encoder, {"lr": self.encoder_lr})):
            matrices = [p for p in parameters if p.ndim > 1]
            vectors = [p for p in parameters if p.ndim <= 1]
            groups += [{"params": matrices, **rate}] if matrices else []
            groups += [{"params": vectors, "weight_decay": 0.0, **rate}] if vectors else []
        optimizer = build(self.optimizer_spec, Optimizer, "optimizer", params=groups)
        return optimizer, build_scheduler(self.scheduler_spec, optimizer, total_steps)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients, also of a fused optimiser.

        Lightning refuses to clip gradients for a fused optimiser in any mixed precision. That is
        necessary only with a gradient scaler, which the fused optimiser applies itself and which
        only ``16-mixed`` has.
        """
        precision = self.trainer.precision_plugin
        if getattr(precision, "scaler", None) is not None:
            super().configure_gradient_clipping(
                optimizer, gradient_clip_val, gradient_clip_algorithm
            )
        else:
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            if algorithm is GradClipAlgorithmType.NORM and gradient_clip_val:
                clip_gradient_norm(precision.main_params(optimizer), gradient_clip_val)
            else:
                Precision.clip_gradients(precision, optimizer, gradient_clip_val or 0.0, algorithm)
