"""``python -m faults [PART ...]``: break things, count, and save; see ``docs/reliability.md``."""

import argparse
import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from rich.console import Console
from rich.table import Table

from captioning.reporting.provenance import commit
from captioning.support.files import atomic_write_json, atomic_write_text
from faults.outcome import SUCCESSES
from faults.record import HEADER, Record, fill, record_of, rows, total

PARTS: Final = ("checkpoints", "kills", "readers", "file_system", "signals", "images")
DOCS: Final = Path(__file__).parents[1] / "docs"
NAME: Final = "reliability.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts one after the other; returns 1 if a try failed.

    The record is saved after each part. Parts that are not run keep their figures in it. If it is
    the one in docs/results, the table of docs/reliability.md is updated, too.
    """
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; or all")
    parser.add_argument("--tries", type=int, help="tries of each part (default: the part's own)")
    parser.add_argument("--seed", type=int, default=0, help="the cases are drawn from it")
    parser.add_argument("--out", type=Path, default=DOCS / "results", help=f"the folder of {NAME}")
    options = parser.parse_args(arguments)
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]}: choose from {', '.join(PARTS)}")

    console = Console()
    out = options.out / NAME
    records: dict[str, Record] = json.loads(out.read_text()) if out.exists() else {}
    ran: dict[str, Record] = {}
    for part in options.parts or PARTS:
        ran[part] = run(part, options.tries, options.seed, console)
        merged = records | ran
        merged = {name: merged[name] for name in PARTS if name in merged}
        atomic_write_json(out, merged)
        page = DOCS / "reliability.md"
        if options.out == DOCS / "results":
            atomic_write_text(page, fill(page.read_text(), merged))
    console.print(table(ran))
    console.print(f"The figures are in {out}.", highlight=False)
    return 1 if total(rows(ran))[1] else 0


def run(part: str, tries: int | None, seed: int, console: Console) -> Record:
    """Run one part in a new folder, and print each try that fails."""
    module = importlib.import_module(f"faults.{part}")
    start = time.perf_counter()
    found = []
    with TemporaryDirectory(prefix=f"faults-{part}-", ignore_cleanup_errors=True) as folder:
        for each in module.run(tries or module.DEFAULT_TRIES, Path(folder), seed):
            found.append(each)
            if each.outcome not in SUCCESSES:
                said = f"{part}: {each.kind}, {each.case}: {each.outcome}: {each.detail}"
                console.print(said, markup=False, highlight=False)
    seconds = time.perf_counter() - start
    console.print(f"{part}: {len(found):,} tries in {seconds:.0f} s", highlight=False)
    return record_of(found, seed=seed, seconds=seconds, commit=commit(Path(__file__)))


def table(records: dict[str, Record]) -> Table:
    """The table that is printed: one row a kind, and the sum."""
    drawn = Table()
    for name in HEADER:
        drawn.add_column(name, justify="right" if name in HEADER[2:] else "left", overflow="fold")
    found = rows(records)
    for part, kind, tries, failures in found:
        drawn.add_row(part, kind, f"{tries:,}", f"{failures:,}")
    drawn.add_section()
    drawn.add_row("all", "", *(f"{number:,}" for number in total(found)))
    return drawn


if __name__ == "__main__":
    sys.exit(main())
