"""The registry of metrics: result files, bootstrap and leaderboard read what metrics declare here.

Each built-in metric declares itself in its own module as a `Metric`. A user's own metric is a class
of any package, see `ImageMetric`; `load_metric` finds it by its dotted path and registers it. The
leaderboard does not need that class, because results files hold its declaration.
"""

import math
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from captioning.metrics.bleu import BLEU
from captioning.metrics.cider import CIDER
from captioning.metrics.clipscore import CLIP_SCORE, PAC_SCORE, REF_CLIP_SCORE, REF_PAC_SCORE
from captioning.metrics.meteor import METEOR
from captioning.metrics.metric import Metric
from captioning.metrics.rouge_l import ROUGE_L
from captioning.metrics.spice import SPICE, SPIDER
from captioning.support.errors import CaptioningError

STANDARD: Final[tuple[Metric, ...]] = (BLEU, METEOR, ROUGE_L, CIDER)
"""The metrics that are computed in every evaluation."""

OPTIONAL: Final[tuple[Metric, ...]] = (
    SPICE,
    SPIDER,
    CLIP_SCORE,
    REF_CLIP_SCORE,
    PAC_SCORE,
    REF_PAC_SCORE,
)
"""The built-in metrics that are computed where ``extra_metrics`` names them."""

METRICS: Final = tuple(metric.name for metric in STANDARD)
"""The names of the standard metrics, which `CaptionScorer` computes."""

OPTIONAL_METRICS: Final = tuple(metric.name for metric in OPTIONAL)
"""The names of the optional metrics."""

STANDARD_SCORES: Final = tuple(score for metric in STANDARD for score in metric.scores)
"""The names of the standard scores, ``BLEU-1`` to ``CIDEr``, in the order of papers' tables."""

BUILT_IN: Final[Mapping[str, Metric]] = {
    score: metric for metric in (*STANDARD, *OPTIONAL) for score in metric.scores
}
"""The built-in metrics by the names of their scores."""

_own: dict[str, Metric] = {}  # the registered metrics of users, by name


@runtime_checkable
class ImageMetric(Protocol):
    """A user's own metric: a class that is created without arguments.

    It scores every image, and its corpus score is the mean of the images' scores.

    Attributes:
        name: what tables call its score.
        highest: the highest score that an image can get; the lowest is 0.

    Two further attributes are optional: ``higher_is_better`` (True if absent), and
    ``needs_photographs`` (False if absent), without which photographs may be an empty dictionary
    where captions are scored from a file.
    """

    name: str
    highest: float

    def __call__(
        self,
        captions: dict[str, str],
        references: dict[str, list[str]],
        photographs: dict[str, Path],
    ) -> dict[str, float]:
        """Score one caption for each image.

        Args:
            captions: the raw caption of each image, by its id.
            references: the raw reference captions of the same images.
            photographs: the image files of the same images.

        Returns:
            The score of each image, from 0 to ``highest``.
        """
        ...


def registered() -> dict[str, Metric]:
    """The metrics of users that are registered in this process, by name."""
    return dict(_own)


def find(metric: str) -> Metric | None:
    """The declaration of a metric by its name; None if it is neither built in nor registered."""
    found = next((each for each in BUILT_IN.values() if each.name == metric), None)
    return found or _own.get(metric)


def register(metric: Metric) -> None:
    """Register a user's metric, which is resampled as the mean of the images' scores.

    Raises:
        CaptioningError: the name is empty or that of a built-in score, or the highest value is not
            a positive number.
    """
    if not metric.name or not metric.name.isprintable():
        raise CaptioningError(f"the metric {metric.name!r} needs a name that can be printed")
    if metric.name in BUILT_IN or metric.name in METRICS:
        raise CaptioningError(f"the metric name {metric.name} is taken by a built-in metric")
    if not (math.isfinite(metric.highest) and metric.highest > 0):
        raise CaptioningError(
            f"the metric {metric.name} has highest={metric.highest}: it must be a positive number"
        )
    if _own.get(metric.name, metric) != metric:
        raise CaptioningError(f"two metrics are called {metric.name}: rename one of them")
    _own[metric.name] = metric


def load_metric(path: str) -> ImageMetric:
    """Import a user's metric by its dotted path, create it and register it.

    Args:
        path: of the class, such as ``my_package.my_module.MyMetric``.

    Raises:
        CaptioningError: there is no such class, it is not an `ImageMetric`, or `register` refuses
            it.
    """
    module, _, name = path.rpartition(".")
    try:
        metric = getattr(import_module(module), name)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise CaptioningError(
            f"extra_metrics=[{path}]: no metric can be created from that path ({error}): give the "
            "dotted path of a class without arguments, in a module that Python can import"
        ) from error
    if not isinstance(metric, ImageMetric):
        raise CaptioningError(
            f"extra_metrics=[{path}]: a metric needs a `name`, a `highest` value and `__call__"
            "(captions, references, photographs)`"
        )
    register(
        Metric(
            name=str(metric.name),
            scores=(str(metric.name),),
            highest=float(metric.highest),
            higher_is_better=bool(getattr(metric, "higher_is_better", True)),
            optional=True,
        )
    )
    return metric


def ordered_scores(present: Iterable[str]) -> list[str]:
    """The columns of a table of scores.

    Args:
        present: the names of all scores that occur.

    Returns:
        The standard scores, whether present or not; then the optional ones that are present; then
        those of users' metrics by name.
    """
    names = set(present)
    optional = [score for score in BUILT_IN if score not in STANDARD_SCORES and score in names]
    return [*STANDARD_SCORES, *optional, *sorted(names - set(BUILT_IN))]
