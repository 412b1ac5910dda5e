"""Reading ``boxes.json``, which has the bounding boxes of the objects in a data set's images.

The file is optional, and lies beside the captions. It maps the id of an image to its size in pixels
and its objects. Each object has the words that name it, the words for its colour, and its box
(left, top, right, bottom, in pixels)::

    {"1.png": {"size": [224, 224],
               "objects": [{"names": ["circle", "disc"], "colours": ["red"],
                            "box": [20, 31, 84, 95]}]}}

Drawn scenes come with such a file. If a data set of photographs has one, the grounding metrics are
computed for it too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, TypeAdapter

from captioning.data.names import composed
from captioning.support.errors import CaptioningError
from captioning.support.reading import load_record

Word = Annotated[str, Field(min_length=1)]


class NamedObject(BaseModel):
    """One object of an image.

    Attributes:
        names: The words that name it.
        colours: The words for its colour; empty if the colour is not known.
        box: Left, top, right and bottom, in pixels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    names: Annotated[tuple[Word, ...], Field(min_length=1)]
    colours: tuple[Word, ...] = ()
    box: tuple[float, float, float, float]


class ImageBoxes(BaseModel):
    """The objects of an image of ``size`` (width, height) pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: tuple[PositiveInt, PositiveInt]
    objects: tuple[NamedObject, ...]


_FORM = TypeAdapter(dict[str, ImageBoxes])


def read_boxes(root: Path) -> dict[str, ImageBoxes]:
    """The boxes of a data set by image id; empty if there is no ``boxes.json`` in ``root``.

    Raises:
        CaptioningError: the file cannot be read, is malformed, or has an empty box or one that is
            not inside its image.
    """
    path = root / "boxes.json"
    if not path.exists():
        return {}
    boxes = {composed(image): of for image, of in load_record(path, _FORM.validate_json).items()}
    for image, content in boxes.items():
        width, height = content.size
        for each in content.objects:
            left, top, right, bottom = each.box
            if not (0 <= left < right <= width and 0 <= top < bottom <= height):
                raise CaptioningError(
                    f"{path}: {image}: the box {list(each.box)} of {each.names[0]!r} is empty or "
                    f"not inside the image of {width} x {height} pixels."
                )
    return boxes
