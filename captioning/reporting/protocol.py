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

_DETAILS: Final = {
    "fingerprint": "fingerprint of the data",
    "references": "fingerprint of the references",
    "tokenization": "tokeniser",
    "clip_weights": "CLIPScore with",
    "pac_weights": "PAC-S with",
}
"""What stands before those parts that distinguish protocols of the same data set and split."""

_FINGERPRINTS: Final = ("fingerprint", "references")
_DIGITS: Final = 8
"""The number of a fingerprint's characters that are shown, unless it takes more to distinguish."""


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
        leave_one_out: whether references were scored against the others of their image.
    """

    data: str
    fingerprint: str
    split: str
    images: int
    references: str = ""
    tokenization: str = ""
    clip_weights: str = ""
    pac_weights: str = ""
    leave_one_out: bool = False

    @property
    def name(self) -> str:
        """The test set in words, such as ``flickr8k, test split, 1,000 images``."""
        people = ", human captions against each other" * self.leave_one_out
        return printable(f"{self.data}, {self.split} split, {self.images:,} images{people}")

    @property
    def details(self) -> str:
        """A sentence with the known parts that `name` leaves out; fingerprints are shortened."""
        known = [part for part in _DETAILS if getattr(self, part)]
        return f"Protocol: {', '.join(_detail(self, part) for part in known)}."

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
            leave_one_out=bool(results.leave_one_out),
        )


def _detail(protocol: EvaluationProtocol, part: str, digits: int | None = _DIGITS) -> str:
    value = getattr(protocol, part) or "unknown"
    return printable(f"{_DETAILS[part]} {value[:digits] if part in _FINGERPRINTS else value}")


def titles(protocols: Sequence[EvaluationProtocol]) -> list[str]:
    """A distinct title of each protocol: its name, and what distinguishes it from its namesakes."""
    found = []
    for protocol in protocols:
        alike = [each for each in protocols if each.name == protocol.name]
        parts = []
        for part in _DETAILS:
            values = {getattr(each, part) for each in alike}
            if len(values) > 1:
                is_distinct = len({value[:_DIGITS] for value in values}) == len(values)
                parts.append(_detail(protocol, part, _DIGITS if is_distinct else None))
        found.append(f"{protocol.name} ({', '.join(parts)})" if parts else protocol.name)
    return found


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
