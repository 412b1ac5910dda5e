"""The caption scores as a torchmetrics Metric, for validation on decoded captions."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from captioning.metrics.caption_scorer import CaptionScorer, Scores
from captioning.metrics.inputs import References, check_batch
from captioning.metrics.registry import METRICS


class CaptionScores(Metric):
    """Corpus scores of the captions seen since the last reset, over all processes.

    The images seen are scored as if they were the whole corpus, so that Lightning's sanity check on
    a few batches works. The score of an epoch is that of a split only if every image of the split
    was seen. An image that is seen twice counts once, with its first caption; a DistributedSampler
    repeats images to give each process equally many.

    Args:
        references: one or more raw captions for each image id, as ``{image: [caption, ...]}`` or
            as pairs ``(image, caption)``. They are tokenised and counted only once.
        metrics: any of `captioning.metrics.METRICS`. All but METEOR take about a second for a
            thousand images.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        CaptioningError: an unknown metric, an image without references, or a plain string in place
            of a list of captions.

    Example:
        >>> scores = CaptionScores({"1.jpg": ["A dog runs."], "2.jpg": ["A cat."]}, ["BLEU"])
        >>> scores.update(["1.jpg", "2.jpg"], ["a dog runs", "a dog"])
        >>> {name: round(float(score), 2) for name, score in scores.compute().items()}["BLEU-1"]
        0.8
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    captions: dict[str, str]  # those that the last `compute` scored, by image id

    # Processes exchange tensors only, so that each caption is kept as the bytes of a JSON line.
    records: list[Tensor]

    def __init__(
        self,
        references: References,
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
        """Add the decoded captions of a batch of images.

        Args:
            image_ids: keys of the references.
            captions: raw captions, one for each image; may be empty strings.

        Raises:
            CaptioningError: an image without references, or a string in place of a list.
            ValueError: more or fewer captions than images.
        """
        check_batch(image_ids, captions)
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
        """All scores, also of each image; reuses the last `compute` if nothing was added since."""
        self.compute()
        assert self._scores is not None
        return self._scores

    @property
    def references(self) -> Mapping[str, Sequence[str]]:
        """The raw references of each image."""
        return self._scorer.references

    def reset(self) -> None:
        """Forget all captions; the references stay prepared."""
        super().reset()
        self._scores = None
        self._append("")

    def _append(self, lines: str) -> None:
        # Also called with an empty string: a process without captions must take part in the
        # exchange with a tensor of bytes, where torchmetrics would send an empty float tensor.
        data = torch.tensor(list(lines.encode("ascii")), dtype=torch.uint8, device=self.device)
        self.records.append(data)
