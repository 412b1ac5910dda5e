"""Learning curves from a run's ``logs/metrics.csv``, and charts of them as plain geometry."""

import csv
import io
import math
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Final, NamedTuple

from captioning.support.errors import CaptioningError
from captioning.support.reading import load_document

Curve = Mapping[int, float]
"""Values by epoch; the first epoch is 1."""

WIDTH: Final = 360
HEIGHT: Final = 220
LEFT, RIGHT, TOP, BOTTOM = 38, WIDTH - 14, 18, HEIGHT - 34
"""The edges of a chart's plot, in units of its width and height; the origin is at the top left."""


# Nobody trains so long, or logs such a value; a chart's arithmetic would overflow.
_MOST_EPOCHS = 10**9
_LARGEST_VALUE = 1e200


def read_curves(path: str | os.PathLike[str]) -> dict[str, Curve]:
    """Read the file of Lightning's CSVLogger as the mean of each quantity over each epoch.

    A quantity that is logged at some steps and, as ``NAME_epoch``, as the mean over all steps of
    the epoch, is read from the latter, so that a curve shows what the log shows. Cells that hold no
    finite number, and rows without an epoch, are left out.

    Returns:
        ``{quantity: curve}``, such as ``train/loss``, ``dev/loss`` and ``dev/CIDEr``.

    Raises:
        CaptioningError: the file cannot be read.
    """
    values: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    try:
        for row in csv.DictReader(io.StringIO(load_document(path), newline="")):
            epoch = _number(row.pop("epoch", None))
            if epoch is None or not 0 <= epoch <= _MOST_EPOCHS:
                continue
            for name, cell in row.items():
                if not cell:  # most are empty, since a row has the quantities of one moment
                    continue
                value = _number(cell)
                if value is not None and abs(value) <= _LARGEST_VALUE:
                    values[name][int(epoch) + 1].append(value)
    except csv.Error as error:
        raise CaptioningError(f"{path}: cannot be read as CSV: {error}") from None
    curves: dict[str, Curve] = {
        name: {epoch: fmean(numbers) for epoch, numbers in sorted(by_epoch.items())}
        for name, by_epoch in values.items()
    }
    of_epochs = [name for name in curves if name.endswith("_epoch")]
    for name in of_epochs:
        quantity = name.removesuffix("_epoch")
        curves.pop(f"{quantity}_step", None)
        curves[quantity] = {**curves.get(quantity, {}), **curves.pop(name)}
    return curves


def best_epoch(curve: Curve) -> int:
    """The epoch of the highest value; the first one if there are several."""
    return max(curve, key=lambda epoch: curve[epoch])


class Point(NamedTuple):
    """A point of a line, in the chart's units, and its description."""

    x: float
    y: float
    title: str


class Tick(NamedTuple):
    """A mark of an axis: its place along it, in the chart's units, and its label."""

    place: float
    label: str


@dataclass(frozen=True)
class Line:
    """One curve of a chart."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Chart:
    """Curves over epochs, laid out in WIDTH x HEIGHT.

    Attributes:
        title: of the chart.
        lines: the curves that have values.
        epochs: the marks of the horizontal axis.
        values: the marks of the vertical axis.
        best: place of the marked epoch on the horizontal axis.
    """

    title: str
    lines: tuple[Line, ...]
    epochs: tuple[Tick, ...]
    values: tuple[Tick, ...]
    best: Tick | None = None


def chart(title: str, curves: Mapping[str, Curve], best: int | None = None) -> Chart | None:
    """Lay curves out in one chart; None if there is no value.

    Args:
        title: of the chart.
        curves: by name, in the order of the legend.
        best: the epoch to mark, if it is among them.
    """
    curves = {name: curve for name, curve in curves.items() if curve}
    if not curves:
        return None
    epochs = [epoch for curve in curves.values() for epoch in curve]
    numbers = [value for curve in curves.values() for value in curve.values()]
    marks = _marks(min(numbers), max(numbers))
    first, last = min(epochs), max(epochs)

    def across(epoch: int) -> float:
        share = (epoch - first) / (last - first) if last > first else 0.5
        return round(LEFT + share * (RIGHT - LEFT), 1)

    def down(value: float) -> float:
        return round(BOTTOM - (value - marks[0]) / (marks[-1] - marks[0]) * (BOTTOM - TOP), 1)

    digits = max(0, -math.floor(math.log10(marks[1] - marks[0])))

    def line(name: str, curve: Curve) -> Line:
        points = [
            Point(across(epoch), down(value), f"{name}, epoch {epoch}: {value:.{digits + 1}f}")
            for epoch, value in curve.items()
        ]
        return Line(name, tuple(points))

    return Chart(
        title,
        tuple(line(name, curve) for name, curve in curves.items()),
        tuple(
            Tick(across(round(epoch)), f"{epoch:.0f}")
            for epoch in _marks(float(first), float(last), least=1.0)
            if first <= epoch <= last
        ),
        tuple(Tick(down(value), f"{value:.{digits}f}") for value in marks),
        Tick(across(best), "best") if best in epochs else None,
    )


def _marks(low: float, high: float, least: float = 0.0) -> list[float]:
    """Round numbers, evenly spaced and at most eight, from at most ``low`` to at least ``high``."""
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    rough = max((high - low) / 6, least)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(round_ * power for round_ in (1, 2, 5, 10) if round_ * power >= rough * (1 - 1e-9))
    return [step * n for n in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _number(cell: object) -> float | None:
    # In a row that is too short or too long, the cell is None or a list.
    try:
        value = float(cell) if isinstance(cell, str) else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None
