"""How sure a corpus score is: bootstrap intervals over the images, and paired comparisons.

Every corpus score is a formula on sums over the images, or a mean of them: the clipped matches and
lengths of BLEU, the counts of METEOR's alignments, each image's ROUGE-L and CIDEr. With these
statistics kept for each image, the scores of a thousand resamples are one product of matrices.

CIDEr's document frequencies stay those of the whole corpus. They are weights that the references
fix beforehand, alike for every system, and no outcome of one. Counted anew in each resample they
would bias it: an image drawn k times would count as k documents with the same n-grams, so that its
rarest ones would lose log k of their weight, while those of images that were not drawn would look
as if no reference had ever had them. The resampled scores would then not lie around the score they
are to judge. So the interval says how CIDEr varies over images under the weights of this corpus.

What the intervals leave out: other seeds of training, and other references of the same images.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Float

from captioning.support.errors import CaptioningError

_Sums = Float[np.ndarray, "resamples statistics"]
_Samples = dict[str, Float[np.ndarray, " resamples"]]

# Of a block of resamples: 8 MiB as float64 and as the indices it is counted from.
_BLOCK_VALUES = 1 << 20

# Scores closer than this differ by the rounding of their sums alone.
_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Statistics:
    """What each image adds to the corpus scores, enough to score any multiset of the images.

    Attributes:
        images: their ids.
        tables: by metric, a row of numbers for each image:

            - ``BLEU``, 10: clipped matches of n-grams for n = 1 to 4, n-grams of the hypothesis for
              n = 1 to 4, its length, and the length of the reference closest to it.
            - ``METEOR``, 23: METEOR 1.5's own statistics, in the order in which it prints them; but
              no chunk where a caption is its reference, as it leaves that one out of its sums.
            - ``ROUGE-L``, ``CIDEr``, ``SPICE``, ``CLIPScore`` and ``RefCLIPScore``, 1: the image's
              score.
        references: what the captions were scored against, see `fingerprint_references`; empty where
            that is not known.
    """

    images: tuple[str, ...] = ()
    tables: Mapping[str, Float[np.ndarray, "images _"]] = field(default_factory=dict)
    references: str = ""

    def corpus(self, counts: Float[np.ndarray, "resamples images"]) -> _Samples:
        """The corpus scores of many samples of the images at once.

        A row of ones gives the scores of the corpus itself, to 1e-12. METEOR's program prints as
        many digits as its doubles have, so that this holds for METEOR too.

        Args:
            counts: how often each image is in each sample; at least one is, in each.

        Returns:
            ``BLEU-1`` to ``BLEU-4`` and the scores of the other metrics by their names, as far as
            they were asked for, in the scales of `Scores`.
        """
        sizes = counts.sum(axis=1)
        samples: _Samples = {}
        for metric, table in self.tables.items():
            sums = counts @ table
            if metric in _FORMULAS:
                samples.update(_FORMULAS[metric](sums))
            else:
                samples[metric] = sums[:, 0] / sizes
        return samples

    def select(self, images: Sequence[str]) -> "Statistics":
        """The statistics of some of the images, in the order given.

        Raises:
            KeyError: one of them is not there.
        """
        places = {image: place for place, image in enumerate(self.images)}
        rows = np.array([places[image] for image in images], dtype=np.intp)
        return Statistics(
            tuple(images),
            {metric: table[rows] for metric, table in self.tables.items()},
            self.references,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data: the fields by name, tables as lists of rows, whole numbers as integers."""
        return {
            "references": self.references,
            "images": list(self.images),
            "tables": {
                metric: [[_plain(number) for number in row] for row in table.tolist()]
                for metric, table in self.tables.items()
            },
        }

    @classmethod
    def from_json(cls, written: Any, metrics: Sequence[str] | None = None) -> "Statistics":
        """Statistics from what `to_json` gave.

        Args:
            written: plain data, as JSON has it.
            metrics: the tables to read, as far as they are there; None reads all.

        Raises:
            CaptioningError: it is something else; a metric is unknown, or has other than its number
                of finite numbers for each image.
        """
        if not (
            isinstance(written, dict)
            and set(written) == {"references", "images", "tables"}
            and isinstance(written["references"], str)
            and _are_names(written["images"])
            and isinstance(written["tables"], dict)
        ):
            raise CaptioningError(
                "no statistics, which are `references`, `images` (each once) and `tables`: score "
                "the captions again"
            )
        images = tuple(written["images"])
        tables = {}
        for metric, rows in written["tables"].items():
            if metrics is None or metric in metrics:
                table = _table(rows)
                if metric not in _WIDTHS or table.shape != (len(images), _WIDTHS[metric]):
                    raise CaptioningError(
                        f"the statistics of {metric!r} must be {_WIDTHS.get(metric, 'no')} finite "
                        f"numbers for each of {len(images)} images: score the captions again"
                    )
                tables[metric] = table
        return cls(images, tables, written["references"])


def fingerprint_references(references: Mapping[str, Sequence[str]]) -> str:
    """SHA-256 (hex) over what captions are scored against.

    Args:
        references: raw captions by image id. The order of the images, and of the captions of an
            image, does not matter.
    """
    digest = hashlib.sha256()
    for image in sorted(references):
        digest.update(json.dumps([image, sorted(references[image])]).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Paired:
    """How much better one system scores than another on the same images.

    Attributes:
        difference: of the corpus scores, first minus second.
        low: lower end of the difference's bootstrap interval.
        high: upper end.
        p_value: see `paired`.
    """

    difference: float
    low: float
    high: float
    p_value: float


def intervals(
    statistics: Statistics, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap interval of each corpus score (Efron and Tibshirani 1993, ch. 13).

    As many images as there are get drawn with replacement, again and again; the interval reaches
    from one quantile of the scores of these resamples to the other. It depends on the ids of the
    images, not on their order.

    Args:
        statistics: of one system.
        resamples: how many to draw. A thousand fix the ends to within some 4 % of its width.
        seed: equal seeds give equal intervals.
        level: share of the resamples inside.

    Returns:
        ``{score: (low, high)}``. Empty for fewer than two images, which show no variation: an
        interval of no width would claim certainty.

    Raises:
        CaptioningError: ``resamples`` is below 1, or ``level`` is not between 0 and 1.
    """
    return mean_intervals([statistics], resamples, seed, level)


def mean_intervals(
    runs: Sequence[Statistics], resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """The intervals of the mean of several runs of a system on the same images.

    They say how the mean of these very runs varies over images, and nothing of further seeds.

    Args:
        runs: statistics of each, at least one.
        resamples: see `intervals`, as for the rest.
        seed: likewise.
        level: likewise.

    Raises:
        CaptioningError: as `intervals`.
        KeyError: one of the images of the first is not among those of another.
    """
    _check(resamples, level)
    images = sorted(runs[0].images)
    if len(images) < 2:
        return {}
    samples = _mean(_resampled([run.select(images) for run in runs], resamples, seed))
    return {score: _percentiles(values, level) for score, values in samples.items()}


def paired(
    first: Statistics,
    second: Statistics,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Paired]:
    """Paired bootstrap comparison of two systems: both are scored on the same resamples.

    The p-value is two-sided and agrees with the interval, being below 0.05 where the 95 % interval
    leaves out 0 (up to a resample): it is twice the share of the resamples in which the system that
    is ahead is not. That is the test of Koehn ("Statistical Significance Tests for Machine
    Translation Evaluation", EMNLP 2004), doubled, or the level at which the percentile interval
    begins to hold 0 (Efron and Tibshirani 1993, sec. 15.4). Ties speak against a difference; and
    the corpus itself counts as one more resample on either side (Davison and Hinkley 1997,
    sec. 4.2), so that p is never 0: with 1,000 resamples it is at least 2 / 1001. It is not
    corrected for the number of comparisons made.

    Args:
        first: statistics of one system.
        second: of the other; of the same images, in any order, against the same references.
        resamples: how many to draw.
        seed: equal seeds give equal results, and the same resamples for all systems.
        level: of the interval of the difference.

    Returns:
        A comparison of each corpus score that both have. Empty for fewer than two images, as in
        `intervals`.

    Raises:
        CaptioningError: the images or the references differ, ``resamples`` is below 1, or ``level``
            is not between 0 and 1.
    """
    return compare([[first]], [second], resamples, seed, level)[0]


def compare(
    systems: Sequence[Sequence[Statistics]],
    against: Sequence[Statistics],
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[dict[str, Paired]]:
    """Compare many systems with one, as `paired` does two; the resamples are drawn once.

    A system may have been trained several times: its score is then the mean over these runs, in the
    corpus and in each resample. So the interval says how the mean of these very runs varies over
    images, and nothing of further seeds.

    Args:
        systems: the runs of each, at least one.
        against: those of the system to compare with.
        resamples: how many to draw.
        seed: equal seeds give equal results.
        level: of the intervals of the differences.

    Returns:
        For each of ``systems``, a comparison of each corpus score that all runs have; see `paired`.

    Raises:
        CaptioningError: as `paired` does.
    """
    _check(resamples, level)
    first = against[0]
    runs = [run for system in (against, *systems) for run in system]
    for run in runs:
        if apart := set(first.images) ^ set(run.images):
            raise CaptioningError(
                f"the two systems captioned different images ({len(apart)} have a caption of only "
                f"one of them, such as {min(apart)!r}): compare systems on the same images"
            )
        if first.references != run.references:
            raise CaptioningError(
                "the two systems were scored against different references: score the captions of "
                "both again, against the same"
            )
    images = sorted(first.images)
    if len(images) < 2:
        return [{} for _ in systems]
    selected = [run.select(images) for run in runs]
    corpora = iter([run.corpus(np.ones((1, len(images)))) for run in selected])
    samples = iter(_resampled(selected, resamples, seed))
    base, *others = [
        (_mean(list(islice(corpora, len(system)))), _mean(list(islice(samples, len(system)))))
        for system in (against, *systems)
    ]
    return [
        {
            score: _compared(
                float(corpus[score][0] - base[0][score][0]), drawn[score] - base[1][score], level
            )
            for score in drawn
            if score in base[1]
        }
        for corpus, drawn in others
    ]


def _mean(runs: Sequence[_Samples]) -> _Samples:
    """The mean over runs of each score that all of them have."""
    return {
        score: np.mean([run[score] for run in runs], axis=0)
        for score in runs[0]
        if all(score in run for run in runs)
    }


def _check(resamples: int, level: float) -> None:
    if resamples < 1 or not 0 < level < 1:
        raise CaptioningError(
            f"resamples={resamples} must be at least 1, and level={level} between 0 and 1"
        )


def _compared(difference: float, samples: Float[np.ndarray, " resamples"], level: float) -> Paired:
    behind = min(np.sum(samples <= _ROUNDING), np.sum(samples >= -_ROUNDING))
    p_value = min(1.0, 2 * (1 + int(behind)) / (1 + len(samples)))
    return Paired(difference, *_percentiles(samples, level), p_value)


def _percentiles(samples: Float[np.ndarray, " resamples"], level: float) -> tuple[float, float]:
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled(systems: Sequence[Statistics], resamples: int, seed: int) -> list[_Samples]:
    """The scores of each system, all of the same images, on the same resamples."""
    blocks = [
        [system.corpus(counts) for system in systems]
        for counts in _draws(len(systems[0].images), resamples, seed)
    ]
    return [
        {score: np.concatenate([block[place][score] for block in blocks]) for score in samples}
        for place, samples in enumerate(blocks[0])
    ]


def _draws(
    images: int, resamples: int, seed: int
) -> Iterator[Float[np.ndarray, "resamples images"]]:
    """Resamples as counts of the images, in blocks of bounded size; the same for any size."""
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_VALUES // images)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = rng.integers(images, size=(rows, images))
        drawn += images * np.arange(rows)[:, None]  # each row counts in a range of its own
        counts = np.bincount(drawn.ravel(), minlength=rows * images)
        yield counts.reshape(rows, images).astype(np.float64)


def _bleu(sums: _Sums) -> _Samples:
    """BLEU-1 to BLEU-4 (Papineni et al. 2002), with pycocoevalcap's guards against 0 / 0."""
    small, tiny = 1e-9, 1e-15
    correct, guessed, lengths, reference_lengths = np.split(sums, [4, 8, 9], axis=1)
    precisions = (correct + tiny) / (guessed + small)
    means = np.cumprod(precisions, axis=1) ** (1 / np.arange(1, 5))
    ratios = (lengths + tiny) / (reference_lengths + small)
    scores = means * np.exp(np.minimum(0, 1 - 1 / ratios))
    return {f"BLEU-{n}": scores[:, n - 1] for n in range(1, 5)}


# METEOR 1.5's parameters for English, as its program has them by itself (task "rank").
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_MATCHERS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase
_WORDS = np.array([_DELTA, 1 - _DELTA])  # content, function


def _meteor(sums: _Sums) -> _Samples:
    """METEOR 1.5 (Denkowski and Lavie 2014, sec. 2) of summed statistics."""
    # The last axis of each: hypothesis, reference.
    lengths, function_words, matched = sums[:, 0:2], sums[:, 2:4], sums[:, 21:23]
    matches = sums[:, 4:20].reshape(-1, len(_MATCHERS), len(_WORDS), 2)
    chunks = sums[:, 20]

    weighted_lengths = _DELTA * (lengths - function_words) + (1 - _DELTA) * function_words
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.einsum("rmwh,m,w->rh", matches, _MATCHERS, _WORDS) / weighted_lengths
        precision, recall = shares.T
        mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
        fragmentation = chunks / matched.mean(axis=1)
    penalty = _GAMMA * fragmentation**_BETA
    # Where nothing matches, 0 / 0 stands for a score of 0.
    return {"METEOR": np.nan_to_num((mean * (1 - penalty)).clip(min=0), nan=0.0)}


# The scores of a metric from its summed statistics; those of the others are means over the images.
_FORMULAS: dict[str, Callable[[_Sums], _Samples]] = {"BLEU": _bleu, "METEOR": _meteor}

_MEANS = ("ROUGE-L", "CIDEr", "SPICE", "CLIPScore", "RefCLIPScore")

_WIDTHS = {"BLEU": 10, "METEOR": 23, **dict.fromkeys(_MEANS, 1)}


def _plain(number: float) -> int | float:
    return int(number) if number.is_integer() else number


def _are_names(images: Any) -> bool:
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        return False
    return len(set(images)) == len(images)


def _table(rows: Any) -> Float[np.ndarray, "..."]:
    """Rows of numbers; an array of no shape that a table has, where they are something else."""
    try:
        table = np.array(rows)
    except ValueError:  # rows of different lengths
        return np.empty(0)
    good = table.dtype.kind in "if" and np.isfinite(table).all()
    return table.astype(np.float64) if good else np.empty(0)
