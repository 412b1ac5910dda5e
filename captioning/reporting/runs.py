"""The runs below some folders, and the jobs that failed."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from captioning.reporting.measures import LANGUAGE_COLUMNS, OBJECT_COLUMNS
from captioning.reporting.results import Results, read_results
from captioning.support.errors import CaptioningError, printable, shortened
from captioning.support.reading import load_json


@dataclass(frozen=True)
class Run:
    """One run: its results and the file that they were read from."""

    path: Path
    results: Results

    def values(self, split: str) -> dict[str, float]:
        """All numbers of the run on ``split``: scores, and measures of objects and language."""
        results = self.results
        found = dict(results.scores.get(split, {}))
        for record, columns in (
            (results.objects.get(split), OBJECT_COLUMNS),
            (results.language.get(split), {name: name for name in LANGUAGE_COLUMNS}),
        ):
            values = {label: getattr(record, name, None) for label, name in columns.items()}
            found |= {label: value for label, value in values.items() if value is not None}
        return found


class Failure(NamedTuple):
    """A job that ended without results."""

    name: str
    reason: str


def find_runs(folders: Iterable[Path]) -> tuple[list[Run], list[CaptioningError]]:
    """Read every ``results.json`` below ``folders``, each once.

    Returns:
        The runs, and an error for each file that could not be read.

    Raises:
        CaptioningError: one of the folders does not exist.
    """
    runs, errors = [], []
    for path, _ in _find(folders, "results.json"):
        try:
            runs.append(Run(path, read_results(path)))
        except CaptioningError as error:
            errors.append(error)
    return runs, errors


def find_failures(folders: Iterable[Path]) -> list[Failure]:
    """The jobs below ``folders`` that have failed, by their ``failed.json``.

    Raises:
        CaptioningError: one of the folders does not exist.
    """
    failures = []
    for path, folder in _find(folders, "failed.json"):
        try:
            reason = shortened(str(load_json(path)["reason"]), 1000)
        except (CaptioningError, KeyError, TypeError):
            reason = "failed.json cannot be read"
        name = path.parent.relative_to(folder).as_posix()
        failures.append(Failure(printable(path.parent.name if name == "." else name), reason))
    return failures


def _find(folders: Iterable[Path], name: str) -> list[tuple[Path, Path]]:
    """Each file of that name once, with the folder below which it was found."""
    paths: dict[Path, tuple[Path, Path]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise CaptioningError(f"{folder}: no such folder; name one that runs were written to")
        for path in sorted(folder.rglob(name)):
            paths.setdefault(path.resolve(), (path, folder))
    return list(paths.values())
