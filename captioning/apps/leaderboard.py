"""The command ``python -m captioning leaderboard``: rank all runs, print and write the tables.

Runs that differ only in seed are one row with their mean and spread; ``--seeds`` lists each run.
Rows are compared with the best one, which is chosen on dev, or with the one of ``--against``.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from captioning.metrics.registry import BUILT_IN
from captioning.reporting.filters import Filter, choose
from captioning.reporting.leaderboard import (
    csv_records,
    terminal_tables,
    to_csv,
    to_markdown,
)
from captioning.reporting.notes import endings, notes
from captioning.reporting.published import read_published
from captioning.reporting.ranking import (
    RANKED_BY,
    Leaderboard,
    find_failures,
    find_results,
    rank,
)
from captioning.reporting.report import write_leaderboard_page
from captioning.support.errors import CaptioningError
from captioning.support.files import atomic_write_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the leaderboard and write ``leaderboard.md``, ``.csv`` and ``.html``.

    Returns:
        The exit status, which is 1 if a folder is missing or a ``results.json`` cannot be read. The
        readable ones are ranked nevertheless.
    """
    options = _parser().parse_args(arguments)
    try:
        return _report(options)
    except CaptioningError as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m captioning leaderboard",
        description="Rank the runs below some folders, best first, and compare them with the best.",
    )
    parser.add_argument(
        "folders", nargs="*", type=Path, default=[Path("runs")], metavar="FOLDER",
        help="where runs were written, each with its results.json (default: runs)",
    )  # fmt: skip
    parser.add_argument(
        "--split", choices=("test", "dev"), default="test", help="rank on it (default: test)"
    )
    parser.add_argument(
        "--sort", default=RANKED_BY, metavar="METRIC",
        help=f"rank by that score: one of {', '.join(BUILT_IN)}, or of a metric of your own "
        f"(default: {RANKED_BY})",
    )  # fmt: skip
    parser.add_argument(
        "--filter", action="append", default=[], metavar="KEY=VALUE",
        help="only runs with that setting, such as model=lstm, decoding=beam* or "
        "model.dropout=0.5; several must all hold",
    )  # fmt: skip
    parser.add_argument("--seeds", action="store_true", help="list each seed's run by itself")
    parser.add_argument(
        "--language", action="store_true",
        help="show, too, how varied, long and new the captions are",
    )  # fmt: skip
    parser.add_argument(
        "--choose-on-test", action="store_true",
        help="choose the best run, which the others are compared with, by its test scores and not "
        "by its dev scores; its test scores are then too high",
    )  # fmt: skip
    parser.add_argument("--best-by", help=argparse.SUPPRESS)  # its former name
    parser.add_argument(
        "--against", metavar="NAME|FOLDER", help="compare with that run, not with the best"
    )
    parser.add_argument(
        "--published", type=Path, metavar="FILE",
        help="show these published results, too, such as docs/results/published.yaml",
    )  # fmt: skip
    parser.add_argument(
        "--wandb", action="store_true",
        help="log the table to wandb's project captioning, offline without an account",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write the files there (default: the first FOLDER)"
    )
    return parser


def _report(options: argparse.Namespace) -> int:
    if options.best_by is not None:
        raise CaptioningError(
            f"--best-by {options.best_by}: leave it out to choose the best run on dev, or give "
            "--choose-on-test to choose it on test"
        )
    folders: Sequence[Path] = options.folders
    out: Path = options.out or folders[0]
    filters = [Filter.parse(text) for text in options.filter]
    published = read_published(options.published) if options.published else []
    entries, errors = find_results(folders)
    failures = find_failures(folders)
    for error in errors:
        print(error, file=sys.stderr)
    status = 1 if errors else 0
    chosen = choose([entry.results for entry in entries], filters)
    entries = [entry for entry, is_chosen in zip(entries, chosen, strict=True) if is_chosen]
    if not entries and not failures:
        where = ", ".join(str(folder) for folder in folders)
        if chosen:
            print(f"No run below {where} meets all of the filters.")
        else:
            print(f"No run below {where} has a readable results.json; `python train.py` makes one.")
        return status

    board = rank(
        entries,
        options.split,
        metric=options.sort,
        best_by="test" if options.choose_on_test else "dev",
        against=options.against,
        each_seed=options.seeds,
        published=published,
        failures=failures,
        language=options.language,
    )
    console = Console(highlight=False)
    if not console.is_terminal:
        # A file or a pipe has no width that a table would have to fit into.
        console.width = 1000
    for table in terminal_tables(board, console.width):
        console.print(table)
    for sentence in (*notes(board), *endings(board)):
        console.print(sentence, markup=False)
    files = {"leaderboard.md": to_markdown(board), "leaderboard.csv": to_csv(board)}
    try:
        for name, text in files.items():
            atomic_write_text(out / name, text)
            console.print(f"Wrote {out / name}", markup=False)
        page = write_leaderboard_page(out / "leaderboard.html", board)
        console.print(f"Wrote {page}", markup=False)
    except OSError as error:
        raise CaptioningError(f"{out}: cannot be written: {error.strerror}") from None
    if options.wandb:
        _log_to_wandb(board, out)
    return status


def _log_to_wandb(board: Leaderboard, out: Path) -> None:
    """Log one table of all rows, which wandb can sort and filter."""
    import wandb

    records = csv_records(board)
    columns: list[str | int] = list(dict.fromkeys(name for record in records for name in record))
    rows = [[record.get(str(column)) for column in columns] for record in records]
    offline = False
    if "WANDB_MODE" not in os.environ:
        from captioning.training.loggers import wandb_account  # which takes seconds to import

        offline = not wandb_account()
    with wandb.init(
        project="captioning",
        name="leaderboard",
        job_type="leaderboard",
        dir=out,
        mode="offline" if offline else None,
    ) as run:
        run.log({"leaderboard": wandb.Table(columns=columns, data=rows)})


if __name__ == "__main__":
    sys.exit(main())
