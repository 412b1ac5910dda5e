"""The order of a run, with a stub captioner whose dev scores are scripted."""

import csv
import inspect
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from captioning.captioner import Captioner
from captioning.data.datamodule import CaptionDataModule
from captioning.models.decoders.base import Decoder
from captioning.objectives import CrossEntropy
from captioning.reporting.results import Results
from captioning.support.errors import CaptioningError
from captioning.support.signals import Stopped
from captioning.training import fit as fitting
from captioning.training.callbacks import make_callbacks
from captioning.training.limits import check_splits
from captioning.training.schedules import build_scheduler

CONF = Path(__file__).parents[2] / "conf"
LIGHTNING = "pytorch_lightning.callbacks"
STEPS = 3
"""Batches an epoch."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
]


def without_hooks_of(ours: type, lightnings: type) -> Callable[[type], Any]:
    """A subclass of ours with the hooks of Lightning's class, except those that it defines."""

    def restore(cls: type) -> type:
        bases = [base for base in ours.__mro__ if base not in lightnings.__mro__]
        for name in {name for base in bases for name in vars(base)}:
            if hasattr(lightnings, name) and name not in vars(cls) and not name.startswith("__"):
                setattr(cls, name, inspect.getattr_static(lightnings, name))
        return cls

    return restore


class StubEncoder(nn.Module):
    """An encoder without parameters, and what is said of it."""

    name, weights_source, fingerprint = "stub", "none", "0"


class StubDecoder(Decoder):
    """A decoder that has one weight and is not asked for captions."""

    vocabulary_size = 4
    prepare = start = step = forward = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1))


@without_hooks_of(Captioner, pl.LightningModule)
class Stub(Captioner):
    """Its weight is the number of steps that were made, and its dev scores are given.

    It has what :mod:`captioning.training.fit` asks of a captioner.
    """

    script: ClassVar[Sequence[float]] = ()
    loaded: ClassVar[list[Path]] = []
    built: ClassVar[list[dict[str, Any]]] = []
    encoder: Any = StubEncoder()

    def __init__(self, **given: Any) -> None:
        pl.LightningModule.__init__(self)
        Stub.built.append(given)
        self.scheduler_spec = given.get("scheduler")
        self.backend = given.get("backend", "auto")
        self.decoder = StubDecoder()
        self.objective = CrossEntropy()
        self.rates: list[float] = []

    @classmethod
    def load_from_checkpoint(cls, path: Any, **_: Any) -> "Stub":  # type: ignore[override]
        cls.loaded.append(Path(path))
        captioner = cls()
        captioner.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
        return captioner

    def set_references(self, *_: Any) -> None:
        pass

    def build_optimizer(self, total_steps: int) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        constant = {"_target_": "captioning.training.schedules.Constant"}
        return optimizer, build_scheduler(self.scheduler_spec or constant, optimizer, total_steps)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        loss = -self.decoder.weight.sum()  # whose gradient is -1: a step of SGD adds its rate
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        score = self.script[min(self.current_epoch, len(self.script) - 1)]
        self.log_dict({"dev/CIDEr": score, "dev/BLEU-4": 1 - score, "dev/loss": 1.0})

    def configure_optimizers(self) -> Any:
        steps = int(self.trainer.estimated_stepping_batches)
        optimizer, scheduler = self.build_optimizer(steps)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


@without_hooks_of(CaptionDataModule, pl.LightningDataModule)
class StubData(CaptionDataModule):
    """Batches that nothing is learned from, and what is written of a data set."""

    def __init__(self) -> None:
        pl.LightningDataModule.__init__(self)
        self.data_name = "stub"
        self.corpus: Any = SimpleNamespace(fingerprint="0")

    def read_text(self) -> None:
        self.vocabulary = type("Words", (), {"to_list": lambda _: ["a"], "__len__": lambda _: 5})()

    def open_features(self, *_: Any) -> None:
        pass

    load_resident = write_text = open_features

    def images(self, split: str) -> list[str]:
        return ["image"]

    def references(self, split: str) -> dict[str, list[str]]:
        return {"image": ["a"]}

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.ones(STEPS, 1))

    def val_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.ones(1, 1))


class Ran(SimpleNamespace):
    """What a run did.

    Its ``weights`` are, for each split, the number of steps behind the weights that were scored;
    ``loaded`` are the checkpoints that were read, and ``epochs`` the number of epochs.
    """


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Train by ``fit.train`` with the configuration of ``train.yaml``."""

    def run(
        scores: Sequence[float], *overrides: str, epochs: int = 5, show: Any = lambda *_: None
    ) -> Ran:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("train", ["name=stub", "data.root=x", "trainer.accelerator=cpu",
                                       "trainer.precision=32-true",
                                       "scheduler=constant", f"trainer.max_epochs={epochs}",
                                       *overrides])  # fmt: skip
        plain: Any = OmegaConf.to_container(config, resolve=True)
        plain["callbacks"].pop("ema", None)  # so that weights are numbers of steps
        ran = Ran(folder=tmp_path, trainer=None, weights=[], record=None)
        Stub.loaded, Stub.built, Stub.script = [], [], scores

        def build(spec: Any, base: Any, key: str, **given: Any) -> Any:
            return StubData() if key == "data" else plain_build(spec, base, key, **given)

        def score(tester: Any, captioner: Any, data: Any, split: str, *_: Any) -> Any:
            ran.weights.append((split, captioner.decoder.weight.item()))
            ran.captioner = captioner
            return SimpleNamespace(gallery=["image"], corpus={"CIDEr": 0.5}, references="0")

        def record(*given: Any, **_: Any) -> Any:
            ran.record = given
            scores = {"dev": {"CIDEr": 0.5}, "test": {"CIDEr": 0.4}}
            return Results.model_construct(scores=scores)

        def make(*given: Any, **named: Any) -> Any:
            made = make_trainer(*given, **named)
            ran.trainer = ran.trainer or made  # the later ones decode
            return made

        plain_build, make_trainer = fitting.build, fitting.make_trainer
        for name, stand_in in {
            "Captioner": Stub, "build": build, "score_split": score, "write_record": record,
            "make_trainer": make, "identify": lambda *_: None, "write_report": lambda *_: None,
            "show_results": show,
        }.items():  # fmt: skip
            monkeypatch.setattr(fitting, name, stand_in)
        try:
            fitting.train(plain, tmp_path, "python train.py")
        finally:
            ran.loaded, ran.built = Stub.loaded, Stub.built
            monkeypatch.undo()
        ran.epochs = ran.trainer.current_epoch
        return ran

    return run


def test_the_best_epoch_is_scored_and_not_the_last_one(run: Any) -> None:
    ran = run([0.1, 0.5, 0.3, 0.2], epochs=4)
    assert ran.epochs == 4
    assert ran.weights == [("dev", 2 * STEPS), ("test", 2 * STEPS)]
    assert ran.loaded == [ran.folder / "checkpoints" / "best.ckpt"]
    last = torch.load(ran.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["epoch"] == 3
    assert last["state_dict"]["decoder.weight"].item() == 4 * STEPS
    assert {path.name for path in (ran.folder / "checkpoints").iterdir()} == {
        "best.ckpt",
        "last.ckpt",
    }


def test_the_first_of_equal_epochs_is_the_best(run: Any) -> None:
    assert run([0.1, 0.5, 0.5], epochs=3).weights[0] == ("dev", 2 * STEPS)


def test_training_stops_four_epochs_after_the_highest_score(run: Any) -> None:
    ran = run([0.1, 0.5, 0.4, 0.3, 0.2, 0.1], epochs=9)
    assert ran.epochs == 6
    assert run([0.1 * n for n in range(1, 9)], epochs=8).epochs == 8  # while it rises


def test_a_metric_of_which_less_is_better(run: Any) -> None:
    ran = run(
        [0.4, 0.1, 0.2, 0.3, 0.4], "callbacks.best_checkpoint.mode=min",
        "callbacks.early_stopping.mode=min", "callbacks.early_stopping.patience=2", epochs=5,
    )  # fmt: skip
    assert ran.epochs == 4
    assert ran.weights[0] == ("dev", 2 * STEPS)


def test_the_paper_selects_its_model_by_bleu(run: Any) -> None:
    """Which the stub has lowest where CIDEr is highest."""
    ran = run([0.4, 0.5, 0.1, 0.2], "callbacks.best_checkpoint.monitor=dev/BLEU-4", epochs=4)
    assert ran.weights[0] == ("dev", 3 * STEPS)


@pytest.mark.parametrize("removed", ["callbacks=none", "~callbacks.best_checkpoint"])
def test_without_a_best_checkpoint_the_last_weights_are_scored(run: Any, removed: str) -> None:
    ran = run([0.9, 0.1], removed, epochs=2)
    assert ran.loaded == []
    assert ran.weights[0] == ("dev", 2 * STEPS)


def test_a_trial_of_one_batch_is_scored_too(run: Any) -> None:
    ran = run([0.5], "+trainer.fast_dev_run=true")
    assert ran.weights == [("dev", 1), ("test", 1)]
    assert not (ran.folder / "checkpoints").exists()


def test_the_learning_rate_follows_the_schedule_to_its_end(run: Any) -> None:
    ran = run(
        [0.5], "~callbacks.best_checkpoint", "scheduler=warmup_cosine", "scheduler.warmup=0.25",
        "scheduler.final=0.1", epochs=4,
    )  # fmt: skip
    rates = ran.captioner.rates
    assert len(rates) == 4 * STEPS
    assert rates[:4] == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])
    cosine = (1 + torch.cos(torch.tensor(torch.pi * 8 / 9)).item()) / 2
    assert rates[-1] == pytest.approx(0.1 + 0.9 * cosine)


def test_lightnings_own_callbacks_are_added_by_their_path(run: Any) -> None:
    ran = run(
        [0.1, 0.5, 0.3, 0.2, 0.1], "~callbacks.early_stopping", "~callbacks.best_checkpoint",
        f"+callbacks.rates._target_={LIGHTNING}.LearningRateMonitor",
        f"+callbacks.stop._target_={LIGHTNING}.EarlyStopping", "+callbacks.stop.mode=max",
        "+callbacks.stop.monitor=dev/CIDEr", "+callbacks.stop.patience=1",
        f"+callbacks.kept._target_={LIGHTNING}.ModelCheckpoint", "+callbacks.kept.mode=max",
        "+callbacks.kept.monitor=dev/CIDEr", "+callbacks.kept.save_top_k=2",
        "trainer.log_every_n_steps=1",
    )  # fmt: skip
    assert ran.epochs == 3
    assert ran.weights[0] == ("dev", 2 * STEPS)
    assert len(list((ran.folder / "checkpoints").glob("epoch=*.ckpt"))) == 2
    with (ran.folder / "logs" / "metrics.csv").open() as file:
        rates = [row["lr-SGD"] for row in csv.DictReader(file) if row["lr-SGD"]]
    assert rates == ["1.0"] * 3 * STEPS


def test_the_columns_of_the_log(run: Any) -> None:
    ran = run([0.1, 0.2], "trainer.log_every_n_steps=1", epochs=2)
    with (ran.folder / "logs" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"train/loss_step", "train/loss_epoch", "dev/loss", "dev/BLEU-4"} <= rows[0].keys()
    assert [row["dev/CIDEr"][:3] for row in rows if row["dev/CIDEr"]] == ["0.1", "0.2"]
    assert [row["final/test/CIDEr"] for row in rows if row["final/test/CIDEr"]] == ["0.4"]


def test_what_is_recorded(run: Any) -> None:
    ran = run([0.1], "seed=3", "backend=torch", epochs=1)
    folder, config, name, command, captioner, _, decoding, found, seconds, computed = ran.record
    assert (folder, name, command) == (ran.folder, "stub", "python train.py")
    assert config["seed"] == 3
    assert captioner is ran.captioner
    assert type(decoding).__name__ == "Beam"
    assert decoding.beam_size == 5
    assert list(found) == ["dev", "test"]
    assert list(seconds) == ["data", "features", "training", "score dev", "score test"]
    assert computed.precision == "32-true"
    assert computed.backend.asked == "torch"
    assert set(computed.backend.ops.values()) == {"torch"}
    assert computed.threads == torch.get_num_threads()
    (first, *_) = ran.built
    assert first["backend"] == "torch"
    assert first["encoder_lr"] == 1e-5
    assert first["vocabulary"] == ["a"]
    parts = ("encoder", "model", "objective", "optimizer", "scheduler", "validation")
    assert all(first[part] == config[part] for part in parts)


def test_an_entry_that_is_no_callback_is_one_sentence(tmp_path: Path) -> None:
    for specs, parts in (
        ({"ema": 0.9}, ["callbacks.ema=0.9", "null"]),
        ({"ema": {"decay": 0.9}}, ["callbacks.ema._target_ is missing", "Callback"]),
        ({"mine": {"_target_": "os.system"}}, ["callbacks.mine._target_=os.system", "not a"]),
        (
            {
                "mine": {
                    "_target_": "pytorch_lightning.callbacks.LearningRateMonitor",
                    "logging_intervall": 1,
                }
            },
            ["callbacks.mine.logging_intervall", "did you mean logging_interval"],
        ),
    ):
        with pytest.raises(CaptioningError) as error:
            make_callbacks(specs, tmp_path)
        assert all(part in str(error.value) for part in parts), error.value


def test_an_entry_that_is_null_is_left_out(tmp_path: Path) -> None:
    assert make_callbacks({"ema": None}, tmp_path) == []


def test_a_value_that_nobody_logs_cannot_be_monitored(run: Any) -> None:
    with pytest.raises(CaptioningError, match=r"Training cannot go on: .*dev/CIDR"):
        run([0.5], "callbacks.best_checkpoint.monitor=dev/CIDR", epochs=1)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["trainer.limit_train_batches=0"], ["trainer.limit_train_batches=0", "nothing to train"]),
        (["trainer.limit_train_batches=0.01"], ["limit_train_batches"]),
        (["trainer.max_epochs=0"], ["trainer.max_epochs=0", "nothing to train"]),
        (["+trainer.max_steps=0"], ["trainer.max_steps=0", "nothing to train"]),
        (["+trainer.max_time=00:00:00:00"], ["trainer.max_time", "no time"]),
        (["trainer.limit_test_batches=0"], ["trainer.limit_test_batches=0", "nothing to score"]),
        (
            ["trainer.limit_val_batches=0"],
            ["trainer.limit_val_batches=0", "dev/CIDEr", "~callbacks.best_checkpoint"],
        ),
        (
            ["+trainer.check_val_every_n_epoch=5"],
            ["trainer.check_val_every_n_epoch=5", "trainer.max_epochs=3", "dev/CIDEr"],
        ),
        (["+trainer.val_check_interval=99"], ["val_check_interval", "(99)"]),
    ],
)
def test_a_limit_that_leaves_nothing_is_one_sentence_before_training(
    run: Any, overrides: list[str], parts: list[str]
) -> None:
    with pytest.raises(CaptioningError) as error:
        run([0.5], *overrides, epochs=3)
    assert all(part in str(error.value) for part in parts), error.value
    assert "\n" not in str(error.value)


def test_a_fraction_of_the_test_batches_that_is_none_is_known_before_training() -> None:
    class Nine(StubData):
        def evaluation_dataloader(self, split: str) -> Any:
            return torch.utils.data.DataLoader(torch.ones(9, 1))

    def trainer(limit: float) -> pl.Trainer:
        return pl.Trainer(accelerator="cpu", logger=False, limit_test_batches=limit)

    check_splits(trainer(0.2), Nine())
    with pytest.raises(CaptioningError, match=r"limit_test_batches=0.1 of the 9 batches of dev"):
        check_splits(trainer(0.1), Nine())


def test_without_a_dev_score_a_run_without_a_best_checkpoint_is_scored(run: Any) -> None:
    ran = run([0.9], "callbacks=none", "trainer.limit_val_batches=0", epochs=1)
    assert ran.weights[0] == ("dev", STEPS)


@pytest.mark.parametrize("overrides", [[], ["+trainer.min_epochs=2"]])
def test_training_that_ends_within_an_epoch_is_validated_there(
    run: Any, overrides: list[str]
) -> None:
    ran = run([0.1, 0.5], f"+trainer.max_steps={STEPS + 1}", *overrides)
    assert ran.weights[0] == ("dev", STEPS + 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_a_run_with_the_checkpoint_of_its_last_complete_epoch(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    step, steps = Stub.training_step, []

    def interrupted(self: Stub, batch: Tensor, batch_idx: int) -> Tensor:
        steps.append(batch_idx)
        if len(steps) == STEPS + 2:
            os.kill(os.getpid(), number)
        return step(self, batch, batch_idx)

    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Stub, "training_step", interrupted)
    with pytest.raises(Stopped) as stopped:
        run([0.1, 0.5], epochs=3)
    signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
    assert stopped.value.signal == number
    assert len(steps) == STEPS + 2
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {
        "best.ckpt",
        "last.ckpt",
    }
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert (last["epoch"], last["global_step"]) == (0, STEPS)


def test_the_files_of_a_run_are_complete_before_anything_is_printed(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``train.py | head -1`` may end while the table of scores is printed."""
    complete = []

    def show(*_: Any) -> None:
        complete.append("final/test/CIDEr" in (tmp_path / "logs" / "metrics.csv").read_text())

    run([0.1], epochs=1, show=show)
    assert complete == [True]


def test_what_a_killed_run_was_writing_is_removed_when_it_goes_on(run: Any, tmp_path: Path) -> None:
    left = tmp_path / "checkpoints" / ".last.ckpt.99999999.0123abcd.tmp"
    left.parent.mkdir()
    left.touch()
    run([0.1], epochs=1)
    assert not left.exists()
