"""How a captioner is scored: Lightning's validation, test and prediction."""

from collections.abc import Mapping, Sequence

from torch import Tensor
from torchmetrics import MeanMetric

from captioning.captioners.model import CaptionModel
from captioning.data.datamodule import Batch, CaptionDataModule
from captioning.decoding import Decoding
from captioning.kernels.backend import use_backend
from captioning.kernels.ops import cross_entropy
from captioning.metrics import METRICS
from captioning.metrics.torchmetric import CaptionScores
from captioning.support.errors import CaptioningError


class Scoring(CaptionModel):
    """The hooks of Lightning's ``validate``, ``test`` and ``predict``.

    Attributes:
        decoding: how captions are decoded to be scored.
        caption_scores: the metric; None before there are references.
        dev_loss: the mean loss per token of the dev split.
        attention_maps: of the last test, by image: words x locations.
    """

    decoding: Decoding
    caption_scores: CaptionScores | None
    dev_loss: MeanMetric
    attention_maps: dict[str, Tensor]
    _references_from: str | None  # a split of the data module, or "user"

    def setup(self, stage: str) -> None:
        """Take the references of the trainer's data module, which may be another than before."""
        super().setup(stage)
        if self._references_from != "user":
            self._references_from = None
        data = getattr(self.trainer, "datamodule", None)
        if self.validation.uses_documents and isinstance(data, CaptionDataModule):
            self.validation.set_documents(data.documents())

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
