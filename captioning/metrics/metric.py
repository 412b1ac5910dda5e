"""What a caption metric declares of itself, whether it is built in or a user's own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

Sums = Float[np.ndarray, "resamples statistics"]
"""The statistics of a metric, summed over the images of each resample."""

Samples = dict[str, Float[np.ndarray, " resamples"]]
"""Corpus scores of several resamples, by the name of the score."""


class Computed(NamedTuple):
    """What a metric computes from the captions of a corpus.

    Attributes:
        corpus: each score of all images together, by its name.
        per_image: the same scores of every image, in the order of the captions.
        table: the statistics of each image, from which any resample of the images can be scored.
    """

    corpus: dict[str, float]
    per_image: dict[str, list[float]]
    table: Float[np.ndarray, "images statistics"]


def computed_mean(name: str, corpus: float, per_image: Sequence[float]) -> Computed:
    """The result of a metric with one score, whose corpus score is the mean over the images."""
    table = np.asarray(per_image, dtype=np.float64)[:, None]
    return Computed({name: float(corpus)}, {name: list(map(float, per_image))}, table)


@dataclass(frozen=True)
class Metric:
    """The declaration of a metric: all that result files, bootstrap and leaderboard need to know.

    Attributes:
        name: what the user asks for, and the key of its statistics.
        scores: the names of the scores that it gives; BLEU gives four, most metrics give one of
            their own name.
        highest: the highest value of each score, on the metric's own scale, which starts at 0.
        higher_is_better: whether a higher score is a better one.
        optional: whether it is computed only where the user asks for it.
        statistics: how many numbers the bootstrap keeps for each image.
        from_sums: computes the corpus scores from the statistics summed over the images. None if
            the corpus score is the mean of the images' scores, which are then the statistics.
        prepare: prepares the tokenised references of one image, once for many hypotheses.
        compute: scores one tokenised caption for each image, given the prepared references in the
            same order. None for an optional metric, whose own module has another interface.
    """

    name: str
    scores: tuple[str, ...]
    highest: float = 1.0
    higher_is_better: bool = True
    optional: bool = False
    statistics: int = 1
    from_sums: Callable[[Sums], Samples] | None = None
    prepare: Callable[[list[str]], Any] = list
    compute: Callable[[list[Any], list[str]], Computed] | None = None
