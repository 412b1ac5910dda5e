"""The leaderboard: all runs' results side by side, best first, as text, Markdown and CSV.

It is made from ``results.json`` files alone. Runs are only ranked together when they were scored
on the same images against the same references; others get a table of their own.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from captioning.errors import CaptioningError
from captioning.reporting.results import (
    BOX_SHARE,
    METRICS,
    OBJECT_MEASURES,
    Language,
    Objects,
    Results,
    read_results,
)

RANKED_BY = "CIDEr"

TEXT_COLUMNS = ("run", "model", "decoding")
LAST_COLUMN = "when (UTC)"

_DEV_COLUMN = f"dev {RANKED_BY}"
# The table is wide enough as it is.
_OBJECT_COLUMNS = {label: field for label, field in OBJECT_MEASURES.items() if field != "complete"}
_MISSING = "-"


class Ground(NamedTuple):
    """What two runs must have in common to be ranked together."""

    data: str
    fingerprint: str
    split: str
    images: int

    def __str__(self) -> str:
        data = _one_line(f"{self.data} {self.fingerprint[:8]}")
        return f"{data}, {self.split} split, {self.images} images"


@dataclass(frozen=True)
class Entry:
    """One run: its results and the file that they were read from."""

    path: Path
    results: Results

    def ground(self, split: str) -> Ground:
        """What its scores on ``split`` were taken on."""
        data = self.results.data
        return Ground(data.name, data.fingerprint, split, data.images.get(split, 0))


@dataclass(frozen=True)
class Ranking:
    """Runs on one ground, best first."""

    ground: Ground
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Cell:
    """A number or a text of a table.

    Attributes:
        text: what it shows, on one line.
        value: the number behind it, on its own scale.
        interval: that of the number, as text.
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
        best: bool = False,
    ) -> "Cell":
        """A score times 100, or a dash."""
        between = None
        if interval is not None:
            between = "–".join(f"{100 * end:.1f}" for end in interval)
        return cls(_hundredfold(score), score, between, best)


@dataclass(frozen=True)
class RankingTable:
    """A ranking as people read it: a row a run, best first."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Leaderboard:
    """Everything found: rankings, each on its own ground, and runs without scores on the split."""

    split: str
    rankings: tuple[Ranking, ...]
    unscored: tuple[Entry, ...]

    @property
    def reason_for_tables(self) -> str | None:
        """Why there is more than one table, or None where there is not."""
        if len(self.rankings) < 2:
            return None
        grounds = [ranking.ground for ranking in self.rankings]
        parts: dict[str, set[object]] = {
            "data set": {ground.data for ground in grounds},
            "data fingerprint": {ground.fingerprint for ground in grounds},
            "number of images": {ground.images for ground in grounds},
        }
        differing = ", ".join(part for part, values in parts.items() if len(values) > 1)
        return (
            f"{len(grounds)} tables, because runs differ in {differing}: scores on different "
            "images or references cannot be ranked together."
        )


def find_results(folders: Iterable[Path]) -> tuple[list[Entry], list[CaptioningError]]:
    """Read every ``results.json`` below ``folders``, each once.

    Returns:
        The runs, and an error for each file that could not be read.

    Raises:
        CaptioningError: one of the folders does not exist.
    """
    paths: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise CaptioningError(f"{folder}: no such folder; name one that runs were written to")
        for path in sorted(folder.rglob("results.json")):
            paths.setdefault(path.resolve(), path)
    entries, errors = [], []
    for path in paths.values():
        try:
            entries.append(Entry(path, read_results(path)))
        except CaptioningError as error:
            errors.append(error)
    return entries, errors


def rank(entries: Iterable[Entry], split: str) -> Leaderboard:
    """Sort runs into rankings on ``split``: best first by CIDEr, runs without CIDEr last."""

    def place(entry: Entry) -> tuple[float, str, str]:
        score = entry.results.scores[split].get(RANKED_BY, -1.0)
        return -score, entry.results.name, str(entry.path)

    unscored = []
    grounds: dict[Ground, list[Entry]] = {}
    for entry in entries:
        if entry.results.scores.get(split):
            grounds.setdefault(entry.ground(split), []).append(entry)
        else:
            unscored.append(entry)
    return Leaderboard(
        split,
        tuple(
            Ranking(ground, tuple(sorted(members, key=place)))
            for ground, members in sorted(grounds.items(), key=lambda item: item[0])
        ),
        tuple(sorted(unscored, key=lambda entry: (entry.results.name, str(entry.path)))),
    )


def terminal_tables(board: Leaderboard) -> list[Table]:
    """The rankings for a terminal; the best score of each column is bold."""
    tables = []
    for ranking in board.rankings:
        content = ranking_table(ranking)
        table = Table(
            title=Text(str(ranking.ground)),
            title_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 0),
            pad_edge=False,
        )
        for column in content.header:
            # A narrow terminal folds names and cuts the date, never the numbers.
            if column in TEXT_COLUMNS:
                table.add_column(column, overflow="fold")
            elif column == LAST_COLUMN:
                table.add_column(column, no_wrap=True)
            else:
                widest_word = max(len(word) for word in column.split())
                table.add_column(column, justify="right", min_width=widest_word)
        for row in content.rows:
            # Text, not str: rich would read the brackets of a run's name as its markup.
            table.add_row(*(Text(cell.text, style="bold" if cell.best else "") for cell in row))
        tables.append(table)
    return tables


def to_markdown(board: Leaderboard) -> str:
    """The whole leaderboard as a Markdown page; scores times 100, the best of each column bold."""
    lines = ["# Leaderboard", "", f"Best first by {RANKED_BY} on {board.split}; scores times 100."]
    if board.reason_for_tables:
        lines += ["", board.reason_for_tables]
    for ranking in board.rankings:
        table = ranking_table(ranking)
        lines += ["", f"## {_markdown(str(ranking.ground))}", ""]
        lines += [_markdown_row(table.header), "|" + " --- |" * len(table.header)]
        for row in table.rows:
            lines.append(
                _markdown_row(
                    f"**{_markdown(cell.text)}**" if cell.best else _markdown(cell.text)
                    for cell in row
                )
            )
    if board.unscored:
        lines += ["", unscored_sentence(board, _markdown)]
    return "\n".join(lines) + "\n"


def to_csv(board: Leaderboard) -> str:
    """The rankings as CSV, one row a run: scores in full, on the metrics' own scale.

    Text that a spreadsheet would run as a formula is quoted with a leading apostrophe.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    entries = [entry for ranking in board.rankings for entry in ranking.entries]
    scored = (*METRICS, _DEV_COLUMN, *_object_columns(entries, board.split))
    writer.writerow((*TEXT_COLUMNS, *Ground._fields, *scored, "created", "commit", "path"))
    for ranking in board.rankings:
        for entry in ranking.entries:
            results = entry.results
            scores = _scores(results, board.split)
            row = (
                results.name,
                results.model.name if results.model else "",
                results.decoding.label if results.decoding else "",
                *ranking.ground,
                *("" if scores[column] is None else scores[column] for column in scored),
                results.created.isoformat(),
                results.commit or "",
                str(entry.path),
            )
            writer.writerow(_csv(cell) if isinstance(cell, str) else cell for cell in row)
    return file.getvalue()


def unscored_sentence(board: Leaderboard, escape: Callable[[str], str] = str) -> str:
    """Names the runs that have no scores on the split, and where they are."""
    names = ", ".join(
        escape(_one_line(f"{entry.results.name} ({entry.path.parent})")) for entry in board.unscored
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


def ranking_table(ranking: Ranking) -> RankingTable:
    """Header and rows of a ranking, shared by all forms in which people read it."""
    split = ranking.ground.split
    dev = () if split == "dev" else (_DEV_COLUMN,)
    columns = (*METRICS, *dev, *_object_columns(ranking.entries, split))
    scores = [_scores(entry.results, split) for entry in ranking.entries]
    highest = {
        column: max((score for row in scores if (score := row[column]) is not None), default=None)
        for column in columns
        # The only run is the best of none.
        if len(scores) > 1 and column != BOX_SHARE
    }
    rows = []
    for entry, name, row in zip(ranking.entries, run_names(ranking.entries), scores, strict=True):
        results = entry.results
        intervals = results.intervals.get(split, {}) | {
            _DEV_COLUMN: results.intervals.get("dev", {}).get(RANKED_BY)
        }
        rows.append(
            (
                Cell(_one_line(name)),
                Cell(_one_line(results.model.name) if results.model else _MISSING),
                Cell(_one_line(results.decoding.label) if results.decoding else _MISSING),
                *(
                    Cell.of_score(
                        row[column],
                        intervals.get(column),
                        best=row[column] is not None and row[column] == highest.get(column),
                    )
                    for column in columns
                ),
                Cell(results.created.astimezone(UTC).strftime("%Y-%m-%d %H:%M")),
            )
        )
    return RankingTable((*TEXT_COLUMNS, *columns, LAST_COLUMN), tuple(rows))


def run_names(entries: Sequence[Entry]) -> list[str]:
    """The runs' names, with their folder where several have the same one."""
    count = Counter(entry.results.name for entry in entries)
    return [
        entry.results.name
        if count[entry.results.name] == 1
        else f"{entry.results.name} ({entry.path.parent})"
        for entry in entries
    ]


def _scores(results: Results, split: str) -> dict[str, float | None]:
    """Whatever a run has a number for, by the name of its column."""
    scores = results.scores.get(split, {})
    objects = results.objects.get(split)
    return (
        {metric: scores.get(metric) for metric in METRICS}
        | {_DEV_COLUMN: results.scores.get("dev", {}).get(RANKED_BY)}
        | {column: getattr(objects, field, None) for column, field in _OBJECT_COLUMNS.items()}
    )


def _object_columns(entries: Iterable[Entry], split: str) -> tuple[str, ...]:
    """The columns about objects in which at least one run has a number."""
    rows = [_scores(entry.results, split) for entry in entries]
    return tuple(c for c in _OBJECT_COLUMNS if any(row[c] is not None for row in rows))


def _hundredfold(score: float | None) -> str:
    return _MISSING if score is None else f"{100 * score:.1f}"


def _one_line(text: str) -> str:
    """Control characters, among them line breaks and colour codes, would break any table."""
    return "".join(character if character.isprintable() else " " for character in text)


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*|<\[\]])", r"\\\1", text)


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _csv(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
