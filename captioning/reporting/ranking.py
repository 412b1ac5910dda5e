"""The content of a leaderboard, whatever its form: rankings of runs, and their comparison.

It is made from the files of the runs alone. Runs are ranked together only if they were scored by
the same protocol; runs that differ only in seed or arithmetic are one row.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from captioning.metrics.bootstrap import resampled
from captioning.metrics.registry import BUILT_IN
from captioning.metrics.statistics import Statistics
from captioning.reporting.per_image import read_statistics
from captioning.reporting.protocol import EvaluationProtocol, differing_parts, titles, united
from captioning.reporting.published import Published
from captioning.reporting.results import DeclaredMetric
from captioning.reporting.rows import Row, mixed_arithmetic, rows_of
from captioning.reporting.runs import Failure, Run
from captioning.support.errors import CaptioningError, printable

log = logging.getLogger(__name__)

RANKED_BY: Final = "CIDEr"


@dataclass(frozen=True)
class Ranking:
    """Rows that were scored by one protocol, best first.

    Attributes:
        protocol: theirs.
        title: the protocol in words, which no other ranking of the leaderboard has.
        rows: the configurations.
        against: the row that the others are compared with.
        published: results that others published on the same split, which are not ranked.
        language: whether tables show the statistics of the captions' words.
    """

    protocol: EvaluationProtocol
    title: str
    rows: tuple[Row, ...]
    against: Row | None = None
    published: tuple[Published, ...] = ()
    language: bool = False

    @property
    def runs(self) -> tuple[Run, ...]:
        """All their runs."""
        return tuple(run for row in self.rows for run in row.runs)

    @property
    def settings(self) -> tuple[str, ...]:
        """The settings in which the rows differ, the most important first."""
        return tuple(self.rows[0].settings) if self.rows else ()

    @property
    def mixed_arithmetic(self) -> dict[str, list[str]]:
        """The values of the parts of the arithmetic in which the rows differ."""
        return mixed_arithmetic(self.runs)

    @property
    def without_p_values(self) -> bool:
        """Whether rows are compared on too few images for a p-value."""
        pairs = (pair for row in self.rows for pair in row.differences.values())
        return any(pair.p_value is None for pair in pairs)

    def run_labels(self) -> list[str]:
        """A distinct label of each of the `runs`: that of its row, and its seed if needed."""
        return [
            row.label + (f", seed {run.results.seed}" if len(row.runs) > 1 else "")
            for row in self.rows
            for run in row.runs
        ]


@dataclass(frozen=True)
class Leaderboard:
    """Everything found: rankings, one for each protocol, and runs without scores on the split.

    Attributes:
        split: the split of the scores.
        rankings: at most one for each protocol.
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
    unscored: tuple[Run, ...]
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
        differing = ", ".join(differing_parts([ranking.protocol for ranking in self.rankings]))
        return (
            f"{len(self.rankings)} tables, because runs differ in {differing}: scores on different "
            "images or references cannot be ranked together."
        )


def rank(
    runs: Iterable[Run],
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
        runs: the runs.
        split: the split of the scores.
        metric: the score by which rows are sorted and the best row is chosen.
        best_by: the split on which the best row is chosen, which the others are compared with.
        against: the name, label or folder of a run to compare with instead.
        each_seed: whether each run has a row of its own, although it differs only in seed.
        published: results of others, to show below the runs on the same data.
        failures: jobs to list as failed.
        language: whether to show the statistics of the captions' words.

    Raises:
        CaptioningError: no run has ``metric``; no run, or more than one of the same protocol, is
            called ``against``; or two runs declare a metric differently.
    """
    runs = list(runs)
    lower = _lower_is_better(runs, metric)
    sign = 1 if metric in lower else -1

    def by_score(row: Row, split: str) -> tuple[bool, float, str]:
        score = row.means(split).get(metric)
        return score is None, 0.0 if score is None else sign * score, row.label

    scored = [run for run in runs if run.results.scores.get(split)]
    unscored = [run for run in runs if not run.results.scores.get(split)]
    rankings = []
    tables = _by_protocol(scored, split)
    for title, (protocol, members) in zip(titles(list(tables)), tables.items(), strict=True):
        rows = sorted(rows_of(members, each_seed=each_seed), key=lambda row: by_score(row, split))
        if against:
            best = _named(rows, against)
        else:
            # Equal scores are not decided by the other split, but by the label.
            known = (row for row in rows if metric in row.means(best_by))
            best = min(known, key=lambda row: by_score(row, best_by), default=None)
        # Published results are on all references.
        of_others = () if protocol.leave_one_out else published
        shown = tuple(each for each in of_others if _is_on(each, protocol))
        rankings.append(Ranking(protocol, title, *_compared(rows, split, best), shown, language))
    if against and not any(ranking.against for ranking in rankings):
        raise CaptioningError(
            f"--against {against}: no run with scores on {split} has that name or folder"
        )
    return Leaderboard(
        split,
        tuple(rankings),
        tuple(sorted(unscored, key=lambda run: (run.results.name, str(run.path)))),
        tuple(failures),
        tuple(each for each in published if all(each not in r.published for r in rankings)),
        metric,
        None if against else best_by,
        lower,
    )


def _lower_is_better(runs: Sequence[Run], metric: str) -> frozenset[str]:
    """The scores of which a lower one is better, by the declarations in the results files."""
    declared: dict[str, tuple[DeclaredMetric, Path]] = {}
    for run in runs:
        for name, metric_of_run in run.results.metrics.items():
            first, path = declared.setdefault(name, (metric_of_run, run.path))
            if first != metric_of_run:
                raise CaptioningError(
                    f"{path} and {run.path} declare the metric {name} differently: score one of "
                    "them again, or leave it out by --filter"
                )
    if runs and metric not in (known := [*BUILT_IN, *declared]):
        raise CaptioningError(
            f"--sort {metric}: there is no such score; choose from {', '.join(known)}"
        )
    built_in = {name for name, each in BUILT_IN.items() if not each.higher_is_better}
    own = {name for name, (each, _) in declared.items() if not each.higher_is_better}
    return frozenset(built_in | own)


def _by_protocol(runs: Sequence[Run], split: str) -> dict[EvaluationProtocol, list[Run]]:
    """The runs of each table; people, scored on one reference less, come after the models."""
    protocols = [EvaluationProtocol.of(run.results, split) for run in runs]
    of_table = united(protocols)
    tables: dict[EvaluationProtocol, list[Run]] = defaultdict(list)
    for run, protocol in zip(runs, protocols, strict=True):
        tables[of_table[protocol]].append(run)
    order = sorted(tables, key=lambda protocol: (protocol.leave_one_out, protocol))
    return {protocol: tables[protocol] for protocol in order}


def _named(rows: Sequence[Row], name: str) -> Row | None:
    folder = Path(name).resolve()
    found = [
        row
        for row in rows
        if name in (row.name, row.label, row.results.name)
        or any(run.path.parent.resolve() == folder for run in row.runs)
    ]
    if len(found) > 1:
        names = ", ".join(printable(row.label) for row in found)
        raise CaptioningError(f"--against {name}: that is {names}; give the folder of one")
    return found[0] if found else None


def _is_on(published: Published, protocol: EvaluationProtocol) -> bool:
    return (published.data, published.split, published.images) == (
        protocol.data,
        protocol.split,
        protocol.images,
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
        written = row.results.intervals.get(split, {}) if len(row.runs) == 1 else {}
        computed = drawn[place].intervals() if place in drawn and not written else {}
        compared.append(replace(row, intervals=written or computed))
    if best is None:
        return tuple(compared), None
    place = next(place for place, row in enumerate(rows) if row is best)
    for n in read if place in drawn else ():
        if n != place:
            try:
                differences = drawn[n].minus(drawn[place])
            except CaptioningError as error:
                log.warning("%s is not compared: %s", printable(rows[n].label), error)
            else:
                compared[n] = replace(compared[n], differences=differences)
    return tuple(compared), compared[place]


def _statistics(row: Row, split: str) -> list[Statistics]:
    """The statistics of all runs of a row; none if one of the runs lacks them."""
    paths = [run.path.parent / f"statistics_{split}.json" for run in row.runs]
    if not all(path.is_file() for path in paths):
        return []
    try:
        runs = [read_statistics(path) for path in paths]
    except CaptioningError as error:
        log.warning("%s is not compared: %s", printable(row.label), error)
        return []
    if any(set(run.images) != set(runs[0].images) for run in runs):
        log.warning(
            "%s is not compared: its seeds captioned different images", printable(row.label)
        )
        return []
    return runs
