"""The LightningModule: an encoder and a decoder, their objective, optimiser and validation.

What it does is in :mod:`captioning.captioners`: captioning images (``model.py``), its training
(``training.py``), its scores (``scoring.py``), and its checkpoints (``saving.py``).
"""

from collections.abc import Sequence
from typing import Any

from torchmetrics import MeanMetric

from captioning.captioners.choices import NAMES, OPTIMIZER, Spec, check_needed_objective
from captioning.captioners.saving import Saving
from captioning.captioners.scoring import Scoring
from captioning.captioners.training import Training
from captioning.data.datamodule import CaptionDataModule
from captioning.data.vocabulary import Vocabulary
from captioning.decoding import Decoding
from captioning.kernels.backend import Backend, use_backend
from captioning.kernels.cuda_graphs import LossGraphs
from captioning.models.decoders.base import Decoder
from captioning.models.encoders.base import GridEncoder
from captioning.objectives import Objective
from captioning.support.build import build, expand
from captioning.support.special_tokens import SPECIAL_WORDS
from captioning.training.loss_monitor import LossMonitor

__all__ = ["NAMES", "OPTIMIZER", "Captioner", "Spec"]


class Captioner(Training, Scoring, Saving):
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
        self._frozen_encoder = [] if self.encoder_trains else [built]
        self.decoder = build(
            expanded["model"],
            Decoder,
            "model",
            vocabulary_size=len(self.vocabulary),
            channels=built.channels,
        )
        self.objective = build(expanded["objective"], Objective, "objective")
        self.built_classes = self.classes
        check_needed_objective(self.objective, self.decoder)
        self.decoder.words = (*SPECIAL_WORDS, *self.vocabulary.words)
        self.validation = build(expanded["validation"], Decoding, "validation")
        self.validation.check_words(self.decoder)
        self.optimizer_spec = expanded["optimizer"]
        self.scheduler_spec = expanded["scheduler"]
        self.encoder_lr = encoder_lr
        self.backend = backend
        with use_backend(backend):  # raises an error if there is no such backend
            pass
        self.decoding = self.validation
        self.caption_scores = None
        self.dev_loss = MeanMetric()
        self.attention_maps = {}
        self.run = {"name": "captioner", "seed": 0}
        self.noise_seed = None
        self._references_from = None
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
        captioner = cls(
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
        captioner.decoder.initialize()
        return captioner
