"""The caption scores as a torchmetrics Metric, for validation by decoding."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from captioning.metrics.scores import METRICS, CaptionScorer, Scores


class CaptionScores(Metric):
    """Corpus scores of the captions seen since the last reset, over all processes.

    The images seen are scored as if they were the whole corpus, so that Lightning's check of the
    first two batches works; a score of one epoch is that of a split only if the split was gone
    through. An image seen twice, as a DistributedSampler does to give each process as much work,
    counts once, with its first caption.

    Args:
        references: one or more raw captions by image id. They are tokenised and counted here, once.
        metrics: any of `captioning.metrics.METRICS`. All but METEOR take about a second for a
            thousand images.
        kwargs: torchmetrics' own.

    Raises:
        CaptioningError: an unknown metric, or an image without references.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    captions: dict[str, str]  # what the last `compute` scored, by image id

    # Text must be a tensor to travel between processes: a JSON line for each caption, as bytes.
    records: list[Tensor]

    def __init__(
        self,
        references: Mapping[str, Sequence[str]],
        metrics: Sequence[str] = METRICS,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._scorer = CaptionScorer(references, metrics)
        self._scores: Scores | None = None
        self.captions: dict[str, str] = {}
        self.add_state("records", default=[], dist_reduce_fx="cat")
        self._append("")

    def update(self, image_ids: Sequence[str], captions: Sequence[str]) -> None:
        """Take the decoded captions of a batch of images.

        Args:
            image_ids: keys of the references.
            captions: raw captions, one for each image; may be empty strings.

        Raises:
            CaptioningError: an image without references.
            ValueError: more or fewer captions than images.
        """
        self._scorer.check_known(image_ids)
        pairs = zip(image_ids, captions, strict=True)
        self._append("".join(f"{json.dumps(pair)}\n" for pair in pairs))

    def compute(self) -> dict[str, Tensor]:
        """Corpus scores by name, in double precision: 0 to 1, and 0 to 10 for CIDEr.

        Raises:
            CaptioningError: no captions were seen.
        """
        lines = bytes(dim_zero_cat(self.records).tolist()).decode("ascii").splitlines()
        hypotheses: dict[str, str] = {}
        for line in lines:
            image, caption = json.loads(line)
            hypotheses.setdefault(image, caption)
        self.captions = hypotheses
        self._scores = self._scorer.score(hypotheses, partial=True)
        return {
            name: torch.tensor(score, dtype=torch.float64)
            for name, score in self._scores.corpus.items()
        }

    def scores(self) -> Scores:
        """The full scores, with each image's; from the last `compute` if nothing was seen since."""
        self.compute()
        assert self._scores is not None
        return self._scores

    def reset(self) -> None:
        """Forget all captions; the references stay prepared."""
        super().reset()
        self._scores = None
        self._append("")

    def _append(self, lines: str) -> None:
        # Also called with nothing: a process that has seen no captions must still take part in
        # the exchange with a tensor of bytes, and torchmetrics would make it one of floats.
        data = torch.tensor(list(lines.encode("ascii")), dtype=torch.uint8, device=self.device)
        self.records.append(data)
