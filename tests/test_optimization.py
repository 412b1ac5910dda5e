"""What an optimiser of the captioner is given, what a step does, and what the dev loss is of."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import tiny
import torch
from torch import Tensor

from captioning.captioner import Captioner
from captioning.data.datamodule import CaptionDataModule
from captioning.kernels.backend import use_backend
from captioning.support.errors import CaptioningError

pytestmark = [pytest.mark.filterwarnings(each) for each in tiny.QUIET]

WEIGHTED = {"_target_": f"{tiny.__name__}.Weighted"}


@pytest.fixture
def data(drawn_pictures: Path, tmp_path: Path) -> CaptionDataModule:
    pl.seed_everything(3, verbose=False)
    return tiny.data(drawn_pictures, tmp_path)


def configured(model: Captioner, steps: int) -> tuple[torch.optim.Optimizer, Any]:
    """The optimiser and the scheduler for a run of some steps."""
    model.trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    made = model.configure_optimizers()
    assert made["lr_scheduler"]["interval"] == "step"
    return made["optimizer"], made["lr_scheduler"]["scheduler"]


@pytest.mark.parametrize("trainable", [False, True])
def test_each_parameter_has_the_rate_and_the_decay_that_it_should(
    data: CaptionDataModule, trainable: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Biases and other vectors are not decayed, nor numbers; a frozen weight is not optimised.

    A rate that pretrained weights need is doubted for random ones.
    """
    model = tiny.captioner(
        data, encoder=tiny.ENCODER | {"trainable": trainable}, objective=WEIGHTED, encoder_lr=2e-5,
        optimizer={"_target_": "torch.optim.AdamW", "lr": 0.5, "weight_decay": 0.25},
        scheduler="constant",
    )  # fmt: skip
    optimizer, _ = configured(model, 10)
    assert (
        "encoder_lr=2e-05 suits pretrained ones: give encoder_lr=0.5" in caplog.text
    ) == trainable
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert id(parameter) not in found
            found[id(parameter)] = (group["lr"], group["weight_decay"])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_name = {names[key]: values for key, values in found.items()}
    expected = {
        name: (
            2e-5 if name.startswith("trainable_encoder") else 0.5,
            0.25 if name.endswith(("weight", "mix")) else 0.0,
        )
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    assert by_name == expected
    assert by_name["decoder.hidden_gates.weight"] == (0.5, 0.25)
    assert by_name["decoder.input_gates.bias"] == (0.5, 0.0)
    assert by_name["objective.scale"] == (0.5, 0.0)
    assert by_name["objective.mix"] == (0.5, 0.25)
    of_encoder = [name for name in by_name if name.startswith("trainable_encoder")]
    assert len(of_encoder) == (12 if trainable else 0)


def test_the_defaults_are_those_of_the_published_recipe(data: CaptionDataModule) -> None:
    optimizer, _ = configured(tiny.captioner(data), 100)
    assert type(optimizer) is torch.optim.AdamW
    for group, decay in zip(optimizer.param_groups, (0.01, 0.0), strict=True):
        assert group["initial_lr"] == 1e-3
        assert group["weight_decay"] == decay
        assert group["betas"] == (0.9, 0.999)
        assert group["eps"] == 1e-8
        assert group["fused"]


def test_both_rates_rise_and_fall_by_the_same_curve(data: CaptionDataModule) -> None:
    """At the first step, at the end of the warm-up, and at the last step, of 100."""
    model = tiny.captioner(data, encoder=tiny.ENCODER | {"trainable": True}, encoder_lr=1e-5)
    optimizer, scheduler = configured(model, 100)
    rates = []
    for _ in range(100):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    last = 0.01 + 0.99 * (1 + math.cos(math.pi * 95 / 96)) / 2
    for step, factor in ((0, 0.25), (3, 1.0), (4, 1.0), (99, last)):
        own, own_vectors, *encoder = rates[step]
        assert own == own_vectors == pytest.approx(1e-3 * factor)
        assert encoder == pytest.approx([1e-5 * factor] * len(encoder))
        assert encoder


def test_a_run_without_an_end_has_no_schedule(data: CaptionDataModule) -> None:
    with pytest.raises(CaptioningError, match=r"trainer.max_epochs or trainer.max_steps"):
        configured(tiny.captioner(data), -1)


class Gradients(pl.Callback):
    """The norm of all gradients before each step, and of those that the step has used."""

    def __init__(self) -> None:
        self.before: list[float] = []
        self.after: list[float] = []
        self.largest: list[float] = []

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        self.before.append(norm(pl_module))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        self.after.append(norm(pl_module))
        self.largest.append(max(float(p.grad.abs().max()) for p in learned(pl_module)))


def learned(module: pl.LightningModule) -> list[Any]:
    return [p for p in module.parameters() if p.grad is not None]


def norm(module: pl.LightningModule) -> float:
    return float(torch.cat([p.grad.flatten() for p in learned(module)]).norm())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_also_where_the_optimiser_is_fused(
    data: CaptionDataModule, tmp_path: Path, precision: str
) -> None:
    """Which Lightning refuses in mixed precision, for the sake of a scaler that there is not."""
    for algorithm in ("norm", "value", None):
        seen = Gradients()
        trainer = tiny.trainer(
            tmp_path, seen, precision=precision, gradient_clip_val=0.01,
            gradient_clip_algorithm=algorithm,
        )  # fmt: skip
        trainer.fit((model := tiny.captioner(data)), datamodule=data)
        assert trainer.optimizers[0].defaults["fused"]
        assert model.optimizer_spec["fused"]
        assert len(seen.before) == 3
        assert all(value > 0.1 for value in seen.before)
        if algorithm == "value":
            assert seen.largest == pytest.approx([0.01] * 3)
        else:
            assert seen.after == pytest.approx([0.01] * 3, rel=1e-3)
    unclipped = Gradients()
    tiny.trainer(tmp_path, unclipped, precision=precision).fit(model, datamodule=data)
    assert unclipped.before == unclipped.after


@pytest.mark.parametrize("trainable", [False, True])
def test_which_weights_a_step_changes(
    data: CaptionDataModule, tmp_path: Path, trainable: bool
) -> None:
    """With encoder_lr=0 a trainable encoder stays as it was, and everything else learns."""
    model = tiny.captioner(
        data, encoder=tiny.ENCODER | {"trainable": trainable}, encoder_lr=0.0, objective=WEIGHTED
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    encoder = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    tiny.trainer(tmp_path).fit(model, datamodule=data)
    for name, value in model.state_dict().items():
        stays = name.startswith("trainable_encoder.")
        assert torch.equal(value, before[name]) == stays, name
    state = model.encoder.state_dict()
    assert all(torch.equal(state[name], value) for name, value in encoder.items())


@pytest.mark.parametrize("batch_size", [1, 2, 99])
def test_the_dev_loss_is_the_mean_over_the_words_of_the_split(
    data: CaptionDataModule, drawn_pictures: Path, tmp_path: Path, batch_size: int
) -> None:
    """In nats a word, ``<end>`` included, without smoothing or dropout, however it is batched."""
    model = tiny.captioner(data)  # whose objective smooths labels by 0.1
    with torch.no_grad():  # or all words would be nearly alike
        model.decoder.output_words.weight.mul_(20)
    batched = tiny.data(drawn_pictures, tmp_path, eval_batch_size=batch_size)
    trainer = tiny.trainer(tmp_path)
    (scores,) = trainer.validate(model, datamodule=batched, verbose=False)
    total, words = 0.0, 0
    model.eval()
    for batch in batched.evaluation_dataloader("dev"):
        for grid, captions in zip(batch.images, batch.tokens, strict=True):
            for caption in captions:
                tokens = caption[caption != 0]
                total -= float(log_probs(model, grid, tokens).sum())
                words += len(tokens) - 1
    references = [text for each in data.references("dev").values() for text in each]
    assert words == sum(len(text.split()) + 1 for text in references)
    assert scores["dev/loss"] == pytest.approx(total / words, rel=1e-5)
    assert scores["dev/perplexity"] == pytest.approx(math.exp(total / words), rel=1e-5)


def log_probs(model: Captioner, grid: Tensor, tokens: Tensor) -> Tensor:
    """Of each word of a caption given those before it, word by word, in plain PyTorch."""
    with torch.no_grad(), use_backend("torch"):
        memory = model.decoder.prepare(grid[None])
        state = model.decoder.start(memory, 1)
        found = []
        for word, following in pairwise(tokens):
            step = model.decoder.step(word[None, None], state, memory)
            state = step.state
            found.append(step.logits.log_softmax(-1)[0, 0, following])
    return torch.stack(found)


def test_the_loss_of_training_is_smoothed_and_the_dev_loss_is_not(
    data: CaptionDataModule, tmp_path: Path
) -> None:
    losses = []
    for smoothing in (0.0, 0.4):
        pl.seed_everything(1, verbose=False)
        objective = {
            "_target_": "captioning.objectives.cross_entropy.CrossEntropy",
            "label_smoothing": smoothing,
        }
        model = tiny.captioner(data, objective=objective)
        model.optimizer_spec = {"_target_": "torch.optim.SGD", "lr": 0.0}
        trainer = tiny.trainer(tmp_path)
        trainer.fit(model, datamodule=data)
        losses.append(
            tuple(float(trainer.callback_metrics[n]) for n in ("train/loss_epoch", "dev/loss"))
        )
    assert losses[0][1] == losses[1][1]
    assert losses[0][0] != pytest.approx(losses[1][0], abs=1e-4)
