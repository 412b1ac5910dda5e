"""CLIPScore and PAC-S: how well a caption fits the photograph, by CLIP.

J. Hessel et al., "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", EMNLP 2021,
sec. 3. With image embedding v, caption embedding c and reference embeddings R:

- CLIPScore(c, v) = 2.5 max(cos(c, v), 0), without any reference;
- RefCLIPScore(c, R, v) is the harmonic mean of CLIPScore(c, v) and max(max_r cos(c, r), 0).

PAC-S and RefPAC-S are the same with 2 in place of 2.5, by a CLIP that was tuned for them (S. Sarto
et al., "Positive-Augmented Contrastive Learning for Image and Video Captioning Evaluation", CVPR
2023).

A corpus score is the mean over the images. Captions are raw and follow the prompt "A photo
depicts", as in the paper. Everything is computed in single precision, because in half precision
GPUs and CPUs give different figures.

Scores computed with different weights cannot be compared. The paper uses ViT-B/32.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from captioning.metrics.metric import Metric
from captioning.support.errors import CaptioningError

CLIP_SCORE = Metric("CLIPScore", ("CLIPScore",), highest=2.5, optional=True)
REF_CLIP_SCORE = Metric("RefCLIPScore", ("RefCLIPScore",), highest=10 / 7, optional=True)
"""The harmonic mean of at most 2.5 and at most 1."""

PAC_SCORE = Metric("PAC-S", ("PAC-S",), highest=2.0, optional=True)
REF_PAC_SCORE = Metric("RefPAC-S", ("RefPAC-S",), highest=4 / 3, optional=True)
"""The harmonic mean of at most 2 and at most 1."""

_PROMPT = "A photo depicts "
_WEIGHTS = {CLIP_SCORE.name: 2.5, PAC_SCORE.name: 2.0}


class ClipScorer:
    """CLIPScore or PAC-S, with the weights of one CLIP.

    Args:
        weights: a folder written by ``save_pretrained`` of ``transformers``, with model and
            tokenizer, or the name of a CLIP on the Hugging Face hub.
        batch_size: number of images, or captions, at once.
        device: a torch device; None uses a GPU where there is one.
        name: ``CLIPScore``, or ``PAC-S`` with the weights of its authors.
        key: the setting that names the weights, for messages.

    Raises:
        CaptioningError: ``transformers`` is not installed, or the weights cannot be loaded.
    """

    def __init__(
        self,
        weights: str,
        *,
        batch_size: int = 64,
        device: str | None = None,
        name: str = "CLIPScore",
        key: str = "clip_weights",
    ) -> None:
        from captioning.metrics.clip_embeddings import ClipEmbedder  # imports torch

        self.name = name
        self._embed = ClipEmbedder(weights, batch_size, device, name, key)

    def scores(
        self,
        captions: Mapping[str, str],
        photographs: Mapping[str, Path],
        references: Mapping[str, Sequence[str]] | None = None,
        *,
        progress: bool = True,
    ) -> dict[str, list[float]]:
        """Score one caption for each image.

        Args:
            captions: raw captions by image id.
            photographs: the image files of at least these images.
            references: one or more raw captions for each image; None leaves the Ref form out.
            progress: whether to show a progress bar.

        Returns:
            ``CLIPScore`` and, with references, ``RefCLIPScore`` of each image, in the order of the
            captions, from 0 to 2.5 and to 10 / 7; or ``PAC-S`` and ``RefPAC-S``, from 0 to 2 and to
            4 / 3.

        Raises:
            CaptioningError: a photograph is missing or cannot be read.
        """
        for image in captions:
            if image not in photographs:
                raise CaptioningError(f"{self.name} needs the photograph of image {image!r}.")
        seen = self._embed.images([photographs[image] for image in captions], progress)
        said = self._embed.texts([_PROMPT + caption for caption in captions.values()])
        fits = _WEIGHTS[self.name] * (seen * said).sum(-1).clip(min=0)
        found = {self.name: fits.tolist()}
        if references is not None:
            counts = [len(references[image]) for image in captions]
            texts = [_PROMPT + text for image in captions for text in references[image]]
            written = np.split(self._embed.texts(texts), np.cumsum(counts)[:-1])
            closest = np.array(
                [(of_image @ each).max() for each, of_image in zip(said, written, strict=True)]
            ).clip(min=0)
            # The harmonic mean of two zeros is 0.
            mean = 2 * fits * closest / (fits + closest).clip(min=np.finfo(np.float32).tiny)
            found[f"Ref{self.name}"] = mean.tolist()
        return found
