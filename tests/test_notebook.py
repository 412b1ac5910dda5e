"""A notebook and ``train.py`` train the same captioner; the noise of dropout follows the seed."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import tiny
import torch
from pytorch_lightning.loggers import CSVLogger

from captioning.captioner import Captioner
from captioning.data.batch import Batch
from captioning.data.datamodule import CaptionDataModule
from captioning.kernels import backend as backends
from captioning.reporting.results import Results, read_results
from captioning.training.callbacks.ema import EMA

ROOT = Path(__file__).parents[1]

pytestmark = [pytest.mark.filterwarnings(each) for each in tiny.QUIET]

Train = Callable[..., Path]


@pytest.fixture
def train(
    drawn_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> Train:
    """Run ``python train.py OVERRIDES`` in this process; returns the run's folder."""

    def train(*overrides: str) -> Path:
        folder = tmp_path / "run"
        argv = [
            "train.py", f"data.root={drawn_pictures}", f"data.cache={tmp_path}",
            f"hydra.run.dir={folder}", f"encoder._target_={tiny.ENCODER['_target_']}",
            "encoder.weights=random", "encoder.image_size=32", "~encoder.resize", "~encoder.pool",
            "trainer.accelerator=cpu", "trainer.log_every_n_steps=1", "data.batch_size=3",
            "decoding=greedy", *overrides,
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", argv)
        assert not tiny.status_of_script("train.py"), capsys.readouterr().err
        return folder

    return train


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "logs" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def column(folder: Path, name: str) -> list[tuple[str, str]]:
    return [(row["step"], row[name]) for row in rows(folder) if row[name]]


def notebook(root: Path, folder: Path, *callbacks: pl.Callback) -> Captioner:
    """What a notebook does; all that it leaves out is a default."""
    pl.seed_everything(3, verbose=False)
    data = CaptionDataModule(root=str(root), batch_size=3, cache=str(folder))
    model = Captioner.for_data(data, model="attn_lstm", encoder=tiny.ENCODER)
    trainer = tiny.trainer(
        folder, *callbacks, max_epochs=2, gradient_clip_val=2.0, log_every_n_steps=1,
        logger=CSVLogger(folder, name="", version="logs"),
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    return model


def test_a_notebook_gives_the_losses_of_the_script_step_for_step(
    train: Train, drawn_pictures: Path, tmp_path: Path
) -> None:
    """With all defaults, dropout among them: those of the classes are those of the files."""
    run = train("seed=3", "trainer.precision=32-true", "trainer.max_epochs=2")
    first, second = tmp_path / "first", tmp_path / "second"
    ours = notebook(drawn_pictures, first, EMA())
    notebook(drawn_pictures, second)  # in the same process once more, without averaging
    expected = column(run, "train/loss")
    assert len(expected) == 6
    assert column(first, "train/loss") == expected == column(second, "train/loss")
    for name in ("train/loss_epoch", "dev/loss", "dev/perplexity", "dev/CIDEr", "dev/BLEU-4"):
        assert len(column(run, name)) == 2
        assert column(first, name) == column(run, name)
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(
        torch.equal(value, last["state_dict"][name]) for name, value in ours.state_dict().items()
    )
    assert last["hyper_parameters"]["model"] == dict(ours.hparams["model"]) | {  # type: ignore[index]
        name: value
        for name, value in last["hyper_parameters"]["model"].items()
        if name not in ours.hparams["model"]  # type: ignore[index]
    }


def test_the_mean_of_an_epoch_is_that_of_its_steps(train: Train) -> None:
    run = train("trainer.precision=32-true", "trainer.max_epochs=2", "model.hidden_dim=8")
    steps = [float(value) for _, value in column(run, "train/loss")]
    means = [float(value) for _, value in column(run, "train/loss_epoch")]
    assert means == pytest.approx([sum(steps[:3]) / 3, sum(steps[3:]) / 3])
    assert means[0] != pytest.approx(steps[2], abs=1e-3)  # the last batch's


def check_parts(results: Results, folder: Path) -> None:
    """The numbers of parameters against those in the checkpoint's state dicts."""
    checkpoint = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    sizes = {"encoder": 0, "decoder": 0, "objective": 0}
    for name, value in checkpoint["state_dict"].items():
        if name != "objective.calls":  # a buffer
            sizes[name.split(".")[0]] += value.numel()
    assert checkpoint["encoder"]["state_dict"] == {}
    sizes["encoder"] = 25_632
    assert results.model is not None
    assert results.model.parameters == sizes
    assert results.model.trainable == sizes["decoder"] + sizes["objective"]


def test_what_is_recorded_of_plain_pytorch_in_single_precision_is_true(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "load_kernels", lambda _: pytest.fail("kernels were loaded"))
    seen = record_types(monkeypatch)
    folder = train(
        "backend=torch", "trainer.precision=32-true", "trainer.max_epochs=1", "model.hidden_dim=8"
    )
    results = read_results(folder / "results.json")
    assert seen == {torch.float32}
    assert results.arithmetic is not None
    assert results.arithmetic.precision == "32-true"
    assert results.arithmetic.device.startswith("cpu: ")
    assert results.arithmetic.backend.asked == "torch"
    assert results.arithmetic.backend.ops == dict.fromkeys(backends.OPS, "torch")
    assert results.arithmetic.threads == torch.get_num_threads()
    check_parts(results, folder)


def test_what_is_recorded_of_kernels_in_bfloat16_is_true(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backends.load_kernels("cpu") is None:
        pytest.skip("there is no C compiler")
    used, plain = set(), backends.kernels_for

    def kernels_for(op: str, *tensors: Any) -> Any:
        kernels = plain(op, *tensors)
        used.update([op] if kernels else [])
        return kernels

    for name, module in list(sys.modules.items()):
        if name.startswith("captioning.kernels.") and getattr(module, "kernels_for", None) is plain:
            monkeypatch.setattr(module, "kernels_for", kernels_for)
    seen = record_types(monkeypatch)
    folder = train(
        "backend=auto", "trainer.precision=bf16-mixed", "trainer.max_epochs=1",
        "model.hidden_dim=8", "decoding=beam", f"objective._target_={tiny.__name__}.Weighted",
        "~objective.label_smoothing", "~objective.attention_penalty", "~objective.coverage_target",
    )  # fmt: skip
    results = read_results(folder / "results.json")
    assert seen == {torch.bfloat16}
    assert results.arithmetic is not None
    assert results.arithmetic.precision == "bf16-mixed"
    assert results.arithmetic.backend.asked == "auto"
    assert {op for op, kind in results.arithmetic.backend.ops.items() if kind == "c"} >= used
    assert {"additive_attention", "lstm_cell", "topk"} <= used
    check_parts(results, folder)


def record_types(monkeypatch: pytest.MonkeyPatch) -> set[torch.dtype]:
    """The types in which the decoder's logits are computed in training."""
    from captioning.models.decoders.recurrent import RecurrentDecoder

    seen, plain = set(), RecurrentDecoder.output_logits

    def output_logits(self: Any, *given: Any) -> Any:
        logits = plain(self, *given)
        if self.training:
            seen.add(logits.dtype)
        return logits

    monkeypatch.setattr(RecurrentDecoder, "output_logits", output_logits)
    return seen


def noise(root: Path, folder: Path, model: Captioner, seed: int) -> list[float]:
    """The losses of two epochs in which only dropout changes: one batch, and a rate of 0."""
    pl.seed_everything(seed, verbose=False)
    model.optimizer_spec = {"_target_": "torch.optim.SGD", "lr": 0.0}
    record = tiny.Record()
    data = tiny.data(root, folder, batch_size=99, seed=0)
    tiny.trainer(folder, record, max_epochs=2, limit_val_batches=0).fit(model, datamodule=data)
    return record.losses


def test_dropout_follows_the_seed_and_changes_from_epoch_to_epoch(
    drawn_pictures: Path, tmp_path: Path
) -> None:
    model = tiny.captioner(tiny.data(drawn_pictures, tmp_path))
    path = tmp_path / "captioner.ckpt"
    one, other = (noise(drawn_pictures, tmp_path, model, seed) for seed in (1, 2))
    assert min(abs(a - b) for a in one for b in other) > 1e-4
    assert abs(one[0] - one[1]) > 1e-4
    assert noise(drawn_pictures, tmp_path, model, 1) == one

    # So does that of a captioner which is loaded to be trained further.
    trainer = tiny.trainer(tmp_path)
    trainer.fit(model, datamodule=tiny.data(drawn_pictures, tmp_path))
    trainer.save_checkpoint(path)
    one, other = (
        noise(drawn_pictures, tmp_path, Captioner.load_from_checkpoint(path), seed)
        for seed in (1, 2)
    )
    assert min(abs(a - b) for a in one for b in other) > 1e-4


def test_dropout_differs_between_seeds_epochs_and_processes() -> None:
    batch = Batch(torch.zeros(1, 1, 1), torch.zeros(1, 1, 2, dtype=torch.int64), ["a"])

    def drawn(seed: int, epoch: int, rank: int) -> float:
        stub = SimpleNamespace(noise_seed=seed, current_epoch=epoch, global_rank=rank)
        Captioner.on_train_batch_start(stub, batch, 0)  # type: ignore[arg-type]
        return torch.rand(()).item()

    cases = [(s, e, r) for s in (0, 1, 11) for e in (0, 1, 11) for r in (0, 1)]
    assert len({drawn(*case) for case in cases}) == len(cases)
    assert [drawn(*case) for case in cases] == [drawn(*case) for case in cases]


class Report(pl.Callback):
    """Writes what a process has seen."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.record = folder, tiny.Record()

    def on_train_batch_end(self, *given: Any) -> None:
        self.record.on_train_batch_end(*given)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        seen = {"ids": self.record.ids, "seeds": self.record.seeds}
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(seen))


@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.filterwarnings("ignore:.*sync_dist=True")
@pytest.mark.filterwarnings("ignore:.*DistributedSampler")
def test_two_processes_of_a_notebook_see_other_images_and_other_noise(
    drawn_pictures: Path, tmp_path: Path
) -> None:
    pl.seed_everything(3, verbose=False)
    data = tiny.data(drawn_pictures, tmp_path, batch_size=2)
    model = tiny.captioner(data, backend="torch")
    trainer = tiny.trainer(
        tmp_path, Report(tmp_path), devices=2, strategy="ddp_notebook", max_epochs=2,
        num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for epoch in (slice(0, 3), slice(3, 6)):
        seen = [{image for ids in each["ids"][epoch] for image in ids} for each in (first, second)]
        assert len(seen[0] | seen[1]) == 9
        assert len(seen[0] & seen[1]) <= 1  # 9 images cannot be halved
    seeds = [seed for each in (first, second) for seed in (each["seeds"][0], each["seeds"][3])]
    assert len(set(seeds)) == 4
