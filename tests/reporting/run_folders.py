"""Folders of made-up runs, and the rows of their leaderboard."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from captioning.metrics.statistics import Statistics
from captioning.reporting.per_image import write_statistics

IMAGES = [f"{number}.jpg" for number in range(200)]


def write_run(
    folder: Path,
    name: str,
    ciders: np.ndarray,
    *,
    seed: int | None = None,
    dev: float | None = None,
    scores: dict[str, float] | None = None,
    config: dict[str, Any] | None = None,
    images: int = len(IMAGES),
    leave_one_out: int | None = None,
    **data: Any,
) -> Path:
    """A run whose CIDEr is the mean of ``ciders``, with its statistics."""
    folder.mkdir(parents=True)
    test = {"CIDEr": float(ciders.mean()), "BLEU-4": 0.2} | (scores or {})
    content = {
        "schema": 1, "name": name, "created": "2026-11-23T05:49:53Z", "command": "", "commit": None,
        "config": (config or {}) | ({} if seed is None else {"seed": seed}),
        "data": {"name": "flickr8k", "fingerprint": "f", "images": {"test": images}} | data,
        "versions": {}, "free_running": True, "seconds": {}, "leave_one_out": leave_one_out,
        "scores": {"test": test} | ({} if dev is None else {"dev": {"CIDEr": dev}}),
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(content))
    write_statistics(
        folder / "statistics_test.json",
        Statistics(tuple(IMAGES), {"CIDEr": ciders[:, None]}, "r"),
    )
    return folder


def rows_of(folder: Path) -> list[dict[str, str]]:
    """The rows of a folder's ``leaderboard.csv``."""
    with (folder / "leaderboard.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def ciders(seed: int, mean: float) -> np.ndarray:
    """Made-up CIDEr of every image, of about that mean."""
    return np.random.default_rng(seed).gamma(4, mean / 4, len(IMAGES))
