"""Embeddings of photographs and captions by CLIP, for CLIPScore. This module imports torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, center_crop, resize, to_image

from captioning.data.images import load_rgb
from captioning.support.errors import CaptioningError
from captioning.support.progress import track_progress

# CLIP's own preprocessing: the mean and the standard deviation of each colour channel.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class ClipEmbedder:
    """Embeds photographs and texts with one CLIP, in single precision; embeddings have length 1.

    Args:
        weights: see `captioning.metrics.clipscore.ClipScorer`.
        batch_size: number of images, or texts, at once.
        device: a torch device; None uses a GPU where there is one.
        metric: the metric that it is for, for messages.
        key: the setting that names the weights, for messages.

    Raises:
        CaptioningError: ``transformers`` is not installed, or the weights cannot be loaded.
    """

    def __init__(
        self, weights: str, batch_size: int, device: str | None, metric: str, key: str
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.batch_size = batch_size
        self.metric = metric
        self._model, self._tokenizer = _load(weights, metric, key)
        self._model.to(self.device)

    @torch.inference_mode()
    def images(self, files: Sequence[Path], progress: bool) -> Float[np.ndarray, "images channels"]:
        """Embed photographs.

        Raises:
            CaptioningError: a photograph cannot be read.
        """
        size = self._model.config.vision_config.image_size
        parts = []
        with track_progress(self.metric, len(files), visible=progress) as advance:
            for start in range(0, len(files), self.batch_size):
                batch = files[start : start + self.batch_size]
                pixels = torch.stack([_preprocessed(file, size) for file in batch])
                # Convolutions in TF32, torch's default on a GPU, have half precision.
                with torch.backends.cudnn.flags(allow_tf32=False):
                    pooled = self._model.vision_model(pixels.to(self.device)).pooler_output
                parts.append(_normalised(self._model.visual_projection(pooled)))
                advance(len(batch))
        return torch.cat(parts).cpu().numpy()

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Float[np.ndarray, "texts channels"]:
        """Embed texts; those that are longer than CLIP's context are cut off."""
        # Many texts occur more than once. Texts of similar length share a batch, to pad less.
        distinct = sorted(set(texts), key=len)
        longest = self._model.config.text_config.max_position_embeddings
        parts = []
        for start in range(0, len(distinct), self.batch_size):
            tokens = self._tokenizer(
                distinct[start : start + self.batch_size],
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
        return torch.cat(parts)[[places[text] for text in texts]].cpu().numpy()


def _load(weights: str, metric: str, key: str) -> tuple[Any, Any]:
    try:
        from transformers import AutoTokenizer, CLIPModel, logging
    except ImportError:
        raise CaptioningError(
            f'{metric} needs the package transformers: pip install "transformers>=4.45"'
        ) from None
    quiet: Any = logging.disable_progress_bar  # files on disk load quickly
    quiet()
    try:
        loaded: Any = CLIPModel.from_pretrained(weights, output_loading_info=True)
        model, found = loaded
        if missing := sorted(found["missing_keys"]):  # transformers would initialise them randomly
            raise ValueError(f"{missing[0]} and {len(missing) - 1} more parameters are missing")
        tokenizer = AutoTokenizer.from_pretrained(weights)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CaptioningError(
            f"{key}={weights}: CLIP cannot be loaded ({reason}): name a folder with "
            "the model and its tokenizer, or one on the Hugging Face hub."
        ) from error
    return model.float().eval(), tokenizer


def _preprocessed(file: Path, size: int) -> Float[Tensor, "3 size size"]:
    """The centre crop of a photograph whose shorter side is resized to ``size``, as for CLIP."""
    # Pillow's bicubic resampling, with which CLIP was trained; torch's differs in the last bits.
    picture = resize(load_rgb(file), [size], InterpolationMode.BICUBIC)
    pixels = to_image(center_crop(picture, [size, size])).float() / 255
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (_MEAN, _DEVIATION))
    normalised: Tensor = (pixels - mean) / deviation
    return normalised


def _normalised(embeddings: Float[Tensor, "rows channels"]) -> Float[Tensor, "rows channels"]:
    return torch.nn.functional.normalize(embeddings, dim=-1)
