"""What one waits for every day: a leaderboard of 200 runs, and a report of 1,000 images."""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.features import write_photographs
from benchmarks.measure import Figure, seconds
from benchmarks.startup import ROOT
from captioning.reporting.gallery import GalleryImage
from captioning.reporting.report import write_report

RUN = ROOT / "docs" / "results" / "flickr8k" / "attn_lstm_seed0_again"  # which others are made from
RUNS, IMAGES, WORDS = 200, 1000, 11


def run(rounds: int) -> list[Figure]:
    """Time the leaderboard as a command, and the report as a function that runs call."""
    return [leaderboard(rounds), report(rounds)]


def leaderboard(rounds: int, runs: int = RUNS) -> Figure:
    """Time ``python -m captioning leaderboard`` of runs with two seeds for each configuration."""
    with tempfile.TemporaryDirectory() as folder:
        make_runs(Path(folder), runs)
        command = [sys.executable, "-m", "captioning", "leaderboard", folder]

        def work() -> None:
            subprocess.run(command, check=True, capture_output=True, cwd=ROOT)

        taken = statistics.median(seconds(work) for _ in range(max(3, rounds)))
    note = "with intervals and paired comparisons over 1,000 images; text, Markdown, CSV and HTML"
    return Figure(f"leaderboard of {runs} runs", taken, "s", note=note, goal_value=3)


def make_runs(folder: Path, runs: int) -> None:
    """Runs on Flickr8k's test split, whose statistics are those of a real run, drawn anew."""
    results = json.loads((RUN / "results.json").read_text())
    written = json.loads((RUN / "statistics_test.json").read_text())
    generator = np.random.default_rng(0)
    for number in range(runs):
        place = folder / f"{number}"
        place.mkdir()
        results["config"]["seed"] = number % 2
        results["config"]["model"]["attention_dim"] = 1 + number // 2
        for scores in results["scores"].values():
            scores["CIDEr"] = float(generator.uniform(0.4, 0.6))
        (place / "results.json").write_text(json.dumps(results))
        drawn = generator.integers(len(written["images"]), size=len(written["images"]))
        tables = {name: [rows[n] for n in drawn] for name, rows in written["tables"].items()}
        (place / "statistics_test.json").write_text(json.dumps(written | {"tables": tables}))


def report(rounds: int, images: int = IMAGES) -> Figure:
    """Time a report with photographs and the attention of every word."""
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        shutil.copy(RUN / "results.json", place)
        gallery = [gallery_image(path, generator) for path in write_photographs(place, images)]
        taken = statistics.median(
            seconds(lambda: write_report(place, "test", gallery, progress=False))
            for _ in range(max(3, rounds))
        )
        size = (place / "report.html").stat().st_size / 1e6
    note = f"{size:.0f} MB, with photographs of 500 x 375 and the attention of {WORDS} words each"
    return Figure(f"report of {images:,} images", taken, "s", note=note, goal_value=5)


def gallery_image(path: Path, generator: np.random.Generator) -> GalleryImage:
    """A photograph with a caption, references, a score and random attention."""
    attention: Any = generator.dirichlet(np.ones(14 * 14), WORDS).reshape(WORDS, 14, 14)
    caption = " ".join(["word"] * WORDS)
    return GalleryImage(path.name, path, [caption] * 5, caption, {"CIDEr": 0.5}, attention)
