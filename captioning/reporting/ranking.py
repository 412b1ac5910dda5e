"""Which runs are compared with which, and how: what every form of the leaderboard shows.

It is made from the files of the runs alone. Runs are only ranked together when their scores were
taken on the same ground; those that differ only in seed are one row.
"""

import json
import logging
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from captioning.metrics.bootstrap import Paired, Statistics, compare, mean_intervals
from captioning.reporting.published import Published
from captioning.reporting.results import (
    OBJECT_MEASURES,
    WHERE_DATA_LIES,
    Language,
    Results,
    read_results,
    read_statistics,
)
from captioning.support.errors import CaptioningError

log = logging.getLogger(__name__)

RANKED_BY: Final = "CIDEr"

OBJECT_COLUMNS: Final = {
    # The table is wide enough as it is.
    label: name
    for label, name in OBJECT_MEASURES.items()
    if name != "complete"
}
LANGUAGE_COLUMNS: Final = tuple(name for name in Language.model_fields)

# What changes no score, or names the one run: all else makes another configuration.
_NOT_CONFIGURATION = ("seed", "resume", "ckpt", "logger")

_CLIP = ("CLIPScore", "RefCLIPScore")


class Ground(NamedTuple):
    """What two runs must have in common to be ranked together; empty where it is not known."""

    data: str
    fingerprint: str
    split: str
    images: int
    references: str = ""
    tokenization: str = ""
    clip_weights: str = ""

    def __str__(self) -> str:
        parts = [f"{self.data} {self.fingerprint[:8]}", f"{self.split} split"]
        parts += [f"{self.images} images"]
        parts += [f"references {self.references[:8]}"] * bool(self.references)
        parts += [part for part in (self.tokenization, self.clip_weights) if part]
        return one_line(", ".join(parts))


@dataclass(frozen=True)
class Entry:
    """One run: its results and the file that they were read from."""

    path: Path
    results: Results

    def ground(self, split: str) -> Ground:
        """What its scores on ``split`` were taken on."""
        data = self.results.data
        clip = any(metric in self.results.scores.get(split, {}) for metric in _CLIP)
        return Ground(
            data.name,
            data.fingerprint,
            split,
            data.images.get(split, 0),
            data.references.get(split, ""),
            data.tokenization or "",
            str(self.results.settings.get("clip_weights", "")) if clip else "",
        )

    def values(self, split: str) -> dict[str, float]:
        """Whatever it has a number for on ``split``: scores, and what is known beside them."""
        results = self.results
        found = dict(results.scores.get(split, {}))
        for record, columns in (
            (results.objects.get(split), OBJECT_COLUMNS),
            (results.language.get(split), {name: name for name in LANGUAGE_COLUMNS}),
        ):
            values = {label: getattr(record, name, None) for label, name in columns.items()}
            found |= {label: value for label, value in values.items() if value is not None}
        return found


@dataclass(frozen=True)
class Row:
    """One configuration, trained with one seed or several.

    Attributes:
        name: what tables call it.
        entries: its runs, the lowest seed first.
        intervals: 95 % bootstrap intervals over the images of the means over the seeds.
        differences: from the run that all are compared with; empty for that one itself.
    """

    name: str
    entries: tuple[Entry, ...]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    differences: Mapping[str, Paired] = field(default_factory=dict)

    @property
    def results(self) -> Results:
        """Those of the first run, for what all have in common."""
        return self.entries[0].results

    def means(self, split: str) -> dict[str, float]:
        """The mean over the seeds of whatever all of them have a number for."""
        return {name: statistics.fmean(found) for name, found in self._columns(split).items()}

    def spreads(self, split: str) -> dict[str, float]:
        """The standard deviation over the seeds (n - 1), where there are several."""
        if len(self.entries) < 2:
            return {}
        return {name: statistics.stdev(found) for name, found in self._columns(split).items()}

    def _columns(self, split: str) -> dict[str, list[float]]:
        rows = [entry.values(split) for entry in self.entries]
        return {
            name: [row[name] for row in rows] for name in rows[0] if all(name in r for r in rows)
        }


@dataclass(frozen=True)
class Ranking:
    """Rows on one ground, best first.

    Attributes:
        ground: theirs.
        rows: the configurations.
        against: the one that the others are compared with.
        published: what others published on the same split of that data set, not ranked.
        language: whether people's tables show what captions are like as language.
    """

    ground: Ground
    rows: tuple[Row, ...]
    against: Row | None = None
    published: tuple[Published, ...] = ()
    language: bool = False

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All their runs."""
        return tuple(entry for row in self.rows for entry in row.entries)


class Failure(NamedTuple):
    """A job that ended without results."""

    name: str
    reason: str


@dataclass(frozen=True)
class Leaderboard:
    """Everything found: rankings, each on its own ground, and runs without scores on the split.

    Attributes:
        split: the scores are of it.
        rankings: at most one for each ground.
        unscored: runs without scores on the split.
        failures: jobs that have failed.
        unmatched: published results on other images than any run's.
        metric: sorted by it.
        best_by: the split on which the best configuration, which the others are compared with, was
            chosen; None where it was named.
    """

    split: str
    rankings: tuple[Ranking, ...]
    unscored: tuple[Entry, ...]
    failures: tuple[Failure, ...] = ()
    unmatched: tuple[Published, ...] = ()
    metric: str = RANKED_BY
    best_by: str | None = "dev"

    @property
    def reason_for_tables(self) -> str | None:
        """Why there is more than one table, or None where there is not."""
        if len(self.rankings) < 2:
            return None
        names = {
            "data": "data set",
            "fingerprint": "data fingerprint",
            "images": "number of images",
            "references": "references",
            "tokenization": "tokenisation",
            "clip_weights": "weights of CLIPScore",
        }
        grounds = [ranking.ground for ranking in self.rankings]
        differing = ", ".join(
            name
            for part, name in names.items()
            if len({getattr(ground, part) for ground in grounds}) > 1
        )
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
    entries, errors = [], []
    for path, _ in _find(folders, "results.json"):
        try:
            entries.append(Entry(path, read_results(path)))
        except CaptioningError as error:
            errors.append(error)
    return entries, errors


def find_failures(folders: Iterable[Path]) -> list[Failure]:
    """The jobs below ``folders`` that have failed, by their ``failed.json``."""
    failures = []
    for path, folder in _find(folders, "failed.json"):
        try:
            reason = str(json.loads(path.read_text(encoding="utf-8"))["reason"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            reason = "failed.json cannot be read"
        name = path.parent.relative_to(folder).as_posix()
        failures.append(Failure(one_line(path.parent.name if name == "." else name), reason))
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


def rank(
    entries: Iterable[Entry],
    split: str,
    *,
    metric: str = RANKED_BY,
    best_by: str = "dev",
    against: str | None = None,
    each_seed: bool = False,
    published: Sequence[Published] = (),
    failures: Sequence[Failure] = (),
    language: bool = False,
) -> Leaderboard:
    """Sort runs into rankings on ``split``: best first by the metric, runs without it last.

    Args:
        entries: the runs.
        split: their scores on it are shown.
        metric: what to sort by, and to choose the best by.
        best_by: the split on which the best configuration is chosen; the others are compared with
            it.
        against: the name or the folder of a run to compare with instead.
        each_seed: whether each run has a row of its own, although it differs only in seed.
        published: results of others, to show below the runs on the same data.
        failures: jobs to list as failed.
        language: whether to show what captions are like as language.

    Raises:
        CaptioningError: no run, or more than one on the same ground, is called ``against``.
    """
    unscored = []
    grounds: dict[Ground, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.results.scores.get(split):
            grounds[entry.ground(split)].append(entry)
        else:
            unscored.append(entry)
    rankings = []
    for ground, members in sorted(_without_needless_clip(grounds).items()):
        rows = _rows(members, each_seed)
        rows.sort(key=lambda row: (-row.means(split).get(metric, -1.0), row.name))
        best = _named(rows, against) if against else _best(rows, best_by, metric)
        shown = tuple(each for each in published if _is_on(each, ground))
        rankings.append(Ranking(ground, *_compared(rows, split, best), shown, language))
    if against and not any(ranking.against for ranking in rankings):
        raise CaptioningError(
            f"--against {against}: no run with scores on {split} has that name or folder"
        )
    return Leaderboard(
        split,
        tuple(rankings),
        tuple(sorted(unscored, key=lambda entry: (entry.results.name, str(entry.path)))),
        tuple(failures),
        tuple(each for each in published if all(each not in r.published for r in rankings)),
        metric,
        None if against else best_by,
    )


def run_names(rows: Sequence[Sequence[Entry]]) -> list[str]:
    """The names of runs, or of several that are one row; with the folder where some are the same.

    Of the folders of a sweep's jobs, what all of a row have in common: the seed is left out.
    """
    count = Counter(first.results.name for first, *_ in rows)
    names = []
    for entries in rows:
        name = entries[0].results.name
        if count[name] > 1:
            first, *others = (str(entry.path.parent).split(",") for entry in entries)
            shared = [part for part in first if all(part in other for other in others)]
            name += f" ({','.join(shared or first)})"
        names.append(name)
    return names


def one_line(text: str) -> str:
    """Control characters, among them line breaks and colour codes, would break any table."""
    return "".join(character if character.isprintable() else " " for character in text)


def _without_needless_clip(grounds: Mapping[Ground, list[Entry]]) -> dict[Ground, list[Entry]]:
    """A run without CLIPScore can stand beside those that have it, if these all agree."""
    weights: dict[Ground, set[str]] = defaultdict(set)
    for ground in grounds:
        weights[ground._replace(clip_weights="")].add(ground.clip_weights)
    merged: dict[Ground, list[Entry]] = defaultdict(list)
    for ground, members in grounds.items():
        known = weights[ground._replace(clip_weights="")] - {""}
        merged[ground._replace(clip_weights=known.pop()) if len(known) == 1 else ground] += members
    return merged


def _rows(entries: Sequence[Entry], each_seed: bool) -> list[Row]:
    """Runs by configuration; a seed that was run twice counts in two rows, not twice in one."""
    groups: dict[tuple[str, int], list[Entry]] = defaultdict(list)
    seen: Counter[tuple[str, int | None]] = Counter()
    for number, entry in enumerate(entries):
        seed = entry.results.seed
        key = _configuration(entry.results)
        if each_seed or seed is None:
            key = f"{number} {key}"
        groups[key, seen[key, seed]].append(entry)
        seen[key, seed] += 1
    members = [
        sorted(group, key=lambda entry: entry.results.seed or 0) for group in groups.values()
    ]
    names = run_names(members)
    return [Row(name, tuple(group)) for name, group in zip(names, members, strict=True)]


def _configuration(results: Results) -> str:
    """All that makes a run what it is, but its seed."""
    settings = {k: v for k, v in _on(results.settings).items() if k not in _NOT_CONFIGURATION}
    data = settings.get("data")
    if isinstance(data, dict):  # where the photographs lie is no part of what was done with them
        settings["data"] = {k: v for k, v in data.items() if k not in WHERE_DATA_LIES}
    parts = (results.vocabulary, results.encoder, results.model, results.decoding)
    described = [part.model_dump() if part else None for part in parts]
    return json.dumps([results.name, settings, described], sort_keys=True)


def _on(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those that are off: a run of before there was one has it off, too."""
    return {
        key: _on(value) if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if value is not None and value is not False
    }


def _best(rows: Sequence[Row], split: str, metric: str) -> Row | None:
    scored = [row for row in rows if metric in row.means(split)]
    return max(scored, key=lambda row: row.means(split)[metric], default=None)


def _named(rows: Sequence[Row], name: str) -> Row | None:
    folder = Path(name).resolve()
    found = [
        row
        for row in rows
        if name in (row.name, row.results.name)
        or any(entry.path.parent.resolve() == folder for entry in row.entries)
    ]
    if len(found) > 1:
        names = ", ".join(one_line(row.name) for row in found)
        raise CaptioningError(f"--against {name}: that is {names}; give the folder of one")
    return found[0] if found else None


def _is_on(published: Published, ground: Ground) -> bool:
    return (published.data, published.split, published.images) == (
        ground.data,
        ground.split,
        ground.images,
    )


def _compared(
    rows: Sequence[Row], split: str, best: Row | None
) -> tuple[tuple[Row, ...], Row | None]:
    """The rows with their intervals, and their differences from the best; and the best."""
    read = {id(row): _statistics(row, split) for row in rows}
    compared = []
    for row in rows:
        runs = read[id(row)]
        written = row.results.intervals.get(split, {}) if len(row.entries) == 1 else {}
        row = replace(row, intervals=written or (mean_intervals(runs) if runs else {}))
        compared.append(row)
    if best is None:
        return tuple(compared), None
    place = next(place for place, row in enumerate(rows) if row is best)
    others = [n for n, row in enumerate(rows) if n != place and read[id(row)]]
    if read[id(best)] and others:
        try:
            found = compare([read[id(rows[n])] for n in others], read[id(best)])
        except CaptioningError as error:
            log.warning("No comparison: %s", error)
            found = []
        for n, differences in zip(others, found, strict=False):
            compared[n] = replace(compared[n], differences=differences)
    return tuple(compared), compared[place]


def _statistics(row: Row, split: str) -> list[Statistics]:
    """Those of all runs of a row; none where one lacks them."""
    paths = [entry.path.parent / f"statistics_{split}.json" for entry in row.entries]
    if not all(path.is_file() for path in paths):
        return []
    try:
        runs = [read_statistics(path) for path in paths]
    except CaptioningError as error:
        log.warning("Not compared: %s", error)
        return []
    if any(set(run.images) != set(runs[0].images) for run in runs):
        log.warning("Not compared: the seeds of %s captioned different images", row.name)
        return []
    return runs
