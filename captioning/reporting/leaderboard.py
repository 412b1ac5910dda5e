"""The leaderboard: all runs' results side by side, best first, as text, Markdown and CSV."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any, Final

from rich import box
from rich.table import Table
from rich.text import Text

from captioning.reporting.published import Published
from captioning.reporting.ranking import (
    LANGUAGE_COLUMNS,
    OBJECT_COLUMNS,
    Leaderboard,
    Ranking,
    Row,
    one_line,
)
from captioning.reporting.results import (
    BOX_SHARE,
    LANGUAGE_MEASURES,
    METRICS,
    OBJECT_MEASURES,
    Language,
    Objects,
    present_metrics,
)

TEXT_COLUMNS: Final = ("run", "seeds", "model", "decoding")
LAST_COLUMN: Final = "when (UTC)"

_MISSING = "-"

_LANGUAGE_LABELS = {field: label for label, field in LANGUAGE_MEASURES.items()}

# What a terminal narrower than this leaves out, so that it need not squeeze the rest.
_LEFT_OUT: Final = {
    150: ("model", "BLEU-2", "BLEU-3", LAST_COLUMN),
    98: ("BLEU-1", "ROUGE-L"),
}


@dataclass(frozen=True)
class Cell:
    """A number or a text of a table.

    Attributes:
        text: what it shows, on one line.
        value: the number behind it, on its own scale.
        interval: that of the number, as text; or what else belongs below it.
        best: whether no other run of the ranking has a higher one.
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
        """A score times 100, or a dash; with its spread over seeds, where there are several."""
        between = None
        if interval is not None:
            between = "–".join(f"{100 * end:.1f}" for end in interval)
        text = _hundredfold(score) + (f" ±{100 * spread:.1f}" if spread is not None else "")
        return cls(text, score, between, best)


@dataclass(frozen=True)
class RankingTable:
    """A ranking as people read it: a row a configuration, best first, and published results."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    published: tuple[tuple[Cell, ...], ...] = ()


def terminal_tables(board: Leaderboard, width: int = 1000) -> list[Table]:
    """The rankings for a terminal; the best score of each column is bold.

    Args:
        board: what to show.
        width: of the terminal. A narrow one goes without some columns, which files have.
    """
    tables = []
    for ranking in board.rankings:
        content = ranking_table(ranking, board.metric)
        hidden = {name for most, names in _LEFT_OUT.items() if width < most for name in names}
        hidden |= set(LANGUAGE_MEASURES)
        shown = [name for name in content.header if name not in hidden]
        rows = (*content.rows, *content.published)
        tables.append(_terminal_table(content.header, rows, shown, str(ranking.ground)))
        # In a table of their own: with these, one of all would be wider than most terminals.
        if language := [name for name in content.header if name in LANGUAGE_MEASURES]:
            tables.append(_terminal_table(content.header, content.rows, ["run", *language]))
    return tables


def _terminal_table(
    header: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    shown: Sequence[str],
    title: str | None = None,
) -> Table:
    """Some of the columns."""
    table = Table(
        title=None if title is None else Text(title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0),
        pad_edge=False,
    )
    cells = [[row[header.index(name)] for name in shown] for row in rows]
    for place, column in enumerate(shown):
        # A narrow terminal folds names and cuts the date, never the numbers.
        if column in TEXT_COLUMNS:
            table.add_column(column, overflow="fold", min_width=5)
        elif column == LAST_COLUMN:
            table.add_column(column, no_wrap=True)
        else:
            texts = [text for row in cells for text in (row[place].text, row[place].interval or "")]
            least = max(map(len, (*column.split(), *texts)))
            table.add_column(column, justify="right", min_width=least)
    for row in cells:
        # Text, not str: rich would read the brackets of a run's name as its markup.
        table.add_row(*map(_terminal_cell, row))
    return table


def _terminal_cell(cell: Cell) -> Text:
    text = Text(cell.text, style="bold" if cell.best else "")
    if cell.interval:
        text.append(f"\n{cell.interval}", style="not bold dim")
    return text


def to_markdown(board: Leaderboard) -> str:
    """The whole leaderboard as a Markdown page; scores times 100, the best of each column bold."""
    lines = [
        "# Leaderboard",
        "",
        f"Best first by {board.metric} on {board.split}; scores times 100.",
    ]
    lines += [part for note in notes(board, _markdown) for part in ("", note)]
    for ranking in board.rankings:
        table = ranking_table(ranking, board.metric)
        lines += ["", f"## {_markdown(str(ranking.ground))}", ""]
        lines += [_markdown_row(map(_markdown, table.header)), "|" + " --- |" * len(table.header)]
        lines += [
            _markdown_row(_markdown_cell(cell) for cell in row)
            for row in (*table.rows, *table.published)
        ]
        lines += [part for each in ranking.published for part in ("", _markdown(each.note))]
    lines += [part for note in endings(board, _markdown) for part in ("", note)]
    return "\n".join(lines) + "\n"


def _markdown_cell(cell: Cell) -> str:
    text = f"**{_markdown(cell.text)}**" if cell.best else _markdown(cell.text)
    return text + (f" ({_markdown(cell.interval)})" if cell.interval else "")


def notes(board: Leaderboard, escape: Callable[[str], str] = str) -> list[str]:
    """What a reader must know before the tables, a sentence or two each."""
    found = [escape(board.reason_for_tables)] if board.reason_for_tables else []
    rows = [row for ranking in board.rankings for row in ranking.rows]
    if any(row.intervals for row in rows):
        found.append("Beside or below a score is its 95 % bootstrap interval over the images.")
    if any(len(row.entries) > 1 for row in rows):
        found.append("Several seeds are one row: mean ± standard deviation over the seeds.")
    for ranking in board.rankings:
        if ranking.against and any(row.differences for row in ranking.rows):
            chosen = f", the best by {board.metric} on {board.best_by}" if board.best_by else ""
            found.append(
                f"Δ is the paired difference from {escape(one_line(ranking.against.name))}{chosen}"
                f", with its p-value over the images ({escape(str(ranking.ground.data))})."
            )
        found += _why_not_compared(board, ranking, escape)
    if any(ranking.published for ranking in board.rankings):
        found.append("Rows marked published are what others report; they are not ranked.")
    return found


def _why_not_compared(
    board: Leaderboard, ranking: Ranking, escape: Callable[[str], str]
) -> list[str]:
    data = escape(one_line(ranking.ground.data))
    if len(ranking.rows) < 2:
        return []
    if ranking.against is None:
        # Where a run was named, the other tables are without it on purpose.
        return [
            f"No run on {data} has {board.metric} on {board.best_by}, to choose the best by; "
            "--against NAME compares the others with the run of that name."
        ] * bool(board.best_by)
    without = [row for row in ranking.rows if not row.differences and row is not ranking.against]
    names = ", ".join(escape(one_line(row.name)) for row in without)
    return [
        f"No difference is known of {names}: it takes statistics_{board.split}.json beside both "
        f"runs' results.json, of the same images and references ({data})."
    ] * bool(without)


def endings(board: Leaderboard, escape: Callable[[str], str] = str) -> list[str]:
    """What stands below the tables: what is not in them, and why."""
    found = [unscored_sentence(board, escape)] if board.unscored else []
    if board.unmatched:
        names = "; ".join(escape(one_line(each.name)) for each in board.unmatched)
        found.append(
            f"Published results that are not shown, as no run here is on the same images: {names}."
        )
    return found + [
        f"failed: {escape(failure.name)}: {escape(one_line(failure.reason))}"
        for failure in board.failures
    ]


def to_csv(board: Leaderboard) -> str:
    """The rankings as CSV, one row a configuration: all in full, on the metrics' own scale.

    After each metric come its spread over the seeds, the ends of its interval, and the difference
    from the best run with the ends of its interval and its p-value, where some row has them. Text
    that a spreadsheet would run as a formula is quoted with a leading apostrophe.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    records = csv_records(board)
    columns = list(dict.fromkeys(name for record in records for name in record))
    writer.writerow(columns)
    for record in records:
        cells = (record.get(column) for column in columns)
        writer.writerow(
            "" if cell is None else _csv(cell) if isinstance(cell, str) else cell for cell in cells
        )
    return file.getvalue()


def csv_records(board: Leaderboard) -> list[dict[str, Any]]:
    """All numbers of all rows, by column, each record with the same ones."""
    records = []
    every = [row for ranking in board.rankings for row in ranking.rows]
    means = [row.means(board.split) for row in every]
    metrics = present_metrics(means)
    others = [
        name for name in (*OBJECT_COLUMNS, *LANGUAGE_COLUMNS) if any(name in row for row in means)
    ]
    seeds = any(len(row.entries) > 1 for row in every)
    intervals = any(row.intervals for row in every)
    compared = any(row.differences for row in every)
    for ranking in board.rankings:
        for row in ranking.rows:
            mean, spread = row.means(board.split), row.spreads(board.split)
            results = [entry.results for entry in row.entries]
            record: dict[str, Any] = {
                "run": row.results.name,
                "model": row.results.model.name if row.results.model else None,
                "decoding": row.results.decoding.label if row.results.decoding else None,
                "seeds": len(row.entries),
                "published": None,
                **ranking.ground._asdict(),
            }
            for metric in metrics:
                record[metric] = mean.get(metric)
                if seeds:
                    record[f"{metric} sd"] = spread.get(metric)
                if intervals:
                    low, high = row.intervals.get(metric, (None, None))
                    record |= {f"{metric} low": low, f"{metric} high": high}
                if compared:
                    pair = row.differences.get(metric)
                    record[f"{metric} difference"] = pair.difference if pair else None
                    record[f"{metric} difference low"] = pair.low if pair else None
                    record[f"{metric} difference high"] = pair.high if pair else None
                    record[f"{metric} p"] = pair.p_value if pair else None
            record[_dev(board.metric)] = row.means("dev").get(board.metric)
            record |= {name: mean.get(name) for name in others}
            record["created"] = max(each.created for each in results).isoformat()
            record["commit"] = "; ".join(
                dict.fromkeys(each.commit for each in results if each.commit)
            )
            record["path"] = "; ".join(str(entry.path) for entry in row.entries)
            records.append(record)
        for each in ranking.published:
            record = {
                "run": each.name, "model": each.model, "decoding": each.decoding,
                "published": each.source, "data": each.data, "split": each.split,
                "images": each.images,
            }  # fmt: skip
            record |= {metric: each.score(metric) for metric in each.scores}
            records.append(record)
    return records


def unscored_sentence(board: Leaderboard, escape: Callable[[str], str] = str) -> str:
    """Names the runs that have no scores on the split, and where they are."""
    names = ", ".join(
        escape(one_line(f"{entry.results.name} ({entry.path.parent})")) for entry in board.unscored
    )
    return f"Without scores on {board.split}: {names}."


def score_table(
    scores: Mapping[str, Mapping[str, float]], metrics: Sequence[str] = METRICS
) -> Table:
    """A run's own scores for the terminal: a row a split, a column a metric, times 100.

    Args:
        scores: ``{split: {metric: score}}`` on the metrics' own scale.
        metrics: the columns.
    """
    table = Table("split", box=box.SIMPLE_HEAD)
    for metric in metrics:
        table.add_column(metric, justify="right")
    for split, row in scores.items():
        table.add_row(split, *(_hundredfold(row.get(metric)) for metric in metrics))
    return table


def language_table(language: Mapping[str, Language]) -> Table:
    """What a run's captions are like as language, for the terminal.

    Args:
        language: by split.
    """
    table = Table("language", box=box.SIMPLE_HEAD)
    for split in language:
        table.add_column(split, justify="right")
    columns = [found.texts() for found in language.values()]
    for label in columns[0] if columns else ():
        table.add_row(label, *(texts[label] for texts in columns))
    return table


def object_table(objects: Mapping[str, Objects]) -> Table:
    """What a run says of objects and where it looks, for the terminal: percentages.

    Args:
        objects: by split.
    """
    table = Table("objects", box=box.SIMPLE_HEAD)
    for label in OBJECT_MEASURES:
        table.add_column(label, justify="right")
    for split, found in objects.items():
        values = (getattr(found, field) for field in OBJECT_MEASURES.values())
        table.add_row(split, *(_hundredfold(value) for value in values))
    return table


def ranking_table(ranking: Ranking, metric: str) -> RankingTable:
    """Header and rows of a ranking, shared by all forms in which people read it.

    Args:
        ranking: the rows.
        metric: the one that they are sorted by, whose differences are shown.
    """
    split = ranking.ground.split
    means = [_means(row, split, metric) for row in ranking.rows]
    delta = f"Δ {metric}"
    columns = (
        *present_metrics(means),
        *((delta,) if any(row.differences for row in ranking.rows) else ()),
        *(
            name
            for name in (_dev(metric), *OBJECT_COLUMNS, *(LANGUAGE_COLUMNS * ranking.language))
            if any(name in row for row in means)
        ),
    )
    highest = {
        column: max((row[column] for row in means if column in row), default=None)
        for column in columns
        # The only run is the best of none; a large box, or strange words, are nobody's merit.
        if len(means) > 1 and column != BOX_SHARE and column not in LANGUAGE_COLUMNS
    }
    seeds = any(len(row.entries) > 1 for row in ranking.rows)
    rows = []
    for row, values in zip(ranking.rows, means, strict=True):
        results = row.results
        spreads = row.spreads(split) | _only(_dev(metric), row.spreads("dev").get(metric))
        written = results.intervals.get("dev", {}).get(metric) if len(row.entries) == 1 else None
        intervals = dict(row.intervals) | _only(_dev(metric), written)
        rows.append(
            (
                Cell(one_line(row.name)),
                *((Cell(str(len(row.entries))),) if seeds else ()),
                Cell(one_line(results.model.name) if results.model else _MISSING),
                Cell(one_line(results.decoding.label) if results.decoding else _MISSING),
                *(
                    _difference(row, metric)
                    if column == delta
                    else _language_cell(column, values.get(column), spreads.get(column))
                    if column in LANGUAGE_COLUMNS
                    else Cell.of_score(
                        values.get(column),
                        intervals.get(column),
                        spread=spreads.get(column),
                        best=column in values and values[column] == highest.get(column),
                    )
                    for column in columns
                ),
                Cell(
                    max(entry.results.created for entry in row.entries)
                    .astimezone(UTC)
                    .strftime("%Y-%m-%d %H:%M")
                ),
            )
        )
    texts = [column for column in TEXT_COLUMNS if seeds or column != "seeds"]
    header = (
        *texts,
        *(_LANGUAGE_LABELS.get(column, column) for column in columns),
        LAST_COLUMN,
    )
    return RankingTable(
        header, tuple(rows), tuple(_published_row(each, header) for each in ranking.published)
    )


def _means(row: Row, split: str, metric: str) -> dict[str, float]:
    means = row.means(split)
    return means if split == "dev" else means | _only(_dev(metric), row.means("dev").get(metric))


def _only(name: str, value: Any) -> dict[str, Any]:
    return {} if value is None else {name: value}


def _dev(metric: str) -> str:
    return f"dev {metric}"


def _difference(row: Row, metric: str) -> Cell:
    pair = row.differences.get(metric)
    if pair is None:
        return Cell(_MISSING)
    return Cell(f"{100 * pair.difference:+.1f}", pair.difference, f"p={pair.p_value:.3f}")


def _language_cell(field: str, value: float | None, spread: float | None) -> Cell:
    if value is None or field not in ("length", "vocabulary"):
        return Cell.of_score(value, spread=spread)
    digits = 0 if field == "vocabulary" and spread is None else 1
    text = f"{value:,.{digits}f}" + (f" ±{spread:,.1f}" if spread is not None else "")
    return Cell(text, value)


def _published_row(published: Published, header: Sequence[str]) -> tuple[Cell, ...]:
    texts = {
        "run": f"{published.name} (published)",
        "model": published.model or _MISSING,
        "decoding": published.decoding or _MISSING,
    }
    return tuple(
        Cell(one_line(texts[column])) if column in texts else Cell.of_score(published.score(column))
        for column in header
    )


def _hundredfold(score: float | None) -> str:
    return _MISSING if score is None else f"{100 * score:.1f}"


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*|<\[\]])", r"\\\1", text)


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _csv(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
