"""What is kept of each image, so that any resample of the images can be scored.

Every corpus score is a formula on sums over the images, or a mean over them: of the clipped matches
and lengths of BLEU, the counts of METEOR's alignments, the ROUGE-L and CIDEr of each image.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from captioning.metrics import registry
from captioning.metrics.metric import Samples
from captioning.support.errors import CaptioningError


@dataclass(frozen=True, eq=False)
class Statistics:
    """The statistics of each image, from which any resample of the images can be scored.

    Attributes:
        images: their ids.
        tables: a row of numbers for each image, by the name of the metric:

            - ``BLEU``, 10: clipped matches of n-grams for n = 1 to 4, n-grams of the hypothesis for
              n = 1 to 4, its length, and the length of the reference closest to it.
            - ``METEOR``, 23: METEOR 1.5's own statistics, in the order in which it prints them; but
              no chunk if the caption equals its reference, because its sums leave that out.
            - other metrics, 1: the image's score.
        references: the fingerprint of the references, see `fingerprint_references`; empty if the
            references are not known.
    """

    images: tuple[str, ...] = ()
    tables: Mapping[str, Float[np.ndarray, "images _"]] = field(default_factory=dict)
    references: str = ""

    def corpus(self, counts: Float[np.ndarray, "resamples images"]) -> Samples:
        """The corpus scores of many samples of the images at once.

        A row of ones gives the scores of the corpus itself, to 1e-12. METEOR's program prints as
        many digits as its doubles have, so that this holds for METEOR too.

        Args:
            counts: how often each image is in each sample; no sample may be empty.

        Returns:
            The scores of each metric of the tables, on its own scale, by the name of the score.
        """
        return self.scores(counts @ self.columns(), counts.sum(axis=1))

    def columns(self) -> Float[np.ndarray, "images columns"]:
        """The columns of all tables, so that one product sums them."""
        return np.hstack([np.empty((len(self.images), 0)), *self.tables.values()])

    def scores(
        self, sums: Float[np.ndarray, "resamples columns"], sizes: Float[np.ndarray, " resamples"]
    ) -> Samples:
        """The scores of samples, from the sums of the columns and the number of images."""
        samples: Samples = {}
        start = 0
        for name, table in self.tables.items():
            of_metric = sums[:, start : start + table.shape[1]]
            start += table.shape[1]
            metric = registry.find(name)
            if metric is not None and metric.from_sums is not None:
                samples |= metric.from_sums(of_metric)
            else:
                samples[name] = of_metric[:, 0] / sizes
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
            CaptioningError: the data has another form, or a metric has another number of finite
                numbers for each image than it declares. A metric that is not built in has one.
        """
        if not (
            isinstance(written, dict)
            and set(written) == {"references", "images", "tables"}
            and isinstance(written["references"], str)
            and _are_names(written["images"])
            and isinstance(written["tables"], dict)
        ):
            raise CaptioningError(
                "these are not statistics, which have `references`, `images` (each once) and "
                "`tables`: score the captions again"
            )
        images = tuple(written["images"])
        tables = {}
        for metric, rows in written["tables"].items():
            if metrics is None or metric in metrics:
                table = _table(rows)
                declared = registry.find(metric)
                width = declared.statistics if declared else 1
                if table.shape != (len(images), width):
                    raise CaptioningError(
                        f"the statistics of {metric!r} must be {width} finite "
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


def _plain(number: float) -> int | float:
    return int(number) if number.is_integer() else number


def _are_names(images: Any) -> bool:
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        return False
    return len(set(images)) == len(images)


def _table(rows: Any) -> Float[np.ndarray, "..."]:
    """Rows of numbers as an array; an empty array if they are anything else."""
    try:
        table = np.array(rows)
    except ValueError:  # rows of different lengths
        return np.empty(0)
    good = table.dtype.kind in "if" and np.isfinite(table).all()
    return table.astype(np.float64) if good else np.empty(0)
