"""The LightningModule: an encoder and a decoder, their loss, optimiser and honest validation."""

import hashlib
import math
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from jaxtyping import Float, Int
from pytorch_lightning.plugins import Precision
from pytorch_lightning.utilities import GradClipAlgorithmType
from torch import Tensor

from captioning.data.datamodule import Batch
from captioning.data.text import Vocabulary
from captioning.decoding import Decoding, Hypothesis
from captioning.kernels import native
from captioning.kernels.cuda_graphs import LossGraphs
from captioning.kernels.words import cross_entropy
from captioning.metrics.torchmetric import CaptionScores
from captioning.models.decoders.base import Decoder, RecurrentDecoder, TeacherForced
from captioning.models.encoders.base import GridEncoder
from captioning.support.build import build
from captioning.support.errors import CaptioningError

Spec = Mapping[str, Any]
"""A configuration of plain data: ``_target_`` (a dotted path) and its arguments."""


class CrossEntropy:
    """The training loss: cross entropy, and the paper's doubly stochastic term.

    Cross entropy is the mean over the real tokens of a batch (``<end>`` is one, padding is not).
    The attention term is the mean over the captions and the locations of a batch of
    (1 - c_i / target)^2, where c_i is the attention that location i got, summed over the T words
    of its caption (Xu et al. 2015, eq. 14, has the sum over locations and target 1).

    Args:
        label_smoothing: share of the probability that is spread over all words.
        attention_penalty: weight of the attention term (lambda); 0 leaves it out.
        coverage_target: ``one``, the paper's target of 1 for each location, which T words can
            reach on T locations only; or ``uniform``, T / P, the share of each of P locations.
    """

    def __init__(
        self,
        label_smoothing: float = 0.1,
        attention_penalty: float = 0.0,
        coverage_target: Literal["one", "uniform"] = "uniform",
    ) -> None:
        if not 0 <= label_smoothing < 1 or attention_penalty < 0:
            raise CaptioningError(
                f"objective.label_smoothing={label_smoothing} must be in [0, 1) and "
                f"objective.attention_penalty={attention_penalty} at least 0."
            )
        self.label_smoothing = label_smoothing
        self.attention_penalty = attention_penalty
        self.coverage_target = coverage_target

    def __call__(self, output: TeacherForced) -> dict[str, Tensor]:
        """The ``loss`` and its parts."""
        loss = cross_entropy(output.logits, output.targets, self.label_smoothing)
        parts = {"cross_entropy": loss, "loss": loss}
        if output.coverage is not None and self.attention_penalty:
            parts["attention_term"] = self.attention_term(output.coverage, output.lengths)
            parts["loss"] = loss + self.attention_penalty * parts["attention_term"]
        return parts

    def attention_term(
        self,
        coverage: Float[Tensor, "images captions locations"],
        lengths: Int[Tensor, "images captions"],
    ) -> Float[Tensor, ""]:
        """The mean of (1 - c_i / target)^2 over locations and real captions."""
        if self.coverage_target == "uniform":
            coverage = coverage * (coverage.shape[-1] / lengths.clamp(min=1)[..., None])
        real = lengths > 0  # summed up, not chosen: choosing would wait for a GPU to count them
        return (((1 - coverage) ** 2).mean(-1) * real).sum() / real.sum()


class Captioner(pl.LightningModule):
    """Captions images with attention, and learns to.

    All arguments are plain data, so that a checkpoint holds them and loads with nothing else.
    A frozen encoder is a constant: it is no submodule, so that weight averaging, gradient
    clipping and several processes do not walk over it; checkpoints carry it all the same.

    Args:
        vocabulary: the words, without the special tokens.
        encoder: a :class:`~captioning.models.encoders.base.GridEncoder`.
        model: a :class:`~captioning.models.decoders.base.Decoder`; it is given
            ``vocabulary_size`` and ``channels``.
        objective: arguments of :class:`CrossEntropy`.
        optimizer: a :class:`torch.optim.Optimizer`. Biases get no weight decay.
        schedule: ``warmup`` and ``final``: the learning rate rises over that share of the steps
            and then falls along a cosine to ``final`` times its top.
        encoder_lr: learning rate of an encoder that is trainable.
        validation: the :class:`~captioning.decoding.Decoding` that the dev split is decoded with.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        encoder: Spec,
        model: Spec,
        objective: Spec | None = None,
        optimizer: Spec | None = None,
        schedule: Spec | None = None,
        encoder_lr: float = 1e-5,
        validation: Spec | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.vocabulary = Vocabulary(vocabulary)
        built = build(encoder, GridEncoder, "encoder")
        self.encoder_trains = any(p.requires_grad for p in built.parameters())
        self.trainable_encoder = built if self.encoder_trains else None
        self._frozen_encoder = [] if self.encoder_trains else [built]  # a list hides it from nn
        self.decoder = build(
            model,
            Decoder,
            "model",
            vocabulary_size=len(self.vocabulary),
            channels=built.channels,
        )
        objective = {"_target_": f"{__name__}.CrossEntropy"} | dict(objective or {})
        self.objective = build(objective, CrossEntropy, "objective")
        greedy = {"_target_": "captioning.decoding.Greedy"}
        self.validation = build(validation or greedy, Decoding, "validation")
        self.optimizer_spec = optimizer or {"_target_": "torch.optim.AdamW", "lr": 1e-3}
        self.warmup, self.final = schedule_of(schedule or {})
        self.encoder_lr = encoder_lr
        self.decoding = self.validation
        self.scores: CaptionScores | None = None
        self.attention: dict[str, Tensor] = {}  # of the last test: words x locations, by image
        self.run: dict[str, Any] = {"name": "captioner", "seed": 0}
        self.graphs = LossGraphs()
        # Steps and losses that are not looked at yet.
        self.recent: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    @property
    def encoder(self) -> GridEncoder:
        """The image encoder, on the module's device."""
        if self.trainable_encoder is not None:
            return self.trainable_encoder
        return self._frozen_encoder[0].to(self.device)

    def grid(self, images: Tensor) -> Float[Tensor, "batch locations channels"]:
        """The grid of preprocessed images (B x 3 x H x W); what is a grid already stays one."""
        return self.encoder(images) if images.dim() == 4 else images

    def forward(self, images: Tensor, decoding: Decoding | None = None) -> list[list[Hypothesis]]:
        """Hypotheses for grids or preprocessed images, best first, each with its attention."""
        return (decoding or self.validation)(self.decoder, self.grid(images), attention=True)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout depends on the seed and the epoch alone, so that a resumed run continues exactly.
        # Here and not at the epoch's start, of which Lightning says nothing on a resume.
        if batch_idx == 0:
            text = f"{self.run['seed']} {self.current_epoch} {self.global_rank}"
            torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of the true captions, each word given the true words before it."""
        parts = self.losses(self.grid(batch.images), batch.tokens)
        self.recent.append((self.global_step, *to_host(parts["loss"].detach())))
        self.check_losses(but=2)
        # At other steps nobody would see it, and Lightning takes a millisecond to note it.
        each = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.trainer.is_last_batch or (each and (self.global_step + 1) % each == 0):
            for name, value in parts.items():
                self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=len(batch.ids))
        return parts["loss"]

    def losses(self, grid: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """The ``loss`` of a batch and its parts; on a GPU by a CUDA graph, where it can be."""
        if (
            native.wanted
            and isinstance(self.decoder, RecurrentDecoder)
            and not self.encoder_trains
            # Half precision wants the loss scaled before its gradients are made.
            and not getattr(self.trainer.precision_plugin, "scaler", None)
        ):
            return self.graphs(self.decoder, self.objective, grid, tokens)
        return self.objective(self.decoder(grid, tokens))

    def check_losses(self, but: int = 0) -> None:
        """Stop if a loss is none, of all steps but the last ``but``.

        For those, Python would wait for a GPU, which then had to wait for Python.
        """
        while len(self.recent) > but:
            step, loss, event = self.recent.popleft()
            if event is not None:
                event.synchronize()
            if not torch.isfinite(loss):
                raise CaptioningError(
                    f"The loss is {loss.item()} at step {step}: lower optimizer.lr or "
                    "trainer.gradient_clip_val, or use trainer.precision=32-true."
                )

    def on_train_epoch_end(self) -> None:
        self.check_losses()

    def on_validation_epoch_start(self) -> None:
        self.check_losses()

    def expect(
        self,
        references: Mapping[str, Sequence[str]],
        metrics: Sequence[str] = ("BLEU", "CIDEr"),
        decoding: Decoding | None = None,
    ) -> None:
        """Say what the next validation or test is scored against, and how it decodes."""
        self.scores = CaptionScores(references, metrics)
        self.decoding = decoding or self.validation
        self.attention = {}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Decode freely: nothing of the true captions is shown to the model."""
        if self.scores is None:
            raise RuntimeError("call expect(references) before validating or testing")
        self.scores.update(batch.ids, self.describe(batch, attention=False))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Decode freely, and keep where each word looked."""
        assert self.scores is not None
        self.scores.update(batch.ids, self.describe(batch, attention=True))

    def describe(self, batch: Batch, *, attention: bool) -> list[str]:
        """The best caption of each image in words; with ``attention``, its maps are kept."""
        found = self.decoding(self.decoder, self.grid(batch.images), attention=attention)
        for image, hypotheses in zip(batch.ids, found, strict=True):
            if hypotheses[0].attention is not None:
                self.attention[image] = hypotheses[0].attention.float().cpu()
        return [self.vocabulary.decode(hypotheses[0].tokens) for hypotheses in found]

    def on_validation_epoch_end(self) -> None:
        assert self.scores is not None
        if not self.trainer.sanity_checking:
            for name, score in self.scores.compute().items():
                self.log(f"dev/{name}", score.float(), prog_bar=name == "CIDEr")
        self.scores.reset()

    def configure_optimizers(self) -> Any:
        """The optimiser with its schedule, stepped at every batch."""
        decayed, rest, encoder = [], [], []
        for name, parameter in self.named_parameters():
            if name.startswith("trainable_encoder."):
                encoder += [parameter] if parameter.requires_grad else []
            elif parameter.ndim > 1:
                decayed.append(parameter)
            else:
                rest.append(parameter)
        groups = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
        if encoder:
            groups.append({"params": encoder, "lr": self.encoder_lr})
        optimizer = build(self.optimizer_spec, torch.optim.Optimizer, "optimizer", params=groups)
        total = int(self.trainer.estimated_stepping_batches)
        warmup = max(1, round(self.warmup * total))

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            done = min(1.0, (step - warmup) / max(1, total - warmup))
            return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, also where the optimiser is a fused one.

        Lightning refuses that in every mixed precision. But a fused optimiser does nothing to the
        gradients beforehand unless there is a scaler, as there is in ``16-mixed`` alone.
        """
        precision = self.trainer.precision_plugin
        if getattr(precision, "scaler", None) is not None:
            super().configure_gradient_clipping(
                optimizer, gradient_clip_val, gradient_clip_algorithm
            )
        else:
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(precision, optimizer, gradient_clip_val or 0.0, algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        encoder = self.encoder
        checkpoint["run"] = dict(self.run)
        checkpoint["encoder"] = {
            "fingerprint": encoder.fingerprint,
            "weights_source": encoder.weights_source,
            "state_dict": {} if self.encoder_trains else encoder.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.run = checkpoint["run"]
        saved = checkpoint["encoder"]
        if saved["state_dict"]:
            self.encoder.load_state_dict(saved["state_dict"])
        self.encoder.fingerprint = saved["fingerprint"]
        self.encoder.weights_source = saved["weights_source"]

    @classmethod
    def load(cls, path: str | Path) -> "Captioner":
        """Load a checkpoint, from nothing but its file.

        Raises:
            CaptioningError: there is no such file, or it is not a checkpoint of a Captioner.
        """
        checkpoint = read_checkpoint(path)
        settings = dict(checkpoint["hyper_parameters"])
        # The weights are in the checkpoint: none are looked for.
        settings["encoder"] = {**settings["encoder"], "weights": "random"}
        captioner = cls(**settings)
        captioner.on_load_checkpoint(checkpoint)
        captioner.load_state_dict(checkpoint["state_dict"])
        return captioner.eval()


def to_host(value: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """The value in the CPU's memory, and the event after which it is there; None for at once.

    ``value.item()`` would wait until the GPU has nothing left to do.
    """
    if not value.is_cuda:
        return value, None
    host = value.to("cpu", non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return host, event


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The plain content of a checkpoint file.

    Raises:
        CaptioningError: there is no such file, or it is not a checkpoint of a Captioner.
    """
    path = Path(path)
    if not path.is_file():
        raise CaptioningError(f"ckpt={path}: no such file; a run keeps its own in checkpoints/.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CaptioningError(f"ckpt={path} cannot be read ({error.strerror}).") from error
    except Exception as error:  # torch raises many kinds, some with the advice to unpickle anything
        raise CaptioningError(f"ckpt={path}: not a checkpoint, or cut short.") from error
    if not isinstance(checkpoint, dict) or not {"hyper_parameters", "encoder"} <= set(checkpoint):
        raise CaptioningError(f"ckpt={path}: a checkpoint, but not one of this project's.")
    return checkpoint


def schedule_of(spec: Spec) -> tuple[float, float]:
    """``warmup`` and ``final`` of a schedule, checked."""
    unknown = set(spec) - {"warmup", "final"}
    if unknown:
        raise CaptioningError(f"schedule.{min(unknown)}: no such setting; it has warmup, final.")
    warmup, final = spec.get("warmup", 0.05), spec.get("final", 0.01)
    for name, value in (("warmup", warmup), ("final", final)):
        if isinstance(value, str) or not 0 <= value <= 1:
            raise CaptioningError(f"schedule.{name}={value}: choose a share between 0 and 1.")
    return float(warmup), float(final)
