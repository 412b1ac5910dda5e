"""The leaderboard for spreadsheets and programs: CSV with all digits, settings and numbers."""

import csv
import io
from typing import Any

from captioning.reporting.measures import LANGUAGE_COLUMNS, OBJECT_COLUMNS
from captioning.reporting.ranking import Leaderboard
from captioning.reporting.tables import MISSING, score_columns


def to_csv(board: Leaderboard) -> str:
    """The rankings as CSV: all digits on the metrics' own scale, one row for each configuration.

    Each score is followed by its standard deviation over the seeds, the ends of its interval, and
    the difference from the best row with the ends of its interval and its p-value, if some row has
    them. What a row lacks is an empty cell. Text that a spreadsheet would run as a formula is
    prefixed with an apostrophe.
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
    """One record for each row: its settings and all its numbers, by the names of the columns."""
    records = []
    every = [row for ranking in board.rankings for row in ranking.rows]
    means = [row.means(board.split) for row in every]
    metrics = score_columns(every, board.split)
    keys = list(dict.fromkeys(key for row in every for key in row.settings))
    others = [
        name for name in (*OBJECT_COLUMNS, *LANGUAGE_COLUMNS) if any(name in row for row in means)
    ]
    seeds = any(len(row.runs) > 1 for row in every)
    intervals = any(row.intervals for row in every)
    compared = any(row.differences for row in every)
    for ranking in board.rankings:
        for row in ranking.rows:
            mean, spread = row.means(board.split), row.spreads(board.split)
            results = [run.results for run in row.runs]
            record: dict[str, Any] = {
                "run": row.results.name,
                "model": row.results.model.name if row.results.model else None,
                "decoding": row.results.decoding.label if row.results.decoding else None,
                "seeds": len(row.runs),
                "published": None,
                **{key: _known(row.settings.get(key)) for key in keys},
                **ranking.protocol._asdict(),
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
            record[f"dev {board.metric}"] = row.means("dev").get(board.metric)
            record |= {name: mean.get(name) for name in others}
            record["created"] = max(each.created for each in results).isoformat()
            record["commit"] = "; ".join(
                dict.fromkeys(each.commit for each in results if each.commit)
            )
            record["path"] = "; ".join(str(run.path) for run in row.runs)
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


def _known(value: str | None) -> str | None:
    return None if value == MISSING else value


def _csv(text: str) -> str:
    """A text that no spreadsheet takes for a formula; negative numbers stay as they are."""
    try:
        float(text)
    except ValueError:
        is_formula = text.startswith(("=", "+", "-", "@", "\t", "\r"))
        return f"'{text}" if is_formula else text
    return text
