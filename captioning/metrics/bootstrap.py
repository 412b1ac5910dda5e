"""Bootstrap intervals of corpus scores over the images, and paired comparisons of systems.

CIDEr's document frequencies stay those of the whole corpus. They are weights which the references
determine, and they are the same for every system. Recounting them in each resample would bias the
scores: an image drawn k times would count as k documents with the same n-grams, so that its rarest
n-grams would lose log k of their weight, and the n-grams of images that were not drawn would look
as if no reference contained them. The resampled scores would then not be centred on the score of
the corpus. The interval therefore tells how CIDEr varies over images under the weights of this
corpus.

The intervals say nothing about other training seeds, nor about other references of the same images.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
from jaxtyping import Float

from captioning.metrics.metric import Samples
from captioning.metrics.resampling import scores_of_resamples
from captioning.metrics.statistics import Statistics
from captioning.support.errors import CaptioningError

MIN_IMAGES_FOR_P_VALUE: Final = 30
"""With fewer images, `paired` gives no p-value.

The percentile bootstrap takes the variance of the images for the true one and normal quantiles for
those of Student's t, so that its p-values are too small for few images. Even for normal differences
a test at the 5 % level is wrong in 6.4 % of cases with 30 images, in 9.6 % with 10 and in 15 % with
5 (the probability that |t| with n - 1 degrees of freedom exceeds 1.96 sqrt((n - 1) / n)); for
skewed scores such as CIDEr in more. From 30 images on, the error is small beside what the p-value
leaves out, such as the variation over seeds.
"""

# Scores that differ by less than this are equal but for rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Paired:
    """The difference between the scores of two systems on the same images.

    Attributes:
        difference: of the corpus scores, first minus second.
        low: lower end of the difference's bootstrap interval.
        high: upper end.
        p_value: see `paired`; None for fewer than `MIN_IMAGES_FOR_P_VALUE` images.
    """

    difference: float
    low: float
    high: float
    p_value: float | None


def intervals(
    statistics: Statistics, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap interval of each corpus score (Efron and Tibshirani 1993, ch. 13).

    Each resample draws as many images as there are, with replacement. The ends of the interval are
    quantiles of the scores of the resamples. They depend on the ids of the images, not on their
    order.

    Args:
        statistics: of one system.
        resamples: how many to draw. With 1,000 the ends are accurate to about 4 % of the width.
        seed: equal seeds give equal intervals.
        level: share of the resamples inside.

    Returns:
        ``{score: (low, high)}``. Empty for fewer than two images, which show no variation.

    Raises:
        CaptioningError: ``resamples`` is below 1, or ``level`` is not between 0 and 1.
    """
    return mean_intervals([statistics], resamples, seed, level)


def mean_intervals(
    runs: Sequence[Statistics], resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """The intervals of the mean of several runs of a system on the same images.

    They tell how the mean of these runs varies over images, and say nothing about further seeds.

    Args:
        runs: statistics of each, at least one.
        resamples: as in `intervals`.
        seed: as in `intervals`.
        level: as in `intervals`.

    Raises:
        CaptioningError: as `intervals`.
        KeyError: a run lacks one of the images of the first run.
    """
    _check(resamples, level)
    return resampled([runs], resamples, seed)[0].intervals(level)


def paired(
    first: Statistics,
    second: Statistics,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Paired]:
    """Paired bootstrap comparison of two systems: both are scored on the same resamples.

    The p-value is two-sided: twice the share of the resamples in which the better system is not
    better. It is below 0.05 if the 95 % interval excludes 0 (up to one resample). This is the test
    of Koehn ("Statistical Significance Tests for Machine Translation Evaluation", EMNLP 2004),
    doubled, or the level at which the percentile interval begins to contain 0 (Efron and Tibshirani
    1993, sec. 15.4). Ties count against a difference. The corpus itself counts as one more resample
    on either side (Davison and Hinkley 1997, sec. 4.2), so that p is never 0: with 1,000 resamples
    it is at least 2 / 1001. It is not corrected for the number of comparisons. With few images no
    p-value is given, see `MIN_IMAGES_FOR_P_VALUE`.

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

    A system may have several runs. Its score is then the mean over these runs, in the corpus and in
    each resample. The interval tells how the mean of these runs varies over images, and says
    nothing about further seeds.

    Args:
        systems: the runs of each, at least one.
        against: the runs of the system to compare with.
        resamples: how many to draw.
        seed: equal seeds give equal results.
        level: of the intervals of the differences.

    Returns:
        For each of ``systems``, a comparison of each corpus score that all runs have; see `paired`.

    Raises:
        CaptioningError: as `paired` does.
    """
    _check(resamples, level)
    for run in (*against[1:], *(run for system in systems for run in system)):
        _check_comparable(against[0], run)
    base, *others = resampled([against, *systems], resamples, seed)
    return [other.minus(base, level) for other in others]


@dataclass(frozen=True)
class Resampled:
    """The scores of a system on its images, and on many resamples of them.

    Attributes:
        first: its first run.
        corpus: the scores on the images themselves; of several runs, their mean, as in `samples`.
        samples: the scores on each resample. Both are empty for fewer than two images.
    """

    first: Statistics
    corpus: Mapping[str, float]
    samples: Samples

    def intervals(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """The percentile interval of each score."""
        return {score: _percentiles(values, level) for score, values in self.samples.items()}

    def minus(self, other: "Resampled", level: float = 0.95) -> dict[str, Paired]:
        """The comparison of each score that both have; see `paired`.

        Raises:
            CaptioningError: the images or the references differ.
        """
        _check_comparable(other.first, self.first)
        return {
            score: _compared(
                self.corpus[score] - other.corpus[score],
                drawn - other.samples[score],
                level,
                has_p_value=len(self.first.images) >= MIN_IMAGES_FOR_P_VALUE,
            )
            for score, drawn in self.samples.items()
            if score in other.samples
        }


def resampled(
    systems: Sequence[Sequence[Statistics]], resamples: int = 1000, seed: int = 0
) -> list[Resampled]:
    """Score many systems on resamples, which are drawn once for all systems of the same images.

    Intervals and comparisons of a system can both be made of the result.

    Args:
        systems: the runs of each, at least one.
        resamples: how many to draw.
        seed: as in `intervals`.

    Raises:
        KeyError: a run lacks one of the images of the first run of its system.
    """
    alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, runs in enumerate(systems):
        alike[tuple(sorted(runs[0].images))].append(place)
    found = [Resampled(runs[0], {}, {}) for runs in systems]
    for images, places in alike.items():
        if len(images) < 2:
            continue
        runs = [run.select(images) for place in places for run in systems[place]]
        corpora = iter([run.corpus(np.ones((1, len(images)))) for run in runs])
        samples = iter(scores_of_resamples(runs, resamples, seed))
        for place in places:
            number = len(systems[place])
            corpus = _mean(list(islice(corpora, number)))
            found[place] = Resampled(
                systems[place][0],
                {score: float(values[0]) for score, values in corpus.items()},
                _mean(list(islice(samples, number))),
            )
    return found


def _check_comparable(first: Statistics, other: Statistics) -> None:
    if apart := set(first.images) ^ set(other.images):
        raise CaptioningError(
            f"the two systems captioned different images ({len(apart)} have a caption of only "
            f"one of them, such as {min(apart)!r}): compare systems on the same images"
        )
    if first.references != other.references:
        raise CaptioningError(
            "the two systems were scored against different references: score the captions of "
            "both again, against the same"
        )


def _mean(runs: Sequence[Samples]) -> Samples:
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


def _compared(
    difference: float,
    samples: Float[np.ndarray, " resamples"],
    level: float,
    *,
    has_p_value: bool,
) -> Paired:
    # A resample with equal scores counts on either side, and therefore against a difference.
    behind = min(np.sum(samples <= _ROUNDING), np.sum(samples >= -_ROUNDING))
    p_value = min(1.0, 2 * (1 + int(behind)) / (1 + len(samples)))
    return Paired(difference, *_percentiles(samples, level), p_value if has_p_value else None)


def _percentiles(samples: Float[np.ndarray, " resamples"], level: float) -> tuple[float, float]:
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
