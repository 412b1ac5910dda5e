"""The command ``python -m captioning.leaderboard``: rank all runs, print and write the table."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from captioning.errors import CaptioningError
from captioning.files import atomic_write_text
from captioning.reporting.leaderboard import (
    find_results,
    rank,
    terminal_tables,
    to_csv,
    to_markdown,
    unscored_sentence,
)
from captioning.reporting.report import write_leaderboard_page


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the leaderboard, write ``leaderboard.md`` and ``leaderboard.csv``, give exit status.

    The status is 1 where a folder is missing or a ``results.json`` cannot be read; the readable
    ones are ranked all the same.
    """
    parser = argparse.ArgumentParser(
        prog="python -m captioning.leaderboard",
        description="Rank the runs below some folders, best first by CIDEr.",
    )
    parser.add_argument(
        "folders", nargs="*", type=Path, default=[Path("runs")], metavar="FOLDER",
        help="where runs were written, each with its results.json (default: runs)",
    )  # fmt: skip
    parser.add_argument(
        "--split", choices=("test", "dev"), default="test", help="rank on it (default: test)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write the files there (default: the first FOLDER)"
    )
    options = parser.parse_args(arguments)
    try:
        return _report(options.folders, options.split, options.out or options.folders[0])
    except CaptioningError as error:
        print(error, file=sys.stderr)
        return 1


def _report(folders: Sequence[Path], split: str, out: Path) -> int:
    entries, errors = find_results(folders)
    for error in errors:
        print(error, file=sys.stderr)
    status = 1 if errors else 0
    if not entries:
        where = ", ".join(str(folder) for folder in folders)
        print(f"No run below {where} has a readable results.json; `python train.py` makes one.")
        return status

    board = rank(entries, split)
    console = Console(highlight=False)
    if not console.is_terminal:
        # A file or a pipe has no edge at which a table would have to be squeezed.
        console.width = 1000
    for table in terminal_tables(board):
        console.print(table)
    if board.reason_for_tables:
        console.print(board.reason_for_tables, markup=False)
    if board.unscored:
        console.print(unscored_sentence(board), markup=False)
    files = {"leaderboard.md": to_markdown(board), "leaderboard.csv": to_csv(board)}
    try:
        for name, text in files.items():
            atomic_write_text(out / name, text)
            console.print(f"Wrote {out / name}", markup=False)
        page = write_leaderboard_page(out / "leaderboard.html", board)
        console.print(f"Wrote {page}", markup=False)
    except OSError as error:
        raise CaptioningError(f"{out}: cannot be written: {error.strerror}") from None
    return status


if __name__ == "__main__":
    sys.exit(main())
