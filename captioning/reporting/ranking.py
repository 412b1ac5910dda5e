"""The content of a leaderboard, whatever its form: rankings of runs, and their comparison.

It is made from the files of the runs alone. Runs are ranked together only if they were scored on
the same images and references; runs that differ only in seed or arithmetic are one row.
"""

import json
import logging
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from captioning.metrics.bootstrap import Paired, resampled
from captioning.metrics.registry import BUILT_IN
from captioning.metrics.statistics import Statistics
from captioning.reporting.configurations import arithmetic_values, differing, grouped
from captioning.reporting.measures import LANGUAGE_COLUMNS, OBJECT_COLUMNS
from captioning.reporting.per_image import read_statistics
from captioning.reporting.published import Published
from captioning.reporting.results import (
    DeclaredMetric,
    Results,
    read_results,
)
from captioning.support.errors import CaptioningError, shortened
from captioning.support.reading import load_json

log = logging.getLogger(__name__)

RANKED_BY: Final = "CIDEr"

_CLIP = {
    "clip_weights": ("CLIPScore", "RefCLIPScore"),
    "pac_weights": ("PAC-S", "RefPAC-S"),
}
"""The metrics whose scores depend on weights, by the setting that names these."""


class Ground(NamedTuple):
    """What two runs must have in common to be ranked together; unknown parts are empty."""

    data: str
    fingerprint: str
    split: str
    images: int
    references: str = ""
    tokenization: str = ""
    clip_weights: str = ""
    pac_weights: str = ""

    def __str__(self) -> str:
        parts = [f"{self.data} {self.fingerprint[:8]}", f"{self.split} split"]
        parts += [f"{self.images} images"]
        parts += [f"references {self.references[:8]}"] * bool(self.references)
        parts += [part for part in (self.tokenization, self.clip_weights, self.pac_weights) if part]
        return one_line(", ".join(parts))


@dataclass(frozen=True)
class Entry:
    """One run: its results and the file that they were read from."""

    path: Path
    results: Results

    def ground(self, split: str) -> Ground:
        """The images and references of its scores on ``split``."""
        data = self.results.data
        scores, settings = self.results.scores.get(split, {}), self.results.settings
        weights = {
            key: str(settings.get(key, ""))
            for key, metrics in _CLIP.items()
            if any(metric in scores for metric in metrics)
        }
        return Ground(
            data.name,
            data.fingerprint,
            split,
            data.images.get(split, 0),
            data.references.get(split, ""),
            data.tokenization or "",
            **weights,
        )

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


@dataclass(frozen=True)
class Row:
    """One configuration, trained with one seed or several.

    Attributes:
        name: of the runs, with their folder if nothing else distinguishes the row.
        label: the name that no other row of the table has: with the differing settings, if another
            row has the same name.
        entries: its runs, the lowest seed first.
        settings: its values of the settings in which the rows of the table differ.
        intervals: 95 % bootstrap intervals over the images of the means over the seeds.
        differences: from the row that all are compared with; empty for that row itself.
    """

    name: str
    label: str
    entries: tuple[Entry, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    differences: Mapping[str, Paired] = field(default_factory=dict)

    @property
    def results(self) -> Results:
        """The results of the first run, for what all runs have in common."""
        return self.entries[0].results

    def means(self, split: str) -> dict[str, float]:
        """The mean over the seeds of every number that all of them have."""
        return {name: statistics.fmean(found) for name, found in self._columns(split).items()}

    def spreads(self, split: str) -> dict[str, float]:
        """The standard deviation over the seeds (divided by n - 1), if there are several."""
        if len(self.entries) < 2:
            return {}
        columns = self._columns(split)
        return {name: float(np.std(found, ddof=1)) for name, found in columns.items()}

    @property
    def mixed_arithmetic(self) -> dict[str, list[str]]:
        """The values of the parts of the arithmetic in which its runs differ."""
        return _several(arithmetic_values(entry.results for entry in self.entries))

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
        against: the row that the others are compared with.
        published: results that others published on the same split, which are not ranked.
        language: whether tables show the statistics of the captions' words.
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

    @property
    def settings(self) -> tuple[str, ...]:
        """The settings in which the rows differ, the most important first."""
        return tuple(self.rows[0].settings) if self.rows else ()

    @property
    def mixed_arithmetic(self) -> dict[str, list[str]]:
        """The values of the parts of the arithmetic in which the rows differ."""
        return _several(arithmetic_values(entry.results for entry in self.entries))

    @property
    def without_p_values(self) -> bool:
        """Whether rows are compared on too few images for a p-value."""
        pairs = (pair for row in self.rows for pair in row.differences.values())
        return any(pair.p_value is None for pair in pairs)

    def run_labels(self) -> list[str]:
        """A distinct label of each of the `entries`: that of its row, and its seed if needed."""
        return [
            row.label + (f", seed {entry.results.seed}" if len(row.entries) > 1 else "")
            for row in self.rows
            for entry in row.entries
        ]


def _several(values: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return {part: found for part, found in values.items() if len(found) > 1}


class Failure(NamedTuple):
    """A job that ended without results."""

    name: str
    reason: str


@dataclass(frozen=True)
class Leaderboard:
    """Everything found: rankings, each on its own ground, and runs without scores on the split.

    Attributes:
        split: the split of the scores.
        rankings: at most one for each ground.
        unscored: runs without scores on the split.
        failures: jobs that have failed.
        unmatched: published results on other images than any run's.
        metric: the score by which rows are sorted.
        best_by: the split on which the row was chosen that the others are compared with; None if
            the user named the row.
        lower_is_better: the scores of which a lower one is better.
    """

    split: str
    rankings: tuple[Ranking, ...]
    unscored: tuple[Entry, ...]
    failures: tuple[Failure, ...] = ()
    unmatched: tuple[Published, ...] = ()
    metric: str = RANKED_BY
    best_by: str | None = "dev"
    lower_is_better: frozenset[str] = frozenset()

    @property
    def reason_for_tables(self) -> str | None:
        """Why there is more than one table; None if there is at most one."""
        if len(self.rankings) < 2:
            return None
        names = {
            "data": "data set",
            "fingerprint": "data fingerprint",
            "images": "number of images",
            "references": "references",
            "tokenization": "tokenisation",
            "clip_weights": "weights of CLIPScore",
            "pac_weights": "weights of PAC-S",
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
            reason = shortened(str(load_json(path)["reason"]), 1000)
        except (CaptioningError, KeyError, TypeError):
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

    Rows with equal scores are sorted by their labels.

    Args:
        entries: the runs.
        split: the split of the scores.
        metric: the score by which rows are sorted and the best row is chosen.
        best_by: the split on which the best row is chosen, which the others are compared with.
        against: the name, label or folder of a run to compare with instead.
        each_seed: whether each run has a row of its own, although it differs only in seed.
        published: results of others, to show below the runs on the same data.
        failures: jobs to list as failed.
        language: whether to show the statistics of the captions' words.

    Raises:
        CaptioningError: no run has ``metric``; no run, or more than one on the same ground, is
            called ``against``; or two runs declare a metric differently.
    """
    entries = list(entries)
    lower = _lower_is_better(entries, metric)
    sign = 1 if metric in lower else -1
    unscored = []
    grounds: dict[Ground, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.results.scores.get(split):
            grounds[entry.ground(split)].append(entry)
        else:
            unscored.append(entry)
    rankings = []
    # People, scored on one reference less, come after the models.
    tables = sorted(
        _without_needless_clip(grounds).items(), key=lambda table: (_of_people(table[1]), table[0])
    )
    for ground, members in tables:
        rows = _rows(members, each_seed)

        def by_score(row: Row, split: str) -> tuple[bool, float, str]:
            score = row.means(split).get(metric)
            return score is None, 0.0 if score is None else sign * score, row.label

        rows.sort(key=lambda row: by_score(row, split))
        # Equal scores are not decided by the other split, but by the label.
        scored = [row for row in rows if metric in row.means(best_by)]
        best = min(scored, key=lambda row: by_score(row, best_by), default=None)
        best = _named(rows, against) if against else best
        # Published results are on all references.
        shown = (
            () if _of_people(members) else tuple(each for each in published if _is_on(each, ground))
        )
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
        lower,
    )


def _lower_is_better(entries: Sequence[Entry], metric: str) -> frozenset[str]:
    """The scores of which a lower one is better, by the declarations in the results files."""
    declared: dict[str, tuple[DeclaredMetric, Path]] = {}
    for entry in entries:
        for name, metric_of_run in entry.results.metrics.items():
            first, path = declared.setdefault(name, (metric_of_run, entry.path))
            if first != metric_of_run:
                raise CaptioningError(
                    f"{path} and {entry.path} declare the metric {name} differently: score one of "
                    "them again, or leave it out by --filter"
                )
    if entries and metric not in (known := [*BUILT_IN, *declared]):
        raise CaptioningError(
            f"--sort {metric}: there is no such score; choose from {', '.join(known)}"
        )
    built_in = {name for name, each in BUILT_IN.items() if not each.higher_is_better}
    own = {name for name, (each, _) in declared.items() if not each.higher_is_better}
    return frozenset(built_in | own)


def one_line(text: str) -> str:
    """A text without control characters, such as line breaks and colour codes."""
    return "".join(character if character.isprintable() else " " for character in text)


def _of_people(entries: Iterable[Entry]) -> bool:
    """Whether the scores are those of references against each other."""
    return any(entry.results.leave_one_out for entry in entries)


def _without_needless_clip(grounds: Mapping[Ground, list[Entry]]) -> dict[Ground, list[Entry]]:
    """Rank runs without CLIPScore with runs that have it, if these all use the same weights.

    PAC-S likewise.
    """
    for key in _CLIP:
        nothing: dict[str, Any] = {key: ""}
        weights: dict[Ground, set[str]] = defaultdict(set)
        for ground in grounds:
            weights[ground._replace(**nothing)].add(getattr(ground, key))
        merged: dict[Ground, list[Entry]] = defaultdict(list)
        for ground, members in grounds.items():
            known = weights[ground._replace(**nothing)] - {""}
            only: dict[str, Any] = {key: known.pop()} if len(known) == 1 else {}
            common = ground._replace(**only)
            merged[common] += members
        grounds = merged
    return dict(grounds)


def _rows(entries: Sequence[Entry], each_seed: bool) -> list[Row]:
    """Rows of runs, with the settings in which they differ, and distinct labels."""
    runs = [entry.results for entry in entries]
    indices = [[index] for index in range(len(runs))] if each_seed else grouped(runs)
    members = [[entries[index] for index in group] for group in indices]
    settings = differing([[entry.results for entry in group] for group in members])
    names = [group[0].results.name for group in members]
    if each_seed:  # a seed is a column here, although it is no part of the configuration
        seeds = [group[0].results.seed for group in members]
        if len(set(seeds)) > 1:
            settings = [
                values | {"seed": "-" if seed is None else str(seed)}
                for values, seed in zip(settings, seeds, strict=True)
            ]
    alike: dict[str, list[int]] = defaultdict(list)
    for place, (name, values) in enumerate(zip(names, settings, strict=True)):
        alike[json.dumps([name, values])].append(place)
    labels = _labels([group[0].results.name for group in members], settings)
    for places in alike.values():
        if len(places) > 1:
            folders = _distinct_folders([members[place][0].path.parent for place in places])
            for place, folder in zip(places, folders, strict=True):
                names[place] = f"{names[place]} ({folder})"
                labels[place] = f"{labels[place]} ({folder})"
    return [
        Row(name, label, tuple(group), values)
        for name, label, values, group in zip(names, labels, settings, members, strict=True)
    ]


def _labels(names: Sequence[str], settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Names, with as many settings as distinguish the rows of one name, if settings do."""
    labels = list(names)
    for name, count in Counter(names).items():
        places = [place for place, each in enumerate(names) if each == name]
        varying = [
            key for key in settings[places[0]] if len({settings[p][key] for p in places}) > 1
        ]
        chosen: list[str] = []
        for key in varying:
            chosen.append(key)
            if len({tuple(settings[p][k] for k in chosen) for p in places}) == count:
                break
        if chosen:
            for place in places:
                values = ", ".join(f"{key}={settings[place][key]}" for key in chosen)
                labels[place] = f"{name} ({values})"
    return labels


def _distinct_folders(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that distinguish them."""
    for parts in range(1, max(len(folder.parts) for folder in folders) + 1):
        ends = [Path(*folder.parts[-parts:]).as_posix() for folder in folders]
        if len(set(ends)) == len(ends):
            return ends
    return [str(folder) for folder in folders]


def _named(rows: Sequence[Row], name: str) -> Row | None:
    folder = Path(name).resolve()
    found = [
        row
        for row in rows
        if name in (row.name, row.label, row.results.name)
        or any(entry.path.parent.resolve() == folder for entry in row.entries)
    ]
    if len(found) > 1:
        names = ", ".join(one_line(row.label) for row in found)
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
    """The rows with intervals and with differences from the best one; and the best one."""
    found = [_statistics(row, split) for row in rows]
    read = [place for place, runs in enumerate(found) if runs]
    # For intervals and differences.
    drawn = dict(zip(read, resampled([found[place] for place in read]), strict=True))
    compared = []
    for place, row in enumerate(rows):
        written = row.results.intervals.get(split, {}) if len(row.entries) == 1 else {}
        computed = drawn[place].intervals() if place in drawn and not written else {}
        compared.append(replace(row, intervals=written or computed))
    if best is None:
        return tuple(compared), None
    place = next(place for place, row in enumerate(rows) if row is best)
    if place in drawn:
        try:
            differences = {n: drawn[n].minus(drawn[place]) for n in read if n != place}
        except CaptioningError as error:
            log.warning("No comparison: %s", error)
            differences = {}
        for n, of_row in differences.items():
            compared[n] = replace(compared[n], differences=of_row)
    return tuple(compared), compared[place]


def _statistics(row: Row, split: str) -> list[Statistics]:
    """The statistics of all runs of a row; none if one of the runs lacks them."""
    paths = [entry.path.parent / f"statistics_{split}.json" for entry in row.entries]
    if not all(path.is_file() for path in paths):
        return []
    try:
        runs = [read_statistics(path) for path in paths]
    except CaptioningError as error:
        log.warning("Not compared: %s", error)
        return []
    if any(set(run.images) != set(runs[0].images) for run in runs):
        log.warning("Not compared: the seeds of %s captioned different images", row.label)
        return []
    return runs
