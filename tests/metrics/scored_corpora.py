"""Corpora with captions, and the scores that the original tools give any images of them."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider import cider_scorer
from pycocoevalcap.rouge.rouge import Rouge

from captioning.metrics import CaptionScorer, Statistics
from captioning.metrics.meteor import meteor_scores
from captioning.metrics.tokenizer import tokenize

ALL = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr"]


@dataclass
class Case:
    """A corpus, its scores, and its tokens as the original tools take them."""

    hypotheses: dict[str, str]
    references: dict[str, list[str]]

    def __post_init__(self) -> None:
        self.scorer = CaptionScorer(self.references)
        self.scores = self.scorer.score(self.hypotheses)
        self.captions = tokenize([self.hypotheses[image] for image in self.references])
        every = [caption for captions in self.references.values() for caption in captions]
        tokens = iter(tokenize(every, remember=True))
        self.tokens = [[next(tokens) for _ in captions] for captions in self.references.values()]

    def scored_again(self, drawn: list[int]) -> dict[str, float]:
        """The original tools' scores of images that were drawn, as so many images."""
        gts = {place: self.tokens[image] for place, image in enumerate(drawn)}
        res = {place: [self.captions[image]] for place, image in enumerate(drawn)}
        bleu = Bleu(4).compute_score(gts, res, verbose=0)[0]
        scores = {f"BLEU-{n}": float(score) for n, score in enumerate(bleu, start=1)}
        scores["METEOR"] = meteor_scores([res[place][0] for place in gts], list(gts.values()))[0]
        scores["ROUGE-L"] = float(Rouge().compute_score(gts, res)[0])
        cider = cider_scorer.CiderScorer()
        cider.crefs = [cider_scorer.cook_refs(captions) for captions in self.tokens]
        cider.compute_doc_freq()  # of the whole corpus, and no others hereafter
        cider.crefs = [cider_scorer.cook_refs(gts[place]) for place in gts]
        cider.ctest = [cider_scorer.cook_test(res[place][0]) for place in gts]
        scores["CIDEr"] = float(np.mean(cider.compute_cider()))
        return scores


def made_up_corpus(images: int = 40) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Captions of few words, so that many n-grams are shared; empty ones and whole matches too."""
    rng = random.Random(0)
    words = ["a", "the", "on", "dog", "dogs", "puppy", "man", "runs", "running", "big", "field"]
    references = {
        f"{i}.jpg": [" ".join(rng.choices(words, k=rng.randint(1, 9))) for _ in range(i % 5 + 1)]
        for i in range(images)
    }
    kinds: list[Callable[[list[str]], str]] = [
        lambda captions: captions[-1],
        lambda captions: "",
        lambda captions: " ".join(reversed(captions[0].split())),
        lambda captions: " ".join(rng.choices(words, k=rng.randint(1, 12))),
        lambda captions: captions[0].replace("dog", "puppy") + " today",
    ]
    hypotheses = {
        image: kinds[min(place % 7, 4)](captions)
        for place, (image, captions) in enumerate(references.items())
    }
    return hypotheses, references


def whole(statistics: Statistics) -> dict[str, float]:
    samples = statistics.corpus(np.ones((1, len(statistics.images))))
    return {name: float(sample[0]) for name, sample in samples.items()}
