"""The record of the faults, ``docs/results/reliability.json``, and the tables made from it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from faults.outcome import SUCCESSES, Try

Record = dict[str, Any]
"""A part's figures as plain data for JSON."""

HEADER: Final = ("part", "kind", "tries", "failures")
_MAX_DETAIL: Final = 500
_BEGIN: Final = "<!-- The table is written by make faults. -->"
_END: Final = "<!-- The end of the table. -->"


def record_of(tries: Sequence[Try], *, seed: int, seconds: float, commit: str | None) -> Record:
    """Count the outcomes of each kind, and keep the tries that failed.

    Args:
        tries: all tries of a part.
        seed: the seed that the cases were drawn from.
        seconds: how long the part took.
        commit: the commit of the code.
    """
    kinds: dict[str, Counter[str]] = {}
    for each in tries:
        kinds.setdefault(each.kind, Counter())[each.outcome] += 1
    return {
        "seed": seed,
        "commit": commit,
        "seconds": round(seconds, 1),
        "kinds": {kind: dict(sorted(counts.items())) for kind, counts in kinds.items()},
        "failed": [
            {**each._asdict(), "detail": each.detail[:_MAX_DETAIL]}
            for each in tries
            if each.outcome not in SUCCESSES
        ],
    }


def fill(page: str, records: Mapping[str, Record]) -> str:
    """A page with the table of these records between the two marks of a table."""
    before, _, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not end:
        raise ValueError(f"the page has no {_BEGIN} ... {_END}")
    return f"{before}{_BEGIN}\n\n{markdown(records)}\n{_END}{after}"


def rows(records: Mapping[str, Record]) -> list[tuple[str, str, int, int]]:
    """The rows of the table: part, kind, tries and failures; one row a kind, part by part."""
    found = []
    for part, record in records.items():
        for kind, counts in record["kinds"].items():
            tries = sum(counts.values())
            failures = tries - sum(counts.get(outcome, 0) for outcome in SUCCESSES)
            found.append((part, kind, tries, failures))
    return found


def total(found: Iterable[tuple[str, str, int, int]]) -> tuple[int, int]:
    """The tries and the failures of all rows."""
    listed = list(found)
    return sum(row[2] for row in listed), sum(row[3] for row in listed)


def markdown(records: Mapping[str, Record]) -> str:
    """The table of ``docs/reliability.md``."""
    found = rows(records)
    lines = [HEADER, ("---", "---", "--:", "--:")]
    lines += [(part, kind, f"{tries:,}", f"{failures:,}") for part, kind, tries, failures in found]
    tries, failures = total(found)
    lines.append(("all", "", f"{tries:,}", f"{failures:,}"))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
