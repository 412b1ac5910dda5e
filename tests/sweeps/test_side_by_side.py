"""Jobs that run side by side give the results of the same runs alone, with real training."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from captioning.reporting.per_image import read_captions
from captioning.reporting.results import read_results

ROOT = Path(__file__).parents[2]

OPTIONS = (
    "encoder.weights=random", "encoder.image_size=32", "trainer.max_epochs=1",
    "trainer.limit_train_batches=5", "trainer.log_every_n_steps=1", "model.hidden_dim=24",
    "model.embed_dim=16", "model.attention_dim=8", "optimizer.lr=0.02", "decoding=greedy",
    "data.min_count=1", "data.batch_size=2", "data.eval_batch_size=2",
)  # fmt: skip


def losses(folder: Path) -> list[str]:
    """The training losses of a run, as they were written."""
    with (folder / "logs" / "metrics.csv").open() as file:
        return [row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]]


@pytest.mark.slow
def test_jobs_side_by_side_give_the_results_of_runs_alone(
    data: Path, tmp_path: Path, compiling: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which is what a job with one core gets

    def train(*overrides: str) -> str:
        ended = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *overrides, *OPTIONS,
             f"data.root={data}", f"data.cache={data.parent}"],
            cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=300, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stdout
        return ended.stdout

    out = train("-m", "seed=0,1", "hydra/launcher=ray_local", "hydra.launcher.ray.init.num_cpus=2")
    assert "2 finished, 0 failed" in out
    (sweep,) = (tmp_path / "runs" / "sweep").iterdir()
    for seed in (0, 1):
        alone, job = tmp_path / f"alone{seed}", sweep / f"seed={seed}"
        train(f"seed={seed}", f"hydra.run.dir={alone}")
        assert losses(job) == losses(alone)
        assert len(losses(job)) == 5
        for split in ("dev", "test"):
            captions = f"captions_{split}.json"
            assert read_captions(job / captions) == read_captions(alone / captions)
        ours, theirs = (read_results(each / "results.json") for each in (job, alone))
        assert ours.scores == theirs.scores
    assert losses(sweep / "seed=0") != losses(sweep / "seed=1")
