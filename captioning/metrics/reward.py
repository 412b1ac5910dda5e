"""The reward of a sampled caption: CIDEr-D, and BLEU-4 if it is given a weight.

Whether the end token is a part of the captions decides what self-critical training teaches.
Without it, n-grams such as "with a <end>" are never compared with the references, and models learn
captions that end "with a", which CIDEr-D does not penalise (Hu et al. 2023, arXiv 2305.12254).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from pycocoevalcap.bleu import bleu_scorer

from captioning.metrics.cider import CiderD
from captioning.support.special_tokens import END, SPECIAL_WORDS

Words = Sequence[str]

END_WORD = SPECIAL_WORDS[END]


class CaptionReward:
    """Scores captions of images whose references are known beforehand.

    The reward is CIDEr-D (0 to 10) + ``bleu_weight`` times the caption's own BLEU-4 (0 to 1).

    Args:
        references: the words of the references of each image, by image id.
        documents: the references from which CIDEr-D's document frequencies are counted.
        bleu_weight: weight of BLEU-4.
        end_token: whether the end token is the last word of references, documents and captions.
    """

    def __init__(
        self,
        references: Mapping[str, Sequence[Words]],
        documents: Mapping[str, Sequence[Words]],
        bleu_weight: float = 0.0,
        end_token: bool = True,
    ) -> None:
        self.end = [END_WORD] if end_token else []
        ended = {image: [[*words, *self.end] for words in of] for image, of in references.items()}
        counted = {image: [[*words, *self.end] for words in of] for image, of in documents.items()}
        self.cider = CiderD(ended, counted)
        self.bleu_weight = bleu_weight
        self.bleu_references = {
            image: bleu_scorer.cook_refs([" ".join(words) for words in of])
            for image, of in (ended.items() if bleu_weight else ())
        }

    def __call__(
        self, images: Sequence[str], captions: Sequence[Words], ended: Sequence[bool]
    ) -> Float[np.ndarray, " captions"]:
        """The reward of each caption.

        Args:
            images: the image of each caption.
            captions: the words of each caption, without special tokens.
            ended: whether a caption has ended; one that was cut off gets no end token.

        Raises:
            CaptioningError: an image has no references.
        """
        captions = [
            [*words, *self.end] if has_ended else list(words)
            for words, has_ended in zip(captions, ended, strict=True)
        ]
        rewards = self.cider(images, captions)
        if self.bleu_weight:
            rewards += self.bleu_weight * self._bleu(images, captions)
        return rewards

    def _bleu(
        self, images: Sequence[str], captions: Sequence[Words]
    ) -> Float[np.ndarray, " captions"]:
        """BLEU-4 of each caption by the original scorer, with the closest reference length."""
        scorer = bleu_scorer.BleuScorer(n=4)
        scorer.crefs = [self.bleu_references[image] for image in images]
        joined = [" ".join(words) for words in captions]
        _, per_caption = scorer.retest(joined).compute_score(option="closest")
        return np.asarray(per_caption[3], dtype=np.float64)
