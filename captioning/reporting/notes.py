"""The sentences above and below the leaderboard's tables."""

from collections.abc import Callable, Mapping, Sequence

from captioning.metrics.bootstrap import MIN_IMAGES_FOR_P_VALUE
from captioning.reporting.configurations import ARITHMETIC
from captioning.reporting.ranking import Leaderboard, Ranking
from captioning.reporting.tables import MAX_SETTINGS
from captioning.support.errors import printable

_NAMED = 4  # values, or settings, that a sentence names


def notes(board: Leaderboard, escape: Callable[[str], str] = str) -> list[str]:
    """Notes that stand above the tables, one or two sentences each."""
    found = [escape(board.reason_for_tables)] if board.reason_for_tables else []
    rows = [row for ranking in board.rankings for row in ranking.rows]
    if any(row.intervals for row in rows):
        found.append("Beside or below a score is its 95 % bootstrap interval over the images.")
    if any(len(row.runs) > 1 for row in rows):
        found.append("Several seeds are one row: mean ± standard deviation over the seeds.")
    for ranking in board.rankings:
        data = _place(board, ranking, escape)
        if ranking.against and any(row.differences for row in ranking.rows):
            chosen = f", the best by {board.metric} on {board.best_by}" if board.best_by else ""
            base = escape(printable(ranking.against.label))
            found.append(
                f"Δ is the paired difference from {base}{chosen}, with its p-value over the images "
                f"({data}), which says nothing about other seeds and is not corrected for the "
                "number of comparisons."
            )
            if ranking.without_p_values:
                found.append(
                    f"There is no p-value on {ranking.protocol.images} images ({data}): "
                    f"with fewer than {MIN_IMAGES_FOR_P_VALUE} it would be too small."
                )
        found += _why_not_compared(board, ranking, escape)
    if any(ranking.published for ranking in board.rankings):
        found.append("Rows marked published are what others report; they are not ranked.")
    return found


def _place(board: Leaderboard, ranking: Ranking, escape: Callable[[str], str]) -> str:
    """The table that a sentence is about: its data set, and more if there are several tables."""
    is_alone = len(board.rankings) == 1
    return escape(printable(ranking.protocol.data) if is_alone else ranking.title)


def _why_not_compared(
    board: Leaderboard, ranking: Ranking, escape: Callable[[str], str]
) -> list[str]:
    data = _place(board, ranking, escape)
    if len(ranking.rows) < 2:
        return []
    if ranking.against is None:
        # Where a run was named, the other tables are without it on purpose.
        return [
            f"No run on {data} has {board.metric} on {board.best_by}, to choose the best by; "
            "--against NAME compares the others with the run of that name."
        ] * bool(board.best_by)
    without = [row for row in ranking.rows if not row.differences and row is not ranking.against]
    names = ", ".join(escape(printable(row.label)) for row in without)
    return [
        f"No difference is known of {names}: it takes statistics_{board.split}.json beside both "
        f"runs' results.json, of the same images and references ({data})."
    ] * bool(without)


def endings(board: Leaderboard, escape: Callable[[str], str] = str) -> list[str]:
    """Notes that stand below the tables: which runs differ how, and what is not in the tables."""
    found = [note for ranking in board.rankings for note in _about_rows(ranking, escape)]
    found += [unscored_sentence(board, escape)] if board.unscored else []
    if board.unmatched:
        names = "; ".join(escape(printable(each.name)) for each in board.unmatched)
        found.append(
            f"Published results that are not shown, as no run here is on the same images: {names}."
        )
    return found + [
        f"failed: {escape(failure.name)}: {escape(printable(failure.reason))}"
        for failure in board.failures
    ]


def _about_rows(ranking: Ranking, escape: Callable[[str], str]) -> list[str]:
    found = [
        f"{escape(printable(row.label))}: each reference caption is scored against the others of "
        f"its image, so that there is one reference less, and the scores are means over "
        f"{row.results.leave_one_out} rounds. Fewer references give lower scores, which cannot be "
        "compared with those of other tables."
        for row in ranking.rows
        if row.results.leave_one_out
    ]
    left_out = ranking.settings[MAX_SETTINGS:]
    if left_out:
        found.append(
            f"The rows also differ in {escape(_listed(left_out))}; leaderboard.csv has them all."
        )
    mixed = [row for row in ranking.rows if row.mixed_arithmetic]
    for row in mixed:
        found.append(
            f"The runs of {escape(printable(row.label))} count as seeds of one row although their "
            f"arithmetic differs: {escape(_values(row.mixed_arithmetic))}."
        )
    # Columns show what distinguishes rows that have the same settings.
    others = {k: v for k, v in ranking.mixed_arithmetic.items() if k not in ranking.settings}
    if others and not mixed:
        found.append(
            f"Not all rows were computed with the same arithmetic: {escape(_values(others))}."
        )
    return found


def _values(arithmetic: Mapping[str, Sequence[str]]) -> str:
    parts = (part for part in ARITHMETIC if part in arithmetic)
    return "; ".join(f"{part} {_listed(arithmetic[part])}" for part in parts)


def _listed(names: Sequence[str]) -> str:
    shown = [printable(name) for name in names[:_NAMED]]
    if len(names) > len(shown):
        shown.append(f"{len(names) - len(shown)} more")
    *first, last = shown
    return f"{', '.join(first)} and {last}" if first else last


def unscored_sentence(board: Leaderboard, escape: Callable[[str], str] = str) -> str:
    """Name the runs that have no scores on the split, and their folders."""
    names = ", ".join(
        escape(printable(f"{run.results.name} ({run.path.parent})")) for run in board.unscored
    )
    return f"Without scores on {board.split}: {names}."
