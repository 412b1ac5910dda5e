"""Real training with two DDP processes, as a single run and as a job of a multirun."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from captioning.metrics import METRICS
from captioning.reporting.per_image import read_captions
from captioning.reporting.results import Results, read_results

ROOT = Path(__file__).parents[2]

OPTIONS = (
    "encoder.weights=random", "encoder.image_size=32", "trainer=ddp",
    "trainer.precision=32-true", "trainer.accelerator=cpu", "trainer.max_epochs=1",
    "trainer.limit_train_batches=10", "trainer.log_every_n_steps=1",
    "model.hidden_dim=24", "model.embed_dim=16", "model.attention_dim=8", "optimizer.lr=0.02",
    "callbacks.ema.decay=0.3", "backend=torch", "decoding=greedy", "data.min_count=1",
    "data.batch_size=2", "data.eval_batch_size=2",
)  # fmt: skip


def run(data: Path, folder: Path, *overrides: str, program: tuple[str, ...] = ()) -> str:
    ended = subprocess.run(
        [sys.executable, *(program or (str(ROOT / "train.py"),)), *overrides, *OPTIONS,
         f"data.root={data}", f"data.cache={data.parent}"],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout
    assert "Warn" not in ended.stdout
    return ended.stdout


def check(folder: Path) -> Results:
    """Check that both processes trained, and that their validation scores equal those of one."""
    results = read_results(folder / "results.json")
    for split, count in (("dev", 9), ("test", 8)):
        assert len(read_captions(folder / f"captions_{split}.json")) == count
        assert results.data.images[split] == count
    with (folder / "logs" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    (validated,) = (row for row in rows if row["dev/CIDEr"])
    assert results.scores["dev"]["BLEU-1"] > 0
    for name in METRICS:
        if f"dev/{name}" in validated:
            assert float(validated[f"dev/{name}"]) == pytest.approx(results.scores["dev"][name])
    steps = [int(row["step"]) for row in rows if row["train/loss"]]
    assert len(steps) == 10
    return results


@pytest.mark.slow
def test_two_processes_alone(data: Path, tmp_path: Path, compiling: None) -> None:
    out = run(data, tmp_path, "hydra.run.dir=run", "trainer.devices=2")
    assert out.count("Epoch 1 of 1") == 1
    check(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


ALONE = """
import runpy, sys
import torch.distributed
from captioning.training import fit
score = fit.score_split
def seen(*arguments):
    assert not torch.distributed.is_initialized()
    return score(*arguments)
fit.score_split = seen
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


@pytest.mark.slow
def test_one_process_scores_without_a_process_group(
    data: Path, tmp_path: Path, compiling: None
) -> None:
    """NCCL, which is also used with one GPU, cannot gather captions from CPU memory."""
    program = "-c", ALONE, str(ROOT / "train.py")
    run(data, tmp_path, "hydra.run.dir=run", "trainer.devices=1", program=program)
    assert read_results(tmp_path / "run" / "results.json").data.images["test"] == 8


def test_two_processes_in_a_multirun(data: Path, tmp_path: Path, compiling: None) -> None:
    out = run(data, tmp_path, "-m", "trainer.devices=2", "model.dropout=choice(0.1)")
    assert out.count("Epoch 1 of 1") == 1
    assert "1 finished, 0 failed" in out
    (folder,) = (tmp_path / "runs" / "sweep").iterdir()
    check(folder / "model.dropout=0.1")
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["model.dropout=0.1"]
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["sweep"]
