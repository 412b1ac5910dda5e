"""Captions of pictures in memory, for notebooks: ``captioner.caption(picture)``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from captioning.data.features.extraction import autocast, choose_precision, encode
from captioning.data.images import load_rgb, to_rgb
from captioning.data.views import ORIGINAL_ALONE
from captioning.decoding import Beam, Decoding, Hypothesis
from captioning.support.errors import CaptioningError

if TYPE_CHECKING:
    from captioning.captioners.model import CaptionModel

Picture = Image.Image | str | Path


class Caption(NamedTuple):
    """The caption of a picture.

    Attributes:
        text: the words, with one space between them.
        words: the words.
        score: natural logarithm of the caption's probability, at most 0.
        attention: the attention map of each word (words x rows x columns), each with a sum of 1 or,
            for some models, less; None for a model without attention.
    """

    text: str
    words: list[str]
    score: float
    attention: Float[np.ndarray, "words rows columns"] | None

    def __repr__(self) -> str:
        """The caption, without the numbers of its attention maps, of which there are thousands."""
        maps = (
            "None" if self.attention is None else f"<{' x '.join(map(str, self.attention.shape))}>"
        )
        return f"Caption({self.text!r}, score={self.score:.3f}, attention={maps})"


def caption_pictures(
    captioner: "CaptionModel",
    pictures: Sequence[object],
    decoding: Decoding | None = None,
    *,
    batch_size: int = 8,
    precision: str = "auto",
) -> list[Caption]:
    """The best caption of each picture; see :meth:`captioning.captioner.Captioner.caption`."""
    if batch_size < 1:
        raise CaptioningError(f"batch_size={batch_size}: choose 1 or more.")
    decoding = decoding or Beam()
    decoding.check_words(captioner.decoder)
    encoder = captioner.encoder
    arithmetic = choose_precision(precision, captioner.device)
    captions: list[Caption] = []
    for start in range(0, len(pictures), batch_size):
        batch = [
            encoder.preprocessing(_rgb(picture)) for picture in pictures[start : start + batch_size]
        ]
        for hypotheses in decode_images(captioner, batch, decoding, arithmetic):
            best = hypotheses[0]
            text = captioner.vocabulary.decode(best.tokens)
            maps = attention_maps(best, encoder.grid_size)
            captions.append(Caption(text, text.split(), best.log_prob, maps))
    return captions


def _rgb(picture: object) -> Image.Image:
    if isinstance(picture, Image.Image):
        return to_rgb(picture)
    if isinstance(picture, str | Path):
        return load_rgb(Path(picture))
    raise CaptioningError(
        f"caption() takes a PIL image, the path of a file, or a list of these, and not a "
        f"{type(picture).__name__}: PIL.Image.fromarray makes an image of an array, and "
        "captioner(tensor) takes preprocessed images."
    )


def decode_images(
    captioner: "CaptionModel",
    images: Sequence[Float[Tensor, "*views 3 height width"]],
    decoding: Decoding,
    precision: str,
    views: Sequence[str] = ORIGINAL_ALONE,
) -> list[list[Hypothesis]]:
    """Caption preprocessed photographs in the same precision as an evaluation.

    Grids are rounded to half precision, as in the feature store.

    Args:
        captioner: the model, on its device.
        images: at least one image; of several views, each is views x 3 x height x width.
        decoding: the decoding method.
        precision: ``fp32`` or ``bf16``.
        views: the names of the views.

    Returns:
        The hypotheses for each photograph, best first.
    """
    pixels = list(torch.stack(list(images)).flatten(0, -4))
    grids = encode(captioner.encoder, pixels, captioner.device, precision)
    grids = grids.reshape(len(images), -1, grids.shape[-1])  # an image's views in a row
    with autocast(captioner.device, precision):
        hypotheses: list[list[Hypothesis]] = captioner(grids, decoding, views)
    return hypotheses


def attention_maps(
    hypothesis: Hypothesis, grid_size: tuple[int, int]
) -> Float[np.ndarray, "words rows columns"] | None:
    """The attention map of each word of a caption; None for a model without attention.

    Args:
        hypothesis: the caption.
        grid_size: rows and columns of the encoder's grid.
    """
    if hypothesis.attention is None:
        return None
    return hypothesis.attention.float().cpu().reshape(len(hypothesis.tokens), *grid_size).numpy()
