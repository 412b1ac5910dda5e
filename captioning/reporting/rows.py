"""The rows of a table of runs: seeds are united, and each row has a name that no other has."""

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from captioning.metrics.bootstrap import Paired
from captioning.reporting.configurations import arithmetic_values, differing, grouped
from captioning.reporting.results import Results
from captioning.reporting.runs import Run


@dataclass(frozen=True)
class Row:
    """One configuration, trained with one seed or several.

    Attributes:
        name: of the runs, with their folder if nothing else distinguishes the row.
        label: the name that no other row of the table has: with the differing settings, if another
            row has the same name.
        runs: its runs, the lowest seed first.
        settings: its values of the settings in which the rows of the table differ.
        intervals: 95 % bootstrap intervals over the images of the means over the seeds.
        differences: from the row that all are compared with; empty for that row itself.
    """

    name: str
    label: str
    runs: tuple[Run, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    differences: Mapping[str, Paired] = field(default_factory=dict)

    @property
    def results(self) -> Results:
        """The results of the first run, for what all runs have in common."""
        return self.runs[0].results

    def means(self, split: str) -> dict[str, float]:
        """The mean over the seeds of every number that all of them have."""
        return {name: statistics.fmean(found) for name, found in self._columns(split).items()}

    def spreads(self, split: str) -> dict[str, float]:
        """The standard deviation over the seeds (divided by n - 1), if there are several."""
        if len(self.runs) < 2:
            return {}
        return {name: statistics.stdev(found) for name, found in self._columns(split).items()}

    @property
    def mixed_arithmetic(self) -> dict[str, list[str]]:
        """The values of the parts of the arithmetic in which its runs differ."""
        return mixed_arithmetic(self.runs)

    def _columns(self, split: str) -> dict[str, list[float]]:
        columns = [run.values(split) for run in self.runs]
        return {
            name: [found[name] for found in columns]
            for name in columns[0]
            if all(name in found for found in columns)
        }


def mixed_arithmetic(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The values of the parts of the arithmetic in which runs differ."""
    values = arithmetic_values(run.results for run in runs)
    return {part: found for part, found in values.items() if len(found) > 1}


def rows_of(runs: Sequence[Run], *, each_seed: bool) -> list[Row]:
    """Rows of runs, with the settings in which they differ, and distinct labels.

    Args:
        runs: the runs of a table.
        each_seed: whether each run has a row of its own, although it differs only in seed.
    """
    indices = (
        [[index] for index in range(len(runs))]
        if each_seed
        else grouped([run.results for run in runs])
    )
    members = [[runs[index] for index in group] for group in indices]
    settings = differing([[run.results for run in group] for group in members])
    names = [group[0].results.name for group in members]
    if each_seed:  # a seed is a column here, although it is no part of the configuration
        seeds = [group[0].results.seed for group in members]
        if len(set(seeds)) > 1:
            settings = [
                values | {"seed": "-" if seed is None else str(seed)}
                for values, seed in zip(settings, seeds, strict=True)
            ]
    labels = _labels(names, settings)
    alike: dict[str, list[int]] = defaultdict(list)
    for place, (name, values) in enumerate(zip(names, settings, strict=True)):
        alike[json.dumps([name, values])].append(place)
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
