"""Captions and references as people have them: checked, and turned into dictionaries."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeGuard

from captioning.support.errors import CaptioningError

Hypotheses = Mapping[str, str] | Iterable[tuple[str, str]]
"""One caption for each image: ``{image: caption}``, or pairs ``(image, caption)``."""

References = Mapping[str, Sequence[str]] | Iterable[tuple[str, str | Sequence[str]]]
"""All captions of each image: ``{image: [caption, ...]}``, or pairs, in which an image may occur
several times: ``(image, caption)`` or ``(image, [caption, ...])``."""

_SWAPPED = (
    "the hypotheses and the references are swapped: the captions to be scored come first, as in "
    "score_captions(hypotheses, references)"
)


def check_order(hypotheses: object, references: object) -> None:
    """Refuse swapped arguments: several captions of an image to be scored against a single one.

    Args:
        hypotheses: what should be :data:`Hypotheses`; no iterator.
        references: what should be :data:`References`; no iterator.

    Raises:
        CaptioningError: they are swapped.
    """
    first, second = _pairs(hypotheses, "hypotheses"), _pairs(references, "references")
    single = bool(second) and all(isinstance(caption, str) for _, caption in second)
    if isinstance(references, Mapping):  # which needs lists
        several = any(_is_list(captions) for _, captions in first)
    else:
        single = single and len({image for image, _ in second}) == len(second)
        several = len({image for image, _ in first}) < len(first)
    if single and several:
        raise CaptioningError(_SWAPPED)


def as_hypotheses(given: object) -> dict[str, str]:
    """The caption of each image.

    Args:
        given: what should be :data:`Hypotheses`.

    Raises:
        CaptioningError: it is something else, or an image has two captions.
    """
    captions: dict[str, str] = {}
    for image, caption in _pairs(given, "hypotheses"):
        if not isinstance(caption, str):
            raise CaptioningError(
                f"the caption of image {image!r} is {_kind(caption)}, not a string: hypotheses "
                "have one caption for each image"
            )
        if image in captions:
            raise CaptioningError(
                f"image {image!r} has two captions among the hypotheses: keep one of them"
            )
        captions[image] = caption
    return captions


def as_references(given: object) -> dict[str, list[str]]:
    """The references of each image; an empty list for an image without any.

    Args:
        given: what should be :data:`References`.

    Raises:
        CaptioningError: it is something else, for example a plain string for an image of a
            dictionary, whose letters would be taken for captions.
    """
    references: dict[str, list[str]] = {}
    for image, captions in _pairs(given, "references"):
        if isinstance(captions, str) and isinstance(given, Mapping):
            raise CaptioningError(
                f"the references of image {image!r} are a plain string: give a list of captions, "
                f"such as [{captions!r}]"
            )
        listed = [captions] if isinstance(captions, str) else captions
        if not _is_list(listed):
            raise CaptioningError(
                f"the references of image {image!r} are {_kind(listed)}, not a list of captions"
            )
        texts = references.setdefault(image, [])
        for caption in listed:
            if not isinstance(caption, str):
                raise CaptioningError(
                    f"a reference of image {image!r} is {_kind(caption)}, not a string"
                )
            texts.append(caption)
    return references


def check_batch(images: object, captions: object) -> None:
    """Refuse a single image or caption where there should be a list of them.

    Raises:
        CaptioningError: one of them is a string.
    """
    for name, given in (("image_ids", images), ("captions", captions)):
        if isinstance(given, str):
            raise CaptioningError(f"{name} is a plain string, {given!r}: give a list of strings")


def _pairs(given: object, role: str) -> Sequence[tuple[str, object]]:
    if isinstance(given, Mapping):
        return list(given.items())
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise CaptioningError(
            f"the {role} are {_kind(given)}: give a dictionary by image, or a list of pairs "
            "(image, caption)"
        )
    pairs = []
    for number, pair in enumerate(given, start=1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise CaptioningError(
                f"entry {number} of the {role} is {_kind(pair)}, not a pair (image, caption): "
                "captions are assigned to images by name, not by their place in a list"
            )
        pairs.append((pair[0], pair[1]))
    return pairs


def _is_list(captions: object) -> TypeGuard[Iterable[object]]:
    return isinstance(captions, Iterable) and not isinstance(captions, str | bytes | Mapping)


def _kind(value: object) -> str:
    if isinstance(value, str):
        return f"the string {value[:40]!r}"
    if isinstance(value, float):
        return f"the number {value}"
    return "None" if value is None else f"of type {type(value).__name__}"
