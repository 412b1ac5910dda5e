"""Rankings as tables of cells, for the leaderboard in a terminal, in Markdown and as a page."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any, Final

from captioning.metrics.registry import STANDARD_SCORES, ordered_scores
from captioning.reporting.measures import (
    BOX_SHARE,
    LANGUAGE_COLUMNS,
    LANGUAGE_MEASURES,
    OBJECT_COLUMNS,
)
from captioning.reporting.published import Published
from captioning.reporting.ranking import Ranking
from captioning.reporting.rows import Row
from captioning.support.errors import printable

LAST_COLUMN: Final = "when (UTC)"
MAX_SETTINGS: Final = 8
"""The number of columns for settings; notes name further ones, and the CSV file has them all."""

_BEFORE_SCORES = 2  # columns of settings that stand before the scores, which a screen then shows

MISSING: Final = "-"

_LONGEST = 24  # characters of a setting's value

_LANGUAGE_LABELS = {field: label for label, field in LANGUAGE_MEASURES.items()}


@dataclass(frozen=True)
class Cell:
    """A number or a text of a table.

    Attributes:
        text: the text shown, on one line.
        value: the number that is shown, on its own scale.
        interval: the interval or another text to show below the number.
        best: whether no other row of the ranking has a better number.
    """

    text: str
    value: float | None = None
    interval: str | None = None
    best: bool = False

    @classmethod
    def of_score(
        cls,
        score: float | None,
        interval: tuple[float, float] | None = None,
        *,
        spread: float | None = None,
        best: bool = False,
    ) -> "Cell":
        """A score times 100, or a dash; with its spread over seeds, if there are several."""
        between = None
        if interval is not None:
            between = "–".join(f"{100 * end:.1f}" for end in interval)
        text = hundredfold(score) + (f" ±{100 * spread:.1f}" if spread is not None else "")
        return cls(text, score, between, best)


@dataclass(frozen=True)
class RankingTable:
    """A ranking as people read it: one row for each configuration, and published results.

    Attributes:
        header: the names of the columns.
        rows: best first.
        published: results of others, in the same columns.
        texts: the columns of `header` that hold no numbers.
        settings: the columns of `header` in which settings of the rows differ.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    published: tuple[tuple[Cell, ...], ...] = ()
    texts: frozenset[str] = frozenset()
    settings: tuple[str, ...] = ()


def ranking_table(ranking: Ranking, metric: str, lower: Collection[str] = ()) -> RankingTable:
    """Header and rows of a ranking, shared by all forms in which people read it.

    Args:
        ranking: the rows.
        metric: the score by which they are sorted, whose differences are shown.
        lower: the scores of which a lower one is better.
    """
    split = ranking.protocol.split
    means = [_means(row, split, metric) for row in ranking.rows]
    columns = _columns(ranking, means, metric)
    best = {
        column: (min if column.removeprefix("dev ") in lower else max)(found)
        for column in columns
        # A single row is not marked as best. A large box or rare words are no merit of a run.
        if len(means) > 1 and column != BOX_SHARE and column not in LANGUAGE_COLUMNS
        if (found := [row[column] for row in means if column in row])
    }
    seeds = any(len(row.runs) > 1 for row in ranking.rows)
    settings = ranking.settings[:MAX_SETTINGS]
    numeric = {
        key
        for key in settings
        if all(_number(row.settings[key]) is not None for row in ranking.rows)
    }
    rows = []
    for row, values in zip(ranking.rows, means, strict=True):
        results = row.results
        spreads = row.spreads(split) | _only(_dev(metric), row.spreads("dev").get(metric))
        written = results.intervals.get("dev", {}).get(metric) if len(row.runs) == 1 else None
        intervals = dict(row.intervals) | _only(_dev(metric), written)
        cells = {
            "run": Cell(printable(row.name)),
            "seeds": Cell(str(len(row.runs)), float(len(row.runs))),
            "model": Cell(printable(results.model.name) if results.model else MISSING),
            "decoding": Cell(printable(results.decoding.label) if results.decoding else MISSING),
            LAST_COLUMN: Cell(
                max(run.results.created for run in row.runs)
                .astimezone(UTC)
                .strftime("%Y-%m-%d %H:%M")
            ),
        }
        for key in settings:
            text = row.settings[key]
            cells[key] = Cell(_shortened(text), _number(text) if key in numeric else None)
        for column in columns:
            if column == _delta(metric):
                cells[column] = _difference(row, metric)
            elif column in LANGUAGE_COLUMNS:
                label = _LANGUAGE_LABELS[column]
                cells[label] = _language_cell(column, values.get(column), spreads.get(column))
            else:
                cells[column] = Cell.of_score(
                    values.get(column),
                    intervals.get(column),
                    spread=spreads.get(column),
                    best=column in values and values[column] == best.get(column),
                )
        rows.append(cells)
    header = (
        *("run", *settings[:_BEFORE_SCORES], *(("seeds",) if seeds else ()), "model", "decoding"),
        *(_LANGUAGE_LABELS.get(column, column) for column in columns),
        *(*settings[_BEFORE_SCORES:], LAST_COLUMN),
    )
    return RankingTable(
        header,
        tuple(tuple(cells[column] for column in header) for cells in rows),
        tuple(_published_row(each, header) for each in ranking.published),
        frozenset({"run", "model", "decoding", *settings} - numeric),
        settings,
    )


def score_columns(rows: Iterable[Row], split: str) -> list[str]:
    """The columns of scores that a table of the rows needs; see `ordered_scores`."""
    return ordered_scores(
        name for row in rows for run in row.runs for name in run.results.scores.get(split, ())
    )


def _columns(ranking: Ranking, means: Sequence[Mapping[str, float]], metric: str) -> list[str]:
    """The columns with numbers, which are fields of `Language` where they are of the words."""
    scores = score_columns(ranking.rows, ranking.protocol.split)
    beside = (_dev(metric), *OBJECT_COLUMNS, *(LANGUAGE_COLUMNS * ranking.language))
    return [
        *(name for name in scores if name in STANDARD_SCORES or any(name in row for row in means)),
        *([_delta(metric)] if any(row.differences for row in ranking.rows) else []),
        *(name for name in beside if any(name in row for row in means)),
    ]


def _means(row: Row, split: str, metric: str) -> dict[str, float]:
    means = row.means(split)
    return means if split == "dev" else means | _only(_dev(metric), row.means("dev").get(metric))


def _only(name: str, value: Any) -> dict[str, Any]:
    return {} if value is None else {name: value}


def _dev(metric: str) -> str:
    return f"dev {metric}"


def _delta(metric: str) -> str:
    return f"Δ {metric}"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _shortened(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _difference(row: Row, metric: str) -> Cell:
    pair = row.differences.get(metric)
    if pair is None:
        return Cell(MISSING)
    p_value = MISSING if pair.p_value is None else f"{pair.p_value:.3f}"
    return Cell(f"{100 * pair.difference:+.1f}", pair.difference, f"p={p_value}")


def _language_cell(field: str, value: float | None, spread: float | None) -> Cell:
    if value is None or field not in ("length", "vocabulary"):
        return Cell.of_score(value, spread=spread)
    digits = 0 if field == "vocabulary" and spread is None else 1
    text = f"{value:,.{digits}f}" + (f" ±{spread:,.1f}" if spread is not None else "")
    return Cell(text, value)


def _published_row(published: Published, header: Sequence[str]) -> tuple[Cell, ...]:
    texts = {
        "run": f"{published.name} (published)",
        "model": published.model or MISSING,
        "decoding": published.decoding or MISSING,
    }
    return tuple(
        Cell(printable(texts[column]))
        if column in texts
        else Cell.of_score(published.score(column))
        for column in header
    )


def hundredfold(score: float | None) -> str:
    return MISSING if score is None else f"{100 * score:.1f}"
