"""Attention figures, as somebody looks at them: what is where, and what is written above it."""

import io
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from captioning.models.encoders.base import Preprocessing
from captioning.reporting.figures import SIGMA, attention_figure, region_of, smooth
from captioning.support.errors import CaptioningError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WHITE = Image.new("RGB", (300, 200), "white")


def one_hot(*cells: tuple[int, int], rows: int = 4, columns: int = 6) -> np.ndarray:
    maps = np.zeros((len(cells), rows, columns), dtype=np.float32)
    for weights, cell in zip(maps, cells, strict=True):
        weights[cell] = 0.3
    return maps


def png(figure: "Figure") -> bytes:
    file = io.BytesIO()
    figure.savefig(file)
    return file.getvalue()


def panels(figure: "Figure") -> list[np.ndarray]:
    """What is drawn in each panel."""
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    height, width = drawn.shape[:2]
    boxes = [axes.get_position() for axes in figure.axes]
    return [
        drawn[
            round((1 - box.y1) * height) : round((1 - box.y0) * height),
            round(box.x0 * width) : round(box.x1 * width),
        ]
        for box in boxes
    ]


def tint(panel: np.ndarray) -> np.ndarray:
    """How far each pixel is from grey."""
    return panel.max(-1) - panel.min(-1)


def widths(figure: "Figure") -> list[float]:
    return [axes.title.get_window_extent().width for axes in figure.axes]


def test_the_photograph_comes_first_and_the_words_follow_in_reading_order() -> None:
    words = [f"word{number}" for number in range(20)]
    picture = Image.effect_mandelbrot((300, 200), (-2, -1, 1, 1), 50).convert("RGB")
    figure = attention_figure(picture, words, np.full((20, 4, 6), 1 / 24))
    assert [axes.get_title() for axes in figure.axes] == ["", *words]
    boxes = [axes.get_position() for axes in figure.axes]
    order = sorted(boxes, key=lambda box: (-round(box.y1, 3), box.x0))
    assert [box.bounds for box in order] == [box.bounds for box in boxes]
    tops = [round(box.y1, 3) for box in boxes]
    assert max(tops.count(top) for top in tops) <= 6
    assert not any(a.overlaps(b) for a in boxes for b in boxes if a is not b)
    first = panels(figure)[0]
    expected = np.asarray(picture.resize(first.shape[1::-1], Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(first - expected).mean() < 6


@pytest.mark.parametrize("region", [(0.0, 0.0, 1.0, 1.0), (0.25, 0.1, 0.75, 0.9)])
def test_the_map_lies_where_the_model_looked_and_nowhere_else(
    region: tuple[float, float, float, float],
) -> None:
    cells = [(0, 0), (3, 0), (0, 5), (1, 4)]
    figure = attention_figure(WHITE, ["here"] * 4, one_hot(*cells), region=region)
    x0, y0, x1, y1 = region
    for panel, (row, column) in zip(panels(figure)[1:], cells, strict=True):
        height, width = panel.shape[:2]
        tinted = tint(panel)
        y, x = (tinted >= tinted.max() - 2).nonzero()
        # The centre of the cell, or the border beyond it where there is one.
        assert abs(y.mean() / height - (y0 + (row + 0.5) / 4 * (y1 - y0))) < 0.5 / 4 * (y1 - y0)
        assert abs(x.mean() / width - (x0 + (column + 0.5) / 6 * (x1 - x0))) < 0.5 / 6 * (x1 - x0)
        assert tinted.max() > 150
        top, left = int(y0 * height), int(x0 * width)
        bottom, right = math.ceil(y1 * height), math.ceil(x1 * width)
        tinted[max(0, top - 2) : bottom + 2, max(0, left - 2) : right + 2] = 0
        assert not tinted.any()


def test_what_the_model_looked_at_stays_visible_under_the_map() -> None:
    stripes = np.zeros((200, 300, 3), np.uint8)
    stripes[:, ::20] = stripes[:, 1::20] = stripes[:, 2::20] = 255
    figure = attention_figure(Image.fromarray(stripes), ["stripes"], one_hot((2, 3)))
    panel = panels(figure)[1]
    peak = panel[panel.shape[0] * 5 // 8, panel.shape[1] * 7 // 12 - 20 :][:40]
    assert np.ptp(peak.sum(-1)) > 100


def test_a_map_is_coloured_up_to_its_own_peak() -> None:
    weak, strong = one_hot((1, 1)), one_hot((1, 1)) * 3
    figure = attention_figure(WHITE, ["a", "b"], np.concatenate([weak, strong]))
    _, first, second = panels(figure)
    assert np.abs(first - second).max() <= 2
    nowhere = attention_figure(WHITE, ["a"], np.zeros((1, 4, 6)))
    assert not tint(panels(nowhere)[1]).any()


def test_smoothing_weighs_cells_by_a_gaussian_of_their_distance() -> None:
    weights = np.random.default_rng(0).random((3, 5)) ** 4
    smoothed = smooth(weights, 21, 40)
    for y in range(21):
        for x in range(40):
            shares = {
                (row, column): math.exp(
                    -(((y + 0.5) / 7 - row - 0.5) ** 2 + ((x + 0.5) / 8 - column - 0.5) ** 2)
                    / (2 * SIGMA**2)
                )
                for row in range(3)
                for column in range(5)
            }
            value = sum(share * weights[cell] for cell, share in shares.items())
            assert smoothed[y, x] == pytest.approx(value / sum(shares.values()))


def test_smoothing_hides_the_cells_but_neither_moves_nor_bends_the_map() -> None:
    assert smooth(np.full((14, 14), 0.25), 224, 300) == pytest.approx(0.25)
    dot = smooth(one_hot((3, 9), rows=14, columns=14)[0], 224, 224)
    rows, columns = np.indices(dot.shape)
    centre = [(axis * dot).sum() / dot.sum() for axis in (rows, columns)]
    assert centre == pytest.approx([3.5 * 16 - 0.5, 9.5 * 16 - 0.5], abs=0.5)
    # From one pixel to the next it changes by little: there is no edge, and no plateau at a cell.
    assert np.abs(np.diff(dot)).max() < dot.max() / 15
    assert (dot[56] == dot[56].max()).sum() <= 2


WORDS = ["$x_1$", "$", "\\frac{1}{2}", "%", "<unk>", "café", "a^b_c", "{}"]


def test_words_are_drawn_as_they_are() -> None:
    figure = attention_figure(WHITE, WORDS, one_hot(*[(0, 0)] * len(WORDS)))
    png(figure)  # matplotlib would parse mathematics here
    assert [axes.get_title() for axes in figure.axes[1:]] == WORDS
    plain = attention_figure(WHITE, ["x_1"], one_hot((0, 0)))
    assert widths(figure)[1] > widths(plain)[1]  # with its dollars, and no small 1


@pytest.mark.parametrize(
    ("word", "drawn"),
    [
        ("a\nb", "a\\nb"),
        ("\x00\x1b", "\\x00\\x1b"),
        ("\ud800", "\\ud800"),
        ("狗", "□"),
        ("🐶dog", "□dog"),
        ("", ""),
    ],
)
def test_what_cannot_be_drawn_is_shown_without_a_warning(word: str, drawn: str) -> None:
    figure = attention_figure(WHITE, [word], one_hot((0, 0)))
    png(figure)
    assert figure.axes[1].get_title() == drawn


@pytest.mark.parametrize("size", [(300, 200), (100, 400)])
def test_a_long_word_keeps_to_its_panel(size: tuple[int, int]) -> None:
    words = ["short", "incomprehensibilities", "i" * 5000, "W" * 40]
    words += ["w" * length for length in range(50, 60)]
    figure = attention_figure(WHITE.resize(size), words, one_hot(*[(0, 0)] * len(words)))
    png(figure)
    titles = [axes.title for axes in figure.axes[1:]]
    boxes = [title.get_window_extent() for title in titles]
    centres = [axes.bbox.x0 + axes.bbox.width / 2 for axes in figure.axes[1:]]
    apart = min(b - a for a, b in pairwise(sorted(set(centres))))
    for box, centre in zip(boxes, centres, strict=True):
        assert (box.x0 + box.x1) / 2 == pytest.approx(centre, abs=1)
        assert box.width < apart - 5
    drawn = [title.get_text() for title in titles]
    assert drawn[:2] == words[:2]
    for word, text, box in zip(words[2:], drawn[2:], boxes[2:], strict=True):
        assert text == word[: len(text) - 1] + "…"
        assert box.width > apart - 30  # no more is cut than must be
    assert titles[0].get_fontsize() >= 12
    assert min(title.get_fontsize() for title in titles) >= 8


@pytest.mark.parametrize(
    ("size", "shape"),
    [((500, 333), 1.5), ((333, 500), 0.667), ((224, 224), 1), ((2000, 250), 8), ((90, 900), 0.1)],
)
def test_a_photograph_of_any_shape_is_large_enough_and_undistorted(
    size: tuple[int, int], shape: float
) -> None:
    figure = attention_figure(WHITE.resize(size), ["word"] * 12, one_hot(*[(0, 0)] * 12))
    for panel in panels(figure):
        height, width = panel.shape[:2]
        assert width / height == pytest.approx(shape, rel=0.03)
        assert width * height > 40_000
    assert figure.bbox.width < 2000
    assert figure.bbox.height < 2200


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (5000, 20)])
def test_the_oddest_photographs_are_drawn(size: tuple[int, int]) -> None:
    figure = attention_figure(
        WHITE.resize(size), ["a", "b"], one_hot((0, 0), (1, 1)), region=region_of("crop", size)
    )
    assert len(panels(figure)) == 3


def test_an_empty_caption_leaves_the_photograph() -> None:
    figure = attention_figure(WHITE, [], np.zeros((0, 14, 14)))
    assert len(panels(figure)) == 1


def test_the_same_figure_is_drawn_each_time_and_in_any_thread() -> None:
    pictures = [Image.effect_noise((120, 90), sigma).convert("RGB") for sigma in (10, 50, 90)]
    maps = np.random.default_rng(0).random((3, 5, 7, 7))

    def draw(number: int) -> bytes:
        words = ["a", "dog", f"number{number}", "runs" * 30, "🐶"]
        return png(attention_figure(pictures[number], words, maps[number]))

    one_by_one = [draw(number) for number in range(3)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(draw, [0, 1, 2] * 2)) == one_by_one * 2


def test_matplotlib_is_imported_late_and_nothing_of_it_is_global() -> None:
    code = """
import sys
import numpy as np
from PIL import Image
import captioning.reporting.gallery
from captioning.reporting.figures import attention_figure
assert "matplotlib" not in sys.modules
attention_figure(Image.new("RGB", (9, 9)), ["a"], np.ones((1, 2, 2))).savefig(sys.stdout.buffer)
assert "matplotlib.pyplot" not in sys.modules
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr.decode()
    assert ended.stdout.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "weight", "message"),
    [
        (["a"], 0.1, "1 words, but its attention has 2 maps"),
        (["a", "b", "c"], 0.1, "3 words, but its attention has 2 maps"),
        (["a", "b"], math.nan, "must be finite and at least 0"),
        (["a", "b"], math.inf, "must be finite and at least 0"),
        (["a", "b"], -0.1, "must be finite and at least 0"),
    ],
)
def test_maps_that_are_not_the_captions_are_refused(
    words: list[str], weight: float, message: str
) -> None:
    maps = one_hot((0, 0), (1, 1))
    maps[1, 2, 3] = weight
    with pytest.raises(CaptioningError, match=message):
        attention_figure(WHITE, words, maps)


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("size", [(400, 300), (300, 500)])
def test_the_region_is_what_the_encoder_sees(resize: str, size: tuple[int, int]) -> None:
    # A picture whose red and green say how far to the right and down each pixel lies.
    across, down = (np.linspace(0, 255, length).round() for length in size)
    x, y = np.meshgrid(across, down)
    picture = Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))
    seen = Preprocessing(size=224, resize=resize, mean=(0.0,) * 3, std=(1.0,) * 3)(picture)
    x0, y0, x1, y1 = region_of(resize, size)
    red, green = seen[0], seen[1]
    assert (x0, x1) == pytest.approx((red.min().item(), red.max().item()), abs=0.01)
    assert (y0, y1) == pytest.approx((green.min().item(), green.max().item()), abs=0.01)
