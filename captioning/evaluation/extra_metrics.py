"""Metrics that ``extra_metrics`` adds to the standard ones."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from captioning.metrics import Scores
from captioning.metrics.registry import OPTIONAL_METRICS, ImageMetric, load_metric
from captioning.metrics.spice import find_corenlp, spice_scores
from captioning.metrics.tokenizer import tokenize
from captioning.support.errors import CaptioningError

if TYPE_CHECKING:
    from captioning.metrics.clipscore import ClipScorer

_BY_SPICE = ("SPICE", "SPIDEr")
_BY_CLIP = ("CLIPScore", "RefCLIPScore")
_BY_PAC = ("PAC-S", "RefPAC-S")

_Images = Mapping[str, Path]
_References = Mapping[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class ExtraMetrics:
    """Settings that ``conf/train.yaml`` and ``conf/eval.yaml`` have in common.

    Attributes:
        extra_metrics: any of `captioning.metrics.registry.OPTIONAL_METRICS`, and dotted paths of
            users' own metrics; see `captioning.metrics.registry.ImageMetric`.
        clip_weights: for CLIPScore and RefCLIPScore; see
            `captioning.metrics.clipscore.ClipScorer`.
        pac_weights: for PAC-S and RefPAC-S: the weights of their authors, in the same form; needed
            where one of them is asked for.
        spice_files: for SPICE, and SPIDEr, which is scored whenever SPICE is; see
            `captioning.metrics.spice.find_corenlp`.
        spice_memory: the memory limit of SPICE.

    Raises:
        CaptioningError: a metric does not exist, or ``spice_memory`` is not an amount of memory.
    """

    extra_metrics: list[str] = field(default_factory=list)
    clip_weights: str = "openai/clip-vit-base-patch32"
    pac_weights: str | None = None
    spice_files: str | None = None
    spice_memory: str = "8G"

    def __post_init__(self) -> None:
        for name in self.extra_metrics:
            if name not in OPTIONAL_METRICS and "." not in name:
                hint = " CIDEr-D is the standard CIDEr." if "CIDEr" in name else ""
                raise CaptioningError(
                    f"extra_metrics=[{name}]: there is no such metric; choose from "
                    f"{', '.join(OPTIONAL_METRICS)}, or give the dotted path of a class.{hint}"
                )
        self.own_metrics()
        if self._asks(_BY_PAC) and not self.pac_weights:
            raise CaptioningError(
                f"pac_weights= is missing: extra_metrics={self.extra_metrics} needs the weights "
                "that the authors of PAC-S tuned; give the folder with the model and its tokenizer."
            )
        if not re.fullmatch(r"[1-9]\d*[kmgKMG]", self.spice_memory):
            raise CaptioningError(
                f"spice_memory={self.spice_memory} must be a number with its unit, such as 8G or "
                "3000M."
            )

    def _asks(self, metrics: Sequence[str]) -> bool:
        """Whether one of these is asked for."""
        return any(name in self.extra_metrics for name in metrics)

    def own_metrics(self) -> dict[str, ImageMetric]:
        """The users' own metrics that are asked for, by name, newly created.

        Raises:
            CaptioningError: one cannot be imported, or two have the same name.
        """
        metrics = [load_metric(path) for path in self.extra_metrics if "." in path]
        return {metric.name: metric for metric in metrics}

    @property
    def need_photographs(self) -> bool:
        """Whether one of the metrics looks at the photographs."""
        own = self.own_metrics().values()
        return self._asks((*_BY_CLIP, *_BY_PAC)) or any(
            getattr(metric, "needs_photographs", False) for metric in own
        )

    def prepare(self) -> None:
        """Check that all weights and files are there, before hours of training.

        Raises:
            CaptioningError: weights or files are missing and cannot be downloaded.
        """
        if self._asks(_BY_SPICE):
            find_corenlp(self.spice_files)
        for _ in self._by_clip(device="cpu"):
            pass  # each is loaded, which raises an error if it cannot be

    def add_to(
        self,
        found: Scores,
        captions: Mapping[str, str],
        references: _References,
        photographs: _Images,
    ) -> Scores:
        """Add the scores of these metrics, each the mean of its images' scores.

        Args:
            found: the scores by `captioning.metrics.CaptionScorer`.
            captions: raw, by image id.
            references: raw, of at least these images, in the order in which `found` was computed.
            photographs: the files of these images, if `need_photographs`.

        Raises:
            CaptioningError: a metric fails.
        """
        images = list(found.per_image)
        said = {image: captions[image] for image in images}
        scored: dict[str, list[float]] = {}
        if self._asks(_BY_SPICE):
            scored["SPICE"] = self._spice(said, references)
            ciders = [scores["CIDEr"] for scores in found.per_image.values()]
            scored["SPIDEr"] = [
                (cider + spice) / 2 for cider, spice in zip(ciders, scored["SPICE"], strict=True)
            ]
        for names, scorer in self._by_clip():
            given = references if names[1] in self.extra_metrics else None
            by_clip = scorer.scores(said, photographs, given)
            scored |= {name: by_clip[name] for name in names if name in self.extra_metrics}
        for name, metric in self.own_metrics().items():
            scored[name] = _own_scores(metric, said, references, photographs)
        columns = {name: np.array(values) for name, values in scored.items()}
        return Scores(
            corpus=found.corpus | {name: float(column.mean()) for name, column in columns.items()},
            per_image={
                image: scores | {name: values[place] for name, values in scored.items()}
                for place, (image, scores) in enumerate(found.per_image.items())
            },
            statistics=replace(
                found.statistics,
                tables={
                    **found.statistics.tables,
                    **{name: column[:, None] for name, column in columns.items()},
                },
            ),
        )

    def _by_clip(self, device: str | None = None) -> Iterator[tuple[tuple[str, str], "ClipScorer"]]:
        """The scorers by CLIP that are asked for, each loaded when it is its turn."""
        for names, key in ((_BY_CLIP, "clip_weights"), (_BY_PAC, "pac_weights")):
            if self._asks(names):
                from captioning.metrics.clipscore import ClipScorer

                weights = getattr(self, key)
                yield names, ClipScorer(weights, device=device, name=names[0], key=key)

    def _spice(self, captions: Mapping[str, str], references: _References) -> list[float]:
        # In the same list as the scorer's, so that its cached result is found.
        texts = [text for image in references for text in references[image]]
        tokens = iter(tokenize(texts, remember=True))
        written = {image: [next(tokens) for _ in references[image]] for image in references}
        return spice_scores(
            tokenize(list(captions.values())),
            [written[image] for image in captions],
            find_corenlp(self.spice_files),
            memory=self.spice_memory,
        )


def _own_scores(
    metric: ImageMetric,
    captions: Mapping[str, str],
    references: _References,
    photographs: _Images,
) -> list[float]:
    """The scores of a user's metric, in the order of the captions.

    Raises:
        CaptioningError: an image has no score, or its score is not between 0 and ``highest``.
    """
    compute: Callable[..., Mapping[str, float]] = metric
    scores = compute(
        dict(captions),
        {image: list(references[image]) for image in captions},
        {image: photographs[image] for image in captions if image in photographs},
    )
    found = []
    for image in captions:
        if image not in scores:
            raise CaptioningError(f"the metric {metric.name} gave no score for image {image!r}")
        score = float(scores[image])
        if not (math.isfinite(score) and 0 <= score <= metric.highest + 1e-6):
            raise CaptioningError(
                f"the metric {metric.name} gave {score:g} for image {image!r}, but declares scores "
                f"from 0 to {metric.highest:g}"
            )
        found.append(score)
    return found
