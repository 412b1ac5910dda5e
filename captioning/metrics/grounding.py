"""Agreement of captions and attention with objects whose bounding boxes are known.

Attention is compared with the boxes of the objects that the words name, after Liu et al.,
"Attention Correctness in Neural Image Captioning" (AAAI 2017): the share of a word's attention
inside the box. Two further measures are the share of the image that the box covers, which uniform
attention would get, and how often the maximum of the attention lies inside the box.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float


@runtime_checkable  # because the tests check types at run time
class NamedBox(Protocol):
    """One object: the words that name it, the words for its colour, and its box in pixels."""

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def colours(self) -> Sequence[str]: ...
    @property
    def box(self) -> tuple[float, float, float, float]: ...


@runtime_checkable
class BoxedImage(Protocol):
    """The objects of an image of ``size`` (width, height) pixels."""

    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def objects(self) -> Sequence[NamedBox]: ...


@dataclass(frozen=True)
class Mention:
    """A word of a caption that names a kind of object.

    Attributes:
        index: position of the word in the caption.
        said: whether the caption names a colour of it.
        objects: the objects of the image with that name, and with that colour if the caption names
            one and the colour of the object is known; empty if the caption is wrong.
    """

    index: int
    said: bool
    objects: tuple[NamedBox, ...]


@dataclass(frozen=True)
class Grounding:
    """The measures, which :class:`captioning.reporting.results.Objects` describes."""

    captions: int
    right: float
    complete: float
    words: int
    attention_inside: float | None = None
    peak_inside: float | None = None
    box_share: float | None = None


def ground(
    captions: Mapping[str, str],
    attention: Mapping[str, Float[np.ndarray, "words rows columns"]],
    images: Mapping[str, BoxedImage],
) -> Grounding | None:
    """Measure captions against the objects of their images.

    A caption is *right* if it names at least one object and every object that it names is in the
    image, in the colour that the caption names. It is *complete* if it also names every object of
    the image, with the colour of each object that has one. The attention is measured for words that
    name an object of their image; if several objects fit, attention on any of them counts.

    Args:
        captions: by image id; images without boxes are left out.
        attention: the attention map of each word, over the whole image, by image id; images may be
            missing. A map need not sum to 1; a word whose map is 0 everywhere is left out.
        images: the boxes, by image id. Their names and colours are the words that are recognised.

    Returns:
        The measures, or None if no captioned image has boxes.
    """
    known = [image for image in captions if image in images]
    if not known:
        return None
    everything = [each for image in images.values() for each in image.objects]
    names = {word for each in everything for word in each.names}
    colours = {word for each in everything for word in each.colours}
    right = complete = words = 0
    looks: list[tuple[float, bool, float]] = []
    for image in known:
        found = mentions(captions[image].split(), images[image].objects, names, colours)
        is_right = bool(found) and all(mention.objects for mention in found)
        right += is_right
        complete += is_right and _covers(found, images[image].objects)
        for mention in found:
            if mention.objects:
                words += 1
                if image in attention and attention[image][mention.index].any():
                    looks.append(
                        _look(attention[image][mention.index], mention.objects, images[image].size)
                    )
    shares = (right / len(known), complete / len(known))
    if not looks:
        return Grounding(len(known), *shares, words)
    inside, peaks, areas = (float(np.mean(column)) for column in zip(*looks, strict=True))
    return Grounding(len(known), *shares, words, inside, peaks, areas)


def mentions(
    words: Sequence[str], objects: Sequence[NamedBox], names: set[str], colours: set[str]
) -> list[Mention]:
    """The words of a caption that name objects, and the objects that they name.

    The colours of an object are those between its word and the preceding object or article: "a red
    circle and a green striped box" has a red circle and a green box.

    Args:
        words: the caption.
        objects: of its image.
        names: all words that name objects.
        colours: all words for colours.
    """
    found = []
    said: set[str] = set()
    for index, word in enumerate(words):
        if word in names:
            meant = tuple(
                each
                for each in objects
                if word in each.names and (not each.colours or said <= set(each.colours))
            )
            found.append(Mention(index, bool(said), meant))
        if word in names or word in ("a", "an", "the"):
            said = set()
        elif word in colours:
            said.add(word)
    return found


def _covers(found: Sequence[Mention], objects: Sequence[NamedBox]) -> bool:
    """Whether the mentions match all objects, one each, with all colours named."""
    if len(found) != len(objects) or not all(m.said or not m.objects[0].colours for m in found):
        return False

    def match(rest: Sequence[Mention], free: list[NamedBox]) -> bool:
        return not rest or any(
            match(rest[1:], [other for other in free if other is not each])
            for each in rest[0].objects
            if any(each is other for other in free)
        )

    return match(found, list(objects))


def _look(
    attention: Float[np.ndarray, "rows columns"],
    objects: Sequence[NamedBox],
    size: tuple[int, int],
) -> tuple[float, bool, float]:
    """The attention inside the boxes, whether its maximum is inside, and the boxes' share."""
    rows, columns = attention.shape
    # A location is a rectangle of the image, of which a box may cover a part.
    covered = np.zeros(attention.shape)
    for each in objects:
        left, top, right, bottom = each.box
        across = _overlap(left / size[0], right / size[0], columns)
        down = _overlap(top / size[1], bottom / size[1], rows)
        covered = np.maximum(covered, np.outer(down, across))
    share = float((attention * covered).sum() / attention.sum())
    row, column = np.unravel_index(attention.argmax(), attention.shape)
    # The peak is the centre of the location with the highest value.
    x, y = (column + 0.5) / columns * size[0], (row + 0.5) / rows * size[1]
    peak = any(
        left <= x <= right and top <= y <= bottom
        for left, top, right, bottom in (each.box for each in objects)
    )
    return share, peak, float(covered.mean())


def _overlap(start: float, end: float, cells: int) -> Float[np.ndarray, " cells"]:
    """The share of each of ``cells`` equal parts of [0, 1] that [start, end] covers."""
    edges = np.linspace(0, 1, cells + 1)
    covered: np.ndarray = np.minimum(end, edges[1:]) - np.maximum(start, edges[:-1])
    return covered.clip(min=0) * cells
