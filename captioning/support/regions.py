"""Parts of a picture."""

from typing import Final

Region = tuple[float, float, float, float]
"""Left, top, right and bottom, as fractions of a picture's width and height from the top left."""

WHOLE: Final[Region] = (0.0, 0.0, 1.0, 1.0)
"""The whole picture."""
