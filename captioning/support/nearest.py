"""The valid names that a mistyped one was probably meant to be."""

from collections.abc import Iterable
from difflib import SequenceMatcher

CUTOFF = 0.6
"""The least similarity of a suggestion, as :class:`difflib.SequenceMatcher` measures it."""


def nearest(name: str, valid: Iterable[str], most: int = 3) -> list[str]:
    """The valid names that resemble a name, the most similar first.

    Dotted names are compared as wholes and by their last part, so that ``attention_dim`` finds
    ``model.attention_dim``, and ``modle.dropout`` finds ``model.dropout``.

    Args:
        name: the name that was given.
        valid: the names to choose from.
        most: how many are returned at the most.
    """
    scored = [(_similarity(name, each), each) for each in dict.fromkeys(valid)]
    found = sorted((pair for pair in scored if pair[0] >= CUTOFF), key=lambda pair: -pair[0])
    best = found[0][0] if found else 0.0
    # What is much less similar than the best one would only distract from it.
    return [each for score, each in found if score >= best - 0.1][:most]


def _similarity(name: str, valid: str) -> float:
    whole = SequenceMatcher(None, name, valid).ratio()
    given, offered = name.rpartition("."), valid.rpartition(".")
    last = SequenceMatcher(None, given[2], offered[2]).ratio()
    # Another group with the same setting is as good as a mistyped letter.
    same_group = given[0] == offered[0]
    return max(whole if not same_group else last, 0.9 * last)


def did_you_mean(name: str, valid: Iterable[str], most: int = 3) -> str:
    """``did you mean A or B?``, or nothing where no valid name resembles the given one."""
    found = nearest(name, valid, most)
    return f"did you mean {' or '.join(found)}?" if found else ""
