"""The leaderboard as text for a terminal, and as Markdown."""

import re
from collections.abc import Iterable, Sequence
from typing import Final, Literal

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from captioning.reporting.measures import LANGUAGE_MEASURES, OBJECT_COLUMNS
from captioning.reporting.notes import endings, notes
from captioning.reporting.ranking import Leaderboard
from captioning.reporting.tables import (
    LAST_COLUMN,
    MISSING,
    Cell,
    RankingTable,
    ranking_table,
)

# What a narrow terminal goes without, in this order, until the table fits.
_LEFT_OUT_FIRST: Final = (LAST_COLUMN, "BLEU-2", "BLEU-3", "model", "BLEU-1", "ROUGE-L")
_SAME_FOR_ALL: Final = ("seeds", "model", "decoding")
"""Columns that tell nothing where all rows have the same value, unlike settings, which differ."""

_LEFT_OUT_LAST: Final = ("METEOR", "BLEU-4")

_WIDEST_NAME = 24  # characters of a run's name that a narrow terminal shows on one line
_WIDEST_HEADER = 10  # characters of a line of a setting's name


def terminal_tables(board: Leaderboard, width: int = 1000) -> list[RenderableType]:
    """The rankings for a terminal; the best score of each column is bold.

    Args:
        board: the rankings.
        width: of the terminal. A narrow one shows fewer columns, and a sentence says which. What
            all rows have in common then stands above the table.
    """
    tables: list[RenderableType] = []
    for ranking in board.rankings:
        content = ranking_table(ranking, board.metric, board.lower_is_better)
        words = [name for name in content.header if name in LANGUAGE_MEASURES]
        names = [name for name in content.header if name not in words]
        title, shown = ranking.title, names
        missing: list[str] = []
        fold = _table_width(content, names, fold=False) > width
        if fold:
            same = _same_for_all(content, names)
            common = ", ".join(
                f"{name} {value}" for name, value in same.items() if value != MISSING
            )
            shown, missing = _fitting(
                content, board.metric, width, [name for name in names if name not in same]
            )
            if common:
                title = f"{title}\nAll rows: {common}"
        tables.append(_terminal_table(content, shown, title, fold=fold, width=width))
        # The words have a table of their own, because one of all would be too wide.
        if words:
            shown = ["run", *content.settings[:2], *words]
            tables.append(_terminal_table(content, shown, fold=fold, width=width))
        if missing:
            tables.append(
                Text(f"At this width without {', '.join(missing)}; leaderboard.md has all columns.")
            )
    return tables


def _same_for_all(content: RankingTable, names: Sequence[str]) -> dict[str, str]:
    """The columns in which several rows have one value, and that value, if it is known."""
    found = {}
    for name in _SAME_FOR_ALL:
        if name in names:
            place = content.header.index(name)
            values = {row[place].text for row in (*content.rows, *content.published)}
            if len(values) == 1 and len(content.rows) > 1:
                found[name] = values.pop()
    return found


def _fitting(
    content: RankingTable, metric: str, width: int, names: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The columns that fit into a terminal, and those that do not."""
    shown = list(names)
    beside = [name for name in shown if name in OBJECT_COLUMNS]
    order = (
        *_LEFT_OUT_FIRST,
        *reversed(content.settings[4:]),
        *reversed(beside),
        *_LEFT_OUT_LAST,
        *reversed(content.settings[2:4]),
        "decoding",
        *content.settings[1:2],
        f"dev {metric}",
    )
    missing = []
    for name in order:
        if _table_width(content, shown, fold=True) <= width:
            break
        if name in shown and name != metric:
            shown.remove(name)
            missing.append(name)
    return shown, [name for name in names if name in missing]


def _table_width(content: RankingTable, names: Sequence[str], *, fold: bool) -> int:
    """The characters of a line of a table, with one between columns and at both ends."""
    return 1 + sum(_width(content, name, fold=fold) + 1 for name in names)


def _width(content: RankingTable, name: str, *, fold: bool) -> int:
    place = content.header.index(name)
    cells = [row[place] for row in (*content.rows, *content.published)]
    texts = [text for cell in cells for text in (cell.text, cell.interval or "")]
    if fold and name in content.texts:
        texts = [line for text in texts for line in _broken(text)]
    return max(map(len, (*_header(name, content, fold=fold).split("\n"), *texts)))


def _broken(text: str) -> list[str]:
    """The lines of a text that a narrow terminal shows, broken where a word of it ends."""
    lines = [""]
    for part in re.findall(r"[^ _/(,-]*[ _/(,-]?", text):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > _WIDEST_NAME:
            lines.append("")
        lines[-1] += part
    ends = range(0, len(max(lines, key=len)) or 1, _WIDEST_NAME)
    return [line[end : end + _WIDEST_NAME] for line in lines for end in ends if line[end:]] or [""]


def _header(name: str, content: RankingTable, *, fold: bool) -> str:
    """The name of a column, on several lines if it is to be folded."""
    if not fold:
        return name
    if name not in content.settings:
        return name if name in content.texts else "\n".join(name.split())
    lines: list[str] = []
    for part in re.findall(r"[^._]+[._]?", name):
        if lines and len(lines[-1]) + len(part) <= _WIDEST_HEADER and not lines[-1].endswith("."):
            lines[-1] += part
        else:
            lines.append(part)
    return "\n".join(lines)


def _terminal_table(
    content: RankingTable,
    shown: Sequence[str],
    title: str | None = None,
    *,
    fold: bool,
    width: int,
) -> Table:
    """Some of the columns; names are on one line if the table leaves room for that."""
    table = Table(
        title=None if title is None else Text(title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0),
        pad_edge=False,
    )
    # In the table of words, and of few columns, published results would have no number.
    published = content.published if title is not None else ()
    room = width - _table_width(content, shown, fold=fold)
    broken = set()
    for name in shown:
        header = Text(_header(name, content, fold=fold))
        if name not in content.texts:
            # A terminal that is too narrow folds texts, but never numbers.
            side: Literal["left", "right"] = "left" if name == LAST_COLUMN else "right"
            table.add_column(header, justify=side, min_width=_width(content, name, fold=fold))
            continue
        more = _width(content, name, fold=False) - _width(content, name, fold=True)
        if fold and 0 < more <= room:
            room -= more
        elif fold:
            broken.add(name)
        table.add_column(header, overflow="fold", min_width=5)
    places = [(content.header.index(name), name in broken) for name in shown]
    for row in (*content.rows, *published):
        # Text, not str: rich would read the brackets of a run's name as its markup.
        table.add_row(*(_terminal_cell(row[place], fold=fold) for place, fold in places))
    return table


def _terminal_cell(cell: Cell, *, fold: bool) -> Text:
    text = Text("\n".join(_broken(cell.text)) if fold else cell.text)
    text.stylize("bold" if cell.best else "")
    if cell.interval:
        text.append(f"\n{cell.interval}", style="not bold dim")
    return text


def to_markdown(board: Leaderboard) -> str:
    """The leaderboard as a Markdown page: scores times 100, the best of each column bold."""
    lines = [
        "# Leaderboard",
        "",
        f"Best first by {board.metric} on {board.split}; scores times 100.",
    ]
    lines += [part for note in notes(board, _markdown) for part in ("", note)]
    for ranking in board.rankings:
        table = ranking_table(ranking, board.metric, board.lower_is_better)
        lines += ["", f"## {_markdown(ranking.title)}", ""]
        lines += [_markdown_row(map(_markdown, table.header)), "|" + " --- |" * len(table.header)]
        lines += [
            _markdown_row(_markdown_cell(cell) for cell in row)
            for row in (*table.rows, *table.published)
        ]
        lines += [part for each in ranking.published for part in ("", _markdown(each.note))]
        lines += ["", _markdown(ranking.protocol.details)]
    lines += [part for note in endings(board, _markdown) for part in ("", note)]
    return "\n".join(lines) + "\n"


def _markdown_cell(cell: Cell) -> str:
    text = f"**{_markdown(cell.text)}**" if cell.best else _markdown(cell.text)
    return text + (f" ({_markdown(cell.interval)})" if cell.interval else "")


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*|<\[\]])", r"\\\1", text)


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
