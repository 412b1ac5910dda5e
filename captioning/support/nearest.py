"""Suggestions for mistyped names."""

from collections.abc import Iterable
from difflib import SequenceMatcher

CUTOFF = 0.7
"""The smallest similarity of a suggestion, from 0 to 1, mostly a ``SequenceMatcher`` ratio."""


def nearest(name: str, valid: Iterable[str], limit: int = 3) -> list[str]:
    """The valid names that are similar to a name, the most similar first.

    Dotted names are compared both as a whole and by their last part: ``attention_dim`` finds
    ``model.attention_dim``, and ``modle.dropout`` finds ``model.dropout``.

    Args:
        name: the name that was given.
        valid: the names to choose from.
        limit: the largest number of suggestions.
    """
    scored = [(_similarity(name, each), each) for each in dict.fromkeys(valid)]
    found = sorted((pair for pair in scored if pair[0] >= CUTOFF), key=lambda pair: -pair[0])
    best = found[0][0] if found else 0.0
    # Suggestions that are clearly less similar than the best one are left out.
    return [each for score, each in found if score >= best - 0.05][:limit]


def _similarity(name: str, valid: str) -> float:
    (group, _, last), (valid_group, _, valid_last) = name.rpartition("."), valid.rpartition(".")
    if last == valid_last and group != valid_group:  # the group is missing or wrong
        return 0.9 + 0.1 * _ratio(group, valid_group)
    depth = abs(name.count(".") - valid.count("."))
    if group == valid_group:
        return _ratio(last, valid_last)
    return max((1 - 0.1 * depth) * _ratio(name, valid), 0.75 * _ratio(last, valid_last))


def _ratio(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other).ratio()


def did_you_mean(name: str, valid: Iterable[str], limit: int = 3) -> str:
    """The text ``did you mean A or B?``; empty if no valid name is similar to the given one."""
    found = nearest(name, valid, limit)
    return f"did you mean {' or '.join(found)}?" if found else ""
