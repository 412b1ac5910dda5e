"""What a run records of its captions beside scores: the objects that they name, and their words.

Here is also what tables call these measures.
"""

from typing import Final

from pydantic import NonNegativeFloat, NonNegativeInt

from captioning.reporting.record import Record, Share


class Objects(Record):
    """How well captions and attention agree with objects whose boxes are known.

    Attributes:
        captions: number of captions.
        right: share of the captions that name only objects of the image, in their own colours.
        complete: share of the captions that are right and name every object of the image.
        words: number of words that name an object of their image.
        attention_inside: mean share of these words' attention inside the object's box. This and the
            following are None for a model without attention.
        peak_inside: share of these words whose attention has its maximum inside the box.
        box_share: mean share of the image that the box covers, which uniform attention would get.
    """

    captions: NonNegativeInt
    right: Share
    complete: Share
    words: NonNegativeInt
    attention_inside: Share | None = None
    peak_inside: Share | None = None
    box_share: Share | None = None


class Language(Record):
    """Statistics of the captions' words; see `captioning.metrics.language.Language`.

    Files of schemas 1 and 2 lack ``bad_endings``.
    """

    distinct_1: Share
    distinct_2: Share
    vocabulary: NonNegativeInt
    vocabulary_share: Share | None = None
    length: NonNegativeFloat
    novel: Share | None = None
    unknown: Share | None = None
    bad_endings: Share | None = None

    def texts(self) -> dict[str, str]:
        """Its fields as tables show them, by their labels."""

        def text(field: str) -> str:
            value = getattr(self, field)
            if value is None:
                return "-"
            if field == "vocabulary":
                return f"{value:,}"
            return f"{value:.1f}" if field == "length" else f"{100 * value:.1f} %"

        return {label: text(field) for label, field in LANGUAGE_MEASURES.items()}


BOX_SHARE: Final = "box share"
OBJECT_MEASURES: Final = {
    "captions right": "right",
    "captions complete": "complete",
    "peak in box": "peak_inside",
    "attention in box": "attention_inside",
    BOX_SHARE: "box_share",
}
"""The fields of `Objects` that are shares, by their labels in tables."""

LANGUAGE_MEASURES: Final = {
    "words a caption": "length",
    "words used": "vocabulary",
    "of the vocabulary": "vocabulary_share",
    "distinct-1": "distinct_1",
    "distinct-2": "distinct_2",
    "not in train": "novel",
    "<unk>": "unknown",
    "bad endings": "bad_endings",
}
"""The fields of `Language`, by their labels in tables."""

OBJECT_COLUMNS: Final = {
    label: name for label, name in OBJECT_MEASURES.items() if name != "complete"
}
"""Those of `OBJECT_MEASURES` that leaderboards show, whose tables are wide enough without more."""

LANGUAGE_COLUMNS: Final = tuple(Language.model_fields)
"""The fields of `Language`, as leaderboard.csv calls their columns."""
