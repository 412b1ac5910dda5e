"""An encoder and a decoder, which caption images."""

from collections.abc import Sequence
from typing import Any, overload

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from torch import Tensor

from captioning.data.views import ORIGINAL_ALONE, find_views, side_ids
from captioning.data.vocabulary import Vocabulary
from captioning.decoding import Decoding, Hypothesis
from captioning.kernels.backend import Backend, use_backend
from captioning.models.decoders.base import Decoder
from captioning.models.decoders.views import ViewDecoder, ViewEnsemble
from captioning.models.encoders.base import Encoder, GridEncoder
from captioning.objectives import Objective
from captioning.pictures import Caption, Picture, caption_pictures
from captioning.support.errors import CaptioningError


class CaptionModel(pl.LightningModule):
    """Captions images, as preprocessed tensors, as grids, or as pictures of any kind.

    Attributes:
        vocabulary: the words.
        decoder: writes the captions of a grid.
        objective: computes the loss.
        built_classes: :attr:`classes` when the captioner was built.
        trainable_encoder: the encoder, if it is trained; it is then a submodule.
        encoder_trains: whether it is.
        validation: the decoding of captions where no other one is given.
        backend: which kernels compute the model.
        run: the run that trained it: its name and seed, and once it is known, more.
    """

    vocabulary: Vocabulary
    decoder: Decoder
    objective: Objective
    built_classes: dict[str, str]
    trainable_encoder: GridEncoder | None
    encoder_trains: bool
    validation: Decoding
    backend: Backend
    run: dict[str, Any]
    _frozen_encoder: list[Encoder]  # in a list, so that it is not registered as a submodule

    @property
    def encoder(self) -> Encoder:
        """The image encoder, on the module's device."""
        if self.trainable_encoder is not None:
            return self.trainable_encoder
        return self._frozen_encoder[0].to(self.device)

    @property
    def classes(self) -> dict[str, str]:
        """The dotted paths of the classes of the decoder and the objective, by their settings."""
        parts = {"model": self.decoder, "objective": self.objective}
        kinds = {name: type(part) for name, part in parts.items()}
        return {name: f"{kind.__module__}.{kind.__qualname__}" for name, kind in kinds.items()}

    @property
    def network(self) -> GridEncoder:
        """The encoder, which is one network except in an ensemble.

        Raises:
            CaptioningError: this is an ensemble whose members have different encoders.
        """
        encoder = self.encoder
        if not isinstance(encoder, GridEncoder):
            raise CaptioningError("An ensemble is several models: export each of them.")
        return encoder

    def replace_encoder(self, encoder: Encoder) -> None:
        """Take another, frozen encoder; the decoder must be one that reads its grids."""
        self.trainable_encoder, self._frozen_encoder = None, [encoder]
        self.encoder_trains = False

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
