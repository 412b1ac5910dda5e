"""HTML pages: the ``report.html`` of a run, and the page of a leaderboard.

A page is a single file with embedded thumbnails and attention maps. Its content security policy
forbids all network connections, and all text from data is escaped.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

from captioning.metrics.registry import STANDARD_SCORES, ordered_scores
from captioning.reporting import curves
from captioning.reporting.configurations import flat
from captioning.reporting.curves import Chart, Curve, best_epoch, chart, read_curves
from captioning.reporting.gallery import (
    GalleryData,
    GalleryImage,
    compare,
    data_block,
    difference_of,
    evenly_spaced_subset,
    has_attention,
    has_partial_attention,
    make_gallery,
    read_report_data,
    score_of,
)
from captioning.reporting.measures import OBJECT_MEASURES
from captioning.reporting.notes import endings, notes
from captioning.reporting.ranking import RANKED_BY, Leaderboard, Ranking
from captioning.reporting.rendering import render_page
from captioning.reporting.results import Results, read_results
from captioning.reporting.rows import Row
from captioning.reporting.tables import Cell, RankingTable, ranking_table
from captioning.support.errors import CaptioningError
from captioning.support.files import atomic_write_text

log = logging.getLogger(__name__)

REPORT: Final = "report.html"
MAX_REPORT_IMAGES: Final = 1500
"""The largest number of images in the gallery of a report."""
MAX_COMPARED_IMAGES: Final = 200
"""The largest number of images in a gallery of a leaderboard."""
MAX_COMPARED_RUNS: Final = 8
"""The largest number of runs, the best ones, whose captions a gallery of a leaderboard shows."""
MAX_GALLERY_BYTES: Final = 20_000_000
"""The largest total size of the galleries of a leaderboard."""


def write_report(
    folder: Path,
    split: str,
    gallery: Sequence[GalleryImage],
    *,
    training: Path | None = None,
    progress: bool = True,
) -> Path:
    """Write ``report.html`` from a run's ``results.json``, its learning curves and a gallery.

    A photograph that cannot be read is logged and has a placeholder in the page.

    Args:
        folder: the folder of the run, with ``results.json``.
        split: the split that the gallery shows.
        gallery: the images, in the order of the data set. If there are more than
            MAX_REPORT_IMAGES, a selection is shown, evenly spaced in the ranking by CIDEr.
        training: the folder in which the model was trained; None stands for ``folder``. The
            learning curves are read from its ``logs/metrics.csv``, if that exists.
        progress: whether to show a progress bar.

    Returns:
        The file written.

    Raises:
        CaptioningError: ``results.json`` or ``logs/metrics.csv`` cannot be read.
        CaptioningError: the page cannot be written.
    """
    results = read_results(folder / "results.json")
    metrics_file = (training or folder) / "logs" / "metrics.csv"
    quantities = read_curves(metrics_file) if metrics_file.is_file() else {}
    chosen = evenly_spaced_subset(gallery, MAX_REPORT_IMAGES, score_of)
    resize = results.encoder.resize if results.encoder else "squash"
    data = make_gallery(split, results.name, chosen, resize=resize, progress=progress)
    note = f"{len(chosen):,} images of the {split} split"
    if len(chosen) < len(gallery):
        note = f"{len(chosen):,} of the {len(gallery):,} images of the {split} split, "
        note += f"evenly spread from the best {RANKED_BY} to the worst"
    path = folder / REPORT
    page = _render(
        "report.html.jinja",
        ("attention.js", "gallery.js"),
        results=results,
        split=split,
        tables=_score_tables(results, split),
        charts=_charts(quantities),
        settings=list(flat(results.config)),
        gallery=data,
        note=f"{note}.",
    )
    atomic_write_text(path, page)
    return path


def write_leaderboard_page(path: Path, board: Leaderboard) -> Path:
    """Write a leaderboard as a page with sortable tables, learning curves and a common gallery.

    Photographs and attention are read from the runs' ``report.html`` files, if these exist and show
    the leaderboard's split. The names of runs link to these reports.

    Raises:
        CaptioningError: the page cannot be written.
    """
    max_bytes = MAX_GALLERY_BYTES // max(1, len(board.rankings))
    page = _render(
        "leaderboard.html.jinja",
        ("attention.js", "gallery.js", "table.js"),
        board=board,
        rankings=[
            _ranking_part(ranking, board, path.parent, max_bytes) for ranking in board.rankings
        ],
        notes=notes(board),
        endings=endings(board),
    )
    atomic_write_text(path, page)
    return path


class _ScoreTable(NamedTuple):
    """A table with a row for each measure and a column for each split, to fit on a phone."""

    title: str
    splits: list[str]
    rows: list[tuple[str, list[Cell]]]
    unit: str = "times 100"


def _score_tables(results: Results, split: str) -> list[_ScoreTable]:
    """The tables of scores, objects and language, with the gallery's split first."""
    splits = sorted(results.scores, key=lambda name: name != split)
    rows = [
        (
            metric,
            [
                Cell.of_score(
                    results.scores[name].get(metric), results.intervals.get(name, {}).get(metric)
                )
                for name in splits
            ],
        )
        for metric in ordered_scores(name for row in results.scores.values() for name in row)
    ]
    tables = [_ScoreTable("Captions", splits, rows)]
    splits = sorted(results.objects, key=lambda name: name != split)
    if splits:
        rows = [
            (label, [Cell.of_score(getattr(results.objects[name], field)) for name in splits])
            for label, field in OBJECT_MEASURES.items()
            if any(getattr(objects, field) is not None for objects in results.objects.values())
        ]
        tables.append(_ScoreTable("Objects", splits, rows))
    splits = sorted(results.language, key=lambda name: name != split)
    if splits:
        texts = [results.language[name].texts() for name in splits]
        rows = [(label, [Cell(column[label]) for column in texts]) for label in texts[0]]
        tables.append(_ScoreTable("Language", splits, rows, unit=""))
    return tables


def _charts(quantities: Mapping[str, Curve]) -> list[Chart]:
    dev = {
        metric: _hundredfold(quantities[f"dev/{metric}"])
        for metric in reversed(STANDARD_SCORES)
        if f"dev/{metric}" in quantities
    }
    best = best_epoch(dev[RANKED_BY]) if RANKED_BY in dev else None
    drawn = (
        chart("Training loss", {"loss": quantities.get("train/loss", {})}, best),
        chart("Scores on dev", dev, best),
    )
    return [each for each in drawn if each]


def _hundredfold(curve: Curve) -> Curve:
    return {epoch: 100 * value for epoch, value in curve.items()}


class _RankingPart(NamedTuple):
    """The content of one ranking on a page. ``links`` holds the report of each row, or None."""

    title: str
    details: str
    table: RankingTable
    links: list[str | None]
    sources: list[str]
    chart: Chart | None
    gallery: GalleryData | None
    note: str


def _ranking_part(
    ranking: Ranking, board: Leaderboard, folder: Path, max_bytes: int
) -> _RankingPart:
    learning: dict[str, Curve] = {}
    galleries: dict[str, GalleryData] = {}
    runs = ranking.runs
    for name, run in zip(ranking.run_labels(), runs, strict=True):
        report = run.path.parent / REPORT
        # A damaged file of one run must not prevent the page of the others.
        try:
            if (metrics_file := report.parent / "logs" / "metrics.csv").is_file():
                learning[name] = _hundredfold(read_curves(metrics_file).get(f"dev/{RANKED_BY}", {}))
            # A report takes a tenth of a second and 20 MB of memory.
            if len(galleries) < MAX_COMPARED_RUNS and report.is_file():
                data = read_report_data(report)
                if data["split"] == ranking.protocol.split:
                    galleries[name] = data
        except CaptioningError as error:
            log.warning("A run is left out of the leaderboard's page: %s", error)
    gallery, note = _comparison(galleries, max_bytes)
    if len(galleries) == MAX_COMPARED_RUNS < len(runs):
        note += f" Of the runs that have a report, the {MAX_COMPARED_RUNS} best are shown."
    return _RankingPart(
        ranking.title,
        ranking.protocol.details,
        ranking_table(ranking, board.metric, board.lower_is_better),
        [_first_report(row, folder) for row in ranking.rows],
        [each.note for each in ranking.published],
        chart(f"Learning curves: {RANKED_BY} on dev", learning),
        gallery,
        note,
    )


def _first_report(row: Row, folder: Path) -> str | None:
    reports = (run.path.parent / REPORT for run in row.runs)
    return next((_relative(report, folder) for report in reports if report.is_file()), None)


def _comparison(
    galleries: Mapping[str, GalleryData], max_bytes: int
) -> tuple[GalleryData | None, str]:
    """The common gallery of several runs, of at most ``max_bytes``, and the note above it."""
    if not galleries:
        return None, ""
    gallery = compare(list(galleries.values()), list(galleries))
    images = gallery["images"]
    if not images:
        return None, ""
    gallery["images"] = evenly_spaced_subset(images, MAX_COMPARED_IMAGES, difference_of)
    if (size := len(data_block(gallery))) > max_bytes:
        limit = int(len(gallery["images"]) * max_bytes / size)
        gallery["images"] = evenly_spaced_subset(images, limit, difference_of)
    if len(gallery["images"]) == len(images):
        return gallery, f"{len(images):,} images, which the reports of these runs share."
    note = f"{len(gallery['images']):,} of the {len(images):,} images that the reports of these "
    return gallery, note + f"runs share, evenly spread by how far apart their {RANKED_BY} is."


def _relative(path: Path, folder: Path) -> str:
    # Without the leading dot, a colon in a folder's name would be read as the end of a URL scheme.
    return "./" + quote(Path(os.path.relpath(path, folder)).as_posix())


def _render(template: str, scripts: Sequence[str], **content: object) -> str:
    filters = {
        "data_block": data_block,
        "has_attention": has_attention,
        "has_partial_attention": has_partial_attention,
    }
    styles = ("page.css", "attention.css")
    return render_page(template, styles, scripts, filters, plot=curves, **content)
