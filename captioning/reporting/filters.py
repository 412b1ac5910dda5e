"""Filters that select runs by their settings, for example ``model=lstm`` or ``decoding=beam*``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from captioning.reporting.configurations import flat
from captioning.reporting.results import Results
from captioning.support.errors import CaptioningError
from captioning.support.nearest import did_you_mean

# The largest number of values that an error message lists.
_MAX_LISTED = 8

_FIELDS: dict[str, Callable[[Results], list[str]]] = {
    "name": lambda results: [results.name],
    "data": lambda results: [results.data.name],
    "model": lambda results: [results.model.name] if results.model else [],
    "encoder": lambda results: [results.encoder.name] if results.encoder else [],
    "decoding": lambda results: (
        [results.decoding.name, results.decoding.label] if results.decoding else []
    ),
}


@dataclass(frozen=True)
class Filter:
    """A condition on a run: ``key=value``.

    Attributes:
        key: ``name``, ``data``, ``model``, ``encoder``, ``decoding``, or a dotted key of the
            configuration.
        value: the value that the run must have. ``*`` and ``?`` stand for any characters; numbers
            are compared as numbers.
    """

    key: str
    value: str

    @classmethod
    def parse(cls, text: str) -> "Filter":
        """Parse ``key=value``.

        Raises:
            CaptioningError: the text is not of the form ``key=value``.
        """
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise CaptioningError(f"--filter {text}: write key=value, for example model=attn_lstm")
        return cls(key, value)

    def __call__(self, results: Results) -> bool:
        """Whether a run meets the condition. A run without the key does not."""
        return any(self._matches(text) for text in _texts(results, self.key))

    def _matches(self, text: str) -> bool:
        try:
            return float(text) == float(self.value)
        except ValueError:
            return fnmatchcase(text, self.value)


def choose(runs: Sequence[Results], filters: Sequence[Filter]) -> list[bool]:
    """Whether each run meets all conditions.

    Raises:
        CaptioningError: no run has one of the keys, or no run has the value.
    """
    for each in filters:
        present = dict.fromkeys(text for results in runs for text in _texts(results, each.key))
        if runs and not present:
            known = {key for results in runs for key in dict(flat(results.settings))} | set(_FIELDS)
            offer = did_you_mean(each.key, sorted(known)) or f"there is {', '.join(_FIELDS)}"
            raise CaptioningError(
                f"--filter {each.key}={each.value}: no run has `{each.key}`; {offer}"
            )
        if runs and not any(each(results) for results in runs):
            more = f", and {len(present) - _MAX_LISTED} more" if len(present) > _MAX_LISTED else ""
            raise CaptioningError(
                f"--filter {each.key}={each.value}: no run has that value; there is "
                f"{', '.join(list(present)[:_MAX_LISTED])}{more}"
            )
    return [all(each(results) for each in filters) for results in runs]


def _texts(results: Results, key: str) -> list[str]:
    """The values of a run for a key; empty if the run has no such key."""
    if key in _FIELDS:
        return _FIELDS[key](results)
    settings = dict(flat(results.settings))
    return [settings[key]] if key in settings else []
