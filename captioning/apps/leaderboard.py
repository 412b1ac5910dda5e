"""The command ``python -m captioning leaderboard``: rank all runs, print and write the tables.

Runs that differ only in the seed share one row with mean and standard deviation; ``--seeds`` lists
each run. Rows are compared with the run of ``--against``, by default the best run on dev.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from captioning.apps.status import status_of
from captioning.metrics.registry import BUILT_IN
from captioning.reporting.filters import Filter, choose
from captioning.reporting.leaderboard import terminal_tables, to_markdown
from captioning.reporting.notes import endings, notes
from captioning.reporting.published import read_published
from captioning.reporting.ranking import RANKED_BY, Leaderboard, rank
from captioning.reporting.report import write_leaderboard_page
from captioning.reporting.runs import find_failures, find_runs
from captioning.reporting.spreadsheet import csv_records, to_csv
from captioning.support.errors import CaptioningError
from captioning.support.files import atomic_write_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the leaderboard and write ``leaderboard.md``, ``.csv`` and ``.html``.

    Returns:
        The exit status, which is 1 if a folder is missing, no run is found, or a ``results.json``
        cannot be read. All readable results are ranked nevertheless.
    """
    options = _parser().parse_args(arguments)
    return status_of(lambda: _report(options), options.out or options.folders[0])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m captioning leaderboard",
        description="Rank the runs below some folders, best first, and compare them with the best.",
    )
    parser.add_argument(
        "folders", nargs="*", type=Path, default=[Path("runs")], metavar="FOLDER",
        help="folders that contain runs with a results.json, at any depth (default: runs)",
    )  # fmt: skip
    parser.add_argument(
        "--split", choices=("test", "dev"), default="test", help="split to rank on (default: test)"
    )
    parser.add_argument(
        "--sort", default=RANKED_BY, metavar="METRIC",
        help=f"the metric to rank by: one of {', '.join(BUILT_IN)}, or a metric of your own "
        f"(default: {RANKED_BY})",
    )  # fmt: skip
    parser.add_argument(
        "--filter", action="append", default=[], metavar="KEY=VALUE",
        help="only runs with that setting, for example model=lstm, decoding=beam* or "
        "model.dropout=0.5; if given several times, all must hold",
    )  # fmt: skip
    parser.add_argument("--seeds", action="store_true", help="list the run of each seed separately")
    parser.add_argument(
        "--language", action="store_true",
        help="also show the diversity, length and novelty of the captions",
    )  # fmt: skip
    parser.add_argument(
        "--choose-on-test", action="store_true",
        help="choose the best run, with which the others are compared, by its test scores instead "
        "of its dev scores; its test scores are then biased upwards",
    )  # fmt: skip
    parser.add_argument("--best-by", help=argparse.SUPPRESS)  # its former name
    parser.add_argument(
        "--against", metavar="NAME|FOLDER", help="compare with that run instead of the best one"
    )
    parser.add_argument(
        "--published", type=Path, metavar="FILE",
        help="also show published results from a file, for example docs/results/published.yaml",
    )  # fmt: skip
    parser.add_argument(
        "--wandb", action="store_true",
        help="log the table to the wandb project captioning; offline if there is no account",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="the output folder (default: the first FOLDER)"
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
    runs, errors = find_runs(folders)
    failures = find_failures(folders)
    for error in errors:
        print(error, file=sys.stderr)
    status = 1 if errors else 0
    chosen = choose([run.results for run in runs], filters)
    runs = [run for run, is_chosen in zip(runs, chosen, strict=True) if is_chosen]
    if not runs and not failures:
        where = ", ".join(str(folder) for folder in folders)
        if chosen:
            raise CaptioningError(f"no run below {where} meets all filters: leave one of them out")
        raise CaptioningError(
            f"{where}: no run below has a readable results.json; name the folder that runs were "
            "written to, or write one first with `python train.py`"
        )

    board = rank(
        runs,
        options.split,
        metric=options.sort,
        best_by="test" if options.choose_on_test else "dev",
        against=options.against,
        each_seed=options.seeds,
        published=published,
        failures=failures,
        language=options.language,
    )
    # Files first: whoever reads the output may go before its end.
    files = {"leaderboard.md": to_markdown(board), "leaderboard.csv": to_csv(board)}
    unwritten = None
    try:
        for name, text in files.items():
            atomic_write_text(out / name, text)
        page = write_leaderboard_page(out / "leaderboard.html", board)
    except CaptioningError as error:
        unwritten = error
    console = Console(highlight=False)
    if not console.is_terminal:
        # In a file or a pipe, tables need not fit a terminal's width.
        console.width = 1000
    for table in terminal_tables(board, console.width):
        console.print(table)
    for sentence in (*notes(board), *endings(board)):
        console.print(sentence, markup=False)
    if unwritten is not None:
        raise unwritten
    for path in (*(out / name for name in files), page):
        console.print(f"Wrote {path}", markup=False)
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
        from captioning.training.loggers import wandb_account  # imported late: takes seconds

        offline = not wandb_account()
    with wandb.init(
        project="captioning",
        name="leaderboard",
        job_type="leaderboard",
        dir=str(out),
        mode="offline" if offline else None,
    ) as run:
        run.log({"leaderboard": wandb.Table(columns=columns, data=rows)})


if __name__ == "__main__":
    sys.exit(main())
