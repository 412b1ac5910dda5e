"""Sweeps and searches use dev scores only, never test scores."""

import json
from pathlib import Path

import pytest

from captioning.metrics.registry import STANDARD_SCORES
from captioning.reporting.provenance import versions
from captioning.reporting.results import Data, Results, write_results
from captioning.sweeps.jobs import optimized_score
from captioning.sweeps.summary import summarise, swept_runs


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two jobs: the one that is better on dev is worse on test, and in every other score."""
    for dropout, dev, test in ((0.3, 0.6, 0.4), (0.5, 0.5, 0.9)):
        folder = tmp_path / f"model.dropout={dropout}"
        config = {"model": {"dropout": dropout}, "seed": 0}
        scores = {
            split: dict.fromkeys(STANDARD_SCORES, 1 - dev) | {"CIDEr": cider}
            for split, cider in (("test", test), ("dev", dev))
        }
        write_results(
            folder / "results.json",
            Results(
                name="a", command="", config=config, versions=versions(), commit=None, seconds={},
                data=Data(name="d", fingerprint="0", images={"dev": 1, "test": 1}), scores=scores,
            ),
        )  # fmt: skip
        job = {
            "overrides": [f"model.dropout={dropout}"], "config": config, "data": "0",
            "command": "", "logging": {},
        }  # fmt: skip
        (folder / "job.json").write_text(json.dumps(job))
    return tmp_path


def test_the_objective_is_the_dev_cider(sweep: Path) -> None:
    assert optimized_score(sweep / "model.dropout=0.3") == 0.6
    assert [run.score for run in swept_runs(sweep)] == [0.6, 0.5]


def test_the_summary_chooses_the_best_run_on_dev(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sweep.parent)
    assert summarise(sweep) == 0
    page = (sweep / "sweep.html").read_text()
    assert page.index("model.dropout=0.3") < page.index("model.dropout=0.5")
    assert "60.0" in page
    assert "90.0" not in page
    markdown = (sweep / "leaderboard.md").read_text()
    assert "best by CIDEr on test" not in markdown + capsys.readouterr().out


def test_the_status_says_that_the_leaderboard_lacks_a_job(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sweep / "model.dropout=0.7").mkdir()
    (sweep / "model.dropout=0.7" / "results.json").write_text("{")
    assert summarise(sweep) == 1
    said = capsys.readouterr()
    assert "model.dropout=0.7/results.json: not JSON" in said.err
    assert "2 finished, 0 failed" in said.out


def test_a_sweep_of_which_no_job_has_ended_needs_no_leaderboard(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sweep.glob("*/results.json"):
        path.unlink()
    assert summarise(sweep) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "0 finished, 0 failed" in said.out
    assert not (sweep / "leaderboard.md").exists()
