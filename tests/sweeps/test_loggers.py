"""The loggers of a sweep's job, also when the job is resumed or fails."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
import yaml
from hydra import compose, initialize_config_dir
from pytorch_lightning.loggers import WandbLogger

from captioning.checkpoints import FORMAT
from captioning.sweeps import job_process
from captioning.sweeps.jobs import Job
from captioning.training import fit, loggers

ROOT = Path(__file__).parents[2]

CONFIG: dict[str, Any] = {
    "name": "attn_lstm",
    "resume": None,
    "model": {"dropout": 0.5, "_target_": "x"},
    "logger": {
        "_target_": "pytorch_lightning.loggers.WandbLogger",
        "project": "captioning",
        "name": "attn_lstm",
    },
}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("WANDB_API_KEY", "WANDB_RUN_ID", "WANDB_RUN_GROUP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()  # wandb reads the environment once per process
    yield
    wandb.teardown()


def test_a_job_is_one_run_in_the_group_of_its_sweep_and_says_that_it_failed(
    offline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model.dropout-123456" / "model.dropout=0.5"
    (folder / "checkpoints").mkdir(parents=True)
    runs, statuses = [], []
    finish = wandb.finish

    def fails(config: Any, folder: Path, command: str, made: list[Any], only_new: bool) -> None:
        (logger,) = (each for each in made if isinstance(each, WandbLogger))
        assert config["logger"] == CONFIG["logger"]  # or each seed would be another configuration
        logger.log_hyperparams(loggers.flat(config))
        runs.append(logger.experiment)
        (folder / "checkpoints" / "last.ckpt").touch()
        raise MemoryError

    def finished(exit_code: int | None = None) -> None:
        statuses.append(exit_code)
        finish(exit_code)

    quiet = {
        "version": 1,
        "disable_existing_loggers": False,
    }  # or later tests see no log
    job = Job(["model.dropout=0.5"], CONFIG, "", "python train.py", quiet)
    monkeypatch.setattr(fit, "_train", fails)
    monkeypatch.setattr(wandb, "finish", finished)
    monkeypatch.setattr(job_process, "die_with_parent", lambda: None)
    monkeypatch.setattr(job_process, "read_job", lambda folder: job)
    assert job_process.main(folder) == 1
    assert job_process.main(folder) == 1
    assert statuses == [1, 1]
    first, second = runs
    assert first.id == second.id
    assert first.group == "model.dropout-123456"
    assert first.name == "attn_lstm model.dropout=0.5"
    assert first.config["model.dropout"] == 0.5
    assert first.config["sweep"] == "model.dropout-123456"
    assert first.config["sweep.model.dropout"] == "0.5"


def test_mlflow_names_the_job_and_what_its_sweep_varies() -> None:
    logger = {"_target_": "captioning.training.mlflow_logger.MLFlowLogger", "run_name": "lstm"}
    folder = Path("runs/sweep/model.dropout-123456/model.dropout=0.5")
    found = job_process.logger_for_job(logger, folder, ["model.dropout=0.5"])
    assert found["run_name"] == "lstm model.dropout=0.5"
    assert found["tags"] == {"sweep": "model.dropout-123456", "sweep.model.dropout": "0.5"}


def test_a_continued_run_keeps_what_it_had_logged(tmp_path: Path) -> None:
    logger = loggers.make_csv_logger(tmp_path, None)
    for step in range(4):
        logger.log_metrics({"train/loss": step / 4}, step)
    logger.save()
    checkpoint = tmp_path / "last.ckpt"
    saved = {
        "format": FORMAT, "hyper_parameters": {"vocabulary": []}, "encoder": {"state_dict": {}},
        "state_dict": {}, "global_step": 3, "epoch": 0,
    }  # fmt: skip
    torch.save(saved, checkpoint)
    again = loggers.make_csv_logger(tmp_path, str(checkpoint))
    again.log_metrics({"train/loss": 9.0, "dev/CIDEr": 1.0}, 3)
    again.save()
    with (tmp_path / "logs" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["train/loss"]) for row in rows] == [
        ("0", "0.0"), ("1", "0.25"), ("2", "0.5"), ("3", "9.0"),
    ]  # fmt: skip


def test_the_documented_wandb_sweep_fits_the_configuration() -> None:
    text = (ROOT / "docs" / "sweeps.md").read_text()
    sweep = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert sweep["program"] == "train.py"
    assert sweep["metric"]["name"] == "final/dev/CIDEr"
    fixed = [each for each in sweep["command"] if "=" in each]
    swept = [
        f"{key}={values.get('min', values.get('values', [None])[0])}"
        for key, values in sweep["parameters"].items()
    ]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", overrides=[*fixed, *swept])
    assert config.logger.project == "captioning"
