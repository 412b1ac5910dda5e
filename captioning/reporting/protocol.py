"""The protocol by which runs were scored: only runs with the same one are ranked together."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from captioning.reporting.results import Results
from captioning.support.errors import printable

_WEIGHTS: Final = {
    "clip_weights": ("CLIPScore", "RefCLIPScore"),
    "pac_weights": ("PAC-S", "RefPAC-S"),
}
"""The metrics whose scores depend on weights, by the setting that names these."""

_PARTS: Final = {
    "data": "data set",
    "fingerprint": "data fingerprint",
    "images": "number of images",
    "references": "references",
    "tokenization": "tokenisation",
    "clip_weights": "weights of CLIPScore",
    "pac_weights": "weights of PAC-S",
}
"""What a sentence calls the parts of a protocol."""


class EvaluationProtocol(NamedTuple):
    """What two runs must have in common to be ranked together; unknown parts are empty.

    Attributes:
        data: the name of the data set.
        fingerprint: of its images, splits and references.
        split: the split of the scores.
        images: number of images of the split.
        references: the fingerprint of the references.
        tokenization: the name of the tokeniser.
        clip_weights: the weights of CLIPScore, if the run has it.
        pac_weights: the weights of PAC-S, if the run has it.
    """

    data: str
    fingerprint: str
    split: str
    images: int
    references: str = ""
    tokenization: str = ""
    clip_weights: str = ""
    pac_weights: str = ""

    def __str__(self) -> str:
        parts = [f"{self.data} {self.fingerprint[:8]}", f"{self.split} split"]
        parts += [f"{self.images} images"]
        parts += [f"references {self.references[:8]}"] * bool(self.references)
        parts += [part for part in (self.tokenization, self.clip_weights, self.pac_weights) if part]
        return printable(", ".join(parts))

    @classmethod
    def of(cls, results: Results, split: str) -> "EvaluationProtocol":
        """The protocol of a run's scores on ``split``."""
        data, settings = results.data, results.settings
        scores = results.scores.get(split, {})
        weights = {
            key: str(settings.get(key, ""))
            for key, metrics in _WEIGHTS.items()
            if any(metric in scores for metric in metrics)
        }
        return cls(
            data.name,
            data.fingerprint,
            split,
            data.images.get(split, 0),
            data.references.get(split, ""),
            data.tokenization or "",
            **weights,
        )


def united(protocols: Iterable[EvaluationProtocol]) -> dict[EvaluationProtocol, EvaluationProtocol]:
    """The protocol under which the runs of each protocol are ranked.

    Runs without CLIPScore are ranked with runs that have it, if these all use the same weights;
    likewise for PAC-S. Any other protocol stays as it is.
    """
    found = {protocol: protocol for protocol in protocols}
    for key in _WEIGHTS:
        without: dict[str, Any] = {key: ""}
        weights: dict[EvaluationProtocol, set[str]] = defaultdict(set)
        for protocol in found.values():
            weights[protocol._replace(**without)].add(getattr(protocol, key))
        for original, protocol in found.items():
            known = weights[protocol._replace(**without)] - {""}
            only: dict[str, Any] = {key: known.pop()} if len(known) == 1 else {}
            found[original] = protocol._replace(**only)
    return found


def differing_parts(protocols: Sequence[EvaluationProtocol]) -> list[str]:
    """What the parts are called in which protocols differ."""
    return [
        name
        for part, name in _PARTS.items()
        if len({getattr(protocol, part) for protocol in protocols}) > 1
    ]
