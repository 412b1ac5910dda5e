"""Figures of attention: a photograph, and the attention map of each word of its caption.

Matplotlib is imported only when a figure is drawn. ``pyplot`` is not used, because its global state
would prevent drawing in several threads.
"""

import math
from bisect import bisect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from captioning.support.errors import CaptioningError
from captioning.support.regions import WHOLE, Region

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

SIGMA: Final = 0.8
"""Standard deviation of the smoothing, in cells of the map; large enough to hide their edges."""

_DPI = 128  # a power of two, so that whole pixels are exact fractions of an inch
# Lengths and areas in pixels.
_PANEL_AREA = 55_000
_MAX_SIDE = 640  # of a panel; limits the area of narrow panels
_MIN_CELL_WIDTH = 190  # leaves space for a word
_MAX_ROW_WIDTH = 1820
_GAP = 12
_TITLE_HEIGHT = 40
_MAX_COLUMNS = 6
_FONT = "DejaVu Sans"  # comes with matplotlib, so that figures are equal on every machine
_FONT_SIZES = (13, 11, 9.5, 8)  # in points; a word is written in the largest size that fits

# How far the grey photograph is faded towards white: at the map's peak, where attention is 0, and
# outside the region that the encoder saw.
_FADE_PEAK, _FADE_ZERO, _FADE_OUTSIDE = 0.4, 0.65, 0.85

# The tint from attention 0 to the map's peak, as red, green and blue.
_COLOURS = np.array(
    [(1.0, 1.0, 1.0), (1.0, 0.88, 0.5), (1.0, 0.62, 0.2), (0.98, 0.36, 0.12), (0.85, 0.12, 0.12)]
)


def region_of(resize: str, size: tuple[int, int]) -> Region:
    """The part of a photograph that an encoder saw, after resizing and cropping.

    Args:
        resize: ``squash`` or ``crop``; see the encoder's ``Preprocessing``.
        size: the photograph's width and height in pixels.
    """
    if resize == "squash" or not all(size):
        return WHOLE
    side = min(size) * 224 / 256
    left, top = (round((1 - side / length) / 2, 4) for length in size)
    return left, top, 1 - left, 1 - top


def check_maps(words: Sequence[str], maps: Float[np.ndarray, "words rows columns"]) -> None:
    """Check that attention maps are valid and match a caption.

    Raises:
        CaptioningError: there is not one map for each word, or a weight is negative or not finite.
    """
    if len(words) != len(maps):
        raise CaptioningError(
            f"the caption has {len(words)} words, but its attention has {len(maps)} maps: give one "
            "map for each word"
        )
    if not (np.isfinite(maps).all() and (maps >= 0).all()):
        raise CaptioningError("attention weights must be finite and at least 0, but some are not")


def smooth(
    weights: Float[np.ndarray, "rows columns"],
    height: int,
    width: int,
) -> Float[np.ndarray, "height width"]:
    """Scale a map up to an image's size, with smooth transitions between its cells.

    Each pixel is a weighted mean of all cells. The weights are a Gaussian of the distance between
    pixel and cell, with a standard deviation of ``SIGMA`` cells. This combines the upsampling and
    the Gaussian filter of the paper's section 5.4. Values stay within the range of the map, and a
    constant map stays constant, including its border.

    Args:
        weights: the map.
        height: height of the result in pixels.
        width: width of the result in pixels.
    """
    rows, columns = weights.shape
    vertical, horizontal = _smoothing_weights(height, rows), _smoothing_weights(width, columns)
    return np.asarray(vertical @ weights @ horizontal.T)


def _smoothing_weights(pixels: int, cells: int) -> Float[np.ndarray, "pixels cells"]:
    """The weight of each cell in each pixel along one side; each row sums up to 1."""
    place = (np.arange(pixels) + 0.5) * cells / pixels
    distance = place[:, None] - (np.arange(cells) + 0.5)
    shares = np.exp(-0.5 * (distance / SIGMA) ** 2)
    return np.asarray(shares / shares.sum(1, keepdims=True))


def attention_figure(
    picture: Image.Image,
    words: Sequence[str],
    maps: Float[np.ndarray, "words rows columns"],
    *,
    region: Region = WHOLE,
) -> "matplotlib.figure.Figure":
    """Draw a photograph and the attention map of each word of its caption.

    The first panel is the photograph. Each word then has its own panel, from left to right and from
    top to bottom: the photograph tinted by the word's map, as :func:`overlay` draws it. Each map is
    scaled to its own peak. The part that the encoder did not see is paler and has no tint.

    An unprintable character of a word, for example a line break, is drawn as an escape sequence, a
    character that the font lacks as a box, and a word that is too long for its panel is cut off
    with an ellipsis. The same arguments give the same pixels.

    Args:
        picture: the photograph, RGB.
        words: the caption.
        maps: the attention weights of each word; they need not sum up to 1.
        region: the part of the photograph that the maps cover; see :func:`region_of`.

    Raises:
        CaptioningError: there is not one map for each word, or a weight is negative or not finite.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    check_maps(words, maps)
    scale = math.sqrt(_PANEL_AREA / (picture.width * picture.height))
    scale = min(scale, _MAX_SIDE / max(picture.size))
    width, height = (max(1, round(scale * length)) for length in picture.size)
    cell = max(width, _MIN_CELL_WIDTH)
    max_columns = min(_MAX_COLUMNS, (_MAX_ROW_WIDTH - _GAP) // (cell + _GAP))
    rows = math.ceil((1 + len(words)) / max_columns)
    columns = math.ceil((1 + len(words)) / rows)
    full_width = _GAP + columns * (cell + _GAP)
    full_height = _GAP + rows * (_TITLE_HEIGHT + height + _GAP)
    figure = Figure(figsize=(full_width / _DPI, full_height / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)

    # Twice the panel's pixels, so that a figure can be saved at twice the resolution.
    image = picture.convert("RGB").resize((2 * width, 2 * height), Image.Resampling.LANCZOS)
    panels = [np.asarray(image), *(overlay(image, weights, region) for weights in maps)]
    for number, (panel, word) in enumerate(zip(panels, ["", *words], strict=True)):
        row, column = divmod(number, columns)
        left = _GAP + column * (cell + _GAP) + (cell - width) // 2
        bottom = full_height - (row + 1) * (_TITLE_HEIGHT + height + _GAP)
        axes = figure.add_axes(
            (left / full_width, bottom / full_height, width / full_width, height / full_height)
        )
        axes.imshow(panel, aspect="auto", origin="upper", interpolation="antialiased")
        axes.set_axis_off()
        _title(axes, word, cell)
    return figure


def overlay(
    image: Image.Image, weights: Float[np.ndarray, "rows columns"], region: Region = WHOLE
) -> UInt8[np.ndarray, "height width 3"]:
    """Convert a photograph to pale grey and tint it by a map.

    With more attention the photograph gets darker and its tint changes from yellow to red, so that
    the attended objects stay visible.

    Args:
        image: the photograph.
        weights: the map.
        region: the part of the photograph that the map covers.
    """
    grey = np.asarray(image.convert("L"), dtype=float)[..., None] / 255
    panel = np.repeat(grey + _FADE_OUTSIDE * (1 - grey), 3, axis=2)
    left, right = (round(share * image.width) for share in region[::2])
    top, bottom = (round(share * image.height) for share in region[1::2])
    heat = smooth(weights, bottom - top, right - left)[..., None]
    level = heat / max(heat.max(initial=0), np.finfo(float).tiny)
    stops = np.linspace(0, 1, len(_COLOURS))
    tint = np.concatenate([np.interp(level, stops, part) for part in _COLOURS.T], axis=2)
    seen = grey[top:bottom, left:right]
    fade = _FADE_ZERO + level * (_FADE_PEAK - _FADE_ZERO)
    panel[top:bottom, left:right] = (seen + fade * (1 - seen)) * tint
    return np.round(255 * panel).astype(np.uint8)


def _title(axes: "matplotlib.axes.Axes", word: str, room: int) -> None:
    """Write a word above its panel, in the largest font that fits into ``room`` pixels."""
    text = axes.set_title(
        _drawable(word), family=_FONT, color="black", pad=5, parse_math=False, usetex=False
    )
    for points in _FONT_SIZES:
        text.set_fontsize(points)
        if text.get_window_extent().width <= room:
            return
    whole = text.get_text()

    def cut(letters: int) -> int:
        text.set_text(whole[:letters] + "…")
        return math.ceil(text.get_window_extent().width)

    cut(bisect(range(1, len(whole)), room, key=cut))  # keeps as many letters as fit


def _drawable(word: str) -> str:
    """The word with escapes for unprintable characters and boxes for those the font lacks."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont(_FONT))
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in word)
    return "".join(c if font.get_char_index(ord(c)) else "□" for c in escaped)
