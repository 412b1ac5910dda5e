"""Views of an image: its mirror image, crops, and mirrored crops.

A view is a part of the picture that the encoder sees, possibly mirrored, resized like the whole
picture. The feature store keeps the grid of each view. Training may draw one of several views of
each image, and the captions of an evaluation may be decoded from several views together.

In a mirror image, what is on the left is on the right. The words of :data:`SIDES` are therefore
exchanged in the captions with which a mirrored view is trained, and in those that are decoded from
it. References, of metrics and of rewards, stay as they are.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import Float
from PIL import Image

from captioning.data.vocabulary import Vocabulary
from captioning.support.errors import CaptioningError
from captioning.support.nearest import did_you_mean
from captioning.support.regions import WHOLE, Region

if TYPE_CHECKING:  # scoring a file of captions imports this module, and not torch
    from torch import Tensor

    from captioning.models.encoders.base import PicturePreprocessing

_FLIP = "_flip"
_NUMBER = r"(\d*\.?\d+)"
_BOX = re.compile(f"box_{_NUMBER}_{_NUMBER}_{_NUMBER}_{_NUMBER}")


@dataclass(frozen=True)
class View:
    """A part of the picture that the encoder sees.

    Attributes:
        name: Its name in settings and results.
        box: Left, top, right and bottom, as fractions of the picture.
        mirrored: Whether left and right are exchanged.
    """

    name: str
    box: Region = WHOLE
    mirrored: bool = False

    @property
    def is_original(self) -> bool:
        """Whether it is the whole picture as it is."""
        return self.box == WHOLE and not self.mirrored

    def pixels(
        self, picture: Image.Image, preprocessing: "PicturePreprocessing"
    ) -> "Float[Tensor, '3 height width']":
        """The view of an RGB picture as the input of an encoder."""
        if self.is_original:  # an encoder's own preprocessing need not know of views
            return preprocessing(picture)
        return preprocessing(picture, self.box, mirrored=self.mirrored)

    def placement(
        self, grid_size: tuple[int, int], picture_grid: tuple[int, int] | None = None
    ) -> Float[np.ndarray, "view_locations picture_locations"]:
        """The share of each location of the view's grid that lies in each location of the picture.

        An attention map over the view, times this matrix, is the map over the picture: mirrored
        back, and put in the place of a crop. The sum of the weights stays the same.

        Args:
            grid_size: Rows and columns of the view's grid.
            picture_grid: Rows and columns of the picture's; None: as many.
        """
        left, top, right, bottom = self.box
        rows, columns = picture_grid or grid_size
        across = _shares(left, right, grid_size[1], columns)
        down = _shares(top, bottom, grid_size[0], rows)
        return np.kron(down, across[::-1] if self.mirrored else across).astype(np.float32)


def _shares(
    start: float, end: float, cells: int, all_cells: int
) -> Float[np.ndarray, "cells all_cells"]:
    """The share of each of ``cells`` equal parts of [start, end] in each of those of [0, 1]."""
    own, whole = np.linspace(start, end, cells + 1), np.linspace(0, 1, all_cells + 1)
    first = np.maximum(own[:-1, None], whole[None, :-1])
    last = np.minimum(own[1:, None], whole[None, 1:])
    shares: np.ndarray = (last - first).clip(min=0) / np.diff(own)[:, None]
    return shares


ORIGINAL: Final = View("original")
ORIGINAL_ALONE: Final = (ORIGINAL.name,)
"""The names of the views of an image, if it has none but the picture itself."""

CROP: Final = 7 / 8
"""The side of the crops, as a fraction of the picture's: 224 of 256, as in ten-crop tests."""

_CORNERS = {
    "center": ((1 - CROP) / 2, (1 - CROP) / 2),
    "top_left": (0.0, 0.0),
    "top_right": (1 - CROP, 0.0),
    "bottom_left": (0.0, 1 - CROP),
    "bottom_right": (1 - CROP, 1 - CROP),
}
_PARTS = {
    f"crop_{name}": (left, top, left + CROP, top + CROP) for name, (left, top) in _CORNERS.items()
}

VIEWS: Final = {
    view.name: view
    for view in (
        ORIGINAL,
        View("flip", mirrored=True),
        *(View(f"{name}{end}", box, bool(end))
          for (name, box), end in product(_PARTS.items(), ("", _FLIP))),
    )
}  # fmt: skip
"""The views that have names. Any other part is ``box_LEFT_TOP_RIGHT_BOTTOM``, as in
``box_0_0_0.5_1`` for the left half, and mirrored with ``_flip`` at its end."""


SIDES: Final = ("left", "right")
"""The words that are exchanged in captions of a mirrored view."""


def side_ids(vocabulary: Vocabulary) -> tuple[int, ...]:
    """The token ids of :data:`SIDES`; empty unless the vocabulary has both words."""
    if not all(word in vocabulary for word in SIDES):
        return ()
    return tuple(vocabulary.encode(SIDES)[1:-1])


def find_views(names: Sequence[str], key: str = "views") -> tuple[View, ...]:
    """The views of some names.

    Args:
        names: Names of :data:`VIEWS`, or of boxes; at least one, and each once.
        key: The setting that has them, for messages.

    Raises:
        CaptioningError: there is no such view, or one comes twice, or none is given.
    """
    given = f"{key}=[{','.join(names)}]"
    if not names:
        raise CaptioningError(f"{given}: give at least one view, such as {ORIGINAL.name}.")
    for name in names:
        if names.count(name) > 1:
            raise CaptioningError(f"{given}: {name} comes twice: give each view once.")
    return tuple(VIEWS.get(name) or _box_view(name, given) for name in names)


def _box_view(name: str, given: str) -> View:
    found = _BOX.fullmatch(name.removesuffix(_FLIP))
    if not found:
        valid = [name for name in VIEWS if not name.endswith(_FLIP)]
        choices = (
            f"choose among {', '.join(valid)}, and box_LEFT_TOP_RIGHT_BOTTOM in fractions "
            f"of the picture, such as box_0_0_0.5_1; {_FLIP} at its end mirrors a crop or a box."
        )
        raise CaptioningError(
            f"{given}: there is no view {name!r}; {did_you_mean(name, VIEWS) or choices}"
        )
    left, top, right, bottom = map(float, found.groups())
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise CaptioningError(
            f"{given}: {name} is no part of the picture: give left < right and top < bottom, "
            "each from 0 to 1."
        )
    return View(name, (left, top, right, bottom), name.endswith(_FLIP))
