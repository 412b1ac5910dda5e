"""The tables that a run prints at its end."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from captioning.metrics.registry import STANDARD_SCORES, ordered_scores
from captioning.reporting.measures import OBJECT_MEASURES, Language, Objects
from captioning.reporting.report import REPORT
from captioning.reporting.results import Results
from captioning.reporting.tables import hundredfold

log = logging.getLogger(__name__)


def show_results(results: Results, folder: Path) -> None:
    """Print the scores and the object and language measures; log the arithmetic and the folder."""
    console = Console()
    console.print(score_table(results.scores))
    # In a separate table, because a common one would be wider than a terminal.
    names = (name for row in results.scores.values() for name in row)
    if extra := ordered_scores(names)[len(STANDARD_SCORES) :]:
        console.print(score_table(results.scores, extra))
    if results.objects:
        console.print(object_table(results.objects))
    if results.language:
        console.print(language_table(results.language))
    if results.arithmetic:
        texts = results.arithmetic.texts()
        log.info("Computed in %(precision)s on %(device)s, backend %(backend)s", texts)
    report = f" and {REPORT}" if (folder / REPORT).exists() else ""
    log.info("Results, captions%s are in %s", report, folder)


def score_table(
    scores: Mapping[str, Mapping[str, float]], metrics: Sequence[str] = STANDARD_SCORES
) -> Table:
    """A table of a run's scores, times 100, with a row for each split.

    Args:
        scores: ``{split: {score: value}}`` on the metrics' own scale.
        metrics: the metrics of the columns.
    """
    table = Table("split", box=box.SIMPLE_HEAD)
    for metric in metrics:
        table.add_column(metric, justify="right")
    for split, row in scores.items():
        table.add_row(split, *(hundredfold(row.get(metric)) for metric in metrics))
    return table


def language_table(language: Mapping[str, Language]) -> Table:
    """A table of the language statistics of a run's captions, with a column for each split.

    Args:
        language: the statistics by split.
    """
    table = Table("language", box=box.SIMPLE_HEAD)
    for split in language:
        table.add_column(split, justify="right")
    columns = [found.texts() for found in language.values()]
    for label in columns[0] if columns else ():
        table.add_row(label, *(texts[label] for texts in columns))
    return table


def object_table(objects: Mapping[str, Objects]) -> Table:
    """A table of how well captions and attention match known objects, in percent.

    Args:
        objects: the measures by split.
    """
    table = Table("objects", box=box.SIMPLE_HEAD)
    for label in OBJECT_MEASURES:
        table.add_column(label, justify="right")
    for split, found in objects.items():
        values = (getattr(found, field) for field in OBJECT_MEASURES.values())
        table.add_row(split, *(hundredfold(value) for value in values))
    return table
