"""Pictures of attention: the photograph, and where the model looked for each word of its caption.

Matplotlib is imported when a figure is drawn; only its objects are used, never ``pyplot``, so that
nothing global changes and figures can be drawn in several threads.
"""

import math
from bisect import bisect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from captioning.support.errors import CaptioningError

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

Region = tuple[float, float, float, float]
"""A part of a photograph, as shares x0, y0, x1, y1 of its width and height, from the top left."""

WHOLE: Final[Region] = (0.0, 0.0, 1.0, 1.0)

SIGMA: Final = 0.8
"""Standard deviation of the smoothing, in cells of the map: enough that no cell's edge shows."""

_DPI = 128  # a power of two: lengths in inches are then whole pixels, exactly
# In pixels:
_AREA = 55_000  # of a panel,
_LONGEST = 640  # unless a side would then be longer than this
_NARROWEST = 190  # space for a word
_ACROSS = 1820  # most of a row
_GAP = 12
_TITLE = 40
_COLUMNS = 6
_FONT = "DejaVu Sans"  # comes with matplotlib: the same picture on every machine
_FONT_SIZES = (13, 11, 9.5, 8)  # points; a word has the largest that it fits in

# How far the grey photograph fades towards white: where the model looked most, where it did not
# look, and where the encoder saw nothing.
_FADE_MOST, _FADE_LEAST, _FADE_UNSEEN = 0.4, 0.65, 0.85

# What tints it, from where the model did not look to where it looked most: red, green, blue.
_COLOURS = np.array(
    [(1.0, 1.0, 1.0), (1.0, 0.88, 0.5), (1.0, 0.62, 0.2), (0.98, 0.36, 0.12), (0.85, 0.12, 0.12)]
)


def region_of(resize: str, size: tuple[int, int]) -> Region:
    """The part of a photograph that an encoder saw.

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
    """Make sure that the attention is a caption's.

    Raises:
        CaptioningError: there is not one map for each word, or a map is none.
    """
    if len(words) != len(maps):
        raise CaptioningError(
            f"the caption has {len(words)} words, but its attention {len(maps)} maps: give one for "
            "each word"
        )
    if not (np.isfinite(maps).all() and (maps >= 0).all()):
        raise CaptioningError(
            "attention is made of finite weights of at least 0, but this has others"
        )


def smooth(
    weights: Float[np.ndarray, "rows columns"],
    height: int,
    width: int,
) -> Float[np.ndarray, "height width"]:
    """Scale a map up to an image's size, without the edges of its cells.

    Every pixel is the mean of the cells, weighted by a Gaussian of their distance of ``SIGMA``
    cells: upsampling and Gaussian filtering, as in the paper's section 5.4, in one step. No value
    is higher or lower than those of the map, and an even map stays even, up to its border.

    Args:
        weights: the map.
        height: pixels of the result.
        width: likewise.
    """
    rows, columns = weights.shape
    return np.asarray(_spread(height, rows) @ weights @ _spread(width, columns).T)


def _spread(pixels: int, cells: int) -> Float[np.ndarray, "pixels cells"]:
    """Of each pixel along a side: the share of each cell."""
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
    """Draw a photograph, and where the model looked for each word of its caption.

    The photograph comes first. Each word then has a panel of its own, from left to right and from
    top to bottom: the photograph tinted by the word's map as :func:`overlay` does it, from 0 to the
    map's own peak. What the encoder did not see is paler still and has no tint.

    Words appear as they are; a character that cannot be printed, such as a line break, as its
    escape, one that the font lacks as a box, and the end of a word that is too long for its panel
    as an ellipsis. The same arguments give the same pixels.

    Args:
        picture: the photograph, RGB.
        words: the caption.
        maps: for each word the weights of the grid's locations, of any sum.
        region: the part of the photograph that the maps cover; see :func:`region_of`.

    Raises:
        CaptioningError: there is not one map for each word, or a map has weights that are not
            finite or below 0.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    check_maps(words, maps)
    scale = math.sqrt(_AREA / (picture.width * picture.height))
    scale = min(scale, _LONGEST / max(picture.size))
    width, height = (max(1, round(scale * length)) for length in picture.size)
    cell = max(width, _NARROWEST)
    most = min(_COLUMNS, (_ACROSS - _GAP) // (cell + _GAP))
    rows = math.ceil((1 + len(words)) / most)
    columns = math.ceil((1 + len(words)) / rows)
    across = _GAP + columns * (cell + _GAP)
    down = _GAP + rows * (_TITLE + height + _GAP)
    figure = Figure(figsize=(across / _DPI, down / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)

    # Twice the pixels that are drawn, so that a figure may be saved at twice the resolution.
    image = picture.convert("RGB").resize((2 * width, 2 * height), Image.Resampling.LANCZOS)
    panels = [np.asarray(image), *(overlay(image, weights, region) for weights in maps)]
    for number, (panel, word) in enumerate(zip(panels, ["", *words], strict=True)):
        row, column = divmod(number, columns)
        left = _GAP + column * (cell + _GAP) + (cell - width) // 2
        bottom = down - (row + 1) * (_TITLE + height + _GAP)
        axes = figure.add_axes((left / across, bottom / down, width / across, height / down))
        axes.imshow(panel, aspect="auto", origin="upper", interpolation="antialiased")
        axes.set_axis_off()
        _title(axes, word, cell)
    return figure


def overlay(
    image: Image.Image, weights: Float[np.ndarray, "rows columns"], region: Region = WHOLE
) -> UInt8[np.ndarray, "height width 3"]:
    """A photograph, grey and pale, tinted by a map.

    Where the model looked more, the photograph is darker and its tint goes from yellow to red, so
    that what it looked at stays visible in the midst of the map.

    Args:
        image: the photograph.
        weights: the map.
        region: the part of the photograph that the map covers.
    """
    grey = np.asarray(image.convert("L"), dtype=float)[..., None] / 255
    panel = np.repeat(grey + _FADE_UNSEEN * (1 - grey), 3, axis=2)
    left, right = (round(share * image.width) for share in region[::2])
    top, bottom = (round(share * image.height) for share in region[1::2])
    heat = smooth(weights, bottom - top, right - left)[..., None]
    level = heat / max(heat.max(initial=0), np.finfo(float).tiny)
    stops = np.linspace(0, 1, len(_COLOURS))
    tint = np.concatenate([np.interp(level, stops, part) for part in _COLOURS.T], axis=2)
    seen = grey[top:bottom, left:right]
    fade = _FADE_LEAST + level * (_FADE_MOST - _FADE_LEAST)
    panel[top:bottom, left:right] = (seen + fade * (1 - seen)) * tint
    return np.round(255 * panel).astype(np.uint8)


def _title(axes: "matplotlib.axes.Axes", word: str, room: int) -> None:
    """Write a word above its panel, as large as it fits into so many pixels."""
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

    cut(bisect(range(1, len(whole)), room, key=cut))  # the most letters that fit


def _drawable(word: str) -> str:
    """The word without anything that the font would stumble over."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont(_FONT))
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in word)
    return "".join(c if font.get_char_index(ord(c)) else "□" for c in escaped)
