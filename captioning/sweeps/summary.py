"""The summary at the end of a multirun: outcomes, leaderboard, and a figure of the scores.

leaderboard.md, .csv, .html   the runs, best first
sweep.png, sweep.html         the dev score plotted against the settings that vary
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from captioning.apps import leaderboard
from captioning.reporting.sweep_figure import SweptRun, write_sweep
from captioning.sweeps.jobs import OPTIMIZED_METRIC, optimized_score, read_failure, read_job


def summarise(folder: Path) -> int:
    """Print and write the summary of all jobs in a sweep's folder, including earlier multiruns.

    Returns:
        The status of the leaderboard: 1 if it could not be made of all finished jobs, else 0.

    Raises:
        CaptioningError: a job's files cannot be read, or the summary cannot be written.
    """
    folder = Path(os.path.relpath(folder))  # so that the written files hold no absolute paths
    status = 0
    runs = swept_runs(folder)
    if any(run.reason or run.score is not None for run in runs):
        status = leaderboard.main([str(folder)])
    if runs:
        for path in write_sweep(folder, runs, " ".join(OPTIMIZED_METRIC)):
            print(f"Wrote {path}")
    failed = [run for run in runs if run.reason]
    finished = sum(run.score is not None for run in runs)
    print(f"{finished} finished, {len(failed)} failed in {folder}")
    if failed:
        print("Run the same command again to run the unfinished jobs.")
    return status


def swept_runs(folder: Path) -> list[SweptRun]:
    """Read the jobs of a sweep. Each gets a value for every key that any of them overrides."""
    files = {path.parent for name in ("job.json", "failed.json") for path in folder.rglob(name)}
    runs, configs = [], []
    for path in sorted(files):
        job, failure = read_job(path), read_failure(path)
        overrides = job.overrides if job else failure.overrides if failure else []
        score = optimized_score(path) if job and (path / "results.json").is_file() else None
        reason = failure.reason if failure else None
        runs.append(SweptRun(path, parse_overrides(overrides), score, reason))
        configs.append(job.config if job else {})
    keys = list(dict.fromkeys(key for run in runs for key in run.values))
    return [
        replace(run, values={key: run.values.get(key) or lookup(config, key) for key in keys})
        for run, config in zip(runs, configs, strict=True)
    ]


def parse_overrides(overrides: Sequence[str]) -> dict[str, str]:
    """Turn ``key=value`` overrides into a dictionary, without a leading ``+``."""
    return {key.lstrip("+"): value for key, _, value in (each.partition("=") for each in overrides)}


def lookup(config: Mapping[str, Any], key: str) -> str:
    """The value of a dotted key in a configuration as text; ``-`` if there is none."""
    found: Any = config
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return "-" if found is None or isinstance(found, Mapping) else str(found)
