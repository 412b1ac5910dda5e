"""The search itself, with a launcher that runs nothing: what is drawn, and what is told."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from omegaconf import OmegaConf

from hydra_plugins.captioning_sweeps.optuna_sweeper import OptunaSweeper

RATE = "optimizer.lr"


class Launcher:
    """Scores each job by a function of its learning rate."""

    def __init__(self, score: Any) -> None:
        self.score = score
        self.launched: list[list[str]] = []
        self.first: list[int] = []

    def launch(self, jobs: list[list[str]], initial_job_idx: int) -> list[Any]:
        self.launched += jobs
        self.first.append(initial_job_idx)
        return [SimpleNamespace(return_value=self.score(rate(job))) for job in jobs]


def rate(job: list[str]) -> float:
    (value,) = (each.partition("=")[2] for each in job if each.startswith(f"{RATE}="))
    return float(value)


def search(folder: Path, trials: int, score: Any = lambda x: -abs(x - 0.3), **changed: Any) -> Any:
    settings: dict[str, Any] = {
        "n_trials": trials, "n_jobs": 1, "n_startup_trials": 20, "seed": 0, "storage": None,
        "params": {RATE: "interval(0.0, 1.0)"},
    }  # fmt: skip
    sweeper = OptunaSweeper(**settings | changed)
    sweeper.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder / "search")}}})
    sweeper.launcher = Launcher(score)  # type: ignore[assignment]
    sweeper.sweep(["data.root=x"])
    return sweeper.launcher


def test_a_search_that_goes_on_draws_other_values(tmp_path: Path) -> None:
    first, then = search(tmp_path, 3), search(tmp_path, 8)
    assert (len(first.launched), len(then.launched)) == (3, 5)
    assert len({rate(job) for job in first.launched + then.launched}) == 8
    assert then.first == [3, 4, 5, 6, 7]
    assert all("data.root=x" in job for job in first.launched)
    assert search(tmp_path, 8).launched == []


def test_the_same_search_elsewhere_draws_the_same_values(tmp_path: Path) -> None:
    assert search(tmp_path / "a", 4).launched == search(tmp_path / "b", 4).launched
    assert search(tmp_path / "c", 4, seed=1).launched != search(tmp_path / "a", 5).launched[:4]


def test_the_highest_score_is_the_best_and_nan_is_a_failure(tmp_path: Path) -> None:
    ran = search(tmp_path, 8, lambda x: math.nan if x > 0.7 else None if x < 0.2 else x)
    rates = [rate(job) for job in ran.launched]
    assert any(x > 0.7 for x in rates)  # or nothing is shown
    good = [x for x in rates if 0.2 <= x <= 0.7]
    found = OmegaConf.load(tmp_path / "search" / "optimization_results.yaml")
    assert found.best_value == pytest.approx(max(good))
    assert found.best_params == {RATE: pytest.approx(max(good))}
    storage = f"sqlite:///{tmp_path / 'search' / 'optuna.db'}"
    (name,) = optuna.get_all_study_names(storage)
    states = [
        trial.state.name for trial in optuna.load_study(study_name=name, storage=storage).trials
    ]
    assert states == ["COMPLETE" if x in good else "FAIL" for x in rates]


def test_an_interrupted_trial_is_run_again_first_with_its_values(tmp_path: Path) -> None:
    def killed(x: float) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, 3, killed)
    storage = f"sqlite:///{tmp_path / 'search' / 'optuna.db'}"
    (name,) = optuna.get_all_study_names(storage)
    (interrupted,) = optuna.load_study(study_name=name, storage=storage).trials
    after = [rate(job) for job in search(tmp_path, 3).launched]
    assert after[0] == interrupted.params[RATE]
    assert len(set(after)) == 3
