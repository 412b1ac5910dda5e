"""Metrics that ``train.py`` and ``eval.py`` take beside the usual ones, where they are named."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from captioning.metrics import Scores
from captioning.metrics.spice import find_corenlp, spice_scores
from captioning.metrics.tokenizer import tokenize
from captioning.reporting.results import OPTIONAL_METRICS
from captioning.support.errors import CaptioningError

_BY_CLIP = ("CLIPScore", "RefCLIPScore")


@dataclass(frozen=True, kw_only=True)
class ExtraMetrics:
    """Settings that ``conf/train.yaml`` and ``conf/eval.yaml`` have in common.

    Attributes:
        extra_metrics: any of `OPTIONAL_METRICS`.
        clip_weights: for CLIPScore and RefCLIPScore; see
            `captioning.metrics.clipscore.ClipScorer`.
        spice_files: for SPICE; see `captioning.metrics.spice.find_corenlp`.
        spice_memory: the most that SPICE may take.
    """

    extra_metrics: list[str] = field(default_factory=list)
    clip_weights: str = "openai/clip-vit-base-patch32"
    spice_files: str | None = None
    spice_memory: str = "8G"

    def __post_init__(self) -> None:
        for name in self.extra_metrics:
            if name not in OPTIONAL_METRICS:
                hint = " CIDEr-D is the CIDEr that is always there." if "CIDEr" in name else ""
                raise CaptioningError(
                    f"extra_metrics=[{name}]: there is no such metric; choose from "
                    f"{', '.join(OPTIONAL_METRICS)}.{hint}"
                )
        if not re.fullmatch(r"[1-9]\d*[kmgKMG]", self.spice_memory):
            raise CaptioningError(
                f"spice_memory={self.spice_memory} must be a number with its unit, such as 8G or "
                "3000M."
            )

    @property
    def need_photographs(self) -> bool:
        """Whether one of them looks at the photographs."""
        return any(name in _BY_CLIP for name in self.extra_metrics)

    def prepare(self) -> None:
        """See that all they need is there, so that hours of training do not end without scores.

        Raises:
            CaptioningError: weights or files are missing and cannot be downloaded.
        """
        if "SPICE" in self.extra_metrics:
            find_corenlp(self.spice_files)
        if self.need_photographs:
            from captioning.metrics.clipscore import ClipScorer  # loads torch

            ClipScorer(self.clip_weights, device="cpu")

    def add_to(
        self,
        found: Scores,
        captions: Mapping[str, str],
        references: Mapping[str, Sequence[str]],
        photographs: Mapping[str, Path],
    ) -> Scores:
        """The scores of captions with those of these metrics.

        Each is the mean of its images' scores.

        Args:
            found: what `captioning.metrics.CaptionScorer` found.
            captions: raw, by image id.
            references: raw, of at least these images, as `found` was scored against.
            photographs: the files of these images, where `need_photographs`.

        Raises:
            CaptioningError: a metric fails.
        """
        images = list(found.per_image)
        said = {image: captions[image] for image in images}
        scored: dict[str, list[float]] = {}
        if "SPICE" in self.extra_metrics:
            # In the lists of the scorer, which are tokenised already.
            texts = [text for image in references for text in references[image]]
            tokens = iter(tokenize(texts, remember=True))
            written = {image: [next(tokens) for _ in references[image]] for image in references}
            scored["SPICE"] = spice_scores(
                tokenize(list(said.values())),
                [written[image] for image in images],
                find_corenlp(self.spice_files),
                memory=self.spice_memory,
            )
        if self.need_photographs:
            from captioning.metrics.clipscore import ClipScorer

            given = references if "RefCLIPScore" in self.extra_metrics else None
            by_clip = ClipScorer(self.clip_weights).scores(said, photographs, given)
            scored |= {name: by_clip[name] for name in _BY_CLIP if name in self.extra_metrics}
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
