"""The LightningModule: an encoder and a decoder, their objective, optimiser and validation."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, overload

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.plugins import Precision
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import GradClipAlgorithmType
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from captioning.checkpoints import (
    FORMAT,
    check_can_go_on,
    check_complete,
    check_content,
    check_weights,
    has_trained_encoder,
    read_checkpoint,
    restoring,
)
from captioning.data.datamodule import Batch, CaptionDataModule
from captioning.data.text import Vocabulary
from captioning.data.views import ORIGINAL_ALONE, find_views, side_ids
from captioning.decoding import Decoding, Hypothesis
from captioning.kernels.backend import Backend, check_backend, use_backend
from captioning.kernels.cuda_graphs import LossGraphs
from captioning.kernels.ops import cross_entropy
from captioning.metrics import METRICS
from captioning.metrics.torchmetric import CaptionScores
from captioning.models.decoders.base import Decoder
from captioning.models.decoders.views import ViewDecoder, ViewEnsemble
from captioning.models.encoders.base import GridEncoder
from captioning.objectives import Objective
from captioning.pictures import Caption, Picture, caption_pictures
from captioning.pretrained.places import DEFAULT, find_model, find_pretrained, size_of
from captioning.reporting.results import Results
from captioning.support.build import build, expand, import_class, validated
from captioning.support.errors import CaptioningError
from captioning.support.special_tokens import SPECIAL_WORDS
from captioning.support.trust import check_trusted, classes_of_a_checkpoint, packages
from captioning.support.weights import BY_NAME, fingerprint
from captioning.training.checkpoint_io import make_checkpoints_atomic
from captioning.training.loss_monitor import LossMonitor
from captioning.training.moved_checkpoints import find_moved_checkpoints
from captioning.training.resumable_settings import check_same_settings
from captioning.training.schedules import build_scheduler

Spec = Mapping[str, Any]
"""A configuration of plain data: ``_target_`` (a dotted path) and its arguments."""

NAMES: Final[Mapping[str, Mapping[str, str]]] = {
    "encoder": {
        "vgg16": "captioning.models.encoders.vgg16.VGG16",
        "vgg19": "captioning.models.encoders.vgg19.VGG19",
        "resnet50": "captioning.models.encoders.resnet50.ResNet50",
        "efficientnet_lite": "captioning.models.encoders.efficientnet_lite.EfficientNetLite",
        "torchvision": "captioning.models.encoders.torchvision.TorchvisionEncoder",
        "timm": "captioning.models.encoders.timm.TimmEncoder",
    },
    "model": {
        "transformer": "captioning.models.decoders.transformer.TransformerDecoder",
        "adaptive_lstm": "captioning.models.decoders.adaptive_lstm.AdaptiveLSTM",
        "attn_lstm": "captioning.models.decoders.attn_lstm.AttentionLSTM",
        "hard_attn_lstm": "captioning.models.decoders.hard_attn_lstm.HardAttentionLSTM",
        "lstm": "captioning.models.decoders.lstm.LSTM",
    },
    "objective": {
        "cross_entropy": "captioning.objectives.cross_entropy.CrossEntropy",
        "distillation": "captioning.objectives.distillation.Distillation",
        "hard_attention": "captioning.objectives.hard_attention.HardAttention",
        "scheduled_sampling": "captioning.objectives.scheduled_sampling.ScheduledSampling",
        "self_critical": "captioning.objectives.self_critical.SelfCritical",
    },
    "optimizer": {"adamw": "torch.optim.AdamW", "rmsprop": "torch.optim.RMSprop"},
    "scheduler": {
        "constant": "captioning.training.schedules.Constant",
        "warmup_cosine": "captioning.training.schedules.WarmupCosine",
    },
    "validation": {
        "beam": "captioning.decoding.Beam",
        "diverse_beam": "captioning.decoding.DiverseBeam",
        "greedy": "captioning.decoding.Greedy",
        "mbr": "captioning.decoding.MBR",
        "sample": "captioning.decoding.Sample",
    },
}
"""Short names for ``_target_`` paths, by group; they equal the names of the files in ``conf/``."""

OPTIMIZER: Final[Spec] = {
    "_target_": "torch.optim.AdamW",
    "lr": 1e-3,
    "weight_decay": 0.01,
    "fused": True,
}
"""The optimiser of a captioner that is not given one, as in ``conf/optimizer/adamw.yaml``."""


class Captioner(pl.LightningModule):
    """The LightningModule that captions images and is trained to do so.

    All arguments are plain data, so that a checkpoint contains them and can be loaded without any
    other file. A frozen encoder is not registered as a submodule, so that weight averaging,
    gradient clipping and DDP ignore it. A checkpoint names its weights and has their fingerprint,
    or, if they came from a file, contains them.

    Args:
        vocabulary: the words, without the special tokens.
        encoder: a :class:`~captioning.models.encoders.base.GridEncoder`, given by the name of a
            file in ``conf/encoder`` or as a mapping of ``_target_`` and arguments. The following
            parts are given in the same way.
        model: a :class:`~captioning.models.decoders.base.Decoder`; it is given
            ``vocabulary_size`` and ``channels``.
        objective: an :class:`~captioning.objectives.Objective`.
        optimizer: a :class:`torch.optim.Optimizer`. Biases and other vectors get no weight decay.
        scheduler: a :class:`torch.optim.lr_scheduler.LRScheduler`, stepped at every batch; it is
            given ``total_steps`` if it takes them.
        encoder_lr: learning rate of a trainable encoder.
        validation: the :class:`~captioning.decoding.Decoding` of the dev split during training.
        backend: which kernels compute the model; see :mod:`captioning.kernels.backend`.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        encoder: Spec | str = "vgg16",
        model: Spec | str = "attn_lstm",
        objective: Spec | str = "cross_entropy",
        optimizer: Spec | str = OPTIMIZER,
        scheduler: Spec | str = "warmup_cosine",
        encoder_lr: float = 1e-5,
        validation: Spec | str = "greedy",
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        specs = {
            "encoder": encoder,
            "model": model,
            "objective": objective,
            "optimizer": optimizer,
            "scheduler": scheduler,
            "validation": validation,
        }
        expanded = {name: expand(spec, NAMES[name], name) for name, spec in specs.items()}
        plain = {"vocabulary": list(vocabulary), "encoder_lr": encoder_lr, "backend": backend}
        self.save_hyperparameters(plain | expanded, logger=False)
        self.vocabulary = Vocabulary(vocabulary)
        built = build(expanded["encoder"], GridEncoder, "encoder")
        self.encoder_trains = any(p.requires_grad for p in built.parameters())
        self.trainable_encoder = built if self.encoder_trains else None
        # In a list, so that nn.Module does not register it as a submodule.
        self._frozen_encoder = [] if self.encoder_trains else [built]
        self.decoder = build(
            expanded["model"],
            Decoder,
            "model",
            vocabulary_size=len(self.vocabulary),
            channels=built.channels,
        )
        self.objective = build(expanded["objective"], Objective, "objective")
        check_needed_objective(self.objective, self.decoder)
        self.decoder.words = (*SPECIAL_WORDS, *self.vocabulary.words)
        self.validation = build(expanded["validation"], Decoding, "validation")
        self.validation.check_words(self.decoder)
        self.optimizer_spec: dict[str, Any] = expanded["optimizer"]
        self.scheduler_spec: dict[str, Any] = expanded["scheduler"]
        self.encoder_lr = encoder_lr
        self.backend: Backend = backend
        with use_backend(backend):  # raises an error if there is no such backend
            pass
        self.decoding = self.validation
        self.caption_scores: CaptionScores | None = None
        self.dev_loss = MeanMetric()  # per token
        self.attention_maps: dict[str, Tensor] = {}  # of the last test, by image: words x P
        self.run: dict[str, Any] = {"name": "captioner", "seed": 0}
        self.noise_seed: int | None = None
        self._references_from: str | None = None  # a split of the data module, or "user"
        self.graphs = LossGraphs(self.objective, self.decoder)
        self._losses = LossMonitor()

    @classmethod
    def for_data(
        cls,
        data: CaptionDataModule,
        model: Spec | str = "attn_lstm",
        *,
        encoder: Spec | str = "vgg16",
        objective: Spec | str = "cross_entropy",
        optimizer: Spec | str = OPTIMIZER,
        scheduler: Spec | str = "warmup_cosine",
        encoder_lr: float = 1e-5,
        validation: Spec | str = "greedy",
        backend: Backend = "auto",
        **settings: Any,
    ) -> "Captioner":
        """A new captioner with the vocabulary of a data set.

        Args:
            data: the data set; its captions are read unless they have been.
            model: the decoder.
            encoder: as in the constructor.
            objective: as in the constructor.
            optimizer: as in the constructor.
            scheduler: as in the constructor.
            encoder_lr: as in the constructor.
            validation: as in the constructor.
            backend: as in the constructor.
            settings: arguments of the decoder, such as ``attention_dim=512, dropout=0.5``.

        Raises:
            CaptioningError: the data set cannot be read, or a setting is wrong.
        """
        data.prepare_data()
        data.read_text()
        return cls(
            vocabulary=data.vocabulary.to_list(),
            encoder=encoder,
            model=expand(model, NAMES["model"], "model") | settings,
            objective=objective,
            optimizer=optimizer,
            scheduler=scheduler,
            encoder_lr=encoder_lr,
            validation=validation,
            backend=backend,
        )

    @property
    def encoder(self) -> GridEncoder:
        """The image encoder, on the module's device."""
        if self.trainable_encoder is not None:
            return self.trainable_encoder
        return self._frozen_encoder[0].to(self.device)

    def replace_encoder(self, encoder: GridEncoder) -> None:
        """Take another, frozen encoder; the decoder must be one that reads its grids."""
        self.trainable_encoder, self._frozen_encoder = None, [encoder]
        self.encoder_trains = False

    @property
    def lr(self) -> float:
        """The optimiser's learning rate; Lightning's ``Tuner.lr_find`` reads and sets it."""
        return float(self.optimizer_spec["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        self.optimizer_spec = {**self.optimizer_spec, "lr": value}

    def grid(self, images: Tensor) -> Float[Tensor, "batch locations channels"]:
        """The grid of preprocessed images (B x 3 x H x W); grids (B x P x C) are returned as is.

        The grids of V views (B x V x 3 x H x W) of each image are one after another (B x VP x C).
        """
        if images.dim() == 5:
            grids: Tensor = self.encoder(images.flatten(0, 1))
            return grids.reshape(len(images), -1, grids.shape[-1])
        return self.encoder(images) if images.dim() == 4 else images

    def decoder_of(self, views: Sequence[str]) -> Decoder:
        """The decoder for the grids of some views, one after another, of each image.

        Args:
            views: the names of the views; see :mod:`captioning.data.views`.

        Raises:
            CaptioningError: there is no such view.
        """
        found = find_views(views)
        if len(found) == 1 and found[0].is_original:
            return self.decoder
        sides = side_ids(self.vocabulary)
        members = [
            ViewDecoder(
                self.decoder,
                torch.from_numpy(view.placement(self.encoder.grid_size)),
                sides if view.mirrored else (),
            )
            for view in found
        ]
        return ViewEnsemble(members).to(self.device)

    @overload
    def caption(
        self, pictures: Picture, decoding: Decoding | None = None, **settings: Any
    ) -> Caption: ...

    @overload
    def caption(
        self, pictures: Sequence[Picture], decoding: Decoding | None = None, **settings: Any
    ) -> list[Caption]: ...

    def caption(
        self, pictures: Any, decoding: Decoding | None = None, **settings: Any
    ) -> Caption | list[Caption]:
        """Caption a picture, or each of a list, as ``caption.py`` does, on the module's device.

        A picture is a PIL image of any mode (grey, 16 bit, palette, transparent, CMYK, ...) and
        size, or the path of a file::

            caption = captioner.caption(Image.open("dog.jpg"))
            caption.text, caption.score, caption.attention.shape

        Args:
            pictures: a picture, or several.
            decoding: how captions are decoded; None is a beam search of size 5.
            settings: ``batch_size``, and ``precision`` (``auto``, ``fp32`` or ``bf16``).

        Raises:
            CaptioningError: it is no picture, or one that cannot be read.
        """
        several = isinstance(pictures, Sequence) and not isinstance(pictures, str)
        given = list(pictures) if several else [pictures]
        captions = caption_pictures(self, given, decoding, **settings)
        return captions if several else captions[0]

    def forward(
        self,
        images: Any,
        decoding: Decoding | None = None,
        views: Sequence[str] = ORIGINAL_ALONE,
    ) -> list[list[Hypothesis]]:
        """Caption images with :meth:`generate`, attention weights included."""
        return self.generate(images, decoding, views=views)

    def generate(
        self,
        images: Any,
        decoding: Decoding | None = None,
        *,
        attention: bool = True,
        views: Sequence[str] = ORIGINAL_ALONE,
    ) -> list[list[Hypothesis]]:
        """Captions of images, without gradients and in evaluation mode.

        Several views of an image are captioned together: their probabilities are averaged at every
        word, and so is their attention, after it was put back into its place in the image.

        Args:
            images: preprocessed (B x 3 x H x W), or grids (B x P x C), on the module's device. Of V
                views, B x V x 3 x H x W, or the grids one after another (B x VP x C).
            decoding: how captions are decoded; None uses ``validation``.
            attention: whether each hypothesis gets its attention weights.
            views: the names of the views; see :mod:`captioning.data.views`.

        Returns:
            The hypotheses of each image, best first.

        Raises:
            CaptioningError: they are not such a tensor: a PIL image, for example, which
                :meth:`caption` takes.
        """
        self._check_images(images, len(views))
        with use_backend(self.backend), torch.no_grad():
            grid = self.grid(images)
            decoder = self.decoder_of(views)
            return (decoding or self.validation)(decoder, grid, attention=attention)

    def _check_images(self, images: object, views: int) -> None:
        """Refuse what is no batch of preprocessed images or of grids, and say what to do."""
        if not isinstance(images, Tensor):
            raise CaptioningError(
                f"captioner(images) takes a tensor of preprocessed images or of grids, and not a "
                f"{type(images).__name__}: captioner.caption(image) takes PIL images and files."
            )
        encoder = self.encoder
        grids = (views * encoder.locations, encoder.channels)
        of_each = (3,) if views == 1 else (views, 3)
        if images.dim() == 3 + len(of_each) and images.shape[1:-2] == of_each:
            return
        if images.dim() == 3 and images.shape[1:] == grids:
            return
        shape = " x ".join(map(str, images.shape))
        wanted = f"B x {' x '.join(map(str, of_each))} x H x W, or B x {grids[0]} x {grids[1]}"
        remedy = "captioner.caption(image) takes a picture of any kind"
        if images.dim() in (2, 3):
            remedy = f"images[None] adds the dimension of the batch; {remedy}"
        raise CaptioningError(
            f"Images of shape {shape} are neither a batch of preprocessed images nor one of grids "
            f"({wanted}): {remedy}."
        )

    # Training

    def setup(self, stage: str) -> None:
        """Begin a run of the trainer; Lightning restores a checkpoint after this hook."""
        if self._references_from != "user":
            self._references_from = None  # the data module may be another one than before
        make_checkpoints_atomic(self.trainer)
        data = getattr(self.trainer, "datamodule", None)
        if self.validation.uses_documents and isinstance(data, CaptionDataModule):
            self.validation.set_documents(data.documents())
        if stage == "fit":
            self.noise_seed = None
            if data is not None:
                self.objective.setup(data)

    def on_fit_start(self) -> None:
        check_backend(self.backend, self.device.type)
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
        """The optimiser and its schedule."""
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
        total_steps = self.trainer.estimated_stepping_batches
        if math.isinf(total_steps):
            raise CaptioningError(
                "The learning rate schedule must know the number of steps: give "
                "trainer.max_epochs or trainer.max_steps."
            )
        schedule = build_scheduler(self.scheduler_spec, optimizer, int(total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

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
            Precision.clip_gradients(precision, optimizer, gradient_clip_val or 0.0, algorithm)

    # Validation, test and prediction

    def set_references(
        self,
        references: Mapping[str, Sequence[str]],
        metrics: Sequence[str] = ("BLEU", "CIDEr"),
        decoding: Decoding | None = None,
    ) -> None:
        """Set the references of the following validations and tests, and how they decode.

        Without this call, they are scored against the references of the trainer's data module.

        Args:
            references: raw reference captions by image id.
            metrics: any of :data:`captioning.metrics.METRICS`.
            decoding: how captions are decoded; None uses ``validation``.
        """
        self.caption_scores = CaptionScores(references, metrics)
        self.decoding = decoding or self.validation
        self.attention_maps = {}
        self._references_from = "user"

    def on_validation_start(self) -> None:
        self._find_references("dev", ("BLEU", "CIDEr"))
        # A new metric, because tensors made under inference mode cannot be updated outside of it.
        self.dev_loss = MeanMetric().to(self.device)

    def on_test_start(self) -> None:
        self._find_references("test", METRICS)

    def _find_references(self, split: str, metrics: Sequence[str]) -> None:
        """Take the data module's references, unless the user has called :meth:`set_references`."""
        if self._references_from in ("user", split):
            return
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            raise CaptioningError(
                "There are no references to score captions against: give the trainer a "
                "CaptionDataModule, or call captioner.set_references(...) first."
            )
        self.set_references(data.references(split), metrics)
        self._references_from = split

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Caption the images without teacher forcing, and measure the loss with teacher forcing."""
        assert self.caption_scores is not None
        batch = batch._replace(images=self.grid(batch.images))
        self.caption_scores.update(batch.ids, self.captions(batch, attention=False))
        with use_backend(self.backend):
            output = self.decoder_of(batch.views)(batch.grid, batch.tokens)
            tokens = output.lengths.sum()
            if tokens:
                self.dev_loss.update(cross_entropy(output.logits, output.targets), tokens)

    def on_validation_epoch_end(self) -> None:
        assert self.caption_scores is not None
        if not self.trainer.sanity_checking:
            for name, score in self.caption_scores.compute().items():
                self.log(f"dev/{name}", score.float(), prog_bar=name == "CIDEr")
            loss = self.dev_loss.compute()
            self.log("dev/loss", loss)
            self.log("dev/perplexity", loss.exp())
        self.caption_scores.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Caption the images without teacher forcing, and keep the attention map of each word."""
        assert self.caption_scores is not None
        self.caption_scores.update(batch.ids, self.captions(batch, attention=True))

    def on_test_epoch_end(self) -> None:
        assert self.caption_scores is not None
        for name, score in self.caption_scores.compute().items():
            self.log(f"test/{name}", score.float())

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, str]]:
        """The best caption of each image, in COCO's result format."""
        captions = self.captions(batch, attention=False)
        return [
            {"image_id": image, "caption": caption}
            for image, caption in zip(batch.ids, captions, strict=True)
        ]

    def captions(self, batch: Batch, *, attention: bool) -> list[str]:
        """The best caption of each image; with ``attention``, its maps go to ``attention_maps``."""
        found = self.generate(batch.images, self.decoding, attention=attention, views=batch.views)
        for image, hypotheses in zip(batch.ids, found, strict=True):
            if hypotheses[0].attention is not None:
                self.attention_maps[image] = hypotheses[0].attention.float().cpu()
        return [self.vocabulary.decode(hypotheses[0].tokens) for hypotheses in found]

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        encoder = self.encoder
        if "callbacks" not in checkpoint:
            self._put_average(checkpoint)
        checkpoint["format"] = FORMAT
        checkpoint["run"] = dict(self.run)
        checkpoint["noise_seed"] = self.noise_seed
        metrics = self._trainer.callback_metrics if self._trainer else {}  # a Strategy saves, too
        checkpoint["epoch_means"] = {
            name: float(value)
            for name, value in metrics.items()
            if name.startswith("train/") and name.endswith("_epoch")
        }
        checkpoint["encoder"] = {
            "fingerprint": encoder.fingerprint,
            "weights_source": encoder.weights_source,
            "state_dict": encoder.state_dict() if self._contains_encoder() else {},
        }

    def _contains_encoder(self) -> bool:
        """Whether a checkpoint contains a frozen encoder's weights, since nothing else has them."""
        return not self.encoder_trains and self.encoder.weights not in BY_NAME

    def _put_average(self, checkpoint: dict[str, Any]) -> None:
        """Put the moving average of the weights into a checkpoint of the weights alone.

        For such a checkpoint, Lightning does not call the callback that has the average.
        """
        for callback in self._trainer.callbacks if self._trainer else ():  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging) and callback._average_model is not None:
                callback.on_save_checkpoint(self.trainer, self, checkpoint)
                for state in ("current_model_state", "averaging_state"):
                    del checkpoint[state]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore a checkpoint that the trainer was given as ``ckpt_path``.

        Raises:
            CaptioningError: the checkpoint is none of a Captioner, is of version 0.1, or has
                another vocabulary or encoder than this captioner, for which the trainer's data
                module prepares the batches; or it is trained further, and has other settings.
        """
        check_content(checkpoint, "ckpt_path")
        check_complete(checkpoint, "ckpt_path")
        saved = checkpoint["encoder"]
        if checkpoint["hyper_parameters"]["vocabulary"] != self.vocabulary.to_list():
            different = "another vocabulary than this captioner"
        elif (
            not has_trained_encoder(checkpoint) and saved["fingerprint"] != self.encoder.fingerprint
        ):
            different = (
                f"another encoder than {self.encoder.name} with weights from "
                f"{self.encoder.weights_source}"
            )
        else:
            if self.trainer.state.fn == TrainerFn.FITTING:
                check_can_go_on(checkpoint, f"ckpt_path={self.trainer.ckpt_path}")
                check_same_settings(
                    without_vocabulary(checkpoint["hyper_parameters"]),
                    without_vocabulary(self.hparams),
                    "ckpt_path",
                )
                find_moved_checkpoints(checkpoint, self.trainer.checkpoint_callbacks)
            return self._restore(checkpoint)
        raise CaptioningError(
            f"ckpt_path: that checkpoint has {different}: use the same one, or the captioner that "
            "Captioner.load_from_checkpoint(ckpt_path) returns."
        )

    @classmethod
    def _of_settings(cls, checkpoint: Mapping[str, Any], backend: Backend) -> "Captioner":
        """A new captioner with the settings of a checkpoint.

        Its encoder has the weights that the settings name, unless the checkpoint contains others.

        Raises:
            CaptioningError: the settings are wrong, or name a file of weights.
        """
        settings = validated(cls, checkpoint["hyper_parameters"], "hyper_parameters", set())
        encoder = expand(settings.get("encoder", "vgg16"), NAMES["encoder"], "encoder")
        contained = bool(checkpoint["encoder"]["state_dict"]) or has_trained_encoder(checkpoint)
        if not contained and encoder.get("weights", BY_NAME[0]) not in BY_NAME:
            raise CaptioningError(
                f"it lacks the weights of its encoder, and names a file ({encoder['weights']}), "
                "which is not read for a checkpoint."
            )
        first = encoder | {"weights": "random"} if contained else encoder
        captioner = cls(**settings | {"encoder": first, "backend": backend})
        if contained:  # a checkpoint of this captioner names them as this one does
            captioner.hparams["encoder"] = encoder
            built, found = captioner.encoder, checkpoint["encoder"]["fingerprint"]
            known = {"random": built.fingerprint}
            if built.imagenet is not None and built.imagenet.archive is not None:
                known["imagenet"] = built.imagenet.archive.fingerprint
            asked = encoder.get("weights")
            names = (name for name, its in known.items() if its == found and asked in (None, name))
            built.weights = next(names, "contained")
        for key in ("optimizer", "scheduler"):  # imported when the captioner is trained further
            spec = captioner.hparams[key]
            check_trusted(str(spec.get("_target_") or ""), f"{key}._target_")
        return captioner

    def _check_encoder(self, saved: Mapping[str, Any]) -> None:
        """Check the weights of the encoder, in a checkpoint or named by it.

        Raises:
            CaptioningError: they are not those of its fingerprint, by which the cache of features
                is found.
        """
        weights, encoder = saved["state_dict"], self.encoder
        if weights:
            check_weights(encoder, weights)
            if fingerprint(encoder.name, weights) != saved["fingerprint"]:
                raise CaptioningError(
                    "its encoder has other weights than those of its fingerprint."
                )
        elif not self.encoder_trains and encoder.fingerprint != saved["fingerprint"]:
            raise CaptioningError(
                f"it was trained with other weights of {encoder.name} than encoder.weights="
                f"{encoder.weights} gives here: its fingerprint is another one."
            )

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        """Restore what a checkpoint has in addition to the state dict that Lightning restores."""
        self.run = checkpoint["run"]
        self.noise_seed = checkpoint["noise_seed"]
        saved = checkpoint["encoder"]
        if saved["state_dict"]:
            self.encoder.load_state_dict(saved["state_dict"])
        self.encoder.fingerprint = saved["fingerprint"]
        self.encoder.weights_source = saved["weights_source"]

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # what it does not take, it does not need
        cls,
        checkpoint_path: str | Path,
        map_location: Any = "cpu",
        backend: Backend = "auto",
        trust: str | Sequence[str] | None = None,
    ) -> "Captioner":
        """Load a captioner from a checkpoint file alone; like a new one, it is in training mode.

        A checkpoint names the classes of its parts. Those of this package and of ``torch.optim``,
        and those that were built in this process from settings of your own, are imported. Any
        others are refused, unless you name their package.

        Args:
            checkpoint_path: the file, for instance a run's ``best.ckpt``; or a model as for
                :meth:`from_pretrained`, with ``hf://`` before a name on the hub.
            map_location: the device to move the captioner to.
            backend: which kernels compute it, independent of the training's.
            trust: the packages or modules whose classes it may name, too: ``"my_package"``. Their
                code is run, with the arguments that the checkpoint has.

        Raises:
            CaptioningError: there is no such file, it is damaged, it is not a checkpoint of a
                Captioner, or it names a class that is not trusted.
        """
        trusted = packages(trust)
        name, place = f"ckpt={checkpoint_path}", find_model(checkpoint_path)
        checkpoint = read_checkpoint(place)
        check_complete(checkpoint, name)
        with restoring(name, size_of(place)):
            with classes_of_a_checkpoint(trusted):
                captioner = cls._of_settings(checkpoint, backend)
            check_weights(captioner, checkpoint["state_dict"])
            captioner._check_encoder(checkpoint["encoder"])
            captioner._restore(checkpoint)
            captioner.load_state_dict(checkpoint["state_dict"])
        return captioner.to(map_location)

    # Models to give away

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = DEFAULT,
        *,
        revision: str | None = None,
        map_location: Any = "cpu",
        backend: Backend = "auto",
        trust: str | Sequence[str] | None = None,
    ) -> "Captioner":
        """Load an exported model; nothing in it is run, and it is checked like a checkpoint.

        Args:
            model: the name of a model that comes with the package; a folder that was exported; or
                ``OWNER/NAME`` (``hf://OWNER/NAME``) on the Hugging Face hub.
            revision: a branch, tag or commit on the hub.
            map_location: as for :meth:`load_from_checkpoint`, like the following.
            backend: as for :meth:`load_from_checkpoint`.
            trust: as for :meth:`load_from_checkpoint`.

        Raises:
            CaptioningError: there is no such model, a file of it is damaged or missing, its encoder
                cannot be found, or it names a class that is not trusted.
        """
        place = find_pretrained(model, revision)
        return cls.load_from_checkpoint(place, map_location, backend, trust)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        half: bool = True,
        encoder: bool = False,
        results: Results | None = None,
        license: str = "other",
    ) -> None:
        """Write the folder of a model to give away; see :func:`captioning.pretrained.export.save`.

        Args:
            folder: is made if it is missing; files of an earlier model in it are replaced.
            half: whether the weights are rounded to half precision.
            encoder: whether a frozen encoder is contained even if its weights have a name.
            results: the scores for the model card, as ``read_results("results.json")`` gives them.
            license: the hub's identifier of the licence of the weights.

        Raises:
            CaptioningError: the folder cannot be written.
        """
        from captioning.pretrained.export import save

        save(self, Path(folder), half=half, encoder=encoder, results=results, license=license)

    def push_to_hub(self, name: str, *, private: bool | None = None, **options: Any) -> str:
        """Give the model to the Hugging Face hub; returns the address of the commit.

        Args:
            name: ``OWNER/NAME``; the repository is made if there is none.
            private: whether a new repository is private; None: as the owner's settings say.
            options: as for :meth:`save_pretrained`.

        Raises:
            CaptioningError: huggingface_hub is not installed, or the hub refuses it.
        """
        from captioning.pretrained.hub import push
        from captioning.support.scratch import scratch_folder

        with scratch_folder() as folder:
            self.save_pretrained(folder / "model", **options)
            return push(folder / "model", name, private=private)


def check_needed_objective(objective: Objective, decoder: Decoder) -> None:
    """Refuse an objective by which the decoder does not learn.

    Raises:
        CaptioningError: the decoder needs another objective.
    """
    needed = decoder.needs_objective
    if needed is None:
        return
    path = NAMES["objective"].get(needed, needed)
    if not isinstance(objective, import_class(path, Objective, "objective")):
        raise CaptioningError(
            f"{type(decoder).__name__} does not learn by {type(objective).__name__}: "
            f"add objective={needed}."
        )


def without_vocabulary(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a captioner that are settings."""
    return {name: value for name, value in settings.items() if name != "vocabulary"}
