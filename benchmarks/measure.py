"""Measure two implementations in one run, and print the results."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from captioning.data.features.extraction import choose_precision


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        name: what was measured.
        value: the number.
        unit: the unit of the number; rates end in ``/s``.
        reference: the number for the reference implementation, measured in the same run.
        ratio: how many times better than the reference, as the median over pairs of runs.
        floor: the best value that the machine's arithmetic rate allows, in the same unit.
        note: a remark for the reader.
        goal_ratio: the ratio that is to be reached.
        goal_value: the value that is to be reached: the least of a rate, the greatest of others.
    """

    name: str
    value: float
    unit: str
    reference: float | None = None
    ratio: float | None = None
    floor: float | None = None
    note: str = ""
    goal_ratio: float | None = None
    goal_value: float | None = None

    @property
    def goal(self) -> str:
        """The goal and whether it is met; empty without a goal."""
        goals = []
        if self.goal_ratio is not None and self.ratio is not None:
            goals.append((f"{self.goal_ratio:.2g} x", self.ratio >= self.goal_ratio))
        if self.goal_value is not None:
            rate = self.unit.endswith("/s")
            met = self.value >= self.goal_value if rate else self.value <= self.goal_value
            goals.append((f"{self.goal_value:,g} {self.unit}", met))
        return ", ".join(text if met else f"{text}: not met" for text, met in goals)

    @property
    def row(self) -> list[str]:
        """The cells of a table row."""
        of_floor = ""
        if self.floor is not None:
            share = self.value / self.floor if self.unit.endswith("/s") else self.floor / self.value
            of_floor = f"{self.floor:.4g} ({share:.0%})"
        return [
            self.name,
            f"{self.value:.4g} {self.unit}",
            "" if self.reference is None else f"{self.reference:.4g}",
            "" if self.ratio is None else f"{self.ratio:.{1 if self.ratio >= 1 else 2}f} x",
            of_floor,
            self.goal,
        ]


def seconds(work: Callable[[], object]) -> float:
    """The seconds that one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def time_in_turns(
    ours: Callable[[], object], theirs: Callable[[], object], *, rounds: int, repeat: int = 1
) -> tuple[float, float, float]:
    """Time two functions in turn, so that other load on the machine affects both.

    Args:
        ours: called ``repeat`` times in each round, and once before.
        theirs: called once in each round.
        rounds: number of rounds.
        repeat: number of calls of ``ours`` in a round, whose mean is taken.

    Returns:
        The median seconds of one call of each function, and the median ratio ``theirs / ours``.
    """
    ours()
    mine, other = [], []
    for _ in range(rounds):
        mine.append(sum(seconds(ours) for _ in range(repeat)) / repeat)
        other.append(seconds(theirs))
    ratios = [b / a for a, b in zip(mine, other, strict=True)]
    return statistics.median(mine), statistics.median(other), statistics.median(ratios)


@cache
def matrix_rate(dtype: torch.dtype, device: str = "cpu") -> float:
    """The rate of a large matrix product on a device, in FLOP/s: the highest of 30 runs."""
    size = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def multiply() -> None:
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()

    return float(2 * size**3 / min(seconds(multiply) for _ in range(30)))


@contextmanager
def fresh_process() -> Iterator[Callable[[Callable[[], object]], object]]:
    """Start a new Python process. Yields a function that calls picklable functions in it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield lambda work: pool.submit(work).result()


def machine() -> dict[str, Any]:
    """The machine and the settings of the measurements."""
    rates = {"fp32": torch.float32, "bf16": torch.bfloat16}
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "precision": native_precision(),
        "GFLOP/s": {name: round(matrix_rate(dtype) / 1e9) for name, dtype in rates.items()},
    }


def native_precision() -> str:
    """``bf16`` if the processor supports it natively, else ``fp32``, as ``train.py`` chooses."""
    return choose_precision("auto", torch.device("cpu"))


def show(title: str, figures: Sequence[Figure]) -> None:
    """Print a table of figures, and their notes below it."""
    table = Table(title=title, title_justify="left")
    for name in ("", "measured", "reference", "ratio", "floor (reached)", "goal"):
        table.add_column(name, overflow="fold")
    for figure in figures:
        table.add_row(*figure.row)
    console = Console()
    console.print(table)
    for figure in figures:
        if figure.note:
            console.print(f"{figure.name}: {figure.note}", highlight=False)


def plain(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """The figures as plain data for JSON."""
    return [asdict(figure) for figure in figures]
