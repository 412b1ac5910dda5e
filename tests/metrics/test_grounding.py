"""What captions say of known objects, and where attention looked, against counts by hand."""

from typing import NamedTuple

import numpy as np
import pytest

from captioning.metrics.grounding import ground


class Thing(NamedTuple):
    names: tuple[str, ...]
    colours: tuple[str, ...]
    box: tuple[float, float, float, float]


class Picture(NamedTuple):
    size: tuple[int, int]
    objects: tuple[Thing, ...]


RED_CIRCLE = Thing(("circle", "disc"), ("red",), (0, 0, 50, 50))
BLUE_CIRCLE = Thing(("circle", "disc"), ("blue",), (50, 50, 100, 100))
WHITE_STAR = Thing(("star",), ("white",), (50, 0, 100, 50))
DOG = Thing(("dog",), (), (50, 0, 100, 50))  # nobody noted its colour
PICTURES = {
    "one": Picture((100, 100), (RED_CIRCLE,)),
    "two": Picture((100, 100), (RED_CIRCLE, WHITE_STAR)),
    "same": Picture((100, 100), (RED_CIRCLE, BLUE_CIRCLE)),
    "pet": Picture((100, 100), (RED_CIRCLE, DOG)),
}


@pytest.mark.parametrize(
    ("image", "caption", "right", "complete"),
    [
        ("one", "a red circle", True, True),
        ("one", "there is a small red striped disc on a blue background", True, True),
        ("one", "a blue circle", False, False),
        ("one", "a star", False, False),
        ("one", "a circle", True, False),  # the colour is not said
        ("one", "a picture", False, False),  # nothing is named
        ("two", "a red circle", True, False),  # the star is not said
        ("two", "a white star above a red circle", True, True),
        ("two", "a white circle and a red star", False, False),  # colours the wrong way round
        ("two", "a red circle and a red circle", True, False),  # one thing twice is not both
        ("same", "a red circle and a blue disc", True, True),
        ("same", "red circle blue circle", True, True),
        ("same", "a red circle and a red circle", True, False),
        ("pet", "a blue dog and a red circle", True, True),  # who knows
        ("pet", "a red dog and a blue circle", False, False),
    ],
)
def test_right_and_complete(image: str, caption: str, right: bool, complete: bool) -> None:
    found = ground({image: caption}, {}, PICTURES)
    assert found is not None
    assert (found.right, found.complete) == (right, complete)


def test_shares_are_over_the_captions_with_boxes() -> None:
    captions = {"one": "a red circle", "two": "a red star", "without boxes": "a dog"}
    found = ground(captions, {}, PICTURES)
    assert found is not None
    assert (found.captions, found.right, found.words) == (2, 0.5, 1)
    assert found.peak_inside is None


def test_nothing_to_measure_without_boxes() -> None:
    assert ground({"1": "a dog"}, {}, {}) is None


def test_attention_is_measured_in_the_box_of_what_the_word_names() -> None:
    # Locations are 50 x 50 pixels: the red circle is the first, the blue one the last.
    maps = np.zeros((5, 2, 2))
    maps[:, 0, 0] = 0.25
    maps[:, 1, 1] = 0.75
    captions = {"same": "red circle and blue circle"}
    found = ground(captions, {"same": maps}, PICTURES)
    assert found is not None
    # "red circle": 0.25 inside, the peak elsewhere; "blue circle": 0.75 and the peak.
    assert found.words == 2
    assert found.attention_inside == pytest.approx((0.25 + 0.75) / 2)
    assert found.peak_inside == 0.5
    assert found.box_share == 0.25


def test_of_a_word_that_looked_in_part_the_part_counts_and_of_none_nothing() -> None:
    maps = np.zeros((5, 2, 2))
    maps[1, 0, 0], maps[1, 1, 1] = 0.1, 0.3  # "circle", with 0.4 of its attention on the image
    found = ground({"same": "red circle and blue circle"}, {"same": maps}, PICTURES)
    assert found is not None
    assert found.words == 2
    assert found.attention_inside == pytest.approx(0.25)
    assert found.peak_inside == 0.0


def test_either_box_will_do_where_the_caption_does_not_tell() -> None:
    maps = np.zeros((1, 2, 2))
    maps[0, 0, 0], maps[0, 1, 0] = 0.6, 0.4
    found = ground({"same": "circle"}, {"same": maps}, PICTURES)
    assert found is not None
    assert (found.attention_inside, found.peak_inside, found.box_share) == (0.6, 1.0, 0.5)


def test_wrong_words_are_no_part_of_the_attention() -> None:
    maps = np.full((2, 2, 2), 0.25)
    found = ground({"one": "star circle"}, {"one": maps}, PICTURES)
    assert found is not None
    assert (found.words, found.attention_inside, found.right) == (1, 0.25, 0.0)


def test_boxes_cut_locations_where_they_do() -> None:
    """Against painting the box and the map pixel by pixel."""
    random = np.random.default_rng(0)
    width, height = 140, 70
    for _ in range(20):
        left, top = (int(random.integers(0, side - 12)) for side in (width, height))
        right = int(random.integers(left + 10, width))
        bottom = int(random.integers(top + 10, height))
        weights = random.dirichlet(np.ones(7 * 14)).reshape(1, 7, 14)
        picture = Picture((width, height), (Thing(("dog",), (), (left, top, right, bottom)),))
        found = ground({"1": "dog"}, {"1": weights}, {"1": picture})
        pixels = np.kron(weights[0], np.full((10, 10), 1 / 100))
        inside = np.zeros((height, width), bool)
        inside[top:bottom, left:right] = True
        row, column = np.unravel_index(pixels.argmax(), pixels.shape)
        assert found is not None
        assert found.attention_inside == pytest.approx(pixels[inside].sum())
        assert found.box_share == pytest.approx(inside.mean())
        assert found.peak_inside == inside[row + 5, column + 5]
        assert found.complete == 1  # nobody noted its colour, so none need be said
