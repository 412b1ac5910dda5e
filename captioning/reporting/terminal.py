"""What a run prints of itself at its end."""

import logging
from pathlib import Path

from rich.console import Console

from captioning.reporting.leaderboard import language_table, object_table, score_table
from captioning.reporting.report import REPORT
from captioning.reporting.results import METRICS, Results, present_metrics

log = logging.getLogger(__name__)


def show_results(results: Results, folder: Path) -> None:
    """Print the scores, what is known of objects and language, and where everything is."""
    console = Console()
    console.print(score_table(results.scores))
    # In a table of their own: one of all would be wider than a terminal.
    if extra := present_metrics(results.scores.values())[len(METRICS) :]:
        console.print(score_table(results.scores, extra))
    if results.objects:
        console.print(object_table(results.objects))
    if results.language:
        console.print(language_table(results.language))
    report = f" and {REPORT}" if (folder / REPORT).exists() else ""
    log.info("Results, captions%s are in %s", report, folder)
