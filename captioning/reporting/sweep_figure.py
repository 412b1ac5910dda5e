"""The figure of a sweep: a score over the settings that vary.

It has lines for one varying setting, a heat map for two, and parallel coordinates for more. Runs
that differ only in ``seed`` are averaged.

Matplotlib is imported when a figure is drawn; only its objects are used, never ``pyplot``.
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
        folder: the run's own.
        values: its values of the settings that vary; all runs of a sweep have the same keys.
        score: the score that is compared, on its own scale; None if the run has not finished.
        reason: why the run failed, if it did.
    """

    folder: Path
    values: Mapping[str, str]
    score: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Setting:
    """Runs that differ only in the seed."""

    values: tuple[str, ...]
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return fmean(self.scores)


def varying(runs: Sequence[SweptRun]) -> list[str]:
    """The keys with several values, without the seed, in the order of the runs' keys."""
    keys = list(dict.fromkeys(key for run in runs for key in run.values if key != SEED))
    return [key for key in keys if len({run.values[key] for run in runs}) > 1]


def settings_of(runs: Sequence[SweptRun], keys: Sequence[str]) -> list[Setting]:
    """The finished runs, grouped and sorted by the values of ``keys``."""
    scores: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for run in runs:
        if run.score is not None:
            scores[tuple(run.values[key] for key in keys)].append(run.score)
    settings = [Setting(values, tuple(found)) for values, found in scores.items()]
    return sorted(settings, key=lambda setting: [_order(value) for value in setting.values])


def sweep_figure(runs: Sequence[SweptRun], metric: str) -> "Figure | None":
    """Draw the score of the finished runs over the settings that vary; None if none does.

    Args:
        runs: of a sweep.
        metric: the name of the score, which is drawn times 100.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    keys = varying(runs)
    settings = settings_of(runs, keys)
    if not keys or not settings:
        return None
    width = 6.4 if len(keys) < 3 else 2.2 * len(keys) + 2
    figure = Figure(figsize=(width, 4.4), dpi=_DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    scales = [Scale(key, (run.values[key] for run in runs)) for key in keys]
    hundredfold = f"{metric} x 100"
    if len(keys) == 1:
        _lines(axes, settings, scales[0])
        axes.set_ylabel(hundredfold)
    elif len(keys) == 2:
        figure.colorbar(_heat_map(axes, settings, *scales), label=hundredfold)
    else:
        _parallel_coordinates(axes, settings, scales, hundredfold)
    return figure


class Scale:
    """The positions of the values of a key along an axis.

    A few values have equal distances. Many numbers, as of a random search, are placed by their
    value, or by its logarithm if they span a factor of ten.

    Attributes:
        values: all values, sorted.
        logarithmic: whether positions are logarithms.
        few: whether values have equal distances.
        ordered: whether all values are numbers.
    """

    FEW = 12

    def __init__(self, key: str, values: Iterable[str]) -> None:
        self.key = key
        self.values = sorted(set(values), key=_order)
        numbers = [number for value in self.values if (number := _number(value)) is not None]
        self.few = len(self.values) <= self.FEW or len(numbers) < len(self.values)
        self.ordered = len(numbers) == len(self.values)
        self.logarithmic = not self.few and 0 < 10 * numbers[0] <= numbers[-1]

    def place(self, value: str) -> float:
        """The coordinate of a value."""
        return float(self.values.index(value)) if self.few else self._along(float(value))

    def _along(self, number: float) -> float:
        return math.log10(number) if self.logarithmic else number

    @property
    def ticks(self) -> dict[float, str]:
        """The labels, by their coordinates."""
        if self.few:
            return {self.place(value): _short(value) for value in self.values}
        low, high = float(self.values[0]), float(self.values[-1])
        shown = _powers(low, high) if self.logarithmic else _round(low, high)
        return {self._along(number): f"{number:.6g}" for number in shown}

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest coordinate."""
        return self.place(self.values[0]), self.place(self.values[-1])


def _lines(axes: "Axes", settings: Sequence[Setting], scale: Scale) -> None:
    """The mean over seeds, and each seed as a dot."""
    places = [scale.place(setting.values[0]) for setting in settings]
    means = [100 * setting.mean for setting in settings]
    # A line between values that are not numbers would have no meaning.
    axes.plot(places, means, "o-" if scale.ordered else "o", color="C0")
    for place, setting in zip(places, settings, strict=True):
        if len(setting.scores) > 1:
            scores = [100 * score for score in setting.scores]
            axes.plot([place] * len(scores), scores, ".", color="C0", alpha=0.5)
    axes.set_xticks(list(scale.ticks), list(scale.ticks.values()))
    if scale.few:
        axes.set_xlim(-0.5, len(scale.values) - 0.5)
    axes.set_xlabel(scale.key)
    axes.grid(axis="y", alpha=0.3)


def _heat_map(axes: "Axes", settings: Sequence[Setting], down: Scale, across: Scale) -> Any:
    """Cells with the mean over seeds and its standard deviation; grey without a score.

    Points, if a search has tried many values.
    """
    places = [(across.place(s.values[1]), down.place(s.values[0])) for s in settings]
    means = [100 * setting.mean for setting in settings]
    for axis, scale in ((axes.xaxis, across), (axes.yaxis, down)):
        axis.set_ticks(list(scale.ticks), labels=list(scale.ticks.values()))
    axes.set_xlabel(across.key)
    axes.set_ylabel(down.key)
    if not (down.few and across.few):
        columns, rows = zip(*places, strict=True)
        return axes.scatter(columns, rows, c=means, cmap=_COLOURS, s=60)
    grid = np.full((len(down.values), len(across.values)), np.nan)
    for (column, row), mean in zip(places, means, strict=True):
        grid[int(row), int(column)] = mean
    axes.set_facecolor(_MISSING)
    image = axes.imshow(grid, cmap=_COLOURS, aspect="auto", origin="lower")
    for (column, row), setting, mean in zip(places, settings, means, strict=True):
        spread = f"\n±{100 * stdev(setting.scores):.1f}" if len(setting.scores) > 1 else ""
        dark = mean < 0.4 * min(means) + 0.6 * max(means)
        axes.text(
            *(column, row, f"{mean:.1f}{spread}"),
            ha="center", va="center", color="white" if dark else "black",
        )  # fmt: skip
    return image


def _parallel_coordinates(
    axes: "Axes", settings: Sequence[Setting], scales: Sequence[Scale], metric: str
) -> None:
    """A line for each setting through its values and its score, coloured by the score."""
    import matplotlib

    means = [100 * setting.mean for setting in settings]
    low, high = min(means), max(means)
    colours = matplotlib.colormaps[_COLOURS]

    def share(value: float, low: float, high: float) -> float:
        return (value - low) / (high - low) if high > low else 0.5

    for setting, mean in sorted(zip(settings, means, strict=True), key=lambda pair: pair[1]):
        heights = [
            share(scale.place(value), *scale.ends)
            for scale, value in zip(scales, setting.values, strict=True)
        ]
        level = share(mean, low, high)
        axes.plot([*heights, level], color=colours(level), linewidth=1.5, alpha=0.85)
    for position, scale in enumerate(scales):
        axes.axvline(position, color="0.3", linewidth=0.8)
        for place, label in scale.ticks.items():
            _label(axes, position, share(place, *scale.ends), label)
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
        The files; without the figure if nothing varies.

    Raises:
        OSError: they cannot be written.
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
    """The link from the sweep's page to the run's report."""
    report = run.folder / "report.html"
    return quote(report.relative_to(folder).as_posix()) if report.is_file() else None


def _number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _order(value: str) -> tuple[bool, float, str]:
    """A key that sorts numbers by value, before other texts."""
    number = _number(value)
    return number is None, number or 0.0, value


def _round(low: float, high: float) -> list[float]:
    """At most six round numbers with equal distances."""
    least = (high - low) / 5
    power = 10 ** math.floor(math.log10(least))
    step = next(step for times in (1, 2, 5, 10) if (step := times * power) >= least)
    return [step * times for times in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _powers(low: float, high: float) -> list[float]:
    """Powers of ten; also 2 and 5 times these in a range below a factor of 100."""
    factors = (1, 2, 5) if high < 100 * low else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    numbers = [factor * 10.0**power for power in powers for factor in factors]
    return [number for number in numbers if low <= number <= high]


def _short(value: str) -> str:
    number = _number(value)
    if number is not None:
        return f"{number:.3g}" if len(value) > 6 else value
    return value if len(value) <= 24 else f"{value[:23]}…"
