"""What the picture of a sweep shows, read back from the figure."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captioning.reporting.sweep_figure import SweptRun, sweep_figure


def swept(*runs: tuple[Mapping[str, Any], float | None]) -> list[SweptRun]:
    return [
        SweptRun(Path(str(number)), {key: str(value) for key, value in values.items()}, score)
        for number, (values, score) in enumerate(runs)
    ]


def drawn(runs: list[SweptRun]) -> Any:
    """The figure's axes, after everything has its place."""
    figure = sweep_figure(runs, "dev CIDEr")
    assert figure is not None
    figure.canvas.draw()
    return figure.axes[0]


def ticks(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def test_one_value_is_a_line_through_the_means_over_seeds() -> None:
    scores = {0.5: (0.30, 0.34), 0.1: (0.40, 0.42), 0.3: (0.50, 0.50)}
    axes = drawn(
        swept(
            *(
                ({"model.dropout": value, "seed": seed}, score)
                for value, pair in scores.items()
                for seed, score in enumerate(pair)
            )
        )
    )
    line, *dots = axes.get_lines()
    assert ticks(axes.xaxis) == ["0.1", "0.3", "0.5"]
    assert line.get_linestyle() == "-"
    assert line.get_ydata() == pytest.approx([41, 50, 32])
    assert [list(seeds.get_ydata()) for seeds in dots] == [[40, 42], [50, 50], [30, 34]]
    assert axes.get_xlabel() == "model.dropout"
    assert axes.get_ylabel() == "dev CIDEr x 100"


def test_words_are_not_joined_by_a_line() -> None:
    axes = drawn(swept(({"model": "lstm"}, 0.1), ({"model": "attn_lstm"}, 0.2)))
    assert axes.get_lines()[0].get_linestyle() == "None"
    assert ticks(axes.xaxis) == ["attn_lstm", "lstm"]


def test_two_values_are_a_heat_map_with_grey_where_no_run_has_a_score() -> None:
    grid = {(128, 0.3): 0.36, (128, 0.5): 0.35, (1024, 0.3): 0.33, (1024, 0.5): None}
    axes = drawn(
        swept(
            *(
                ({"model.attention_dim": size, "model.dropout": share, "seed": seed}, score)
                for (size, share), score in grid.items()
                for seed in (0, 1)
            )
        )
    )
    (image,) = axes.get_images()
    np.testing.assert_allclose(image.get_array().filled(np.nan), [[36, 35], [33, np.nan]])
    assert [text.get_text() for text in axes.texts] == ["36.0\n±0.0", "35.0\n±0.0", "33.0\n±0.0"]
    assert (ticks(axes.yaxis), ticks(axes.xaxis)) == (["128", "1024"], ["0.3", "0.5"])


def test_three_values_are_a_line_a_setting_through_all_axes() -> None:
    axes = drawn(
        swept(
            ({"a": 1, "b": "x", "c": 10}, 0.2),
            ({"a": 2, "b": "y", "c": 10}, 0.6),
            ({"a": 3, "b": "x", "c": 20}, 0.4),
        )
    )
    paths = [list(line.get_ydata()) for line in axes.get_lines() if len(line.get_xdata()) == 4]
    # Worst first, so that the best lies on top; each axis from its lowest to its highest value.
    assert paths == [[0, 0, 0, 0], [1, 0, 1, pytest.approx(0.5)], [0.5, 1, 0, 1]]
    assert ticks(axes.xaxis) == ["a", "b", "c", "dev CIDEr x 100"]


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.11, 0.58, ["0.2", "0.3", "0.4", "0.5"]),
        (3.1e-4, 3.9e-3, ["0.0005", "0.001", "0.002"]),
        (2e-6, 0.3, ["1e-05", "0.0001", "0.001", "0.01", "0.1"]),
    ],
)
def test_the_many_values_of_a_search_have_round_ticks(
    low: float, high: float, labels: list[str]
) -> None:
    values = np.geomspace(low, high, 30)
    axes = drawn(swept(*(({"x": value}, value) for value in values)))
    assert ticks(axes.xaxis) == labels
    boxes = [label.get_window_extent() for label in axes.xaxis.get_ticklabels()]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    at = dict(zip(labels, axes.get_xticks(), strict=True))
    x, y = axes.get_lines()[0].get_data()
    for label in labels:  # each where the values around it are
        assert np.interp(at[label], x, y) / 100 == pytest.approx(float(label), rel=0.1)


def test_nothing_is_drawn_where_only_the_seed_varies() -> None:
    assert sweep_figure(swept(({"seed": 0}, 0.1), ({"seed": 1}, 0.2)), "dev CIDEr") is None
