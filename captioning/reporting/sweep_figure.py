"""The figure of a sweep: a score plotted against the settings that vary.

It is a line plot for one varying setting, a heat map for two, and parallel coordinates for more.
Runs that differ only in ``seed`` are averaged.

Matplotlib is imported only when a figure is drawn, and ``pyplot`` is not used.
"""

import base64
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import numpy as np

from captioning.reporting.rendering import render_page
from captioning.support.files import atomic_write_bytes, atomic_write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SEED: Final = "seed"

_DPI = 150
_COLOURS = "viridis"
_MISSING = "0.85"  # grey


@dataclass(frozen=True)
class SweptRun:
    """A run of a sweep.

    Attributes:
        folder: the folder of the run.
        values: the run's values of the settings that vary; all runs of a sweep have the same keys.
        score: the score that is compared, on the metric's own scale; None if unfinished.
        reason: why the run failed; None if it did not.
    """

    folder: Path
    values: Mapping[str, str]
    score: float | None
    reason: str | None = None


@dataclass(frozen=True)
class SeedGroup:
    """The scores of finished runs that differ only in the seed."""

    values: tuple[str, ...]
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean score over the seeds."""
        return fmean(self.scores)


def varying_keys(runs: Sequence[SweptRun]) -> list[str]:
    """The keys with more than one value, except the seed, in the order of the runs' keys."""
    keys = list(dict.fromkeys(key for run in runs for key in run.values if key != SEED))
    return [key for key in keys if len({run.values[key] for run in runs}) > 1]


def group_by_values(runs: Sequence[SweptRun], keys: Sequence[str]) -> list[SeedGroup]:
    """Group the finished runs by their values of ``keys``, sorted by these values."""
    scores: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for run in runs:
        if run.score is not None:
            scores[tuple(run.values[key] for key in keys)].append(run.score)
    groups = [SeedGroup(values, tuple(found)) for values, found in scores.items()]
    return sorted(groups, key=lambda group: [_sort_key(value) for value in group.values])


def sweep_figure(runs: Sequence[SweptRun], metric: str) -> "Figure | None":
    """Draw the scores of the finished runs against the settings that vary.

    Args:
        runs: the runs of a sweep.
        metric: the name of the score, which is drawn times 100.

    Returns:
        The figure; None if no setting varies or no run has finished.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    keys = varying_keys(runs)
    groups = group_by_values(runs, keys)
    if not keys or not groups:
        return None
    width = 6.4 if len(keys) < 3 else 2.2 * len(keys) + 2
    figure = Figure(figsize=(width, 4.4), dpi=_DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    scales = [Scale(key, (run.values[key] for run in runs)) for key in keys]
    hundredfold = f"{metric} x 100"
    if len(keys) == 1:
        _lines(axes, groups, scales[0])
        axes.set_ylabel(hundredfold)
    elif len(keys) == 2:
        figure.colorbar(_heat_map(axes, groups, *scales), label=hundredfold)
    else:
        _parallel_coordinates(axes, groups, scales, hundredfold)
    return figure


class Scale:
    """Maps the values of a key to positions along an axis.

    Up to ``MAX_EQUIDISTANT`` values, and texts, have equal distances. More numbers, as in a random
    search, are placed by their value, or by its logarithm if they span a factor of ten.

    Attributes:
        values: all values, sorted.
        logarithmic: whether positions are logarithms.
        equidistant: whether values have equal distances.
        ordered: whether all values are numbers.
    """

    MAX_EQUIDISTANT = 12

    def __init__(self, key: str, values: Iterable[str]) -> None:
        self.key = key
        self.values = sorted(set(values), key=_sort_key)
        numbers = [number for value in self.values if (number := _number(value)) is not None]
        are_few = len(self.values) <= self.MAX_EQUIDISTANT
        self.equidistant = are_few or len(numbers) < len(self.values)
        self.ordered = len(numbers) == len(self.values)
        self.logarithmic = not self.equidistant and 0 < 10 * numbers[0] <= numbers[-1]

    def position(self, value: str) -> float:
        """The position of a value."""
        if self.equidistant:
            return float(self.values.index(value))
        return self._coordinate(float(value))

    def _coordinate(self, number: float) -> float:
        return math.log10(number) if self.logarithmic else number

    @property
    def ticks(self) -> dict[float, str]:
        """The labels of the axis, by position."""
        if self.equidistant:
            return {self.position(value): _shortened(value) for value in self.values}
        low, high = float(self.values[0]), float(self.values[-1])
        shown = _log_ticks(low, high) if self.logarithmic else _round_ticks(low, high)
        return {self._coordinate(number): f"{number:.6g}" for number in shown}

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest position."""
        return self.position(self.values[0]), self.position(self.values[-1])


def _lines(axes: "Axes", groups: Sequence[SeedGroup], scale: Scale) -> None:
    """Plot the mean over seeds, and each seed as a dot."""
    positions = [scale.position(group.values[0]) for group in groups]
    means = [100 * group.mean for group in groups]
    # Points of values that are not numbers are not connected.
    axes.plot(positions, means, "o-" if scale.ordered else "o", color="C0")
    for position, group in zip(positions, groups, strict=True):
        if len(group.scores) > 1:
            scores = [100 * score for score in group.scores]
            axes.plot([position] * len(scores), scores, ".", color="C0", alpha=0.5)
    axes.set_xticks(list(scale.ticks), list(scale.ticks.values()))
    if scale.equidistant:
        axes.set_xlim(-0.5, len(scale.values) - 0.5)
    axes.set_xlabel(scale.key)
    axes.grid(axis="y", alpha=0.3)


def _heat_map(axes: "Axes", groups: Sequence[SeedGroup], down: Scale, across: Scale) -> Any:
    """Draw cells with the mean and the standard deviation over seeds; grey if there is no score.

    If a scale is not equidistant, as in a random search, points are drawn instead of cells.
    """
    positions = [(across.position(s.values[1]), down.position(s.values[0])) for s in groups]
    means = [100 * group.mean for group in groups]
    for axis, scale in ((axes.xaxis, across), (axes.yaxis, down)):
        axis.set_ticks(list(scale.ticks), labels=list(scale.ticks.values()))
    axes.set_xlabel(across.key)
    axes.set_ylabel(down.key)
    if not (down.equidistant and across.equidistant):
        columns, rows = zip(*positions, strict=True)
        return axes.scatter(columns, rows, c=means, cmap=_COLOURS, s=60)
    grid = np.full((len(down.values), len(across.values)), np.nan)
    for (column, row), mean in zip(positions, means, strict=True):
        grid[int(row), int(column)] = mean
    axes.set_facecolor(_MISSING)
    image = axes.imshow(grid, cmap=_COLOURS, aspect="auto", origin="lower")
    for (column, row), group, mean in zip(positions, groups, means, strict=True):
        spread = f"\n±{100 * stdev(group.scores):.1f}" if len(group.scores) > 1 else ""
        dark = mean < 0.4 * min(means) + 0.6 * max(means)
        axes.text(
            *(column, row, f"{mean:.1f}{spread}"),
            ha="center", va="center", color="white" if dark else "black",
        )  # fmt: skip
    return image


def _parallel_coordinates(
    axes: "Axes", groups: Sequence[SeedGroup], scales: Sequence[Scale], metric: str
) -> None:
    """Draw a line for each group through its values and its score, coloured by the score."""
    import matplotlib

    means = [100 * group.mean for group in groups]
    low, high = min(means), max(means)
    colours = matplotlib.colormaps[_COLOURS]

    def share(value: float, low: float, high: float) -> float:
        return (value - low) / (high - low) if high > low else 0.5

    for group, mean in sorted(zip(groups, means, strict=True), key=lambda pair: pair[1]):
        heights = [
            share(scale.position(value), *scale.ends)
            for scale, value in zip(scales, group.values, strict=True)
        ]
        level = share(mean, low, high)
        axes.plot([*heights, level], color=colours(level), linewidth=1.5, alpha=0.85)
    for number, scale in enumerate(scales):
        axes.axvline(number, color="0.3", linewidth=0.8)
        for position, label in scale.ticks.items():
            _label(axes, number, share(position, *scale.ends), label)
    axes.axvline(len(scales), color="0.3", linewidth=0.8)
    for level in (low, high) if high > low else (low,):
        _label(axes, len(scales), share(level, low, high), f"{level:.1f}")
    axes.set_xticks(range(len(scales) + 1), [*(scale.key for scale in scales), metric])
    axes.set_yticks([])
    axes.set_xlim(-0.2, len(scales) + 0.4)
    for side in axes.spines.values():
        side.set_visible(False)


def _label(axes: "Axes", x: int, y: float, text: str) -> None:
    axes.annotate(
        text, (x, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1},
    )  # fmt: skip


def write_sweep(folder: Path, runs: Sequence[SweptRun], metric: str) -> list[Path]:
    """Write the figure as ``sweep.png``, and a page with all runs as ``sweep.html``.

    Returns:
        The written files. ``sweep.png`` is left out if no setting varies.

    Raises:
        CaptioningError: they cannot be written.
    """
    figure = sweep_figure(runs, metric)
    written, picture = [], None
    if figure is not None:
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
        atomic_write_bytes(folder / "sweep.png", file.getvalue())
        written.append(folder / "sweep.png")
        picture = base64.b64encode(file.getvalue()).decode()
    keys = list(dict.fromkeys(key for run in runs for key in run.values))
    best_first = sorted(runs, key=lambda run: -math.inf if run.score is None else run.score)[::-1]
    page = render_page(
        "sweep.html.jinja",
        ("page.css",),
        ("table.js",),
        title=folder.name,
        metric=metric,
        picture=picture,
        keys=keys,
        rows=[(run, _link(run, folder)) for run in best_first],
    )
    atomic_write_text(folder / "sweep.html", page)
    return [*written, folder / "sweep.html"]


def _link(run: SweptRun, folder: Path) -> str | None:
    """The link from the sweep's page to the run's report; None if there is no report."""
    report = run.folder / "report.html"
    return quote(report.relative_to(folder).as_posix()) if report.is_file() else None


def _number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _sort_key(value: str) -> tuple[bool, float, str]:
    """A sort key that puts numbers, sorted by value, before other texts."""
    number = _number(value)
    return number is None, number or 0.0, value


def _round_ticks(low: float, high: float) -> list[float]:
    """At most six equidistant round numbers from ``low`` to ``high``, for ticks."""
    least = (high - low) / 5
    power = 10 ** math.floor(math.log10(least))
    step = next(step for times in (1, 2, 5, 10) if (step := times * power) >= least)
    return [step * times for times in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from ``low`` to ``high``, with 2 and 5 times these if ``high < 100 * low``."""
    factors = (1, 2, 5) if high < 100 * low else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    numbers = [factor * 10.0**power for power in powers for factor in factors]
    return [number for number in numbers if low <= number <= high]


def _shortened(value: str) -> str:
    number = _number(value)
    if number is not None:
        return f"{number:.3g}" if len(value) > 6 else value
    return value if len(value) <= 24 else f"{value[:23]}…"
