"""The file ``logs/metrics.csv`` of a run, which a kill at any moment leaves readable."""

import csv
import os
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from captioning.support.errors import CaptioningError
from captioning.support.files import atomic_write_text, writing

Row = dict[str, Any]
"""The values of a step by their names; ``step`` is one of them."""


class MetricsFile(ExperimentWriter):
    """Lightning's writer of the CSVLogger, with atomic writes.

    Lightning's deletes an existing file at the start, and rewrites the file in place whenever a
    value of a new name is logged. Here, a new file replaces the old one, with earlier rows in it.
    Rows without new names are appended, as by Lightning's.

    Args:
        log_dir: the folder of the file.
        rows: the rows that were logged before.

    Raises:
        CaptioningError: the file cannot be written, in this method and in :meth:`save`.
    """

    def __init__(self, log_dir: str | os.PathLike[str], rows: Sequence[Row] = ()) -> None:
        super().__init__(str(log_dir))
        self.path = Path(self.metrics_file_path)
        if rows:
            self._replace(rows)
        else:
            with writing(self.path):
                self.path.unlink(missing_ok=True)

    def _check_log_dir_exists(self) -> None:
        """Keep the file, which Lightning's deletes."""

    def save(self) -> None:
        """Write the rows that were logged since the last call."""
        rows, self.metrics = self.metrics, []
        if not rows:
            return
        names = {name for row in rows for name in row}
        if names <= set(self.metrics_keys) and self.path.is_file():
            self._append(rows)
        else:
            self._replace([*(read_rows(self.path) if self.path.is_file() else ()), *rows])

    def _append(self, rows: Sequence[Row]) -> None:
        text = StringIO()
        csv.DictWriter(text, self.metrics_keys).writerows(rows)
        with writing(self.path), self.path.open("a", newline="") as file:
            file.write(text.getvalue())

    def _replace(self, rows: Sequence[Row]) -> None:
        self.metrics_keys = sorted({*self.metrics_keys, *(name for row in rows for name in row)})
        text = StringIO()
        writer = csv.DictWriter(text, self.metrics_keys)
        writer.writeheader()
        writer.writerows(rows)
        atomic_write_text(self.path, text.getvalue())


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a file, except those that are damaged.

    A row is damaged if it has more or fewer cells than the first line, if its step is no number, or
    if its line has no end: a kill can cut the last row, and a full disk as well.

    Raises:
        CaptioningError: the file cannot be read.
    """
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            lines = [line for line in file if line.endswith("\n") and "\0" not in line]
    except OSError as error:
        raise CaptioningError(f"{path} cannot be read ({error.strerror}).") from error
    return [row for row in _parsed(lines) if _is_whole(row)]


def _parsed(lines: Iterable[str]) -> list[Row]:
    reader = csv.reader(lines)
    names: list[str] | None = None
    rows: list[Row] = []
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return rows
        except csv.Error:
            continue
        if names is None:
            names = cells
        elif len(cells) == len(names):
            rows.append(dict(zip(names, cells, strict=True)))


def _is_whole(row: Row) -> bool:
    step = row.get("step", "")
    return len(step) < 19 and step.isascii() and step.isdecimal()
