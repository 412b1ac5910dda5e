"""CLIPScore and RefCLIPScore: how well a caption fits the photograph itself, by CLIP.

J. Hessel et al., "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", EMNLP 2021,
sec. 3. With image embedding v, caption embedding c and reference embeddings R:

- CLIPScore(c, v) = 2.5 max(cos(c, v), 0), without any reference;
- RefCLIPScore(c, R, v) is the harmonic mean of CLIPScore(c, v) and max(max_r cos(c, r), 0).

A corpus score is the mean over the images. Captions are raw and follow the prompt "A photo
depicts", as in the paper. Everything is computed in single precision: in half precision, other
implementations give one figure on a GPU and another on a CPU.

Scores of different weights cannot be compared. The paper's are those of ViT-B/32.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, center_crop, resize, to_image

from captioning.data.images import load_rgb
from captioning.support.errors import CaptioningError
from captioning.support.progress import track_progress

_PROMPT = "A photo depicts"
_WEIGHT = 2.5

# CLIP's own: the mean and the deviation of its training images' channels.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class ClipScorer:
    """CLIPScore with the weights of one CLIP.

    Args:
        weights: a folder as ``save_pretrained`` of ``transformers`` leaves it, with model and
            tokenizer, or the name of such a CLIP on the Hugging Face hub.
        batch_size: images, or captions, at once.
        device: what torch calls it; None takes a GPU where there is one.

    Raises:
        CaptioningError: ``transformers`` is not installed, or the weights cannot be had.
    """

    def __init__(
        self,
        weights: str,
        *,
        batch_size: int = 64,
        device: str | None = None,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.batch_size = batch_size
        self._model, self._tokenizer = _load(weights)
        self._model.to(self.device)

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
            references: one or more raw captions for each image; None leaves RefCLIPScore out.
            progress: whether to show how far it has come.

        Returns:
            ``CLIPScore`` and, with references, ``RefCLIPScore`` of each image, in the order of the
            captions; from 0 to 2.5 and to 10 / 7.

        Raises:
            CaptioningError: a photograph is missing or cannot be read.
        """
        for image in captions:
            if image not in photographs:
                raise CaptioningError(f"CLIPScore needs the photograph of image {image!r}.")
        seen = self._embed_images([photographs[image] for image in captions], progress)
        said = self._embed_texts(list(captions.values()))
        fits = _WEIGHT * (seen * said).sum(-1).clamp(min=0)
        found = {"CLIPScore": fits.tolist()}
        if references is not None:
            counts = [len(references[image]) for image in captions]
            texts = [text for image in captions for text in references[image]]
            written = torch.split_with_sizes(self._embed_texts(texts), counts)
            closest = torch.stack(
                [(each @ of_image.T).max() for each, of_image in zip(said, written, strict=True)]
            ).clamp(min=0)
            # Where both are 0, so is their harmonic mean.
            mean = 2 * fits * closest / (fits + closest).clamp(min=torch.finfo().tiny)
            found["RefCLIPScore"] = mean.tolist()
        return found

    @torch.inference_mode()
    def _embed_images(
        self, files: Sequence[Path], progress: bool
    ) -> Float[Tensor, "images channels"]:
        size = self._model.config.vision_config.image_size
        parts = []
        with track_progress("CLIPScore", len(files), visible=progress) as advance:
            for start in range(0, len(files), self.batch_size):
                batch = files[start : start + self.batch_size]
                pixels = torch.stack([_preprocessed(file, size) for file in batch])
                # Convolutions in TF32, torch's default on a GPU, have the precision of halves.
                with torch.backends.cudnn.flags(allow_tf32=False):
                    pooled = self._model.vision_model(pixels.to(self.device)).pooler_output
                parts.append(_normalised(self._model.visual_projection(pooled)))
                advance(len(batch))
        return torch.cat(parts)

    @torch.inference_mode()
    def _embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "texts channels"]:
        # References repeat, and captions do. Those of like length share a batch, to pad less.
        distinct = sorted(set(texts), key=len)
        longest = self._model.config.text_config.max_position_embeddings
        parts = []
        for start in range(0, len(distinct), self.batch_size):
            tokens = self._tokenizer(
                [f"{_PROMPT} {text}" for text in distinct[start : start + self.batch_size]],
                padding=True,
                truncation=True,
                max_length=longest,
                return_tensors="pt",
            )
            pooled = self._model.text_model(
                input_ids=tokens["input_ids"].to(self.device),
                attention_mask=tokens["attention_mask"].to(self.device),
            ).pooler_output
            parts.append(_normalised(self._model.text_projection(pooled)))
        places = {text: place for place, text in enumerate(distinct)}
        rows: Tensor = torch.cat(parts)[[places[text] for text in texts]]
        return rows


def _load(weights: str) -> tuple[Any, Any]:
    try:
        from transformers import AutoTokenizer, CLIPModel, logging
    except ImportError:
        raise CaptioningError(
            'CLIPScore needs the package transformers: pip install "transformers>=4.45"'
        ) from None
    quiet: Any = logging.disable_progress_bar  # reading a file from the disk needs none
    quiet()
    try:
        loaded: Any = CLIPModel.from_pretrained(weights, output_loading_info=True)
        model, found = loaded
        if missing := sorted(found["missing_keys"]):  # they would have random values
            raise ValueError(f"{missing[0]} and {len(missing) - 1} more parameters are not there")
        tokenizer = AutoTokenizer.from_pretrained(weights)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CaptioningError(
            f"clip_weights={weights}: no CLIP to be had there ({reason}): name a folder with the "
            "model and its tokenizer, or one on the Hugging Face hub."
        ) from error
    return model.float().eval(), tokenizer


def _preprocessed(file: Path, size: int) -> Float[Tensor, "3 size size"]:
    """The middle square of a photograph whose shorter side has become ``size``, as CLIP has it."""
    # Pillow's bicubic, with which CLIP was trained: torch's own differs in the last bits.
    picture = resize(load_rgb(file), [size], InterpolationMode.BICUBIC)
    pixels = to_image(center_crop(picture, [size, size])).float() / 255
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (_MEAN, _DEVIATION))
    normalised: Tensor = (pixels - mean) / deviation
    return normalised


def _normalised(embeddings: Float[Tensor, "rows channels"]) -> Float[Tensor, "rows channels"]:
    return torch.nn.functional.normalize(embeddings, dim=-1)
